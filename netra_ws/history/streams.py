"""All streams in memory: those in use, and the most recently used idle ones."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import attrs
import trio

from .stores.contract import Store, StreamRow
from .stream import StepSink, Stream, StreamCounts


@attrs.define
class _Opening:
    """A stream whose row is being read; what it is told meanwhile may not be in the row."""

    done: trio.Event = attrs.field(factory=trio.Event)
    trimmed: int = 0


@attrs.define(repr=False)
class Streams:
    """All streams in memory: those in use, and the most recently used idle ones.

    A stream outlives its context, so that a user who comes back replays from memory. Idle streams
    beyond *max_idle*, or beyond *max_idle_bytes* together, are forgotten, the least recently used ones
    first; the store has them.
    """

    store: Store
    sink: StepSink
    clock: Callable[[], float]
    ring_events: int = 2000
    ring_bytes: int = 4 * 1024 * 1024
    max_idle: int = 1000
    max_idle_bytes: int = 64 * 1024 * 1024
    counts: StreamCounts = attrs.field(factory=StreamCounts)
    _streams: dict[str, Stream] = attrs.field(factory=dict)
    _unpinned: dict[str, int] = attrs.field(factory=dict)  # key → bytes; the last released stand last
    _unpinned_bytes: int = 0
    _opening: dict[str, _Opening] = attrs.field(factory=dict)

    def __repr__(self) -> str:
        return f"<Streams {len(self)} in memory>"

    async def open(self, user_id: str) -> Stream:
        """Return the stream of a user, pinned until ``release``.

        Raises:
            StoreError: The store did not answer.
        """
        return await self.open_key(f"user:{user_id}", user_id)

    async def open_key(self, key: str, user_id: str) -> Stream:
        """Return the stream of a key, pinned until ``release``; a new one is stored with its first event.

        Args:
            user_id: Whose it is.

        Raises:
            StoreError: The store did not answer.
        """
        while key in self._opening:
            await self._opening[key].done.wait()
        stream = self._streams.get(key)
        if stream is None:
            opening = self._opening[key] = _Opening()
            try:
                stream = self._restored(key, user_id, await self.store.stream(key))
                stream.trimmed = max(stream.trimmed, opening.trimmed)
                self._streams[key] = stream
            finally:
                del self._opening[key]
                opening.done.set()
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
        self._unpinned_bytes -= self._unpinned.pop(stream.key, 0)
        stream.pins += 1
        return stream

    def release(self, stream: Stream) -> None:
        """Give a pin back; idle streams beyond the bound are forgotten."""
        stream.pins -= 1
        if not stream.pins:
            size = self._unpinned[stream.key] = stream.statistics().bytes
            self._unpinned_bytes += size
        self.evict()

    def evict(self) -> None:
        """Forget the least recently used idle streams beyond the bounds."""
        for key in list(islice(self._unpinned, max(1, len(self._unpinned) - self.max_idle))):
            if len(self._unpinned) <= self.max_idle and self._unpinned_bytes <= self.max_idle_bytes:
                return
            if self._streams[key].idle:  # else its last events are on their way into the store
                self._unpinned_bytes -= self._unpinned.pop(key)
                del self._streams[key]

    def trimmed(self, ends: Mapping[str, int]) -> None:
        """Tell streams in memory, and those being opened, up to where the store may remove their events."""
        for key, seq in ends.items():
            told = self._streams.get(key) or self._opening.get(key)
            if told is not None:
                told.trimmed = max(told.trimmed, seq)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._streams.values()))

    def __len__(self) -> int:
        return len(self._streams)
