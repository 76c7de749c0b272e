"""What is in memory of jobs: incarnations and their ids, who pins them, and that nothing stays when nobody is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from netra_ws.contexts import jobs as jobs_module
from netra_ws.contexts.connection import Connection
from netra_ws.contexts.jobs import Jobs
from netra_ws.contexts.lane import Lane
from netra_ws.errors import ClientError, StoreError, Trimmed
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


# Incarnations.


async def test_an_id_is_free_before_the_store_knows_it() -> None:
    """Closed and opened anew while the store takes nothing, an id belongs to who came next, also after a restart."""
    async with floor() as here:
        await here.emit("a", 1)
        await here.recorder.flush()
        reader = await here.seat()
        await here.join("a", reader)
        here.store.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            for owner, value in ((ADA, 2), (BOB, 3), (EVE, 4)):
                await here.emit("a", value, owner)
                nursery.start_soon(here.jobs.close, "a", owner)
                await wait_all_tasks_blocked()
                with pytest.raises(ClientError, match="NOT_FOUND"):
                    await here.jobs.close("a", owner)
            await here.emit("a", 5, BOB)
            assert len(here.jobs) == 1
            here.store.gate.set()
        await here.recorder.flush()
        assert await here.heard(reader) == [2, "job_disconnected"]
        row = await here.store.job("a")
        assert row is not None
        assert row.user_id == "bob"
        assert {key for key, _ in await here.store.largest_jobs("bob", 9)} > {row.key}
        here.check()


async def test_a_job_that_is_closed_while_the_store_fails(autojump_clock: MockClock) -> None:
    """Whoever closes while the store is away is told so in time; the id is free, and the store hears of it later."""
    async with floor() as here:
        await here.emit("a", 1)
        await here.recorder.flush()
        here.store.full()
        with pytest.raises(StoreError, match="closed"):
            await here.jobs.close("a", ADA)
        await here.emit("a", 2, BOB)
        here.check()
        here.store.recover()
        await here.recorder.flush()
        row = await here.store.job("a")
        assert row is not None
        assert row.user_id == "bob"


async def test_a_cancelled_close_has_closed() -> None:
    """Who does not wait for the commit of a closing has closed nevertheless, and nothing of it is left afterwards."""
    async with floor() as here:
        await here.emit("a", 1)
        here.store.gate = trio.Event()
        with trio.CancelScope() as scope:
            scope.cancel()
            await here.jobs.close("a", ADA)
        assert scope.cancelled_caught
        await here.emit("a", 2, BOB)
        here.store.gate.set()
        await here.recorder.flush()
        await here.jobs.close("a", BOB)
        for number in range(5):
            with trio.CancelScope() as scope:
                await here.jobs.open(f"j{number}", ADA)
                scope.cancel()
                await here.jobs.close(f"j{number}", ADA)
            await here.recorder.flush()
        assert len(here.jobs._freed) <= 1


async def test_two_who_open_one_id_at_once() -> None:
    """Of many users who open one id at the same moment one owns it, and the others hear that there is none."""
    async with floor() as here:
        outcomes: list[str] = []

        async def say(user: str) -> None:
            with suppress(ClientError):
                await here.emit("a", user, Identity(user))
                outcomes.append(user)

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(say, f"user-{number}")
        await here.recorder.flush()
        row = await here.store.job("a")
        assert row is not None
        assert outcomes == [row.user_id] * 2
        async with here.jobs.using("a") as live:
            assert live.stream.last == 2
        assert await here.store.count_jobs(row.user_id) == 1


async def test_a_word_while_it_is_closed() -> None:
    """What is said while a job is being closed stands in it, or in the next one of that id: never behind its end."""
    async with floor() as here:
        await here.emit("a", "first")
        await here.recorder.flush()
        reader = await here.seat()
        await here.join("a", reader)
        here.store.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.emit, "a", "before")
            nursery.start_soon(here.jobs.close, "a", ADA)
            nursery.start_soon(here.emit, "a", "behind")
            await wait_all_tasks_blocked()
            here.store.gate.set()
        await here.recorder.flush()
        heard = await here.heard(reader)
        assert heard[-1] == "job_disconnected"
        async with here.jobs.using("a") as live:
            assert live.stream.last == 3 - len(heard)


async def test_a_word_that_waits_for_room_while_it_is_closed() -> None:
    """Who waited for the store with a word, and finds the job closed, opens the id anew or is refused by its owner."""
    async with floor() as here:
        await here.emit("a", "first")
        here.store.gate = trio.Event()
        here.recorder._bytes += 10**9  # as if all streams together were beyond their bound
        results: list[str] = []

        async def say(identity: Identity) -> None:
            try:
                await here.emit("a", identity.user_id, identity)
                results.append(identity.user_id)
            except ClientError as error:
                results.append(error.code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(say, ADA)
            nursery.start_soon(say, EVE)
            await wait_all_tasks_blocked()
            nursery.start_soon(here.jobs.close, "a", ADA)
            await wait_all_tasks_blocked()
            await here.jobs.open("a", BOB)
            here.recorder._bytes -= 10**9
            here.store.gate.set()
        assert sorted(results) == ["NOT_FOUND", "eve"]
        async with here.jobs.using("a") as live:
            assert (live.owner, live.stream.last) == ("bob", 1)


# Retention.


async def sweep(here: Floor, days: float = 31) -> int:
    """Let so many days pass, retention remove what is older than 30, and jobs that are over be forgotten."""
    await here.recorder.flush()
    here.time[0] += days * DAY_S
    here.recorder.retention_s = 30 * DAY_S
    await here.recorder._remove(here.streams, lambda: here.store.trim(here.time[0] - 30 * DAY_S))
    return await here.jobs.forget_ended()


async def test_silent_jobs_end_with_their_retention() -> None:
    """An open job in which nothing was said for as long as anything is kept is forgotten, and its id is free."""
    async with floor() as here:
        await here.emit("a", 1)
        await here.jobs.open("silent", ADA)
        assert await sweep(here, 29) == 0
        await here.emit("young", 1)
        assert await sweep(here, 2) == 2
        assert await sweep(here, 0) == 0
        assert await here.emit("a", 2, BOB) == 1
        await here.jobs.open("silent", BOB)
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await here.emit("young", 2, BOB)
        await here.recorder.flush()
        assert await here.store.count_jobs("ada") == 1
        assert await here.store.count_jobs("bob") == 2


async def test_an_old_job_with_young_words_stays() -> None:
    """A job that was opened long ago and is spoken into stays its owner's."""
    async with floor() as here:
        for _ in range(4):
            await here.emit("a", 1)
            assert await sweep(here, 20) == 0
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await here.emit("a", 1, BOB)


