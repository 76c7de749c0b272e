"""Tests of ``netra_ws.history.recorder``: the only writer, with a store that waits and fails."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock as Clock

from netra_ws.errors import Lost, StoreError, Trimmed
from netra_ws.history import recorder as recorder_module
from netra_ws.history.cursor import Cursor
from netra_ws.history.recorder import GROUP_WRITES, Recorder
from netra_ws.history.stores import trimming
from netra_ws.history.stores.contract import PutEvent, Write
from netra_ws.history.stores.sql import SqlStore
from netra_ws.history.streams import Streams
from tests.contract.rows import EPOCH, put_event, put_stream

from .kit import ALICE, KEY, NOW, TroubledStore, WatchedFile, clock, delta, open_house, said


def seqs(batch: list[Write]) -> list[int]:
    return [write.seq for write in batch if isinstance(write, PutEvent)]


async def stored(store: TroubledStore, key: str = KEY) -> list[int]:
    row = await store.stream(key)
    assert row is not None
    return [event.seq for event in await store.events(key, row.epoch, 0, 10**9, 10**6)]


async def test_a_quiet_server_commits_at_once(autojump_clock: Clock) -> None:
    """A single step is committed without waiting for company."""
    async with open_house() as house:
        stream = await house.streams.open(ALICE)
        began = trio.current_time()
        stream.append(said())
        await house.recorder.flush()
        assert trio.current_time() == began
        assert stream.visible == 1


async def test_a_busy_server_commits_in_groups(autojump_clock: Clock) -> None:
    """What comes while one group is in the store is the next group, in the order in which it was submitted."""
    async with open_house() as house:
        stream = await house.streams.open(ALICE)
        house.store.gate = trio.Event()
        stream.append(said())
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(100):
            stream.append(said())
        assert stream.visible == 0
        house.store.gate.set()
        await house.recorder.flush()
        assert [seqs(batch) for batch in house.store.batches] == [[1], list(range(2, 102))]
        assert house.recorder.statistics().groups == 2


async def test_groups_are_bounded(autojump_clock: Clock) -> None:
    """A burst is cut into several transactions, so that its first step does not wait for its last."""
    async with open_house() as house:
        stream = await house.streams.open(ALICE)
        for _ in range(2 * GROUP_WRITES + 10):
            stream.append(said())
        await house.recorder.flush()
        assert all(len(batch) <= GROUP_WRITES for batch in house.store.batches)
        assert len(house.store.batches) == 3
        for _ in range(10):
            stream.append(said("x" * 1_000_000))
        await house.recorder.flush()
        assert [len(seqs(batch)) for batch in house.store.batches[3:]] == [5, 5]
        assert await stored(house.store) == list(range(1, stream.last + 1))


async def test_streams_share_a_group_and_become_visible_together(autojump_clock: Clock) -> None:
    """Steps of different users travel in one transaction; each stream hears of its own."""
    async with open_house() as house:
        streams = [await house.streams.open(f"user{number}") for number in range(5)]
        house.store.gate = trio.Event()
        for stream in streams:
            stream.append(said())
        await trio.testing.wait_all_tasks_blocked()
        house.store.gate.set()
        await house.recorder.flush()
        assert len(house.store.batches) == 1
        assert [stream.visible for stream in streams] == [1] * 5


@pytest.mark.parametrize("after", [False, True])
async def test_a_failing_store_loses_and_doubles_nothing(
    after: bool, caplog: pytest.LogCaptureFixture, autojump_clock: Clock
) -> None:
    """A group that failed, also one whose fate is unknown, is tried again unchanged until it is in."""
    caplog.set_level(logging.WARNING)
    async with open_house() as house:
        stream = await house.streams.open(ALICE)
        house.store.failures, house.store.after = 5, after
        for number in range(10):
            stream.append(said(number))
            stream.append(delta("x"))
        await trio.sleep(0.01)
        assert stream.visible == 0
        assert house.recorder.statistics().failing
        stream.append(said("later"))
        await house.recorder.flush()
        statistics = house.recorder.statistics()
        assert (statistics.errors, statistics.failing, statistics.waiting, statistics.waiting_bytes) == (5, False, 0, 0)
        assert await stored(house.store) == [*range(1, 21, 2), 21]
        assert stream.visible == 21
        assert house.store.batches[:6] == [house.store.batches[0]] * 6
    # One line when it begins and one when it is over, however many tries there were.
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


async def test_tries_are_spaced(autojump_clock: Clock) -> None:
    """A store that is away is asked again after 50 ms, then less and less often, but every 2 s at least."""
    async with open_house() as house:
        stream = await house.streams.open(ALICE)
        began = trio.current_time()
        house.store.failures = 8
        stream.append(said())
        await house.recorder.flush()
        assert trio.current_time() - began == pytest.approx(0.05 + 0.1 + 0.2 + 0.4 + 0.8 + 1.6 + 2.0 + 2.0)


async def test_closing_events_are_taken_while_the_store_is_away(autojump_clock: Clock) -> None:
    """However full the backlog is, an event that is appended is numbered and committed in the end."""
    async with open_house() as house:
        stream = await house.streams.open(ALICE)
        house.store.failures = 1000
        while not stream.full:
            stream.append(said())
        for _ in range(500):
            stream.append(said("closing"))
        await trio.sleep(30)
        house.store.failures = 0
        await house.recorder.flush()
        assert await stored(house.store) == list(range(1, stream.last + 1))


async def test_writers_wait_for_room_and_go_on(autojump_clock: Clock) -> None:
    """A writer that waits for room never gets far beyond the bound, and is let go on when the store works."""
    async with open_house() as house:
        stream = await house.streams.open(ALICE)
        house.store.gate = trio.Event()
        written = 0

        async def write() -> None:
            nonlocal written
            for _ in range(5000):
                await stream.wait_for_room()
                stream.append(said())
                written += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.sleep(10)
            assert written == 1025
            house.store.gate.set()
        await house.recorder.flush()
        assert stream.visible == 5000


async def test_all_streams_together_are_bounded(monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock) -> None:
    """Many users with a little each hold writers back as one with much does."""
    monkeypatch.setattr(recorder_module, "BACKLOG_BYTES", 10_000)
    async with open_house() as house:
        streams = [await house.streams.open(f"user{number}") for number in range(100)]
        house.store.gate = trio.Event()
        for stream in streams[:-1]:
            stream.append(said("x" * 100))
        assert house.recorder.crowded
        assert streams[-1].full
        house.store.gate.set()
        with trio.fail_after(1):
            await streams[-1].wait_for_room()
        assert not house.recorder.crowded


async def test_flush_waits_for_what_is_in_the_store(autojump_clock: Clock) -> None:
    """``flush`` returns when everything is committed, also the group that is in the store right now."""
    async with open_house() as house:
        stream = await house.streams.open(ALICE)
        house.store.gate = trio.Event()
        stream.append(said())
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(5) as scope:
            await house.recorder.flush()
        assert scope.cancelled_caught
        house.store.gate.set()
        await house.recorder.flush()
        assert stream.visible == 1
        await house.recorder.flush()


async def test_statistics(autojump_clock: Clock) -> None:
    """The numbers tell what waits, how long nothing has moved, and that nothing is wrong when nothing waits."""
    commits: list[float] = []
    async with open_house() as house:
        house.recorder.on_commit = commits.append
        stream = await house.streams.open(ALICE)
        await trio.sleep(100)
        assert house.recorder.statistics().idle_s == 0
        house.store.gate = trio.Event()
        size = len(stream.append(said()).frame)
        await trio.sleep(3)
        size += len(stream.append(said()).frame)
        await trio.sleep(4)
        statistics = house.recorder.statistics()
        assert (statistics.waiting, statistics.waiting_bytes, statistics.idle_s) == (2, size, 7.0)
        house.store.gate.set()
        await house.recorder.flush()
        statistics = house.recorder.statistics()
        assert (statistics.waiting, statistics.waiting_bytes, statistics.idle_s) == (0, 0, 0.0)
        assert commits == [7.0, 0.0]


# Retention.


class TrimmedStore(TroubledStore):
    """Notes when a round of trimming begins; in each it removes up to 3, then up to 5, then nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.trims: list[tuple[float, float]] = []
        self.portions = [3, 5]

    async def trim(self, before: float) -> Mapping[str, int]:
        await trio.lowlevel.checkpoint()
        if self.portions == [3, 5]:
            self.trims.append((trio.current_time(), before))
            if self._fails():
                raise StoreError("away")
        if self.portions:
            return {KEY: self.portions.pop(0)}
        self.portions = [3, 5]
        return {}


