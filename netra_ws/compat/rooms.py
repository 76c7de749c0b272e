"""Jobs of a manager: sockets that follow one piece of work, whoever they belong to.

Members of a job are connections of the manager under users that nobody else is, so nothing of a user can reach
them, and nothing of theirs a user. On a server a job is the native one of that id, in the name of the manager's user,
who opens it by the first member: what is sent to it is said on its stream, where real clients read it
(``connect_job``) with numbers, permissions and resume, and what others say there reaches the members.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs
import trio

from netra_ws.errors import InvalidArgument, LimitReached, StoreError
from netra_ws.protocol.values import read_id

from .arguments import checked_socket
from .connection import WebSocketConnection
from .failures import FailureKind
from .following import Following
from .lines import Line
from .native import say
from .speaking import Speaking
from .tasks import MonitoredTasks

if TYPE_CHECKING:
    from netra_ws.contexts.reading import Events

#: Seconds for a native job to be found and opened.
READ_S = 5.0


def checked_job_id(value: object) -> str:
    """Return a job's id: 1 to 128 letters, digits, ``_ . : -``; a whole number becomes its digits, with a warning.

    Raises:
        InvalidArgument: It is anything else, such as the text of an object. An id that is made up in its place
            would be a job that nobody else is in.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        warnings.warn(f"job_id: a text is meant; {value} is taken as {str(value)!r}", UserWarning, stacklevel=3)
        value = str(value)
    try:
        return read_id(value)
    except (TypeError, ValueError) as exc:
        raise InvalidArgument("job_id", str(exc)) from None


@attrs.define(eq=False)
class Rooms:
    """Who is in which job; older programs find it as ``manager.core.room_manager``."""

    _members: dict[str, dict[str, Line]] = attrs.field(factory=dict)

    def __len__(self) -> int:
        return len(self._members)

    def lines(self, job_id: str) -> list[Line]:
        """Return the members of a job, in the order in which they came."""
        return list(self._members.get(job_id, {}).values())

    def enter(self, job_id: str, line: Line) -> None:
        """Note a member."""
        self._members.setdefault(job_id, {})[line.connection.connection_id] = line

    def leave(self, line: Line) -> None:
        """Forget a member, and the job with its last one."""
        members = self._members.get(line.job_id or "")
        if members is not None and members.pop(line.connection.connection_id, None) is not None and not members:
            del self._members[line.job_id or ""]

    @property
    def rooms(self) -> Mapping[str, set[str]]:
        """Job → ids of its connections, as it is now."""
        return MappingProxyType({job_id: set(members) for job_id, members in self._members.items()})

    @property
    def room_connections(self) -> Mapping[str, set[str]]:
        """Job → its members' users, as it is now."""
        return MappingProxyType({job_id: set(self.get_room_connections(job_id)) for job_id in self._members})

    def get_room_connections(self, job_id: str) -> list[str]:
        """Return the users under which the members of a job are known; empty for a job that nobody is in."""
        return [line.connection.user_id for line in self.lines(job_id)]

    def get_stats(self) -> dict[str, Any]:
        """Return who is in which job, and how many."""
        return {
            "room_connections": {job_id: self.get_room_connections(job_id) for job_id in self._members},
            "total_rooms": len(self._members),
            "total_members": sum(map(len, self._members.values())),
        }


