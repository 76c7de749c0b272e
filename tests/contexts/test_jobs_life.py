"""Random lives of a few jobs, compared with a model that fits on a page: who owns what, and who hears what."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from netra_ws.contexts import jobs as jobs_module
from netra_ws.contexts.connection import Connection
from netra_ws.errors import ClientError, StoreError
from netra_ws.history.streams import Streams
from netra_ws.identity import Identity

from ..effort import share
from .test_jobs_memory import DAY_S, EVE, Floor, floor

LIVES = share(240)
IDS = ("a", "b")
#: Two who were granted nothing, and one who may read and speak everywhere.
USERS = (Identity("ada"), Identity("bob"), EVE)
#: After so many seconds nothing is kept.
RETENTION_S = 30 * DAY_S

_SPEAKING = ("emit", "emit", "emit", "emit", "open", "close", "close_own")
_READING = ("join", "join", "join", "leave", "take", "take")
_ACCIDENTS = ("hold", "hold", "go_on", "go_on", "fall", "back", "back", "sweep", "sweep", "restart")
PLAN = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(_SPEAKING), st.sampled_from(IDS), st.integers(0, 2)),
        st.tuples(st.sampled_from(_SPEAKING), st.sampled_from(IDS), st.integers(0, 2)),
        st.tuples(st.sampled_from(_READING), st.sampled_from(IDS), st.integers(0, 2)),
        st.tuples(st.sampled_from(_READING), st.sampled_from(IDS), st.integers(0, 2)),
        st.tuples(st.sampled_from(_ACCIDENTS), st.just("a"), st.integers(0, 2)),
    ),
    min_size=30,
    max_size=90,
)


@attrs.define(eq=False)
class Incarnation:
    """What one opening of an id has come to: its words by seq; without an owner while nobody has opened it."""

    owner: str | None = None
    said: dict[int, int] = attrs.field(factory=dict)
    closed: bool = False
    last_used: float = 0.0


@attrs.define(eq=False)
class Member:
    """A connection's seat in one job: behind which seq it began, and what it has heard since then."""

    incarnation: Incarnation
    began: int
    heard: list[int] = attrs.field(factory=list)

    def check(self, *, whole: bool) -> None:
        """Compare what was heard with what was said behind its begin: no gap, no double, no word of another job."""
        expected = [value for seq, value in self.incarnation.said.items() if seq > self.began]
        assert self.heard == (expected if whole else expected[: len(self.heard)])


