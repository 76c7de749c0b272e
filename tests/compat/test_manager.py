"""The connections of the older manager: coming, going, finding, counting."""

from __future__ import annotations

import gc
import logging
import random
import uuid
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from netra_ws.compat.connection import WebSocketConnection
from netra_ws.compat.manager import UnifiedWebSocketManager, WebSocketManagerProtocol
from netra_ws.compat.policy import ManagerPolicy
from netra_ws.errors import ContextIsolationError, InvalidArgument, LimitReached, ManagerClosed

from .sockets import JsonSocket, real_pair

MANY = ManagerPolicy(max_connections_per_user=1000)


def connection(number: int | str = 1, user: str = "ada", **more: Any) -> WebSocketConnection:
    return WebSocketConnection(f"c{number}", user, more.pop("websocket", JsonSocket()), **more)


# Registry.


async def test_the_registry_knows_its_manager() -> None:
    """The registry is there from the start, and finds its manager as long as anybody has it."""
    manager = UnifiedWebSocketManager()
    registry = manager.registry
    assert registry.manager is manager
    del manager
    gc.collect()
    with pytest.raises(ManagerClosed):
        _ = registry.manager


async def test_registered_objects_become_connections() -> None:
    """What is registered is a connection of the manager, and comes back as the very object it was."""
    manager = UnifiedWebSocketManager()
    info = SimpleNamespace(connection_id="c1", websocket=JsonSocket())
    made = await manager.registry.register_connection("ada", info)
    assert manager.get_connection("c1") is made
    assert made.metadata == {"connection_info": info}
    assert manager.registry.get_user_connections("ada")[0] is info
    await manager.registry.unregister_connection("c1")
    assert manager.registry.get_user_connections("ada") == []


async def test_an_unknown_user_has_nothing_registered() -> None:
    """For a user whom nobody has registered the registry has an empty list."""
    assert UnifiedWebSocketManager().registry.get_user_connections("nobody") == []


# Beginning.


async def test_a_new_manager_is_empty(caplog: pytest.LogCaptureFixture) -> None:
    """A new manager has no connections, users, jobs or errors, and says nothing about it."""
    with caplog.at_level(logging.INFO):
        manager = UnifiedWebSocketManager()
    assert not manager.connection_registry
    assert not manager.active_connections
    assert not manager.room_manager.rooms
    assert manager.get_error_statistics()["total_error_count"] == 0
    assert caplog.records == []


async def test_older_names_lead_to_the_manager() -> None:
    """``core`` and ``connection_manager`` are the manager, and it does what handlers need of one."""
    manager = UnifiedWebSocketManager()
    assert manager.core is manager.connection_manager is manager
    assert isinstance(manager, WebSocketManagerProtocol)


async def test_adding_is_atomic() -> None:
    """Of fifty tasks that add the same id, one succeeds; nothing is half there afterwards."""
    manager = UnifiedWebSocketManager()
    refused = 0

    async def add(user: str) -> None:
        nonlocal refused
        try:
            await manager.add_connection(connection(1, user))
        except InvalidArgument:
            refused += 1

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(add, f"user{number}")
    assert refused == 49
    stats = manager.get_stats()
    assert (stats["total_connections"], stats["unique_users"]) == (1, 1)


# Coming and going.


async def test_an_added_connection_is_there() -> None:
    """What was added is found by its id, in its user's ids and in both views."""
    manager = UnifiedWebSocketManager()
    one, two = connection(1), connection(2)
    await manager.add_connection(one)
    await manager.add_connection(two)
    assert manager.get_connection("c1") is one
    assert manager.get_user_connections("ada") == {"c1", "c2"}
    assert manager.active_connections == {"ada": [one, two]}
    assert manager.connection_registry == {"c1": one, "c2": two}
    assert manager.is_connection_active("ada")
    assert manager.is_user_connected("ada")
    assert manager.get_connection_count() == 2


