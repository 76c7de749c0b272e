"""Tests of the cursors of ``netra_ws.history.stream``: whoever reads, however slowly, reads the same."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netra_ws.errors import Lost, StoreError, Trimmed
from netra_ws.history import cursor as cursor_module
from netra_ws.history.cursor import CHUNK_BYTES, CHUNK_ROWS, MERGE_BEHIND, Cursor
from netra_ws.history.recorder import Recorder
from netra_ws.history.stores.sql import SqlStore
from netra_ws.history.stream import Stream
from netra_ws.history.streams import Streams
from netra_ws.protocol.events import AgentMessage, Event
from tests.contract.rows import put_event, put_stream
from tests.effort import share

from .kit import (
    ALICE,
    Client,
    HandSink,
    TroubledStore,
    WatchedFile,
    clock,
    completed,
    delta,
    drain,
    fields_of,
    full,
    open_by_hand,
    open_house,
    progress,
    said,
    thought,
)


@attrs.define
class Author:
    """Says what a property test draws, and knows what every reader must have in the end."""

    stream: Stream
    said: list[tuple[int, Event]] = attrs.field(factory=list)
    frames: dict[int, bytes] = attrs.field(factory=dict)
    texts: dict[int, str] = attrs.field(factory=dict)
    thoughts: dict[int, str] = attrs.field(factory=dict)
    ended: Counter[int] = attrs.field(factory=Counter)

    def say(self, what: str, run: int) -> None:
        name = f"r{run}"
        piece = f"{len(self.said)} "
        if what == "delta":
            self.texts[run] = self.texts.get(run, "") + piece
            self._append(delta(piece, self._id(run), name))
        elif what == "full" and run in self.texts:
            self._append(full(self.texts.pop(run), self._id(run), name))
            self.ended[run] += 1
        elif what == "snapshot" and run in self.texts:
            self._append(full(self.texts[run], self._id(run), name))
        elif what == "thought":
            self.thoughts[run] = self.thoughts.get(run, "") + piece
            self._append(thought(piece, "delta", name))
        elif what == "whole thought":
            self._append(thought(self.thoughts.pop(run, piece), "full", name))
        elif what == "progress":
            self._append(progress(name))
        elif what == "completed":
            self.say("full", run)
            self._append(completed(name))
        else:
            self._append(said(piece, name))

    def _id(self, run: int) -> str:
        return f"m{run}.{self.ended[run]}"

    def _append(self, event: Event) -> None:
        entry = self.stream.append(event)
        self.said.append((entry.seq, event))
        self.frames[entry.seq] = entry.frame

    def durable(self) -> list[dict[str, Any]]:
        """Every visible durable event, as it has to be on the wire."""
        return [fields_of(self.frames[seq]) for seq, e in self.said if e.durable and seq <= self.stream.visible]

    def visible_texts(self) -> dict[str, str]:
        texts: dict[str, str] = {}
        for seq, event in self.said:
            if isinstance(event, AgentMessage) and seq <= self.stream.visible:
                before = texts.get(event.message_id, "") if event.phase == "delta" else ""
                texts[event.message_id] = before + event.content
        return texts

    def check(self, client: Client) -> None:
        """A client that has read everything visible has every durable event once, in order, and every text."""
        durable = self.durable()
        assert client.kept({fields["seq"] for fields in durable}) == durable
        assert client.texts == self.visible_texts()


SAY = st.tuples(
    st.sampled_from(["delta", "delta", "delta", "full", "snapshot", "thought", "whole thought", "event", "completed"]),
    st.integers(0, 2),
)
RACE = ["delta", "delta", "delta", "delta", "thought", "full", "snapshot", "progress", "event"]
COMMIT = st.tuples(st.just("commit"), st.integers(1, 4))
MEANWHILE = st.lists(SAY | COMMIT | st.tuples(st.just("move"), st.just(0)), max_size=4)
READERS = 2
READ = st.tuples(
    st.just("read"),
    st.integers(0, READERS - 1),
    st.sampled_from([1, 200, 2000, 65536]),
    st.none() | st.integers(1, 20),
    MEANWHILE,
    st.integers(1, 6),
)
STOP = st.tuples(st.just("stop"), st.integers(0, READERS - 1))
WORK = st.lists(st.lists(SAY, min_size=4, max_size=12) | COMMIT | READ | READ | STOP, min_size=5, max_size=60)


@attrs.define
class Readers:
    """Clients with their cursors; each may stop and continue where its client is."""

    stream: Stream
    store: TroubledStore
    author: Author
    sink: HandSink
    clients: list[Client] = attrs.field(factory=lambda: [Client() for _ in range(READERS)])
    cursors: list[Cursor] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.cursors = [Cursor(self.stream, self.store, 0) for _ in self.clients]

    def stop(self, which: int) -> None:
        client = self.clients[which]
        assert self.stream.judge(self.stream.epoch, client.seq) is None
        self.cursors[which] = Cursor(self.stream, self.store, client.seq)

    async def read(self, which: int, room: int, ahead: int | None, meanwhile: Sequence[Any]) -> None:
        cursor, client = self.cursors[which], self.clients[which]
        upto = None if ahead is None else cursor.seq + ahead
        pending, before, sent = cursor.pending, cursor.seq, cursor.sent
        must_refill = cursor.must_refill
        try:
            frames = cursor.take(room, upto)
        except Trimmed:
            assert must_refill
            self.store.meanwhile = lambda: self._meanwhile(cursor, client, meanwhile)
            await cursor.refill()
            return
        assert sum(map(len, frames[:-1])) < room
        assert cursor.sent == sent + len(frames)
        assert cursor.seq > before or not pending
        assert upto is None or cursor.seq <= upto
        for frame in frames:
            client.hear(frame)
        assert client.seq <= cursor.seq <= self.stream.visible
        if not cursor.pending:
            self.author.check(client)

    async def _meanwhile(self, cursor: Cursor, client: Client, work: Sequence[Any]) -> None:
        for what, number in work:
            if what == "commit":
                await self.sink.commit(number)
            elif what == "move":
                cursor.move(client.seq)
            else:
                self.author.say(what, number)


async def _work(work: Sequence[Any], ring: int) -> None:
    stream, sink, store = await open_by_hand(ring_events=ring)
    author = Author(stream)
    readers = Readers(stream, store, author, sink)
    for step in work:
        if isinstance(step, list):
            for what, run in step:
                author.say(what, run)
        elif step[0] == "commit":
            await sink.commit(step[1])
        elif step[0] == "stop":
            readers.stop(step[1])
        else:
            *how, times = step[1:]
            for _ in range(times):
                await readers.read(*how)
    await sink.commit()
    for cursor, client in zip(readers.cursors, readers.clients, strict=True):
        await drain(cursor, client)
        author.check(client)
    late = Client()
    await drain(Cursor(stream, store, 0), late)
    author.check(late)


@settings(max_examples=share(400), deadline=None)
@example(
    work=[
        [("full", 0), ("full", 0), ("full", 0), ("delta", 1)],
        ("commit", 1),
        ("commit", 2),
        [("delta", 0), ("delta", 0), ("delta", 0), ("delta", 1)],
        ("read", 0, 1, None, [], 6),
        ("stop", 0),
    ],
    ring=0,
)
@given(WORK, st.sampled_from([0, 3, 10, 1000]))
def test_every_reader_reads_the_same(work: Sequence[Any], ring: int) -> None:
    """However readers stop, continue and lag, each has every durable event once, in order, and every text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cursor_module, "CHUNK_ROWS", 3)
        patch.setattr(cursor_module, "CHUNK_BYTES", 500)
        patch.setattr(cursor_module, "MERGE_BEHIND", 4)
        trio.run(_work, work, ring)


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(4))
async def test_readers_race_a_publisher(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    """With a publisher at work and a small ring, readers of every speed end with the same."""
    dice = random.Random(seed)
    async with open_house(ring_events=20) as house:
        stream = await house.streams.open(ALICE)
        author = Author(stream)
        clients = [Client() for _ in range(6)]
        done = trio.Event()

        async def publish() -> None:
            for _ in range(share(3000)):
                author.say(dice.choice(RACE), dice.randrange(3))
                await stream.wait_for_room()
                if dice.random() < 0.2:
                    await trio.sleep(dice.choice([0.0001, 0.001, 0.01]))
            await house.recorder.flush()
            done.set()

        async def read(client: Client, pause_s: float) -> None:
            cursor = Cursor(stream, house.store, 0)
            while not done.is_set() or cursor.pending:
                try:
                    for frame in cursor.take(dice.choice([1, 500, 5000])):
                        client.hear(frame)
                except Trimmed:
                    await cursor.refill()
                await trio.sleep(pause_s)
                if dice.random() < 0.01:
                    cursor = Cursor(stream, house.store, client.seq)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            for client, pause_s in zip(clients, (0.0001, 0.0002, 0.001, 0.01, 0.1, 0.3), strict=True):
                nursery.start_soon(read, client, pause_s)
        for client in clients:
            author.check(client)
        assert house.store.reads > 0


async def test_ten_thousand_events_behind() -> None:
    """A reader far behind a small ring gets all durable events from the store, in bounded pieces, and goes on live."""
    stream, sink, store = await open_by_hand(ring_events=100)
    author = Author(stream)
    for number in range(10_000):
        author.say("event" if number % 2 else "delta", number % 3)
        if number % 50 == 0:
            await sink.commit()
    await sink.commit()
    cursor, client = Cursor(stream, store, 0), Client()
    while cursor.pending:
        try:
            for frame in cursor.take(65536):
                client.hear(frame)
        except Trimmed:
            await cursor.refill()
            assert len(cursor._ahead) <= CHUNK_ROWS + 3
    author.check(client)
    assert 5000 < len(client.heard) < 5000 + 10
    assert store.reads == 5000 // CHUNK_ROWS + 1
    author.say("delta", 0)
    await drain(cursor, client)
    author.check(client)


async def test_large_events_are_read_ahead_in_bounded_pieces() -> None:
    """A reader of the store holds bytes, not rows, up to its bound, however large the events are."""
    stream, sink, store = await open_by_hand(ring_events=10)
    for number in range(300):
        stream.append(said("x" * 50_000 + str(number)))
        await sink.commit()
    cursor, client, most = Cursor(stream, store, 0), Client(), 0
    while cursor.pending:
        try:
            for frame in cursor.take(65536):
                client.hear(frame)
        except Trimmed:
            await cursor.refill()
            most = max(most, sum(len(frame) for _, frame in cursor._ahead))
    assert [fields["value"][50_000:] for fields in client.heard] == [str(number) for number in range(300)]
    assert CHUNK_BYTES <= most < CHUNK_BYTES + 60_000


async def test_neighbouring_deltas_are_merged_for_whoever_is_behind() -> None:
    """A reader that is behind gets neighbouring deltas of one text as one; one that is not gets them one by one."""
    stream, sink, store = await open_by_hand()
    stream.append(said())
    await sink.commit()
    quick, slow = Cursor(stream, store, 1), Cursor(stream, store, 1)
    pieces = [f"{number} " for number in range(MERGE_BEHIND)]
    for piece in pieces[:20]:
        stream.append(delta(piece))
    assert len(quick.take(65536)) == 20
    for piece in pieces[20:]:
        stream.append(delta(piece))
    stream.append(delta("other", "n"))
    for piece in pieces:
        stream.append(thought(piece))
    stream.append(progress())
    frames = [fields_of(frame) for frame in slow.take(65536)]
    merged = [(f["seq"], f.get("content", f.get("reasoning")), f.get("phase")) for f in frames]
    assert merged == [
        (MERGE_BEHIND + 1, "".join(pieces), "delta"),
        (MERGE_BEHIND + 2, "other", "delta"),
        (2 * MERGE_BEHIND + 2, "".join(pieces), "delta"),
        (2 * MERGE_BEHIND + 3, None, None),
    ]
    assert stream.counts.merged == 2 * (MERGE_BEHIND - 1)
    assert slow.seq == stream.last


async def test_merging_stops_at_whatever_comes_between() -> None:
    """Deltas of different texts, runs or sides of another event are never put together."""
    stream, sink, store = await open_by_hand()
    for _ in range(MERGE_BEHIND):
        for event in (delta("a"), delta("b"), said(), delta("c"), thought("d", run_id="s"), thought("e")):
            stream.append(event)
    await sink.commit()
    frames = [fields_of(frame) for frame in Cursor(stream, store, 0).take(10**6)]
    texts = [f.get("content", f.get("reasoning", "|")) for f in frames]
    assert texts == ["ab", "|", "c", "d", "e"] * MERGE_BEHIND


@pytest.mark.parametrize("ring", [10, 1000])
async def test_a_reader_stops_where_it_is_told(ring: int) -> None:
    """With *upto* a cursor comes to rest exactly there, also among merged deltas and over gaps in the store."""
    stream, sink, store = await open_by_hand(ring_events=ring)
    for number in range(500):
        stream.append(said() if number % 10 == 0 else delta("x"))
    await sink.commit()
    for upto in (1, 5, 11, 12, 300, 499):
        cursor = Cursor(stream, store, 0)
        while cursor.seq < upto:
            try:
                cursor.take(65536, upto)
            except Trimmed:
                await cursor.refill()
        assert cursor.seq == upto
        assert cursor.take(65536, upto) == [] or cursor.must_refill


async def test_a_store_that_fails_is_asked_again() -> None:
    """A failing read moves nothing and loses nothing; the next one goes on."""
    stream, sink, store = await open_by_hand(ring_events=10)
    author = Author(stream)
    for number in range(1000):
        author.say("event" if number % 2 else "delta", 0)
    await sink.commit()
    cursor, client = Cursor(stream, store, 0), Client()
    for _ in range(2):
        with pytest.raises(Trimmed):
            cursor.take(65536)
        store.failures = 1
        with pytest.raises(StoreError):
            await cursor.refill()
        assert cursor.seq == client.seq
        await cursor.refill()
        for frame in cursor.take(10**6):
            client.hear(frame)
    await drain(cursor, client)
    author.check(client)


async def test_a_cancelled_read_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """A reader that is cancelled in the middle of a read goes on where it was."""
    stream, sink, store = await open_by_hand(ring_events=10)
    author = Author(stream)
    for _ in range(1000):
        author.say("event", 0)
    await sink.commit()
    cursor, client = Cursor(stream, store, 0), Client()
    store.meanwhile = trio.sleep_forever
    with trio.move_on_after(1) as scope:
        await cursor.refill()
    assert scope.cancelled_caught
    await drain(cursor, client)
    author.check(client)


async def test_a_removal_in_the_middle_of_a_read_is_told(tmp_path: Path) -> None:
    """Events that go after their sizes were read, and before they are, are not taken for numbers never used."""
    store = SqlStore(file := WatchedFile(tmp_path / "netra_ws.db"))
    await store.open()
    await store.write([put_stream(), *(put_event(seq, payload=b'{"seq":%d}' % seq) for seq in range(1, 601))])
    recorder = Recorder(store, clock=clock)
    streams = Streams(store, recorder, clock)
    stream = await streams.open(ALICE)

    async def shorten() -> None:
        await recorder.shorten(streams, stream.key, 100)

    behind, far_behind = Cursor(stream, store, 600), Cursor(stream, store, 0)
    file.amid = shorten
    with pytest.raises(Lost):
        await far_behind.refill()
    assert far_behind.seq == 0
    await drain(behind, client := Client())
    assert (behind.seq, client.heard) == (stream.visible, [])
    await store.close()


async def test_reading_ahead_is_not_done_twice() -> None:
    """A refill while there is still something read ahead asks nothing of the store."""
    stream, sink, store = await open_by_hand(ring_events=10)
    for _ in range(500):
        stream.append(said())
    await sink.commit()
    cursor = Cursor(stream, store, 0)
    assert cursor.must_refill
    await cursor.refill()
    await cursor.refill()
    assert store.reads == 1
    assert cursor.refill_end == 500
    assert not cursor.must_refill
    assert len(cursor.take(10**6)) == CHUNK_ROWS
    assert cursor.must_refill
    await cursor.refill()
    assert len(cursor.take(10**6)) == 500 - CHUNK_ROWS
    assert not cursor.must_refill
    assert cursor.refill_end == 0


async def test_a_moved_cursor_forgets_what_it_read_ahead() -> None:
    """After ``move`` reading begins again right behind the new position, and counting at zero."""
    stream, sink, store = await open_by_hand(ring_events=10)
    for number in range(600):
        stream.append(said(number))
    await sink.commit()
    cursor = Cursor(stream, store, 0)
    await cursor.refill()
    cursor.take(1000)
    assert cursor.sent > 0
    cursor.move(400)
    assert (cursor.seq, cursor.origin, cursor.sent, cursor.must_refill) == (400, 400, 0, True)
    client = Client(400)
    await drain(cursor, client)
    assert [fields["value"] for fields in client.heard] == list(range(400, 600))
    assert cursor.sent == 200
    cursor.move(595)
    assert not cursor.must_refill


async def test_a_late_reader_gets_an_open_text_as_one_full() -> None:
    """What is being said and is no longer in the ring comes as one ``full`` where its last delta stood."""
    stream, sink, store = await open_by_hand(ring_events=0)
    for number in range(300):
        stream.append(delta(f"{number} "))
    stream.append(said())
    await sink.commit()
    await drain(cursor := Cursor(stream, store, 0), client := Client())
    assert [(fields["type"], fields["seq"], fields.get("phase")) for fields in client.heard] == [
        ("agent_message", 300, "full"),
        ("agent_event", 301, None),
    ]
    stream.append(delta("more"))
    await drain(cursor, client)
    assert client.heard[-1]["phase"] == "delta"
    assert client.texts["m"].endswith("299 more")


@pytest.mark.parametrize("ended", [False, True])
async def test_a_reader_that_left_in_a_catch_up_gets_no_torn_text(ended: bool) -> None:
    """Who left before the ``full`` it was promised reads no delta onto a text without its middle, also an ended one."""
    stream, sink, store = await open_by_hand(ring_events=40)
    for number in range(60):
        stream.append(said() if number == 30 else delta(f"{number} "))
    await sink.commit()
    cursor, client = Cursor(stream, store, 0), Client()
    with pytest.raises(Trimmed):
        cursor.take(65536)
    await cursor.refill()
    (frame,) = cursor.take(1)
    client.hear(frame)
    assert client.heard[-1]["type"] == "agent_event"
    whole = "".join(f"{number} " for number in range(60) if number != 30)
    if ended:
        stream.append(full(whole))
        stream.append(said())
        await sink.commit()
    assert stream.first <= client.seq + 1, "its position is in the ring"
    await drain(Cursor(stream, store, client.seq), again := Client(seq=client.seq))
    assert [fields["phase"] for fields in again.heard if "phase" in fields] == ["full"]
    assert again.texts["m"] == whole
