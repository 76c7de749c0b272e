"""One client's seat: what it has been told, what it has still to be told, and what it said.

The seat knows no socket. The wire asks it for bytes (``take``) and is woken when there are some.
Events come from the stream through a cursor. Answers and notices stand in the control lane; one
with a barrier is handed out right after the cursor has passed that seq, so the ack of a start can
never overtake its ``user_message``.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from netra_ws.errors import ClientError, Lost
from netra_ws.history.cursor import Cursor
from netra_ws.identity import Identity
from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.codec import Incoming, encode_reply, error_reply
from netra_ws.protocol.replies import Lagging, ReplayCompleted, Reply, StreamReset

#: Commands that were received and wait for the dispatcher, and their bytes; a full inbox stops the reading.
INBOX = 64
INBOX_BYTES = 256 * 1024
#: Bytes of answers that wait for the socket: above the first figure nothing more is read from the
#: client, above the second it is closed with 4000.
CONTROL_HIGH = 256 * 1024
CONTROL_MAX = 16 * 1024 * 1024
#: Answers that wait for their event; above it nothing more is read from the client.
HELD_HIGH = 256

#: Bytes by which the log may grow while a reader is behind without a break: the byte budget of a slow client. It
#: costs the server nothing, but who falls back so far is better off with a new connection and its position.
LAG_BYTES = 32 * 1024 * 1024
#: What is said instead of an answer that has waited for the store too long.
NOT_KEPT = error_reply(
    ClientError("UNAVAILABLE", "the store does not answer; this may still take effect", retryable=True)
)

_count = itertools.count()


class Wire(Protocol):
    """What a seat needs of its socket."""

    @property
    def bytes_in(self) -> int:
        """Bytes read since the upgrade."""
        ...

    @property
    def bytes_out(self) -> int:
        """Bytes written since the upgrade."""
        ...

    def wake(self) -> None:
        """Note that there is something to write."""
        ...

    def close(self, code: CloseCode, reason: str) -> None:
        """Begin the closing handshake; returns at once."""
        ...

    async def identify(self, token: str) -> Identity:
        """Return who a new token of this client stands for.

        Raises:
            Refused: It is not good.
        """
        ...

    def renewed(self) -> None:
        """Look at the end of the identity anew: it may come earlier than that of the last one."""
        ...


@attrs.frozen(order=True)
class _Held:
    """A frame that waits for the cursor; ``answers`` is the command that it is the answer to."""

    barrier: int
    number: int
    make: Callable[[], bytes | None] = attrs.field(order=False)
    answers: Incoming | None = attrs.field(order=False, default=None)


@attrs.define
class Traffic:
    """Counts of one connection."""

    messages_in: int = 0
    messages_out: int = 0
    errors: int = 0
    last_activity: float = 0.0
    rtt_s: float | None = None


@attrs.define(eq=False, repr=False)
class Connection:
    """One client of one user.

    Attributes:
        admitted_at: When it was let in (Unix seconds).
        thread_id: The current thread: where messages without ``thread_id`` go.
        reads: Whether it may read the stream; if not, positions pass without frames.
        older: Whether the client gets the older handshake (PROTOCOL §1).
        offered: The thread of that handshake.
        explicit: Whether it said ``disconnect`` or was signed out, so that no grace is wanted.
        quiet: Whether nothing but answers is said to it: an older client reads its handshake word by word.
        malformed: Malformed messages in a row.
        busy: Whether a command of it is being carried out right now.
    """

    connection_id: str
    identity: Identity
    protocol: str
    cursor: Cursor
    wire: Wire
    clock: Callable[[], float]
    admitted_at: float = 0.0
    older: bool = False
    offered: str | None = None
    reads: bool = True
    thread_id: str | None = None
    explicit: bool = False
    quiet: bool = False
    malformed: int = 0
    closing: bool = False
    busy: bool = False
    traffic: Traffic = attrs.field(factory=Traffic)
    inbox_in: trio.MemorySendChannel[tuple[Incoming, int]] = attrs.field(init=False)
    inbox: trio.MemoryReceiveChannel[tuple[Incoming, int]] = attrs.field(init=False)
    _inbox_bytes: int = 0
    _control: deque[bytes] = attrs.field(factory=deque)
    _control_bytes: int = 0
    _held: list[_Held] = attrs.field(factory=list)
    _room: trio.Event = attrs.field(factory=trio.Event)
    _lagging: bool = False
    _replaying: bool = False
    _setting: int = 0
    _unheard: bool = False
    _unread_from: int = attrs.field(init=False)
    _paced_at: int = attrs.field(init=False)

    def __repr__(self) -> str:
        return f"<Connection {self.connection_id} of {self.identity.user_id!r}>"

    def __attrs_post_init__(self) -> None:
        self._paced_at = self.cursor.stream.grown
        self._unread_from = self.cursor.seq
        self.inbox_in, self.inbox = trio.open_memory_channel[tuple[Incoming, int]](INBOX)

    def renew(self, identity: Identity) -> None:
        """Go on under a new identity of the same user; what it may do counts from now on."""
        self.identity = identity
        if self.reads and not identity.may("read"):
            self._stop_reading()
        elif identity.may("read") and not self.reads:
            self._read_again()
        self.reads = identity.may("read")
        self.wire.renewed()

    def _read_again(self) -> None:
        """Tell what was said meanwhile and not to this client; it may resume from before that."""
        upto = self.cursor.stream.visible
        self.jump()
        if upto > self._unread_from:
            self.tell(Lagging(skipped=upto - self._unread_from, from_seq=self._unread_from, to_seq=upto))

    def _stop_reading(self) -> None:
        """Pass over what is still to be said; a replay that was under way ends with what was handed out of it."""
        cursor = self.cursor
        if self._replaying:
            cut = ReplayCompleted(
                epoch=cursor.stream.epoch,
                from_seq=cursor.origin,
                to_seq=cursor.seq,
                count=cursor.sent,
                complete=False,
                reason="forbidden",
            )
            self.tell(cut)
        self._unread_from = cursor.seq
        self.jump()

    # Filling.

    def wake(self) -> None:
        """The stream has more (``history.stream.Reader``)."""
        if self.closing:
            return
        if self.cursor.stream.grown - self._paced_at > LAG_BYTES:
            self.too_slow()
        self.wire.wake()

    def too_slow(self) -> None:
        """Close a client that does not keep pace (``wire.stream.Source``); it goes on from its position."""
        self.shut(CloseCode.SLOW_CONSUMER, "too slow: more is said than is read")

    def tell(
        self,
        reply: Reply,
        incoming: Incoming | None = None,
        barrier: int = 0,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        """Queue a control frame; with *barrier* it follows the event of that seq. *told* is called when it goes."""
        if self.closing:
            return

        def make() -> bytes | None:
            told()
            return encode_reply(reply, self.clock(), incoming)

        if barrier > self.cursor.seq or (self.quiet and incoming is None):
            self.hold(barrier, make, incoming)
            return
        frame = make()
        if frame is not None:
            self._push(frame)
        self.wire.wake()

    def end_quiet(self) -> None:
        """Say from now on what there is, beginning with what was kept back."""
        if self.quiet:
            self.quiet = False
            self.wire.wake()

    def hold(self, barrier: int, make: Callable[[], bytes | None], answers: Incoming | None = None) -> None:
        """Queue a frame that is made when the cursor has passed *barrier*."""
        heapq.heappush(self._held, _Held(barrier, next(_count), make, answers))
        self.wire.wake()

    def give_up_waiting(self) -> list[Incoming]:
        """Answer ``UNAVAILABLE`` to each command whose event is not committed, and return these commands.

        They may still take effect; a repeat under the same id gets the true answer, when there is one.
        """
        visible = self.cursor.stream.visible
        waiting, self._held = sorted(self._held), []  # a sorted list is a heap
        given_up = []
        for held in waiting:
            if held.answers is not None and held.barrier > visible:
                given_up.append(held.answers)
                self.tell(NOT_KEPT, held.answers)
            else:
                self._held.append(held)
        self._make_room()
        return given_up

    def _push(self, frame: bytes) -> None:
        if self._unheard:
            return
        self._control.append(frame)
        self._control_bytes += len(frame)
        if self._control_bytes > CONTROL_MAX:
            self.shut(CloseCode.SLOW_CONSUMER, "too many answers were not read")

    @property
    def _crowded(self) -> bool:
        return self._control_bytes > CONTROL_HIGH or len(self._held) > HELD_HIGH

    async def wait_for_room(self) -> None:
        """Wait until both lanes are below their bounds: what a client does not read, it need not ask."""
        while self._crowded and not self.closing and not self._unheard:
            await self._room.wait()

    async def put(self, incoming: Incoming, size: int) -> None:
        """Put a command of *size* bytes into the inbox, and wait until more may be read from the client.

        Raises:
            trio.BrokenResourceError: The dispatcher has gone: the connection is closing.
        """
        self._inbox_bytes += size
        await self.inbox_in.send((incoming, size))
        while self._inbox_bytes > INBOX_BYTES and not self.closing:
            await self._room.wait()
        if self._crowded:
            await self.wait_for_room()

    async def next_command(self) -> Incoming | None:
        """Take the next command out of the inbox; None when the client will say no more, or is not heard any more."""
        try:
            incoming, size = await self.inbox.receive()
        except trio.EndOfChannel:
            return None
        full = self._inbox_bytes > INBOX_BYTES
        self._inbox_bytes -= size
        if full:
            self._make_room()
        if self._crowded:
            # What is not read need not be made: an answer may be a page of megabytes.
            await self.wait_for_room()
        if self.closing:  # while it was handed over; who closes us must know what is still carried out
            return None
        self.busy = True
        return incoming

    def end_turn(self) -> None:
        """Note that what ``next_command`` returned was carried out."""
        self.busy = False
        if self.closing:
            self._make_room()

    async def turn_over(self) -> None:
        """Wait until the command that is being carried out is; of one that is closing there is no other."""
        while self.busy:
            await self._room.wait()

    def hang_up(self) -> None:
        """The client reads no more; what it said before is still carried out, and nobody waits for it."""
        self._unheard = True
        self._control.clear()
        self._control_bytes = 0
        self._make_room()

    def shut(self, code: CloseCode, reason: str) -> None:
        """Say nothing more and begin to close; answers that wait for no event are still sent."""
        if self.closing:
            return
        self.closing = True
        self._held.clear()
        self._make_room()
        self.wire.close(code, reason)

    def shut_behind(self, code: CloseCode, reason: str) -> None:
        """Close when everything that is visible now was handed out."""

        def make() -> None:
            self.shut(code, reason)

        self.end_quiet()
        self.hold(self.cursor.stream.visible, make)

    # Draining, by the wire.

    @property
    def pending(self) -> bool:
        """Whether ``take`` has something, or would with a refill."""
        if self._control:
            return True
        return not (self.closing or self.quiet) and (self.cursor.pending or self._due())

    def take(self, room: int) -> list[bytes]:
        """Return the next frames, together about *room* bytes.

        Raises:
            Trimmed: ``await refill()`` first.
        """
        frames = self._take_control()
        room -= sum(map(len, frames))
        while room > 0 and not (self.closing or self.quiet):
            if self._due():
                frame = heapq.heappop(self._held).make()
                self._make_room()
                if frame is not None:
                    frames.append(frame)
                    room -= len(frame)
                continue
            if not self.cursor.pending or (frames and self.cursor.must_refill):
                break  # what is there goes out before the store is asked
            if not self.reads:
                self.cursor.move(self.cursor.stream.visible)
                continue
            before = self.cursor.seq
            taken = self.cursor.take(room, self._held[0].barrier if self._held else None)
            if self.cursor.seq == before:
                break
            frames += taken
            room -= sum(map(len, taken))
        if not self.cursor.pending:
            self._paced_at = self.cursor.stream.grown
        self.traffic.messages_out += len(frames)
        return frames

    def _due(self) -> bool:
        return bool(self._held) and self._held[0].barrier <= self.cursor.seq

    def _take_control(self) -> list[bytes]:
        if not self._control:
            return []
        frames = list(self._control)
        self._control.clear()
        self._control_bytes = 0
        self._make_room()
        return frames

    def _make_room(self) -> None:
        self._room.set()
        self._room = trio.Event()

    async def refill(self) -> None:
        """Read on from the store after ``Trimmed``; a live reader is told what it skips."""
        cursor, setting = self.cursor, self._setting
        began, sent = cursor.seq, cursor.sent
        try:
            await cursor.refill()
        except Lost:
            # Retention has overtaken this reader; nothing partial (PROTOCOL §5).
            self.jump()
            stream = cursor.stream
            self.tell(StreamReset(epoch=stream.epoch, seq=stream.visible, reason="trimmed"))
            return
        upto = cursor.refill_end
        if not upto or self._lagging or self._replaying or setting != self._setting:
            return
        self._lagging = True

        def end_of_lag() -> bytes | None:
            if setting != self._setting:
                return None
            self._lagging = False
            skipped = (upto - began) - (cursor.sent - sent)
            if skipped <= 0:
                return None
            return encode_reply(Lagging(skipped=skipped, from_seq=began, to_seq=upto), self.clock())

        self.hold(upto, end_of_lag)

    # Positions.

    def replay(self, seq: int) -> None:
        """Go on behind *seq*; ``replay_completed`` stands between what was and what will be."""
        setting = self._set(seq)
        self._replaying = True
        cursor = self.cursor
        upto = cursor.stream.visible

        def done() -> bytes | None:
            if setting != self._setting:
                return None
            self._replaying = False
            reply = ReplayCompleted(
                epoch=cursor.stream.epoch,
                from_seq=seq,
                to_seq=upto,
                count=cursor.sent,
                complete=True,
                reason=None,
            )
            return encode_reply(reply, self.clock())

        self.hold(upto, done)

    def jump(self) -> None:
        """Go on behind everything that is visible now."""
        self._set(self.cursor.stream.visible)
        self.wire.wake()

    def _set(self, seq: int) -> int:
        """Set the position; notices about what an older one meant are not given any more."""
        self._setting += 1
        self._replaying = self._lagging = False
        self._paced_at = self.cursor.stream.grown
        self.cursor.move(seq)
        return self._setting
