"""What the older manager sends, to whom, and what becomes of sockets that fail."""

from __future__ import annotations

import enum
import json
import logging
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import attrs
import pytest
import trio

from netra_ws.compat.connection import WebSocketConnection
from netra_ws.compat.failures import FailureKind, kind_of
from netra_ws.compat.manager import UnifiedWebSocketManager
from netra_ws.compat.policy import ManagerPolicy
from netra_ws.errors import ContextIsolationError, InvalidArgument

from .sockets import JsonSocket, real_pair, texts


async def with_users(*users: str) -> tuple[UnifiedWebSocketManager, list[JsonSocket]]:
    """Return a manager in which each of *users* has a connection."""
    manager = UnifiedWebSocketManager()
    sockets = [JsonSocket() for _ in users]
    for user, socket in zip(users, sockets, strict=True):
        await manager.connect_user(user, socket)
    return manager, sockets


def failures(manager: UnifiedWebSocketManager) -> dict[str, int]:
    """Return the kinds of failures that happened."""
    return {kind: count for kind, count in manager.get_error_statistics()["failures_by_kind"].items() if count}


async def test_all_connections_of_a_user_get_it() -> None:
    """A message to a user reaches each of their connections as it is, and nobody else's."""
    manager, (one, two, other) = await with_users("ada", "ada", "bob")
    message = {"type": "m", "data": {"text": "für ada", "n": [1, 2.5, None, True]}}
    assert await manager.send_to_user("ada", message)
    assert one.got == two.got == [message]
    assert other.got == []
    assert manager.get_stats()["messages_sent"] == 2


async def test_nobody_can_change_what_others_get() -> None:
    """Each socket gets an object of its own, and the caller keeps theirs."""
    manager, (one, two) = await with_users("ada", "ada")
    message: dict[str, Any] = {"type": "m", "data": {"list": [1]}}
    await manager.send_to_user("ada", message)
    one.got[0]["data"]["list"].append(2)
    assert two.got == [{"type": "m", "data": {"list": [1]}}]
    assert message == {"type": "m", "data": {"list": [1]}}


async def test_real_sockets_get_text() -> None:
    """A socket with ``send_message``, such as one of trio-websocket, gets the message as JSON text."""
    manager = UnifiedWebSocketManager()
    async with real_pair() as (near, far):
        await manager.connect_user("ada", near)
        assert await manager.send_to_user("ada", {"type": "m", "data": "λ"})
        assert json.loads(await far.get_message()) == {"type": "m", "data": "λ"}
        await far.aclose()
        assert not await manager.send_to_user("ada", {"type": "n"})
    assert failures(manager) == {"closed": 1}
    assert not manager.is_connection_active("ada")


@attrs.define
class Named(Exception):
    """An error of some library, by the name of its class."""