async def test_a_removed_connection_is_gone_everywhere() -> None:
    """Removing takes a connection out of everything, with its user's entry when it was the last; others stay."""
    manager = UnifiedWebSocketManager()
    gone, stays = connection(1), connection(2, "bob")
    for one in (gone, stays):
        await manager.add_connection(one)
    await manager.remove_connection("c1")
    assert manager.get_connection("c1") is None
    assert "ada" not in manager.active_connections
    assert "ada" not in manager.get_stats()["connections_by_user"]
    assert not gone.is_active
    assert manager.get_connection("c2") is stays
    assert gone.websocket.closed == []
    assert not manager.is_connection_active("ada")


async def test_removing_what_is_not_there_does_nothing() -> None:
    """An unknown id is removed without a word."""
    manager = UnifiedWebSocketManager()
    await manager.add_connection(connection(1))
    await manager.remove_connection("other")
    assert manager.get_user_connections("ada") == {"c1"}


async def test_who_is_unknown_has_no_connections() -> None:
    """Unknown ids give None, unknown users an empty set."""
    manager = UnifiedWebSocketManager()
    assert manager.get_connection("c1") is None
    assert manager.get_user_connections("nobody") == set()
    assert not manager.is_connection_active("nobody")


async def test_ids_come_as_a_copy() -> None:
    """Changing the set of a user's ids changes nothing in the manager; the views cannot be changed at all."""
    manager = UnifiedWebSocketManager()
    await manager.add_connection(connection(1))
    manager.get_user_connections("ada").clear()
    manager.active_connections["ada"].clear()
    assert manager.get_user_connections("ada") == {"c1"}
    assert len(manager.active_connections["ada"]) == 1
    with pytest.raises(TypeError):
        manager.connection_registry["c2"] = connection(2)  # type: ignore[index]


async def test_a_taken_id_is_refused() -> None:
    """A second connection with an id that is taken is refused: no message of the first user reaches the second."""
    manager = UnifiedWebSocketManager()
    first, second = JsonSocket(), JsonSocket()
    await manager.add_connection(connection(1, "ada", websocket=first))
    with pytest.raises(InvalidArgument, match="connection_id"):
        await manager.add_connection(connection(1, "bob", websocket=second))
    assert await manager.send_to_user("ada", {"type": "secret"})
    assert (len(first.got), second.got) == (1, [])
    assert manager.get_user_connections("bob") == set()


async def test_a_socket_has_one_user() -> None:
    """A socket that is one user's connection cannot become another's; twice the same user's it may be."""
    manager = UnifiedWebSocketManager()
    socket = JsonSocket()
    await manager.connect_user("ada", socket)
    with pytest.raises(ContextIsolationError):
        await manager.connect_user("bob", socket)
    await manager.connect_user("ada", socket)
    assert manager.get_stats()["connections_by_user"] == {"ada": 2}


@pytest.mark.parametrize("user", [None, "", " ", 5, "a\x00", "x" * 257])
async def test_who_is_nobody_is_refused(user: Any) -> None:
    """A user id that names nobody is refused by every function, and nothing is stored or sent."""
    manager = UnifiedWebSocketManager()
    await manager.connect_user("ada", JsonSocket())
    calls = [
        manager.connect_user(user, JsonSocket()),
        manager.send_to_user(user, {"type": "a"}),
        manager.emit_critical_event(user, "a", {}),
        manager.disconnect_user(user, JsonSocket()),
        manager.find_connection(user, JsonSocket()),
        manager.handle_message(user, JsonSocket(), {}),
        manager.attempt_message_recovery(user),
        manager.send_error(user, "text"),
        manager.wait_for_connection(user),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument) as caught:
            await call
        assert caught.value.argument == "user_id"
    for function in (manager.get_user_connections, manager.is_connection_active, manager.get_connection_health):
        with pytest.raises(InvalidArgument):
            function(user)
    assert manager.get_error_statistics()["total_queued_messages"] == 0
    assert manager.get_stats()["connections_by_user"] == {"ada": 1}


