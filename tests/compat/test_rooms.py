"""Jobs of the older manager: who is in them, and that leaving one is leaving it."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from netra_ws.compat.manager import UnifiedWebSocketManager
from netra_ws.compat.policy import ManagerPolicy
from netra_ws.errors import InvalidArgument, LimitReached

from .sockets import JsonSocket, texts


async def test_a_member_is_known_by_its_job() -> None:
    """A member's connection names its job, under a user that is made of the job and is nobody else's."""
    manager = UnifiedWebSocketManager()
    one = await manager.connect_to_job(JsonSocket(), "job123")
    two = await manager.connect_to_job(JsonSocket(), "job123")
    assert one.metadata == {"job_id": "job123", "connection_type": "job"}
    assert one.job_id == "job123"
    assert one.user_id.startswith("job_job123_")
    assert one.user_id != two.user_id
    assert one.connection_id != two.connection_id
    assert manager.get_connection(one.connection_id) is one


async def test_a_number_becomes_its_text() -> None:
    """A whole number as a job's id is taken as its digits, with a warning: all of its members are in one job."""
    manager = UnifiedWebSocketManager()
    with pytest.warns(UserWarning, match="job_id"):
        made = await manager.connect_to_job(JsonSocket(), 7)  # type: ignore[arg-type]
    assert made.job_id == "7"
    await manager.connect_to_job(JsonSocket(), "7")
    assert len(manager.room_manager.get_room_connections("7")) == 2


@pytest.mark.parametrize(
    "job_id", ["", "<WebSocket object at 0x7f>", "a b", "x" * 129, None, True, 1.5, object(), "a\n"]
)
async def test_what_is_no_id_is_refused(job_id: Any) -> None:
    """The text of an object, and whatever else is no id, is refused: a made-up id would be a job of its own."""
    manager = UnifiedWebSocketManager()
    for call in (
        manager.connect_to_job(JsonSocket(), job_id),
        manager.disconnect_from_job(job_id, JsonSocket()),
        manager.send_to_job(job_id, {"type": "m"}),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await call
        assert caught.value.argument == "job_id"
    assert manager.get_connection_count() == 0
    with pytest.raises(InvalidArgument, match="websocket"):
        await manager.connect_to_job(object(), "job")


async def test_rooms_can_be_looked_at() -> None:
    """The rooms of a manager show jobs, connections and members, as a copy; a job that nobody is in has none."""
    manager = UnifiedWebSocketManager()
    rooms = manager.core.room_manager
    one = await manager.connect_to_job(JsonSocket(), "a")
    two = await manager.connect_to_job(JsonSocket(), "b")
    assert rooms.rooms == {"a": {one.connection_id}, "b": {two.connection_id}}
    assert rooms.room_connections == {"a": {one.user_id}, "b": {two.user_id}}
    assert rooms.get_room_connections("a") == [one.user_id]
    assert rooms.get_room_connections("c") == []
    assert rooms.get_stats() == {
        "room_connections": {"a": [one.user_id], "b": [two.user_id]},
        "total_rooms": 2,
        "total_members": 2,
    }
    rooms.rooms["a"].clear()
    rooms.get_room_connections("a").clear()
    assert len(rooms.get_room_connections("a")) == 1


async def test_leaving_a_job_is_leaving_it() -> None:
    """Who leaves a job is in it no more, and its entries go with the last member; the socket stays open."""
    manager = UnifiedWebSocketManager()
    socket, other = JsonSocket(), JsonSocket()
    made = await manager.connect_to_job(socket, "a")
    await manager.connect_to_job(socket, "b")
    await manager.connect_to_job(other, "a")
    assert await manager.disconnect_from_job("a", socket)
    assert not made.is_active
    assert not await manager.disconnect_from_job("a", socket)
    assert await manager.send_to_job("a", {"type": "m"}) == 1
    assert texts([socket, other]) == [[], ["m"]]
    assert await manager.disconnect_from_job("a", other)
    assert list(manager.room_manager.rooms) == ["b"]
    assert socket.closed == []
    assert manager.get_connection_count() == 1


async def test_joining_twice_is_being_in_it_once() -> None:
    """A socket that joins a job again stays the member that it is, and gets each message once."""
    manager = UnifiedWebSocketManager()
    socket = JsonSocket()
    assert await manager.connect_to_job(socket, "a") is await manager.connect_to_job(socket, "a")
    assert await manager.send_to_job("a", {"type": "m"}) == 1
    assert socket.types == ["m"]


async def test_jobs_and_users_are_apart() -> None:
    """Members get what is sent to their job, users what is sent to them; neither gets the other's."""
    manager = UnifiedWebSocketManager()
    socket, member = JsonSocket(), JsonSocket()
    made = await manager.connect_user("ada", socket)
    await manager.connect_to_job(member, "a")
    await manager.connect_to_job(socket, "b")
    assert await manager.send_to_job("a", {"type": "job"}) == 1
    assert await manager.send_to_user("ada", {"type": "user"})
    assert await manager.send_to_job("nobody", {"type": "x"}) == 0
    assert texts([socket, member]) == [["user"], ["job"]]
    assert manager.get_connection_id_by_websocket(socket) == made.connection_id


async def test_members_that_fail_are_out(autojump_clock: trio.testing.MockClock) -> None:
    """A member that fails or stalls is taken out of the job; the others have the message, and nothing is kept."""
    manager = UnifiedWebSocketManager()
    good = JsonSocket()
    for socket in (good, JsonSocket(error=ConnectionResetError()), JsonSocket(stalled=True)):
        await manager.connect_to_job(socket, "a")
    assert await manager.send_to_job("a", {"type": "m"}) == 1
    assert len(manager.room_manager.get_room_connections("a")) == 1
    assert manager.get_error_statistics()["total_queued_messages"] == 0
    assert manager.get_error_statistics()["total_users_with_errors"] == 0


async def test_jobs_and_their_members_are_bounded() -> None:
    """There are so many jobs and members; one more is refused, and nothing of it stays."""
    manager = UnifiedWebSocketManager(ManagerPolicy(max_jobs=1, max_job_members=2))
    for _ in range(2):
        await manager.connect_to_job(JsonSocket(), "a")
    with pytest.raises(LimitReached, match="members of this job"):
        await manager.connect_to_job(JsonSocket(), "a")
    with pytest.raises(LimitReached, match="jobs"):
        await manager.connect_to_job(JsonSocket(), "b")
    assert manager.get_connection_count() == 2
    assert list(manager.room_manager.rooms) == ["a"]


async def test_a_thousand_members() -> None:
    """A thousand members of one job each get a message once, and leave nothing behind."""
    manager = UnifiedWebSocketManager()
    sockets = [JsonSocket() for _ in range(1000)]
    for socket in sockets:
        await manager.connect_to_job(socket, "a")
    assert await manager.send_to_job("a", {"type": "m"}) == 1000
    assert texts(sockets) == [["m"]] * 1000
    for socket in sockets:
        await manager.disconnect_from_job("a", socket)
    assert not manager.room_manager.rooms
    assert manager.get_connection_count() == 0


async def test_ids_are_never_used_again() -> None:
    """Ids come from no address: a socket that takes the place of one that is gone in memory is somebody else."""
    manager = UnifiedWebSocketManager()
    seen = set()
    for _ in range(200):
        socket = JsonSocket()
        made = await manager.connect_to_job(socket, "a")
        seen.add(made.user_id)
        await manager.disconnect_from_job("a", socket)
        del socket, made
    assert len(seen) == 200