WebSocketDisconnect = type("WebSocketDisconnect", (Named,), {})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (trio.ClosedResourceError(), "closed"),
        (WebSocketDisconnect(), "closed"),
        (trio.BrokenResourceError(), "reset"),
        (ConnectionResetError(), "reset"),
        (BrokenPipeError(), "reset"),
        (TimeoutError(), "timeout"),
        (trio.TooSlowError(), "timeout"),
        (ExceptionGroup("", [ExceptionGroup("", [ConnectionResetError()])]), "reset"),
        (RuntimeError("odd"), "other"),
        (ValueError("odd"), "other"),
    ],
)
async def test_a_socket_that_fails_is_out(error: Exception, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a socket raises, its connection is out, counted by kind and logged; the good one has the message."""
    manager, (good,) = await with_users("ada")
    bad = await manager.connect_user("ada", JsonSocket(error=error))
    with caplog.at_level(logging.INFO):
        assert await manager.send_to_user("ada", {"type": "m"})
    assert good.types == ["m"]
    assert manager.get_connection(bad.connection_id) is None
    assert failures(manager) == {kind: 1}
    assert bad.connection_id in caplog.text
    assert manager.get_error_statistics()["total_queued_messages"] == 0
    assert manager.get_error_statistics()["error_details"]["ada"]["last_error"] == kind


async def test_errors_keep_their_kind() -> None:
    """Every error has one kind, also one of a library that is not there."""
    assert kind_of(KeyError()) is FailureKind.OTHER
    assert kind_of(OSError()) is FailureKind.RESET


async def test_what_has_no_socket_is_out() -> None:
    """A connection without a socket, or whose socket can no longer send, gets nothing and is taken out."""
    manager, (good,) = await with_users("ada")
    await manager.add_connection(WebSocketConnection("none", "ada"))
    lost = WebSocketConnection("lost", "ada", JsonSocket())
    await manager.add_connection(lost)
    lost.websocket = object()
    assert await manager.send_to_user("ada", {"type": "m"})
    assert good.types == ["m"]
    assert len(manager.get_user_connections("ada")) == 1
    assert failures(manager) == {"no_connection": 2}


async def test_a_stalled_socket_holds_up_nobody(autojump_clock: trio.testing.MockClock) -> None:
    """A socket that takes nothing costs its own deadline: others have the message at once, and later calls are free."""
    manager, (one, two) = await with_users("ada", "bob")
    stalled = JsonSocket(stalled=True)
    await manager.connect_user("ada", stalled)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.send_to_user, "ada", {"type": "a"})
        nursery.start_soon(manager.send_to_user, "bob", {"type": "b"})
        await trio.sleep(0.1)
        assert texts([one, two]) == [["a"], ["b"]]
    assert trio.current_time() - began == pytest.approx(5.0)
    assert failures(manager) == {"timeout": 1}
    await manager.send_to_user("ada", {"type": "c"})
    assert trio.current_time() - began == pytest.approx(5.0)
    assert one.types == ["a", "c"]


async def test_slow_sockets_are_written_to_at_the_same_time(autojump_clock: trio.testing.MockClock) -> None:
    """Ten sockets that take a second each have a message after one second, not after ten."""
    manager = UnifiedWebSocketManager()
    for _ in range(10):
        await manager.connect_user("ada", JsonSocket(takes_s=1.0))
    began = trio.current_time()
    assert await manager.broadcast({"type": "m"}) == 10
    assert trio.current_time() - began == pytest.approx(1.0)


async def test_a_call_takes_no_longer_than_its_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever waits for their turn on a slow socket has the same deadline, and then it is out."""
    manager = UnifiedWebSocketManager()
    await manager.connect_user("ada", JsonSocket(takes_s=4.0))
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(manager.send_to_user, "ada", {"type": "m"})
    assert trio.current_time() - began == pytest.approx(5.0)
    assert not manager.is_connection_active("ada")
    assert len(manager.get_undelivered("ada")) == 2


async def test_messages_keep_their_order(autojump_clock: trio.testing.MockClock) -> None:
    """Messages of several tasks never mix on one socket, and come in the order in which they were sent."""
    manager = UnifiedWebSocketManager()
    socket = JsonSocket(takes_s=0.1)
    await manager.connect_user("ada", socket)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(manager.send_to_user, "ada", {"type": f"m{number:02}"})
            await trio.sleep(0.01)
    assert socket.types == [f"m{number:02}" for number in range(20)]


async def test_nothing_follows_half_a_message(autojump_clock: trio.testing.MockClock) -> None:
    """A call that is cancelled in the middle of a message takes the connection out: half a frame may be on it."""
    manager = UnifiedWebSocketManager()
    slow, waiting = JsonSocket(takes_s=1.0), JsonSocket()
    await manager.connect_user("ada", slow)
    await manager.connect_user("bob", waiting)
    with trio.move_on_after(0.5):
        await manager.send_to_user("ada", {"type": "cut"})
    assert not manager.is_connection_active("ada")
    assert not await manager.send_to_user("ada", {"type": "next"})
    assert slow.got == []
    assert manager.is_connection_active("bob")


async def test_who_only_waits_hurts_nobody(autojump_clock: trio.testing.MockClock) -> None:
    """A call that is cancelled while it waits for its turn leaves the connection, and the message before it, alone."""
    manager = UnifiedWebSocketManager()
    socket = JsonSocket(takes_s=1.0)
    await manager.connect_user("ada", socket)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.send_to_user, "ada", {"type": "first"})
        await trio.sleep(0.1)
        with trio.move_on_after(0.5):
            await manager.send_to_user("ada", {"type": "second"})
    assert socket.types == ["first"]
    assert manager.is_connection_active("ada")


