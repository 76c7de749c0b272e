"""The older system's agent handler: a message of an older client becomes a run of the user's own.

Everything that happens is native: the run, its thread and its rows, its events on the user's stream. What
stands here is the older face of it: types, statistics, the notice to the user when something fails, and the
program's own session for each message (``agent_turn``)::

    handler = AgentMessageHandler(server, manager=manager, sessions=database.session)
    done = await handler.handle_message(user_context, websocket, {"type": "chat", "payload": {"content": "hello"}})

Who speaks is decided by the first argument alone; a ``user_id`` in a message is never used. A message is held
to what clients of the server are held to: permissions, rates, the largest message, runs and queues.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import attrs
import trio

from netra_ws.agents.failures import leaves, log_failure
from netra_ws.errors import ClientError, InvalidArgument, RunFailed, ServerError
from netra_ws.protocol.codec import error_reply
from netra_ws.protocol.converter import WRITERS
from netra_ws.server import Server

from .agent_message import SUPPORTED, identity_of, read_shape, type_of
from .agent_turn import WISHED, Manager, OpenSession, Sessions, Turn, settle

logger = logging.getLogger(__name__)

#: What is never taken for the outcome of one message, alone or in a group: it goes on to the caller.
GOES_ON = (trio.Cancelled, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)

_COUNTERS = {"start_agent": "start_agent_requests", "user_message": "user_messages", "chat": "chat_messages"}
_NEEDED = ("get_connection_id_by_websocket", "update_connection_thread", "send_error")


class AgentMessageHandler:
    """Takes the messages for agents that older clients send.

    Args:
        server: The server whose runs and streams are used.
        manager: Where the connections of the sockets are; without one, the user's own connections are looked at.
        sessions: Opens a session of the program's own, such as one of its database. Called once for each message
            that can be begun; what it yields is ``RequestContext.of(run).db_session`` in the run. It is closed
            when the run has ended, with the exception when that failed, and never given to two messages.
        agent: Whom a message without ``agent`` goes to; by default the server's own choice.
        wait: Whether a message is handled when its run has ended. Otherwise when the user's text is committed:
            the run goes on by itself then, and has no session.

    Raises:
        InvalidArgument: One of them is not what is said here.
    """

    def __init__(
        self,
        server: Server,
        *,
        manager: Manager | None = None,
        sessions: OpenSession | None = None,
        agent: str | None = None,
        wait: bool = True,
    ) -> None:
        if not isinstance(server, Server):
            raise InvalidArgument("server", f"expected a running server, got {type(server).__name__}")
        missing = [name for name in _NEEDED if not callable(getattr(manager, name, None))]
        if manager is not None and missing:
            raise InvalidArgument("manager", f"it has no {', '.join(missing)}")
        if sessions is not None and not callable(sessions):
            raise InvalidArgument("sessions", f"expected a function, got {type(sessions).__name__}")
        if agent is not None and (not isinstance(agent, str) or agent not in server.registry.policy.agents):
            raise InvalidArgument("agent", "the server has no agent of that name")
        if type(wait) is not bool:
            raise InvalidArgument("wait", f"expected True or False, got {type(wait).__name__}")
        self._server = server
        self._manager = manager
        self._sessions = Sessions(sessions)
        self._agent = agent
        self._wait = wait
        self._stats = Statistics()

    @property
    def supported_types(self) -> tuple[str, ...]:
        """The types that it takes."""
        return SUPPORTED

    def can_handle(self, message_type: object) -> bool:
        """Whether it takes messages of this type, a text or one of an enum; never raises."""
        return type_of(message_type) in SUPPORTED

    def get_stats(self) -> dict[str, Any]:
        """Return the counts of this moment, a copy.

        ``messages_processed`` is the sum of ``start_agent_requests``, ``user_messages`` and ``chat_messages``;
        ``errors`` counts all messages that were not processed, those that were cancelled among them;
        ``last_processed_time`` is in Unix seconds, None before the first.
        """
        return attrs.asdict(self._stats)

    async def handle_message(self, user: object, websocket: object, message: object) -> bool:
        """Carry a message out as a run of *user*.

        What goes wrong is this message's outcome: counted, logged, and told to the user once, by
        ``manager.send_error``; without a manager by one ``error`` frame on the socket, when it has ``send_json``,
        or on the user's connections, unless the run has told it by its own end. A notice that fails is logged.
        ``GOES_ON`` names what is no outcome and is raised again: cancellation, Ctrl-C, the end of the process, the
        end of its memory. An ImportError, a missing method, or any other error of a program's own session or
        manager is an outcome.

        Args:
            user: A user's id, an ``Identity``, or a context that has one; its ``thread_id`` is used for a message
                that names no thread on a connection that has none.
            websocket: The socket it came from, to find its connection; None when there is none.
            message: A mapping with ``type``, and its fields flat or in ``payload``, or an object with these
                attributes.

        Returns:
            Whether it was carried out; True, too, when the user stopped the run or put another one in its place.
            False: nothing was stored, unless the run had begun.

        Raises:
            InvalidArgument: *user* names nobody, or *message* is no message; nothing was stored or told.

        *Cancellation:* ends the run of this message, as ``disconnect``, waits for it, and closes the session.
        """
        return await self._handle(user, websocket, message)

    async def handle_start_agent(
        self, user: object, payload: Mapping[str, Any], db_session: Any = None, websocket: object = None
    ) -> bool:
        """Carry out a ``start_agent`` as ``handle_message`` does; a *db_session* is used, and not closed.

        Raises:
            InvalidArgument: As ``handle_message``, or *payload* is no mapping.
        """
        return await self._handle_payload("start_agent", user, payload, db_session, websocket)

    async def handle_user_message(
        self, user: object, payload: Mapping[str, Any], db_session: Any = None, websocket: object = None
    ) -> bool:
        """Carry out a ``user_message`` as ``handle_message`` does; a *db_session* is used, and not closed.

        Raises:
            InvalidArgument: As ``handle_message``, or *payload* is no mapping.
        """
        return await self._handle_payload("user_message", user, payload, db_session, websocket)

    async def _handle_payload(
        self, type_name: str, user: object, payload: object, db_session: Any, websocket: object
    ) -> bool:
        if not isinstance(payload, Mapping):
            raise InvalidArgument("payload", f"expected a mapping, got {type(payload).__name__}")
        return await self._handle(user, websocket, {"type": type_name, "payload": payload}, db_session)

    async def _handle(self, user: object, websocket: object, message: object, given: Any = None) -> bool:
        turn = Turn(
            server=self._server,
            identity=identity_of(user),
            caller=user,
            message=read_shape(message),
            websocket=websocket,
            manager=self._manager,
            sessions=self._sessions,
            agent=self._agent,
            waits=self._wait,
            given=given,
        )
        failure: BaseException | None = None
        try:
            await turn.take()
        except BaseException as exc:
            if goes_on(exc):
                self._stats.errors += 1
                raise
            failure = exc
        await self._flush()
        if turn.done if failure is None else _is_wished(failure):
            self._stats.count(str(turn.message.type), self._server.wiring.clock())
            return True
        self._stats.errors += 1
        await self._tell(turn, failure)
        return False

    async def _flush(self) -> None:
        """Let a manager's sockets have what the run has said, before the message counts as handled."""
        flush = getattr(self._manager, "flush_events", None)
        if callable(flush):
            try:
                await settle(flush())
            except Exception as exc:  # no outcome of the message
                log_failure(logger, logging.WARNING, exc, "events have not reached all sockets")

    async def _tell(self, turn: Turn, failure: BaseException | None) -> None:
        """Log why a message failed, and tell its user; a failing notice is only logged."""
        name, user_id = turn.message.name, turn.identity.user_id
        reason = f": {failure.text}" if isinstance(failure, ClientError) else ""
        if isinstance(failure, ClientError | RunFailed | ServerError):
            logger.warning("%s of user %r failed: %s", name, user_id, str(failure))  # whose frames hold the request
        elif failure is not None:
            log_failure(logger, logging.ERROR, failure, "%s of user %r failed", name, user_id)
        text = f"Failed to process {name}{reason}. Please try again."
        try:
            if self._manager is not None:
                await settle(self._manager.send_error(user_id, text))
            elif not isinstance(failure, RunFailed):  # whose user has heard agent_completed
                await _tell_without_manager(turn, text, failure)
        except BaseException as exc:
            if goes_on(exc):
                raise
            log_failure(logger, logging.WARNING, exc, "user %r could not be told of it", user_id)


