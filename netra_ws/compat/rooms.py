"""Jobs of a manager: sockets that follow one piece of work, whoever they belong to.

Members of a job are connections of the manager under users that nobody else is, so nothing of a user can reach
them, and nothing of theirs a user. On a server what is sent to a job is said on the job's own stream, too, in the
name of the manager's user: real clients read it there (``connect_job``), with numbers, permissions and resume.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs
import trio

from netra_ws.errors import InvalidArgument, LimitReached

from .arguments import checked_socket
from .connection import WebSocketConnection
from .lines import Line
from .native import say
from .speaking import Speaking

_JOB_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def checked_job_id(value: object) -> str:
    """Return a job's id: 1 to 128 letters, digits, ``_ . : -``; a whole number becomes its digits, with a warning.

    Raises:
        InvalidArgument: It is anything else, such as the text of an object. An id that is made up in its place
            would be a job that nobody else is in.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        warnings.warn(f"job_id: a text is meant; {value} is taken as {str(value)!r}", UserWarning, stacklevel=3)
        value = str(value)
    if not isinstance(value, str) or _JOB_ID.fullmatch(value) is None:
        raise InvalidArgument("job_id", "expected 1 to 128 letters, digits, '_', '.', ':' or '-'")
    return value


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

    def _drop(self, line: Line) -> None:
        super()._drop(line)
        if line.job_id is not None:
            self.room_manager.leave(line)

    async def connect_to_job(self, websocket: Any, job_id: str) -> WebSocketConnection:
        """Make a socket a member of a job; one that is a member already stays the member that it is.

        Returns:
            Its connection; ``job_id`` says which job it is in.

        Raises:
            InvalidArgument: *job_id* is no id, or nothing can be sent on *websocket*.
            LimitReached: There are too many members, jobs, or connections.
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
        self.room_manager.enter(name, self._seat(connection, name))
        return connection

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
            kind = await say(self.server.job(self._native.session.identity, name), encoded)
            if kind is not None:
                self._failures.note(kind, None, self.clock())
            said = int(kind is None)
        taken = await self._put_all(self.room_manager.lines(name), encoded)
        self._count(taken)
        return taken + said
