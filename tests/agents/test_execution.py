"""Runs always end, in the grammar of the protocol, whatever the agent does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from netra_ws import AgentError, ClientError, Run, RunClosed, WrongThread
from netra_ws.agents.calling import MAX_OPEN_CALLS
from netra_ws.agents.speech import cut
from netra_ws.agents.states import CLOSED, SPEAKING, TRANSITIONS, RunState, RunStep
from netra_ws.errors import EventTooLarge
from netra_ws.protocol.events import AgentMessage, ToolCompleted, Usage
from netra_ws.testing import check_run, open_session, run_agent

SHORT = {"timing.finalise_s": 1.0}


async def busy(run: Run) -> str:
    """Does a bit of everything, with checkpoints everywhere."""
    await run.think("first", step=1)
    await run.think("sec", delta=True)
    await run.think("ond", delta=True)
    async with run.tool("outer", depth=1, timeout_s=60) as outer:
        await trio.sleep(0)
        async with run.tool("inner", {"depth": 2}) as inner:
            await inner.progress(0.5, "half")
            inner.results = [1, 2]
        outer.results = {"ok": True}

    async def side(name: str) -> None:
        async with run.tool(name) as call:
            await trio.lowlevel.checkpoint()
            call.results = name

    async with trio.open_nursery() as nursery:
        nursery.start_soon(side, "left")
        nursery.start_soon(side, "right")
    for word in ("Hello", " ", "world"):
        await run.say(word)
    await run.emit("mood", {"good": True})
    return run.said


def test_every_state_has_a_row() -> None:
    """A new state cannot be added without saying what may follow it."""
    assert TRANSITIONS.keys() == set(RunState)
    assert {step for row in TRANSITIONS.values() for step in row} == set(RunStep)
    assert not SPEAKING & CLOSED


def test_every_state_leads_to_done() -> None:
    """From every state a run can come to its end."""
    for state in RunState:
        reached = {state}
        while more := {after for one in reached for after in TRANSITIONS[one].values()} - reached:
            reached |= more
        assert RunState.DONE in reached


async def test_a_run_tells_everything_in_order(autojump_clock: trio.testing.MockClock) -> None:
    """A run that ends by itself says what it did, in order, and ends with success."""
    events = await run_agent(busy)
    last = check_run(events)
    assert (last.status, last.final_response) == ("success", "Hello world")
    assert last.events == len(events) - 1  # its user_message came before it began
    tools = [e.message for e in events if isinstance(e.message, ToolCompleted)]
    assert {t.tool_name: t.status for t in tools} == dict.fromkeys(("outer", "inner", "left", "right"), "ok")


class _CancelAtStep(trio.abc.Instrument):
    """Cancels the run before the n-th step of any task that the agent has started."""

    def __init__(self, step: int) -> None:
        self.left = step
        self.run: Run | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.run is None or not any(name in task.name for name in ("_Worker._call", "side")):
            return
        if self.left == 0:
            self.run.cancel("user")
        self.left -= 1


async def test_cancel_at_every_checkpoint(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever checkpoint a cancel hits, the grammar holds and the stop is a proof."""
    # Every event becomes a schedule point, so that a cancel can come at each of them.
    monkeypatch.setattr("netra_ws.agents.run.BURST_EVENTS", 1)
    step = cancelled = 0
    while True:
        instrument = _CancelAtStep(step)

        async def agent(run: Run, instrument: _CancelAtStep = instrument) -> str:
            instrument.run = run
            return await busy(run)

        trio.lowlevel.add_instrument(instrument)
        try:
            last = check_run(await run_agent(agent))
        finally:
            trio.lowlevel.remove_instrument(instrument)
        if instrument.left >= 0:
            break  # the run had fewer steps than that
        assert last.status in ("cancelled", "success")
        if last.status == "cancelled":
            cancelled += 1
            assert last.cancelled_by == "user"
        step += 1
    assert step > 15
    assert cancelled > 10


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("a secret detail"), "AGENT_FAILED"),
        (AgentError("no such city", code="NO_CITY", retryable=True), "NO_CITY"),
        (SystemExit(3), "AGENT_FAILED"),
        (asyncio.CancelledError(), "AGENT_FAILED"),
        (GeneratorExit(), "AGENT_FAILED"),
        (MemoryError(), "AGENT_FAILED"),
        (BaseExceptionGroup("many", [ValueError("a secret detail"), SystemExit(1)]), "AGENT_FAILED"),
        (ExceptionGroup("one", [AgentError("told", code="TOLD")]), "TOLD"),
    ],
)
async def test_any_exception_is_the_outcome(
    error: BaseException, code: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever an agent raises becomes its run's error; only AgentError is told, and the user goes on."""

    async def agent(run: Run) -> None:
        async with run.tool("risky"):
            await run.say("so far")
            raise error

    async with open_session({"bad": agent, "good": busy}) as (_, session):
        run = await session.start("x", agent="bad")
        events = [heard async for heard in run]
        last = check_run(events)
        assert last.status == "error"
        assert last.error is not None
        assert last.error.code == code
        assert "secret" not in str([heard.fields for heard in events])
        assert [e.message.status for e in events if isinstance(e.message, ToolCompleted)] == ["error"]
        again = await session.start("y", agent="good")
        assert (await again.result()).status == "success"


def _nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("cannot read caf\udce9.txt", "NO_FILE", "cannot read caf?.txt"),
        (ValueError("an exception instead of a text"), "AGENT_ERROR", "an exception instead of a text"),
        ("x" * 5_000_000, "AGENT_ERROR", "x" * 4096),
        ("a code that is no text", 404, "a code that is no text"),
    ],
)
@pytest.mark.parametrize("in_tool", [True, False])
async def test_an_error_that_json_cannot_say_is_told(
    text: Any, code: Any, told: str, *, in_tool: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever an agent puts into its error, its run and tool are completed; once it ended the whole server."""

    async def agent(run: Run) -> None:
        if in_tool:
            async with run.tool("read"):
                raise AgentError(text, code=code)
        raise AgentError(text, code=code)

    events = await run_agent(agent)
    last = check_run(events)
    assert last.status == "error"
    assert last.error is not None
    assert (last.error.code, last.error.message) == (str(code), told)
    tools = [e.message.error for e in events if isinstance(e.message, ToolCompleted)]
    assert [error and error.message for error in tools] == ([told] if in_tool else [])


@pytest.mark.parametrize("depth", [252, 253, 254, 255, 2000])
@pytest.mark.parametrize("place", ["response", "results", "value"])
async def test_a_value_at_the_edge_of_what_json_nests(
    depth: int, place: str, autojump_clock: trio.testing.MockClock
) -> None:
    """A value that can be encoded alone, but not inside its event, is refused where the agent hands it over."""

    async def agent(run: Run) -> object:
        value = _nested(depth)
        if place == "response":
            return value
        if place == "value":
            await run.emit("nest", value)
        async with run.tool("nest") as call:
            call.results = value
        return None

    last = check_run(await run_agent(agent))
    assert last.status == ("success" if depth <= 253 else "error")


async def test_usage_that_json_cannot_say_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    """``run.usage`` raises in the agent, and what was noted before is told; once it ended the whole server."""
    values: list[Any] = [2**70, object(), Decimal("0.1"), "caf\udce9"]

    async def agent(run: Run) -> str:
        run.usage("acme", "m1", input_tokens=1)
        for value in values:
            with pytest.raises(TypeError):
                run.usage("acme", "m1", cost_usd=value)
        with pytest.raises(EventTooLarge):
            for _ in range(100_000):
                run.usage("acme", "m2", input_tokens=1)
        return "fine"

    events = await run_agent(agent)
    last = check_run(events)
    assert last.status == "success"
    assert events[-1].fields["usage"][0] == {"provider": "acme", "model": "m1", "input_tokens": 1}
    assert {used["model"] for used in events[-1].fields["usage"][1:]} == {"m2"}


async def test_a_last_event_that_cannot_be_encoded(autojump_clock: trio.testing.MockClock) -> None:
    """What got past the checks fails its own run, and nobody else's."""

    async def agent(run: Run) -> str:
        run.usage("acme", "m1")
        run.used[0] = Usage(provider="acme", model="m1", input_tokens=2**70)
        return "fine"

    async with open_session({"bad": agent, "good": busy}) as (_, session):
        run = await session.start("x", agent="bad")
        last = check_run([heard async for heard in run])
        assert last.status == "error"
        assert last.error is not None
        assert last.error.code == "AGENT_FAILED"
        again = await session.start("y", agent="good")
        assert (await again.result()).status == "success"


async def test_a_group_with_a_cancel_in_it(autojump_clock: trio.testing.MockClock) -> None:
    """Code that raises while it is cancelled gives a group of both; the run is cancelled, not lost."""

    async def agent(run: Run) -> None:
        async def dies() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("while cleaning up")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dies)
            nursery.start_soon(trio.sleep_forever)
            await run.say("on")

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        await trio.sleep(0.1)
        assert await run.stop() == "cancelled"
        last = check_run([heard async for heard in run])
        assert (last.status, last.cancelled_by) == ("cancelled", "user")


