"""Tests of ``netra_ws.contexts.lane``: several streams on one connection, each in order, none behind another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import attrs
import pytest
import trio
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from netra_ws.contexts.connection import HELD_HIGH
from netra_ws.contexts.lane import Lane
from netra_ws.errors import StoreError, Trimmed
from netra_ws.history import cursor as cursor_module
from netra_ws.history.cursor import Cursor
from netra_ws.history.stream import Stream
from netra_ws.identity import Identity
from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.replies import Ack, JobDisconnected

from ..effort import share
from ..history.kit import ALICE, HandSink, TroubledStore, fields_of, open_by_hand, said
from .test_connection import Seat, take_seat

JOBS = ("a", "b")


@attrs.define
class Job:
    """A job's stream, its own sink, and what a member must have heard of it."""

    stream: Stream
    sink: HandSink
    store: TroubledStore
    lane: Lane | None = None
    expected: list[int] = attrs.field(factory=list)
    heard: list[int] = attrs.field(factory=list)


async def jobs_of(seat: Seat, ring: int) -> dict[str, Job]:
    return {name: Job(*await open_by_hand(ring_events=ring)) for name in JOBS}


def join(seat: Seat, name: str, job: Job) -> None:
    job.lane = seat.connection.add_job(name, Cursor(job.stream, job.store, job.stream.visible))
    job.stream.attach(job.lane)
    job.expected, job.heard = [], []


def leave(seat: Seat, name: str, job: Job) -> None:
    assert job.lane is not None
    job.stream.detach(job.lane)
    seat.connection.drop_job(name)
    job.lane = None


async def test_no_stream_starves_another() -> None:
    """While the user's own stream floods, an event of a job is handed out with the second slice at the latest."""
    seat = await take_seat()
    jobs = await jobs_of(seat, 1000)
    join(seat, "a", jobs["a"])
    for _ in range(500):
        seat.stream.append(said("x" * 1000))
    await seat.sink.commit()
    jobs["a"].stream.append(said("from the job"))
    await jobs["a"].sink.commit()
    slices = [await seat.slice(10_000) for _ in range(2)]
    assert "from the job" in [fields_of(frame)["value"] for frames in slices for frame in frames]


async def test_a_flooding_job_starves_nobody() -> None:
    """While one job floods, the user's own events and those of the other job come within three slices."""
    seat = await take_seat()
    jobs = await jobs_of(seat, 1000)
    for name, job in jobs.items():
        join(seat, name, job)
    for _ in range(500):
        jobs["a"].stream.append(said("x" * 1000))
    await jobs["a"].sink.commit()
    for stream, sink in ((jobs["b"].stream, jobs["b"].sink), (seat.stream, seat.sink)):
        stream.append(said("quiet"))
        await sink.commit()
    slices = [await seat.slice(10_000) for _ in range(3)]
    assert [fields_of(frame)["value"] for frames in slices for frame in frames].count("quiet") == 2


async def test_what_is_left_of_a_slice_is_still_pending() -> None:
    """However little is taken at a time, nothing of a job is forgotten, although nothing more is said there."""
    seat = await take_seat()
    job = (await jobs_of(seat, 1000))["a"]
    join(seat, "a", job)
    for number in range(10):
        job.stream.append(said(number))
    await job.sink.commit()
    assert [fields["value"] for fields in await seat.read(room=1)] == list(range(10))


async def test_a_job_that_was_left_is_silent() -> None:
    """What a job had still to say is not handed out any more when its lane was dropped, and nothing is pending."""
    seat = await take_seat()
    job = (await jobs_of(seat, 1000))["a"]
    join(seat, "a", job)
    job.stream.append(said())
    await job.sink.commit()
    assert seat.connection.pending
    leave(seat, "a", job)
    assert not seat.connection.pending
    assert await seat.slice(1000) == []


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("replays", [False, True])
async def test_a_job_that_is_left_while_the_store_is_read(lost: bool, replays: bool) -> None:
    """Who leaves a job while its events come from the store hears nothing more of it, not even of what was lost."""
    seat = await take_seat()
    job = (await jobs_of(seat, 5))["a"]
    join(seat, "a", job)
    for _ in range(100):
        job.stream.append(said("of the job"))
    await job.sink.commit()
    assert job.lane is not None
    if replays:
        job.lane.replay(1)
    with pytest.raises(Trimmed):
        seat.connection.take(10_000)

    async def meanwhile() -> None:
        leave(seat, "a", job)
        job.stream.trimmed = 50 if lost else 0

    job.store.meanwhile = meanwhile
    await seat.connection.refill()
    seat.stream.append(said("own"))
    await seat.sink.commit()
    assert [fields.get("value", fields["type"]) for fields in await seat.read()] == ["own"]
    assert not seat.connection._rung