async def test_an_unknown_user_is_no_error() -> None:
    """A message for somebody who is not there is not sent, says so, and waits."""
    manager, (socket,) = await with_users("ada")
    assert not await manager.send_to_user("bob", {"type": "m"})
    assert socket.got == []
    assert failures(manager) == {"no_connection": 1}
    assert manager.get_error_statistics()["error_details"]["bob"]["queued_messages"] == 1


class Colour(enum.Enum):
    RED = "red"


async def test_complex_data_arrives_whole() -> None:
    """Times, enums, ids and nested structures arrive as JSON with nothing lost."""
    manager, (socket,) = await with_users("ada")
    data = {
        "at": datetime(2030, 1, 1, tzinfo=UTC),
        "colour": Colour.RED,
        "id": UUID(int=5),
        "deep": [{"a": {"b": [1, {"c": "λ🙂"}]}}],
        3: ("x", None),
    }
    assert await manager.send_to_user("ada", {"type": "m", "data": data})
    assert socket.got[0]["data"] == {
        "at": "2030-01-01T00:00:00+00:00",
        "colour": "red",
        "id": "00000000-0000-0000-0000-000000000005",
        "deep": [{"a": {"b": [1, {"c": "λ🙂"}]}}],
        "3": ["x", None],
    }


CIRCLE: dict[str, Any] = {"type": "m"}
CIRCLE["self"] = CIRCLE


@pytest.mark.parametrize("message", [CIRCLE, {"x": float("nan")}, {"x": object()}, {"x": "\ud800"}, {"x": 2**80}])
async def test_what_json_cannot_say_is_not_sent(message: dict[str, Any]) -> None:
    """What JSON has no word for reaches no socket, is counted and not kept; the connection stays."""
    manager, (socket,) = await with_users("ada")
    assert not await manager.send_to_user("ada", message)
    assert await manager.broadcast(message) == 0
    assert socket.got == []
    assert failures(manager) == {"not_serialisable": 2}
    assert manager.get_error_statistics()["total_queued_messages"] == 0
    assert manager.is_connection_active("ada")


async def test_a_mebibyte_is_sent_whole() -> None:
    """A message of exactly the bound arrives whole; a byte more is too large, reaches nobody and is not kept."""
    manager, (socket,) = await with_users("ada")
    frame = len(json.dumps({"type": "m", "data": ""}, separators=(",", ":")))
    text = "x" * (2**20 - frame)
    assert await manager.send_to_user("ada", {"type": "m", "data": text})
    assert socket.got[0]["data"] == text
    assert not await manager.send_to_user("ada", {"type": "m", "data": text + "x"})
    assert not await manager.send_to_user("bob", {"type": "m", "data": text + "x"})
    assert len(socket.got) == 1
    assert failures(manager) == {"too_large": 2}
    assert manager.get_error_statistics()["total_queued_messages"] == 0


@pytest.mark.parametrize("message", [None, "text", 5, ["a"], {"type": ""}, {"type": 5}])
async def test_what_is_no_message_is_refused(message: Any) -> None:
    """What is no object, or has a type that is no text, is an error of the program and named as that."""
    manager, (socket,) = await with_users("ada")
    for call in (
        manager.send_to_user("ada", message),
        manager.broadcast(message),
        manager.send_to_thread("t", message),
        manager.send_message("c", message),
        manager.send_to_job("j", message),
    ):
        with pytest.raises(InvalidArgument, match=r"^message"):
            await call
    assert socket.got == []
    assert manager.get_error_statistics()["total_queued_messages"] == 0


# Threads.