async def test_timeouts_name_themselves(autojump_clock: trio.testing.MockClock) -> None:
    """A run that takes too long, or says nothing for too long, ends with status timeout and tells which."""

    async def silent(run: Run) -> None:
        await trio.sleep_forever()

    async def talks(run: Run) -> None:
        while True:
            await run.say(".")
            await trio.sleep(1)

    overrides = {"timing.run_timeout_s": 20.0, "timing.idle_timeout_s": 5.0}
    quiet = check_run(await run_agent(silent, overrides=overrides))
    assert (quiet.status, quiet.cancelled_by) == ("timeout", "idle_timeout")
    assert 5000 <= quiet.duration_ms < 6000
    long = check_run(await run_agent(talks, overrides=overrides))
    assert (long.status, long.cancelled_by) == ("timeout", "timeout")
    assert 20_000 <= long.duration_ms < 21_000


async def test_a_run_has_so_many_tool_calls_open_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """One more fails without an event; when others are done there is room again."""

    async def spreading(run: Run) -> str:
        failed: list[AgentError] = []

        async def call(seconds: float) -> None:
            try:
                async with run.tool("search"):
                    await trio.sleep(seconds)
            except AgentError as exc:
                failed.append(exc)

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for number in range(MAX_OPEN_CALLS + 1):
                    nursery.start_soon(call, 1 + number)
        return " ".join(error.code for error in failed)

    events = await run_agent(spreading, "go")
    assert check_run(events).final_response == "QUOTA_EXCEEDED QUOTA_EXCEEDED"
    assert sum(isinstance(event.message, ToolCompleted) for event in events) == 2 * MAX_OPEN_CALLS


