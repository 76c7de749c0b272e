"""Tests of ``netra_ws.contexts.connection``: what a seat hands out, in which order, and what it holds back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from netra_ws.contexts.connection import CONTROL_HIGH, CONTROL_MAX, INBOX, Connection
from netra_ws.errors import StoreError, Trimmed
from netra_ws.history import cursor as cursor_module
from netra_ws.history.cursor import Cursor
from netra_ws.history.stream import Stream
from netra_ws.identity import Identity
from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.codec import Incoming
from netra_ws.protocol.replies import Ack, ConnectionWarning, Pong
from tests.effort import share

from ..history.kit import ALICE, NOW, HandSink, TroubledStore, clock, delta, fields_of, open_by_hand, said


@attrs.define
class PaperWire:
    """A wire without a socket: counts wakes, and notes how it was closed."""

    bytes_in: int = 0
    bytes_out: int = 0
    wakes: int = 0
    closed: list[tuple[CloseCode, str]] = attrs.field(factory=list)

    def wake(self) -> None:
        self.wakes += 1

    def close(self, code: CloseCode, reason: str) -> None:
        self.closed.append((code, reason))

    def renewed(self) -> None:
        pass


@attrs.define
class Seat:
    """A connection with everything around it, worked by hand."""

    stream: Stream
    sink: HandSink
    store: TroubledStore
    wire: PaperWire
    connection: Connection

    async def read(self, room: int = 65536) -> list[dict[str, Any]]:
        """Take until nothing is pending, from the store where needed, as the wire does."""
        frames: list[bytes] = []
        while self.connection.pending:
            frames += await self.slice(room)
        return [fields_of(frame) for frame in frames]

    async def slice(self, room: int) -> list[bytes]:
        try:
            return self.connection.take(room)
        except Trimmed:
            await self.connection.refill()
            return []


async def take_seat(ring: int = 1000, **fields: Any) -> Seat:
    stream, sink, store = await open_by_hand(ring_events=ring)
    wire = PaperWire()
    connection = Connection(
        connection_id="c1",
        identity=Identity(ALICE),
        protocol="netra.v1",
        cursor=Cursor(stream, store, stream.visible),
        wire=wire,
        clock=clock,
        **fields,
    )
    stream.attach(connection.lane)
    return Seat(stream, sink, store, wire, connection)


def briefly(fields: Sequence[dict[str, Any]]) -> list[Any]:
    """Events as their seq, control frames as their type."""
    return [f["seq"] if "event_id" in f else f["type"] for f in fields]


# Answers and their barriers.


async def test_an_answer_without_barrier_goes_at_once() -> None:
    """An answer that waits for nothing is handed out first, and the wire is woken for it."""
    seat = await take_seat()
    seat.stream.append(said())
    await seat.sink.commit()
    wakes = seat.wire.wakes
    seat.connection.tell(Pong(), Incoming(reply_to="c7"))
    assert seat.wire.wakes > wakes
    fields = await seat.read()
    assert briefly(fields) == ["pong", 1]
    assert fields[0] == {"type": "pong", "reply_to": "c7", "timestamp": NOW}


async def test_an_answer_with_a_barrier_follows_its_event() -> None:
    """The ack of a start stands right behind the event that it waits for, also when that is not committed yet."""
    seat = await take_seat()
    for _ in range(3):
        seat.stream.append(said())
    seat.connection.tell(Ack(message_id="third"), barrier=3)
    seat.connection.tell(Ack(message_id="first"), barrier=1)
    assert not seat.connection.pending
    await seat.sink.commit(2)
    assert briefly(await seat.read()) == [1, "ack", 2]
    seat.stream.append(said())
    await seat.sink.commit()
    assert briefly(await seat.read()) == [3, "ack", 4]


async def test_answers_of_one_barrier_keep_their_order() -> None:
    """Answers that wait for the same event come in the order in which they were given."""
    seat = await take_seat()
    seat.stream.append(said())
    for number in range(10):
        seat.connection.tell(Ack(seq=number), barrier=1)
    await seat.sink.commit()
    fields = await seat.read()
    assert [f["seq"] for f in fields[1:]] == list(range(10))


async def test_a_passed_barrier_holds_nothing() -> None:
    """A barrier behind the cursor is no barrier."""
    seat = await take_seat()
    seat.stream.append(said())
    await seat.sink.commit()
    await seat.read()
    seat.connection.tell(Ack(), barrier=1)
    assert briefly(await seat.read()) == ["ack"]


async def test_a_barrier_stops_merged_deltas() -> None:
    """A frame of merged deltas never reaches over a barrier."""
    seat = await take_seat()
    seat.stream.append(said())
    for _ in range(200):
        seat.stream.append(delta("x"))
    seat.connection.tell(Ack(), barrier=100)
    await seat.sink.commit()
    fields = await seat.read()
    assert briefly(fields) == [1, 100, "ack", 201]
    assert [len(f["content"]) for f in fields if f["type"] == "agent_message"] == [99, 101]


async def test_a_notification_is_not_answered() -> None:
    """Where a JSON-RPC notification wants no answer nothing is handed out, with a barrier or without."""
    seat = await take_seat()
    seat.stream.append(said())
    silent = Incoming(rpc=True, silent=True)
    seat.connection.tell(Ack(), silent)
    seat.connection.tell(Ack(), silent, barrier=1)
    await seat.sink.commit()
    assert briefly(await seat.read()) == [1]


async def test_who_may_not_read_gets_answers_only() -> None:
    """A seat without permission to read passes events without frames, and its barriers still fall."""
    seat = await take_seat(reads=False)
    for _ in range(5):
        seat.stream.append(said())
    seat.connection.tell(Ack(), barrier=3)
    await seat.sink.commit()
    assert briefly(await seat.read()) == ["ack"]
    assert seat.connection.cursor.seq == 5


# Replay.


async def test_replay_ends_where_it_was_promised() -> None:
    """``replay_completed`` stands between what was visible at the resume and what came later, and counts right."""
    seat = await take_seat()
    for number in range(10):
        seat.stream.append(said(number))
    await seat.sink.commit()
    seat.connection.lane.replay(4)
    seat.stream.append(said())
    await seat.sink.commit()
    fields = await seat.read()
    assert briefly(fields) == [5, 6, 7, 8, 9, 10, "replay_completed", 11]
    assert fields[6] == {
        "type": "replay_completed",
        "epoch": seat.stream.epoch,
        "from_seq": 4,
        "to_seq": 10,
        "count": 6,
        "complete": True,
        "reason": None,
        "timestamp": NOW,
    }


async def test_replay_of_nothing_is_completed_at_once() -> None:
    """A client that has missed nothing is told so without waiting for an event."""
    seat = await take_seat()
    seat.stream.append(said())
    await seat.sink.commit()
    seat.connection.lane.replay(1)
    fields = await seat.read()
    assert [(f["type"], f["from_seq"], f["to_seq"], f["count"]) for f in fields] == [("replay_completed", 1, 1, 0)]


async def test_replay_from_the_store_counts_what_was_sent() -> None:
    """Behind the ring the count is that of the frames, without the deltas that were not kept, and nothing lags."""
    seat = await take_seat(ring=10)
    for number in range(1000):
        seat.stream.append(said() if number % 2 else delta("x"))
    await seat.sink.commit()
    seat.connection.lane.replay(0)
    fields = await seat.read(1000)
    assert briefly(fields).count("replay_completed") == 1
    assert fields[-1]["type"] == "replay_completed"
    assert (fields[-1]["to_seq"], fields[-1]["count"]) == (1000, len(fields) - 1)
    assert "lagging" not in briefly(fields)


async def test_the_last_resume_wins() -> None:
    """A resume in the middle of another one begins anew; only the last one is completed."""
    seat = await take_seat()
    for _ in range(10):
        seat.stream.append(said())
    await seat.sink.commit()
    seat.connection.lane.replay(0)
    first = await seat.slice(1)
    seat.connection.lane.replay(7)
    fields = [fields_of(frame) for frame in first] + await seat.read()
    assert briefly(fields) == [1, 8, 9, 10, "replay_completed"]
    assert (fields[-1]["from_seq"], fields[-1]["count"]) == (7, 3)


async def test_a_resume_repeated_is_completed_where_the_second_was_promised() -> None:
    """Of two resumes from the same position only the second is completed, at what was visible when it came."""
    seat = await take_seat()
    for _ in range(2):
        seat.stream.append(said())
        await seat.sink.commit()
        seat.connection.lane.replay(0)
    fields = await seat.read()
    assert briefly(fields) == [1, 2, "replay_completed"]
    assert fields[-1]["to_seq"] == 2


async def test_a_jump_passes_everything() -> None:
    """After a jump only what comes later is handed out; an open replay is never completed."""
    seat = await take_seat()
    for _ in range(10):
        seat.stream.append(said())
    await seat.sink.commit()
    seat.connection.lane.replay(0)
    seat.connection.lane.jump()
    seat.connection.tell(Ack(), barrier=11)
    assert await seat.read() == []
    seat.stream.append(said())
    await seat.sink.commit()
    assert briefly(await seat.read()) == [11, "ack"]


# Lagging.


async def test_a_live_reader_is_told_what_it_skipped() -> None:
    """Who falls off the ring gets the durable events from the store, then a notice that counts the deltas left out."""
    seat = await take_seat(ring=10)
    seat.stream.append(said())
    await seat.sink.commit()
    await seat.read()
    for number in range(3000):
        seat.stream.append(said() if number % 4 == 0 else delta("x"))
    await seat.sink.commit()
    await seat.slice(5000)
    seat.stream.append(said("live"))
    await seat.sink.commit()
    fields = await seat.read(5000)
    assert fields.pop()["value"] == "live"
    assert fields[-1]["type"] == "lagging"
    events = [f for f in fields if "event_id" in f]
    assert [f["seq"] for f in events if f["type"] == "agent_event"] == list(range(2, 3002, 4))
    lagging = {k: fields[-1][k] for k in ("skipped", "from_seq", "to_seq")}
    assert lagging == {"skipped": 3000 - len(events), "from_seq": 1, "to_seq": 3001}
    assert briefly(fields).count("lagging") == 1


async def test_who_skips_nothing_is_told_nothing() -> None:
    """A reader that got everything from the store, because nothing but durable events was there, is not bothered."""
    seat = await take_seat(ring=10)
    for _ in range(600):
        seat.stream.append(said())
    await seat.sink.commit()
    assert briefly(await seat.read(3000)) == list(range(1, 601))


async def test_each_lag_is_told_by_itself() -> None:
    """Two lags are two notices, each with its own numbers."""
    seat = await take_seat(ring=10)
    told = []
    for _ in range(2):
        seat.stream.append(said())
        for _ in range(500):
            seat.stream.append(delta("x"))
        seat.stream.append(said())
        await seat.sink.commit()
        told += [(f["from_seq"], f["to_seq"]) for f in await seat.read() if f["type"] == "lagging"]
    assert told == [(0, 502), (502, 1004)]


async def test_a_store_that_is_away_changes_nothing() -> None:
    """While the store fails nothing is lost and nothing said twice; answers still go out."""
    seat = await take_seat(ring=10)
    for number in range(400):
        seat.stream.append(said() if number % 2 else delta("x"))
    await seat.sink.commit()
    seat.store.failures = 2
    for _ in range(2):
        with pytest.raises(Trimmed):
            seat.connection.take(65536)
        with pytest.raises(StoreError):
            await seat.connection.refill()
    seat.connection.tell(Pong())
    fields = await seat.read()
    assert fields[0]["type"] == "pong"
    assert briefly(fields).count("lagging") == 1
    assert [f["seq"] for f in fields if f["type"] == "agent_event"] == list(range(2, 401, 2))


async def test_a_resume_in_the_middle_of_a_lag_ends_it() -> None:
    """After a resume the numbers of an older lag mean nothing any more, so they are not told."""
    seat = await take_seat(ring=10)
    for _ in range(60):
        seat.stream.append(said())
    await seat.sink.commit()
    await seat.read()
    for number in range(600):
        seat.stream.append(said() if number % 2 else delta("x"))
    await seat.sink.commit()
    await seat.slice(1)
    await seat.slice(1)
    seat.connection.lane.replay(50)
    fields = await seat.read()
    assert briefly(fields).count("replay_completed") == 1
    assert "lagging" not in briefly(fields)


# Bounds.


async def test_unread_answers_stop_the_reading_and_then_close() -> None:
    """Above the first bound the pump waits until answers have gone; above the second the seat is closed with 4000."""
    seat = await take_seat()
    connection = seat.connection
    with trio.fail_after(5):
        await connection.wait_for_room()
    while connection._control_bytes <= CONTROL_HIGH:
        connection.tell(ConnectionWarning(code="X", error="x" * 50_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.wait_for_room)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        connection.take(65536)
    while not seat.wire.closed:
        connection.tell(ConnectionWarning(code="X", error="x" * 500_000))
        assert connection._control_bytes < CONTROL_MAX + 600_000
    assert seat.wire.closed == [(CloseCode.SLOW_CONSUMER, "too many answers were not read")]
    with trio.fail_after(5):
        await connection.wait_for_room()


async def test_a_closing_seat_says_its_last_words_only() -> None:
    """After ``shut`` answers that wait for nothing still go out; events, held answers and new ones do not."""
    seat = await take_seat()
    seat.stream.append(said())
    seat.connection.tell(Ack(message_id="held"), barrier=1)
    seat.connection.tell(Ack(message_id="last"))
    seat.connection.shut(CloseCode.NORMAL, "bye")
    seat.connection.shut(CloseCode.INTERNAL, "again")
    seat.connection.tell(Ack(message_id="too late"))
    wakes = seat.wire.wakes
    await seat.sink.commit()
    assert seat.wire.wakes == wakes
    assert [f.get("message_id") for f in await seat.read()] == ["last"]
    assert seat.wire.closed == [(CloseCode.NORMAL, "bye")]
    assert not seat.connection.pending


async def test_closing_behind_what_is_visible() -> None:
    """A seat that is closed behind its events hands out what is visible by then and no more."""
    seat = await take_seat()
    for _ in range(20):
        seat.stream.append(said())
    await seat.sink.commit()
    seat.connection.shut_behind(CloseCode.RESTART, "restart")
    seat.connection.tell(Ack(), barrier=20)
    seat.stream.append(said())
    await seat.sink.commit()
    assert seat.wire.closed == []
    assert briefly(await seat.read(500)) == list(range(1, 21))
    assert seat.wire.closed == [(CloseCode.RESTART, "restart")]


async def test_the_inbox_is_bounded() -> None:
    """A client that is not served is not read any further."""
    seat = await take_seat()
    for _ in range(INBOX):
        seat.connection.inbox_in.send_nowait((Incoming(), 0))
    with pytest.raises(trio.WouldBlock):
        seat.connection.inbox_in.send_nowait((Incoming(), 0))


async def test_traffic_counts_what_went_out() -> None:
    """Events and answers count as messages out."""
    seat = await take_seat()
    seat.stream.append(said())
    await seat.sink.commit()
    seat.connection.tell(Pong())
    await seat.read()
    assert seat.connection.traffic.messages_out == 2


# Everything at once.

WORK = st.lists(
    st.tuples(st.just("say"), st.booleans())
    | st.tuples(st.just("commit"), st.integers(1, 5))
    | st.tuples(st.just("ask"), st.integers(-3, 5))
    | st.tuples(st.just("read"), st.sampled_from([1, 300, 5000]))
    | st.tuples(st.just("resume"), st.integers(0, 30)),
    max_size=80,
)


@attrs.define
class Watcher:
    """Checks every frame of a seat against what was promised."""

    seat: Seat
    seq: int = 0
    since: int = 0
    promised: list[tuple[int, int]] = attrs.field(factory=list)
    answered: list[int] = attrs.field(factory=list)
    asked: dict[int, tuple[int, int]] = attrs.field(factory=dict)

    def hear(self, fields: dict[str, Any]) -> None:
        if "event_id" in fields:
            late = [number for number, (barrier, _) in self.asked.items() if barrier < fields["seq"] and barrier > 0]
            assert not late, f"{fields['seq']} came before the answers {late}"
            assert fields["seq"] > self.seq
            self.seq = fields["seq"]
            self.since += 1
        elif fields["type"] == "ack":
            barrier, _ = self.asked.pop(fields["seq"])
            assert barrier <= self.seat.connection.cursor.seq
            self.answered.append(fields["seq"])
        elif fields["type"] == "replay_completed":
            assert (fields["from_seq"], fields["to_seq"]) == self.promised[-1]
            assert self.seq <= fields["to_seq"]
            assert fields["count"] == self.since
            self.promised.clear()
        else:
            assert fields["type"] == "lagging"
            assert fields["from_seq"] < fields["to_seq"]
            assert 0 < fields["skipped"] <= fields["to_seq"] - fields["from_seq"]


async def _work(work: Sequence[Any], ring: int) -> None:
    seat = await take_seat(ring)
    watcher = Watcher(seat)
    stream, cursor = seat.stream, seat.connection.cursor
    for number, (what, figure) in enumerate(work):
        if what == "say":
            stream.append(said() if figure else delta("x"))
        elif what == "commit":
            await seat.sink.commit(figure)
        elif what == "ask":
            barrier = min(stream.last, max(0, cursor.seq + figure))
            # What the cursor has passed is no barrier; 0 marks it here.
            watcher.asked[number] = (barrier if barrier > cursor.seq else 0, cursor.seq)
            seat.connection.tell(Ack(seq=number), barrier=barrier)
        elif what == "resume":
            seq = max(0, watcher.seq - figure)
            watcher.seq, watcher.since = seq, 0
            watcher.promised.append((seq, stream.visible))
            seat.connection.lane.replay(seq)
        else:
            for frame in await seat.slice(figure):
                watcher.hear(fields_of(frame))
    await seat.sink.commit()
    for fields in await seat.read(1000):
        watcher.hear(fields)
    assert watcher.asked == {}
    assert watcher.promised == []
    assert cursor.seq == stream.visible == stream.last
    assert len(set(watcher.answered)) == len(watcher.answered)


@settings(max_examples=share(300), deadline=None)
@given(WORK, st.sampled_from([0, 5, 1000]))
def test_every_promise_holds_in_any_order_of_things(work: Sequence[Any], ring: int) -> None:
    """Whatever is said, asked, resumed and read in whatever order: answers follow their events, replays end right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cursor_module, "CHUNK_ROWS", 3)
        patch.setattr(cursor_module, "MERGE_BEHIND", 4)
        trio.run(_work, work, ring)


