"""A manager on a real server: real connections, the user's own stream, resume, and nobody else's."""

from __future__ import annotations

import pytest
import trio

from netra_ws import Run
from netra_ws.compat.context import UserExecutionContext
from netra_ws.compat.factory import create_websocket_manager
from netra_ws.compat.manager import UnifiedWebSocketManager
from netra_ws.contexts.kicking import Whom
from netra_ws.errors import ClientError, ContextIsolationError, InvalidArgument, ManagerClosed
from netra_ws.testing import MemoryServer, open_test_server

from .sockets import JsonSocket


async def echo(run: Run) -> str:
    return run.text


def bound(server: MemoryServer, user: str = "ada") -> UnifiedWebSocketManager:
    return create_websocket_manager(UserExecutionContext(user, "t1", "r1"), server=server.server)


async def test_it_sees_the_users_real_connections(autojump_clock: trio.testing.MockClock) -> None:
    """On a server a manager finds, counts and tells its user's real connections, and no one else's."""
    async with open_test_server({"echo": echo}) as server, server.connect("ada"), server.connect("bob"):
        manager = bound(server)
        async with manager:
            (connection_id,) = manager.get_user_connections("ada")
            found = manager.get_connection(connection_id)
            assert found is not None
            assert (found.user_id, found.is_active) == ("ada", True)
            assert await manager.find_connection("ada", found.websocket) == found
            assert manager.get_connection_id_by_websocket(found.websocket) == connection_id
            assert manager.get_stats()["connections_by_user"] == {"ada": 1}
            assert manager.get_connection_count() == 1
            assert manager.get_connection_health("ada")["active_connections"] == 1
            assert manager.is_connection_active("ada")
            with pytest.raises(ContextIsolationError):
                manager.get_user_connections("bob")
            assert await manager.find_connection("ada", object()) is None
            assert manager.get_connection("unknown") is None


async def test_messages_go_over_the_users_stream(autojump_clock: trio.testing.MockClock) -> None:
    """What is sent is a numbered event of the user's stream: real clients and sockets of the program have it once."""
    async with open_test_server({"echo": echo}) as server, server.connect("ada") as ada, server.connect("bob") as bob:
        heard, others = ada.events(), bob.events()
        async with bound(server) as manager:
            socket = JsonSocket()
            await manager.connect_user("ada", socket)
            assert await manager.send_to_user("ada", {"type": "note", "data": {"a": 1}})
            assert await manager.emit_critical_event("ada", "agent_thinking", {"step": 2})
            assert await manager.send_to_user("ada", {"type": "flat", "text": "x"})
            assert await manager.broadcast({"type": "all", "data": None}) == 2
            said = [await heard.__anext__() for _ in range(4)]
        assert [(one.type, one.fields["name"], one.fields["value"]) for one in said] == [
            ("agent_event", "note", {"a": 1}),
            ("agent_event", "agent_thinking", {"step": 2}),
            ("agent_event", "flat", {"text": "x"}),
            ("agent_event", "all", None),
        ]
        numbers = [one.fields["seq"] for one in said]
        assert numbers == sorted(set(numbers))
        assert socket.types == ["note", "agent_thinking", "flat", "all"]
        run = await bob.start("hello")
        await run.result()
        async for one in others:
            assert one.type != "agent_event"
            if one.type == "agent_completed":
                break


async def test_who_is_away_gets_it_by_resuming(autojump_clock: trio.testing.MockClock) -> None:
    """What is sent while nobody is there is on the stream, not in a queue beside it, and comes once by resuming."""
    async with open_test_server({"echo": echo}) as server:
        async with server.connect("ada") as ada:
            position = ada.position
        async with bound(server) as manager:
            assert await manager.send_to_user("ada", {"type": "missed", "data": 1})
            assert manager.get_error_statistics()["total_queued_messages"] == 0
            socket = JsonSocket()
            await manager.connect_user("ada", socket)
            assert socket.got == []
        async with server.connect("ada", position=position) as again:
            with trio.fail_after(5):
                one = await again.events().__anext__()
            assert (one.fields["name"], one.fields["value"]) == ("missed", 1)


async def test_what_is_too_large_for_the_stream(autojump_clock: trio.testing.MockClock) -> None:
    """A message above the bound of events is not taken, counted and told to nobody; one without a type is refused."""
    async with open_test_server({"echo": echo}) as server, bound(server) as manager:
        assert not await manager.send_to_user("ada", {"type": "m", "data": "x" * 300_000})
        assert manager.get_error_statistics()["failures_by_kind"]["too_large"] == 1
        assert manager.get_error_statistics()["total_queued_messages"] == 0
        with pytest.raises(InvalidArgument, match="type"):
            await manager.send_to_user("ada", {"data": 1})


