"""The only writer: steps go in, groups are committed, entries become visible.

While one group is in the store, the next one collects; so a busy server commits large groups and
a quiet one commits at once. A group that failed is tried again, unchanged, until it is in: the
store tells events apart by (stream, epoch, seq), so a repeat changes nothing. Meanwhile streams
fill up to their backlog bound and agents wait there; closing events are still taken.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

import attrs
import trio

from netra_ws.errors import StoreError

from .stores.contract import Store, Write
from .stream import Step, Stream
from .streams import Streams

logger = logging.getLogger(__name__)

#: One group: bounded, so that the first step of a burst does not wait for the last.
GROUP_WRITES = 2000
GROUP_BYTES = 4 * 1024 * 1024
#: Uncommitted bytes of all streams together; beyond it agents wait.
BACKLOG_BYTES = 64 * 1024 * 1024
#: Seconds between two tries of a group; doubled up to the second figure.
RETRY_S = (0.05, 2.0)
#: Seconds without a commit, while something waits for one, after which the store counts as away.
AWAY_S = 2.0
#: Seconds before the first round of retention, and after one that failed; and between two.
FIRST_TRIM_S = 60.0
TRIM_EVERY_S = 3600.0


@attrs.frozen(kw_only=True)
class RecorderStatistics:
    """Numbers of the recorder at one moment.

    Attributes:
        waiting: Steps that are not committed.
        waiting_bytes: Their size.
        groups: Transactions committed.
        errors: Tries that failed.
        failing: Whether the last try failed.
        idle_s: Seconds since the last progress while something waits; 0 when nothing does.
    """

    waiting: int
    waiting_bytes: int
    groups: int
    errors: int
    failing: bool
    idle_s: float


@attrs.define(eq=False, repr=False)
class _Rows:
    """Rows of no stream, on their way into the store."""

    writes: list[Write]
    kept: trio.Event = attrs.field(factory=trio.Event)
    size: int = 0


@attrs.define(repr=False)
class Recorder:
    """Commits steps in the order in which they were submitted."""

    store: Store
    retention_s: float | None = None
    clock: Callable[[], float] = attrs.field(kw_only=True)
    on_commit: Callable[[float], None] = lambda seconds: None
    on_kept: Callable[[Stream, int], None] = lambda stream, size: None
    _steps: deque[Step | _Rows] = attrs.field(factory=deque, init=False)
    _bytes: int = 0
    _in_flight: int = 0
    _groups: int = 0
    _errors: int = 0
    _failing: bool = False
    _moved: float = 0.0
    _wake: trio.Event = attrs.field(factory=trio.Event, init=False)
    _removing: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _settled: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __repr__(self) -> str:
        return f"<Recorder {len(self._steps)} steps wait{', failing' if self._failing else ''}>"

    def keep(self, *rows: Write) -> trio.Event:
        """Have rows committed that belong to no stream; never waits. What is returned is set when they are."""
        waiting = _Rows(list(rows))
        self.submit(waiting)
        return waiting.kept

    def submit(self, step: Step | _Rows) -> None:
        """Take a step; never waits. It is committed after all that came before."""
        if not self._steps and not self._in_flight:
            self._moved = trio.current_time()
        self._steps.append(step)
        self._bytes += step.size
        self._wake.set()

    @property
    def crowded(self) -> bool:
        """Whether the uncommitted bytes of all streams are beyond their bound."""
        return self._bytes > BACKLOG_BYTES

    @property
    def stalled_s(self) -> float:
        """Seconds for which commits have made no progress; 0 while nothing waits for one."""
        return trio.current_time() - self._moved if self._steps or self._in_flight else 0.0

    @property
    def away(self) -> bool:
        """Whether the store takes nothing now: the last try failed, or none has ended for ``AWAY_S``."""
        return self._failing or self.stalled_s >= AWAY_S

    async def run(self, streams: Streams) -> None:
        """Commit until cancelled; once an hour remove what is older than the retention."""
        async with trio.open_nursery() as nursery:
            if self.retention_s is not None:
                nursery.start_soon(self._retain, streams, self.retention_s)
            while True:
                if not self._steps:
                    await self._wake.wait()
                self._wake = trio.Event()
                if self._steps:
                    await self._commit_group(streams)

    async def flush(self) -> None:
        """Wait until everything that was submitted is committed."""
        while self._steps or self._in_flight:
            await self._settled.wait()

    async def settle(self) -> None:
        """Wait until the next group is committed."""
        await self._settled.wait()

    async def _commit_group(self, streams: Streams) -> None:
        group = self._next_group()
        writes: list[Write] = [write for step in group for write in step.writes]
        self._in_flight = len(group)
        started = trio.current_time()
        delay = RETRY_S[0]
        while True:
            try:
                trimmed = await self.store.write(writes)
                break
            except StoreError as exc:
                self._errors += 1
                if not self._failing:
                    logger.error("store failed, %d writes wait: %s", len(writes), exc)
                self._failing = True
                await trio.sleep(delay)
                delay = min(delay * 2, RETRY_S[1])
        if self._failing:
            logger.warning("store works again")
        self._failing = False
        self._groups += 1
        self._in_flight = 0
        self._moved = trio.current_time()
        self.on_commit(self._moved - started)
        if trimmed:
            streams.trimmed(trimmed)
        for step in group:
            self._bytes -= step.size
            if isinstance(step, _Rows):
                step.kept.set()
                continue
            step.stream.committed(step.last_seq, step.reserved)
            self.on_kept(step.stream, step.size)
        self._settled.set()
        self._settled = trio.Event()

    def _next_group(self) -> list[Step | _Rows]:
        group: list[Step | _Rows] = []
        writes = size = 0
        while self._steps and writes < GROUP_WRITES and size < GROUP_BYTES:
            step = self._steps.popleft()
            group.append(step)
            writes += len(step.writes)
            size += step.size
        return group

    async def _retain(self, streams: Streams, retention_s: float) -> None:
        # A task of its own: groups are committed between the portions.
        delay = FIRST_TRIM_S
        while True:
            await trio.sleep(delay)
            try:
                await self._remove(streams, lambda: self.store.trim(self.clock() - retention_s))
            except StoreError as exc:
                self._errors += 1
                delay = FIRST_TRIM_S
                logger.error("retention failed, next try in %g s: %s", delay, exc)
            else:
                delay = TRIM_EVERY_S

    async def shorten(self, streams: Streams, key: str, keep_bytes: int) -> None:
        """Remove the oldest events of a stream beyond *keep_bytes*; groups are committed between the portions.

        Raises:
            StoreError: The store did not answer; what was removed until then is removed.
        """
        await self._remove(streams, lambda: self.store.shorten(key, keep_bytes))

    async def _remove(self, streams: Streams, mark: Callable[[], Awaitable[Mapping[str, int]]]) -> None:
        # One portion at a time, whoever wants it: what one has found, the other might remove meanwhile.
        while True:
            async with self._removing:
                ends = await mark()
                if not ends:
                    return
                # Told before they go: a reader that no longer finds them in the store must know why.
                streams.trimmed(ends)
                await self.store.remove(ends)

    def statistics(self) -> RecorderStatistics:
        """Return the numbers of this moment."""
        return RecorderStatistics(
            waiting=len(self._steps) + self._in_flight,
            waiting_bytes=self._bytes,
            groups=self._groups,
            errors=self._errors,
            failing=self._failing,
            idle_s=self.stalled_s,
        )
