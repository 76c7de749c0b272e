"""What a user's runs say reaches the sockets of a program's own, live and in order, in the older envelope."""

from __future__ import annotations

import pytest
import trio

from netra_ws import ClientError, Run
from netra_ws.compat import (
    AgentMessageHandler,
    ManagerPolicy,
    UserExecutionContext,
    WebSocketManagerFactory,
    create_websocket_manager,
)
from netra_ws.errors import AgentError

from ..conftest import StartServer
from ..kit import connect
from .sockets import JsonSocket

CRITICAL = ["agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_completed"]


async def works(run: Run) -> str:
    await run.think("hm")
    async with run.tool("look", {"at": 1}) as call:
        call.results = {"found": 2}
    if run.text == "fail":
        raise AgentError("cannot")
    return f"done {run.text}"


def context_of(user: str) -> UserExecutionContext:
    return UserExecutionContext(user_id=user, thread_id="thread-1", run_id="run-1")


async def test_the_five_events_reach_a_socket(server: StartServer) -> None:
    """When the handler returns, the socket has the five events in order, flat and under payload, older names too."""
    running = await server(agents={"works": works})
    async with create_websocket_manager(context_of("ada"), server=running) as manager:
        socket = JsonSocket()
        await manager.connect_user("ada", socket)
        handler = AgentMessageHandler(running, manager=manager, agent="works")
        assert await handler.handle_message("ada", socket, {"type": "chat", "payload": {"content": "x"}})
        heard = [message for message in socket.got if message["type"] in CRITICAL]
        assert [message["type"] for message in heard] == CRITICAL
        assert len({message["run_id"] for message in heard}) == 1
        assert [message["seq"] for message in heard] == sorted(message["seq"] for message in heard)
        thinking, executing, completed, ended = heard[1:]
        assert thinking["reasoning"] == thinking["payload"]["reasoning"] == thinking["payload"]["thought"] == "hm"
        assert executing["tool_name"] == executing["payload"]["tool_name"] == "look"
        assert completed["results"] == completed["payload"]["results"] == {"found": 2}
        assert ended["final_response"] == ended["payload"]["final_response"] == "done x"


async def test_a_failed_run_is_told_before_its_notice(server: StartServer) -> None:
    """A run that fails ends on the socket, too, and the notice comes behind its end."""
    running = await server(agents={"works": works})
    async with create_websocket_manager(context_of("ada"), server=running) as manager:
        socket = JsonSocket()
        await manager.connect_user("ada", socket)
        handler = AgentMessageHandler(running, manager=manager, agent="works")
        assert not await handler.handle_message("ada", socket, {"type": "chat", "payload": {"content": "fail"}})
        types = socket.types
        assert types.index("error") > types.index("agent_completed")
        assert types.count("agent_completed") == types.count("error") == 1


async def test_a_run_that_a_real_client_started(server: StartServer) -> None:
    """A run that another connection of the user has started reaches the socket; another user's does not."""
    running = await server(agents={"works": works})
    async with create_websocket_manager(context_of("ada"), server=running) as manager:
        socket = JsonSocket()
        await manager.connect_user("ada", socket)
        for user in ("bob", "ada"):
            async with connect(running, user) as client:
                await client.ask("chat", content=user, agent="works")
                await client.until("agent_completed")
        await manager.flush_events()
        assert {message["user_id"] for message in socket.got} == {"ada"}
        assert [message["type"] for message in socket.got if message["type"] in CRITICAL] == CRITICAL


async def test_what_the_manager_says_comes_once(server: StartServer) -> None:
    """A message that is on the stream as well reaches the manager's own socket once, as it was sent."""
    running = await server()
    async with create_websocket_manager(context_of("ada"), server=running) as manager, connect(running) as client:
        socket = JsonSocket()
        await manager.connect_user("ada", socket)
        assert await manager.send_to_user("ada", {"type": "note", "data": {"n": 1}})
        heard = (await client.until("agent_event"))[-1]
        await manager.flush_events()
        assert (heard["name"], heard["value"]) == ("note", {"n": 1})
        assert socket.got == [{"type": "note", "data": {"n": 1}}]


