"""Jobs: streams of their own that several users may be granted, such as the log of one build.

Whoever says the first word into an id has opened it, and owns it until it is closed or its retention has
passed. Each opening is another *incarnation*, with a key and an epoch of its own: who comes with a position
of an earlier one is told ``epoch_changed`` and can never read it. Until somebody opens it, an id is a name:
who was granted it may wait there.

One process has the store, so what stands here in memory is true before it is committed; what is in
memory is kept until it is.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import attrs
import trio

from netra_ws.errors import ClientError, StoreError
from netra_ws.history.cursor import Cursor
from netra_ws.history.recorder import Recorder
from netra_ws.history.stores.contract import CloseJob, ForgetJob, JobRow, PutJob, Store
from netra_ws.history.stream import Stream
from netra_ws.history.streams import Streams
from netra_ws.identity import PUBLISH, Identity
from netra_ws.protocol.events import Announcement
from netra_ws.protocol.replies import JobDisconnected

from .connection import Connection
from .lane import Lane

logger = logging.getLogger(__name__)

#: Open jobs of one user.
MAX_OPEN = 1_000
#: Jobs that nobody uses and that are remembered all the same; the least recently used ones go.
MAX_IDLE = 1_000
#: Seconds for the store to keep that a job was closed.
CLOSE_S = 10.0
#: Seconds between two looks at jobs that are over, and how many one look takes.
SWEEP_EVERY_S = 3_600.0
SWEEP_ROWS = 1_000


@attrs.define(eq=False, repr=False)
class LiveJob:
    """One incarnation of a job that is in memory.

    Attributes:
        row: Who has opened it; None while nobody has.
        closed: Whether its id has become free; who reads it still gets everything that was said.
        pins: How many connections and calls use it.
        seats: The connections that read it.
    """

    job_id: str
    stream: Stream
    row: JobRow | None
    closed: bool = False
    pins: int = 0
    seats: dict[Connection, Lane] = attrs.field(factory=dict)
    opening: trio.Lock = attrs.field(factory=trio.Lock)

    def __repr__(self) -> str:
        return f"<LiveJob {self.job_id!r} of {self.owner!r}, {len(self.seats)} read>"

    @property
    def owner(self) -> str | None:
        """The user whose it is."""
        return None if self.row is None else self.row.user_id

    @property
    def settled(self) -> bool:
        """Whether all that was said is committed, the opening included."""
        return self.stream.visible == self.stream.last

    def may_read(self, identity: Identity) -> bool:
        """Whether a user may read it: the owner who may read at all, or who was granted it."""
        return (self.owner == identity.user_id and identity.may("read")) or identity.may_read_job(self.job_id)

    def may_speak(self, identity: Identity) -> bool:
        """Whether a program may speak into it in a user's name: the owner, or who was granted it and publishing."""
        granted = identity.may_read_job(self.job_id) and identity.may(PUBLISH)
        return self.owner in (None, identity.user_id) or granted


