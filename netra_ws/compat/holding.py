"""The connections of a manager: who comes, who goes, who is found, and whose a thread is."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs
import trio

from netra_ws.errors import ContextIsolationError, InvalidArgument, ManagerClosed

from .arguments import checked_seconds, checked_socket, checked_text, checked_user
from .connection import WebSocketConnection
from .context import UserExecutionContext, checked_context
from .failures import Failures
from .lines import Line, Lines, ThreadOwners
from .native import Contexts, NativeConnections
from .policy import ManagerPolicy
from .recovery import Undelivered
from .sockets import close

logger = logging.getLogger(__name__)

#: Seconds between two looks for a connection that comes by the server's own door.
LOOK_EVERY_S = 0.1


@attrs.define(eq=False, repr=False, slots=False)
class Holding:
    """The connections of one manager, and those of its user on the server where it stands on one.

    Attributes:
        policy: How much it holds and how long it waits.
        user_context: The one user that it serves; None for whoever is added.
        server: Where that user's real connections are; None for sockets of the program's own alone.
        clock: Unix seconds.
        on_use, on_close: Told of each call and of the end, for whoever keeps the manager.
        isolation_violations: How often something of another user was refused.
    """

    policy: ManagerPolicy = attrs.field(factory=ManagerPolicy)
    user_context: UserExecutionContext | None = None
    server: Contexts | None = None
    clock: Callable[[], float] = time.time
    on_use: Callable[[], None] = lambda: None
    on_close: Callable[[], None] = lambda: None
    isolation_violations: int = attrs.field(default=0, init=False)
    _lines: Lines = attrs.field(init=False)
    _owners: ThreadOwners = attrs.field(init=False)
    _failures: Failures = attrs.field(init=False)
    _undelivered: Undelivered = attrs.field(init=False)
    _native: NativeConnections | None = attrs.field(init=False, default=None)
    _changed: trio.Event = attrs.field(init=False, factory=trio.Event)
    _closed: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        if self.user_context is not None:
            checked_context(self.user_context)
        elif self.server is not None:
            raise InvalidArgument("user_context", "a manager on a server serves one user: give their context")
        self._lines = Lines(self.policy)
        self._owners = ThreadOwners(self.policy.max_threads)
        self._failures = Failures(self.policy.max_users_with_errors)
        self._undelivered = Undelivered(self.policy)

    # Who may ask for what.

    @property
    def closed(self) -> bool:
        """Whether its life is over."""
        return self._closed

    @property
    def size(self) -> int:
        """How many connections of the program's own it has; may be asked at any time."""
        return len(self._lines)

    def _held(self) -> Lines:
        """Return the connections; every public method comes by here.

        Raises:
            ManagerClosed: It is closed, or stands on a server and is not inside ``async with``.
        """
        if self._closed:
            raise ManagerClosed("this manager is closed; make a new one")
        if self.server is not None and self._native is None:
            raise ManagerClosed("this manager holds its user's context only inside `async with manager:`")
        self.on_use()
        return self._lines

    def _user(self, user_id: object) -> str:
        """Check a user's id, and that it is the manager's own where it serves one.

        Raises:
            InvalidArgument: It names no user.
            ContextIsolationError: It is another one.
        """
        user = checked_user(user_id)
        if self.user_context is not None and user != self.user_context.user_id:
            self.isolation_violations += 1
            raise ContextIsolationError("user_id", "this manager serves another user only")
        return user

    # Coming and going.

    def _seat(self, connection: WebSocketConnection, job_id: str | None = None) -> Line:
        held = self._held()
        try:
            line = held.add(connection, job_id)
        except ContextIsolationError:
            self.isolation_violations += 1
            raise
        connection.touch(self.clock())
        if job_id is None and connection.thread_id is not None:
            self._owners.claim(connection.thread_id, connection.user_id)
        self._changed.set()
        self._changed = trio.Event()
        return line

    def _admit(self, connection: object) -> Line:
        if not isinstance(connection, WebSocketConnection):
            raise InvalidArgument("connection", f"expected a WebSocketConnection, got {type(connection).__name__}")
        self._held()
        self._user(connection.user_id)
        if connection.websocket is not None:
            checked_socket(connection.websocket)
        thread_id = connection.thread_id
        if thread_id is not None and self._owners.owner(thread_id) not in (None, connection.user_id):
            self.isolation_violations += 1
            raise ContextIsolationError("thread_id", "this thread is another user's")
        return self._seat(connection)

    async def remove_connection(self, connection_id: str) -> None:
        """Take a connection out; its socket stays as it is, an unknown id is none of our business.

        A connection on the server's own socket ends only by ``disconnect_user``, or by itself.

        Raises:
            InvalidArgument: That is no id.
        """
        checked_text(connection_id, "connection_id")
        await trio.lowlevel.checkpoint()
        line = self._held().get(connection_id)
        if line is not None:
            self._drop(line)

    def _drop(self, line: Line) -> None:
        self._lines.remove(line)

    async def disconnect_user(
        self, user_id: str, websocket: Any, code: int = 1000, reason: str = "Normal closure"
    ) -> bool:
        """Take out the user's connection with this socket, and close the socket with *code* where it can be closed.

        Returns:
            Whether there was one; if not, the log says so.

        Raises:
            InvalidArgument: An argument is not good.
        """
        user = self._user(user_id)
        if type(code) is not int or not 1000 <= code <= 4999:
            raise InvalidArgument("code", "expected a close code, 1000 to 4999")
        if not isinstance(reason, str):
            raise InvalidArgument("reason", f"expected a text, got {type(reason).__name__}")
        await trio.lowlevel.checkpoint()
        self._held()
        if self._native is not None and self._native.shut(websocket, code, reason):
            return True
        line = self._line(user, websocket)
        if line is None:
            logger.warning("no connection of this user has that socket user=%r", user)
            return False
        self._drop(line)
        await close(websocket, code, reason, self.policy.close_timeout_s)
        return True

    # Finding.

    def _line(self, user_id: str, websocket: object) -> Line | None:
        if websocket is None:
            return None
        lines = self._held().with_socket(websocket)
        return next((line for line in lines if line.connection.user_id == user_id), None)

    def get_connection(self, connection_id: str) -> WebSocketConnection | None:
        """Return a connection by its id.

        Raises:
            InvalidArgument: That is no id.
        """
        line = self._held().get(checked_text(connection_id, "connection_id"))
        if line is not None:
            return line.connection
        return None if self._native is None else self._native.get(connection_id)

    def connections_of(self, user_id: str) -> list[WebSocketConnection]:
        """Return the connections of a user, those on the server's own sockets last."""
        user = self._user(user_id)
        native = [] if self._native is None else self._native.all()
        return [line.connection for line in self._held().of(user)] + native

    def get_user_connections(self, user_id: str) -> set[str]:
        """Return the ids of a user's connections: a copy, empty for a user who has none."""
        return {connection.connection_id for connection in self.connections_of(user_id)}

    def get_user_connections_by_thread(self, user_id: str, thread_id: str) -> set[str]:
        """Return the ids of a user's connections that are in a thread."""
        checked_text(thread_id, "thread_id")
        found = self.connections_of(user_id)
        return {connection.connection_id for connection in found if connection.thread_id == thread_id}

    async def find_connection(self, user_id: str, websocket: Any) -> WebSocketConnection | None:
        """Return the user's connection with this very socket, or None."""
        user = self._user(user_id)
        await trio.lowlevel.checkpoint()
        line = self._line(user, websocket)
        if line is not None:
            return line.connection
        return None if self._native is None else self._native.find(websocket)

    def get_connection_id_by_websocket(self, websocket: Any) -> str | None:
        """Return the id of the user's connection that has this very socket, or None; those of jobs do not count."""
        held = self._held()
        lines = [] if websocket is None else held.with_socket(websocket)
        found = next((line.connection for line in lines if line.job_id is None), None)
        if found is None and self._native is not None:
            found = self._native.find(websocket)
        return None if found is None else found.connection_id

    def update_connection_thread(self, connection_id: str, thread_id: str) -> bool:
        """Put a connection into a thread; return whether that was done.

        It is not, without a word to whoever asked, when there is no such connection, or when the thread is
        another user's: what is sent to a thread goes to its owner.
        """
        checked_text(thread_id, "thread_id")
        connection = self.get_connection(connection_id)
        if connection is None:
            return False
        if self._native is not None and self._native.put_into(connection_id, thread_id):
            return True  # on the server a thread's id means something for one user alone
        if not self._owners.claim(thread_id, connection.user_id):
            self.isolation_violations += 1
            logger.warning("a thread of another user was refused connection=%s", connection_id)
            return False
        connection.thread_id = thread_id
        return True

    def is_connection_active(self, user_id: str) -> bool:
        """Whether the user has a connection that something can be sent on."""
        return any(one.is_active and one.websocket is not None for one in self.connections_of(user_id))

    def is_user_connected(self, user_id: str) -> bool:
        """The same as ``is_connection_active``, under its later name."""
        return self.is_connection_active(user_id)

    async def wait_for_connection(
        self, user_id: str, timeout: float = 5.0, check_interval: float = LOOK_EVERY_S
    ) -> bool:
        """Wait until the user has a connection, at most *timeout* seconds; return whether there is one.

        Args:
            check_interval: Seconds between looks at the server's own connections; others are noticed at once.
        """
        within_s = checked_seconds(timeout, "timeout")
        every_s = max(0.001, checked_seconds(check_interval, "check_interval"))
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(within_s):
            while not self.is_connection_active(user_id):
                changed = self._changed
                with trio.move_on_after(every_s if self._native is not None else within_s):
                    await changed.wait()
        return self.is_connection_active(user_id)

    # As older programs look at it.

    @property
    def connection_registry(self) -> Mapping[str, WebSocketConnection]:
        """Id → connection, read only, as it is now."""
        return MappingProxyType({line.connection.connection_id: line.connection for line in self._held()})

    @property
    def active_connections(self) -> Mapping[str, list[WebSocketConnection]]:
        """User → connections, read only, as it is now."""
        held = self._held()
        return MappingProxyType({user: [line.connection for line in held.of(user)] for user in held.users()})

    @staticmethod
    def _new_id(prefix: str = "conn") -> str:
        return f"{prefix}_{uuid.uuid4()}"
