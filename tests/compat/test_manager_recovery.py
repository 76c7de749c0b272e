"""Messages that nobody has taken: kept, bounded, and sent again once and in order."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio

from netra_ws.compat.manager import UnifiedWebSocketManager
from netra_ws.compat.policy import ManagerPolicy
from netra_ws.errors import InvalidArgument

from .sockets import JsonSocket


async def away(manager: UnifiedWebSocketManager, user: str, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        assert not await manager.send_to_user(user, {"type": f"m{number}"})


async def test_what_was_missed_comes_with_the_next_connection() -> None:
    """What a user has missed is sent on their next connection, in order, marked, and once; nobody else gets it."""
    manager = UnifiedWebSocketManager()
    await away(manager, "ada", 3)
    other, socket, again = JsonSocket(), JsonSocket(), JsonSocket()
    await manager.connect_user("bob", other)
    await manager.connect_user("ada", socket)
    assert socket.got == [{"type": f"m{number}", "recovered": True} for number in range(3)]
    await manager.connect_user("ada", again)
    assert (other.got, again.got) == ([], [])
    assert manager.get_error_statistics()["total_queued_messages"] == 0


async def test_the_newest_fifty_are_kept() -> None:
    """Of sixty missed messages the newest fifty are kept, and the rest is counted as dropped."""
    manager = UnifiedWebSocketManager()
    await away(manager, "ada", 60)
    assert manager.get_error_statistics()["dropped_messages"] == 10
    socket = JsonSocket()
    await manager.connect_user("ada", socket)
    assert socket.types == [f"m{number}" for number in range(10, 60)]


async def test_users_that_wait_are_bounded() -> None:
    """Messages wait for so many users and bytes; who was written to least recently loses theirs first."""
    manager = UnifiedWebSocketManager(ManagerPolicy(max_undelivered_users=2))
    for user in ("ada", "bob", "ada", "eve"):
        await away(manager, user, 1)
    statistics = manager.get_error_statistics()
    assert (statistics["users_with_queued_messages"], statistics["dropped_messages"]) == (2, 1)
    assert manager.get_undelivered("bob") == []
    assert len(manager.get_undelivered("ada")) == 2
    small = UnifiedWebSocketManager(ManagerPolicy(max_undelivered_bytes=300))
    for number in range(10):
        await small.send_to_user("ada", {"type": "m", "data": "x" * 80, "n": number})
    assert [kept["n"] for kept in small.get_undelivered("ada")] == [8, 9]
    for _ in range(2):
        await small.send_to_user("bob", {"type": "m", "data": "x" * 80})
    assert small.get_undelivered("ada") == []
    assert len(small.get_undelivered("bob")) == 2


async def test_what_waits_can_be_looked_at() -> None:
    """What waits is told with its reason, its time and its attempts; it is what it was when it was sent."""
    manager = UnifiedWebSocketManager(clock=lambda: 1_893_456_000.0)
    message: dict[str, Any] = {"type": "m", "data": [1]}
    await manager.send_to_user("ada", message)
    message["data"].append(2)
    assert manager.get_undelivered("ada") == [
        {
            "type": "m",
            "data": [1],
            "failure_reason": "no_connections",
            "failed_at": "2030-01-01T00:00:00+00:00",
            "recovery_attempts": 0,
        }
    ]


async def test_a_critical_event_is_kept_once() -> None:
    """A critical event that nobody has taken waits once, not twice."""
    manager = UnifiedWebSocketManager()
    assert not await manager.emit_critical_event("ada", "agent_completed", {"run": 1})
    socket = JsonSocket()
    await manager.connect_user("ada", socket)
    assert socket.types == ["agent_completed"]
    assert socket.got[0]["critical"]
    assert socket.got[0]["recovered"]


async def test_when_all_connections_fail_it_waits() -> None:
    """A message that every connection failed to take waits; one that some took does not."""
    manager = UnifiedWebSocketManager()
    for _ in range(2):
        await manager.connect_user("ada", JsonSocket(error=ConnectionResetError()))
    assert not await manager.send_to_user("ada", {"type": "m"})
    assert manager.get_undelivered("ada")[0]["failure_reason"] == "all_connections_failed"
    socket = JsonSocket()
    await manager.connect_user("ada", socket)
    await manager.connect_user("ada", JsonSocket(error=ConnectionResetError()))
    assert await manager.send_to_user("ada", {"type": "n"})
    assert socket.types == ["m", "n"]
    assert manager.get_undelivered("ada") == []


@attrs.define(eq=False)
class Breaks(JsonSocket):
    """Takes so many messages and then fails."""

    after: int = 2

    async def send_json(self, message: dict[str, Any]) -> None:
        if len(self.got) >= self.after:
            raise ConnectionResetError
        await super().send_json(message)


async def test_a_failing_replay_loses_and_doubles_nothing() -> None:
    """When a socket fails in the middle of what was missed, the next one gets the rest, from the failed one on."""
    manager = UnifiedWebSocketManager()
    await away(manager, "ada", 5)
    first, second = Breaks(), JsonSocket()
    made = await manager.connect_user("ada", first)
    assert not made.is_active
    await manager.connect_user("ada", second)
    assert first.types == ["m0", "m1"]
    assert second.types == ["m2", "m3", "m4"]


async def test_a_failing_replay_goes_on_with_another_connection() -> None:
    """When the newest connection fails, what is left goes to another one that the user has."""
    manager = UnifiedWebSocketManager()
    good = JsonSocket()

    class Late(JsonSocket):
        async def send_json(self, message: dict[str, Any]) -> None:
            await manager.connect_user("ada", good)  # comes while this one fails
            raise ConnectionResetError

    await manager.connect_user("ada", Late())
    await manager.send_to_user("ada", {"type": "m"})
    assert good.types == ["m"]
    assert manager.get_undelivered("ada") == []


async def test_a_cancelled_replay_keeps_what_it_has_not_sent(autojump_clock: trio.testing.MockClock) -> None:
    """Who is cancelled while the missed is sent again leaves what was not sent; its half message is on a dead line."""
    manager = UnifiedWebSocketManager()
    await away(manager, "ada", 5)
    slow, next_one = JsonSocket(takes_s=1.0), JsonSocket()
    with trio.move_on_after(2.5):
        await manager.connect_user("ada", slow)
    assert slow.types == ["m0", "m1"]
    assert not manager.is_connection_active("ada")
    await manager.connect_user("ada", next_one)
    assert next_one.types == ["m2", "m3", "m4"]


async def test_new_messages_stand_behind_the_missed(autojump_clock: trio.testing.MockClock) -> None:
    """A message that is sent while the missed go out comes behind all of them; two connections do not double them."""
    manager = UnifiedWebSocketManager()
    await away(manager, "ada", 3)
    one, two = JsonSocket(takes_s=1.0), JsonSocket(takes_s=1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.connect_user, "ada", one)
        await trio.sleep(0.5)
        nursery.start_soon(manager.send_to_user, "ada", {"type": "new"})
        nursery.start_soon(manager.connect_user, "ada", two)
        nursery.start_soon(manager.attempt_message_recovery, "ada")
    assert one.types == ["m0", "m1", "m2", "new"]
    assert "m0" not in two.types


async def test_a_message_over_which_sockets_fail_is_given_up() -> None:
    """A message over which every socket fails does not keep its user away for ever: it goes after three attempts."""
    manager = UnifiedWebSocketManager()
    await away(manager, "ada", 1)

    class Allergic(JsonSocket):
        async def send_json(self, message: dict[str, Any]) -> None:
            if message["type"] == "m0":
                raise RuntimeError("I cannot take this")
            await super().send_json(message)

    made = [await manager.connect_user("ada", Allergic()) for _ in range(3)]
    assert [one.is_active for one in made] == [False] * 3
    assert manager.get_error_statistics()["given_up_messages"] == 1
    socket = Allergic()
    await manager.connect_user("ada", socket)
    assert await manager.send_to_user("ada", {"type": "m1"})
    assert socket.types == ["m1"]


async def test_recovery_by_hand() -> None:
    """A program may ask for what waits to be sent: it needs a connection, and returns how many were taken."""
    manager = UnifiedWebSocketManager()
    await away(manager, "ada", 2)
    assert await manager.attempt_message_recovery("ada") == 0
    socket = JsonSocket()
    await manager.connect_user("ada", socket)
    assert await manager.attempt_message_recovery("ada") == 0
    assert len(socket.got) == 2


async def test_errors_are_counted_and_forgotten() -> None:
    """Errors are counted in all, of the last five minutes and by user; old ones and their messages can be forgotten."""
    moment = 1000.0
    manager = UnifiedWebSocketManager(ManagerPolicy(max_users_with_errors=2), clock=lambda: moment)
    await away(manager, "ada", 2)
    moment = 2000.0
    await away(manager, "bob", 1)
    statistics = manager.get_error_statistics()
    assert statistics["total_error_count"] == 3
    assert statistics["total_users_with_errors"] == 2
    assert statistics["recent_errors_5min"] == 1
    assert statistics["total_queued_messages"] == 3
    assert statistics["error_details"]["ada"] == {
        "error_count": 2,
        "last_error": "no_connection",
        "queued_messages": 2,
    }
    moment = 1000.0 + 25 * 3600
    gone = await manager.cleanup_error_data(24.9)
    assert gone == {
        "cleaned_error_users": 1,
        "cleaned_queue_users": 1,
        "remaining_error_users": 1,
        "remaining_queue_users": 1,
    }
    await away(manager, "eve", 1)
    await away(manager, "sue", 1)
    assert manager.get_error_statistics()["total_users_with_errors"] == 2
    with pytest.raises(InvalidArgument, match="older_than_hours"):
        await manager.cleanup_error_data(-1)


async def test_health_tells_of_waiting_messages() -> None:
    """A manager is degraded while messages wait, and healthy when they were taken."""
    manager = UnifiedWebSocketManager()
    assert manager.get_health_status()["status"] == "healthy"
    await away(manager, "ada", 1)
    assert manager.get_health_status()["status"] == "degraded"
    await manager.connect_user("ada", JsonSocket())
    assert manager.get_health_status()["status"] == "healthy"


async def test_waiting_before_sending(autojump_clock: trio.testing.MockClock) -> None:
    """``send_to_user_with_wait`` waits for a connection, and sends or keeps what it was given."""
    manager = UnifiedWebSocketManager()
    socket = JsonSocket()

    async def come() -> None:
        await trio.sleep(1)
        await manager.connect_user("ada", socket)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        assert await manager.send_to_user_with_wait("ada", {"type": "m"})
    assert socket.got == [{"type": "m"}]
    assert not await manager.send_to_user_with_wait("bob", {"type": "m"})


async def test_the_newest_is_kept_while_an_older_one_is_on_its_way(autojump_clock: trio.testing.MockClock) -> None:
    """What is being sent again counts no more towards the bound: the new message behind it is not dropped for it."""
    manager = UnifiedWebSocketManager(ManagerPolicy(max_undelivered=1))
    await away(manager, "ada", 1)

    class Fails(JsonSocket):
        async def send_json(self, message: dict[str, Any]) -> None:
            await trio.sleep(1.0)
            raise ConnectionResetError

    good = JsonSocket()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.connect_user, "ada", JsonSocket(takes_s=2.0))
        await trio.sleep(0.5)
        nursery.start_soon(manager.connect_user, "ada", Fails())
        await trio.sleep(0.1)
        for one in manager.connections_of("ada"):
            await manager.remove_connection(one.connection_id)
        await away(manager, "ada", 1, first=1)
    await manager.connect_user("ada", good)
    assert good.types == ["m1"]
    assert manager.get_error_statistics()["dropped_messages"] == 0