async def test_a_job_that_is_joined_anew_while_the_store_is_read() -> None:
    """Who leaves and joins a job while its events come from the store reads from where the new seat stands."""
    seat = await take_seat()
    job = (await jobs_of(seat, 5))["a"]
    for number in range(100):
        job.stream.append(said(number))
    await job.sink.commit()
    join(seat, "a", job)
    assert job.lane is not None
    job.lane.replay(1)
    with pytest.raises(Trimmed):
        seat.connection.take(10_000)

    async def meanwhile() -> None:
        leave(seat, "a", job)
        join(seat, "a", job)

    job.store.meanwhile = meanwhile
    await seat.connection.refill()
    assert await seat.read() == []
    job.stream.append(said("live"))
    await job.sink.commit()
    assert [fields["value"] for fields in await seat.read()] == ["live"]


async def test_closing_waits_for_no_job_that_was_left() -> None:
    """A seat that is closed behind its events is closed when the last job that holds it back is left."""
    seat = await take_seat()
    jobs = await jobs_of(seat, 1000)
    for name, job in jobs.items():
        join(seat, name, job)
        for _ in range(20):
            job.stream.append(said("x" * 1000))
        await job.sink.commit()
    seat.connection.shut_behind(CloseCode.RESTART, "restart")
    await seat.slice(100)
    leave(seat, "a", jobs["a"])
    assert not seat.wire.closed
    leave(seat, "b", jobs["b"])
    await seat.read()
    assert seat.wire.closed == [(CloseCode.RESTART, "restart")]


async def test_closing_waits_for_every_job() -> None:
    """A seat that is closed behind its events hands out what is visible of every job, and closes once."""
    seat = await take_seat()
    jobs = await jobs_of(seat, 1000)
    for name, job in jobs.items():
        join(seat, name, job)
        for number in range(20):
            job.stream.append(said([name, number]))
        await job.sink.commit()
    for _ in range(2):
        seat.connection.shut_behind(CloseCode.RESTART, "restart")
    heard = [fields["value"] for fields in await seat.read(500)]
    assert sorted(map(tuple, heard)) == [(name, number) for name in JOBS for number in range(20)]
    assert seat.wire.closed == [(CloseCode.RESTART, "restart")]


async def test_notices_of_jobs_are_bounded() -> None:
    """A client that resumes a job again and again, while nothing can be handed out, is read no further."""
    seat = await take_seat()
    job = (await jobs_of(seat, 5))["a"]
    for number in range(100):
        job.stream.append(said(number))
    await job.sink.commit()
    join(seat, "a", job)
    assert job.lane is not None
    for _ in range(HELD_HIGH + 1):
        job.lane.replay(1)
    with trio.move_on_after(0) as scope:
        await seat.connection.wait_for_room()
    assert scope.cancelled_caught
    fields = await seat.read()
    assert [f.get("value", f["type"]) for f in fields] == [*range(1, 100), "replay_completed"]
    await seat.connection.wait_for_room()


async def test_losing_the_right_to_read_concerns_the_own_stream_only() -> None:
    """A token without ``read`` hears nothing of the user's own stream, and goes on hearing its jobs."""
    seat = await take_seat()
    job = (await jobs_of(seat, 1000))["a"]
    join(seat, "a", job)
    seat.connection.renew(Identity(ALICE, frozenset({"job:a"})))
    seat.stream.append(said("own"))
    await seat.sink.commit()
    job.stream.append(said("job"))
    await job.sink.commit()
    assert [fields["value"] for fields in await seat.read()] == ["job"]