async def test_sockets_that_cannot_send_are_refused() -> None:
    """Something without ``send_json`` and ``send_message`` is no socket, and is named as what is wrong."""
    manager = UnifiedWebSocketManager()
    for websocket in (object(), None):
        with pytest.raises(InvalidArgument, match="websocket"):
            await manager.connect_user("ada", websocket)
    with pytest.raises(InvalidArgument, match="connection"):
        await manager.add_connection({"connection_id": "c1"})  # type: ignore[arg-type]
    assert manager.get_stats()["total_connections"] == 0


async def test_limits_hold() -> None:
    """There are so many connections of a user and in all; one more is refused, and told which limit it is."""
    manager = UnifiedWebSocketManager(ManagerPolicy(max_connections=3, max_connections_per_user=2))
    for _ in range(2):
        await manager.connect_user("ada", JsonSocket())
    with pytest.raises(LimitReached, match="connections of this user"):
        await manager.connect_user("ada", JsonSocket())
    await manager.connect_user("bob", JsonSocket())
    with pytest.raises(LimitReached) as caught:
        await manager.connect_user("eve", JsonSocket())
    assert (caught.value.what, caught.value.most) == ("connections", 3)
    assert manager.get_connection_count() == 3


# As older programs do it.


async def test_connecting_a_user_gives_a_new_id() -> None:
    """``connect_user`` returns a connection with a new unique id, which the manager has."""
    manager = UnifiedWebSocketManager()
    socket = JsonSocket()
    made = await manager.connect_user("ada", socket)
    assert uuid.UUID(made.connection_id.removeprefix("conn_"))
    assert (made.user_id, made.websocket) == ("ada", socket)
    assert manager.connection_registry[made.connection_id] is made


async def test_disconnecting_takes_out_and_closes() -> None:
    """``disconnect_user`` takes the connection out of everything and closes its socket with code and reason."""
    manager = UnifiedWebSocketManager()
    socket = JsonSocket()
    made = await manager.connect_user("ada", socket)
    assert await manager.disconnect_user("ada", socket, 4000, "too slow")
    assert made.connection_id not in manager.connection_registry
    assert manager.get_user_connections("ada") == set()
    assert socket.closed == [(4000, "too slow")]


async def test_disconnecting_nobody_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A socket that the user does not have, or another user has, is not disconnected; the log says so."""
    manager = UnifiedWebSocketManager()
    socket = JsonSocket()
    await manager.connect_user("ada", socket)
    assert not await manager.disconnect_user("bob", socket)
    assert not await manager.disconnect_user("ada", JsonSocket())
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert manager.get_stats()["connections_by_user"] == {"ada": 1}
    assert socket.closed == []
    with pytest.raises(InvalidArgument, match="code"):
        await manager.disconnect_user("ada", socket, 401)


async def test_a_connection_is_found_by_its_very_socket() -> None:
    """Finding goes by the socket itself, within one user; another's socket is not found."""
    manager = UnifiedWebSocketManager()
    socket = JsonSocket()
    made = await manager.connect_user("ada", socket)
    assert await manager.find_connection("ada", socket) is made
    assert manager.get_connection_id_by_websocket(socket) == made.connection_id
    assert await manager.find_connection("bob", socket) is None
    assert await manager.find_connection("ada", JsonSocket()) is None
    assert manager.get_connection_id_by_websocket(JsonSocket()) is None
    assert manager.get_connection_id_by_websocket(None) is None
    other = made.websocket = JsonSocket()
    assert await manager.find_connection("ada", other) is made
    assert manager.get_connection_id_by_websocket(other) == made.connection_id
    assert manager.get_connection_id_by_websocket(socket) is None


