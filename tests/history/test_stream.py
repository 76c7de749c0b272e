"""Tests of ``netra_ws.history.stream``: numbers, visibility, the ring, and texts that are open."""

from __future__ import annotations

import pytest
import trio

from netra_ws.errors import Trimmed
from netra_ws.history.stores.contract import PutEvent, PutStream, PutThread
from netra_ws.history.stream import BACKLOG_ENTRIES, RESERVE, Step, Stream

from .kit import (
    ALICE,
    KEY,
    NOW,
    HandSink,
    TroubledStore,
    Woken,
    clock,
    completed,
    delta,
    fields_of,
    full,
    open_by_hand,
    open_house,
    progress,
    said,
    thought,
)

# Numbers and visibility.


async def test_events_are_numbered_from_1_without_holes() -> None:
    """Each event gets the next number, durable or not, and its stamp says whose and when it is."""
    stream, _, _ = await open_by_hand()
    entries = [stream.append(event) for event in (said(), delta("a"), progress(), full("a"), completed())]
    assert [entry.seq for entry in entries] == [1, 2, 3, 4, 5]
    assert fields_of(entries[0].frame) == {
        "type": "agent_event",
        "event_id": f"{stream.epoch}.1",
        "seq": 1,
        "timestamp": NOW,
        "user_id": ALICE,
        "thread_id": "t",
        "run_id": "r",
        "agent_name": "echo",
        "name": "said",
        "value": None,
    }


async def test_nothing_is_seen_before_the_first_reservation() -> None:
    """Even a delta waits until numbers are reserved in the store, so no number is ever seen twice."""
    stream, sink, store = await open_by_hand()
    stream.append(delta("a"))
    assert stream.visible == 0
    await sink.commit()
    assert stream.visible == 1
    row = await store.stream(KEY)
    assert row is not None
    assert row.reserved >= 1 + RESERVE // 2


async def test_a_durable_event_is_seen_after_its_commit_only() -> None:
    """A durable event becomes visible when it is in the store, never before."""
    stream, sink, store = await open_by_hand()
    stream.append(said(1))
    assert stream.visible == 0
    await sink.commit()
    assert stream.visible == 1
    assert [row.seq for row in await store.events(KEY, stream.epoch, 0, 10, 10)] == [1]


async def test_deltas_wait_behind_uncommitted_events() -> None:
    """A delta never overtakes a durable event before it; without one it is visible at once."""
    stream, sink, _ = await open_by_hand()
    stream.append(said(1))
    await sink.commit()
    stream.append(delta("a"))
    assert stream.visible == 2
    stream.append(said(3))
    stream.append(delta("b"))
    stream.append(said(5))
    stream.append(delta("c"))
    assert stream.visible == 2
    await sink.commit(1)
    assert stream.visible == 4
    await sink.commit()
    assert stream.visible == 6


async def test_nothing_is_seen_beyond_the_reservation() -> None:
    """Deltas that outrun the reserved numbers wait until more are reserved in the store."""
    stream, sink, store = await open_by_hand(ring_events=10 * RESERVE)
    stream.append(delta("x"))
    await sink.commit()
    for _ in range(3 * RESERVE):
        stream.append(delta("x"))
    seen = []
    for _ in range(len(sink.steps) + 1):
        row = await store.stream(KEY)
        assert row is not None
        assert stream.visible == min(stream.last, row.reserved)
        seen.append(stream.visible)
        await sink.commit(1)
    assert seen[0] < seen[1] < seen[-1] == stream.last


async def test_reservations_come_before_they_are_needed() -> None:
    """A steady writer of deltas never waits: the next block is asked for half a block ahead."""
    stream, sink, _ = await open_by_hand()
    stream.append(delta("x"))
    await sink.commit()
    blocks = 0
    for _ in range(3 * RESERVE):
        blocks += len(sink.steps)
        await sink.commit()
        stream.append(delta("x"))
        assert stream.visible == stream.last
    assert blocks <= 7