WORK = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.sampled_from(("", *JOBS)), st.just(0)),
        st.tuples(st.just("commit"), st.sampled_from(("", *JOBS)), st.just(0)),
        st.tuples(st.just("join"), st.sampled_from(JOBS), st.just(0)),
        st.tuples(st.just("leave"), st.sampled_from(JOBS), st.just(0)),
        st.tuples(st.just("replay"), st.sampled_from(JOBS), st.integers(0, 9)),
        st.tuples(st.just("take"), st.just(""), st.integers(1, 1500)),
    ),
    max_size=60,
)


async def _work(work: Sequence[tuple[str, str, int]], ring: int) -> None:
    seat = await take_seat(ring)
    jobs = await jobs_of(seat, ring)
    own_expected: list[int] = []
    own_heard: list[int] = []
    said_in = dict.fromkeys(JOBS, 0)

    def hear(fields: dict[str, Any]) -> None:
        if "event_id" not in fields:
            assert fields["type"] in ("replay_completed", "lagging")
            return
        name, number = fields["value"]
        if not name:
            own_heard.append(number)
        else:
            assert jobs[name].lane is not None, "heard behind its leaving"
            jobs[name].heard.append(number)

    for what, name, figure in work:
        job = jobs.get(name)
        if what == "say" and job is None:
            own_expected.append(len(own_expected) + 1)
            seat.stream.append(said(["", own_expected[-1]]))
        elif what == "say" and job is not None:
            said_in[name] += 1
            job.stream.append(said([name, said_in[name]]))
            if job.lane is not None:
                job.expected.append(said_in[name])
        elif what == "commit":
            await (seat.sink if job is None else job.sink).commit()
        elif what == "join" and job is not None and job.lane is None:
            join(seat, name, job)
            job.expected = list(range(job.stream.visible + 1, said_in[name] + 1))
        elif what == "leave" and job is not None and job.lane is not None:
            leave(seat, name, job)
        elif what == "replay" and job is not None and job.lane is not None:
            seq = min(figure, job.stream.visible)
            job.lane.replay(seq)
            job.expected, job.heard = list(range(seq + 1, said_in[name] + 1)), []
        elif what == "take":
            for frame in await seat.slice(figure):
                hear(fields_of(frame))
    for sink in (seat.sink, *(job.sink for job in jobs.values())):
        await sink.commit()
    for fields in await seat.read(1000):
        hear(fields)
    assert own_heard == own_expected
    assert all(job.heard == job.expected for job in jobs.values() if job.lane is not None)
    assert not seat.connection.pending