async def test_a_thread_is_its_owners() -> None:
    """What is sent to a thread goes to the user who is in it, to nobody else, and says whether it was taken."""
    manager, (socket, other) = await with_users("ada", "bob")
    found = manager.get_connection_id_by_websocket(socket)
    assert found is not None
    assert manager.update_connection_thread(found, "t1")
    assert await manager.send_to_thread("t1", {"type": "m"})
    assert texts([socket, other]) == [["m"], []]
    assert manager.get_user_connections_by_thread("ada", "t1") == {found}
    assert manager.get_user_connections_by_thread("ada", "t2") == set()
    await manager.remove_connection(found)
    assert not await manager.send_to_thread("t1", {"type": "later"})
    again = JsonSocket()
    await manager.connect_user("ada", again)
    assert again.types == ["later"]


async def test_an_unknown_thread_is_nobodys() -> None:
    """What is sent to a thread that nobody was in is not sent, not kept under its name, and false."""
    manager, (socket,) = await with_users("ada")
    assert not await manager.send_to_thread("t1", {"type": "m"})
    assert not await manager.send_to_thread("ada", {"type": "m"})
    assert socket.got == []
    assert manager.get_error_statistics()["total_queued_messages"] == 0
    assert failures(manager) == {"no_connection": 2}


async def test_nobody_takes_anothers_thread() -> None:
    """A connection of another user is not put into a thread that has an owner, however it tries."""
    manager, (socket, other) = await with_users("ada", "eve")
    ids = [manager.get_connection_id_by_websocket(one) or "" for one in (socket, other)]
    assert manager.update_connection_thread(ids[0], "t1")
    assert not manager.update_connection_thread(ids[1], "t1")
    with pytest.raises(ContextIsolationError):
        await manager.connect_user("eve", JsonSocket(), thread_id="t1")
    assert await manager.send_to_thread("t1", {"type": "secret"})
    assert texts([socket, other]) == [["secret"], []]
    assert manager.get_error_statistics()["isolation_violations"] == 2
    assert not manager.update_connection_thread("unknown", "t2")


async def test_a_thread_set_by_hand_counts() -> None:
    """A connection whose ``thread_id`` a program has set itself is in that thread."""
    manager = UnifiedWebSocketManager()
    socket = JsonSocket()
    made = await manager.connect_user("ada", socket)
    made.thread_id = "t9"
    assert await manager.send_to_thread("t9", {"type": "m"})
    assert socket.types == ["m"]


# Events, errors, single connections.


async def test_a_critical_event() -> None:
    """A critical event has type, data, time and its mark, and nothing else."""
    manager = UnifiedWebSocketManager(clock=lambda: 1234.5)
    socket = JsonSocket()
    await manager.connect_user("ada", socket)
    assert await manager.emit_critical_event("ada", "agent_started", {"run_id": "r1"})
    assert socket.got == [{"type": "agent_started", "data": {"run_id": "r1"}, "timestamp": 1234.5, "critical": True}]
    for bad in ("", " ", None, 5):
        with pytest.raises(InvalidArgument, match="event_type"):
            await manager.emit_critical_event("ada", bad, {})  # type: ignore[arg-type]


async def test_a_critical_event_that_cannot_be_said_is_noticed() -> None:
    """A user who is there is told by a ``system_error`` that an event is missing; nobody who is away is."""
    manager, (socket,) = await with_users("ada")
    assert not await manager.emit_critical_event("ada", "agent_thinking", {"x": object()})
    (notice,) = socket.got
    assert (notice["type"], notice["critical"]) == ("system_error", True)
    assert notice["data"]["event_type"] == "agent_thinking"
    assert notice["data"]["support_code"] == "SYS_ERR_ada_agent_thinking"
    assert not await manager.emit_critical_event("bob", "agent_thinking", {"x": object()})
    assert manager.get_error_statistics()["total_queued_messages"] == 0


async def test_an_error_is_one_frame_of_the_protocol() -> None:
    """``send_error`` tells type, code and text in the names that all clients look at."""
    manager, (socket,) = await with_users("ada")
    assert await manager.send_error("ada", "Please try again.", "AGENT_ERROR")
    (told,) = socket.got
    assert (told["type"], told["code"], told["error"], told["message"]) == (
        "error",
        "AGENT_ERROR",
        "Please try again.",
        "Please try again.",
    )
    with pytest.raises(InvalidArgument, match="error_message"):
        await manager.send_error("ada", " ")