async def test_one_step_is_one_transaction() -> None:
    """Events and rows of a step are handed over together, and all of its events become visible at once."""
    stream, sink, _ = await open_by_hand()
    row = PutThread(user_id=ALICE, thread_id="t", title="", metadata={}, created_at=NOW)
    with stream.step() as step:
        step.append(said(1))
        step.write(row)
        step.append(said(2))
        assert not sink.steps
    (only,) = sink.steps
    assert [type(write) for write in only.writes] == [PutEvent, PutStream, PutThread, PutEvent]
    await sink.commit()
    assert stream.visible == 2


async def test_what_is_appended_inside_a_step_keeps_its_place() -> None:
    """An event that comes in the middle of somebody's step is not taken for committed before it is."""
    stream, sink, store = await open_by_hand()
    with stream.step() as step:
        step.append(said(1))
        stream.append(said(2))
        with stream.step() as inner:
            inner.append(said(3))
        step.append(said(4))
    await sink.commit(1)
    assert [row.seq for row in await store.events(KEY, stream.epoch, 0, stream.visible, 10)] == [1, 2, 3, 4]
    assert stream.visible == 4
    stream.append(said(5))
    assert len(sink.steps) == 1


async def test_a_step_that_fails_is_handed_over_as_far_as_it_came() -> None:
    """Events that have a number are committed, also when the step is left by an error."""
    stream, sink, _ = await open_by_hand()
    with pytest.raises(ZeroDivisionError), stream.step() as step:
        step.append(said(1))
        raise ZeroDivisionError
    await sink.commit()
    assert stream.visible == 1
    stream.append(said(2))
    assert sink.steps[0].last_seq == 2


async def test_what_is_no_json_leaves_no_trace() -> None:
    """An event that cannot be encoded takes no number, and its rows are not written."""
    stream, sink, _ = await open_by_hand()
    row = PutThread(user_id=ALICE, thread_id="t", title="", metadata={}, created_at=NOW)
    with pytest.raises(TypeError):
        stream.append(said({1, 2}), row)
    with pytest.raises(TypeError):
        stream.append(delta("\ud800"))
    assert (stream.last, list(sink.steps)) == (0, [])
    assert stream.append(said()).seq == 1


async def test_rows_alone_are_a_step() -> None:
    """Rows may be written without any event, and with an event that is not durable."""
    stream, sink, _ = await open_by_hand()
    row = PutThread(user_id=ALICE, thread_id="t", title="", metadata={}, created_at=NOW)
    with stream.step() as step:
        step.write(row)
    stream.append(delta("x"), row)
    assert [row in step.writes for step in sink.steps] == [True, True]
    await sink.commit()
    assert stream.visible == 1


async def test_readers_are_woken_when_something_becomes_visible() -> None:
    """A reader is woken by what it can read, not by what is hidden, and not after it has gone."""
    stream, sink, _ = await open_by_hand()
    reader = Woken()
    stream.attach(reader)
    stream.append(said())
    assert reader.count == 0
    await sink.commit()
    assert reader.count == 1
    stream.append(delta("x"))
    assert reader.count == 2
    stream.detach(reader)
    stream.detach(reader)
    stream.append(delta("x"))
    assert reader.count == 2
    assert stream.statistics().readers == 0


# Back-pressure.


async def test_a_writer_waits_while_too_much_is_uncommitted(autojump_clock: trio.testing.MockClock) -> None:
    """Above the bound of the backlog whoever can wait does; closing events are still taken."""
    async with open_house() as house:
        stream = await house.streams.open(ALICE)
        house.store.gate = trio.Event()
        while not stream.full:
            stream.append(said())
        assert stream.last == BACKLOG_ENTRIES + 1
        stream.append(completed())
        with trio.move_on_after(60) as scope:
            await stream.wait_for_room()
        assert scope.cancelled_caught
        house.store.gate.set()
        with trio.fail_after(60):
            await stream.wait_for_room()
        assert stream.visible == stream.last == BACKLOG_ENTRIES + 2