@attrs.define
class Life:
    here: Floor
    current: dict[str, Incarnation] = attrs.field(factory=lambda: {job_id: Incarnation() for job_id in IDS})
    seats: list[Connection] = attrs.field(factory=list)
    members: dict[tuple[int, str], Member] = attrs.field(factory=dict)
    count: int = 0
    away: bool = False
    held: bool = False
    moments: set[str] = attrs.field(factory=set)

    async def do(self, what: str, job_id: str, who: int) -> None:
        await getattr(self, what)(job_id, who)
        await wait_all_tasks_blocked()
        if not self.away:
            self.here.check()

    async def emit(self, job_id: str, who: int) -> None:
        user, job = USERS[who], self.current[job_id]
        self.count += 1
        allowed = job.owner in (None, user.user_id) or user is EVE
        try:
            seq = await self.here.emit(job_id, self.count, user)
        except StoreError:
            assert self.away
        except ClientError:
            assert not allowed
        else:
            assert allowed, f"{user.user_id} spoke into a job of {job.owner}"
            job.owner = job.owner or user.user_id
            assert seq > max(job.said, default=0), "a number is used twice"
            job.said[seq] = self.count
            job.last_used = self.here.time[0]

    async def open(self, job_id: str, who: int) -> None:
        user, job = USERS[who], self.current[job_id]
        try:
            await self.here.jobs.open(job_id, user)
        except StoreError:
            assert self.away
        except ClientError:
            assert job.owner not in (None, user.user_id)
        else:
            assert job.owner in (None, user.user_id)
            if job.owner is None:
                job.owner, job.last_used = user.user_id, self.here.time[0]

    async def close(self, job_id: str, who: int) -> None:
        """Close without waiting for the commit."""
        user, job = USERS[who], self.current[job_id]
        outcome: list[object] = []

        async def work() -> None:
            try:
                await self.here.jobs.close(job_id, user)
                outcome.append(None)
            except (ClientError, StoreError) as exc:
                outcome.append(exc)

        self.here.nursery.start_soon(work)
        await wait_all_tasks_blocked()
        if outcome and isinstance(outcome[0], StoreError):
            assert self.away
        elif outcome and isinstance(outcome[0], ClientError):
            assert job.owner != user.user_id
        else:
            assert job.owner == user.user_id
            job.closed = True
            self.current[job_id] = Incarnation()

    async def close_own(self, job_id: str, who: int) -> None:
        """Close in the name of its owner."""
        for number, user in enumerate(USERS):
            if user.user_id == self.current[job_id].owner:
                await self.close(job_id, number)
                return

    async def join(self, job_id: str, who: int) -> None:
        """Join as the command does; only who was granted everything comes here."""
        connection, job = self.seats[who], self.current[job_id]
        known = self.members.get((who, job_id))
        if known is not None and known.incarnation is job:
            return
        if known is not None:
            self.here.jobs.leave(connection, job_id)
            del self.members[who, job_id]
        with suppress(StoreError):
            lane = await self.here.join(job_id, connection)
            self.members[who, job_id] = Member(job, lane.cursor.seq)

    async def leave(self, job_id: str, who: int) -> None:
        assert self.here.jobs.leave(self.seats[who], job_id) == ((who, job_id) in self.members)
        self.members.pop((who, job_id), None)

    async def take(self, job_id: str, who: int) -> None:
        connection = self.seats[who]
        if self.away:
            return
        for fields in await self.here.taken(connection, 300):
            member = self.members[who, fields["job_id"]]
            if "event_id" in fields:
                member.heard.append(fields["value"])
                self.moments.add("heard")
            elif fields["type"] == "stream_reset":
                member.began, member.heard = fields["seq"], []
                self.moments.add("lost")
            else:
                assert (fields["type"], member.incarnation.closed) == ("job_disconnected", True)
                member.check(whole=True)
                del self.members[who, fields["job_id"]]
                self.moments.add("disconnected")
        for member in self.members.values():
            member.check(whole=False)

    async def hold(self, job_id: str, who: int) -> None:
        if not self.held:
            self.held, self.here.store.gate = True, trio.Event()

    async def go_on(self, job_id: str, who: int) -> None:
        self.held = False
        self.here.store.gate.set()
        if not self.away:
            await self.here.recorder.flush()

    async def fall(self, job_id: str, who: int) -> None:
        self.away = True
        self.here.store.fail()

    async def back(self, job_id: str, who: int) -> None:
        self.away = False
        self.here.store.recover()

    async def sweep(self, job_id: str, who: int) -> None:
        """Let ten days pass, or more, and what is over be forgotten."""
        await self.back(job_id, who)
        await self.go_on(job_id, who)
        here = self.here
        here.time[0] += (10, 20, 40)[who] * DAY_S
        here.recorder.retention_s = RETENTION_S
        await here.recorder._remove(here.streams, partial(here.store.trim, here.time[0] - RETENTION_S))
        await here.jobs.forget_ended()
        used = {member.incarnation for member in self.members.values()}
        for each, job in self.current.items():
            if job.owner is not None and job not in used and job.last_used < here.time[0] - RETENTION_S:
                self.current[each] = Incarnation()
                self.moments.add("forgotten")

    async def restart(self, job_id: str, who: int) -> None:
        """Let everybody go, and begin with an empty memory on the same store."""
        await self.back(job_id, who)
        await self.go_on(job_id, who)
        here = self.here
        for connection in self.seats:
            here.jobs.leave_all(connection)
        self.members.clear()
        await wait_all_tasks_blocked()
        here.streams = Streams(here.store, here.recorder, lambda: here.time[0], ring_events=here.streams.ring_events)
        here.jobs = jobs_module.Jobs(here.streams, here.store, here.recorder)

    async def end(self) -> None:
        """Let everything be committed and everybody hear what there is."""
        await self.back("a", 0)
        await self.go_on("a", 0)
        for who in range(len(USERS)):
            await self.take("a", who)
        for member in self.members.values():
            assert not member.incarnation.closed
            member.check(whole=True)
        for job_id, job in self.current.items():
            row = await self.here.store.job(job_id)
            assert (None if row is None else row.user_id) == job.owner


async def _live(plan: Sequence[Any], most_idle: int, moments: set[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs_module, "MAX_IDLE", most_idle)
        async with floor(ring_events=3, max_idle=most_idle) as here:
            life = Life(here)
            life.seats = [await here.seat() for _ in USERS]
            for what, job_id, who in plan:
                await life.do(what, job_id, who)
            await life.end()
    moments |= life.moments


@pytest.mark.heavy
def test_jobs_live_as_in_the_model() -> None:
    """Whatever is said, opened, closed, read, forgotten and restarted on whatever store: owners and words are right."""
    moments: set[str] = set()

    @settings(max_examples=LIVES, deadline=None, phases=(Phase.reuse, Phase.generate))
    @given(PLAN, st.sampled_from([0, 1, 100]))
    def lives(plan: Sequence[Any], most_idle: int) -> None:
        trio.run(_live, plan, most_idle, moments, clock=trio.testing.MockClock(autojump_threshold=0))

    lives()
    assert moments >= {"heard", "disconnected"}
    assert "forgotten" in moments or LIVES < 200
