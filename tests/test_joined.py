"""Jobs in the Trio client: the rules by a scripted server, a random walk, and a real server behind links that fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hypothesis
import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

from netra_ws.client import ClientPolicy, Session, connect
from netra_ws.errors import CommandFailed, InvalidArgument
from netra_ws.joined import JoinedJobs, farewell
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.commands import ConnectJob
from netra_ws.protocol.replies import Position
from netra_ws.server import Server
from netra_ws.session import EventQueue
from netra_ws.testing import check_no_gap_no_double, open_test_server
from tests.scripted import JWT, ScriptedServer, Visit

JOB = "build-7"


async def seated(visit: Visit, seq: int, epoch: str = "j", job_id: str = JOB) -> dict[str, Any]:
    """Answer a ``connect_job`` as the server does, with the visible end of the job's stream."""
    command = await visit.command("connect_job")
    assert command["job_id"] == job_id
    stream = {"epoch": epoch, "seq": seq}
    await visit.say(type="job_connected", reply_to=command["id"], job_id=job_id, stream=stream, timestamp=1.0)
    return command


async def said(visit: Visit, *seqs: int, job_id: str = JOB, **fields: Any) -> None:
    """Say numbered events of a job."""
    for seq in seqs:
        stamp = {"event_id": f"j{seq}", "seq": seq, "timestamp": 1.0, "user_id": "ada"}
        await visit.say(type="agent_event", job_id=job_id, name="step", value=seq, **stamp, **fields)


async def replayed(visit: Visit, from_seq: int, to_seq: int, epoch: str = "j", **fields: Any) -> None:
    done = {"from_seq": from_seq, "to_seq": to_seq, "count": 0, "complete": True, "reason": None}
    await visit.say(type="replay_completed", epoch=epoch, job_id=JOB, **done | fields)


async def refused(visit: Visit, code: str, *, retryable: bool = False, **fields: Any) -> dict[str, Any]:
    command = await visit.command("connect_job")
    words = {"error": "no", "message": "no", "retryable": retryable, "timestamp": 1.0}
    await visit.say(type="error", reply_to=command["id"], code=code, **words, **fields)
    return command


async def left(visit: Visit) -> None:
    command = await visit.command("disconnect_job")
    await visit.say(type="job_disconnected", reply_to=command["id"], job_id=JOB, timestamp=1.0)


async def seqs(queue: EventQueue, count: int) -> list[int]:
    """Return the numbers of the next events."""
    with trio.fail_after(100):
        return [(await anext(queue)).fields["seq"] for _ in range(count)]


def at(seq: int, epoch: str = "j") -> Position:
    return Position(epoch=epoch, seq=seq)


async def test_a_job_has_numbers_of_its_own(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A job's events come among the others, move the job's position alone, and belong to no run's events."""

    async def speaks(visit: Visit) -> None:
        await visit.welcome(seq=90)
        await visit.started(91)
        await said(visit, 1)  # nobody has joined yet
        await seated(visit, 5)
        await said(visit, 6, run_id="r", agent_name="a")
        await said(visit, 1, job_id="another")
        await visit.event("agent_event", 92, name="n", value=0)
        await said(visit, 5, 6, 7)
        await visit.say(type="lagging", skipped=1, from_seq=6, to_seq=7, job_id=JOB)
        await visit.completed(93)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(speaks)) as session:
        everything, mine = session.events(), session.events(job_id=JOB)
        run = await session.start("hi")
        assert await session.connect_job(JOB) == at(5)
        assert session.job_positions == {JOB: at(5)}
        assert [heard.fields["seq"] async for heard in run] == [91, 92, 93]
        assert await seqs(everything, 5) == [91, 6, 92, 7, 93]
        assert await seqs(mine, 2) == [6, 7]
        assert session.position == at(93, "e")
        assert session.job_positions == {JOB: at(7)}


