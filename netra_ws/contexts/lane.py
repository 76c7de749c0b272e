"""How one connection reads one stream: its own user's, or a job's.

A lane knows how far it has read (a cursor), and what has to be said at a certain place of the stream: one
frame with a barrier is handed out right after the cursor has passed that seq, so the ack of a start can
never overtake its ``user_message``.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Protocol

import attrs

from netra_ws.errors import Lost
from netra_ws.history.cursor import Cursor
from netra_ws.protocol.codec import Incoming, encode_reply
from netra_ws.protocol.replies import Lagging, ReplayCompleted, Reply, StreamReset

#: Bytes by which the log may grow while a reader is behind without a break: the byte budget of a slow client. It
#: costs the server nothing, but who falls back so far is better off with a new connection and its position.
LAG_BYTES = 32 * 1024 * 1024

_count = itertools.count()


class Desk(Protocol):
    """What a lane needs of its connection."""

    closing: bool
    clock: Callable[[], float]

    def ring(self, lane: Lane) -> None:
        """Note that the lane may have something to hand out."""
        ...

    def tell(self, reply: Reply) -> None:
        """Queue a control frame."""
        ...

    def too_slow(self) -> None:
        """Close a client that does not keep pace."""
        ...

    def make_room(self) -> None:
        """Let go on who waits for answers to be taken."""
        ...


@attrs.frozen(order=True)
class Held:
    """A frame that waits for the cursor; ``answers`` is the command that it is the answer to."""

    barrier: int
    number: int
    make: Callable[[], bytes | None] = attrs.field(order=False)
    answers: Incoming | None = attrs.field(order=False, default=None)


@attrs.define(eq=False, repr=False)
class Lane:
    """One stream's way to one client.

    Attributes:
        job_id: The job whose stream it is; None for the user's own.
        reads: Whether the client may read it; if not, positions pass without frames.
        held: What waits for the cursor, as a heap.
    """

    cursor: Cursor
    desk: Desk
    job_id: str | None = None
    reads: bool = True
    held: list[Held] = attrs.field(factory=list)
    _lagging: bool = False
    _replaying: bool = False
    _setting: int = 0
    _unread_from: int = attrs.field(init=False)
    _paced_at: int = attrs.field(init=False)

    def __repr__(self) -> str:
        return f"<Lane {self.cursor!r}>"

    def __attrs_post_init__(self) -> None:
        self._paced_at = self.cursor.stream.grown
        self._unread_from = self.cursor.seq

    def wake(self) -> None:
        """The stream has more (``history.stream.Reader``)."""
        if self.desk.closing:
            return
        if self.cursor.stream.grown - self._paced_at > LAG_BYTES:
            self.desk.too_slow()
        self.desk.ring(self)

    def hold(self, barrier: int, make: Callable[[], bytes | None], answers: Incoming | None = None) -> None:
        """Queue a frame that is made when the cursor has passed *barrier*."""
        heapq.heappush(self.held, Held(barrier, next(_count), make, answers))
        self.desk.ring(self)

    # Handing out.

    @property
    def pending(self) -> bool:
        """Whether ``take`` has something, or would with a refill."""
        return self.cursor.pending or self.due

    @property
    def due(self) -> bool:
        """Whether the cursor has passed what a held frame waits for."""
        return bool(self.held) and self.held[0].barrier <= self.cursor.seq

    def take(self, room: int, *, first: bool) -> list[bytes]:
        """Return the next frames, together about *room* bytes.

        Args:
            first: Whether the client gets nothing before them: what is there goes out before the store is asked.

        Raises:
            Trimmed: ``await refill()`` first.
        """
        frames: list[bytes] = []
        cursor = self.cursor
        while room > 0 and not self.desk.closing:
            if self.due:
                frame = heapq.heappop(self.held).make()
                self.desk.make_room()
                if frame is not None:
                    frames.append(frame)
                    room -= len(frame)
                continue
            if not cursor.pending or ((frames or not first) and cursor.must_refill):
                break
            if not self.reads:
                cursor.move(cursor.stream.visible)
                continue
            before = cursor.seq
            taken = cursor.take(room, self.held[0].barrier if self.held else None)
            if cursor.seq == before:
                break
            frames += taken
            room -= sum(map(len, taken))
        if not cursor.pending:
            self._paced_at = cursor.stream.grown
        return frames

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
            self.desk.tell(StreamReset(epoch=stream.epoch, seq=stream.visible, reason="trimmed", job_id=self.job_id))
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
            lag = Lagging(skipped=skipped, from_seq=began, to_seq=upto, job_id=self.job_id)
            return encode_reply(lag, self.desk.clock())

        self.hold(upto, end_of_lag)

    # Positions.

    def go_on_behind(self, epoch: str, seq: int) -> bool:
        """Go on behind a client's position, or tell it that nothing can be continued; return whether it could."""
        stream = self.cursor.stream
        reason = stream.judge(epoch, seq)
        if reason is None:
            self.replay(seq)
            return True
        self.jump()
        self.desk.tell(StreamReset(epoch=stream.epoch, seq=stream.visible, reason=reason, job_id=self.job_id))
        return False

    def replay(self, seq: int) -> None:
        """Go on behind *seq*; ``replay_completed`` stands between what was and what will be."""
        setting = self._set(seq)
        self._replaying = True
        upto = self.cursor.stream.visible

        def done() -> bytes | None:
            if setting != self._setting:
                return None
            self._replaying = False
            return encode_reply(self._replayed(upto, complete=True), self.desk.clock())

        self.hold(upto, done)

    def _replayed(self, upto: int, *, complete: bool) -> ReplayCompleted:
        cursor = self.cursor
        return ReplayCompleted(
            epoch=cursor.stream.epoch,
            from_seq=cursor.origin,
            to_seq=upto,
            count=cursor.sent,
            complete=complete,
            reason=None if complete else "forbidden",
            job_id=self.job_id,
        )

    def jump(self) -> None:
        """Go on behind everything that is visible now."""
        self._set(self.cursor.stream.visible)
        self.desk.ring(self)

    def _set(self, seq: int) -> int:
        """Set the position; notices about what an older one meant are not given any more."""
        self._setting += 1
        self._replaying = self._lagging = False
        self._paced_at = self.cursor.stream.grown
        self.cursor.move(seq)
        return self._setting

    def allow(self, reads: bool) -> None:
        """Let the client read from now on, or no more."""
        if self.reads and not reads:
            self._stop_reading()
        elif reads and not self.reads:
            self._read_again()
        self.reads = reads

    def _read_again(self) -> None:
        """Tell what was said meanwhile and not to this client; it may resume from before that."""
        upto = self.cursor.stream.visible
        self.jump()
        if upto > self._unread_from:
            self.desk.tell(Lagging(skipped=upto - self._unread_from, from_seq=self._unread_from, to_seq=upto))

    def _stop_reading(self) -> None:
        """Pass over what is still to be said; a replay that was under way ends with what was handed out of it."""
        cursor = self.cursor
        if self._replaying:
            self.desk.tell(self._replayed(cursor.seq, complete=False))
        self._unread_from = cursor.seq
        self.jump()