async def run_for(seconds: float, store: TrimmedStore, retention_s: float | None) -> Streams:
    await store.open()
    recorder = Recorder(store, retention_s, clock=clock)
    streams = Streams(store, recorder, clock)
    await streams.open(ALICE)
    with trio.move_on_after(seconds):
        await recorder.run(streams)
    return streams


async def test_old_events_are_removed_once_an_hour(autojump_clock: Clock) -> None:
    """A minute after the start and then every hour what is older than the retention goes, and streams hear of it."""
    store = TrimmedStore()
    began = trio.current_time()
    streams = await run_for(2 * 3600 + 100, store, 86400.0)
    assert [(at - began, before) for at, before in store.trims] == [
        (60.0, NOW - 86400.0),
        (3660.0, NOW - 86400.0),
        (7260.0, NOW - 86400.0),
    ]
    assert [stream.trimmed for stream in streams] == [5]


async def test_without_retention_nothing_is_removed(autojump_clock: Clock) -> None:
    """A server that keeps everything never trims."""
    store = TrimmedStore()
    await run_for(10_000, store, None)
    assert store.trims == []


async def test_a_failing_trim_is_tried_again_a_minute_later(
    caplog: pytest.LogCaptureFixture, autojump_clock: Clock
) -> None:
    """Retention that fails costs one line in the log, and the recorder goes on."""
    store = TrimmedStore()
    store.failures = 1
    streams = await run_for(130, store, 1.0)
    assert len(store.trims) == 2
    assert [stream.trimmed for stream in streams] == [5]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_a_busy_recorder_trims_as_well(autojump_clock: Clock) -> None:
    """Retention comes also when there is always something to commit."""
    store = TrimmedStore()
    await store.open()
    recorder = Recorder(store, 1.0, clock=clock)
    streams = Streams(store, recorder, clock)
    stream = await streams.open(ALICE)

    async def write() -> None:
        while True:
            stream.append(said())
            await trio.sleep(0.5)

    with trio.move_on_after(130):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.run, streams)
            nursery.start_soon(write)
    assert len(store.trims) == 1