async def test_the_inbox_is_bounded_in_bytes() -> None:
    """Large commands that wait for the dispatcher stop the reading long before they are sixty-four."""
    connection = (await take_seat()).connection
    read = 0

    async def pump() -> None:
        nonlocal read
        for _ in range(10):
            await connection.put(Incoming(), 100_000)
            read += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump)
        await trio.testing.wait_all_tasks_blocked()
        assert read == 2
        for _ in range(10):
            assert await connection.next_command() is not None
            await trio.testing.wait_all_tasks_blocked()
    assert read == 10
    connection.inbox_in.close()
    assert await connection.next_command() is None


# Losing things.


async def test_whoever_waits_for_a_turn_sleeps() -> None:
    """Waiting for the command of a connection that is closing costs no time of the process, and ends with it."""
    seat = await take_seat()
    connection = seat.connection
    await connection.put(Incoming(), 1)
    await connection.next_command()
    connection.shut(CloseCode.SIGNED_OUT, "bye")
    connection.hang_up()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.turn_over)
            await wait_all_tasks_blocked()
            connection.end_turn()


async def test_a_replay_that_may_not_go_on_is_not_complete() -> None:
    """Whoever loses ``read`` in a replay hears how far it came, and nothing that says it was all."""
    seat = await take_seat()
    for _ in range(4):
        seat.stream.append(said())
    await seat.sink.commit()
    seat.connection.lane.replay(1)
    await seat.slice(1)
    seat.connection.renew(Identity(ALICE, frozenset({"chat"})))
    fields = await seat.read()
    assert briefly(fields) == ["replay_completed"]
    end = fields[0]
    assert (end["from_seq"], end["to_seq"], end["count"]) == (1, 2, 1)
    assert (end["complete"], end["reason"]) == (False, "forbidden")
    seat.connection.renew(Identity(ALICE))
    seat.stream.append(said())
    await seat.sink.commit()
    assert briefly(await seat.read()) == ["lagging", 5]


async def test_what_is_handed_over_while_it_closes_is_not_carried_out() -> None:
    """A command that was received and not begun when its connection was closed is dropped like those behind it."""
    connection = (await take_seat()).connection
    taken: list[Incoming | None] = []

    async def take() -> None:
        taken.append(await connection.next_command())

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await wait_all_tasks_blocked()
            connection.inbox_in.send_nowait((Incoming(), 1))
            connection.shut(CloseCode.SIGNED_OUT, "bye")
    assert taken == [None]
    assert not connection.busy
