"""Which connections a manager has: by id, by user, by socket; and who owns which thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import attrs
import trio

from netra_ws.errors import ContextIsolationError, InvalidArgument, LimitReached

from .connection import WebSocketConnection
from .policy import ManagerPolicy


@attrs.define(eq=False)
class Line:
    """A connection in a manager, and the turn of those who write to it.

    Attributes:
        job_id: The job whose member it is; its user is one that nobody else is, then.
        turn: Held while one message is put on the socket, so that messages keep their order and never mix.
        cut: Whether a message was begun and not finished: nothing more may be put behind half of one.
        gone: Whether it was removed; whoever has waited for the turn then sends nothing.
    """

    connection: WebSocketConnection
    job_id: str | None = None
    turn: trio.Lock = attrs.field(factory=trio.Lock)
    cut: bool = False
    gone: bool = False
    _socket: object = None  # keeps its id from being used by another object

    @property
    def live(self) -> bool:
        """Whether there is something to send on."""
        return not self.gone and self.connection.is_active and self.connection.websocket is not None


@attrs.define(eq=False)
class Lines:
    """The connections of one manager."""

    policy: ManagerPolicy
    _by_id: dict[str, Line] = attrs.field(factory=dict)
    _by_user: dict[str, dict[str, Line]] = attrs.field(factory=dict)
    _by_socket: dict[int, list[Line]] = attrs.field(factory=dict)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Line]:
        return iter(list(self._by_id.values()))

    def get(self, connection_id: str) -> Line | None:
        """Return a line by the id of its connection."""
        return self._by_id.get(connection_id)

    def of(self, user_id: str) -> list[Line]:
        """Return the lines of a user, in the order in which they came."""
        return list(self._by_user.get(user_id, {}).values())

    def users(self) -> dict[str, int]:
        """Return how many lines each user has."""
        return {user_id: len(lines) for user_id, lines in self._by_user.items()}

    def with_socket(self, websocket: object) -> list[Line]:
        """Return the lines with this very socket."""
        found = [line for line in self._by_socket.get(id(websocket), ()) if line.connection.websocket is websocket]
        # Programs may put another socket into a connection by hand.
        return found or [line for line in self._by_id.values() if line.connection.websocket is websocket]

    def add(self, connection: WebSocketConnection, job_id: str | None = None) -> Line:
        """Take a connection in.

        Raises:
            InvalidArgument: Its id is taken.
            ContextIsolationError: Its socket is another user's.
            LimitReached: There are too many.
        """
        if connection.connection_id in self._by_id:
            raise InvalidArgument("connection_id", "there is a connection with this id")
        websocket = connection.websocket
        if job_id is None and websocket is not None:
            sharing = self._by_socket.get(id(websocket), ())
            if any(line.job_id is None and line.connection.user_id != connection.user_id for line in sharing):
                raise ContextIsolationError("websocket", "this socket is a connection of another user")
        if len(self._by_id) >= self.policy.max_connections:
            raise LimitReached("connections", self.policy.max_connections)
        mine = self._by_user.get(connection.user_id, {})
        if len(mine) >= self.policy.max_connections_per_user:
            raise LimitReached("connections of this user", self.policy.max_connections_per_user)
        line = Line(connection, job_id, socket=websocket)
        self._by_id[connection.connection_id] = line
        self._by_user.setdefault(connection.user_id, {})[connection.connection_id] = line
        if websocket is not None:
            self._by_socket.setdefault(id(websocket), []).append(line)
        connection.is_active = True
        return line

    def remove(self, line: Line) -> None:
        """Take a line out of everything; may be called twice."""
        if line.gone:
            return
        line.gone = True
        connection = line.connection
        connection.is_active = False
        del self._by_id[connection.connection_id]
        mine = self._by_user[connection.user_id]
        del mine[connection.connection_id]
        if not mine:
            del self._by_user[connection.user_id]
        sharing = self._by_socket.get(id(line._socket))
        if sharing is not None:
            sharing.remove(line)
            if not sharing:
                del self._by_socket[id(line._socket)]


@attrs.define
class ThreadOwners:
    """Thread → whose it is: who was in it first. Beyond *most* what was used least recently is forgotten."""

    most: int
    _owners: OrderedDict[str, str] = attrs.field(factory=OrderedDict)

    def claim(self, thread_id: str, user_id: str) -> bool:
        """Note that a user is in a thread; return whether it is theirs."""
        owner = self._owners.setdefault(thread_id, user_id)
        self._owners.move_to_end(thread_id)
        if len(self._owners) > self.most:
            self._owners.popitem(last=False)
        return owner == user_id

    def owner(self, thread_id: str) -> str | None:
        """Return whose a thread is, None when nobody here was in it."""
        found = self._owners.get(thread_id)
        if found is not None:
            self._owners.move_to_end(thread_id)
        return found
