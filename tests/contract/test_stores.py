"""What every store promises of its life, its batches, its streams and their events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio

from netra_ws.errors import StoreError
from netra_ws.history.stores.contract import EventRow, Store, StreamRow, Write

from .rows import ALICE, EPOCH, KEY, put_event, put_message, put_run, put_stream, put_thread, trim

MakeStore = Callable[[], Store]


def seqs(events: Sequence[EventRow]) -> list[int]:
    return [event.seq for event in events]


async def all_seqs(store: Store, key: str = KEY) -> list[int]:
    return seqs(await store.events(key, EPOCH, 0, 10**9, 10**6))


# Its life.


async def test_a_closed_store_says_so(new_store: MakeStore) -> None:
    """Before it is opened and after it is closed, every call of a store raises StoreError in one line."""
    store = new_store()
    calls: list[Callable[[], Awaitable[object]]] = [
        store.ping,
        lambda: store.write([put_stream()]),
        lambda: store.trim(1.0),
        lambda: store.shorten(KEY, 0),
        lambda: store.remove({KEY: 1}),
        lambda: store.stream(KEY),
        lambda: store.threads(ALICE, 1, None),
        lambda: store.unfinished_runs(1),
    ]
    for opened in (False, True):
        if opened:
            await store.open()
            await store.ping()
            await store.close()
        for call in calls:
            with pytest.raises(StoreError, match=r"^the store is not open$"):
                await call()


async def test_closing_again_is_harmless(new_store: MakeStore) -> None:
    """A store can be closed before it was opened, and twice after."""
    store = new_store()
    await store.close()
    await store.open()
    await store.close()
    await store.close()


async def test_a_cancelled_close_closes(new_store: MakeStore) -> None:
    """A close that is cancelled still gives everything back: the next open works and finds the rows."""
    store = new_store()
    await store.open()
    await store.write([put_stream()])
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.close()
    again = new_store()
    await again.open()
    assert await again.stream(KEY) is not None
    await again.close()


async def test_rows_outlive_a_close(new_store: MakeStore) -> None:
    """What was written is there after close and open, of every kind."""
    batch: list[Write] = [put_stream(), put_event(1, run_id="r"), put_thread(), put_run(command_id="c"), put_message()]
    store = new_store()
    await store.open()
    await store.write(batch)
    await store.close()
    again = new_store()
    await again.open()
    assert await again.stream(KEY) == StreamRow(key=KEY, epoch=EPOCH, reserved=1_000)
    assert await all_seqs(again) == [1]
    assert await again.thread(ALICE, "t") is not None
    assert len(await again.search(ALICE, "hello", 10)) == 1
    assert await again.run_of_command(ALICE, "c") == put_run(command_id="c").row
    await again.close()


async def test_close_waits_for_reads(new_store: MakeStore) -> None:
    """A close amid many reads lets each end with its rows or with StoreError, and nothing else."""
    store = new_store()
    await store.open()
    await store.write([put_stream()])
    outcomes: list[object] = []

    async def read() -> None:
        try:
            outcomes.append(await store.stream(KEY))
        except StoreError as exc:
            outcomes.append(str(exc))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(read)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(store.close)
    assert len(outcomes) == 50
    assert set(outcomes) <= {StreamRow(key=KEY, epoch=EPOCH, reserved=1_000), "the store is not open"}


# Batches.


async def test_an_empty_batch_is_nothing(store: Store) -> None:
    """Writing no rows works and changes nothing."""
    await store.write([])
    assert await store.stream(KEY) is None


async def test_a_batch_is_carried_out_in_order(store: Store) -> None:
    """Writes of several kinds that depend on each other act in the order in which they stand."""
    await store.write(
        [
            put_message("early"),
            put_thread(),
            put_message("kept", seq=1),
            put_run(),
            put_event(1),
            put_stream(),
            put_message("kept", "changed", seq=2),
        ]
    )
    assert [row.content for row in await store.messages(ALICE, "t", 10, None, 100)] == ["changed"]
    assert await all_seqs(store) == [1]


async def test_a_failing_batch_leaves_nothing(store: Store) -> None:
    """After a batch with a row that cannot be kept, none of its rows is there, and the next batch works."""
    good: list[Write] = [put_stream(), put_event(1), put_thread("zoe"), put_run()]
    with pytest.raises(StoreError) as caught:
        await store.write([*good, put_thread(thread_id="bad", metadata={"x": object()})])
    assert "\n" not in str(caught.value)
    assert await store.stream(KEY) is None
    assert await all_seqs(store) == []
    assert await store.count_threads("zoe") == 0
    assert await store.run(ALICE, "r") is None
    await store.write(good)
    assert await all_seqs(store) == [1]


async def test_a_batch_handed_over_again_changes_nothing(store: Store) -> None:
    """A batch whose fate is unknown can be written again: every read gives what it gave."""
    batch: list[Write] = [
        put_stream(),
        put_event(1, run_id="r", payload=b"first"),
        put_thread(at=1.0),
        put_run(command_id="c"),
        put_message("m", "hello hello", created_at=5.0),
        put_event(2, run_id="r"),
    ]
    seen = []
    for _ in range(2):
        await store.write(batch)
        seen.append(
            [
                await store.stream(KEY),
                await store.events(KEY, EPOCH, 0, 100, 100),
                await store.threads(ALICE, 100, None),
                await store.messages(ALICE, "t", 100, None, 100),
                await store.search(ALICE, "hello", 100),
                await store.unfinished_runs(100),
            ]
        )
    assert seen[0] == seen[1]


async def test_a_cancelled_write_can_be_handed_over_again(store: Store) -> None:
    """A cancelled write has happened or not; written again, its rows are there once."""
    batch: list[Write] = [put_stream(), *(put_event(seq) for seq in range(1, 101))]
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.write(batch)
    assert len(await all_seqs(store)) in (0, 100)
    await store.write(batch)
    assert await all_seqs(store) == list(range(1, 101))


async def test_a_read_after_a_write_sees_it(store: Store) -> None:
    """Each of many reads at once, begun after a write returned, sees the write."""
    await store.write([put_stream()])
    for reserved in range(2_000, 2_020):
        await store.write([put_stream(reserved=reserved)])
        rows: list[StreamRow | None] = []

        async def read(rows: list[StreamRow | None] = rows) -> None:
            rows.append(await store.stream(KEY))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(read)
        assert [row and row.reserved for row in rows] == [reserved] * 8


# Streams and events.


async def test_a_reservation_only_rises(store: Store) -> None:
    """A lower reservation, or one that names another epoch, changes nothing."""
    await store.write([put_stream(reserved=500)])
    await store.write([put_stream(reserved=400), put_stream(reserved=900, epoch="other")])
    assert await store.stream(KEY) == StreamRow(key=KEY, epoch=EPOCH, reserved=500)
    await store.write([put_stream(reserved=600)])
    assert await store.stream(KEY) == StreamRow(key=KEY, epoch=EPOCH, reserved=600)


async def test_events_are_a_range(store: Store) -> None:
    """Events come ascending from behind *after* up to and including *upto*, at most *limit*."""
    await store.write([put_stream(), *(put_event(seq) for seq in (2, 3, 5, 8, 13))])
    assert seqs(await store.events(KEY, EPOCH, 2, 8, 100)) == [3, 5, 8]
    assert seqs(await store.events(KEY, EPOCH, 2, 8, 2)) == [3, 5]
    assert seqs(await store.events(KEY, EPOCH, 13, 2**63, 100)) == []
    assert seqs(await store.events(KEY, EPOCH, 0, 100, 0)) == []
    assert seqs(await store.events(KEY, EPOCH, 0, 100, -1)) == []


async def test_events_are_read_in_portions_of_bytes(store: Store) -> None:
    """A read ends with the event that reaches its bound in bytes, and always makes progress."""
    await store.write([put_stream(), *(put_event(seq, payload=b"x" * 100) for seq in (1, 2, 3))])
    for most, found in ((1, [1]), (100, [1]), (101, [1, 2]), (300, [1, 2, 3]), (10**9, [1, 2, 3])):
        assert seqs(await store.events(KEY, EPOCH, 0, 100, 100, most)) == found
    assert seqs(await store.events(KEY, EPOCH, 0, 100, 2, 10**9)) == [1, 2]


async def test_events_belong_to_their_stream_and_epoch(store: Store) -> None:
    """The same numbers in two streams are different events; an unknown stream or epoch has none."""
    other = "job:alice"
    await store.write([put_stream(), put_stream(other)])
    await store.write([put_event(1, payload=b"a"), put_event(1, key=other, payload=b"b"), put_event(2, key=other)])
    assert await store.events(KEY, EPOCH, 0, 9, 9) == [EventRow(seq=1, type="agent_event", payload=b"a")]
    assert await all_seqs(store, other) == [1, 2]
    assert await store.events(KEY, "epoch-2", 0, 9, 9) == []
    assert await store.events("user:nobody", EPOCH, 0, 9, 9) == []
    assert await store.stream("user:nobody") is None


async def test_the_first_event_of_a_position_stays(store: Store) -> None:
    """An event handed over again, even with another payload, does not change what was written."""
    await store.write([put_stream(), put_event(1, payload=b"first"), put_event(1, payload=b"second")])
    await store.write([put_event(1, payload=b"third")])
    assert [event.payload for event in await store.events(KEY, EPOCH, 0, 9, 9)] == [b"first"]


async def test_payloads_are_bytes(store: Store) -> None:
    """A payload comes back byte for byte: empty, with NUL, and with 256 KiB."""
    payloads = [b"", b"\0\xff{}", "„ü“".encode(), b"x" * 262_144]
    await store.write([put_stream(), *(put_event(seq, payload=each) for seq, each in enumerate(payloads))])
    assert [event.payload for event in await store.events(KEY, EPOCH, -1, 9, 9)] == payloads


async def test_events_of_one_run(store: Store) -> None:
    """All events of a run are found among those of others, ascending."""
    runs = [None, "r", "s", "r", None, "r"]
    await store.write([put_stream(), *(put_event(seq, run_id=run) for seq, run in enumerate(runs, 1))])
    assert seqs(await store.run_events(KEY, EPOCH, "r")) == [2, 4, 6]
    assert await store.run_events(KEY, EPOCH, "nobody's") == []
    assert await store.run_events(KEY, "epoch-2", "r") == []


# Trimming.


async def test_trim_removes_what_is_older(store: Store) -> None:
    """Events before the time go, the stream says up to where, and reads go on behind."""
    await store.write([put_stream(), *(put_event(seq, at=float(seq)) for seq in range(1, 11))])
    assert await trim(store, 6.0) == {KEY: 5}
    assert await all_seqs(store) == [6, 7, 8, 9, 10]
    assert await store.stream(KEY) == StreamRow(key=KEY, epoch=EPOCH, reserved=1_000, trimmed=5)


@pytest.mark.parametrize("how", ["trim", "shorten"])
async def test_what_is_marked_is_there_until_it_is_removed(store: Store, how: str) -> None:
    """Between the mark and the removal every event can still be read; what was not removed is found again."""
    await store.write([put_stream(), *(put_event(seq, at=float(seq)) for seq in range(1, 6)), put_event(6, at=99.0)])
    for _ in range(2):
        ends = await (store.trim(6.0) if how == "trim" else store.shorten(KEY, 2))
        assert ends == {KEY: 5}
        row = await store.stream(KEY)
        assert row is not None
        assert row.trimmed == 5
        assert await all_seqs(store) == [1, 2, 3, 4, 5, 6]
    await store.remove(ends)
    assert await all_seqs(store) == [6]
    assert await store.trim(6.0) == await store.shorten(KEY, 2) == {}


async def test_a_mark_never_goes_back(store: Store) -> None:
    """Who marks less than was marked before is told the mark that holds."""
    await store.write([put_stream(), *(put_event(seq, at=float(seq)) for seq in range(1, 11))])
    assert await store.shorten(KEY, 4) == {KEY: 8}
    assert await store.trim(4.0) == {KEY: 8}
    row = await store.stream(KEY)
    assert row is not None
    assert row.trimmed == 8


async def test_removing_nothing(store: Store) -> None:
    """Ends of streams that are not there, no ends at all, and ends reached already change nothing."""
    await store.write([put_stream(), put_event(5), put_event(6)])
    for ends in ({}, {"user:nobody": 9}, {KEY: 4}):
        await store.remove(ends)
    assert await all_seqs(store) == [5, 6]


async def test_trim_removes_a_prefix(store: Store) -> None:
    """An old event behind one that stays is kept: a stream never has a hole."""
    times = [1.0, 1.0, 9.0, 1.0, 1.0]
    await store.write([put_stream(), *(put_event(seq, at=at) for seq, at in enumerate(times, 1))])
    assert await trim(store, 5.0) == {KEY: 2}
    assert await all_seqs(store) == [3, 4, 5]


@pytest.mark.parametrize("state", ["queued", "running"])
async def test_trim_keeps_an_unfinished_run(store: Store, state: str) -> None:
    """Nothing from the first event of a run that has not ended is removed, however old."""
    runs = [None, "done", "r", None]
    await store.write([put_stream(), put_run("r", state=state), put_run("done", state="success")])
    await store.write([put_event(seq, run_id=run) for seq, run in enumerate(runs, 1)])
    assert await trim(store, 100.0) == {KEY: 2}
    assert await all_seqs(store) == [3, 4]


async def test_trim_says_only_what_changed(store: Store) -> None:
    """Streams that lose nothing are not named; a second trim finds nothing; an emptied stream is told whole."""
    await store.write([put_stream(), put_stream("user:bob"), put_stream("user:empty")])
    await store.write([put_event(1), put_event(2), put_event(1, key="user:bob", at=9.0)])
    assert await trim(store, 5.0) == {KEY: 2}
    assert await trim(store, 5.0) == {}
    assert await all_seqs(store, "user:bob") == [1]
    await store.write([put_stream(reserved=5_000), put_event(7)])
    assert await store.stream(KEY) == StreamRow(key=KEY, epoch=EPOCH, reserved=5_000, trimmed=2)
    assert await trim(store, 5.0) == {KEY: 7}


async def test_trim_goes_in_portions(store: Store) -> None:
    """Called until it returns nothing, trim removes all that is old, of many streams and of one that is long."""
    keys = [f"user:{number}" for number in range(20)]
    for key in keys:
        await store.write([put_stream(key), put_event(1, key=key), put_event(2, key=key, at=9.0)])
    await store.write([put_stream(), *(put_event(seq, run_id="r") for seq in range(1, 6_001))])
    await store.write([put_event(6_001, at=9.0)])
    ends: dict[str, int] = {}
    while trimmed := await trim(store, 5.0):
        assert all(ends.get(key, 0) < last for key, last in trimmed.items())
        for key, last in trimmed.items():
            row = await store.stream(key)
            assert row is not None
            assert row.trimmed == last
        ends |= trimmed
    assert ends == {KEY: 6_000, **dict.fromkeys(keys, 1)}
    assert await all_seqs(store) == [6_001]
