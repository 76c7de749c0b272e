"""Sub-runs: runs of their own that end before their parent, and with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from netra_ws import AgentError, ClientError, DelegateFailed, Position, Run
from netra_ws.agents.delegation import MAX_DEPTH, MAX_FAMILY, MAX_OPEN
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import AgentCompleted, AgentStarted, ToolExecuting
from netra_ws.testing import check_family, check_run, open_session, open_test_server

from ..conftest import StartServer
from ..kit import connect


async def works(run: Run) -> Any:
    """Thinks, uses a tool, says its text back, and returns its length."""
    await run.think("on it")
    async with run.tool("look") as call:
        await trio.sleep(1)
        call.results = run.text
    await run.say(f"said: {run.text}")
    return {"length": len(run.text), **run.context}


async def fails(run: Run) -> None:
    raise ValueError("secret words")


async def refuses(run: Run) -> None:
    raise AgentError("not on Sundays", code="SUNDAY", retryable=True)


async def waits(run: Run) -> None:
    await run.say("waiting")
    await trio.sleep_forever()


async def stubborn(run: Run) -> None:
    """Cannot be stopped for a minute."""
    with trio.CancelScope(shield=True):
        await trio.sleep(60)


AGENTS = {"works": works, "fails": fails, "refuses": refuses, "waits": waits, "stubborn": stubborn}


async def family(parent: Any, *, act: Any = None, **settings: Any) -> tuple[list[Heard], AgentCompleted]:
    """Run *parent* and return all events up to its end, and that; with *act*, do something meanwhile."""
    async with open_session({**AGENTS, "parent": parent}, settings) as (_, session):
        since = session.position
        run = await session.start("x", agent="parent")
        async with trio.open_nursery() as nursery:
            if act is not None:
                nursery.start_soon(act, session, run)
            last = await run.result()
        heard = []
        async for event in session.events(Position(epoch=since.epoch, seq=0)):
            heard.append(event)
            if event.message == last:
                break
        check_family(heard)
        await trio.testing.wait_all_tasks_blocked()
        return heard, last


def ends(heard: list[Heard]) -> dict[str, AgentCompleted]:
    """Return the end of each sub-run by the name of its agent."""
    return {e.message.agent_name: e.message for e in heard if isinstance(e.message, AgentCompleted)}


async def test_a_sub_run(autojump_clock: trio.testing.MockClock) -> None:
    """The parent gets what the sub-run returns; its events name the parent, and the call it was begun in."""

    async def parent(run: Run) -> Any:
        async with run.tool("research") as call:
            call.results = await run.delegate("works", "abc", context={"depth": 1})
        direct = await run.delegate(works, "defg")
        return [call.results, direct]

    heard, last = await family(parent)
    assert last.final_response == [{"length": 3, "depth": 1}, {"length": 4}]
    starts = [e.message for e in heard if isinstance(e.message, AgentStarted)]
    research = next(
        e.message for e in heard if isinstance(e.message, ToolExecuting) and e.message.tool_name == "research"
    )
    assert [(s.agent_name, s.trigger, s.parent_run_id == last.run_id) for s in starts[1:]] == [
        ("works", "delegate", True),
        ("works", "delegate", True),
    ]
    assert [s.parent_tool_call_id for s in starts] == [None, research.tool_call_id, None]
    assert {s.message_id for s in starts} == {starts[0].message_id}
    assert {s.thread_id for s in starts} == {last.thread_id}


async def test_several_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """Sub-runs in tasks of their own go on at the same time, each with a grammar of its own."""

    async def parent(run: Run) -> Any:
        got = []

        async def one(text: str) -> None:
            got.append((await run.delegate("works", text))["length"])

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for count in range(MAX_OPEN):
                nursery.start_soon(one, "x" * count)
        assert trio.current_time() - began < 2
        return sorted(got)

    heard, last = await family(parent)
    assert last.final_response == list(range(MAX_OPEN))
    assert len(check_family(heard)) == 1 + MAX_OPEN


async def test_what_a_sub_run_says_is_no_message(autojump_clock: trio.testing.MockClock) -> None:
    """The conversation has what its user and the parent say; sub-runs are heard as events, and not searched."""

    async def parent(run: Run) -> str:
        await run.delegate("works", "unheard-of")
        await run.delegate(returns, "x")
        return "the answer"

    async def returns(run: Run) -> str:
        rows = await run.thread.history()
        return f"I see {len(rows)} messages"

    async with open_session({**AGENTS, "parent": parent}) as (_, session):
        context = session.context
        run = await session.start("question", agent="parent")
        opened = []
        async for event in run:
            if event.type == "agent_message" and event.fields["phase"] == "delta":
                opened.append(context.stream.partial(run.thread_id))
        assert (await run.result()).final_response == "the answer"
        history = await context.ledger.thread_history(context.stream, run.thread_id, 100, None)
        assert opened == [[]]  # also while it was being said
        assert [(m.role, m.content) for m in history.messages] == [("user", "question"), ("assistant", "the answer")]
        assert history.partial == []
        assert await context.ledger.search("tester", "unheard-of", 10) == []


@pytest.mark.parametrize(
    ("agent", "status", "code", "retryable"),
    [("fails", "error", "AGENT_FAILED", False), ("refuses", "error", "SUNDAY", True)],
)
async def test_a_sub_run_that_fails(agent: str, status: str, code: str, retryable: bool) -> None:
    """A sub-run's failure is the parent's to handle: an error with its code, and nothing not meant for users."""

    async def parent(run: Run) -> Any:
        with pytest.raises(DelegateFailed) as error:
            await run.delegate(agent, "x")
        failed = error.value
        assert "secret" not in failed.text
        return [failed.status, failed.code, failed.retryable, failed.run_id]

    heard, last = await family(parent)
    assert last.final_response == [status, code, retryable, ends(heard)[agent].run_id]


async def test_a_failure_that_nobody_handles() -> None:
    """Unhandled, a sub-run's failure is its parent's, under the same code."""

    async def parent(run: Run) -> None:
        await run.delegate("refuses", "x")

    _, last = await family(parent)
    assert (last.status, last.error and last.error.code) == ("error", "SUNDAY")


async def test_an_agent_that_there_is_not() -> None:
    """An unknown agent, or what is none, is an error in the parent; no sub-run begins."""

    async def parent(run: Run) -> list[str]:
        with pytest.raises(AgentError) as error:
            await run.delegate("nope", "x")
        with pytest.raises(Exception, match="expected an async function"):
            await run.delegate(len, "x")  # type: ignore[arg-type]
        return [error.value.code]

    heard, last = await family(parent)
    assert last.final_response == ["UNKNOWN_AGENT"]
    assert len(check_family(heard)) == 1


async def test_a_handle_gives_the_family_s_events(autojump_clock: trio.testing.MockClock) -> None:
    """Who iterates over a run hears its sub-runs, too, at any depth, and nothing of other runs, up to its own end."""

    async def middle(run: Run) -> Any:
        return await run.delegate("works", "deep")

    async def parent(run: Run) -> None:
        await run.delegate(middle, "x")

    async with open_session({**AGENTS, "parent": parent}) as (_, session):
        run, other = await session.start("x", agent="parent"), await session.start("y", agent="parent")
        heard, others = [event async for event in run], [event async for event in other]
        begun = [e.message.agent_name for e in heard if isinstance(e.message, AgentStarted)]
        assert begun == ["parent", "middle", "works"]
        assert check_family(heard).keys().isdisjoint(check_family(others).keys())
        assert (await run.result()).run_id == run.run_id == check_run(heard).run_id


# Ends.


async def _stop_parent(session: Any, run: Any) -> None:
    await trio.sleep(1)
    assert await session.stop(run.run_id) == "cancelled"


async def _stop_child(session: Any, run: Any) -> None:
    await trio.sleep(1)
    (child,) = session.context.runs[run.run_id].children.values()
    assert await session.stop(child.run_id) == "cancelled"
    assert await session.stop(child.run_id) == "cancelled"  # known also when it has ended


async def test_cancelled_with_its_parent(autojump_clock: trio.testing.MockClock) -> None:
    """A stop of the parent ends the sub-run first, by its parent, and is answered when both have ended."""

    async def parent(run: Run) -> None:
        await run.delegate("waits", "x")

    heard, last = await family(parent, act=_stop_parent)
    child = ends(heard)["waits"]
    assert (child.status, child.cancelled_by) == ("cancelled", "parent")
    assert (last.status, last.cancelled_by) == ("cancelled", "user")


async def test_stopped_alone(autojump_clock: trio.testing.MockClock) -> None:
    """A sub-run may be stopped by its own id; its parent hears of it and goes on."""

    async def parent(run: Run) -> Any:
        try:
            await run.delegate("waits", "x")
        except DelegateFailed as failed:
            return [failed.status, failed.code]

    heard, last = await family(parent, act=_stop_child)
    child = ends(heard)["waits"]
    assert (child.status, child.cancelled_by) == ("cancelled", "user")
    assert (last.status, last.final_response) == ("success", ["cancelled", "CANCELLED"])


async def test_given_up_by_its_parent(autojump_clock: trio.testing.MockClock) -> None:
    """Leaving the scope in which a parent waits ends the sub-run, before the parent goes on."""

    async def parent(run: Run) -> str:
        with trio.move_on_after(3):
            await run.delegate("waits", "x")
        await run.emit("went on", True)
        return "done"

    heard, last = await family(parent)
    assert (last.final_response, ends(heard)["waits"].cancelled_by) == ("done", "parent")
    order = [e.type for e in heard]
    assert order.index("agent_completed") < order.index("agent_event")


async def test_its_own_timeout(autojump_clock: trio.testing.MockClock) -> None:
    """A sub-run may have less time than its parent; it ends by its own clock then."""

    async def parent(run: Run) -> Any:
        with pytest.raises(DelegateFailed) as error:
            await run.delegate("waits", "x", timeout_s=2)
        return [error.value.status, error.value.code]

    heard, last = await family(parent)
    assert last.final_response == ["timeout", "TIMEOUT"]
    assert ends(heard)["waits"].cancelled_by == "timeout"


async def test_a_parent_s_timeout(autojump_clock: trio.testing.MockClock) -> None:
    """The parent's time ends its sub-runs, too, however much they asked for."""

    async def parent(run: Run) -> None:
        await run.delegate("waits", "x", timeout_s=10_000)

    heard, last = await family(parent, **{"timing.run_timeout_s": 3.0})
    child = ends(heard)["waits"]
    assert (child.status, child.cancelled_by, last.status) == ("cancelled", "parent", "timeout")