@attrs.define
class Statistics:
    """What a handler counts."""

    messages_processed: int = 0
    start_agent_requests: int = 0
    user_messages: int = 0
    chat_messages: int = 0
    errors: int = 0
    last_processed_time: float | None = None

    def count(self, type_name: str, now: float) -> None:
        """Count a message that was processed at *now*."""
        counter = _COUNTERS[type_name]
        setattr(self, counter, getattr(self, counter) + 1)
        self.messages_processed += 1
        self.last_processed_time = now


def goes_on(exc: BaseException) -> bool:
    """Whether *exc* holds anything that is never one message's outcome."""
    return any(isinstance(each, GOES_ON) for each in leaves(exc))


def _is_wished(failure: BaseException) -> bool:
    """Whether the run ended as its user wanted."""
    return isinstance(failure, RunFailed) and failure.cancelled_by in WISHED


async def _tell_without_manager(turn: Turn, text: str, failure: BaseException | None) -> None:
    """Send one ``error`` frame to where the message came from, else to all connections of its user."""
    known = failure if isinstance(failure, ClientError) else ClientError("INTERNAL", text, retryable=True)
    reply = attrs.evolve(error_reply(known), error=text, message=text)
    send = getattr(turn.websocket, "send_json", None)
    if callable(send):
        await settle(send({"type": reply.type, **WRITERS[type(reply)](reply), "timestamp": turn.server.wiring.clock()}))
        return
    connections = [] if turn.context is None else list(turn.context.connections.values())
    own = [connection for connection in connections if connection is turn.websocket]
    for connection in own or connections:
        connection.tell(reply)
