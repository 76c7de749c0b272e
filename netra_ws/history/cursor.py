"""How far one connection has read a stream: live from memory, else from the store, with no seam between.

A cursor reads the memory ring while it can. One that fell off the ring (``Trimmed``) goes on from the
store: all durable events up to what is visible at that moment, and for each text that is still being
said one ``full`` in place of the deltas that were not kept. Then it reads the ring again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import attrs

from netra_ws.errors import Lost, Trimmed
from netra_ws.protocol.codec import text_frame

from .stores.contract import EventRow, Store
from .stream import Stream

#: A reader that is so many entries behind gets neighbouring deltas of one text as one frame.
MERGE_BEHIND = 64
#: Rows and bytes of one read from the store while catching up; what a stalled reader holds of it.
CHUNK_ROWS = 256
CHUNK_BYTES = 256 * 1024


@attrs.define(eq=False, repr=False)
class Cursor:
    """How far one connection has read one stream.

    Attributes:
        seq: Everything up to here was handed out.
        origin: Where the position was last set.
        sent: Frames handed out since then.
    """

    stream: Stream
    store: Store
    seq: int
    origin: int = attrs.field(init=False)
    sent: int = 0
    _ahead: deque[tuple[int, bytes]] = attrs.field(factory=deque)
    _upto: int = 0
    _fulls: deque[tuple[int, bytes]] = attrs.field(factory=deque)
    _read: int = 0
    _interrupted: bool = False

    def __repr__(self) -> str:
        return f"<Cursor at {self.seq} of {self.stream!r}>"

    def __attrs_post_init__(self) -> None:
        self.move(self.seq)

    def move(self, seq: int) -> None:
        """Set the position; what was read ahead is forgotten."""
        self.seq = self.origin = seq
        self._interrupted = self.stream.interrupted(seq)
        self.sent = self._upto = self._read = 0
        self._ahead.clear()
        self._fulls.clear()

    @property
    def pending(self) -> bool:
        """Whether there is anything to hand out."""
        return self.seq < self.stream.visible

    @property
    def must_refill(self) -> bool:
        """Whether ``take`` would raise ``Trimmed``."""
        if self._ahead:
            return False
        if self._upto:
            return self._read < self._upto
        return self._interrupted or self.seq + 1 < self.stream.first

    def take(self, room: int, upto: int | None = None) -> list[bytes]:
        """Return the next frames, together about *room* bytes: at least one when any is pending.

        Args:
            upto: Stop behind this seq, so that something can be said right there.

        Raises:
            Trimmed: The position fell off the ring; ``await refill()`` and take again.
        """
        end = self.stream.visible if upto is None else min(upto, self.stream.visible)
        if self._upto:
            return self._take_ahead(room, end)
        if self._interrupted:
            raise Trimmed("an earlier way through the store was left in the middle of a text")
        frames: list[bytes] = []
        entries = self.stream.entries(self.seq, end)
        merge = len(entries) > MERGE_BEHIND
        position = 0
        while position < len(entries) and room > 0:
            if merge:
                frame, count = self.stream.merged(entries, position)
            else:
                frame, count = entries[position].frame, 1
            frames.append(frame)
            room -= len(frame)
            position += count
            self.seq = entries[position - 1].seq
        self.sent += len(frames)
        return frames

    def _take_ahead(self, room: int, end: int) -> list[bytes]:
        frames: list[bytes] = []
        while self._ahead and room > 0 and self._ahead[0][0] <= end:
            self.seq, frame = self._ahead.popleft()
            frames.append(frame)
            room -= len(frame)
        self.sent += len(frames)
        # Numbers between what was read are deltas that were not kept: pass over them.
        known = self._ahead[0][0] - 1 if self._ahead else self._read
        self.seq = max(self.seq, min(known, end))
        if self.seq >= self._upto:
            self._upto = 0
        elif not frames and not self._ahead and self._read < self._upto:
            raise Trimmed("more is in the store")
        return frames

    @property
    def refill_end(self) -> int:
        """Up to which seq the store is being read; 0 when it is not."""
        return self._upto

    async def refill(self) -> None:
        """Read the next chunk from the store.

        *Cancellation:* nothing is lost; the position moves only when frames are taken.

        Raises:
            StoreError: The store did not answer; call again later.
            Lost: The store has removed what comes next; nothing was handed out that stands behind it.
        """
        if self._ahead:
            return
        if not self._upto:
            # Decided in one go: what is visible now comes from the store, and texts that are
            # still open at this moment as one full each, at the number of their last delta.
            self._upto = self.stream.visible
            self._read = self.seq
            self._interrupted = False
            self._fulls = deque((seq, frame) for seq, frame in self.stream.open_texts() if seq > self.seq)
        after, upto = self._read, self._upto
        rows = await self.store.events(self.stream.key, self.stream.epoch, after, upto, CHUNK_ROWS, CHUNK_BYTES)
        if (after, upto) != (self._read, self._upto):
            return  # the position was moved meanwhile
        # Only now: a stream is told of its mark before the events go, so what this read has missed is known.
        if after < self.stream.trimmed:
            raise Lost("the store has removed events behind this position")
        cut = len(rows) == CHUNK_ROWS or sum(len(row.payload) for row in rows) >= CHUNK_BYTES
        self._read = rows[-1].seq if cut else upto
        self._ahead.extend(self._with_fulls(rows, self._read))

    def _with_fulls(self, rows: Sequence[EventRow], upto: int) -> Iterator[tuple[int, bytes]]:
        for row in rows:
            while self._fulls and self._fulls[0][0] < row.seq:
                yield self._fulls.popleft()
            yield row.seq, text_frame(row.payload)
        while self._fulls and self._fulls[0][0] <= upto:
            yield self._fulls.popleft()