@pytest.mark.parametrize("timeout_s", [2, 0])
async def test_a_tool_timeout_is_its_own(timeout_s: float, autojump_clock: trio.testing.MockClock) -> None:
    """A tool that is too slow ends with status timeout, and the agent may go on; zero is no time, not all of it."""

    async def agent(run: Run) -> str:
        try:
            async with run.tool("slow", timeout_s=timeout_s):
                await trio.sleep_forever()
        except trio.TooSlowError:
            return "went on"
        return "never"

    events = await run_agent(agent)
    assert check_run(events).final_response == "went on"
    assert [e.message.status for e in events if isinstance(e.message, ToolCompleted)] == ["timeout"]


async def test_swallowed_cancels_come_again(autojump_clock: trio.testing.MockClock) -> None:
    """An agent that swallows its cancellation is cancelled again at its next checkpoint."""

    async def stubborn(run: Run) -> str:
        for _ in range(5):
            with contextlib.suppress(trio.Cancelled):
                await trio.sleep_forever()
        return "gave in"

    async with open_session({"stubborn": stubborn}) as (_, session):
        run = await session.start("x", agent="stubborn")
        await trio.sleep(0.1)
        # It ended by itself in the end, and the answer says how.
        assert await run.stop() == "success"


async def test_code_that_cannot_be_stopped_is_sealed(autojump_clock: trio.testing.MockClock) -> None:
    """A run whose code stays is closed with CANCEL_TIMEOUT, says nothing more, and holds nobody up."""
    release = trio.Event()
    refused: list[str] = []

    async def shielded(run: Run) -> None:
        with trio.CancelScope(shield=True):
            async with run.tool("forever"):
                await release.wait()
                try:
                    await run.say("too late")
                except RunClosed:
                    refused.append("say")

    async with open_session({"shielded": shielded, "good": busy}, SHORT) as (server, session):
        try:
            run = await session.start("x", agent="shielded")
            await trio.sleep(0.1)
            with trio.fail_after(60), pytest.raises(ClientError, match="CANCEL_TIMEOUT"):
                await run.stop()
            last = check_run([heard async for heard in run])
            assert (last.status, last.cancelled_by) == ("cancelled", "user")
            assert last.error is not None
            assert last.error.code == "CANCEL_TIMEOUT"
            assert server.registry.statistics().stuck == 1
            other = await session.start("y", agent="good", thread_id="another")
            assert (await other.result()).status == "success"
        finally:
            release.set()
        await trio.sleep(0.1)
        assert refused == ["say"]
        assert server.registry.statistics().stuck == 0