async def test_a_parent_is_not_idle(autojump_clock: trio.testing.MockClock) -> None:
    """While its sub-run speaks, a run that waits for it is not idle; when that falls silent, both end."""

    async def talks(run: Run) -> None:
        for _ in range(10):
            await run.emit("x", 1)
            await trio.sleep(2)
        await trio.sleep_forever()

    async def parent(run: Run) -> float:
        began = trio.current_time()
        with pytest.raises(DelegateFailed):
            await run.delegate(talks, "x")
        return round(trio.current_time() - began)

    _, last = await family(parent, **{"timing.idle_timeout_s": 3.0})
    assert last.final_response == 21


async def test_one_that_cannot_be_stopped(autojump_clock: trio.testing.MockClock) -> None:
    """A sub-run that does not stop is sealed before its parent is; nothing of either is said behind that."""

    async def parent(run: Run) -> None:
        await run.delegate("stubborn", "x")

    async def stop(session: Any, run: Any) -> None:
        await trio.sleep(1)
        with pytest.raises(Exception, match="CANCEL_TIMEOUT"):
            await session.stop(run.run_id)

    heard, last = await family(parent, act=stop, **{"timing.finalise_s": 1.0})
    child = ends(heard)["stubborn"]
    assert [each.error and each.error.code for each in (child, last)] == ["CANCEL_TIMEOUT"] * 2