async def test_messages_of_clients_are_noted() -> None:
    """``handle_message`` is true for a connection of the user, and notes that it is alive; else it is false."""
    moment = 1000.0
    manager = UnifiedWebSocketManager(clock=lambda: moment)
    socket = JsonSocket()
    made = await manager.connect_user("ada", socket)
    moment = 2000.0
    assert await manager.handle_message("ada", socket, {"type": "ping"})
    assert made.last_activity is not None
    assert made.last_activity.timestamp() == 2000.0
    assert manager.get_stats()["messages_received"] == 1
    assert not await manager.handle_message("bob", socket, {"type": "ping"})
    assert not await manager.handle_message("ada", JsonSocket(), {"type": "ping"})
    assert manager.get_stats()["messages_received"] == 1
    with pytest.raises(InvalidArgument, match="message"):
        await manager.handle_message("ada", socket, "text")


async def test_waiting_for_a_connection(autojump_clock: trio.testing.MockClock) -> None:
    """Who waits for a user's connection goes on when it comes, and after the time when it does not."""
    manager = UnifiedWebSocketManager()

    async def come() -> None:
        await trio.sleep(2)
        await manager.connect_user("ada", JsonSocket())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        began = trio.current_time()
        assert await manager.wait_for_connection("ada", 5)
        assert trio.current_time() - began == pytest.approx(2)
    assert not await manager.wait_for_connection("bob", 5)
    assert trio.current_time() - began == pytest.approx(7)
    assert await manager.wait_for_connection("ada", 0)
    with pytest.raises(InvalidArgument, match="timeout"):
        await manager.wait_for_connection("ada", -1)


# Numbers.


async def test_statistics() -> None:
    """Connections, users and connections by user are counted, and are zero again after the last has gone."""
    manager = UnifiedWebSocketManager()
    for number, user in enumerate(("ada", "ada", "müller-λ")):
        await manager.add_connection(connection(number, user))
    stats = manager.get_stats()
    assert (stats["total_connections"], stats["unique_users"]) == (3, 2)
    assert stats["connections_by_user"] == {"ada": 2, "müller-λ": 1}
    for number in range(3):
        await manager.remove_connection(f"c{number}")
    stats = manager.get_stats()
    assert (stats["total_connections"], stats["unique_users"], stats["connections_by_user"]) == (0, 0, {})


async def test_ten_thousand_connections() -> None:
    """With ten thousand connections the numbers are right, each is found, and all can go."""
    manager = UnifiedWebSocketManager()
    for number in range(10_000):
        await manager.add_connection(connection(number, f"user{number % 1000}"))
    stats = manager.get_stats()
    assert (stats["total_connections"], stats["unique_users"]) == (10_000, 1000)
    assert set(stats["connections_by_user"].values()) == {10}
    found = manager.get_connection("c9999")
    assert found is not None
    assert manager.get_connection_id_by_websocket(found.websocket) == "c9999"
    for number in range(10_000):
        await manager.remove_connection(f"c{number}")
    assert manager.get_stats()["connections_by_user"] == {}


async def test_health_of_a_users_connections() -> None:
    """The health of a user's connections says which can be sent on; one without a socket counts, but is not active."""
    manager = UnifiedWebSocketManager()
    await manager.add_connection(connection(1, metadata={"browser": "x"}))
    await manager.add_connection(connection(2, websocket=None))
    health = manager.get_connection_health("ada")
    assert health["user_id"] == "ada"
    assert (health["total_connections"], health["active_connections"]) == (2, 1)
    assert health["has_active_connections"]
    first, second = health["connections"]
    assert (first["connection_id"], first["active"], first["metadata"]) == ("c1", True, {"browser": "x"})
    assert not second["active"]
    assert manager.get_stats()["total_connections"] == 2
    empty = manager.get_connection_health("bob")
    assert (empty["connections"], empty["has_active_connections"]) == ([], False)


# Many at once.


async def test_changes_at_the_same_time() -> None:
    """Ten connections are added while five of them go: five stay."""
    manager = UnifiedWebSocketManager()
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(manager.add_connection, connection(number, f"user{number % 3}"))
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(manager.remove_connection, f"c{number}")
    assert set(manager.connection_registry) == {f"c{number}" for number in range(5, 10)}