async def test_a_job_in_use_stays() -> None:
    """A job that is over, but that somebody reads or uses at that moment, is forgotten when they have gone."""
    async with floor() as here:
        reader = await here.seat()
        for job_id in ("read", "used", "closed"):
            await here.emit(job_id, 1)
        for job_id in ("read", "closed"):
            await here.join(job_id, reader)
        await here.jobs.close("closed", ADA)  # its reader has not come to the end
        async with here.jobs.using("used"):
            assert await sweep(here) == 0
            assert await sweep(here) == 0
        here.check()
        here.jobs.leave_all(reader)
        assert await sweep(here, 0) == 3
        assert not here.jobs._live
        assert list(await here.store.empty_jobs(here.time[0], 9)) == []


async def test_closed_incarnations_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many closed ones there are, one sweep forgets all whose events are gone, and touches no open one."""
    monkeypatch.setattr(jobs_module, "SWEEP_ROWS", 3)
    async with floor() as here:
        for number in range(10):
            await here.emit("a", number)
            await here.jobs.close("a", ADA)
        await sweep(here)
        await here.emit("a", "open")
        await here.recorder.flush()
        while await here.jobs.forget_ended():
            pass
        assert [key for key, _ in await here.store.largest_jobs("ada", 99)] == [
            live.stream.key for live in here.jobs._live.values()
        ]
        assert list(await here.store.empty_jobs(here.time[0] + 99 * DAY_S, 99)) == []


async def test_one_sweep_takes_them_all(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """More jobs that are over than one look takes are all forgotten in the same hour."""
    monkeypatch.setattr(jobs_module, "SWEEP_ROWS", 3)
    async with floor() as here:
        for number in range(10):
            await here.jobs.open(f"j{number}", ADA)
            await here.jobs.close(f"j{number}", ADA)
        here.nursery.start_soon(here.jobs.sweep)
        await trio.sleep(jobs_module.SWEEP_EVERY_S + 1)
        assert list(await here.store.empty_jobs(0, 99)) == []


@pytest.mark.parametrize("read", ["empty_jobs", "job", "stream"])
async def test_what_is_said_while_it_is_forgotten(read: str) -> None:
    """Whenever a word falls while ended jobs are looked for, it is kept: the job stays, or is opened anew."""
    async with floor() as here:
        await here.jobs.open("a", ADA)
        await here.jobs.open("b", ADA)
        await here.recorder.flush()
        said: list[int] = []

        async def speak() -> None:
            async def word() -> None:
                said.append(await here.emit("b", "word"))

            here.nursery.start_soon(word)
            if read == "empty_jobs":
                while not said:
                    await trio.lowlevel.checkpoint()
                await here.recorder.flush()
            else:
                await wait_all_tasks_blocked()

        await here.recorder.flush()
        here.store.amid[read] = speak
        await sweep(here)
        await wait_all_tasks_blocked()
        await here.recorder.flush()
        assert said == [1]
        row = await here.store.job("b")
        assert row is not None
        stream = await here.store.stream(row.key)
        assert stream is not None
        assert len(await here.store.events(row.key, stream.epoch, 0, 99, 9)) == 1
        async with here.jobs.using("b") as live:
            assert (live.stream.key, live.stream.last) == (row.key, 1)


async def test_a_close_while_it_is_forgotten() -> None:
    """A job that is closed and opened by another while ended ones are looked for is the other's."""
    async with floor() as here:
        await here.jobs.open("a", ADA)
        await here.recorder.flush()

        async def change_hands() -> None:
            await here.jobs.close("a", ADA)
            await here.jobs.open("a", BOB)

        here.store.amid["empty_jobs"] = change_hands
        assert await sweep(here) == 1
        await here.recorder.flush()
        row = await here.store.job("a")
        assert row is not None
        assert row.user_id == "bob"
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await here.jobs.close("a", ADA)