async def test_it_comes_back_to_its_jobs(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A new connection is first told each job with its position; what comes before the answer, or again, is dropped."""
    asked: list[Any] = []

    async def first(visit: Visit) -> None:
        await visit.welcome()
        await seated(visit, 5)
        await seated(visit, 0, job_id="other")
        await said(visit, 6)
        await visit.command("publish_job")

    async def second(visit: Visit) -> None:
        await visit.welcome(resumed=True)
        await said(visit, 9)  # belongs to nothing that was asked for here
        asked.append((await seated(visit, 9))["resume"])
        await said(visit, 6, 7, 9)
        await replayed(visit, 6, 12)
        await replayed(visit, 6, 99, epoch="another")
        asked.append((await seated(visit, 0, job_id="other"))["resume"])
        asked.append((await visit.command("publish_job"))["value"])
        await visit.goodbye()

    async with (
        connect("http://h", JWT, policy=scripted.policy(first, second, command_s=3)) as session,
        trio.open_nursery() as nursery,
    ):
        mine = session.events(job_id=JOB)
        await session.connect_job(JOB)
        await session.connect_job("other")
        assert await seqs(mine, 1) == [6]

        async def publish() -> None:
            with pytest.raises(CommandFailed, match="TIMEOUT"):
                await session.publish_job(JOB, "n", "once")

        nursery.start_soon(publish)
        assert await seqs(mine, 2) == [7, 9]
        await trio.testing.wait_all_tasks_blocked()
        assert session.job_positions == {JOB: at(12), "other": at(0)}
    assert asked == ["j:6", "j:0", "once"]


async def test_positions_are_good_for_a_later_session(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A session that is given positions joins these jobs by itself; its first readers miss nothing of the replay."""
    asked: list[Any] = []

    async def replays(visit: Visit) -> None:
        await visit.welcome()
        asked.append((await seated(visit, 9))["resume"])
        await said(visit, 8, 9)
        await replayed(visit, 7, 9)
        await visit.event("agent_event", 1, name="n", value=0)
        await visit.goodbye()

    policy = scripted.policy(replays)
    async with connect("http://h", JWT, job_positions={JOB: at(7)}, policy=policy) as session:
        await trio.sleep(1)
        mine = session.events(job_id=JOB)
        everything = session.events()
        assert await seqs(mine, 2) == [8, 9]
        assert await seqs(everything, 3) == [8, 9, 1]
        assert len(session.events(job_id=JOB)) == 0
    assert asked == ["j:7"]
    assert session.job_positions == {JOB: at(9)}


@pytest.mark.parametrize("code", ["NOT_FOUND", "FORBIDDEN", "QUOTA_EXCEEDED"])
async def test_a_job_that_is_refused_is_told(autojump_clock: MockClock, scripted: ScriptedServer, code: str) -> None:
    """A job that cannot be joined again is told with its code as the last word of it, and is asked for no more."""

    async def first(visit: Visit) -> None:
        await visit.welcome()
        await seated(visit, 5)
        await said(visit, 6)

    async def second(visit: Visit) -> None:
        await visit.welcome(resumed=True)
        await refused(visit, code)

    async def third(visit: Visit) -> None:
        await visit.welcome(resumed=True)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(first, second, third)) as session:
        everything, mine = session.events(), session.events(job_id=JOB)
        await session.connect_job(JOB)
        heard = [heard async for heard in mine]
        assert [one.type for one in heard] == ["agent_event", "job_disconnected"]
        assert dict(heard[1].fields) == {"type": "job_disconnected", "job_id": JOB, "code": code, "error": "no"}
        assert [(await anext(everything)).type for _ in range(2)] == ["agent_event", "job_disconnected"]
        assert session.job_positions == {}
        await trio.sleep(5)
    assert scripted.scripts == []