async def test_a_blocked_thread_is_said_to_be_stuck() -> None:
    """A worker thread that does not end in time seals the run; when it ends, nothing is left."""
    gate = __import__("threading").Event()

    async def blocking(run: Run) -> str:
        return await run.thread(lambda: str(gate.wait(10)))

    async with open_session({"blocking": blocking}, {"timing.finalise_s": 0.1}) as (server, session):
        run = await session.start("x", agent="blocking")
        await trio.sleep(0.05)
        with trio.fail_after(5), pytest.raises(ClientError, match="CANCEL_TIMEOUT"):
            await run.stop()
        assert server.registry.statistics().stuck == 1
        gate.set()
        with trio.fail_after(5):
            while server.registry.statistics().stuck:
                await trio.sleep(0.01)


async def test_threads_speak_through_trio() -> None:
    """A worker thread says things through trio.from_thread; a direct call is refused with WrongThread."""

    async def agent(run: Run) -> str:
        def work() -> str:
            trio.from_thread.run(run.say, "from a thread")
            try:
                run.check_thread()
            except WrongThread:
                return "refused"
            return "allowed"

        return await run.thread(work)

    events = await run_agent(agent)
    last = check_run(events)
    assert last.final_response == "refused"
    said = [e.message.content for e in events if isinstance(e.message, AgentMessage) and e.message.phase == "full"]
    assert said == ["from a thread"]


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
async def test_processes_go_with_their_run(tmp_path: Path) -> None:
    """When a stop is acknowledged, no child and no grandchild of the run is alive."""
    pids = tmp_path / "pids"
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids)!r} + '.new', 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(pids)!r} + '.new', {str(pids)!r})\n"
        "time.sleep(600)\n"
    )

    async def spawns(run: Run) -> None:
        process = await run.process([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
        await process.wait()

    async with open_session({"spawns": spawns}) as (_, session):
        run = await session.start("x", agent="spawns")
        with trio.fail_after(20):
            while not pids.exists():
                await trio.sleep(0.01)
        alive = [int(pid) for pid in pids.read_text().split()]
        assert all(_is_running(pid) for pid in alive)
        with trio.fail_after(10):
            assert await run.stop() == "cancelled"
        assert not any(_is_running(pid) for pid in alive)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGCONT)
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


@pytest.mark.parametrize("response", [object(), {1: "x"}, float("nan"), {"deep": [2**70]}, b"bytes", "x" * 300_000])
async def test_a_bad_response_is_an_error(response: object, autojump_clock: trio.testing.MockClock) -> None:
    """A final response that no event can carry, or that is too large, ends the run with an error that says so."""

    async def agent(run: Run) -> object:
        return response

    last = check_run(await run_agent(agent))
    if response != response:  # JSON has no NaN; it is told as null
        assert last.final_response is None
        return
    assert last.status == "error"
    assert last.error is not None
    assert last.error.code in ("AGENT_ERROR", "EVENT_TOO_LARGE")


@pytest.mark.parametrize("response", ["text", None, 0, False, [], {"a": [1, None, "x"]}])
async def test_any_json_is_a_response(response: object, autojump_clock: trio.testing.MockClock) -> None:
    """Text and any JSON value come back as they were; text that was never said becomes a message."""

    async def agent(run: Run) -> object:
        return response

    events = await run_agent(agent)
    last = check_run(events)
    assert last.final_response == response
    messages = [e.message for e in events if isinstance(e.message, AgentMessage)]
    assert [m.content for m in messages] == (["text"] if response == "text" else [])


async def test_results_have_a_bound(autojump_clock: trio.testing.MockClock) -> None:
    """Results, values and parameters above limits.max_event_bytes raise inside the agent."""
    caught: list[str] = []

    async def agent(run: Run) -> str:
        big = "x" * 2000
        for attempt in (run.emit("big", big), _tool_with(run, big), _results(run, big), run.think(big)):
            try:
                await attempt
            except AgentError as exc:
                caught.append(exc.code)
        return "alive"

    async def _tool_with(run: Run, value: str) -> None:
        async with run.tool("t", value=value):
            pass

    async def _results(run: Run, value: str) -> None:
        async with run.tool("t") as call:
            call.results = value

    last = check_run(await run_agent(agent, overrides={"limits.max_event_bytes": 1000}))
    assert last.final_response == "alive"
    assert caught == ["EVENT_TOO_LARGE"] * 4


async def test_too_many_events_end_the_run(autojump_clock: trio.testing.MockClock) -> None:
    """A run that says more than its quota ends with cancelled_by quota, its closing events still in order."""

    async def agent(run: Run) -> None:
        async with run.tool("endless"):
            while True:
                await run.say("x")

    events = await run_agent(agent, overrides={"limits.max_events_per_run": 50})
    last = check_run(events)
    assert last.cancelled_by == "quota"
    assert last.error is not None
    assert last.error.code == "QUOTA_EXCEEDED"
    assert len(events) < 60


async def test_a_long_answer_goes_on_in_a_new_message(autojump_clock: trio.testing.MockClock) -> None:
    """Text above limits.max_response_bytes is split into messages whose texts add up."""

    async def agent(run: Run) -> None:
        for _ in range(50):
            await run.say("0123456789")

    events = await run_agent(agent, overrides={"limits.max_response_bytes": 100})
    check_run(events)
    fulls = [e.message.content for e in events if isinstance(e.message, AgentMessage) and e.message.phase == "full"]
    assert "".join(fulls) == "0123456789" * 50
    assert all(len(full) <= 100 for full in fulls)


@given(st.text(max_size=200), st.integers(4, 50))
def test_parts_add_up(text: str, limit: int) -> None:
    """A long piece is cut into parts that are small enough and add up to it."""
    parts = cut(text, limit)
    assert "".join(parts) == text
    assert all(len(part.encode()) <= limit for part in parts)


async def test_events_are_schedule_points() -> None:
    """A run that streams in a tight loop lets others run, and is cancelled within a few events."""
    told: list[int] = []

    async def chatter(run: Run) -> None:
        for number in range(1_000_000):
            await run.say("x")
            told.append(number)

    async with open_session({"chatter": chatter}, {"limits.max_events_per_run": 1_000_000}) as (_, session):
        run = await session.start("x", agent="chatter")
        with trio.fail_after(10):
            while len(told) < 100:
                await trio.lowlevel.checkpoint()
            began = len(told)
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            assert len(told) - began <= 16 * 12
            assert await run.stop() == "cancelled"


async def test_stop_after_step(autojump_clock: trio.testing.MockClock) -> None:
    """mode after_step lets the current tool call finish and ends the run before the next one."""
    steps: list[str] = []

    async def agent(run: Run) -> None:
        for name in ("one", "two", "three"):
            async with run.tool(name):
                await trio.sleep(1)
                steps.append(name)

    async with open_session({"agent": agent}) as (_, session):
        handle = await session.start("x", agent="agent")
        await trio.sleep(0.5)
        session.context.runs[handle.run_id].cancel_after_step()
        last = check_run([heard async for heard in handle])
        assert (last.status, last.cancelled_by) == ("cancelled", "user")
        assert steps == ["one"]


async def test_contextvars_stay_apart(autojump_clock: trio.testing.MockClock) -> None:
    """A variable that one run sets, or that whoever starts it has set, is not seen by another."""
    import contextvars

    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")
    seen: list[str] = []

    async def agent(run: Run) -> None:
        seen.append(variable.get())
        variable.set(run.text)

    variable.set("the program's own")
    async with open_session({"agent": agent}) as (_, session):
        for text in ("one", "two"):
            await (await session.start(text, agent="agent")).result()
    assert seen == ["nothing", "nothing"]


async def test_usage_is_told_also_when_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    """What a run used is told at its end, also after a cancel; a count that is not known is left out."""

    async def agent(run: Run) -> None:
        run.usage("acme", "m1", input_tokens=5)
        await trio.sleep_forever()

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        await trio.sleep(0.1)
        await run.stop()
        events = [heard async for heard in run]
        assert events[-1].fields["usage"] == [{"provider": "acme", "model": "m1", "input_tokens": 5}]


async def test_cancel_is_quick_in_real_time() -> None:
    """A stop in the middle of streaming is answered without waiting for anything but the run."""

    async def chatter(run: Run) -> None:
        while True:
            await run.say("x")

    async with open_session({"chatter": chatter}) as (_, session):
        run = await session.start("x", agent="chatter")
        await trio.sleep(0.02)
        began = time.perf_counter()
        with trio.fail_after(4.9):  # well below finalise_s: nothing timed out
            assert await run.stop() == "cancelled"
        print(f"stop to proof: {(time.perf_counter() - began) * 1000:.2f} ms")
