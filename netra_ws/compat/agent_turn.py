"""One message's turn: its user's context, its connection, its session, its run, each inside the one before.

The order is that of the life spans. Whatever fails or is cancelled, the run ends before the session is closed,
and the session is closed before the user's context is let go.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Protocol

import attrs
import trio

from netra_ws.access.limits import RateLimit
from netra_ws.agents.request import new_id
from netra_ws.agents.run import Run
from netra_ws.contexts.context import UserContext
from netra_ws.contexts.starting import Ask, start, wait_for_leaving
from netra_ws.contexts.stopping import proof_of_end
from netra_ws.errors import ClientError, InvalidArgument, RunFailed, StoreError
from netra_ws.identity import Identity
from netra_ws.protocol.commands import Start, StartAgent, UserMessage
from netra_ws.server import Server

from .agent_message import AgentMessage, RequestContext, SaidContext, is_id, read_fields

logger = logging.getLogger(__name__)

#: Seconds for what is read before a run has begun.
READ_S = 5.0
#: Seconds that a manager has for one call.
MANAGER_S = 5.0
#: Seconds that a program's session has to open, and again to close.
SESSION_S = 10.0
#: Seconds beyond its bounds until a run that is being stopped has ended, or is sealed.
STOP_S = 1.0
#: A run that ended for one of these reasons ended as its user wanted.
WISHED = frozenset({"user", "interrupt", "rollback"})

OpenSession = Callable[[], AbstractAsyncContextManager[Any]]


class Manager(Protocol):
    """What the handler needs of a manager of connections; each function may be async, too.

    Where it also has ``get_connection(connection_id)``, a message without a thread goes on in the
    ``thread_id`` of its connection.
    """

    def get_connection_id_by_websocket(self, websocket: Any) -> Any:
        """Return the id of the connection of this socket, or None."""
        ...

    def update_connection_thread(self, connection_id: str, thread_id: str) -> Any:
        """Let the connection belong to a thread."""
        ...

    def send_error(self, user_id: str, text: str) -> Any:
        """Tell a user that something went wrong."""
        ...


async def settle(value: Any) -> Any:
    """Return *value*, or what it is to become; within ``MANAGER_S`` seconds."""
    if not inspect.isawaitable(value):
        return value
    with trio.fail_after(MANAGER_S):
        return await value


@attrs.define(eq=False)
class Sessions:
    """A program's sessions: one for each message, for nobody else, and closed whatever happens."""

    _make: OpenSession | None = None
    _open: dict[int, object] = attrs.field(factory=dict)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        """Open a session of the program's, or None where it has none.

        It is closed with what the block raised, so that it can roll back, also when the block is cancelled.

        Raises:
            InvalidArgument: The program gave a session that another message has.
            StoreError: It took more than ``SESSION_S`` to open or to close.
        """
        if self._make is None:
            yield None
            return
        # Around the program's own block, since that may open nurseries and scopes of its own.
        with trio.CancelScope(deadline=trio.current_time() + SESSION_S) as scope:
            async with self._make() as session:
                scope.deadline = math.inf
                try:
                    self._take(session)
                    try:
                        yield session
                    finally:
                        self._open.pop(id(session), None)
                finally:
                    scope.shield, scope.deadline = True, trio.current_time() + SESSION_S
        if scope.cancelled_caught:
            raise StoreError(f"the session did not open or close within {SESSION_S:g} s")

    def _take(self, session: object) -> None:
        if session is None:
            return
        if id(session) in self._open:
            raise InvalidArgument("sessions", "another message has this session; each needs one of its own")
        self._open[id(session)] = session

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)


@attrs.frozen
class Seat:
    """The connection that a message came from, as far as it is known."""

    connection_id: str | None = None
    thread_id: str | None = None
    _move: Callable[[str], Any] | None = None

    async def move(self, thread_id: str) -> None:
        """Let the connection belong to that thread."""
        if self._move is not None:
            await settle(self._move(thread_id))


async def find_seat(manager: Manager | None, websocket: object, context: UserContext) -> Seat:
    """Return the connection of *websocket*: in *manager*, or, without one, among the user's own."""
    if websocket is None:
        return Seat()
    if manager is None:
        for connection in context.connections.values():
            if connection is websocket:
                return Seat(connection.connection_id, connection.thread_id, partial(setattr, connection, "thread_id"))
        return Seat()
    connection_id = await settle(manager.get_connection_id_by_websocket(websocket))
    if connection_id is None:
        logger.warning("a message's socket is not among the connections user=%r", context.user_id)
        return Seat()
    get = getattr(manager, "get_connection", None)
    thread_id = getattr(await settle(get(connection_id)), "thread_id", None) if callable(get) else None
    thread_id = thread_id if is_id(thread_id) else None
    return Seat(connection_id, thread_id, partial(manager.update_connection_thread, connection_id))