@settings(max_examples=share(300), deadline=None)
@given(WORK, st.sampled_from([0, 4, 1000]))
def test_each_stream_comes_once_and_in_order(work: Sequence[tuple[str, str, int]], ring: int) -> None:
    """Whatever is said, joined, left, replayed and read in whatever order: no stream has a gap, a double or a delay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cursor_module, "CHUNK_ROWS", 3)
        trio.run(_work, work, ring)


# Everything at once, with what the lanes promise of each other.

STREAMS = ("", "a", "b", "c")
_SPEAKING = st.tuples(st.sampled_from(("say", "tell", "tell")), st.sampled_from(STREAMS), st.integers(1, 6))
_TAKING = st.tuples(st.just("take"), st.just(""), st.sampled_from((1, 1, 300, 2000)))
LIFE = st.lists(
    st.one_of(
        _SPEAKING,
        _SPEAKING,
        _TAKING,
        _TAKING,
        st.tuples(st.just("commit"), st.sampled_from(STREAMS), st.integers(1, 6)),
        st.tuples(st.sampled_from(("join", "join", "leave", "end")), st.sampled_from(STREAMS[1:]), st.just(0)),
        st.tuples(
            st.sampled_from(("replay", "replay", "trim", "fail", "jump")), st.sampled_from(STREAMS), st.integers(0, 9)
        ),
        st.tuples(st.sampled_from(("ask", "read", "mute")), st.just(""), st.integers(-2, 4)),
    ),
    min_size=25,
    max_size=90,
)


@attrs.define(eq=False)
class Log:
    """One stream, and what its reader must hear next; None while it reads nothing."""

    stream: Stream
    sink: HandSink
    store: TroubledStore
    lane: Lane | None = None
    following: int | None = None
    waited: int = 0
    stale: int = 0

    def set(self, following: int, control: Iterable[bytes], name: str) -> None:
        """Go on from another place; what is on its way about the old one means nothing any more."""
        told = [fields_of(frame) for frame in control]
        self.stale = sum(each["type"] == "stream_reset" and each.get("job_id", "") == name for each in told)
        self.following = following


@attrs.define
class Model:
    """A connection with a lane for its own stream and for each of three jobs, and what each has promised."""

    seat: Seat
    logs: dict[str, Log]
    ring: int
    answers: dict[int, int] = attrs.field(factory=dict)
    replays: dict[str, int] = attrs.field(factory=dict)
    ends: set[str] = attrs.field(factory=set)
    count: int = 0

    @classmethod
    async def of(cls, ring: int) -> Model:
        seat = await take_seat(ring)
        logs = {name: Log(*await open_by_hand(ring_events=ring)) for name in STREAMS[1:]}
        own = Log(seat.stream, seat.sink, seat.store, seat.connection.lane, 1)
        return cls(seat, {"": own, **logs}, ring)

    async def do(self, what: str, name: str, figure: int) -> None:
        log = self.logs[name]
        await getattr(self, what)(name, log, figure)
        self.check()

    def check(self) -> None:
        """``pending`` is true exactly when something can be handed out."""
        connection = self.seat.connection
        lanes = [log.lane for log in self.logs.values() if log.lane is not None]
        assert connection.pending == (bool(connection._control) or any(lane.pending for lane in lanes))
        assert set(connection.job_lanes) == {name for name, log in self.logs.items() if name and log.lane is not None}

    async def say(self, name: str, log: Log, figure: int) -> None:
        if name not in self.ends:
            for _ in range(figure):
                log.stream.append(said([name, log.stream.last + 1]))

    async def tell(self, name: str, log: Log, figure: int) -> None:
        await self.say(name, log, figure)
        await log.sink.commit()

    async def commit(self, name: str, log: Log, figure: int) -> None:
        await log.sink.commit(figure)

    async def join(self, name: str, log: Log, figure: int) -> None:
        if log.lane is None and name not in self.ends:
            log.lane = self.seat.connection.add_job(name, Cursor(log.stream, log.store, log.stream.visible))
            log.stream.attach(log.lane)
            log.set(log.stream.visible + 1, self.seat.connection._control, name)

    async def leave(self, name: str, log: Log, figure: int) -> None:
        if log.lane is not None:
            self._stand_up(name, log)
            self.ends.discard(name)
            self.replays.pop(name, None)
            log.following = None

    def _stand_up(self, name: str, log: Log) -> None:
        assert log.lane is not None
        log.stream.detach(log.lane)
        self.seat.connection.drop_job(name)
        log.lane = None

    async def end(self, name: str, log: Log, figure: int) -> None:
        """The job is closed: its reader gets what was said, then ``job_disconnected``."""
        if name in self.ends:
            return
        if log.lane is None:
            self.logs[name] = Log(*await open_by_hand(ring_events=self.ring))
            return
        self.ends.add(name)

        def over() -> None:
            self._stand_up(name, log)
            self.seat.connection.tell(JobDisconnected(job_id=name))

        log.lane.hold_last(over)

    async def replay(self, name: str, log: Log, figure: int) -> None:
        if log.lane is not None and log.following is not None:
            # What was decided of a position that is gone is judged before (``go_on_behind``).
            seq = max(log.stream.trimmed, log.stream.visible - figure)
            log.lane.replay(seq)
            log.set(seq + 1, self.seat.connection._control, name)
            self.replays[name] = log.stream.visible

    async def jump(self, name: str, log: Log, figure: int) -> None:
        if log.lane is not None and log.following is not None:
            log.lane.jump()
            log.set(log.stream.visible + 1, self.seat.connection._control, name)
            self.replays.pop(name, None)

    async def trim(self, name: str, log: Log, figure: int) -> None:
        """Retention or the quota removes the oldest events."""
        upto = min(log.stream.trimmed + figure, log.stream.visible)
        log.stream.trimmed = upto
        await log.store.kept.remove({log.stream.key: upto})

    async def fail(self, name: str, log: Log, figure: int) -> None:
        log.store.failures = figure % 3

    async def ask(self, name: str, log: Log, figure: int) -> None:
        self.count += 1
        barrier = min(log.stream.last, max(0, log.stream.visible + figure))
        self.answers[self.count] = barrier if barrier > self.seat.connection.cursor.seq else 0
        self.seat.connection.tell(Ack(seq=self.count), barrier=barrier)

    async def mute(self, name: str, log: Log, figure: int) -> None:
        self.seat.connection.renew(Identity(ALICE, frozenset({"chat"})))
        log.following = None
        self.replays.pop("", None)

    async def read(self, name: str, log: Log, figure: int) -> None:
        if log.following is None:
            self.seat.connection.renew(Identity(ALICE))
            log.set(log.stream.visible + 1, self.seat.connection._control, name)

    async def take(self, name: str, log: Log, room: int) -> None:
        connection = self.seat.connection
        before = self._places()
        waiting = [each for each in self.logs.values() if each.lane is not None and each.lane.cursor.pending]
        crowded = bool(connection._control)
        try:
            frames = connection.take(room)
        except Trimmed:
            with suppress(StoreError):
                await connection.refill()
            return
        heard = {self.hear(fields_of(frame)) for frame in frames}
        if not frames:
            assert not connection.pending or self._places() != before, "a loop without an end"
        for each in waiting:
            served = each.lane is None or any(self.logs[one] is each for one in heard if one is not None)
            each.waited = 0 if served or not each.lane or not each.lane.reads else each.waited + (not crowded)
            assert each.waited <= 2 * len(STREAMS), "a stream starves"

    def _places(self) -> list[Any]:
        lanes = [log.lane for log in self.logs.values()]
        places = [lane and (lane.cursor.seq, lane.cursor._read, len(lane.held)) for lane in lanes]
        return [*places, len(self.seat.connection._control), list(self.seat.connection._rung)]

    def hear(self, fields: dict[str, Any]) -> str | None:
        """Check one frame; return whose event it was."""
        if "event_id" in fields:
            name, number = fields["value"]
            log = self.logs[name]
            assert number == fields["seq"] == log.following, (name, number, log.following)
            assert not (name == "" and any(b < number for b in self.answers.values() if b)), "an answer came late"
            log.following = number + 1
            return str(name)
        name, kind = fields.get("job_id", ""), fields["type"]
        log = self.logs[name]
        if kind == "ack":
            barrier = self.answers.pop(fields["seq"])
            assert log.following is None or barrier <= self.seat.connection.cursor.seq
        elif kind == "job_disconnected":
            assert log.lane is None
            assert log.following == log.stream.last + 1, "it ended before all was handed out"
            self.ends.discard(name)
            self.logs[name] = Log(log.stream, log.sink, log.store)
        elif kind == "stream_reset":
            if log.stale:
                log.stale -= 1
            elif log.following is not None:
                log.following = fields["seq"] + 1
                self.replays.pop(name, None)
        elif kind == "replay_completed" and fields["complete"]:
            assert fields["to_seq"] == self.replays.pop(name)
            assert log.following == fields["to_seq"] + 1
        else:
            assert kind in ("lagging", "replay_completed"), fields
        return None


async def _life(plan: Sequence[tuple[str, str, int]], ring: int) -> None:
    model = await Model.of(ring)
    for name in STREAMS[1:]:
        await model.do("join", name, 0)
    for what, name, figure in plan:
        await model.do(what, name, figure)
    for log in model.logs.values():
        log.store.failures = 0
        await log.sink.commit()
    model.check()
    for _ in range(2_000):
        if not model.seat.connection.pending:
            break
        await model.do("take", "", 500)
    assert not model.seat.connection.pending
    assert not model.answers
    assert not model.replays
    assert not model.ends
    for log in model.logs.values():
        assert log.lane is None or log.following in (None, log.stream.visible + 1)


@settings(max_examples=share(400), deadline=None, phases=(Phase.reuse, Phase.generate))
@given(LIFE, st.sampled_from([0, 3, 1000]))
def test_lanes_keep_their_promises_in_any_order_of_things(plan: Sequence[tuple[str, str, int]], ring: int) -> None:
    """Whatever is said, ended, left, lost and read: no gap or double that is not told, no starving, no idle loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cursor_module, "CHUNK_ROWS", 3)
        trio.run(_life, plan, ring)