async def test_one_that_cannot_be_stopped_alone(autojump_clock: trio.testing.MockClock) -> None:
    """A sub-run that was sealed holds its parent's work up no longer; only the parent's end waits for its code."""

    async def parent(run: Run) -> Any:
        began = trio.current_time()
        with pytest.raises(DelegateFailed) as error:
            await run.delegate("stubborn", "x")
        await run.emit("went on", True)
        return [error.value.status, error.value.code, round(trio.current_time() - began)]

    async def stop(session: Any, run: Any) -> None:
        await trio.sleep(1)
        (child,) = session.context.runs[run.run_id].children.values()
        with pytest.raises(ClientError, match="CANCEL_TIMEOUT"):
            await session.stop(child.run_id)

    heard, last = await family(parent, act=stop, **{"timing.finalise_s": 1.0})
    assert (last.status, last.final_response) == ("success", ["cancelled", "CANCEL_TIMEOUT", 2])
    assert ends(heard)["stubborn"].duration_ms == 2000
    assert last.duration_ms == 60_000


async def test_code_that_stays_ends_its_parent_in_the_end(autojump_clock: trio.testing.MockClock) -> None:
    """A parent whose sub-run's code never goes is not kept by it for ever: its own idle clock is on."""

    async def stays(run: Run) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(3600)

    async def parent(run: Run) -> None:
        with pytest.raises(DelegateFailed):
            await run.delegate(stays, "x", timeout_s=1)

    heard, last = await family(parent, **{"timing.finalise_s": 1.0, "timing.idle_timeout_s": 20.0})
    assert (last.status, last.cancelled_by, last.error and last.error.code) == (
        "timeout",
        "idle_timeout",
        "CANCEL_TIMEOUT",
    )
    assert ends(heard)["stays"].error == last.error