async def test_threads_of_the_ledger(autojump_clock: trio.testing.MockClock) -> None:
    """A thread that the user has on the server takes messages; one of another user, or of nobody, does not."""
    async with open_test_server({"echo": echo}) as server, server.connect("ada") as ada, server.connect("bob") as bob:
        mine = (await ada.start("hello"), await bob.start("hello"))
        for run in mine:
            await run.result()
        heard = ada.events()
        async with bound(server) as manager:
            assert await manager.send_to_thread(mine[0].thread_id, {"type": "note", "data": 1})
            assert not await manager.send_to_thread(mine[1].thread_id, {"type": "note", "data": 2})
            assert not await manager.send_to_thread("nobodys", {"type": "note", "data": 3})
            (connection_id,) = manager.get_user_connections("ada")
            assert manager.update_connection_thread(connection_id, "t7")
            assert manager.get_user_connections_by_thread("ada", "t7") == {connection_id}
            with pytest.raises(InvalidArgument, match="thread_id"):
                manager.update_connection_thread(connection_id, "no id!")
            assert await manager.send_event(connection_id, "direct", {"x": 1})
        said = [await heard.__anext__() for _ in range(2)]
        assert [one.fields["name"] for one in said] == ["note", "direct"]


async def test_a_real_connection_is_closed_with_its_code(autojump_clock: trio.testing.MockClock) -> None:
    """Disconnecting a real client closes its socket with the code that was given."""
    async with open_test_server({"echo": echo}) as server, server.connect_raw("ada") as ada, bound(server) as manager:
        (connection_id,) = manager.get_user_connections("ada")
        found = manager.get_connection(connection_id)
        assert found is not None
        assert await manager.disconnect_user("ada", found.websocket, 4010, "signed out")
        assert (await ada.receive_close()).payload[:2] == (4010).to_bytes(2)
        assert not manager.is_connection_active("ada")


async def test_waiting_for_a_real_connection(autojump_clock: trio.testing.MockClock) -> None:
    """Who waits for a user goes on when they come by the server's own door."""
    async with open_test_server({"echo": echo}) as server, bound(server) as manager:
        came: list[bool] = []

        async def wait() -> None:
            came.append(await manager.wait_for_connection("ada", 10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(1)
            assert not came
            async with server.connect("ada"):
                await trio.sleep(1)
                assert came == [True]


async def test_it_holds_the_context_only_inside_its_block(autojump_clock: trio.testing.MockClock) -> None:
    """Outside of its block a manager on a server does nothing; afterwards nothing of it holds the user's context."""
    async with open_test_server({"echo": echo}) as server:
        manager = bound(server)
        with pytest.raises(ManagerClosed, match="async with"):
            await manager.send_to_user("ada", {"type": "m"})
        with pytest.raises(ManagerClosed):
            manager.get_user_connections("ada")
        async with manager:
            await manager.start_monitored_background_task("a", trio.sleep_forever)
            assert server.server.registry.statistics().users == 1
        await server.settled()
        assert server.server.registry.statistics().users == 0
        with pytest.raises(InvalidArgument, match="user_context"):
            UnifiedWebSocketManager(server=server.server)


async def test_a_cancelled_program_leaves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """A block that is cancelled ends its tasks and lets the user's context go."""
    async with open_test_server({"echo": echo}) as server:
        with trio.move_on_after(1):
            async with bound(server) as manager:
                await manager.start_monitored_background_task("a", trio.sleep_forever)
                await trio.sleep_forever()
        assert manager.closed
        await server.settled()


async def test_jobs_on_a_server_have_streams(autojump_clock: trio.testing.MockClock) -> None:
    """What is sent to a job is said on its stream in the user's name, once, and on the manager's own sockets."""
    async with open_test_server({"echo": echo}) as server, bound(server) as manager:
        member = JsonSocket()
        await manager.connect_to_job(member, "build-7")
        assert await manager.send_to_job("build-7", {"type": "line", "data": "one"}) == 2
        assert await manager.send_to_job("build-7", {"type": "line", "data": "x" * 300_000}) == 1
        assert manager.get_error_statistics()["failures_by_kind"]["too_large"] == 1
        async with server.connect_raw("ada", path="/ws") as ada:
            assert (await ada.ask("connect_job", job_id="build-7"))["type"] == "job_connected"
            assert await manager.send_to_job("build-7", {"type": "line", "data": "two"}) == 2
            told = (await ada.until("agent_event"))[-1]
            assert (told["job_id"], told["name"], told["value"]) == ("build-7", "line", "two")
        assert [message["data"][:3] for message in member.got] == ["one", "xxx", "two"]


async def test_another_users_job_is_not_spoken_into(autojump_clock: trio.testing.MockClock) -> None:
    """A job that another user owns is refused, and nothing is said there."""
    async with open_test_server({"echo": echo}) as server, bound(server) as ada, bound(server, "bob") as bob:
        await ada.send_to_job("build-7", {"type": "line"})
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await bob.send_to_job("build-7", {"type": "line"})
        assert bob.messages_sent == 0


async def test_a_sign_out_does_not_end_it(autojump_clock: trio.testing.MockClock) -> None:
    """A user who is signed out loses their connections; what the program says next is on their stream."""
    async with open_test_server({"echo": echo}) as server, server.connect_raw("ada") as ada, bound(server) as manager:
        await server.server.registry.kick(Whom("ada", None))()
        await ada.receive_close()
        assert not manager.is_connection_active("ada")
        assert await manager.send_to_user("ada", {"type": "later"})


async def test_behind_the_end_of_the_server_it_is_over(autojump_clock: trio.testing.MockClock) -> None:
    """When the server has closed the user's context, a manager says so instead of saying what nobody keeps."""
    async with open_test_server({"echo": echo}) as server, bound(server) as manager:
        await server.server.registry.close_all("shutdown", 1.0)
        with pytest.raises(ManagerClosed, match="server"):
            await manager.send_to_user("ada", {"type": "m"})