async def test_one_connection_alone() -> None:
    """A message or event for one connection goes to it and not to its siblings; an unknown id takes nothing."""
    manager, (socket, sibling) = await with_users("ada", "ada")
    found = manager.get_connection_id_by_websocket(socket) or ""
    assert await manager.send_message(found, {"type": "m"})
    assert await manager.send_event(found, "e", {"a": 1})
    assert socket.types == ["m", "e"]
    assert socket.got[1]["connection_id"] == found
    assert sibling.got == []
    assert not await manager.send_message("unknown", {"type": "m"})
    socket.error = ConnectionResetError()
    assert not await manager.send_message(found, {"type": "m"})
    assert manager.get_connection(found) is None
    assert manager.get_error_statistics()["total_queued_messages"] == 0


# Broadcast.


async def test_a_broadcast_reaches_all_users_of_this_manager() -> None:
    """A broadcast reaches every connection of this manager, none of another manager, and no member of a job."""
    manager, sockets = await with_users("ada", "ada", "bob")
    elsewhere, (other,) = await with_users("ada")
    member = JsonSocket()
    await manager.connect_to_job(member, "j")
    assert await manager.broadcast({"type": "m"}) == 3
    assert texts(sockets) == [["m"]] * 3
    assert (other.got, member.got) == ([], [])
    assert await manager.broadcast_to_all({"type": "n"}, exclude_users=["ada"]) == 1
    assert texts(sockets) == [["m"], ["m"], ["m", "n"]]
    assert elsewhere.get_stats()["messages_sent"] == 0
    with pytest.raises(InvalidArgument, match="exclude_users"):
        await manager.broadcast({"type": "m"}, exclude_users="ada")


async def test_a_broadcast_to_nobody() -> None:
    """A broadcast of an empty manager reaches nobody and keeps nothing."""
    manager = UnifiedWebSocketManager()
    assert await manager.broadcast({"type": "m"}) == 0
    assert manager.get_error_statistics()["total_queued_messages"] == 0


async def test_a_broadcast_keeps_only_those_that_took_it(autojump_clock: trio.testing.MockClock) -> None:
    """Of a good, a failing and a stalled connection only the good one is there after a broadcast."""
    manager, (good,) = await with_users("ada")
    await manager.connect_user("bob", JsonSocket(error=RuntimeError("odd")))
    await manager.connect_user("eve", JsonSocket(stalled=True))
    assert await manager.broadcast({"type": "m"}) == 1
    assert good.types == ["m"]
    assert manager.get_stats()["connections_by_user"] == {"ada": 1}
    assert failures(manager) == {"other": 1, "timeout": 1}


async def test_who_leaves_during_a_broadcast(autojump_clock: trio.testing.MockClock) -> None:
    """Connections that come or go while a broadcast is under way disturb nobody: who waits for their turn gets none."""
    manager = UnifiedWebSocketManager()
    sockets = [JsonSocket(takes_s=1.0) for _ in range(3)]
    made = [await manager.connect_user(f"user{n}", socket) for n, socket in enumerate(sockets)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.broadcast, {"type": "a"})
        await trio.sleep(0.1)
        nursery.start_soon(manager.broadcast, {"type": "b"})
        await trio.sleep(0.1)
        await manager.remove_connection(made[0].connection_id)
        await manager.connect_user("late", JsonSocket())
    assert texts(sockets) == [["a"], ["a", "b"], ["a", "b"]]
    assert len(manager.connection_registry) == 3


async def test_sending_in_a_closed_manager_is_over(autojump_clock: trio.testing.MockClock) -> None:
    """A message that is under way when its manager ends is not taken, and kept nowhere."""
    manager = UnifiedWebSocketManager(ManagerPolicy(send_timeout_s=1.0))
    await manager.connect_user("ada", JsonSocket(stalled=True))
    taken: list[bool] = []

    async def send() -> None:
        taken.append(await manager.send_to_user("ada", {"type": "m"}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.sleep(0.1)
        manager.close()
    assert taken == [False]
