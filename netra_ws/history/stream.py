"""The ordered log of one user, and the cursors that read it.

Theory. Every event gets the next ``seq`` when it is appended, and is encoded then, once. Three
numbers say what may be seen::

    trimmed < ... < first in memory <= ... <= visible <= last

``last`` was assigned; everything up to ``visible`` may be delivered. An entry becomes visible in
order, a durable one after its commit, and none behind the durable reservation: so after a crash the
next process goes on behind ``reserved`` and no number that anybody saw is ever used again.

Readers hold a position, not a queue. A cursor reads the memory ring while it can. One that fell off
the ring (``Trimmed``) goes on from the store: all durable events up to what is visible now, and for
each text that is still being said one ``full`` in place of the deltas that were not kept. Live and
replay are the same reader on the same log, so there is no seam between them.
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Literal, Protocol

import attrs
import trio

from netra_ws.errors import Trimmed
from netra_ws.history.stores.contract import EventRow, PutEvent, PutStream, Store, StreamRow, Write
from netra_ws.protocol.codec import encode_event, frame_payload, text_frame
from netra_ws.protocol.events import AgentCompleted, AgentMessage, AgentThinking, Event, RunEvent, Stamp
from netra_ws.protocol.replies import PartialMessage

#: Numbers are reserved in the store in blocks of this size, so that deltas need no write of their own.
RESERVE = 4096
#: More than this many uncommitted entries or bytes in one stream hold back the agent that writes them.
BACKLOG_ENTRIES = 1024
BACKLOG_BYTES = 4 * 1024 * 1024
#: A reader that is so many entries behind gets neighbouring deltas of one text as one frame.
MERGE_BEHIND = 64
#: Rows of one read from the store while catching up.
CHUNK_ROWS = 256

ResetReason = Literal["epoch_changed", "trimmed", "ahead"]
TextKey = tuple[str, str]


@attrs.define(slots=True, weakref_slot=False)
class Entry:
    """A numbered event as a ready frame.

    ``event`` is kept where it is needed again: of deltas, which may be merged for a slow reader, and
    until it is visible of what ends a text.
    """

    seq: int
    frame: bytes
    timestamp: float
    event: Event | None


@attrs.define(slots=True)
class _OpenText:
    """A message or thought that is still being said: what a late reader gets in place of its deltas."""

    event: AgentMessage | AgentThinking
    pieces: list[str]
    seq: int
    timestamp: float

    def text(self) -> str:
        if len(self.pieces) > 1:
            self.pieces[:] = ["".join(self.pieces)]
        return self.pieces[0]


class Reader(Protocol):
    """Who wants to know that a stream has more to read."""

    def wake(self) -> None:
        """Note it; called often, must not raise and must not read right now."""
        ...


class StepSink(Protocol):
    """Where steps go to be committed; the recorder."""

    def submit(self, step: Step) -> None: ...

    @property
    def crowded(self) -> bool: ...

    async def settle(self) -> None: ...


@attrs.define
class Step:
    """Events and rows that are committed in one transaction."""

    stream: Stream
    writes: list[Write] = attrs.field(factory=list)
    last_seq: int = 0
    reserved: int = 0
    size: int = 0

    def append(self, event: Event) -> Entry:
        """Number and encode *event*; it is part of the stream from now on.

        Raises:
            TypeError: The event carries a value that JSON cannot say; nothing was appended.
        """
        return self.stream._append(event, self)

    def write(self, *rows: Write) -> None:
        """Have *rows* committed together with the events of this step."""
        self.writes.extend(rows)


@attrs.frozen(kw_only=True)
class StreamStatistics:
    """Numbers of one stream at one moment."""

    entries: int
    bytes: int
    last: int
    visible: int
    readers: int


@attrs.define
class StreamCounts:
    """Counts of all streams of a process since the start.

    Attributes:
        events: Events appended, by type.
        merged: Deltas that went out inside another one's frame.
    """

    events: Counter[str] = attrs.field(factory=Counter)
    merged: int = 0


@attrs.define(eq=False)
class Stream:
    """The log of one user.

    Attributes:
        key: How the store calls it.
        user_id: Whose it is; stamped on every event.
        epoch: Together with a seq it makes a position.
        last: The highest seq assigned.
        visible: The highest seq that may be delivered.
        trimmed: Durable events up to here may be gone from the store.
        pins: How many contexts hold this stream in memory.
    """

    key: str
    user_id: str
    epoch: str
    last: int
    trimmed: int
    _reserved: int
    _sink: StepSink
    _clock: Callable[[], float]
    _ring_events: int
    _ring_bytes: int
    visible: int = attrs.field(init=False)
    pins: int = 0
    counts: StreamCounts = attrs.field(factory=lambda: StreamCounts())
    _requested: int = attrs.field(init=False)
    _first: int = attrs.field(init=False)
    _entries: list[Entry] = attrs.field(factory=list)
    _bytes: int = 0
    _hidden_bytes: int = 0
    _uncommitted: deque[int] = attrs.field(factory=deque)
    _readers: dict[Reader, None] = attrs.field(factory=dict)
    _texts: dict[TextKey, _OpenText] = attrs.field(factory=dict)
    _open_step: Step | None = None

    def __attrs_post_init__(self) -> None:
        self.visible = self.last
        self._requested = self._reserved
        self._first = self.last + 1

    def now(self) -> float:
        """Return Unix seconds, by the clock that stamps the events."""
        return self._clock()

    # Writing.

    @contextmanager
    def step(self) -> Iterator[Step]:
        """Collect events and rows for one transaction; submitted when the block is left, also by an error.

        What is appended inside the block by other ways joins it: events are committed in their order.
        """
        if self._open_step is not None:
            yield self._open_step
            return
        step = self._open_step = Step(self)
        try:
            yield step
        finally:
            self._open_step = None
            if step.writes:
                self._sink.submit(step)

    def append(self, event: Event, *rows: Write) -> Entry:
        """Append one event and commit *rows* with it; never waits."""
        if not event.durable and not rows:
            step = Step(self)
            entry = self._append(event, step)
            if step.writes:
                self._sink.submit(step)
            return entry
        with self.step() as step:
            entry = step.append(event)
            step.write(*rows)
        return entry

    def _append(self, event: Event, step: Step) -> Entry:
        seq = self.last + 1
        now = self._clock()
        frame = encode_event(event, Stamp(seq=seq, timestamp=now, event_id=f"{self.epoch}.{seq}", user_id=self.user_id))
        self.last = seq
        self.counts.events[event.type] += 1
        durable = event.durable
        entry = Entry(seq, frame, now, event)
        self._entries.append(entry)
        self._bytes += len(frame)
        self._hidden_bytes += len(frame)
        if durable:
            self._uncommitted.append(seq)
            step.last_seq = seq
            step.size += len(frame)
            step.writes.append(self._row(event, seq, now, frame))
        if seq + RESERVE // 2 > self._requested:
            self._requested = step.reserved = seq + RESERVE
            step.writes.append(PutStream(key=self.key, epoch=self.epoch, reserved=self._requested))
        if not durable and not self._uncommitted and seq <= self._reserved and self.visible == seq - 1:
            self._show(entry)
            self._wake_readers()
        if len(self._entries) > self._ring_events + 256 or self._bytes > self._ring_bytes * 1.25:
            self._trim_ring()
        return entry

    def _row(self, event: Event, seq: int, now: float, frame: bytes) -> PutEvent:
        return PutEvent(
            key=self.key,
            epoch=self.epoch,
            seq=seq,
            type=event.type,
            thread_id=getattr(event, "thread_id", None),
            run_id=getattr(event, "run_id", None),
            created_at=now,
            payload=frame_payload(frame),
        )

    def committed(self, last_seq: int, reserved: int) -> None:
        """Note that durable events up to *last_seq* and a reservation are in the store (the recorder says so)."""
        self._reserved = max(self._reserved, reserved)
        while self._uncommitted and self._uncommitted[0] <= last_seq:
            self._uncommitted.popleft()
        end = self._uncommitted[0] - 1 if self._uncommitted else self.last
        end = min(end, self._reserved)
        if end <= self.visible:
            return
        offset = self.visible + 1 - self._first
        for entry in self._entries[offset : end + 1 - self._first]:
            self._show(entry)
        self._trim_ring()
        self._wake_readers()

    def _show(self, entry: Entry) -> None:
        self.visible = entry.seq
        self._hidden_bytes -= len(entry.frame)
        event = entry.event
        if isinstance(event, AgentMessage):
            self._say((event.run_id, event.message_id), event, event.content, entry)
        elif isinstance(event, AgentThinking):
            self._say((event.run_id, ""), event, event.reasoning, entry)
        elif isinstance(event, AgentCompleted):
            for key in [key for key in self._texts if key[0] == event.run_id]:
                del self._texts[key]
        if event is not None and event.durable:
            entry.event = None

    def _say(self, key: TextKey, event: AgentMessage | AgentThinking, piece: str, entry: Entry) -> None:
        if event.phase == "full":
            self._texts.pop(key, None)
            return
        open_text = self._texts.get(key)
        if open_text is None:
            self._texts[key] = _OpenText(event, [piece], entry.seq, entry.timestamp)
            return
        open_text.pieces.append(piece)
        open_text.seq = entry.seq
        open_text.timestamp = entry.timestamp

    def _wake_readers(self) -> None:
        for reader in self._readers:
            reader.wake()

    def _trim_ring(self) -> None:
        """Drop the oldest visible entries beyond the ring's bounds; hidden ones stay until they are visible."""
        entries = self._entries
        droppable = min(len(entries), self.visible + 1 - self._first)
        drop = 0
        size = self._bytes
        while drop < droppable and (len(entries) - drop > self._ring_events or size > self._ring_bytes):
            size -= len(entries[drop].frame)
            drop += 1
        if drop:
            del entries[:drop]
            self._first += drop
            self._bytes = size

    @property
    def full(self) -> bool:
        """Whether so much is uncommitted that whoever can wait should."""
        return self.last - self.visible > BACKLOG_ENTRIES or self._hidden_bytes > BACKLOG_BYTES or self._sink.crowded

    async def wait_for_room(self) -> None:
        """Wait until the backlog of uncommitted entries is below its bound: the back-pressure of an agent."""
        while self.full:
            await self._sink.settle()

    # Reading.

    def attach(self, reader: Reader) -> None:
        """Wake *reader* whenever more becomes visible, until ``detach``."""
        self._readers[reader] = None

    def detach(self, reader: Reader) -> None:
        """Stop waking *reader*; may be called twice."""
        self._readers.pop(reader, None)

    def judge(self, epoch: str, seq: int) -> ResetReason | None:
        """Tell why a position cannot be continued, or None when it can."""
        if epoch != self.epoch:
            return "epoch_changed"
        if seq > self.last:
            return "ahead"
        if seq < self.trimmed:
            return "trimmed"
        return None

    @property
    def first(self) -> int:
        """The lowest seq that can be read from memory."""
        return self._first

    def entries(self, after: int, upto: int) -> Sequence[Entry]:
        """Return the visible entries behind *after* up to *upto*.

        Raises:
            Trimmed: Some of them are no longer in memory.
        """
        if after + 1 < self._first:
            raise Trimmed(f"{after + 1} is before {self._first}, the first in memory")
        start = after + 1 - self._first
        return self._entries[start : max(start, min(upto, self.visible) + 1 - self._first)]

    def partial(self, thread_id: str) -> list[PartialMessage]:
        """Return the messages of a thread that are still being said, with their text up to ``visible``."""
        return [
            PartialMessage(message_id=event.message_id, run_id=event.run_id, content=open_text.text())
            for open_text in self._texts.values()
            if isinstance(event := open_text.event, AgentMessage) and event.thread_id == thread_id
        ]

    def open_texts(self) -> list[tuple[int, bytes]]:
        """Return one ``full`` frame per open text, at the seq of its last visible delta, ascending."""
        frames = []
        for open_text in self._texts.values():
            event = open_text.event
            full: RunEvent
            if isinstance(event, AgentMessage):
                full = attrs.evolve(event, phase="full", content=open_text.text())
            else:
                full = attrs.evolve(event, phase="full", reasoning=open_text.text())
            frames.append((open_text.seq, self._encode_again(full, open_text.seq, open_text.timestamp)))
        return sorted(frames)

    def merged(self, entries: Sequence[Entry], position: int) -> tuple[bytes, int]:
        """Return the frame at *position*, with all deltas of the same text that follow it directly.

        Returns:
            The frame, and how many entries it stands for.
        """
        first = entries[position]
        event = first.event
        if not isinstance(event, AgentMessage | AgentThinking):
            return first.frame, 1
        pieces: list[str] = []
        while position + len(pieces) < len(entries):
            piece = _same_text(event, entries[position + len(pieces)].event)
            if piece is None:
                break
            pieces.append(piece)
        if len(pieces) == 1:
            return first.frame, 1
        last = entries[position + len(pieces) - 1]
        text = "".join(pieces)
        joined: RunEvent
        if isinstance(event, AgentMessage):
            joined = attrs.evolve(event, content=text)
        else:
            joined = attrs.evolve(event, reasoning=text)
        self.counts.merged += len(pieces) - 1
        return self._encode_again(joined, last.seq, last.timestamp), len(pieces)

    def _encode_again(self, event: RunEvent, seq: int, timestamp: float) -> bytes:
        return encode_event(
            event, Stamp(seq=seq, timestamp=timestamp, event_id=f"{self.epoch}.{seq}", user_id=self.user_id)
        )

    def statistics(self) -> StreamStatistics:
        """Return the numbers of this moment."""
        return StreamStatistics(
            entries=len(self._entries),
            bytes=self._bytes,
            last=self.last,
            visible=self.visible,
            readers=len(self._readers),
        )

    @property
    def idle(self) -> bool:
        """Whether nobody holds or reads it and nothing waits for a commit."""
        return not self.pins and not self._readers and not self._uncommitted and self.visible == self.last