@attrs.define(eq=False, repr=False, slots=False)
class Joining(Speaking):
    """A manager's jobs.

    Attributes:
        room_manager: Who is in which job, of this manager's own sockets.
    """

    room_manager: Rooms = attrs.field(init=False, factory=Rooms)
    _followed: dict[str, Following] = attrs.field(init=False, factory=dict)
    _tasks: MonitoredTasks = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._tasks = MonitoredTasks(self.policy)

    def _drop(self, line: Line) -> None:
        super()._drop(line)
        if line.job_id is not None:
            self.room_manager.leave(line)
            following = self._followed.get(line.job_id)
            if following is not None and not self.room_manager.lines(line.job_id):
                del self._followed[line.job_id]
                following.scope.cancel()

    async def connect_to_job(self, websocket: Any, job_id: str) -> WebSocketConnection:
        """Make a socket a member of a job; one that is a member already stays the member that it is.

        Returns:
            Its connection; ``job_id`` says which job it is in.

        Raises:
            InvalidArgument: *job_id* is no id, or nothing can be sent on *websocket*.
            LimitReached: There are too many members, jobs, or connections.
            ClientError: On a server: ``NOT_FOUND``, it is another user's; ``QUOTA_EXCEEDED``.
            StoreError: The server's store does not answer.
        """
        name = checked_job_id(job_id)
        checked_socket(websocket)
        await trio.lowlevel.checkpoint()
        self._held()
        known = self._member(name, websocket)
        if known is not None:
            return known.connection
        members = self.room_manager.lines(name)
        if not members and len(self.room_manager) >= self.policy.max_jobs:
            raise LimitReached("jobs", self.policy.max_jobs)
        if len(members) >= self.policy.max_job_members:
            raise LimitReached("members of this job", self.policy.max_job_members)
        connection = WebSocketConnection(
            self._new_id("job"),
            self._new_id(f"job_{name}"),
            websocket,
            metadata={"job_id": name, "connection_type": "job"},
        )
        line = self._seat(connection, name)
        self.room_manager.enter(name, line)
        if self._native is not None:
            try:
                await self._follow(name)
            except BaseException:
                self._drop(line)
                raise
        return connection

    async def _follow(self, job_id: str) -> None:
        """Let what is said on a native job reach its members from now on, until it is closed.

        Its members stay; who joins after that opens the id anew.
        """
        following = self._followed.get(job_id)
        if following is None:
            assert self._native is not None
            assert self.server is not None
            job = self.server.job(self._native.session.identity, job_id)
            following = self._followed[job_id] = Following()

            @asynccontextmanager
            async def events() -> AsyncIterator[Events]:
                await job.open()
                async with job.events() as heard:
                    yield heard

            async def follow() -> None:
                try:
                    await following.run(events, partial(self._pass_on_in, job_id))
                finally:
                    self._forget_following(job_id, following)

            self._tasks.beside(follow)
        with trio.move_on_after(READ_S):
            await following.ready.wait()
        if not following.ready.is_set() or following.failure is not None:
            following.scope.cancel()
            self._forget_following(job_id, following)
            raise following.failure or StoreError(f"no answer within {READ_S:g} s")

    def _forget_following(self, job_id: str, following: Following) -> None:
        if self._followed.get(job_id) is following:
            del self._followed[job_id]

    async def _pass_on_in(self, job_id: str, event: Mapping[str, Any]) -> None:
        lines = self.room_manager.lines(job_id)
        if lines and (encoded := self._encoded(event, None)) is not None:
            self._count(await self._put_all(lines, encoded))

    async def disconnect_from_job(self, job_id: str, websocket: Any) -> bool:
        """Take a socket out of a job: its connection and its place among the members; the socket stays open.

        Returns:
            Whether it was in it.
        """
        name = checked_job_id(job_id)
        await trio.lowlevel.checkpoint()
        self._held()
        line = self._member(name, websocket)
        if line is None:
            return False
        self._drop(line)
        return True

    def _member(self, job_id: str, websocket: object) -> Line | None:
        lines = self._lines.with_socket(websocket)
        return next((line for line in lines if line.job_id == job_id), None)

    async def send_to_job(self, job_id: str, message: Any) -> int:
        """Send a message to every member of a job; nothing is kept for who is not there.

        Returns:
            How many sockets have taken it; the job's stream on a server counts as one.

        Raises:
            InvalidArgument: *job_id* or *message* is not good.
            ClientError: On a server: ``FORBIDDEN`` when the job is another user's, ``UNAVAILABLE``, and others
                as ``server.job(…).emit`` has them. Nothing was sent.
        """
        name = checked_job_id(job_id)
        self._held()
        encoded = self._encoded(message, None)
        await trio.lowlevel.checkpoint()
        if encoded is None:
            return 0
        said = 0
        if self._native is not None and self.server is not None:
            following = self._followed.get(name) or Following()
            job = self.server.job(self._native.session.identity, name)
            seq = await following.speak(partial(say, job, encoded))
            if isinstance(seq, FailureKind):
                self._failures.note(seq, None, self.clock())
            said = int(not isinstance(seq, FailureKind))
        taken = await self._put_all(self.room_manager.lines(name), encoded)
        self._count(taken)
        return taken + said
