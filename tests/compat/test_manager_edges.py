"""The edges of the older manager: odd sockets, bounds that are no bounds, and what does not open."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio

from netra_ws.compat.connection import WebSocketConnection
from netra_ws.compat.context import UserExecutionContext
from netra_ws.compat.manager import UnifiedWebSocketManager
from netra_ws.compat.policy import ManagerPolicy
from netra_ws.errors import ContextIsolationError, InvalidArgument, StoreError
from netra_ws.testing import open_test_server

from .sockets import JsonSocket


class Plain:
    """A socket whose functions are no coroutines."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.ended = 0

    def send_json(self, message: dict[str, Any]) -> None:
        self.got.append(message)

    def close(self) -> None:
        self.ended += 1


async def test_plain_functions_will_do() -> None:
    """A socket whose functions do not wait, and whose ``close`` takes no code, is sent to and closed."""
    manager = UnifiedWebSocketManager()
    socket = Plain()
    await manager.connect_user("ada", socket)
    assert await manager.send_to_user("ada", {"type": "m"})
    assert await manager.disconnect_user("ada", socket)
    assert (socket.got, socket.ended) == ([{"type": "m"}], 1)


async def test_a_socket_that_cannot_be_closed_is_out_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """A socket without ``close``, or whose ``close`` raises, is disconnected; the log has the error."""

    class Stubborn(JsonSocket):
        async def close(self, code: int, reason: str) -> None:
            raise OSError("no")

    class Endless:
        def send_json(self, message: dict[str, Any]) -> None: ...

    manager = UnifiedWebSocketManager()
    for socket in (Stubborn(), Endless()):
        await manager.connect_user("ada", socket)
        with caplog.at_level(logging.INFO):
            assert await manager.disconnect_user("ada", socket)
    assert "OSError" in caplog.text
    assert manager.get_connection_count() == 0


async def test_reasons_are_texts() -> None:
    """A reason that is no text is refused by name, and nobody is disconnected."""
    manager = UnifiedWebSocketManager()
    socket = JsonSocket()
    await manager.connect_user("ada", socket)
    with pytest.raises(InvalidArgument, match="reason"):
        await manager.disconnect_user("ada", socket, 1000, None)  # type: ignore[arg-type]
    assert not await manager.disconnect_user("ada", None)
    assert manager.is_connection_active("ada")


async def test_a_connection_brings_its_thread() -> None:
    """A connection that comes with a thread is in it, and its user owns it."""
    manager = UnifiedWebSocketManager()
    socket = JsonSocket()
    await manager.connect_user("ada", socket, thread_id="t1")
    assert await manager.send_to_thread("t1", {"type": "m"})
    assert socket.types == ["m"]
    with pytest.raises(ContextIsolationError):
        await manager.add_connection(WebSocketConnection("c2", "eve", JsonSocket(), thread_id="t1"))


async def test_owners_of_threads_are_bounded() -> None:
    """Owners of so many threads are remembered; the one that was used least recently is forgotten."""
    manager = UnifiedWebSocketManager(ManagerPolicy(max_threads=2))
    for number in range(3):
        made = await manager.connect_user("ada", JsonSocket(), thread_id=f"t{number}")
        await manager.remove_connection(made.connection_id)
    assert not await manager.send_to_thread("t0", {"type": "m"})
    assert manager.get_undelivered("ada") == []
    assert not await manager.send_to_thread("t1", {"type": "m"})
    assert len(manager.get_undelivered("ada")) == 1


async def test_what_cannot_be_said_is_said_to_nobody() -> None:
    """What JSON cannot say reaches no member of a job and no single connection."""
    manager = UnifiedWebSocketManager()
    socket = JsonSocket()
    made = await manager.connect_user("ada", socket)
    await manager.connect_to_job(socket, "a")
    assert await manager.send_to_job("a", {"x": object()}) == 0
    assert not await manager.send_message(made.connection_id, {"x": object()})
    assert socket.got == []


async def test_the_last_message_for_want_of_room() -> None:
    """A message for which there is no room at all is dropped and counted, also when it is the only one."""
    manager = UnifiedWebSocketManager(ManagerPolicy(max_undelivered_bytes=10))
    assert not await manager.send_to_user("ada", {"type": "a message"})
    assert manager.get_undelivered("ada") == []
    assert manager.get_error_statistics()["dropped_messages"] == 1


async def test_what_is_on_its_way_is_not_dropped(autojump_clock: trio.testing.MockClock) -> None:
    """A message that is being sent again is not dropped for want of room, nor is its user's queue."""
    policy = ManagerPolicy(max_undelivered=1, max_undelivered_users=1)
    manager = UnifiedWebSocketManager(policy)
    await manager.send_to_user("ada", {"type": "old"})
    socket = JsonSocket(takes_s=1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.connect_user, "ada", socket)
        await trio.sleep(0.5)
        await manager.send_to_user("bob", {"type": "other"})
        await manager.cleanup_error_data(0)
    assert socket.types == ["old"]
    assert manager.get_error_statistics()["dropped_messages"] == 0


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("max_connections", 0),
        ("max_connections", 1.5),
        ("max_undelivered", True),
        ("send_timeout_s", 0),
        ("send_timeout_s", float("nan")),
        ("close_timeout_s", "1"),
    ],
)
def test_bounds_are_bounds(argument: str, value: Any) -> None:
    """A bound that is none is refused by name."""
    with pytest.raises(InvalidArgument) as caught:
        ManagerPolicy(**{argument: value})
    assert caught.value.argument == argument


async def test_its_text_is_for_a_log() -> None:
    """The text of a manager says whose it is and how many connections it has, and nothing of what they are."""
    manager = UnifiedWebSocketManager(user_context=UserExecutionContext("ada", "t1", "r1"))
    await manager.connect_user("ada", JsonSocket())
    assert repr(manager) == "<UnifiedWebSocketManager of 'ada' 1 connections>"
    manager.close()
    assert repr(manager) == "<UnifiedWebSocketManager of 'ada' 0 connections closed>"


async def test_what_does_not_open_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    """When the user's context cannot be opened, the error comes out, and the manager is closed and not inside."""
    async with open_test_server({}) as server:
        manager = UnifiedWebSocketManager(user_context=UserExecutionContext("ada", "t1", "r1"), server=server.server)
        server.store.fail()
        with pytest.raises(StoreError):
            async with manager:
                pytest.fail("it opened")
        server.store.recover()
        assert manager.closed
        assert not manager.entered


async def test_sockets_of_both_kinds(autojump_clock: trio.testing.MockClock) -> None:
    """Beside real connections a program's own sockets are found, put into threads and disconnected as ever."""
    context = UserExecutionContext("ada", "t1", "r1")
    async with open_test_server({}) as server, server.connect("ada"):
        manager = UnifiedWebSocketManager(user_context=context, server=server.server)
        async with manager:
            socket = JsonSocket()
            made = await manager.connect_user("ada", socket)
            assert manager.get_connection_count() == 2
            assert manager.update_connection_thread(made.connection_id, "t7")
            assert made.thread_id == "t7"
            assert await manager.disconnect_user("ada", socket)
            assert socket.closed == [(1000, "Normal closure")]
            assert manager.get_connection_count() == 1