async def test_a_stalled_socket_holds_up_no_run(server: StartServer) -> None:
    """A socket that takes nothing is taken out after its time; the run and the other socket have all events."""
    running = await server(agents={"works": works})
    factory = WebSocketManagerFactory(policy=ManagerPolicy(send_timeout_s=0.05))
    async with factory.create_manager(context_of("ada"), server=running) as manager, connect(running) as client:
        socket = JsonSocket()
        await manager.connect_user("ada", socket)
        await manager.connect_user("ada", JsonSocket(stalled=True))
        await client.ask("chat", content="x", agent="works")
        await client.until("agent_completed")
        with trio.fail_after(5):
            while [message["type"] for message in socket.got if message["type"] in CRITICAL] != CRITICAL:
                await trio.sleep(0.01)
        assert manager.get_stats()["total_connections"] == 2  # the real client, and the socket that is well
        assert manager.get_error_statistics()["failures_by_kind"]["timeout"] == 1


async def test_nothing_is_passed_on_behind_the_end(server: StartServer) -> None:
    """When the block of the manager is left its sockets hear nothing more, and the server holds no reader of it."""
    running = await server(agents={"works": works})
    socket = JsonSocket()
    async with create_websocket_manager(context_of("ada"), server=running) as manager:
        await manager.connect_user("ada", socket)
    before = list(socket.got)
    async with connect(running) as client:
        await client.ask("chat", content="x", agent="works")
        await client.until("agent_completed")
        assert sum(stream.statistics().readers for stream in running.streams) == 1
    assert socket.got == before


async def test_an_error_of_the_block_is_no_group(server: StartServer) -> None:
    """What the program's own block raises comes out as it is."""
    running = await server()
    with pytest.raises(KeyError):
        async with create_websocket_manager(context_of("ada"), server=running):
            raise KeyError("mine")


async def builds(run: Run) -> None:
    for step in run.text.split():
        await run.job("build-7").emit("step", step)


async def test_members_hear_what_is_said_in_a_native_job(server: StartServer) -> None:
    """What agents and programs say in a job reaches its members, in order and once; who has left hears nothing."""
    running = await server(agents={"builds": builds})
    async with create_websocket_manager(context_of("ada"), server=running) as manager, connect(running) as client:
        member, gone = JsonSocket(), JsonSocket()
        for socket in (member, gone):
            await manager.connect_to_job(socket, "build-7")
        await manager.disconnect_from_job("build-7", gone)
        await client.ask("chat", content="one two", agent="builds")
        await running.job("ada", "build-7").emit("step", "three")
        assert await manager.send_to_job("build-7", {"type": "note", "data": 4}) == 2
        await running.job("ada", "build-7").emit("step", "five")
        with trio.fail_after(5):
            while len(member.got) < 5:
                await trio.sleep(0.01)
        said = [message for message in member.got if message["type"] == "agent_event"]
        assert {message["job_id"] for message in said} == {"build-7"}
        assert [message["payload"]["value"] for message in said if message["value"] in ("one", "two")] == ["one", "two"]
        assert sorted(message["value"] for message in said) == sorted(["one", "two", "three", "five"])
        assert [message for message in member.got if message["type"] == "note"] == [{"type": "note", "data": 4}]
        assert gone.got == []
        await manager.disconnect_from_job("build-7", member)
        with trio.fail_after(5):
            while await running.job("ada", "build-7").members() or manager._followed:
                await trio.sleep(0.01)


async def test_a_job_of_another_user_takes_no_members(server: StartServer) -> None:
    """A job that another user has opened is not there for this manager: no member, nothing followed, nothing heard."""
    running = await server()
    await running.job("bob", "build-7").emit("step", 1)
    async with create_websocket_manager(context_of("ada"), server=running) as manager:
        member = JsonSocket()
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await manager.connect_to_job(member, "build-7")
        assert manager.room_manager.rooms == {}
        assert manager.size == 0
        await manager.connect_to_job(member, "build-8")
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await running.job("bob", "build-8").emit("step", 1)
        await running.job("bob", "build-7").emit("step", 2)
        assert member.got == []


async def test_a_job_that_is_closed_is_followed_no_more(server: StartServer) -> None:
    """When a job is closed its members stay, its id is free, and who joins afterwards follows the new one."""
    running = await server()
    async with create_websocket_manager(context_of("ada"), server=running) as manager:
        first, second = JsonSocket(), JsonSocket()
        await manager.connect_to_job(first, "build-7")
        await running.job("ada", "build-7").close()
        with trio.fail_after(5):
            while manager._followed:
                await trio.sleep(0.01)
        await running.job("bob", "build-7").emit("step", "another's")
        await running.job("bob", "build-7").close()
        await manager.connect_to_job(second, "build-7")
        await running.job("ada", "build-7").emit("step", "anew")
        with trio.fail_after(5):
            while not (first.got and second.got):
                await trio.sleep(0.01)
        assert [message["value"] for message in first.got] == [message["value"] for message in second.got] == ["anew"]