async def test_a_job_that_is_put_off_is_asked_for_again(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """What the server has no time for is asked for again on the same connection, later and later, where it was."""
    times: list[float] = []

    async def busy(visit: Visit) -> None:
        await visit.welcome()
        for more in ({"code": "RATE_LIMITED", "retry_after_s": 5.0}, {"code": "UNAVAILABLE"}, {"code": "UNAVAILABLE"}):
            assert (await refused(visit, **more, retryable=True))["resume"] == "j:7"
            times.append(trio.current_time())
        await refused(visit, "AUTH_FAILED")  # until there is a new token
        assert (await seated(visit, 9))["resume"] == "j:7"
        times.append(trio.current_time())
        await said(visit, 8)
        await visit.goodbye()

    async with connect("http://h", JWT, job_positions={JOB: at(7)}, policy=scripted.policy(busy)) as session:
        assert await seqs(session.events(job_id=JOB), 1) == [8]
    assert times == [0.0, 5.25, 5.75, 5.75 + 1 + 2]
    assert len(scripted.times) == 1


async def test_a_program_asks_for_what_was_put_off(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A program's own connect_job is not crossed by ours, and without a position it loses none of ours."""

    async def busy(visit: Visit) -> None:
        await visit.welcome()
        await refused(visit, "UNAVAILABLE", retryable=True)
        command = await visit.command("connect_job")
        assert "resume" not in command or command["resume"] is None
        with trio.move_on_after(10):  # ours waits for that answer
            pytest.fail(str(await visit.command("connect_job")))
        stream = {"epoch": "j", "seq": 9}
        await visit.say(type="job_connected", reply_to=command["id"], job_id=JOB, stream=stream)
        await said(visit, 10)  # it reads from 9 on, and we have nothing behind 7
        assert (await seated(visit, 10))["resume"] == "j:7"
        await said(visit, 8, 9, 10)
        await visit.goodbye()

    policy = scripted.policy(busy, command_s=60)
    async with connect("http://h", JWT, job_positions={JOB: at(7)}, policy=policy) as session:
        mine = session.events(job_id=JOB)
        assert await session.connect_job(JOB) == at(9)
        assert await seqs(mine, 3) == [8, 9, 10]


async def test_a_job_that_ends_is_told(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """When the server says that a job is over, its readers get that behind its last event, and end."""

    async def ends(visit: Visit) -> None:
        await visit.welcome()
        await seated(visit, 5)
        await said(visit, 6)
        await visit.say(type="job_disconnected", job_id=JOB, timestamp=1.0)
        await said(visit, 7)
        await visit.say(type="job_disconnected", job_id=JOB, timestamp=1.0)
        await seated(visit, 0, "k")
        await said(visit, 1)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(ends)) as session:
        mine = session.events(job_id=JOB)
        await session.connect_job(JOB)
        assert [heard.fields.get("seq") async for heard in mine] == [6, None]
        assert session.job_positions == {}
        again = session.events(job_id=JOB)
        assert await session.connect_job(JOB) == at(0, "k")
        assert await seqs(again, 1) == [1]


async def test_a_reset_of_a_job(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A reset of a job's stream moves that job's position and no other, and leaves runs alone."""

    async def resets(visit: Visit) -> None:
        await visit.welcome()
        await visit.started(1)
        await seated(visit, 50, "k")
        await visit.say(type="stream_reset", epoch="k", seq=50, reason="epoch_changed", job_id=JOB)
        await visit.say(type="stream_reset", epoch="x", seq=7, reason="novel", job_id=JOB)  # of a newer server
        await said(visit, 50, 51)
        await visit.completed(2)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(resets)) as session:
        everything, mine = session.events(), session.events(job_id=JOB)
        run = await session.start("hi")
        await session.connect_job(JOB, at(900))
        assert [heard.type async for heard in run] == ["user_message", "agent_completed"]
        reset, event = await anext(mine), await anext(mine)
        assert (reset.type, reset.fields["reason"], event.fields["seq"]) == ("stream_reset", "epoch_changed", 51)
        types = [(await anext(everything)).type for _ in range(4)]
        assert types == ["user_message", "stream_reset", "agent_event", "agent_completed"]
        assert (session.position, session.job_positions) == (at(2, "e"), {JOB: at(51, "k")})


async def test_joining_twice_is_once(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """Who reads a job already misses nothing that is on its way when it connects once more; another opening is anew."""

    async def answers(visit: Visit) -> None:
        await visit.welcome()
        await seated(visit, 5)
        await seated(visit, 8)
        await said(visit, 6, 7, 8)
        await seated(visit, 3, "k")  # it was closed and opened anew
        await said(visit, 4)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(answers)) as session:
        mine = session.events(job_id=JOB)
        await session.connect_job(JOB)
        assert await session.connect_job(JOB) == at(8)
        assert await seqs(mine, 3) == [6, 7, 8]
        assert await session.connect_job(JOB) == at(3, "k")
        assert await seqs(mine, 1) == [4]


async def test_going_back_in_a_job(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """After a resume, by either word, a job's events behind that position come again, and the user's do not."""

    async def repeats(visit: Visit) -> None:
        await visit.welcome(seq=3)
        await seated(visit, 5)
        await said(visit, 6)
        command = await visit.command("resume")
        assert (command["job_id"], command["epoch"], command["seq"]) == (JOB, "j", 4)
        await visit.ack(command)
        await said(visit, 5, 6)
        assert (await seated(visit, 6))["resume"] == "j:5"
        await said(visit, 6)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(repeats)) as session:
        mine = session.events(job_id=JOB)
        await session.connect_job(JOB)
        assert await seqs(mine, 1) == [6]
        await session.resume(at(4), job_id=JOB)
        assert await seqs(mine, 2) == [5, 6]
        await session.connect_job(JOB, at(5))
        assert await seqs(mine, 1) == [6]
        assert session.position == at(3, "e")


async def test_leaving(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A job that was left is not joined again, its reader ends, and nothing more of it is heard."""

    async def first(visit: Visit) -> None:
        await visit.welcome()
        await seated(visit, 5)
        await left(visit)
        await said(visit, 6)

    async def second(visit: Visit) -> None:
        await visit.welcome(resumed=True)
        command = await visit.command("disconnect_job")
        await visit.say(type="error", reply_to=command["id"], code="NOT_FOUND", error="no", message="", retryable=False)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(first, second)) as session:
        mine = session.events(job_id=JOB)
        await session.connect_job(JOB)
        await session.disconnect_job(JOB)
        assert [heard.type async for heard in mine] == ["job_disconnected"]
        assert session.job_positions == {}
        await trio.sleep(1)
        with pytest.raises(CommandFailed, match="NOT_FOUND"):
            await session.disconnect_job(JOB)


async def test_a_job_that_could_not_be_left(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """When the server has no time for the leaving, the job goes on as if nothing was said."""

    async def busy(visit: Visit) -> None:
        await visit.welcome()
        await seated(visit, 5)
        command = await visit.command("disconnect_job")
        words = {"error": "no", "message": "no", "retryable": True}
        await visit.say(type="error", reply_to=command["id"], code="UNAVAILABLE", **words)
        await said(visit, 6)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(busy)) as session:
        mine = session.events(job_id=JOB)
        await session.connect_job(JOB)
        with pytest.raises(CommandFailed, match="UNAVAILABLE"):
            await session.disconnect_job(JOB)
        assert await seqs(mine, 1) == [6]


async def test_leaving_what_was_put_off(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A job that is left before the server had time for it is not asked for again."""

    async def busy(visit: Visit) -> None:
        await visit.welcome()
        await refused(visit, "UNAVAILABLE", retryable=True)
        command = await visit.command("disconnect_job")
        await visit.say(type="error", reply_to=command["id"], code="NOT_FOUND", error="no", message="", retryable=False)
        await visit.goodbye()

    async with connect("http://h", JWT, job_positions={JOB: at(7)}, policy=scripted.policy(busy)) as session:
        mine = session.events(job_id=JOB)
        await session.disconnect_job(JOB)
        assert [heard.type async for heard in mine] == ["job_disconnected"]
        await trio.sleep(50)
        assert scripted.scripts == []


async def test_leaving_over_a_lost_connection(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A job that is being left when the connection goes is left on the next one, also where it has ended meanwhile."""

    async def first(visit: Visit) -> None:
        await visit.welcome()
        await seated(visit, 5)
        await visit.command("disconnect_job")

    async def second(visit: Visit) -> None:
        await visit.welcome(resumed=True)
        await refused(visit, "NOT_FOUND")
        command = await visit.command("disconnect_job")
        await visit.say(type="error", reply_to=command["id"], code="NOT_FOUND", error="no", message="", retryable=False)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(first, second)) as session:
        await session.connect_job(JOB)
        await session.disconnect_job(JOB)
        assert session.job_positions == {}


async def test_given_up_and_answered_late(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A leaving that nobody waits for any more still counts; a joining does not, and an answer that is odd neither."""

    async def slow(visit: Visit) -> None:
        await visit.welcome()
        await seated(visit, 5)
        command = await visit.command("disconnect_job")
        await trio.sleep(5)
        await visit.say(type="job_disconnected", reply_to=command["id"], job_id=JOB)
        command = await visit.command("connect_job")
        await trio.sleep(5)
        await visit.say(type="job_connected", reply_to=command["id"], job_id=JOB, stream={"epoch": "j", "seq": 1})
        await said(visit, 2)
        command = await visit.command("connect_job")
        await visit.say(type="job_connected", reply_to=command["id"], job_id=JOB, stream="a newer shape")
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(slow)) as session:
        mine = session.events(job_id=JOB)
        await session.connect_job(JOB)
        with trio.move_on_after(1):
            await session.disconnect_job(JOB)
        assert session.job_positions == {JOB: at(5)}
        assert [heard.type async for heard in mine] == ["job_disconnected"]
        with trio.move_on_after(1):
            await session.connect_job(JOB)
        await trio.sleep(6)
        assert session.job_positions == {}
        with pytest.raises(Exception, match="does not know"):
            await session.connect_job(JOB)


async def test_a_joining_is_sent_again(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A connect_job whose answer was lost goes out again; one that has its answer only as our own."""

    async def first(visit: Visit) -> None:
        await visit.welcome()
        await visit.command("connect_job")

    async def second(visit: Visit) -> None:
        await visit.welcome(resumed=True)
        await seated(visit, 5)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(first, second)) as session:
        assert await session.connect_job(JOB) == at(5)


async def test_coming_back_over_two_lost_connections(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """What was not answered on a lost connection is asked for once on the next, from where we stand by then."""

    async def first(visit: Visit) -> None:
        await visit.welcome()
        assert (await visit.command("connect_job"))["resume"] == "j:5"

    async def second(visit: Visit) -> None:
        await visit.welcome(resumed=True)
        assert (await seated(visit, 9))["resume"] == "j:5"
        await said(visit, 6)
        await visit.goodbye()

    async with connect("http://h", JWT, job_positions={JOB: at(5)}, policy=scripted.policy(first, second)) as session:
        assert await seqs(session.events(job_id=JOB), 1) == [6]


async def test_a_job_that_overflows(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A reader of one job that does not keep up is told in its place, for that job; other readers have all."""

    async def gushes(visit: Visit) -> None:
        await visit.welcome()
        await seated(visit, 0)
        await said(visit, 1, 2, 3)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(gushes)) as session:
        mine, everything = session.events(job_id=JOB, limit=2), session.events()
        await session.connect_job(JOB)
        await seqs(everything, 3)
        reset = await anext(mine)
        assert (reset.fields["reason"], reset.fields["job_id"]) == ("overflow", JOB)
        assert await seqs(mine, 1) == [3]


async def test_a_gap_before_the_first_reader() -> None:
    """A job's first reader is told of what a fuller queue had to drop before, though nobody knows whose that was."""
    early = EventQueue(limit=1)
    for seq in (1, 2):
        early.push(numbered(seq))
    mine = EventQueue(job_id=JOB)
    mine.take_over(early)
    assert [(await anext(mine)).type for _ in range(2)] == ["stream_reset", "agent_event"]
    other = EventQueue(job_id="other")
    other.take_over(early)
    assert len(other) == 1


@pytest.mark.parametrize("job_id", ["", "a b", "x" * 129, 5, None])
async def test_what_is_no_job(autojump_clock: MockClock, scripted: ScriptedServer, job_id: Any) -> None:
    """A wrong id is refused by its name before anything is said."""

    async def idle(visit: Visit) -> None:
        await visit.welcome()
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(idle)) as session:
        calls = [session.connect_job(job_id), session.disconnect_job(job_id), session.publish_job(job_id, "n", 1)]
        if job_id is not None:
            calls.append(session.resume(at(1), job_id=job_id))
        for call in calls:
            with pytest.raises(InvalidArgument) as caught:
                await call
            assert caught.value.argument == "job_id"
        if job_id is not None:
            with pytest.raises(InvalidArgument):
                session.events(job_id=job_id)
    with pytest.raises(InvalidArgument) as caught:
        async with connect("http://h", JWT, job_positions={job_id: at(1)}, policy=scripted.policy()):
            pytest.fail("it is not open")
    assert caught.value.argument == "job_positions"


@pytest.mark.parametrize("position", ["j:1", at(-1), at(1, ""), at(1, "a:b"), at(True), 5])
async def test_what_is_no_position(autojump_clock: MockClock, scripted: ScriptedServer, position: Any) -> None:
    """A wrong position is refused by the name of its argument before anything is said."""

    async def idle(visit: Visit) -> None:
        await visit.welcome()
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(idle)) as session:
        with pytest.raises(InvalidArgument) as caught:
            await session.connect_job(JOB, position)
        assert caught.value.argument == "resume"
    with pytest.raises(InvalidArgument) as caught:
        async with connect("http://h", JWT, job_positions={JOB: position}, policy=scripted.policy()):
            pytest.fail("it is not open")
    assert caught.value.argument == "job_positions"


def test_what_was_left_meanwhile_stays_left() -> None:
    """An answer to our own coming back does not join a job again that was dropped while it was on its way."""
    jobs = JoinedJobs()
    jobs.restore({JOB: at(4)})
    (command,) = jobs.stand_up()
    jobs.drop(JOB)
    jobs.connected(command, at(9), own=True)
    assert jobs.positions == {}
    assert not jobs.hear(JOB, farewell(JOB))
    jobs.rewound(JOB, at(1))
    assert jobs.positions == {}


# A walk


class Log:
    """A job's stream and one seat at it, as the server has them: the model of the walk."""

    def __init__(self) -> None:
        self.last = 0
        self.cursor: int | None = None

    def sit(self, command: ConnectJob) -> Position:
        if command.resume is not None:
            self.cursor = int(command.resume.partition(":")[2])
        elif self.cursor is None:
            self.cursor = self.last
        return at(self.last)

    def deliver(self, most: int) -> list[int]:
        if self.cursor is None:
            return []
        found = list(range(self.cursor + 1, min(self.last, self.cursor + most) + 1))
        self.cursor += len(found)
        return found


def numbered(seq: int) -> Heard:
    fields = {"type": "agent_event", "job_id": JOB, "seq": seq}
    return Heard(type="agent_event", fields=fields, message=None, stamp=None, reply_to=None)


ACTIONS = st.one_of(
    st.tuples(st.just("say"), st.integers(1, 5)),
    st.tuples(st.just("deliver"), st.integers(1, 4)),
    st.sampled_from([("cut", 0), ("answer", 0), ("put off", 0), ("ask", 0)]),
)


@example([("answer", 0), ("ask", 0), ("cut", 0), ("put off", 0), ("say", 1), ("answer", 0), ("say", 1), ("deliver", 1)])
@hypothesis.settings(max_examples=400, deadline=None)
@given(st.lists(ACTIONS, max_size=60))
def test_a_walk_loses_and_doubles_nothing(actions: Sequence[tuple[str, int]]) -> None:
    """Whatever is cut, put off or asked for twice, a reader has every event behind its first answer once, in order."""
    log, jobs, heard = Log(), JoinedJobs(), list[int]()
    asked: list[tuple[ConnectJob, bool]] = []  # what the server has still to answer, and whether we say it ourselves
    began: int | None = None

    def ask_again() -> None:
        if not any(own for _, own in asked) and (command := jobs.come_back(JOB)) is not None:
            asked.append((command, True))

    def take(most: int) -> None:
        heard.extend(seq for seq in log.deliver(most) if jobs.hear(JOB, numbered(seq)))

    def answer() -> None:
        nonlocal began
        command, own = asked.pop(0)
        jobs.connected(command, log.sit(command), own=own)
        began = jobs.positions[JOB].seq if began is None else began

    for what, count in [("ask", 0), *actions]:
        match what:
            case "say":
                log.last += count
            case "deliver":
                take(count)
            case "cut":  # an unanswered command of the program is sent again, behind our own
                log.cursor = None
                program = [each for each in asked if not each[1]]
                asked[:] = [*((command, True) for command in jobs.stand_up()), *program]
            case "put off" if asked and asked[0][1]:
                asked.pop(0)
            case "ask" if len(asked) < 3:
                asked.append((ConnectJob(job_id=JOB), False))  # type: ignore[arg-type]
            case "answer" if asked:
                answer()
                ask_again()
    for _ in range(8):
        ask_again()
        if asked:
            answer()
    assert jobs.unseated(JOB) is None
    take(10**6)
    assert heard == list(range((began or 0) + 1, log.last + 1))


# A real server behind links that fail

PATIENT = ClientPolicy(connect_s=3600.0, patience_s=3600.0, command_s=600.0)
READER = ("chat", "read", "job:build-*")
TOO_LONG_S = 1800.0


async def caught_up(server: Server, sessions: Sequence[Session], jobs: Sequence[str]) -> None:
    await server.recorder.flush()
    for job_id in jobs:
        end = await server.job("ada", job_id).position()
        while any(session.job_positions[job_id].seq < end.seq for session in sessions):
            await trio.sleep(0.5)


@pytest.mark.parametrize("ring", [2000, 16], ids=["ring", "store"])
@pytest.mark.parametrize("seed", range(8))
async def test_nothing_is_missing_or_doubled(autojump_clock: MockClock, seed: int, ring: int) -> None:
    """Under any plan of faults, who reads jobs and comes back has all events of them, once, and nothing is left."""
    jobs = ("build-1", "build-2")
    async with open_test_server({}, {"history.ring_events": ring}, seed=seed) as memory:
        server = memory.server
        for job_id in jobs:
            await server.job("ada", job_id).emit("opened", 0)
        await server.recorder.flush()
        tokens = {user: memory.token(user, permissions=READER) for user in ("bob", "cyd")}
        async with (
            memory.connect("bob", token=tokens["bob"], policy=PATIENT) as bob,
            memory.connect("cyd", link="calm", token=tokens["cyd"], policy=PATIENT) as cyd,
        ):
            sessions = (bob, cyd)
            heard = {session: session.events(limit=100_000) for session in sessions}
            alone = bob.events(job_id="build-2", limit=100_000)
            for session in sessions:
                for job_id in jobs:
                    first = await server.job("ada", job_id).position()
                    await session.connect_job(job_id, Position(epoch=first.epoch, seq=0))
            with trio.fail_after(TOO_LONG_S):
                async with memory.faults.chaos((0.1, 0.2, 0.5)[seed % 3], links=["bob"]):
                    await speak(server, jobs)
                with trio.fail_after(300):
                    await caught_up(server, sessions, jobs)
            for job_id in jobs:
                recorded = await memory.recorded_job(job_id)
                assert [one.fields["value"] for one in recorded] == list(range(len(recorded)))
                for session in sessions:
                    check_no_gap_no_double(list(heard[session]._waiting), recorded, job_id=job_id)
            check_no_gap_no_double(list(alone._waiting), await memory.recorded_job("build-2"), job_id="build-2")
        assert len(memory.faults.log) > 0
        await memory.settled()


async def speak(server: Server, jobs: Sequence[str]) -> None:
    """Say sixty things into each job, in gusts and with pauses, as long as an ill store may take."""
    for number in range(1, 61):
        for job_id in jobs:
            await server.job("ada", job_id).emit("step", number)
        await trio.sleep(0.0 if number % 10 else 5.0)


async def test_publishing_happens_once(autojump_clock: MockClock) -> None:
    """Whatever happens to the connection, each thing that a client publishes stands in the job once, at its seq."""
    async with open_test_server({}, seed=3) as memory:
        await memory.server.job("ada", JOB).emit("opened", 0)
        allowed = memory.token("ada", permissions=(*READER, "job:publish"))
        async with memory.connect("ada", token=allowed, policy=PATIENT) as session:
            numbers: list[int] = []
            wire_faults = ("drop", "cut_mid_frame", "stall")
            async with memory.faults.chaos(2.0, kinds=wire_faults):  # type: ignore[arg-type]
                for number in range(1, 61):
                    numbers.append(await session.publish_job(JOB, "step", number))
                    await trio.sleep(0.2)
            recorded = await memory.recorded_job(JOB)
            assert [one.fields["value"] for one in recorded] == list(range(61))
            assert [one.fields["seq"] for one in recorded][1:] == numbers


async def test_a_job_outlives_the_server_for_its_readers(autojump_clock: MockClock) -> None:
    """A reader goes on in its job over a restart; where the right to read it is gone by then, that is told."""
    async with open_test_server({}) as first:
        store = first.store
        await first.server.job("ada", JOB).emit("step", 1)
        async with first.connect("bob", token=first.token("bob", permissions=READER)) as session:
            await session.connect_job(JOB)
            mine = session.events(job_id=JOB)
            await first.server.job("ada", JOB).emit("step", 2)
            assert (await anext(mine)).fields["value"] == 2
            positions = session.job_positions
        await first.server.job("ada", JOB).emit("step", 3)
    async with open_test_server({}, store=store) as second:
        for permissions, types in ((READER, ["agent_event", "agent_event"]), (("read",), ["job_disconnected"])):
            token = second.token("bob", permissions=permissions)
            async with second.connect("bob", token=token, job_positions=positions) as session:
                mine = session.events(job_id=JOB)
                await second.server.job("ada", JOB).emit("step", 4)
                assert [(await anext(mine)).type for _ in types] == types
        assert session.job_positions == {}
