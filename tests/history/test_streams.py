"""Tests of ``netra_ws.history.streams``: which streams are kept in memory, and for how long."""

from __future__ import annotations

import pytest
import trio

from netra_ws.errors import StoreError
from netra_ws.history.cursor import Cursor
from netra_ws.history.stream import Stream
from netra_ws.history.streams import Streams

from .kit import ALICE, KEY, Client, HandSink, TroubledStore, Woken, clock, delta, drain, open_house, said


async def test_a_stream_is_opened_once(autojump_clock: trio.testing.MockClock) -> None:
    """However many open a user's stream at the same moment, all get the same one."""
    async with open_house() as house:
        found: list[Stream] = []

        async def open_it() -> None:
            found.append(await house.streams.open(ALICE))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(open_it)
        assert len({id(stream) for stream in found}) == 1
        assert found[0].pins == 20
        assert list(house.streams) == [found[0]]
        assert house.streams.pinned(ALICE).pins == 21


async def test_opening_may_fail_and_be_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    """When the store does not answer, whoever opens is told, and whoever waits behind it tries itself."""

    class Down(TroubledStore):
        async def stream(self, key: str) -> object:
            await trio.sleep(1)
            if self._fails():
                raise StoreError("away")
            return await self.kept.stream(key)

    store = Down()
    store.failures = 2
    async with open_house(store) as house:
        outcomes: list[object] = []

        async def open_it() -> None:
            try:
                outcomes.append(await house.streams.open(ALICE))
            except StoreError as exc:
                outcomes.append(exc)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(open_it)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["StoreError"] * 2 + ["Stream"] * 2
        assert len(house.streams) == 1


async def test_an_unknown_stream_cannot_be_pinned() -> None:
    """Only what is in memory can be pinned without asking the store."""
    streams = Streams(TroubledStore(), HandSink(TroubledStore()), clock)
    with pytest.raises(KeyError):
        streams.pinned(ALICE)


async def test_the_longest_unused_streams_are_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    """At most ``max_idle`` unused streams are kept, the last used ones, however many are in use."""
    async with open_house(max_idle=2) as house:
        busy = [await house.streams.open(f"busy{number}") for number in range(5)]
        others = {name: await house.streams.open(name) for name in ("a", "b", "c", "d")}
        for name in ("c", "a", "d", "b"):
            house.streams.release(others[name])
        assert [stream.user_id for stream in house.streams if stream not in busy] == ["b", "d"]
        assert all(stream in list(house.streams) for stream in busy)
        assert await house.streams.open("d") is others["d"]
        again = await house.streams.open("c")
        assert again is not others["c"]
        house.streams.release(again)
        assert [stream.user_id for stream in house.streams if stream not in busy] == ["b", "d", "c"]


async def test_a_stream_in_use_is_never_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    """A stream that is pinned, read or not yet committed stays, whatever else is released."""
    async with open_house(max_idle=0) as house:
        pinned = await house.streams.open("pinned")
        read = await house.streams.open("read")
        read.attach(reader := Woken())
        writing = await house.streams.open("writing")
        house.store.gate = trio.Event()
        writing.append(said())
        for stream in (read, writing):
            house.streams.release(stream)
        house.streams.release(await house.streams.open("other"))
        assert set(house.streams) == {pinned, read, writing}
        house.store.gate.set()
        await house.recorder.flush()
        read.detach(reader)
        house.streams.evict()
        assert set(house.streams) == {pinned}


async def test_a_forgotten_stream_comes_back_with_all_it_had(autojump_clock: trio.testing.MockClock) -> None:
    """After eviction the same epoch goes on, numbers only grow, and the store has every durable event."""
    async with open_house(max_idle=0) as house:
        stream = await house.streams.open(ALICE)
        for number in range(10):
            stream.append(said(number))
            stream.append(delta("x"))
        await house.recorder.flush()
        house.streams.release(stream)
        again = await house.streams.open(ALICE)
        assert again is not stream
        assert again.epoch == stream.epoch
        assert again.append(said(10)).seq > stream.last
        await house.recorder.flush()
        client = Client()
        await drain(Cursor(again, house.store, 0), client)
        assert [fields["value"] for fields in client.heard] == list(range(11))


async def test_streams_in_memory_hear_what_retention_removed() -> None:
    """A trim reaches streams in memory; keys that are not there are passed over."""
    streams = Streams(store := TroubledStore(), HandSink(store), clock)
    await store.open()
    stream = await streams.open(ALICE)
    streams.trimmed({KEY: 7, "user:bob": 9})
    assert stream.trimmed == 7


async def test_what_was_trimmed_stays_trimmed() -> None:
    """An end that is told late does not take back a later one."""
    streams = Streams(store := TroubledStore(), HandSink(store), clock)
    await store.open()
    stream = await streams.open(ALICE)
    for end in (7, 5):
        streams.trimmed({KEY: end})
    assert stream.trimmed == 7


async def test_a_stream_hears_what_is_trimmed_while_it_is_opened() -> None:
    """An end that is told between the read of a stream's row and its arrival counts for it; other streams go on."""

    class Late(TroubledStore):
        async def stream(self, key: str) -> object:
            row = await self.kept.stream(key)
            streams.trimmed({key: 7})
            streams.trimmed({key: 5})
            return row

    streams = Streams(store := Late(), HandSink(store), clock)
    await store.open()
    stream = await streams.open(ALICE)
    assert stream.trimmed == 7
    streams.trimmed({KEY: 9})
    assert stream.trimmed == 9


async def test_counts(autojump_clock: trio.testing.MockClock) -> None:
    """All streams together count what was said by type."""
    async with open_house() as house:
        for name in ("a", "b"):
            stream = await house.streams.open(name)
            stream.append(said())
            stream.append(delta("x"))
        assert house.streams.counts.events == {"agent_event": 2, "agent_message": 2}


async def test_unused_streams_are_bounded_by_bytes(autojump_clock: trio.testing.MockClock) -> None:
    """A few unused streams with much in memory are forgotten as well, the longest unused ones first."""
    async with open_house(max_idle_bytes=25_000) as house:
        opened = [await house.streams.open(f"user{number}") for number in range(5)]
        for stream in opened:
            stream.append(said("x" * 9_000))
        await house.recorder.flush()
        for stream in opened:
            house.streams.release(stream)
        assert [stream.user_id for stream in house.streams] == ["user3", "user4"]
        house.streams.pinned("user4")
        house.streams.release(await house.streams.open("small"))
        assert [stream.user_id for stream in house.streams] == ["user3", "user4", "small"]