@pytest.mark.parametrize("how", ["retention", "quota"])
async def test_a_reader_knows_of_a_removal_before_it_happens(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads while old events are removed gets every one of them, or is told that some are lost."""
    monkeypatch.setattr(recorder_module, "FIRST_TRIM_S", 0.0)
    store = SqlStore(file := WatchedFile(tmp_path / "netra_ws.db"))
    await store.open()
    await store.write([put_stream(), *(put_event(seq) for seq in range(1, 11))])
    recorder = Recorder(store, 1.0 if how == "retention" else None, clock=clock)
    streams = Streams(store, recorder, clock)
    stream = await streams.open(ALICE)
    outcomes: list[int | None] = []
    done = trio.Event()

    async def read() -> None:
        cursor, heard = Cursor(stream, store, 0), 0
        try:
            while cursor.pending:
                try:
                    heard += len(cursor.take(10**6))
                except Trimmed:
                    await cursor.refill()
            outcomes.append(heard)
        except Lost:
            outcomes.append(None)
        if len(outcomes) == 2:
            done.set()

    file.meanwhile = read
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run, streams)
        if how == "quota":
            await recorder.shorten(streams, stream.key, 0)
        await done.wait()
        nursery.cancel_scope.cancel()
    assert outcomes == [10, None]
    await store.close()


async def test_who_removes_waits_for_who_removes(autojump_clock: Clock) -> None:
    """Retention and a quota have one portion at a time marked, told and removed, whoever was first."""

    class Noted(TroubledStore):
        async def trim(self, before: float) -> Mapping[str, int]:
            calls.append("trim")
            ends = await self.kept.trim(before)
            await go_on.wait()
            return ends

        async def shorten(self, key: str, keep_bytes: int) -> Mapping[str, int]:
            calls.append("shorten")
            return await self.kept.shorten(key, keep_bytes)

        async def remove(self, ends: Mapping[str, int]) -> None:
            calls.append(f"remove {ends[KEY]}")
            await self.kept.remove(ends)

    calls: list[str] = []
    go_on = trio.Event()
    store = Noted()
    await store.open()
    await store.write([put_stream(), put_event(1), put_event(2), put_event(3, at=NOW), put_event(4, at=NOW)])
    recorder = Recorder(store, 1.0, clock=clock)
    streams = Streams(store, recorder, clock)
    stream = await streams.open(ALICE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run, streams)
        await trio.sleep(61)
        async with trio.open_nursery() as both:
            both.start_soon(recorder.shorten, streams, stream.key, 2)
            await trio.testing.wait_all_tasks_blocked()
            assert calls == ["trim"]
            go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert calls[:4] == ["trim", "remove 2", "shorten", "remove 3"]
    assert sorted(calls[4:]) == ["shorten", "trim"]
    assert stream.trimmed == 3
    assert await stored(store) == [4]


async def test_a_removal_that_fails_concerns_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When retention cannot remove what it marked, a quota goes on, and what stayed is found in the next try."""
    monkeypatch.setattr(trimming, "PORTION", 2)
    store = SqlStore(file := WatchedFile(tmp_path / "netra_ws.db"))
    await store.open()
    await store.write([put_stream("user:a"), put_stream("user:b"), put_stream()])
    await store.write([put_event(1, key="user:a"), *(put_event(seq, key="user:b") for seq in (1, 2))])
    await store.write([put_event(seq, at=NOW) for seq in (1, 2)])
    streams = Streams(store, recorder := Recorder(store, clock=clock), clock)
    ends = await store.trim(NOW)
    file.failures = 1
    with pytest.raises(StoreError, match="fire"):
        await store.remove(ends)
    await recorder.shorten(streams, (await streams.open(ALICE)).key, 2)
    while ends := await store.trim(NOW):
        await store.remove(ends)
    for key, kept in {"user:a": [], "user:b": [], KEY: [2]}.items():
        assert [event.seq for event in await store.events(key, EPOCH, 0, 99, 99)] == kept
    await store.close()


async def test_a_killed_recorder_leaves_a_clean_end(autojump_clock: Clock) -> None:
    """After a crash in the middle of a group the store has whole steps only, and the next process goes on behind."""
    store = TroubledStore()
    async with open_house(store) as house:
        stream = await house.streams.open(ALICE)
        stream.append(said("kept"))
        await house.recorder.flush()
        store.gate = trio.Event()
        with stream.step() as step:
            for _ in range(3):
                step.append(said("lost"))
        await trio.testing.wait_all_tasks_blocked()
        seen = stream.visible
    store.gate.set()
    assert await stored(store) == [1]
    async with open_house(store) as house:
        again = await house.streams.open(ALICE)
        assert again.judge(stream.epoch, seen) is None
        assert again.append(said("new")).seq > stream.last
        await house.recorder.flush()
        assert len(await stored(store)) == 2
