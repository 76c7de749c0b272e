"""The ordered log of one user, and the cursors that read it.

Theory. Every event gets the next ``seq`` when it is appended, and is encoded then, once. Three
numbers say what may be seen::

    trimmed < ... < first in memory <= ... <= visible <= last

``last`` was assigned; everything up to ``visible`` may be delivered. An entry becomes visible in
order, a durable one after its commit, and none behind the durable reservation: so after a crash the
next process goes on behind ``reserved`` and no number that anybody saw is ever used again.

Readers hold a position, not a queue (``history/cursor.py``). For those who come late the stream knows
every text that is being said right now: what was said in deltas is not stored, but must not be lost.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

import attrs

from netra_ws.errors import Trimmed
from netra_ws.protocol.codec import encode_event, frame_payload
from netra_ws.protocol.events import AgentCompleted, AgentMessage, AgentThinking, Event, RunEvent, Stamp
from netra_ws.protocol.replies import PartialMessage

from .stores.contract import PutEvent, PutMessage, PutStream, Write

#: Numbers are reserved in the store in blocks of this size, so that deltas need no write of their own.
RESERVE = 4096
#: More than this many uncommitted entries or bytes in one stream hold back the agent that writes them.
BACKLOG_ENTRIES = 1024
BACKLOG_BYTES = 4 * 1024 * 1024
#: So many seconds a clock may be set back without times of a stream going back.
SET_BACK_S = 86_400.0

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
    """A message or thought that is being said: what a late reader gets in place of its deltas.

    ``stored`` says that the last thing heard of it was a ``full``: then the store has all of it, whether
    that was its end or a snapshot on the way. ``first`` is the seq of the first delta behind that, and
    ``replaced_to`` the highest seq at which a ``full`` was promised to a late reader in their place.
    """

    event: AgentMessage | AgentThinking
    pieces: list[str]
    seq: int
    timestamp: float
    stored: bool = False
    first: int = 0
    replaced_to: int = 0

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


@attrs.define(repr=False)
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
        self.size += sum(len(row.row.content) for row in rows if isinstance(row, PutMessage))


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
        threads_removed: Threads that went because their user had too much.
    """

    events: Counter[str] = attrs.field(factory=Counter)
    merged: int = 0
    threads_removed: int = 0


@attrs.define(eq=False, repr=False)
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
        grown: Bytes that became visible since it is in memory.
        unmeasured: Bytes that were kept since somebody measured what the user has in the store; None at first.
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
    grown: int = 0
    unmeasured: int | None = None
    counts: StreamCounts = attrs.field(factory=lambda: StreamCounts())
    _requested: int = attrs.field(init=False)
    _first: int = attrs.field(init=False)
    _entries: list[Entry] = attrs.field(factory=list)
    _bytes: int = 0
    _hidden_bytes: int = 0
    _uncommitted: deque[int] = attrs.field(factory=deque)
    _readers: dict[Reader, None] = attrs.field(factory=dict)
    _texts: dict[TextKey, _OpenText] = attrs.field(factory=dict)
    _replaced: list[tuple[int, int]] = attrs.field(factory=list)
    _open_step: Step | None = None
    _told_at: float = 0.0

    def __repr__(self) -> str:
        return f"<Stream {self.key!r} {self.epoch}:{self.visible}/{self.last}>"

    def __attrs_post_init__(self) -> None:
        self.visible = self.last
        self._requested = self._reserved
        self._first = self.last + 1

    def now(self) -> float:
        """Return Unix seconds, by the clock that stamps the events; they do not go back when it is set back.

        Else what was used last would not stand first in a list. A clock that goes back further than
        ``SET_BACK_S`` was wrong before and is believed.
        """
        now = self._clock()
        if 0 < self._told_at - now <= SET_BACK_S:
            now = self._told_at + 1e-6
        self._told_at = now
        return now

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
        now = self.now()
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
            self.wake_readers()
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
        self.wake_readers()

    def _show(self, entry: Entry) -> None:
        self.visible = entry.seq
        self.grown += len(entry.frame)
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
        texts = self._texts
        full = event.phase == "full"
        known = texts.get(key)
        if full and known is not None and known.replaced_to:
            self._replaced.append((known.first, known.replaced_to))
        if full and isinstance(event, AgentThinking):
            texts.pop(key, None)  # a thought has no name: what comes next is another one
            return
        if known is None:
            if isinstance(event, AgentMessage):
                # A run says one message at a time (it may think meanwhile): what it said before is complete.
                for other in [other for other, text in texts.items() if other[0] == key[0] and text.stored]:
                    del texts[other]
            texts[key] = _OpenText(event, [piece], entry.seq, entry.timestamp, full, first=entry.seq)
            return
        if full:
            known.pieces, known.replaced_to = [piece], 0
        else:
            known.pieces.append(piece)
            if known.stored:
                known.first = entry.seq
        known.stored, known.seq, known.timestamp = full, entry.seq, entry.timestamp

    def wake_readers(self) -> None:
        """Let readers look again: there is more, or there will be no more."""
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
            # Behind the ring everybody reads from the store.
            self._replaced = [piece for piece in self._replaced if piece[1] >= self._first]

    @property
    def full(self) -> bool:
        """Whether so much is uncommitted that whoever can wait should."""
        return self.last - self.visible > BACKLOG_ENTRIES or self._hidden_bytes > BACKLOG_BYTES or self._sink.crowded

    async def wait_for_room(self) -> None:
        """Wait until the backlog of uncommitted entries is below its bound: the back-pressure of an agent."""
        while self.full:
            await self._sink.settle()

    async def wait_visible(self, seq: int) -> None:
        """Wait until the entry of *seq* is committed and may be delivered."""
        while self.visible < seq:
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
        """Return the messages of a thread that are still being said, with their text up to ``visible``.

        Not those of sub-runs, which are no messages of their thread.
        """
        return [
            PartialMessage(message_id=event.message_id, run_id=event.run_id, content=open_text.text())
            for open_text in self._texts.values()
            if isinstance(event := open_text.event, AgentMessage)
            and event.thread_id == thread_id
            and event.parent_run_id is None
            and not open_text.stored
        ]

    def interrupted(self, seq: int) -> bool:
        """Whether a reader at *seq* may have been promised a ``full`` that it did not get.

        It came late, its deltas up to here were passed over, and it left before the ``full`` that
        stands for them. Reading on with the deltas behind *seq* would tear a hole into a text, also into one
        that has ended since: its last ``full`` may be far behind.
        """
        open_ = ((text.first, text.replaced_to) for text in self._texts.values() if not text.stored)
        return any(first <= seq < upto for first, upto in (*open_, *self._replaced))

    def open_texts(self) -> list[tuple[int, bytes]]:
        """Return one ``full`` frame per open text, at the seq of its last visible delta, ascending."""
        frames = []
        for open_text in self._texts.values():
            if open_text.stored:
                continue
            open_text.replaced_to = open_text.seq
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