@attrs.define(eq=False, repr=False)
class Turn:
    """One message from its arrival to its end.

    Attributes:
        caller: What the program named the user by; a context's thread and request are used.
        waits: Whether the turn lasts until the run has ended.
        context: The user's context, as soon as it is open.
        run: The run, as soon as it has begun.
        done: Whether everything went well.
    """

    server: Server
    identity: Identity
    caller: object
    message: AgentMessage
    websocket: object
    manager: Manager | None
    sessions: Sessions
    agent: str | None
    waits: bool
    given: Any = None
    context: UserContext | None = None
    run: Run | None = None
    done: bool = False

    async def take(self) -> None:
        """Carry the message out; ``done`` says whether it was.

        Raises:
            ClientError: What its client got wrong, or what is not possible now; nothing was stored.
            RunFailed: The run ended otherwise than with success.
            StoreError: A store did not answer.
        """
        async with AsyncExitStack() as stack:
            with trio.fail_after(READ_S):
                held = await stack.enter_async_context(self.server.context_for(self.identity))
            self.context = context = held.context
            self._check_allowed(context)
            command, carried = read_fields(self.message, context.policy.max_message_bytes)
            context.agent_named(command.agent or self.agent)  # nobody is asked for anything that cannot begin
            context.check_store()
            seat = await find_seat(self.manager, self.websocket, context)
            async with self._session() as session:
                request = self._request(command, carried, seat, session)
                await seat.move(request.thread_id)
                await self._carry_out(context, command, request)
                self.done = True

    def _session(self) -> AbstractAsyncContextManager[Any]:
        return self.sessions.open() if self.given is None else nullcontext(self.given)

    def _check_allowed(self, context: UserContext) -> None:
        """Hold the message to what a client of the server is held to: permission, expiry, rate.

        Raises:
            ClientError: ``AUTH_FAILED``, ``FORBIDDEN`` or ``RATE_LIMITED``.
        """
        identity, budgets = self.identity, context.memory.budgets
        if identity.expires_at is not None and self.server.wiring.clock() >= identity.expires_at:
            _take_token(budgets.other)
            raise ClientError("AUTH_FAILED", "the token has expired")
        if not identity.may("chat"):
            _take_token(budgets.other)
            raise ClientError("FORBIDDEN", "this needs the permission chat")
        _take_token(budgets.talk)

    def _request(self, command: Start, carried: Any, seat: Seat, session: Any) -> RequestContext:
        caller = self.caller
        own, parent = getattr(caller, "thread_id", None), getattr(caller, "request_id", None)
        asked = command.run_id if isinstance(command, StartAgent) else None
        return RequestContext(
            user_id=self.identity.user_id,
            thread_id=command.thread_id or seat.thread_id or own or new_id("thread"),
            run_id=asked or new_id("run"),
            request_id=new_id("request"),
            websocket_connection_id=seat.connection_id,
            db_session=session if self.waits else None,
            metadata={**carried, "message_type": self.message.type},
            parent_request_id=parent if isinstance(parent, str) else None,
        )

    async def _carry_out(self, context: UserContext, command: Start, request: RequestContext) -> None:
        ask = self._ask(command, request)
        await wait_for_leaving(context, request.thread_id)
        with trio.move_on_after(READ_S) as scope:
            started = await start(context, ask, self.identity)
        if scope.cancelled_caught:
            raise StoreError(f"no answer within {READ_S:g} s")
        # No checkpoint since the run has begun: whoever cancels from now on ends it, too.
        run = context.runs[started.run_id]
        if not self.waits or started.disposition == "steered":  # what is steered belongs to another message's run
            await _committed(context, started.seq)
            return
        self.run = run
        try:
            await run.settled.wait()
        except BaseException:
            context.stop(run, "disconnect")
            stop_s = 2 * run.policy.finalise_s + STOP_S  # those of the proof
            with trio.CancelScope(shield=True, deadline=trio.current_time() + stop_s), suppress(ClientError):
                await proof_of_end(run)
            raise
        status = await proof_of_end(run)
        if status != "success":
            raise RunFailed(run.run_id, status, run.cancelled_by)

    def _ask(self, command: Start, request: RequestContext) -> Ask:
        ask = Ask(
            text=command.text,
            trigger="api",
            thread_id=request.thread_id,
            run_id=request.run_id,
            agent=command.agent or self.agent,
            context=SaidContext(command.context or {}, request),
            on_busy=command.on_busy,
            on_disconnect="continue",  # nobody here sees whether the older client is still connected
            timeout_s=command.timeout_s,
        )
        if isinstance(command, StartAgent):
            return attrs.evolve(ask, idle_timeout_s=command.idle_timeout_s)
        assert isinstance(command, UserMessage)
        return attrs.evolve(ask, attachments=command.attachments, jsonl_logs=command.jsonl_logs)


def _take_token(budget: RateLimit) -> None:
    wait_s = budget.take(trio.current_time())
    if wait_s > 0:
        after_s = round(wait_s + 0.0005, 3)
        raise ClientError("RATE_LIMITED", "too many messages", retryable=True, retry_after_s=after_s)


async def _committed(context: UserContext, seq: int) -> None:
    """Wait until what was said up to *seq* is kept.

    Raises:
        ClientError: ``UNAVAILABLE``: not within ``finalise_s``.
    """
    with trio.move_on_after(context.policy.run.finalise_s) as scope:
        await context.stream.wait_visible(seq)
    if scope.cancelled_caught:
        raise ClientError("UNAVAILABLE", "the store does not answer", retryable=True)
