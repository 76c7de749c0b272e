"""The bounds of the store in memory; its promises are in ``tests/contract``."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from netra_ws.history.stores.contract import SetRunState
from netra_ws.history.stores.memory import (
    MOST_EVENTS_PER_STREAM,
    MOST_MESSAGES_PER_USER,
    MOST_RUNS_PER_USER,
    MemoryStore,
)
from tests.contract.rows import ALICE, BOB, EPOCH, KEY, put_event, put_message, put_run, put_stream, put_thread


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore()
    await store.open()
    yield store
    await store.close()


async def test_a_stream_is_bounded(store: MemoryStore) -> None:
    """Of a stream that grows on, the oldest events go as a prefix, and the stream says up to where."""
    last = MOST_EVENTS_PER_STREAM + 2_500
    await store.write([put_stream(), put_run(), *(put_event(seq, run_id="r") for seq in range(1, last + 1))])
    stream = await store.stream(KEY)
    assert stream is not None
    assert stream.trimmed > 0
    events = await store.events(KEY, EPOCH, 0, last, last)
    assert len(events) <= MOST_EVENTS_PER_STREAM
    assert [event.seq for event in events] == list(range(stream.trimmed + 1, last + 1))


async def test_a_late_event_finds_its_place(store: MemoryStore) -> None:
    """Events are given ascending, in whatever order they were written."""
    await store.write([put_stream(), *(put_event(seq) for seq in (5, 1, 3, 3, 9))])
    assert [event.seq for event in await store.events(KEY, EPOCH, 0, 100, 100)] == [1, 3, 5, 9]


async def test_messages_are_bounded_for_each_user(store: MemoryStore) -> None:
    """A user's first messages go from thread and search when there are too many; others keep theirs."""
    await store.write([put_thread(), put_thread(BOB), put_message("b", user_id=BOB)])
    await store.write([put_message(f"m{n}", f"w{n}", seq=n) for n in range(MOST_MESSAGES_PER_USER + 2)])
    kept = await store.messages(ALICE, "t", 10**6, None, 10**6)
    assert [row.seq for row in kept] == list(range(2, MOST_MESSAGES_PER_USER + 2))
    assert await store.search(ALICE, "w1", 10) == []
    assert len(await store.search(ALICE, "w2", 10)) == 1
    assert len(await store.messages(BOB, "t", 10, None, 10)) == 1


async def test_ended_runs_are_bounded_for_each_user(store: MemoryStore) -> None:
    """Of too many runs the first that ended are forgotten, and never one that has not ended."""
    await store.write([put_run(f"r{n}", command_id=f"c{n}") for n in range(MOST_RUNS_PER_USER)])
    await store.write([put_run("more"), put_run("still more")])
    assert await store.run(ALICE, "r0") is not None
    await store.write([SetRunState(user_id=ALICE, run_id="r7", state="success", at=2.0), put_run("last")])
    assert await store.run(ALICE, "r7") is None
    assert await store.run_of_command(ALICE, "c7") is None
    assert await store.run(ALICE, "last") is not None
    await store.write([SetRunState(user_id=ALICE, run_id="more", state="success", at=2.0), put_run("really")])
    assert await store.run(ALICE, "more") is None


async def test_reading_keeps_nothing(store: MemoryStore) -> None:
    """Asking for users, streams and threads that are not there does not make the store grow."""
    before = repr(store)
    await store.search("nobody", "x", 1)
    await store.messages("nobody", "t", 1, None, 1)
    await store.events("user:nobody", EPOCH, 0, 1, 1)
    await store.stream("user:nobody")
    assert repr(store) == before