async def test_coming_while_messages_go_out() -> None:
    """Connections come while messages are sent to their user: all are there, and get what is sent from then on."""
    manager = UnifiedWebSocketManager()
    sockets = [JsonSocket(takes_s=0.001) for _ in range(5)]
    await manager.connect_user("ada", sockets[0])

    async def send() -> None:
        for _ in range(20):
            assert await manager.send_to_user("ada", {"type": "m"})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        for socket in sockets[1:]:
            await trio.sleep(0.001)
            await manager.connect_user("ada", socket)
    assert len(manager.get_user_connections("ada")) == 5
    assert await manager.send_to_user("ada", {"type": "last"})
    assert [socket.types[-1] for socket in sockets] == ["last"] * 5


async def test_everything_at_once() -> None:
    """Fifty come, twenty-five messages go out and thirteen leave at the same time, without an error or a leftover."""
    manager = UnifiedWebSocketManager(MANY)
    dice = random.Random(5)

    async def later(call: Any, *args: Any) -> None:
        await trio.sleep(dice.random() / 100)
        await call(*args)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(later, manager.add_connection, connection(number))
        for _ in range(25):
            nursery.start_soon(later, manager.send_to_user, "ada", {"type": "m"})
    async with trio.open_nursery() as nursery:
        for number in range(13):
            nursery.start_soon(later, manager.remove_connection, f"c{number}")
            nursery.start_soon(later, manager.remove_connection, f"c{number}")
    assert manager.get_stats()["connections_by_user"] == {"ada": 37}


# Ending.


async def test_nothing_holds_a_manager_that_nobody_has() -> None:
    """A manager and its connections that nobody has any more are gone, without a word to anybody."""
    manager = UnifiedWebSocketManager()
    made = await manager.connect_user("ada", JsonSocket())
    weak = [weakref.ref(manager), weakref.ref(made), weakref.ref(made.websocket)]
    del manager, made
    gc.collect()
    assert [ref() for ref in weak] == [None, None, None]


async def test_a_closed_manager_does_nothing() -> None:
    """After the end every call raises, and nothing is left of what was in it."""
    manager = UnifiedWebSocketManager()
    socket = JsonSocket()
    made = await manager.connect_user("ada", socket)
    async with manager:
        pass
    assert not made.is_active
    for call in (
        manager.send_to_user("ada", {"type": "a"}),
        manager.connect_user("ada", socket),
        manager.broadcast({"type": "a"}),
        manager.connect_to_job(socket, "j"),
        manager.start_monitored_background_task("a", trio.sleep_forever),
    ):
        with pytest.raises(ManagerClosed):
            await call
    for function in (manager.get_stats, manager.get_error_statistics, manager.get_health_status):
        with pytest.raises(ManagerClosed):
            function()
    with pytest.raises(ManagerClosed):
        async with manager:
            pass
    manager.close()
    assert socket.got == []


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    """What the program's own block raises comes out of it itself, not in a group."""
    manager = UnifiedWebSocketManager()
    with pytest.raises(KeyError):
        async with manager:
            raise KeyError("x")
    assert manager.closed


async def test_shutdown_closes_the_sockets(autojump_clock: trio.testing.MockClock) -> None:
    """Shutting down closes every socket with 1001 at the same time; one that does not end is not waited for long."""

    class Endless(JsonSocket):
        async def close(self, code: int, reason: str) -> None:
            await trio.sleep_forever()

    manager = UnifiedWebSocketManager()
    socket = JsonSocket()
    for one in (socket, Endless(), Endless()):
        await manager.connect_user("ada", one)
    began = trio.current_time()
    await manager.shutdown()
    assert [code for code, _ in socket.closed] == [1001]
    assert trio.current_time() - began <= 1.0
    assert manager.closed


async def test_a_real_socket_is_closed_with_its_code() -> None:
    """A socket of trio-websocket is closed with the code and the reason that were given."""
    manager = UnifiedWebSocketManager()
    async with real_pair() as (near, far):
        await manager.connect_user("ada", near)
        assert await manager.disconnect_user("ada", near, 4009, "too many")
        with pytest.raises(Exception, match="4009"):
            await far.get_message()