@attrs.define(repr=False)
class Jobs:
    """All jobs that are in use, and the most recently used idle ones."""

    streams: Streams
    store: Store
    recorder: Recorder
    _live: dict[str, LiveJob] = attrs.field(factory=dict)
    _idle: dict[str, LiveJob] = attrs.field(factory=dict)  # without pins, the last used ones last
    _finding: dict[str, trio.Event] = attrs.field(factory=dict)
    _freed: dict[str, trio.Event] = attrs.field(factory=dict)  # set when the store knows that the id is free
    _ended: dict[str, LiveJob] = attrs.field(factory=dict)  # closed ones that somebody still reads, by key

    def __repr__(self) -> str:
        return f"<Jobs {len(self._live)} in memory>"

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[LiveJob]:
        return iter([*self._live.values(), *self._ended.values()])

    @property
    def idle(self) -> int:
        """How many nobody uses."""
        return len(self._idle)

    # Finding.

    @asynccontextmanager
    async def using(self, job_id: str) -> AsyncIterator[LiveJob]:
        """Give the current incarnation of an id; it stays in memory within the block.

        Raises:
            StoreError: The store did not answer.
        """
        live = await self.pin(job_id)
        try:
            yield live
        finally:
            self.unpin(live)

    async def pin(self, job_id: str) -> LiveJob:
        """Return the current incarnation of an id; it stays in memory until ``unpin``.

        Raises:
            StoreError: The store did not answer.
        """
        while (finding := self._finding.get(job_id)) is not None:
            await finding.wait()
        live = self._live.get(job_id)
        if live is None:
            finding = self._finding[job_id] = trio.Event()
            try:
                live = self._live[job_id] = await self._find(job_id)
            finally:
                del self._finding[job_id]
                finding.set()
        self._idle.pop(job_id, None)
        live.pins += 1
        return live

    async def _find(self, job_id: str) -> LiveJob:
        freed = self._freed.get(job_id)
        row = None if freed is not None and not freed.is_set() else await self.store.job(job_id)
        key = f"job:{job_id}/{secrets.token_hex(8)}" if row is None else row.key
        stream = await self.streams.open_key(key, "" if row is None else row.user_id)
        return LiveJob(job_id, stream, row)

    def unpin(self, live: LiveJob) -> None:
        """Give a pin back; the least recently used idle jobs beyond the bound are forgotten."""
        live.pins -= 1
        if live.pins:
            return
        if live.closed:
            self.streams.release(live.stream)
            self._ended.pop(live.stream.key, None)
            return
        self._idle[live.job_id] = live
        for job_id in list(self._idle)[: max(0, len(self._idle) - MAX_IDLE)]:
            if self._idle[job_id].settled:  # else the store does not know yet whose it is
                self._drop(self._idle[job_id])

    def _drop(self, live: LiveJob) -> None:
        self._idle.pop(live.job_id, None)
        del self._live[live.job_id]
        self.streams.release(live.stream)

    # Speaking.

    async def emit(
        self,
        job_id: str,
        identity: Identity,
        said: Callable[[LiveJob], Announcement],
        may: Callable[[LiveJob, Identity], bool] = LiveJob.may_speak,
    ) -> tuple[Stream, int]:
        """Say something into a job; whoever says the first word has opened it. Waits while the store is behind.

        Returns:
            The job's stream, and the seq of the event on it, which is not committed yet.

        Raises:
            ClientError: ``NOT_FOUND``: by *may*, this user may not speak there.
                ``QUOTA_EXCEEDED``: the user has ``MAX_OPEN`` open jobs.
            StoreError: The store did not answer.
        """
        while True:
            async with self.using(job_id) as live:
                if not may(live, identity):
                    raise missing_job()
                await live.stream.wait_for_room()
                if live.row is None:
                    await self._open(live, identity)
                if live.closed or not may(live, identity):
                    continue  # meanwhile: what is there now is another one, or another user's
                return live.stream, live.stream.append(said(live)).seq

    async def open(self, job_id: str, identity: Identity) -> None:
        """Open an id without a word; one that is this user's already stays as it is.

        Raises:
            ClientError, StoreError: As ``emit``.
        """
        while True:
            async with self.using(job_id) as live:
                if live.row is None:
                    await self._open(live, identity)
                if live.closed:
                    continue
                if live.owner != identity.user_id:
                    raise missing_job()
                return

    async def _open(self, live: LiveJob, identity: Identity) -> None:
        async with live.opening:
            if live.row is not None or live.closed:
                return
            if await self.store.count_jobs(identity.user_id) >= MAX_OPEN:
                raise ClientError("QUOTA_EXCEEDED", f"the user has {MAX_OPEN} open jobs")
            stream = live.stream
            stream.user_id = identity.user_id
            live.row = JobRow(key=stream.key, job_id=live.job_id, user_id=identity.user_id, opened_at=stream.now())
            with stream.step() as step:
                step.write(PutJob(row=live.row))

    async def close(self, job_id: str, identity: Identity) -> None:
        """Make an id free; who reads it gets what was said, then ``job_disconnected``. Waits for the commit.

        Raises:
            ClientError: ``NOT_FOUND``: it is not open, or not this user's.
            StoreError: The store did not answer.
        """
        async with self.using(job_id) as live:
            if live.owner != identity.user_id:
                raise missing_job()
            live.closed = True
            del self._live[job_id]
            self._ended[live.stream.key] = live
            kept = self._freed[job_id] = self.recorder.keep(CloseJob(key=live.stream.key))
            for connection, lane in list(live.seats.items()):
                lane.hold(live.stream.last, self._end_of(live, connection))
        with trio.move_on_after(CLOSE_S):
            await kept.wait()
            if self._freed.get(job_id) is kept:
                del self._freed[job_id]
            return
        raise StoreError("the store does not answer; the job is closed, but a restart might forget it")

    def _end_of(self, live: LiveJob, connection: Connection) -> Callable[[], None]:
        def end() -> None:
            self._stand_up(live, connection)
            connection.tell(JobDisconnected(job_id=live.job_id))

        return end

    # Reading.

    def join(self, live: LiveJob, connection: Connection) -> Lane:
        """Let a connection read a job from its visible end on; the pin is the connection's from now on."""
        lane = connection.add_job(live.job_id, Cursor(live.stream, self.store, live.stream.visible))
        live.seats[connection] = lane
        live.stream.attach(lane)
        return lane

    def leave(self, connection: Connection, job_id: str) -> bool:
        """Let a connection read a job no more; return whether it did."""
        live = self._read_by(connection, job_id)
        if live is not None:
            self._stand_up(live, connection)
        return live is not None

    def leave_all(self, connection: Connection) -> None:
        """Take a connection out of all its jobs; may be called twice."""
        for job_id in list(connection.job_lanes):
            self.leave(connection, job_id)

    def look_again(self, connection: Connection) -> None:
        """Take a connection out of the jobs that its new identity may not read, and tell it."""
        for job_id in list(connection.job_lanes):
            live = self._read_by(connection, job_id)
            if live is not None and not live.may_read(connection.identity):
                self._stand_up(live, connection)
                connection.tell(JobDisconnected(job_id=job_id))

    def _read_by(self, connection: Connection, job_id: str) -> LiveJob | None:
        """Return the incarnation of an id that a connection reads: the current one, or one that was closed."""
        current = self._live.get(job_id)
        if current is not None and connection in current.seats:
            return current
        ended = (live for live in self._ended.values() if live.job_id == job_id and connection in live.seats)
        return next(ended, None)

    def _stand_up(self, live: LiveJob, connection: Connection) -> None:
        lane = live.seats.pop(connection, None)
        if lane is not None:
            live.stream.detach(lane)
            connection.drop_job(live.job_id)
            self.unpin(live)

    # Ending.

    async def sweep(self) -> None:
        """Forget jobs that are over, once an hour, until cancelled: closed or expired ones without events."""
        while True:
            await trio.sleep(SWEEP_EVERY_S)
            try:
                await self.forget_ended()
            except StoreError as exc:
                logger.warning("jobs that are over were not looked for: %s", exc)

    async def forget_ended(self) -> int:
        """Forget jobs that are over and that nobody uses; return how many.

        Raises:
            StoreError: The store did not answer.
        """
        forgotten = 0
        before = self.streams.clock() - (self.recorder.retention_s or math.inf)
        for row in await self.store.empty_jobs(before, SWEEP_ROWS):
            named = await self.store.job(row.job_id)
            forgotten += self._forget(row, is_open=named is not None and named.key == row.key)
        self._freed = {job_id: kept for job_id, kept in self._freed.items() if not kept.is_set()}
        return forgotten

    def _forget(self, row: JobRow, *, is_open: bool) -> bool:
        live = self._live.get(row.job_id)
        if row.key in self._ended or row.job_id in self._finding:
            return False
        if live is not None and live.stream.key == row.key:
            if live.pins or not live.settled:
                return False
            self._drop(live)
        elif is_open and live is not None:
            return False  # it was closed and opened anew meanwhile
        kept = self.recorder.keep(ForgetJob(key=row.key))
        if is_open:
            self._freed[row.job_id] = kept
        return True


def missing_job() -> ClientError:
    """Return what is said of a job that is not there, or that was not granted: the same."""
    return ClientError("NOT_FOUND", "there is no such job")