async def test_an_id_that_is_being_forgotten_is_free() -> None:
    """Between a job's end and the moment when the store knows of it the id is free, and stays who takes it."""
    async with floor() as here:
        await here.emit("a", "old")
        await sweep(here, 0)
        here.time[0] += 31 * DAY_S
        here.recorder.retention_s = 30 * DAY_S
        await here.recorder._remove(here.streams, lambda: here.store.trim(here.time[0] - 30 * DAY_S))
        here.store.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.jobs.forget_ended)
            await wait_all_tasks_blocked()
            assert await here.emit("a", "new", BOB) == 1
            here.store.gate.set()
        await here.recorder.flush()
        row = await here.store.job("a")
        assert row is not None
        assert row.user_id == "bob"
        assert [size > 0 for _, size in await here.store.largest_jobs("bob", 9)] == [True]


async def test_a_last_word_on_its_way_is_not_forgotten() -> None:
    """A word into a silent old job that is closed right behind it stays in the store, though it looked empty."""
    async with floor() as here:
        await here.jobs.open("a", ADA)
        await here.recorder.flush()
        here.time[0] += 31 * DAY_S
        here.recorder.retention_s = 30 * DAY_S
        here.store.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            await here.emit("a", "last")
            nursery.start_soon(here.jobs.close, "a", ADA)
            await wait_all_tasks_blocked()
            assert await here.jobs.forget_ended() == 0
            here.store.gate.set()
        await here.recorder.flush()
        ((key, _),) = await here.store.largest_jobs("ada", 9)
        assert (await here.store.stream(key)) is not None


async def test_a_store_that_fails_while_it_is_looked_at(autojump_clock: MockClock) -> None:
    """A sweep that the store does not answer forgets nothing and holds nothing; the next one does its work."""
    async with floor() as here:
        await here.jobs.open("a", ADA)
        await here.recorder.flush()
        here.time[0] += 31 * DAY_S
        here.recorder.retention_s = 30 * DAY_S
        here.nursery.start_soon(here.jobs.sweep)
        await trio.sleep(1)

        async def fail() -> None:
            here.store.fail()

        for read in ("empty_jobs", "job", "stream"):
            here.store.amid[read] = fail
            await trio.sleep(jobs_module.SWEEP_EVERY_S)
            here.store.recover()
            here.check()
        assert not here.store.amid
        assert (await here.store.job("a")) is not None
        await trio.sleep(jobs_module.SWEEP_EVERY_S)
        assert (await here.store.job("a")) is None


# What is left behind.

Work = Callable[[Floor], Awaitable[object]]


async def _use(here: Floor) -> None:
    async with here.jobs.using("a"):
        await trio.lowlevel.checkpoint()


async def _join(here: Floor) -> None:
    await here.join("a", await here.seat())
    await trio.lowlevel.checkpoint()


