"""What is in memory of jobs: incarnations and their ids, who pins them, and that nothing stays when nobody is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from netra_ws.contexts import jobs as jobs_module
from netra_ws.contexts.connection import Connection
from netra_ws.contexts.jobs import Jobs
from netra_ws.contexts.lane import Lane
from netra_ws.errors import ClientError, Trimmed
from netra_ws.history.cursor import Cursor
from netra_ws.history.recorder import Recorder
from netra_ws.history.stores.contract import JobRow
from netra_ws.history.streams import Streams
from netra_ws.identity import Identity
from netra_ws.protocol.events import Announcement
from netra_ws.testing import FaultyStore

from ..history.kit import NOW, fields_of
from .test_connection import PaperWire

DAY_S = 86_400.0
ADA = Identity("ada")
BOB = Identity("bob")
EVE = Identity("eve", frozenset({"read", "job:*", "job:publish"}))


class SlowStore(FaultyStore):
    """A faulty store whose writes wait for a gate, and whose reads may be met by something that happens meanwhile.

    Attributes:
        gate: Writes wait until it is set.
        amid: Read → what is awaited once, when that read has its answer and has not given it yet.
        reads: The names of all reads of jobs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.gate.set()
        self.amid: dict[str, Callable[[], Awaitable[object]]] = {}
        self.reads: list[str] = []

    async def _met(self, name: str) -> None:
        self.reads.append(name)
        if (amid := self.amid.pop(name, None)) is not None:
            await amid()

    async def write(self, batch: Any) -> Any:
        await self.gate.wait()
        return await super().write(batch)

    async def job(self, job_id: str) -> JobRow | None:
        row = await super().job(job_id)
        await self._met("job")
        return row

    async def stream(self, key: str) -> Any:
        row = await super().stream(key)
        await self._met("stream")
        return row

    async def count_jobs(self, user_id: str) -> int:
        count = await super().count_jobs(user_id)
        await self._met("count_jobs")
        return count

    async def empty_jobs(self, before: float, limit: int) -> Any:
        rows = await super().empty_jobs(before, limit)
        await self._met("empty_jobs")
        return rows


@attrs.define(eq=False)
class Floor:
    """Jobs over a store and its recorder, and connections without sockets."""

    store: SlowStore
    recorder: Recorder
    streams: Streams
    jobs: Jobs
    nursery: trio.Nursery
    time: list[float]
    seats: list[Connection] = attrs.field(factory=list)

    async def emit(self, job_id: str, value: Any, identity: Identity = ADA) -> int:
        said = Announcement(name="n", value=value, user_id=identity.user_id, job_id=job_id)
        _, seq = await self.jobs.emit(job_id, identity, lambda live: said)
        return seq

    async def seat(self, identity: Identity = EVE) -> Connection:
        stream = await self.streams.open(identity.user_id)
        connection = Connection(
            connection_id=f"c{len(self.seats)}",
            identity=identity,
            protocol="netra.v1",
            cursor=Cursor(stream, self.store, stream.visible),
            wire=PaperWire(),
            clock=lambda: NOW,
        )
        self.streams.release(stream)
        self.seats.append(connection)
        return connection

    async def join(self, job_id: str, connection: Connection) -> Lane:
        """Join as the command does."""
        async with self.jobs.using(job_id) as live:
            return self.jobs.join(live, connection)

    async def taken(self, connection: Connection, room: int = 65536) -> list[dict[str, Any]]:
        """Take until nothing is pending, as the wire does."""
        frames: list[bytes] = []
        while connection.pending:
            try:
                frames += connection.take(room)
            except Trimmed:
                await connection.refill()
        return [fields_of(frame) for frame in frames]

    async def heard(self, connection: Connection) -> list[Any]:
        """The values of the events that wait for a connection; other frames by their type."""
        return [fields["value"] if "event_id" in fields else fields["type"] for fields in await self.taken(connection)]

    def check(self) -> None:
        """Whoever is pinned is pinned by a connection that reads it: to be called while no operation goes on."""
        jobs = self.jobs
        assert not jobs._finding
        for live in jobs:
            assert live.pins == len(live.seats), live
            assert live.stream.pins == 1, live
            assert not live.opening.locked()
            for connection, lane in live.seats.items():
                assert connection.job_lanes[live.job_id] is lane
                assert lane.cursor.stream is live.stream
        assert {live.job_id for live in jobs._live.values() if not live.pins} == set(jobs._idle)
        assert all(live.closed and live.seats for live in jobs._ended.values())
        held = {live.stream.key for live in jobs}
        for stream in self.streams:
            if stream.key.startswith("job:"):
                assert stream.pins == (stream.key in held), stream
                assert stream.statistics().readers == sum(len(e.seats) for e in jobs if e.stream is stream), stream

    async def empty(self) -> None:
        """Let everybody go and everything be committed: then only idle jobs are left, and no stream is read."""
        self.store.gate.set()
        self.store.recover()
        await self.recorder.flush()
        await wait_all_tasks_blocked()
        self.check()
        for connection in self.seats:
            self.jobs.leave_all(connection)
            assert not connection.job_lanes
            assert not connection._rung
        self.check()
        assert not self.jobs._ended
        assert self.jobs.idle == len(self.jobs)
        assert all(stream.idle for stream in self.streams if not stream.pins)