def _same_text(first: AgentMessage | AgentThinking, other: Event | None) -> str | None:
    """Return the piece of *other* when it continues the text of *first*."""
    if isinstance(first, AgentMessage):
        if isinstance(other, AgentMessage) and other.message_id == first.message_id:
            return other.content
    elif isinstance(other, AgentThinking) and other.run_id == first.run_id:
        return other.reasoning
    return None


@attrs.define(eq=False)
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

    def __attrs_post_init__(self) -> None:
        self.origin = self.seq

    def move(self, seq: int) -> None:
        """Set the position; what was read ahead is forgotten."""
        self.seq = self.origin = seq
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
        return self._read < self._upto or (not self._upto and self.seq + 1 < self.stream.first)

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
        """
        if self._ahead:
            return
        if not self._upto:
            # Decided in one go: what is visible now comes from the store, and texts that are
            # still open at this moment as one full each, at the number of their last delta.
            self._upto = self.stream.visible
            self._read = self.seq
            self._fulls = deque((seq, frame) for seq, frame in self.stream.open_texts() if seq > self.seq)
        after, upto = self._read, self._upto
        rows = await self.store.events(self.stream.key, self.stream.epoch, after, upto, CHUNK_ROWS)
        if (after, upto) != (self._read, self._upto):
            return  # the position was moved meanwhile
        self._read = rows[-1].seq if len(rows) == CHUNK_ROWS else upto
        self._ahead.extend(self._with_fulls(rows, self._read))

    def _with_fulls(self, rows: Sequence[EventRow], upto: int) -> Iterator[tuple[int, bytes]]:
        for row in rows:
            while self._fulls and self._fulls[0][0] < row.seq:
                yield self._fulls.popleft()
            yield row.seq, text_frame(row.payload)
        while self._fulls and self._fulls[0][0] <= upto:
            yield self._fulls.popleft()


@attrs.define
class Streams:
    """All streams in memory: those in use, and the most recently used idle ones.

    A stream outlives its context, so that a user who comes back replays from memory. At most
    *max_idle* idle streams are kept; the least recently used one is forgotten (the store has it).
    """

    store: Store
    sink: StepSink
    clock: Callable[[], float]
    ring_events: int = 2000
    ring_bytes: int = 4 * 1024 * 1024
    max_idle: int = 1000
    counts: StreamCounts = attrs.field(factory=StreamCounts)
    _streams: dict[str, Stream] = attrs.field(factory=dict)
    _unpinned: dict[str, Stream] = attrs.field(factory=dict)  # the last released stand last
    _opening: dict[str, trio.Event] = attrs.field(factory=dict)

    async def open(self, user_id: str) -> Stream:
        """Return the stream of a user, pinned until ``release``.

        Raises:
            StoreError: The store did not answer.
        """
        key = f"user:{user_id}"
        while key in self._opening:
            await self._opening[key].wait()
        stream = self._streams.get(key)
        if stream is None:
            self._opening[key] = trio.Event()
            try:
                stream = self._streams[key] = self._restored(key, user_id, await self.store.stream(key))
            finally:
                self._opening.pop(key).set()
        return self._pin(stream)

    def _restored(self, key: str, user_id: str, row: StreamRow | None) -> Stream:
        if row is None:
            row = StreamRow(key=key, epoch=secrets.token_hex(6), reserved=0)
        return Stream(
            key=key,
            user_id=user_id,
            epoch=row.epoch,
            last=row.reserved,
            trimmed=row.trimmed,
            reserved=row.reserved,
            sink=self.sink,
            clock=self.clock,
            ring_events=self.ring_events,
            ring_bytes=self.ring_bytes,
            counts=self.counts,
        )

    def pinned(self, user_id: str) -> Stream:
        """Pin a stream once more that is in memory already.

        Raises:
            KeyError: It is not; ``open`` it first.
        """
        return self._pin(self._streams[f"user:{user_id}"])

    def _pin(self, stream: Stream) -> Stream:
        self._unpinned.pop(stream.key, None)
        stream.pins += 1
        return stream

    def release(self, stream: Stream) -> None:
        """Give a pin back; idle streams beyond the bound are forgotten."""
        stream.pins -= 1
        if not stream.pins:
            self._unpinned[stream.key] = stream
        self.evict()

    def evict(self) -> None:
        """Forget the least recently used idle streams beyond ``max_idle``."""
        excess = len(self._unpinned) - self.max_idle
        if excess <= 0:
            return
        for key in list(islice((key for key, stream in self._unpinned.items() if stream.idle), excess)):
            del self._unpinned[key], self._streams[key]

    def trimmed(self, ends: dict[str, int]) -> None:
        """Tell streams in memory up to where the store has removed their events."""
        for key, seq in ends.items():
            if key in self._streams:
                self._streams[key].trimmed = seq

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._streams.values()))

    def __len__(self) -> int:
        return len(self._streams)
