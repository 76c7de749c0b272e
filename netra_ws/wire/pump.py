"""One connection from its upgrade to its end: the task in the user's nursery that owns the socket.

It gives *its own* nursery to trio-websocket, because that may raise out of its reader task (a ping
behind our Close does, trio-websocket #184): such an error ends this connection and nothing else.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import attrs
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from netra_ws.access import ping_budget
from netra_ws.agents.request import new_id
from netra_ws.contexts.connection import Connection
from netra_ws.contexts.context import UserContext
from netra_ws.contexts.dispatch import dispatch
from netra_ws.contexts.starting import ensure_thread
from netra_ws.errors import ClientError, StoreError
from netra_ws.history.cursor import Cursor
from netra_ws.history.stores.contract import Store
from netra_ws.identity import Identity
from netra_ws.protocol.closing import SENT_FOR_THE_LIBRARY, CloseCode
from netra_ws.protocol.codec import Incoming, error_reply, read_command
from netra_ws.protocol.commands import Heartbeat as HeartbeatCommand
from netra_ws.protocol.commands import Ping
from netra_ws.protocol.replies import (
    AdvertisedLimits,
    ConnectionEstablished,
    HandshakeResponse,
    Position,
)

from .flusher import Flusher
from .frames import Inbound
from .head import Head, canonical_upgrade
from .heartbeat import Heartbeat
from .stream import Duplex, Pace

logger = logging.getLogger(__name__)
# It logs every frame and every client's mistake; what matters is logged here.
logging.getLogger("trio-websocket").setLevel(logging.CRITICAL)

#: Messages that trio-websocket holds for us, each of up to the largest size; its default of one makes it
#: deaf for pings.
QUEUE = 4
READ_BYTES = 64 * 1024
#: Larger messages are parsed in a worker thread; not in Trio's own pool, which an agent may have filled.
PARSE_IN_THREAD = 64 * 1024
PARSERS = 4
#: Seconds for a closing handshake.
CLOSE_S = 2.0

#: Seconds for which an older client hears no events unless it says something: it acknowledges at once, or never.
QUIET_S = 2.0

PROTOCOL = "netra.v1"

#: Close codes that are counted on their own: those of RFC 6455 and ours. All others count as 3000.
COUNTED = frozenset({*range(1000, 1016), *CloseCode})
OTHER_CODE = 3000


@attrs.frozen(kw_only=True)
class Admitted:
    """A client that may come in.

    Attributes:
        resume: Position it wants to go on from, or None.
        thread_id: Thread that it was in.
        older: Whether it gets the older handshake.
        echo: Whether it only wants its messages back (conformance suites).
        at: When it was let in, in Unix seconds.
    """

    identity: Identity
    head: Head
    subprotocol: str | None
    resume: tuple[str, int] | None = None
    thread_id: str | None = None
    older: bool = False
    echo: bool = False
    at: float = 0.0


@attrs.define
class WireCounts:
    """Counts of all connections since the start.

    Attributes:
        slowed: How often a connection began to be read no faster, by the budget that was used up.
    """

    closes: Counter[int] = attrs.field(factory=Counter)
    replays: Counter[str] = attrs.field(factory=Counter)
    slowed: Counter[str] = attrs.field(factory=Counter)
    bytes_in: int = 0
    bytes_out: int = 0
    messages_in: int = 0
    messages_out: int = 0


#: Says who a client's new token stands for, or raises ``Refused``; the head is the one of its upgrade.
Renew = Callable[[Head, str], Awaitable[Identity]]


@attrs.define(repr=False)
class Wiring:
    """What all connections share."""

    store: Store
    flusher: Flusher
    heartbeat: Heartbeat
    handshake_s: float
    count: Callable[[str, str], None]
    renew: Renew
    clock: Callable[[], float] = time.time
    counts: WireCounts = attrs.field(factory=WireCounts)
    parsers: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(PARSERS))

    def pace(self, name: str, per_minute: int) -> Pace:
        """Return a connection's budget whose waits are counted under *name*."""

        def slowed() -> None:
            self.counts.slowed[name] += 1

        return Pace(ping_budget(per_minute), slowed)


