"""Tests of ``netra_ws.contexts.jobs``: what is in memory of jobs, while the store is slow, fails, or is cancelled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from netra_ws.contexts import jobs as jobs_module
from netra_ws.contexts.jobs import Jobs, LiveJob
from netra_ws.errors import ClientError, StoreError
from netra_ws.history.stores.contract import JobRow
from netra_ws.identity import Identity
from netra_ws.protocol.events import Announcement

from ..history.kit import House, TroubledStore, open_house

ADA, BOB = Identity("ada"), Identity("bob")


def word(live: LiveJob) -> Announcement:
    return Announcement(name="step", value=1, job_id=live.job_id)


class SlowStore(TroubledStore):
    """Reads of jobs wait until they are let go.

    Attributes:
        let_go: Set while they do not wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.let_go = trio.Event()
        self.let_go.set()
        self.job_reads = 0

    async def job(self, job_id: str) -> JobRow | None:
        self.job_reads += 1
        found = await self.kept.job(job_id)
        await self.let_go.wait()
        return found


@attrs.frozen
class Room:
    """Jobs over a store with its recorder at work."""

    house: House
    store: SlowStore
    jobs: Jobs

    def pins(self) -> int:
        """How many pins there are, of jobs and of streams in use."""
        return sum(live.pins for live in self.jobs)


@asynccontextmanager
async def open_room() -> AsyncIterator[Room]:
    store = SlowStore()
    async with open_house(store) as house:
        yield Room(house, store, Jobs(house.streams, store, house.recorder))


async def test_an_id_that_was_closed_is_free_before_the_store_knows() -> None:
    """While a closing is not committed the id is another user's who opens it, and what was said stays apart."""
    async with open_room() as room, trio.open_nursery() as nursery:
        first, _ = await room.jobs.emit("build", ADA, word)
        await room.house.recorder.flush()
        room.store.gate = trio.Event()  # nothing is written from here on
        nursery.start_soon(room.jobs.close, "build", ADA)
        await wait_all_tasks_blocked()
        second, seq = await room.jobs.emit("build", BOB, word)
        assert (second.key != first.key, second.epoch != first.epoch, seq) == (True, True, 1)
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await room.jobs.emit("build", ADA, word)
        room.store.gate.set()
        await room.house.recorder.flush()
        row = await room.store.kept.job("build")
        assert row is not None
        assert (row.user_id, row.key) == ("bob", second.key)


async def test_a_closed_job_leaves_nothing() -> None:
    """When a job was closed and nobody reads it, nothing of it is in memory, and its stream is held by nobody."""
    async with open_room() as room:
        stream, _ = await room.jobs.emit("build", ADA, word)
        await room.jobs.close("build", ADA)
        assert (len(room.jobs), list(room.jobs), room.jobs.idle, stream.pins) == (0, [], 0, 0)
        again, seq = await room.jobs.emit("build", ADA, word)
        assert seq == 1
        assert again is not stream


