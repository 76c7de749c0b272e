"""Tests of ``netra_ws.contexts.lane``: several streams on one connection, each in order, none behind another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from netra_ws.contexts.lane import Lane
from netra_ws.history import cursor as cursor_module
from netra_ws.history.cursor import Cursor
from netra_ws.history.stream import Stream
from netra_ws.identity import Identity

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


@settings(max_examples=150, deadline=None)
@given(WORK, st.sampled_from([0, 4, 1000]))
def test_each_stream_comes_once_and_in_order(work: Sequence[tuple[str, str, int]], ring: int) -> None:
    """Whatever is said, joined, left, replayed and read in whatever order: no stream has a gap, a double or a delay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cursor_module, "CHUNK_ROWS", 3)
        trio.run(_work, work, ring)
