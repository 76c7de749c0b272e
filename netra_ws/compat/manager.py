"""The manager of the older system: one object for the connections of a user, or of a program's own users.

There is no instance for everybody. One that is made directly is a world of its own; one that is made by
``create_websocket_manager(user_context)`` serves that user only. Nothing runs in it but what a caller waits for,
and, inside ``async with manager:``, the background tasks that the program starts.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import attrs
import trio

from netra_ws.errors import InvalidArgument, ManagerClosed
from netra_ws.identity import Identity

from .connection import WebSocketConnection
from .native import NativeConnections
from .registry import RegistryCompat
from .sockets import close
from .tasks import Work
from .telling import Telling

#: What is said to sockets when a manager shuts down.
GOING_AWAY = 1001


@runtime_checkable
class WebSocketManagerProtocol(Protocol):
    """What handlers need of a manager, so that a program can bring its own."""

    def get_connection_id_by_websocket(self, websocket: Any) -> str | None:
        """Return the id of the connection that has this socket."""
        ...

    def update_connection_thread(self, connection_id: str, thread_id: str) -> bool:
        """Put a connection into a thread."""
        ...

    def is_connection_active(self, user_id: str) -> bool:
        """Whether a user has a connection."""
        ...

    async def add_connection(self, connection: WebSocketConnection) -> int:
        """Take a connection in."""
        ...

    async def remove_connection(self, connection_id: str) -> None:
        """Take a connection out."""
        ...

    async def send_to_user(self, user_id: str, message: Any) -> bool:
        """Send to all connections of a user."""
        ...

    async def emit_critical_event(self, user_id: str, event_type: str, data: Any) -> bool:
        """Send an event that must not be lost."""
        ...


@attrs.define(eq=False, repr=False, slots=False)
class UnifiedWebSocketManager(Telling):
    """Connections, messages, jobs and background tasks of one user, or of a program's own users.

    Sockets are anything with ``send_json`` or ``send_message``. On a server (``server=``) it also has its
    user's real connections: what it sends is on their stream, numbered, and whoever is away gets it by resuming.
    And what the user's runs say reaches the sockets, too, live, each event as on the wire and under ``payload``.

    Attributes:
        registry: Connections by the program's own objects.
    """

    registry: RegistryCompat = attrs.field(init=False)
    _life: AbstractAsyncContextManager[None] | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.registry = RegistryCompat(weakref.ref(self))

    def __repr__(self) -> str:
        whose = "" if self.user_context is None else f" of {self.user_context.user_id!r}"
        return f"<UnifiedWebSocketManager{whose} {len(self._lines)} connections{' closed' if self._closed else ''}>"

    # Life.

    @property
    def entered(self) -> bool:
        """Whether it is inside ``async with``."""
        return self._life is not None

    @asynccontextmanager
    async def _living(self) -> AsyncIterator[None]:
        """Hold the user's context where there is a server, and the nursery of the tasks; then it is over."""
        try:
            if self.server is None or self.user_context is None:
                async with self._tasks.open():
                    yield
                return
            async with self.server.context_for(Identity(self.user_context.user_id)) as session:
                self._native = NativeConnections(session)
                self._following.reached = session.position.seq
                follow = partial(self._following.run, lambda: nullcontext(session.events()), self._pass_on)
                async with self._tasks.open(follow):
                    yield
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        if self._closed or self._life is not None:
            raise ManagerClosed("a manager has one life, and this one's has begun or is over")
        self._life = self._living()
        try:
            await self._life.__aenter__()
        except BaseException:
            self._life = None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._life is not None
        try:
            return await self._life.__aexit__(kind, error, trace)
        finally:
            self._life = None

    async def _pass_on(self, event: Mapping[str, Any]) -> None:
        assert self.user_context is not None
        lines = self._lines.of(self.user_context.user_id)
        if lines and (encoded := self._encoded(event, self.user_context.user_id)) is not None:
            self._count(await self._put_all(lines, encoded))

    async def flush_events(self) -> None:
        """Wait until what the user's runs have said up to now has reached the sockets; without a server, no wait.

        At most ``send_timeout_s`` of the policy: what comes later is still sent.
        """
        self._held()
        await trio.lowlevel.checkpoint()
        if self._native is not None:
            with trio.move_on_after(self.policy.send_timeout_s):
                await self._following.wait(self._native.session.position.seq)

    def close(self) -> None:
        """End its life at once: tasks are cancelled, everything is forgotten; sockets stay as they are.

        Every further call raises ``ManagerClosed``. May be called twice.
        """
        if self._closed:
            return
        for line in self._lines:
            self._drop(line)
        self._closed = True
        self._native = None
        self._tasks.cancel()
        self.on_close()

    async def shutdown(self) -> None:
        """Close every socket of the program's own with 1001, at the same time, and end its life.

        Within ``close_timeout_s`` of the policy. Real clients on a server stay connected.
        """
        sockets = [] if self._closed else [line.connection.websocket for line in self._lines]
        self.close()
        async with trio.open_nursery() as nursery:
            for websocket in sockets:
                args = (websocket, GOING_AWAY, "the manager shuts down", self.policy.close_timeout_s)
                nursery.start_soon(close, *args)

    @property
    def core(self) -> UnifiedWebSocketManager:
        """Itself, under the names that older programs go by."""
        return self

    @property
    def connection_manager(self) -> UnifiedWebSocketManager:
        """Itself, as ``core``."""
        return self

    # What comes from a client.

    async def handle_message(self, user_id: str, websocket: Any, message: Any) -> bool:
        """Note that a message came on a socket; return whether the socket is a connection of that user.

        What is to be done about it is the business of ``AgentMessageHandler`` and the program's own.

        Raises:
            InvalidArgument: *message* is no object.
        """
        user = self._user(user_id)
        if not isinstance(message, Mapping):
            raise InvalidArgument("message", f"expected an object, got {type(message).__name__}")
        connection = await self.find_connection(user, websocket)
        if connection is None:
            return False
        connection.touch(self.clock())
        self.messages_received += 1
        return True

    # Background tasks.

    async def start_monitored_background_task(self, task_name: str, func: Work, *args: object) -> str:
        """Start a background task (``MonitoredTasks.start``)."""
        self._held()
        return await self._tasks.start(task_name, func, *args)

    async def stop_background_task(self, task_name: str) -> bool:
        """Stop a background task and wait for its end; return whether it was running."""
        self._held()
        return await self._tasks.stop(task_name)

    def get_background_task_status(self) -> dict[str, Any]:
        """Return how the background tasks do, each by its name."""
        self._held()
        return self._tasks.status()

    async def health_check_background_tasks(self) -> dict[str, Any]:
        """Return the health of the background tasks in numbers; they start themselves again."""
        self._held()
        await trio.lowlevel.checkpoint()
        return self._tasks.health()

    async def shutdown_background_monitoring(self) -> None:
        """Stop all background tasks, and start no more until ``enable_background_monitoring``."""
        self._held()
        await self._tasks.switch_off()

    async def enable_background_monitoring(self, restart_previous: bool = True) -> int:
        """Let background tasks be started again; return how many of those that were stopped were started."""
        self._held()
        return await self._tasks.switch_on(restart_previous=restart_previous)


#: The name that most programs use.
WebSocketManager = UnifiedWebSocketManager