@asynccontextmanager
async def floor(**options: Any) -> AsyncIterator[Floor]:
    """Open a floor; leaving the block checks that nothing is left of who was there."""
    store = SlowStore()
    await store.open()
    time = [NOW]
    recorder = Recorder(store, clock=lambda: time[0], retention_s=None)
    streams = Streams(store, recorder, lambda: time[0], **options)
    jobs = Jobs(streams, store, recorder)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run, streams)
        opened = Floor(store, recorder, streams, jobs, nursery, time)
        yield opened
        with trio.fail_after(60):
            await opened.empty()
        nursery.cancel_scope.cancel()


# Who pins what.


async def test_a_job_that_is_read_is_not_idle() -> None:
    """A connection that reads a job holds it in memory until it leaves, whoever else comes and goes."""
    async with floor() as here:
        await here.emit("a", 1)
        first, second = await here.seat(), await here.seat()
        await here.join("a", first)
        here.check()
        assert here.jobs.idle == 0
        await here.join("a", second)
        await here.emit("a", 2)
        here.check()
        assert here.jobs.leave(first, "a")
        assert not here.jobs.leave(first, "a")
        here.check()
        assert here.jobs.idle == 0
        assert here.jobs.leave(second, "a")
        here.check()
        assert here.jobs.idle == 1


async def test_the_idle_ones_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the idle jobs the least recently used go; one that somebody reads stays however long ago it was used."""
    monkeypatch.setattr(jobs_module, "MAX_IDLE", 3)
    async with floor() as here:
        reader = await here.seat()
        await here.emit("read", 0)
        await here.recorder.flush()
        await here.join("read", reader)
        for number in range(10):
            await here.emit(f"j{number}", number)
            await here.recorder.flush()
        async with here.jobs.using("j7"):
            pass
        await here.emit("j10", 10)
        await here.recorder.flush()
        assert set(here.jobs._idle) == {"j9", "j7", "j10"}
        assert set(here.jobs._live) == {"j9", "j7", "j10", "read"}
        await here.emit("read", 1)
        assert await here.emit("j0", "again") > 1
        await here.recorder.flush()
        assert await here.heard(reader) == [1]


async def test_what_is_not_committed_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many jobs are used, one whose opening or last word is not in the store stays in memory until it is."""
    monkeypatch.setattr(jobs_module, "MAX_IDLE", 1)
    async with floor() as here:
        here.store.gate = trio.Event()
        await here.jobs.open("silent", ADA)
        await here.emit("said", 1)
        for number in range(5):
            async with here.jobs.using(f"other-{number}"):
                pass
        for job_id in ("silent", "said"):
            async with here.jobs.using(job_id) as live:
                assert live.owner == "ada", job_id
            with pytest.raises(ClientError, match="NOT_FOUND"):
                await here.emit(job_id, "mine", BOB)
        here.store.gate.set()
        await here.recorder.flush()
        for number in range(5):
            async with here.jobs.using(f"other-{number}"):
                pass
        assert len(here.jobs) == 1
        for job_id in ("silent", "said"):
            with pytest.raises(ClientError, match="NOT_FOUND"):
                await here.emit(job_id, "mine", BOB)


async def test_idle_jobs_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rings of idle jobs together are bounded, too, not only their number."""
    async with floor() as here:
        for number in range(30):
            for _ in range(10):
                await here.emit(f"j{number}", "x" * 100_000)
            await here.recorder.flush()
        held = sum(live.stream.statistics().bytes for live in here.jobs)
        assert held <= jobs_module.MAX_IDLE_BYTES + 2_000_000
        assert sum(stream.statistics().bytes for stream in here.streams) <= 2 * here.streams.max_idle_bytes


async def test_a_silent_job_keeps_its_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was opened without a word has the same epoch when it comes back into memory."""
    monkeypatch.setattr(jobs_module, "MAX_IDLE", 0)
    async with floor() as here:
        epochs = set()
        await here.jobs.open("a", ADA)
        for _ in range(3):
            async with here.jobs.using("a") as live:
                epochs.add(live.stream.epoch)
            await here.recorder.flush()
            async with here.jobs.using("b"):
                pass
            here.streams.max_idle = 0
            here.streams.evict()
        assert len(epochs) == 1