async def _rejoin(here: Floor) -> None:
    connection = await here.seat()
    await here.join("a", connection)
    await trio.lowlevel.checkpoint()
    assert here.jobs.leave(connection, "a")


async def _all_at_once(here: Floor) -> None:
    async def tolerantly(work: Callable[[], Awaitable[object]]) -> None:
        with suppress(ClientError, StoreError):
            await work()

    async with trio.open_nursery() as nursery:
        for work in (_use, _join, _rejoin):
            nursery.start_soon(tolerantly, partial(work, here))
        nursery.start_soon(tolerantly, lambda: here.emit("a", 1))
        nursery.start_soon(tolerantly, lambda: here.jobs.open("a", EVE))
        nursery.start_soon(tolerantly, here.jobs.forget_ended)


OPERATIONS: dict[str, Work] = {
    "use": _use,
    "emit": lambda here: here.emit("a", 1),
    "open": lambda here: here.jobs.open("a", ADA),
    "close": lambda here: here.jobs.close("a", ADA),
    "join": _join,
    "join and leave": _rejoin,
    "forget": lambda here: here.jobs.forget_ended(),
    "many": _all_at_once,
}
PLACES = ("nowhere", "in the store", "in memory", "read", "closed and read")


async def _prepare(here: Floor, place: str) -> None:
    if place == "nowhere":
        return
    await here.jobs.open("a", ADA)
    await here.recorder.flush()
    if place in ("read", "closed and read"):
        await here.join("a", await here.seat())
    if place == "closed and read":
        await here.emit("a", 2)
        await here.jobs.close("a", ADA)
    if place == "in the store":
        here.jobs._drop(here.jobs._live["a"])
        here.streams.max_idle = 0
        here.streams.evict()
        assert not len(here.jobs)


async def _finish(here: Floor, work: Work, *, ticks: int) -> bool:
    """Carry *work* out and cancel it after so many turns of the loop; return whether it had ended by then."""
    ended = False
    scope = trio.CancelScope()

    async def run() -> None:
        nonlocal ended
        with scope:
            with suppress(ClientError, StoreError):
                await work(here)
            ended = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        was_over = ended
        scope.cancel()
    return was_over


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", OPERATIONS)
async def test_cancelled_anywhere_nothing_is_left(autojump_clock: MockClock, name: str, place: str) -> None:
    """Whatever is begun and wherever it is cancelled: no pin, seat, lock or name is left, and it can be done again."""
    ticks, over = 0, False
    while not over:
        async with floor() as here:
            await _prepare(here, place)
            here.recorder.retention_s = 1.0
            here.time[0] += 10.0
            over = await _finish(here, OPERATIONS[name], ticks=ticks)
            here.check()
            await _finish(here, OPERATIONS[name], ticks=200)
            await here.recorder.flush()
            here.check()
            await here.emit("a", "again", EVE)
        ticks += 1
    assert 1 < ticks < 200


@pytest.mark.parametrize("failure", ["fail", "full", "lose_answers", "hang"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_failing_store_leaves_nothing(autojump_clock: MockClock, name: str, place: str, failure: str) -> None:
    """Whatever is begun while the store fails or hangs, and given up: nothing is left, and it works afterwards."""
    async with floor() as here:
        await _prepare(here, place)
        here.recorder.retention_s = 1.0
        here.time[0] += 10.0
        getattr(here.store, failure)()
        with trio.move_on_after(30), suppress(ClientError, StoreError):
            await OPERATIONS[name](here)
        here.check()
        here.store.recover()
        await here.recorder.flush()
        await _finish(here, OPERATIONS[name], ticks=200)
        await here.recorder.flush()
        here.check()


async def test_the_bound_of_open_jobs_counts_those_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opens jobs faster than the store keeps them gets no more of them than anybody else."""
    monkeypatch.setattr(jobs_module, "MAX_OPEN", 3)
    async with floor() as here:
        await here.jobs.open("a", ADA)
        await here.recorder.flush()
        here.store.gate = trio.Event()
        for job_id in ("b", "c"):
            await here.jobs.open(job_id, ADA)
        with pytest.raises(ClientError, match="QUOTA_EXCEEDED"):
            await here.jobs.open("d", ADA)
        await here.jobs.open("d", BOB)
        here.store.gate.set()
        await here.recorder.flush()
        with pytest.raises(ClientError, match="QUOTA_EXCEEDED"):
            await here.emit("e", 1)
        await here.jobs.close("a", ADA)
        await here.emit("e", 1)