async def test_called_from_elsewhere(autojump_clock: trio.testing.MockClock) -> None:
    """A sub-run that a task outside of the run has begun lives in its parent all the same, and ends before it."""

    async def parent(run: Run) -> str:
        trio.lowlevel.spawn_system_task(run.delegate, "works", "x")
        await trio.sleep(0.1)
        return "done"

    heard, last = await family(parent)
    assert (last.final_response, ends(heard)["works"].status, last.duration_ms) == ("done", "success", 1000)


async def test_born_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    """A sub-run that is begun while its parent is being cancelled does nothing any more."""
    did: list[str] = []

    async def late(run: Run) -> None:
        did.append("something")

    async def parent(run: Run) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await run.delegate(late, "x")

    heard, last = await family(parent, act=_stop_parent)
    assert (ends(heard)["late"].status, ends(heard)["late"].cancelled_by) == ("cancelled", "parent")
    assert (last.cancelled_by, did) == ("user", [])


async def test_clocks_of_a_family_that_asks(autojump_clock: trio.testing.MockClock) -> None:
    """While one sub-run asks, the others keep clocks of their own, whenever they were begun."""

    async def asks(run: Run) -> Any:
        return await run.ask("Sure?", expires_in=5000)

    async def works_long(run: Run) -> float:
        for _ in range(90):
            await run.emit("x", 1)
            await trio.sleep(1)
        return round(run.deadline - trio.current_time())

    async def endless(run: Run) -> None:
        while True:
            await run.emit("x", 1)
            await trio.sleep(1)

    async def parent(run: Run) -> list[Any]:
        got: list[Any] = []

        async def late() -> None:
            await trio.sleep(200)  # long behind the parent's own time, had it not stood still
            got.append(await run.delegate(works_long, "x"))
            with pytest.raises(DelegateFailed) as error:
                await run.delegate(endless, "x")
            got.append(error.value.status)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.delegate, asks, "x")
            nursery.start_soon(late)
        return got

    async def answer(session: Any, run: Any) -> None:
        await trio.sleep(1000)
        (question,) = session.pending_inputs
        await session.answer(question["input_id"], "yes")

    heard, last = await family(parent, act=answer, **{"timing.run_timeout_s": 100.0})
    assert (last.status, last.final_response) == ("success", [10, "timeout"])
    assert round(ends(heard)["endless"].duration_ms / 1000) == 100


@pytest.mark.parametrize("wrong", ["", None, 5])
async def test_what_is_no_delegation(wrong: Any) -> None:
    """An agent without a name, or a text that is none, is the agent's mistake; no sub-run begins."""

    async def parent(run: Run) -> str:
        with pytest.raises((ValueError, TypeError), match="expected"):
            await (run.delegate("", "x") if wrong == "" else run.delegate("works", wrong))
        return "told"

    heard, last = await family(parent)
    assert (last.final_response, len(check_family(heard))) == ("told", 1)


# Bounds.


async def _bounded(run: Run, tries: Callable[[], Any]) -> str:
    with pytest.raises(AgentError) as error:
        await tries()
    return error.value.code


async def test_depth() -> None:
    """Sub-runs of sub-runs end at a level."""

    async def deeper(run: Run) -> int:
        try:
            return 1 + int(await run.delegate(deeper, "x"))
        except AgentError as exc:
            return 0 if exc.code == "QUOTA_EXCEEDED" else -1000

    _, last = await family(deeper)
    assert last.final_response == MAX_DEPTH


async def test_number_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """A family has at most so many sub-runs at once, wherever in it they are."""

    async def parent(run: Run) -> str:
        async with trio.open_nursery() as nursery:
            for _ in range(MAX_OPEN):
                nursery.start_soon(run.delegate, "waits", "x")
            await trio.sleep(0.1)
            code = await _bounded(run, lambda: run.delegate("works", "x"))
            nursery.cancel_scope.cancel()
        return code

    _, last = await family(parent)
    assert last.final_response == "QUOTA_EXCEEDED"


async def test_number_in_all() -> None:
    """A family has at most so many sub-runs in its life."""

    async def nothing(run: Run) -> None: ...

    async def parent(run: Run) -> str:
        for _ in range(MAX_FAMILY):
            await run.delegate(nothing, "x")
        return await _bounded(run, lambda: run.delegate(nothing, "x"))

    _, last = await family(parent)
    assert last.final_response == "QUOTA_EXCEEDED"