@attrs.define(eq=False, repr=False)
class Socket:
    """A connection's socket: carries the seat, and closes when the seat says so (``contexts.connection.Wire``)."""

    wiring: Wiring
    context: UserContext
    admitted: Admitted
    stream: Duplex
    nursery: trio.Nursery | None = None
    connection: Connection | None = None
    close_code: int = 1006
    _library: WebSocketConnection | None = None
    _closed: trio.Event = attrs.field(factory=trio.Event)
    _closing: bool = False

    @property
    def bytes_in(self) -> int:
        return self.stream.bytes_in

    @property
    def bytes_out(self) -> int:
        return self.stream.bytes_out

    def wake(self) -> None:
        """Have the seat's frames written soon."""
        self.stream.wake()

    async def identify(self, token: str) -> Identity:
        """Return who a new token of this client stands for.

        Raises:
            Refused: It is not good.
        """
        return await self.wiring.renew(self.admitted.head, token)

    def renewed(self) -> None:
        """Look at the end of the identity anew."""
        if self.connection is not None:
            self.wiring.heartbeat.look_again(self.connection)

    def close(self, code: CloseCode, reason: str) -> None:
        """Begin the closing handshake; the connection's task ends when it is done, or after ``CLOSE_S``."""
        if self._closing or self.nursery is None:
            return
        self._closing = True
        self.close_code = code
        self.nursery.start_soon(self._close, code, reason)

    async def _close(self, code: CloseCode, reason: str) -> None:
        try:
            with trio.move_on_after(CLOSE_S):
                if self._library is not None:
                    await self._library.aclose(code, reason)
        finally:
            self._closed.set()
            if self.nursery is not None:
                # Nothing is left to wait for, least of all room in an inbox behind a command that hangs.
                self.nursery.cancel_scope.cancel()

    async def carry(self) -> bool:
        """Serve the connection until it ends; return whether the client said that it will not come back."""
        unsaid = CloseCode.GOING_AWAY  # what a client hears that was told nothing: the user's context has ended
        try:
            async with trio.open_nursery() as nursery:
                self.nursery = self.stream.nursery = nursery
                try:
                    await self._serve(nursery)
                finally:
                    # A nursery that is being left may be closed before we are asked: start nothing there.
                    self.nursery = self.stream.nursery = None
                    nursery.cancel_scope.cancel()
        except* (LocalProtocolError, RemoteProtocolError, UnicodeError) as group:
            logger.debug("connection of %s ended by a protocol error: %r", self.admitted.head.peer, group)
            unsaid = CloseCode.PROTOCOL_ERROR
        except* Exception as group:
            # The crash wall of a connection: a bug of ours ends this connection and nothing else.
            logger.error("connection of user=%r failed", self.context.user_id, exc_info=group)
            unsaid = CloseCode.INTERNAL
        finally:
            await self._leave(unsaid)
        return self.connection is not None and self.connection.explicit

    async def _serve(self, nursery: trio.Nursery) -> None:
        library = await self._accept(nursery)
        if library is None:
            return
        if self.admitted.echo:
            await _echo(library)
        else:
            self.connection = self._seat()
            await self._converse(library, self.connection, nursery)
        if self._closing:
            await self._closed.wait()

    async def _leave(self, unsaid: CloseCode) -> None:
        """Take the connection out of everything, and let a Close frame leave; shielded and bounded."""
        connection, library, stream = self.connection, self._library, self.stream
        if connection is not None:
            connection.closing = True
            self.context.detach(connection)
            self.wiring.heartbeat.forget_ended()
        if self._closing:
            stream.say_close(CloseCode(self.close_code))
        elif library is None or library.closed is None:
            self.close_code = unsaid
            stream.say_close(unsaid)
        elif library.closed.code in SENT_FOR_THE_LIBRARY:
            # trio-websocket closes without a Close frame after a protocol error.
            code = CloseCode(library.closed.code)
            stream.say_close(code, _reason(code))
        elif stream.verdict is not None:
            stream.say_close(stream.verdict, _reason(stream.verdict))
        # The library keeps only what came last; what counts is what was said first.
        self.close_code = stream.close_code or self.close_code
        with trio.CancelScope(shield=True):
            await stream.see_off()
        self._count()

    async def _accept(self, nursery: trio.Nursery) -> WebSocketConnection | None:
        with trio.move_on_after(self.wiring.handshake_s):
            request = await wrap_server_stream(
                nursery,
                self.stream,
                message_queue_size=QUEUE,
                max_message_size=self.context.policy.max_message_bytes,
                receive_buffer_size=READ_BYTES,
            )
            library: WebSocketConnection = await request.accept(subprotocol=self.admitted.subprotocol)
            self._library = library
            return library
        return None

    def _seat(self) -> Connection:
        admitted, stream = self.admitted, self.context.stream
        return Connection(
            connection_id=f"conn_{secrets.token_hex(8)}",
            identity=admitted.identity,
            protocol=PROTOCOL,
            cursor=Cursor(stream, self.wiring.store, stream.visible),
            wire=self,
            clock=self.wiring.clock,
            admitted_at=admitted.at,
            older=admitted.older,
            reads=admitted.identity.may("read"),
            thread_id=admitted.thread_id,
        )

    async def _converse(self, library: WebSocketConnection, connection: Connection, nursery: trio.Nursery) -> None:
        if connection.older:
            with trio.move_on_after(self.wiring.handshake_s) as scope:
                await self._open_older_thread(connection)
            if scope.cancelled_caught:  # nobody looks yet whether this client is still there
                connection.shut(CloseCode.INTERNAL, "the store does not answer")
                return
        self._welcome(connection)
        if connection.offered is not None:
            self._older_handshake(connection, connection.offered)
            nursery.start_soon(self._end_quiet, connection)
        self._go_on(connection)
        self.context.attach(connection)
        self.wiring.heartbeat.watch(connection, self.stream)
        self.stream.source = connection
        self.stream.wake()
        dispatched = trio.Event()

        async def take_turns() -> None:
            try:
                await dispatch(self.context, connection, self.wiring.count)
            finally:
                dispatched.set()

        nursery.start_soon(take_turns)
        await self._pump(library, connection)
        # What the client said before it went away still takes effect.
        connection.hang_up()
        connection.inbox_in.close()
        with trio.move_on_after(CLOSE_S):
            await dispatched.wait()

    def _welcome(self, connection: Connection) -> None:
        context, policy = self.context, self.context.policy
        resume = self.admitted.resume
        stream = context.stream
        resumed = resume is not None and connection.reads and stream.judge(*resume) is None
        connection.tell(
            ConnectionEstablished(
                connection_id=connection.connection_id,
                user_id=context.user_id,
                protocol=PROTOCOL,
                server_time=self.wiring.clock(),
                heartbeat_interval_s=policy.heartbeat_interval_s,
                pong_timeout_s=policy.pong_timeout_s,
                limits=AdvertisedLimits(
                    max_message_bytes=policy.max_message_bytes,
                    messages_per_minute=policy.messages_per_minute,
                    max_connections_per_user=policy.max_connections_per_user,
                    max_runs_per_user=policy.max_runs_per_user,
                ),
                stream=Position(epoch=stream.epoch, seq=stream.visible),
                resume_window_s=policy.resume_window_s,
                resumed=resumed,
                active_runs=context.active if connection.reads else [],
                pending_inputs=context.inputs.pending() if connection.reads else [],
                # The default one first: clients that ask nobody in particular show that one.
                agents=sorted(policy.agents, key=lambda name: (name != policy.default_agent, name)),
            )
        )

    def _go_on(self, connection: Connection) -> None:
        """Begin at the position that the client named, if it did."""
        resume, stream = self.admitted.resume, self.context.stream
        if resume is not None and not connection.reads:
            connection.tell(error_reply(ClientError("FORBIDDEN", "resume needs the permission read")))
        if resume is not None and connection.reads:
            reason = stream.judge(*resume)
            self.wiring.counts.replays[reason or "complete"] += 1
            connection.lane.go_on_behind(*resume)

    async def _open_older_thread(self, connection: Connection) -> None:
        """Make the thread that an older client is offered; its event comes before the welcome, so not to it."""
        context = self.context
        # Only a name where nothing may be made: why, the first message in it is told.
        offered, seq = new_id("thread"), 0
        if connection.identity.may("chat"):
            try:
                _, seq = await ensure_thread(context, offered, "")
            except (ClientError, StoreError) as exc:
                if not isinstance(exc, ClientError) or exc.retryable:
                    logger.warning("no thread for an older client of %s: %s", context.user_id, exc)
                    connection.shut(CloseCode.INTERNAL, "no thread could be opened")
                    return
        connection.offered = connection.thread_id = offered
        await context.stream.wait_visible(seq)
        connection.lane.jump()

    def _older_handshake(self, connection: Connection, thread_id: str) -> None:
        connection.tell(
            HandshakeResponse(
                thread_id=thread_id,
                run_id=None,
                request_id=secrets.token_hex(8),
                session_token=connection.connection_id,
                message="handshake: acknowledge with handshake_acknowledged",
            )
        )
        connection.quiet = True

    async def _end_quiet(self, connection: Connection) -> None:
        """An older client that knows nothing of the handshake is not kept waiting for ever."""
        await trio.sleep(min(QUIET_S, self.wiring.handshake_s))
        connection.end_quiet()

    async def _pump(self, library: WebSocketConnection, connection: Connection) -> None:
        """Read messages until the connection ends; never waits for an agent or a store."""
        pings = self.wiring.pace("pings", self.context.policy.pings_per_minute)
        traffic = connection.traffic
        while True:
            try:
                message = await library.get_message()
            except ConnectionClosed:
                return
            if connection.closing:
                continue
            if isinstance(message, bytes):
                connection.shut(CloseCode.UNSUPPORTED, "binary messages are not spoken here")
                continue
            traffic.messages_in += 1
            traffic.last_activity = self.wiring.clock()
            incoming = await self._read(message)
            if isinstance(incoming.command, Ping | HeartbeatCommand):
                # Above its budget a client is read no faster.
                await pings.wait()
            try:
                await connection.put(incoming, len(message))
            except trio.BrokenResourceError:
                continue  # the dispatcher has gone: the connection is closing

    async def _read(self, message: str) -> Incoming:
        if len(message) > PARSE_IN_THREAD:
            return await trio.to_thread.run_sync(read_command, message, limiter=self.wiring.parsers)
        return read_command(message)

    def _count(self) -> None:
        counts, stream, connection = self.wiring.counts, self.stream, self.connection
        # What clients invent is counted as one, or they would choose how many labels the metric has.
        counts.closes[self.close_code if self.close_code in COUNTED else OTHER_CODE] += 1
        counts.bytes_in += stream.bytes_in
        counts.bytes_out += stream.bytes_out
        if connection is not None:
            counts.messages_in += connection.traffic.messages_in
            counts.messages_out += connection.traffic.messages_out


def _reason(code: CloseCode) -> str:
    return code.name.replace("_", " ").lower()


async def _echo(library: WebSocketConnection) -> None:
    while True:
        try:
            await library.send_message(await library.get_message())
        except ConnectionClosed:
            return


async def serve_socket(wiring: Wiring, admitted: Admitted, transport: trio.abc.Stream, context: UserContext) -> bool:
    """Carry one admitted client in its user's context."""
    stream = Duplex(
        transport,
        canonical_upgrade(admitted.head, admitted.subprotocol),
        admitted.head.rest,
        wiring.flusher,
        wiring.pace("control", context.policy.pings_per_minute),
        Inbound.of(context.policy.max_message_bytes),
    )
    return await Socket(wiring, context, admitted, stream).carry()