async def test_hidden_bytes_count_as_well() -> None:
    """A few large events hold a writer back just as many small ones."""
    stream, sink, _ = await open_by_hand()
    stream.append(delta("x" * 3_000_000))
    assert not stream.full
    stream.append(delta("x" * 3_000_000))
    assert stream.full
    await sink.commit()
    assert not stream.full
    await stream.wait_for_room()
    sink.crowded = True
    assert stream.full


async def test_waiting_for_one_event(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever needs to know that an event is committed can wait for exactly that."""
    async with open_house() as house:
        stream = await house.streams.open(ALICE)
        house.store.gate = trio.Event()
        entry = stream.append(said())
        with trio.move_on_after(5) as scope:
            await stream.wait_visible(entry.seq)
        assert scope.cancelled_caught
        house.store.gate.set()
        with trio.fail_after(5):
            await stream.wait_visible(entry.seq)
        assert stream.visible == 1


# The ring.


async def test_the_ring_is_bounded_by_count() -> None:
    """A long stream keeps a bounded number of entries in memory, the last ones."""
    stream, sink, _ = await open_by_hand(ring_events=100)
    for number in range(2000):
        stream.append(said(number) if number % 3 else delta("x"))
        await sink.commit()
        assert stream.statistics().entries <= 100 + 256
    for _ in range(2000):
        stream.append(delta("x"))
        assert stream.statistics().entries <= 100 + 256
    assert stream.first + stream.statistics().entries == stream.last + 1


async def test_the_ring_is_bounded_by_bytes() -> None:
    """Large entries fill the ring sooner; its size is the sum of what is in it."""
    stream, sink, _ = await open_by_hand(ring_bytes=10_000)
    for number in range(500):
        stream.append(delta("x" * (number % 700)))
        await sink.commit()
        assert stream.statistics().bytes <= 12_500
    entries = stream.entries(stream.first - 1, stream.last)
    assert stream.statistics().bytes == sum(len(entry.frame) for entry in entries)


async def test_hidden_entries_stay_until_they_were_seen() -> None:
    """What is not committed is never dropped, however long that takes; then the ring shrinks again."""
    stream, sink, _ = await open_by_hand(ring_events=10)
    for number in range(1000):
        stream.append(said(number))
    assert stream.statistics().entries == 1000
    await sink.commit(500)
    assert stream.statistics().entries == 510 - 10
    await sink.commit()
    assert stream.statistics().entries == 10
    assert (stream.first, stream.visible) == (991, 1000)


async def test_entries_are_the_visible_ones_between_two_numbers() -> None:
    """A read of the ring gives exactly what was asked for and is visible, or says that it is gone."""
    stream, sink, _ = await open_by_hand(ring_events=10)
    for number in range(300):
        stream.append(said(number))
    await sink.commit()
    stream.append(said())

    def seqs(after: int, upto: int) -> list[int]:
        return [entry.seq for entry in stream.entries(after, upto)]

    assert stream.first == 291
    assert seqs(290, 293) == [291, 292, 293]
    assert seqs(298, 1000) == [299, 300]
    assert seqs(300, 1000) == []
    assert seqs(295, 295) == []
    assert seqs(295, 289) == []
    assert seqs(1000, 2000) == []
    with pytest.raises(Trimmed):
        stream.entries(289, 300)


# Positions.


async def test_judge() -> None:
    """A position can be continued in the same epoch, between what was trimmed and what was numbered."""
    stream, sink, _ = await open_by_hand()
    for _ in range(10):
        stream.append(said())
    await sink.commit()
    stream.trimmed = 4
    assert [stream.judge(stream.epoch, seq) for seq in (3, 4, 9, 10, 11)] == ["trimmed", None, None, None, "ahead"]
    assert stream.judge("another", 5) == stream.judge("", 11) == "epoch_changed"


async def test_a_restart_goes_on_in_the_same_epoch_behind_all_numbers() -> None:
    """After a crash no number that anybody saw is used again, and every position seen can be continued."""
    store = TroubledStore()
    seen = 0
    epochs = set()
    for _ in range(4):
        stream, sink, _ = await open_by_hand(store=store)
        assert stream.last >= seen
        assert stream.judge(stream.epoch, seen) is None
        assert stream.judge(stream.epoch, stream.last) is None
        assert stream.visible == stream.last
        epochs.add(stream.epoch)
        stream.append(said())
        await sink.commit()
        for _ in range(RESERVE):
            assert stream.append(delta("x")).seq > seen
        await sink.commit(1)
        seen = stream.visible
        for _ in range(10):
            stream.append(said())  # numbered, never committed, never seen
    assert len(epochs) == 1


async def test_a_restart_knows_what_was_trimmed() -> None:
    """Positions before what retention has removed are refused after a restart, too."""
    store = TroubledStore()
    stream, sink, _ = await open_by_hand(store=store)
    for _ in range(10):
        stream.append(said())
    await sink.commit()
    assert await store.trim(NOW + 1) == {KEY: 10}
    again, _, _ = await open_by_hand(store=store)
    assert [again.judge(again.epoch, seq) for seq in (9, 10)] == ["trimmed", None]


# Texts that are still being said.


async def test_partial_texts_end_at_what_is_visible() -> None:
    """An open message has its text up to the visible end; it is gone when it is final or its run has ended."""
    stream, sink, _ = await open_by_hand()
    stream.append(delta("Hel"))
    stream.append(delta("lo"))
    stream.append(delta("other", "n", "s"))
    assert stream.partial("t") == []
    await sink.commit()
    stream.append(said())
    stream.append(delta(" hidden"))
    texts = {partial.message_id: (partial.run_id, partial.content) for partial in stream.partial("t")}
    assert texts == {"m": ("r", "Hello"), "n": ("s", "other")}
    assert stream.partial("another") == []
    await sink.commit()
    assert stream.partial("t")[0].content == "Hello hidden"
    stream.append(full("Hello hidden"))
    stream.append(completed("s"))
    assert len(stream.partial("t")) == 2
    await sink.commit()
    assert stream.partial("t") == []


async def test_a_snapshot_does_not_end_a_text() -> None:
    """A ``full`` on the way is a snapshot: what follows, also after a thought, goes on from it."""
    stream, sink, _ = await open_by_hand()
    for event in (delta("a"), full("a"), thought("hm"), delta("b")):
        stream.append(event)
    await sink.commit()
    assert [partial.content for partial in stream.partial("t")] == ["ab"]
    stream.append(full("ab"))
    await sink.commit()
    assert stream.partial("t") == []
    for event in (delta("c"), full("abc"), delta("n", "next"), thought("hm", "full")):
        stream.append(event)
    await sink.commit()
    assert [(partial.message_id, partial.content) for partial in stream.partial("t")] == [("next", "n")]


async def test_open_texts_are_one_full_each_at_their_last_delta() -> None:
    """A late reader gets each open text, messages and thoughts, as one ``full`` in the order of their ends."""
    stream, sink, _ = await open_by_hand()
    for event in (delta("a"), thought("th"), delta("x", "n"), thought("ink"), delta("b"), said()):
        stream.append(event)
    await sink.commit()
    frames = [(seq, fields_of(frame)) for seq, frame in stream.open_texts()]
    assert [(seq, f["seq"], f["phase"], f.get("content", f.get("reasoning"))) for seq, f in frames] == [
        (3, 3, "full", "x"),
        (4, 4, "full", "think"),
        (5, 5, "full", "ab"),
    ]


def test_a_step_knows_its_size() -> None:
    """The size of a step is that of its durable events: what the backlog is measured by."""
    stream = Stream(
        key=KEY,
        user_id=ALICE,
        epoch="e",
        last=0,
        trimmed=0,
        reserved=0,
        sink=HandSink(TroubledStore()),
        clock=clock,
        ring_events=10,
        ring_bytes=1000,
    )
    step = Step(stream)
    entries = [step.append(said("x" * 100)), step.append(delta("y")), step.append(said("z"))]
    assert step.size == len(entries[0].frame) + len(entries[2].frame)
    assert (step.last_seq, step.reserved) == (3, 1 + RESERVE)
