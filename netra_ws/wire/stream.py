"""Our ``trio.abc.Stream`` under trio-websocket: one way in, one way out for every byte.

In: a canonical upgrade head, then, once the 101 is on its way, what the client sends. Out: whole
frames only, from two sides: trio-websocket's own (the 101, pongs, Close), and the seat's ready frames
(``Source``). Both are gathered into one system call. A write that was cut short leaves its tail here, so no
cancellation can tear a frame.

Who may write: the flusher while the socket takes everything; a task of the connection's own while
it is full, or where there is no descriptor to write to (TLS, memory streams). Never both.

Who may close: the connection's task, once nothing else of the connection runs (``see_off``). What
trio-websocket calls closing only ends its reading here: it closes from two tasks at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import attrs
import trio

from netra_ws.access.limits import RateLimit
from netra_ws.errors import StoreError, Trimmed
from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.codec import close_frame, ping_frame

from .frames import Inbound
from .tls import TlsStream, end_and_drain

#: What stands for a Close frame without a code (RFC 6455 §7.1.5).
NO_CODE = 1005
#: Bytes per system call.
SLICE = 64 * 1024
#: Bytes of trio-websocket's own frames that may wait; above it the reading stops.
OWN_HIGH = 64 * 1024
#: Seconds for the last bytes to leave, and for the client to close its side after ours.
LINGER_S = 1.0
#: Seconds in which a full socket must take ``SLICE`` bytes: the age budget of a slow client. It allows
#: a kilobyte a second, slower than any link that a person would wait on.
STALL_S = 60.0
#: Seconds between two tries when the store does not answer a reader that needs it.
STORE_RETRY_S = 0.5


@attrs.frozen
class Pace:
    """A budget that slows the reading down instead of refusing anything.

    Attributes:
        slowed: Called when somebody begins to wait.
    """

    budget: RateLimit
    slowed: Callable[[], None]

    async def wait(self) -> None:
        """Take a token, waiting until there is one."""
        if wait_s := self.budget.take(trio.current_time()):
            self.slowed()
            while wait_s:
                await trio.sleep(wait_s)
                wait_s = self.budget.take(trio.current_time())


class Source(Protocol):
    """Who has ready frames for the socket; a seat."""

    @property
    def pending(self) -> bool: ...

    def take(self, room: int) -> list[bytes]: ...

    async def refill(self) -> None: ...

    def too_slow(self) -> None: ...


class WritePlan(Protocol):
    """Who calls ``flush`` soon; the flusher."""

    def plan(self, stream: Duplex) -> None: ...


class Progress(Enum):
    """What one flush came to."""

    IDLE = "everything was written"
    MORE = "there is more, call again"
    FULL = "the socket takes nothing now"
    REFILL = "the next frames are in the store"


@attrs.define(eq=False, repr=False)
class Duplex(trio.abc.Stream):
    """The wire of one connection.

    Attributes:
        nursery: Where the writer of a full socket runs; None while no task may be started.
        source: The seat, from the moment it may speak.
        heard_at: When the client was last heard (``trio.current_time``).
        ping_sent_at: When the ping that is not answered yet was sent.
        closed: Whether nothing can be written any more.
        close_code: Code of the Close frame that was queued, behind which nothing may follow; 1005 for one
            without a code.
    """

    transport: trio.abc.Stream
    _request: bytes
    _rest: bytes
    _plan: WritePlan
    _control: Pace
    _inbound: Inbound
    nursery: trio.Nursery | None = None
    source: Source | None = None
    heard_at: float = attrs.field(factory=trio.current_time)
    ping_sent_at: float | None = None
    rtt_s: float | None = None
    bytes_in: int = attrs.field(default=attrs.Factory(lambda self: len(self._rest), takes_self=True))
    bytes_out: int = 0
    closed: bool = False
    planned: bool = False
    _fd: int = -1
    _writing: bool = False
    _tail: bytes = b""
    _own: deque[bytes] = attrs.field(factory=deque)
    _own_bytes: int = 0
    close_code: int | None = None
    _upgraded: bool = False
    _library_done: bool = False
    _paced_at: float = 0.0
    _paced_bytes: int = 0
    _close_gathered: bool = False
    _accepted: trio.Event = attrs.field(factory=trio.Event)
    _quiet: trio.Event = attrs.field(factory=trio.Event)
    _room: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        if os.name == "posix" and isinstance(self.transport, trio.SocketStream):
            self._fd = self.transport.socket.fileno()

    # In (called by trio-websocket's reader).

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._request:
            await trio.lowlevel.checkpoint()
            request, self._request = self._request, b""
            return request
        # Frames glued to the upgrade would reach wsproto before it has accepted.
        await self._accepted.wait()
        if self._rest:
            await trio.lowlevel.checkpoint()
            data, self._rest = self._rest, b""
        else:
            data = b""
        if self.closed or self._library_done:
            raise trio.ClosedResourceError
        if not data and self.verdict is None:
            data = bytes(await self.transport.receive_some(max_bytes))
            self._heard(data)
        return await self._next_portion(data)

    async def _next_portion(self, data: bytes) -> bytes:
        """Return what of *data* the library may have now; nothing, as at the client's end, when there is a verdict."""
        if self.verdict is not None:
            return b""
        portion = self._inbound.follow(data)
        self._rest = data[portion.size :]
        if portion.pong:
            # It asks for no answer whose budget could slow it down.
            await self._control.wait()
        return data[: portion.size]

    @property
    def verdict(self) -> CloseCode | None:
        """The code with which the connection has to be closed for what the client was about to send."""
        return self._inbound.verdict

    def _heard(self, data: bytes) -> None:
        self.bytes_in += len(data)
        self.heard_at = trio.current_time()
        if self.ping_sent_at is not None and data[:1] == b"\x8a":
            self.rtt_s = self.heard_at - self.ping_sent_at
            self.ping_sent_at = None

    # Out.

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Queue a whole frame of trio-websocket's; waits while too many wait."""
        await trio.lowlevel.checkpoint_if_cancelled()
        frame = bytes(data)
        # Nothing is queued yet, so a cancellation in these waits cannot tear a frame.
        if frame[:1] == b"\x8a":
            # A pong stands for a ping: above its budget the client is read no faster.
            await self._control.wait()
        while self._own_bytes > OWN_HIGH and not self.closed:
            await self._room.wait()
        if self.close_code is not None:
            return  # RFC 6455 §5.5.1: nothing after a Close frame
        if self.closed:
            raise trio.BrokenResourceError
        if not self._upgraded:
            self._upgraded = True
            self._accepted.set()
        elif frame[:1] == b"\x88":
            self.close_code = int.from_bytes(frame[2:4], "big") or NO_CODE
        self._queue(frame)
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    def _queue(self, frame: bytes) -> None:
        self._own.append(frame)
        self._own_bytes += len(frame)
        self.wake()

    def ping(self) -> None:
        """Send a ping; ``rtt_s`` and ``heard_at`` tell what came of it."""
        self.ping_sent_at = trio.current_time()
        if self.close_code is None and not self.closed:
            self._queue(ping_frame())

    def wake(self) -> None:
        """Note that there is something to write."""
        if self.closed or self._writing or self.planned:
            return
        if self._fd >= 0:
            self._plan.plan(self)
        else:
            self._start_writer()

    def flush(self) -> Progress:
        """Write what is pending, at most about 64 KiB, in one system call; only for plain sockets."""
        try:
            data = self._gather()
        except Trimmed:
            return Progress.REFILL
        if not data:
            return self._idle()
        try:
            written = os.write(self._fd, data)
        except BlockingIOError:
            written = 0
        except OSError:
            self.give_up()
            return Progress.IDLE
        self.bytes_out += written
        if written < len(data):
            self._tail = data[written:]
            return Progress.FULL
        return Progress.MORE if self._has_more() else self._idle()

    def write_later(self) -> None:
        """Leave the flusher: a task of the connection's own goes on until everything is written."""
        self._start_writer()

    def _gather(self) -> bytes:
        if self.closed:
            return b""
        if len(self._tail) >= SLICE:
            data, self._tail = self._tail, b""
            return data
        frames = []
        if self.source is not None and not self._close_gathered:
            try:
                frames = self.source.take(SLICE - len(self._tail))
            except Trimmed:
                if not self._tail and not self._own:
                    raise
        tail = [self._tail] if self._tail else []
        self._tail = b""
        if self._own:
            # A Close goes behind the seat's last ack; the 101 and pongs before everything.
            own = list(self._own)
            closing = self.close_code is not None
            # In that case it is the last of them.
            frames = [*tail, *own[:-1], *frames, own[-1]] if closing else [*tail, *own, *frames]
            self._own.clear()
            self._own_bytes = 0
            self._close_gathered = closing
            self._room.set()
            self._room = trio.Event()
        else:
            frames = [*tail, *frames]
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def _has_more(self) -> bool:
        if self._tail or self._own:
            return True
        return self.source is not None and not self._close_gathered and self.source.pending

    def _idle(self) -> Progress:
        self._quiet.set()
        return Progress.IDLE

    def _start_writer(self) -> None:
        if self._writing or self.closed or self.nursery is None:
            return
        self._writing = True
        self.nursery.start_soon(self._write_all)

    async def _write_all(self) -> None:
        """Write until there is nothing left, then give the socket back to the flusher."""
        self._paced_at, self._paced_bytes = trio.current_time(), self.bytes_out
        try:
            while not self.closed:
                if self._fd >= 0:
                    progress = self.flush()
                else:
                    progress = await self._send_some()
                if progress is Progress.IDLE:
                    break
                if progress is Progress.FULL:
                    await self._wait_writable()
                elif progress is Progress.REFILL:
                    await self._refill()
                else:
                    await trio.lowlevel.checkpoint()
        finally:
            self._writing = False
        self._quiet.set()
        if not self.closed and self._has_more():
            self.wake()

    async def _wait_writable(self) -> None:
        with self._age_budget() as scope:
            try:
                await trio.lowlevel.wait_writable(self._fd)
            except trio.ClosedResourceError:
                return  # closed meanwhile, which the caller sees
        if scope.cancelled_caught:
            self._too_slow()

    def _age_budget(self) -> trio.CancelScope:
        """Return the scope of a wait for the client: it ends when less than a slice went out in ``STALL_S``."""
        if self.bytes_out - self._paced_bytes >= SLICE:
            self._paced_at, self._paced_bytes = trio.current_time(), self.bytes_out
        return trio.CancelScope(deadline=self._paced_at + STALL_S)

    def _too_slow(self) -> None:
        if self.source is None or self.close_code is not None:
            self.give_up()
        else:
            # Its Close comes behind a tail that may never leave: then the socket is aborted a moment later.
            self._paced_at, self._paced_bytes = trio.current_time(), self.bytes_out
            self.source.too_slow()

    async def _refill(self) -> None:
        assert self.source is not None
        try:
            await self.source.refill()
        except StoreError:
            await trio.sleep(STORE_RETRY_S)
        finally:
            self._paced_at = trio.current_time()  # the store was slow, not the client

    async def _send_some(self) -> Progress:
        """One slice through the transport's own ``send_all``, for TLS and memory streams."""
        try:
            data = self._gather()
        except Trimmed:
            return Progress.REFILL
        if not data:
            return Progress.IDLE
        # Cancelled in the middle: our TLS has it, and sends it before the Close; another transport is torn.
        self._tail = b"" if isinstance(self.transport, TlsStream) else data
        try:
            with self._age_budget() as scope:
                await self.transport.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.give_up()
            return Progress.IDLE
        if scope.cancelled_caught:
            # Torn, so no Close may follow; the seat says why.
            if self.source is not None:
                self.source.too_slow()
            self.give_up()
            return Progress.IDLE
        self._tail = b""
        self.bytes_out += len(data)
        return Progress.MORE if self._has_more() else Progress.IDLE

    # Closing.

    def give_up(self) -> None:
        """Write nothing more: the socket is dead, or this connection is; an error of nobody else."""
        self.closed = True
        self._tail = b""
        self._own.clear()
        self._quiet.set()
        self._room.set()
        self._accepted.set()
        if self.nursery is not None:
            # Wakes the reader; without a nursery the connection's task is about to close anyway.
            self.nursery.start_soon(trio.aclose_forcefully, self.transport)

    async def aclose(self) -> None:
        """Note that trio-websocket will read and write no more; ``see_off`` follows.

        Its Close frame after a protocol error is missing; whoever calls ``see_off`` says it.
        """
        self._library_done = True
        await trio.lowlevel.checkpoint()

    def say_close(self, code: CloseCode, reason: str = "") -> None:
        """Queue a Close frame unless there is one."""
        if self.close_code is None and self._upgraded and not self.closed:
            self.close_code = code
            self._queue(close_frame(code, reason))

    async def see_off(self) -> None:
        """Let the last bytes leave, say that nothing follows, wait for the client's end, close.

        For the connection's task, when nobody else reads from the transport. The client's rest is
        read and dropped, since closing with unread data makes the system send a reset, which
        destroys what is still on the way to the client. Takes at most ``LINGER_S`` seconds.
        """
        with trio.move_on_after(LINGER_S):
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                try:
                    await self._drain()
                finally:
                    self.nursery = None
                    nursery.cancel_scope.cancel()
        await self.abort()

    async def _drain(self) -> None:
        while self._has_more() and not self.closed:
            self._quiet = trio.Event()
            self.wake()
            await self._quiet.wait()
        await end_and_drain(self.transport)

    async def abort(self) -> None:
        """Close now. Every close comes through here: descriptor numbers are used again by the system."""
        self.closed = True
        self._fd = -1
        self._accepted.set()
        self._quiet.set()
        self._room.set()
        await trio.aclose_forcefully(self.transport)
