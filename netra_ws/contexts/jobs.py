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
from contextlib import asynccontextmanager, contextmanager
from itertools import islice

import attrs
import trio

from netra_ws.errors import ClientError, StoreError
from netra_ws.history.cursor import Cursor
from netra_ws.history.recorder import Recorder
from netra_ws.history.stores.contract import CloseJob, ForgetJob, JobRow, PutJob, PutStream, Store
from netra_ws.history.stream import Stream
from netra_ws.history.streams import Streams
from netra_ws.identity import Identity
from netra_ws.protocol.events import Announcement
from netra_ws.protocol.replies import JobDisconnected

from .connection import Connection
from .lane import Lane
from .live_job import LiveJob, missing_job

logger = logging.getLogger(__name__)

#: Open jobs of one user.
MAX_OPEN = 1_000
#: Jobs that nobody uses and that are remembered all the same, and their events in memory; the least recently
#: used ones go.
MAX_IDLE = 1_000
MAX_IDLE_BYTES = 64 * 1024 * 1024
#: Idle jobs that are looked at, at least, each time that another one becomes idle.
LOOK = 16
#: Seconds for the store to keep that a job was closed.
CLOSE_S = 10.0
#: Seconds between two looks at jobs that are over, and how many one look takes.
SWEEP_EVERY_S = 3_600.0
SWEEP_ROWS = 1_000