async def test_idle_jobs_are_forgotten_when_the_store_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the job used longest ago goes, but never before it is known whose it is."""
    monkeypatch.setattr(jobs_module, "MAX_IDLE", 2)
    async with open_room() as room:
        room.store.gate = trio.Event()
        for name in "abcd":
            await room.jobs.emit(name, ADA, word)
        assert room.jobs.idle == 4  # nothing is committed
        room.store.gate.set()
        await room.house.recorder.flush()
        await room.jobs.emit("e", ADA, word)
        await room.house.recorder.flush()
        async with room.jobs.using("d"):
            pass
        assert room.jobs.idle <= 3
        reads = room.store.job_reads
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await room.jobs.emit("a", BOB, word)
        assert room.store.job_reads == reads + 1  # it was forgotten, and found


async def test_two_who_open_an_id_at_the_same_moment() -> None:
    """One of them owns it, the other one is refused, and the store has one owner."""
    async with open_room() as room:
        refused: list[str] = []

        async def say(identity: Identity) -> None:
            try:
                await room.jobs.emit("build", identity, word)
            except ClientError:
                refused.append(identity.user_id)

        room.store.let_go = trio.Event()
        async with trio.open_nursery() as nursery:
            for identity in (ADA, BOB):
                nursery.start_soon(say, identity)
            await wait_all_tasks_blocked()
            assert room.store.job_reads == 1
            room.store.let_go.set()
        await room.house.recorder.flush()
        row = await room.store.kept.job("build")
        assert row is not None
        assert sorted([row.user_id, *refused]) == ["ada", "bob"]
        assert room.pins() == 0


async def test_a_store_that_fails_leaves_nothing() -> None:
    """A read that fails is told to everybody who waits for it or comes later, and the next one tries again."""
    async with open_room() as room:
        failing = True

        async def job(job_id: str) -> JobRow | None:
            if failing:
                raise StoreError("away")
            return None

        room.store.job = job  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(StoreError):
                await room.jobs.emit("build", ADA, word)
        assert (len(room.jobs), room.pins()) == (0, 0)
        failing = False
        await room.jobs.emit("build", ADA, word)


async def _cut(work: Callable[[], Awaitable[object]], checkpoints: int) -> bool:
    """Carry *work* out and cancel it at so many checkpoints; return whether it was done before."""
    done = False

    async def carry() -> None:
        nonlocal done
        await work()
        done = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry)
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    return done


@pytest.mark.parametrize("what", ["emit", "open", "close", "pin"])
async def test_whenever_it_is_cancelled_nothing_is_held(what: str) -> None:
    """Whatever is cancelled at whatever moment, no pin is left, and the next one who comes gets a whole answer."""
    checkpoints, done = 0, False
    while not done:
        async with open_room() as room:
            if what == "close":
                await room.jobs.emit("build", ADA, word)
                await room.house.recorder.flush()

            async def use() -> None:
                async with room.jobs.using("build"):
                    await trio.lowlevel.checkpoint()

            work: dict[str, Callable[[], Awaitable[object]]] = {
                "emit": lambda: room.jobs.emit("build", ADA, word),
                "open": lambda: room.jobs.open("build", ADA),
                "close": lambda: room.jobs.close("build", ADA),
                "pin": use,
            }
            done = await _cut(work[what], checkpoints)
            assert room.pins() == 0
            await room.house.recorder.flush()
            owner = await room.store.kept.job("build")
            stream, seq = await room.jobs.emit("build", ADA if owner is not None else BOB, word)
            assert seq >= 1
            await room.house.recorder.flush()
            row = await room.store.kept.job("build")
            assert row is not None
            assert row.key == stream.key
            assert room.pins() == 0
        checkpoints += 1
        assert checkpoints < 60


async def test_jobs_that_are_over_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent job whose events are gone frees its id, one in use stays, and closed ones go with their streams."""
    async with open_room() as room:
        jobs, store, recorder = room.jobs, room.store, room.house.recorder
        recorder.retention_s = 10.0
        streams = {}
        for name in ("silent", "used", "closed"):
            streams[name], _ = await jobs.emit(name, ADA, word)
        await recorder.flush()
        await jobs.close("closed", ADA)
        for stream in streams.values():
            await recorder.shorten(room.house.streams, stream.key, 0)
        assert await jobs.forget_ended() == 1  # nobody's time is over but the closed one's
        await recorder.flush()
        now = room.house.streams.clock()
        monkeypatch.setattr(room.house.streams, "clock", lambda: now + 100.0)
        async with jobs.using("used"):
            assert await jobs.forget_ended() == 1
            await recorder.flush()
            assert await store.kept.job("silent") is None
            assert await store.kept.stream(streams["silent"].key) is None
            assert await store.kept.stream(streams["closed"].key) is None
            assert await store.kept.job("used") is not None
        again, seq = await jobs.emit("silent", BOB, word)
        assert (again.key == streams["silent"].key, seq) == (False, 1)
        _, seq = await jobs.emit("used", ADA, word)
        assert seq == 2


async def test_an_id_is_free_while_its_forgetting_is_not_committed() -> None:
    """Who opens an expired id before the store has forgotten it gets a stream that outlives that."""
    async with open_room() as room:
        room.house.recorder.retention_s = 10.0
        stream, _ = await room.jobs.emit("build", ADA, word)
        await room.house.recorder.flush()
        await room.house.recorder.shorten(room.house.streams, stream.key, 0)
        now = room.house.streams.clock()
        room.house.streams.clock = lambda: now + 100.0
        room.store.gate = trio.Event()
        assert await room.jobs.forget_ended() == 1
        again, _ = await room.jobs.emit("build", BOB, word)
        room.store.gate.set()
        await room.house.recorder.flush()
        row = await room.store.kept.job("build")
        assert row is not None
        assert (row.user_id, row.key) == ("bob", again.key)
        assert await room.store.kept.stream(again.key) is not None