async def test_events_of_a_family() -> None:
    """A family may say as much as one run: work that is handed on does not get around the bound."""

    async def talks(run: Run) -> None:
        for _ in range(30):
            await run.emit("x", 1)

    async def parent(run: Run) -> None:
        for _ in range(10):
            await run.delegate(talks, "x")

    _, last = await family(parent, **{"limits.max_events_per_run": 100})
    assert (last.status, last.error and last.error.code) in [
        ("error", "QUOTA_EXCEEDED"),
        ("cancelled", "QUOTA_EXCEEDED"),
    ]
    assert last.events < 100


async def test_a_quota_that_is_used_up_begins_no_sub_run() -> None:
    """A family that has said all that it may begins nothing more, and nothing is left half begun."""

    async def nothing(run: Run) -> None: ...

    async def parent(run: Run) -> None:
        while True:
            await run.delegate(nothing, "x")

    heard, last = await family(parent, **{"limits.max_events_per_run": 10})
    assert last.cancelled_by == "quota"
    assert len(check_family(heard)) == 6


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), "1"])
async def test_a_timeout_that_is_none(timeout_s: Any) -> None:
    """A timeout that is no time is the agent's mistake; no sub-run begins."""

    async def parent(run: Run) -> str:
        with pytest.raises(ValueError, match="timeout_s"):
            await run.delegate("works", "x", timeout_s=timeout_s)
        return "told"

    heard, last = await family(parent)
    assert (last.final_response, len(check_family(heard))) == ("told", 1)


async def test_names_of_functions_are_no_labels() -> None:
    """Sub-runs of functions that nobody has registered are counted together, whatever they are called."""

    async def parent(run: Run) -> None:
        for number in range(5):

            async def work(run: Run) -> None: ...

            work.__name__ = f"work \ud800 {number}" + "x" * 300
            await run.delegate(work, "x")

    async with open_session({"parent": parent}) as (server, session):
        assert (await (await session.start("x", agent="parent")).result()).status == "success"
        counted = server.registry.runs.ended
        assert counted == {("parent", "success", ""): 1, ("(other)", "success", ""): 5}


# Together with the rest.


async def test_a_sub_run_that_asks(autojump_clock: trio.testing.MockClock) -> None:
    """While a sub-run waits for a person, the clocks of its parents, and of their tools, stand still, too."""

    async def asks(run: Run) -> Any:
        return await run.ask("Sure?")

    async def middle(run: Run) -> Any:
        return await run.delegate(asks, "x")

    async def parent(run: Run) -> Any:
        async with run.tool("careful", timeout_s=10):
            return await run.delegate(middle, "x")

    async def answer(session: Any, run: Any) -> None:
        await trio.sleep(300)
        (question,) = session.pending_inputs
        assert session.context.active[0].state == "asking"
        await session.answer(question["input_id"], "yes")

    clocks = {"timing.run_timeout_s": 30.0, "timing.idle_timeout_s": 20.0}
    _, last = await family(parent, act=answer, **clocks)
    assert (last.status, last.final_response) == ("success", "yes")


async def test_over_sockets(server: StartServer) -> None:
    """A client stops a sub-run by its id and is answered when it has ended; its parent goes on."""

    async def parent(run: Run) -> str:
        with pytest.raises(DelegateFailed):
            await run.delegate("waits", "x")
        return "went on"

    running = await server(agents={**AGENTS, "parent": parent})
    async with connect(running) as client:
        ack = await client.ask("chat", content="x", agent="parent")
        started = (await client.until("agent_started", parent_run_id=ack["run_id"]))[-1]
        assert [run["run_id"] for run in client.welcome["active_runs"]] == []
        stopped = await client.ask("stop_agent", run_id=started["run_id"])
        assert (stopped["type"], stopped["status"]) == ("ack", "cancelled")
        ended = (await client.until("agent_completed", run_id=ack["run_id"]))[-1]
        assert ended["final_response"] == "went on"


async def test_nothing_is_left(autojump_clock: trio.testing.MockClock) -> None:
    """Families that are cancelled at any moment leave nothing behind, and their log is whole."""

    async def parent(run: Run) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(run.delegate, middle, "x")

    async def middle(run: Run) -> Any:
        return await run.delegate("works", "abc")

    async with open_test_server({**AGENTS, "parent": parent}) as server:
        async with server.connect("alice") as alice:
            for moment in range(25):
                run = await alice.start("x", agent="parent")
                await trio.sleep(moment * 0.05)
                assert await run.stop() in ("cancelled", "success")
            await server.caught_up(alice)
        recorded = await server.recorded("alice")
        check_family(recorded)
        assert sum(e.type == "agent_started" for e in recorded) == sum(e.type == "agent_completed" for e in recorded)
        await server.settled()