@attrs.define(repr=False)
class Jobs:
    """All jobs that are in use, and the most recently used idle ones."""

    streams: Streams
    store: Store
    recorder: Recorder
    _live: dict[str, LiveJob] = attrs.field(factory=dict)
    _idle: dict[str, LiveJob] = attrs.field(factory=dict)  # without pins, the last used ones last
    _idle_bytes: int = 0
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
            with self._alone_with(job_id):
                live = self._live[job_id] = await self._find(job_id)
        self._take_up(live)
        live.pins += 1
        return live

    @contextmanager
    def _alone_with(self, job_id: str) -> Iterator[None]:
        """Let nobody find an id, that is nobody speak into it, open or close it, within the block."""
        finding = self._finding[job_id] = trio.Event()
        try:
            yield
        finally:
            del self._finding[job_id]
            finding.set()

    async def check_granted(self, job_id: str, identity: Identity) -> None:
        """Let a client go on that was granted an id, or that owns it.

        For anybody else the store is asked the same, and nothing is kept, whether there is such a job or not: how
        long the answer takes must not tell it, either.

        Raises:
            ClientError: ``NOT_FOUND``: to this user there is no such job.
            StoreError: The store did not answer.
        """
        if identity.may_read_job(job_id):
            return
        row = await self.store.job(job_id)
        live = self._live.get(job_id)
        owner = live.owner if live is not None else None if row is None else row.user_id
        if owner != identity.user_id:
            raise missing_job()

    async def _find(self, job_id: str) -> LiveJob:
        row = None if self._is_being_freed(job_id) else await self.store.job(job_id)
        key = f"job:{job_id}/{secrets.token_hex(8)}" if row is None else row.key
        stream = await self.streams.open_key(key, "" if row is None else row.user_id)
        return LiveJob(job_id, stream, row)

    def _is_being_freed(self, job_id: str) -> bool:
        freed = self._freed.get(job_id)
        return freed is not None and not freed.is_set()

    def _free(self, job_id: str, kept: trio.Event) -> None:
        """Note that an id is free, and from when on the store knows it."""
        self._freed = {each: freed for each, freed in self._freed.items() if not freed.is_set()}
        self._freed[job_id] = kept

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
        live.idle_bytes = live.stream.statistics().bytes
        self._idle_bytes += live.idle_bytes
        self._evict()

    def _evict(self) -> None:
        for idle in list(islice(self._idle.values(), max(LOOK, len(self._idle) - MAX_IDLE))):
            if len(self._idle) <= MAX_IDLE and self._idle_bytes <= MAX_IDLE_BYTES:
                return
            if idle.settled:  # else the store does not know yet whose it is, or what was said
                self._drop(idle)

    def _drop(self, live: LiveJob) -> None:
        self._take_up(live)
        del self._live[live.job_id]
        self.streams.release(live.stream)

    def _take_up(self, live: LiveJob) -> None:
        """Count a job as idle no more."""
        if self._idle.pop(live.job_id, None) is not None:
            self._idle_bytes -= live.idle_bytes

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
            count = await self.store.count_jobs(identity.user_id)
            count += sum(each.owner == identity.user_id and each.is_being_opened for each in self._live.values())
            if count >= MAX_OPEN:
                raise ClientError("QUOTA_EXCEEDED", f"the user has {MAX_OPEN} open jobs")
            stream = live.stream
            stream.user_id = identity.user_id
            live.row = JobRow(key=stream.key, job_id=live.job_id, user_id=identity.user_id, opened_at=stream.now())
            # The stream, too: who waits in a silent job has a position in its epoch.
            put = PutStream(key=stream.key, epoch=stream.epoch, reserved=0)
            live.kept = self.recorder.keep(put, PutJob(row=live.row))

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
            kept = self.recorder.keep(CloseJob(key=live.stream.key))
            self._free(job_id, kept)
            for connection, lane in list(live.seats.items()):
                lane.hold_last(self._end_of(live, connection))
            live.stream.wake_readers()  # those of programs, which end there
        with trio.move_on_after(CLOSE_S):
            await kept.wait()
            return
        raise StoreError("the store does not answer; the job is closed, but a restart might forget it")

    def _end_of(self, live: LiveJob, connection: Connection) -> Callable[[], None]:
        def end() -> None:
            self._stand_up(live, connection)
            connection.tell(JobDisconnected(job_id=live.job_id))

        return end

    # Reading.

    def join(self, live: LiveJob, connection: Connection) -> Lane:
        """Let a connection read a job from its visible end on; it pins the job until it leaves."""
        live.pins += 1
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
                while await self.forget_ended() >= SWEEP_ROWS:
                    pass
            except StoreError as exc:
                logger.warning("jobs that are over were not looked for: %s", exc)

    async def forget_ended(self) -> int:
        """Forget up to ``SWEEP_ROWS`` jobs that are over and that nobody uses; return how many, when it is committed.

        Raises:
            StoreError: The store did not answer.
        """
        before = self.streams.clock() - (self.recorder.retention_s or math.inf)
        rows = await self.store.empty_jobs(before, SWEEP_ROWS)
        forgotten = [kept for row in rows if (kept := await self._forget(row)) is not None]
        if forgotten:
            await forgotten[-1].wait()
        return len(forgotten)

    async def _forget(self, row: JobRow) -> trio.Event | None:
        """Forget a job that was seen to be over, unless it is used, or was since then."""
        job_id, live = row.job_id, self._live.get(row.job_id)
        if row.key in self._ended or job_id in self._finding or self._is_being_freed(job_id):
            return None
        if live is not None and live.stream.key != row.key:  # the id is another job's: this one was closed
            return self.recorder.keep(ForgetJob(key=row.key))
        if live is not None and (live.pins or not live.settled):
            return None
        with self._alone_with(job_id):
            named = await self.store.job(job_id)
            is_open = named is not None and named.key == row.key
            if is_open and await self._has_events(row):  # said since it was looked for
                return None
            live = self._live.get(job_id)
            if live is not None:
                self._drop(live)
            kept = self.recorder.keep(ForgetJob(key=row.key))
            if is_open:
                self._free(job_id, kept)
            return kept

    async def _has_events(self, row: JobRow) -> bool:
        stream = await self.store.stream(row.key)
        return stream is not None and bool(await self.store.events(row.key, stream.epoch, 0, stream.reserved, 1))
