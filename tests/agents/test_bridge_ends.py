"""How bridged runs end: by themselves, by errors, by cancels, and with code that does not want to."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import random
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

import netra_ws
from netra_ws import AgentError, AsyncioRun, ClientError, Run, RunClosed, WrongThread
from netra_ws.errors import EventTooLarge, QuotaExceeded
from netra_ws.protocol.events import ToolCompleted
from netra_ws.server import Server
from netra_ws.testing import check_run, open_session, run_agent, texts

PATIENCE_S = 20.0
MANY = {"limits.max_runs_per_user": 200, "limits.max_threads_per_user": 200}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """When a server has ended, so have the threads that it started; Trio's own pool aside."""
    before = set(threading.enumerate())
    yield
    names = [thread.name for thread in set(threading.enumerate()) - before]
    assert [name for name in names if "netra-ws" in name or "asyncio" in name] == []


async def until(condition: Any) -> None:
    """Wait for something that no event tells."""
    with trio.fail_after(PATIENCE_S):
        while not condition():
            await trio.sleep(0.005)


def tasks_of(server: Server) -> int:
    """Return how many asyncio tasks there are in the server's loop besides the loop's own."""
    return len(asyncio.all_tasks(server.registry.policy.run.asyncio.open().events)) - 1


# By errors.


class Odd(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("a secret detail"), "AGENT_FAILED"),
        (AgentError("no such city", code="NO_CITY"), "NO_CITY"),
        (ExceptionGroup("g", [AgentError("no such city", code="NO_CITY"), ValueError()]), "NO_CITY"),
        (SystemExit(3), "AGENT_FAILED"),
        (KeyboardInterrupt(), "AGENT_FAILED"),
        (GeneratorExit(), "AGENT_FAILED"),
        (asyncio.CancelledError(), "AGENT_FAILED"),
        (StopIteration(), "AGENT_FAILED"),
        (Odd(), "AGENT_FAILED"),
        (BaseExceptionGroup("g", [KeyboardInterrupt(), Odd()]), "AGENT_FAILED"),
        (trio.RunFinishedError(), "AGENT_FAILED"),
    ],
)
async def test_whatever_it_raises_is_its_own_end(error: BaseException, code: str) -> None:
    """Any exception of a bridged agent ends its run as it does for others, and the loop goes on for the next."""

    @netra_ws.bridge
    async def bad(run: AsyncioRun) -> None:
        await run.say("so far")
        raise error

    @netra_ws.bridge
    async def good(run: AsyncioRun) -> str:
        return "fine"

    async with open_session({"bad": bad, "good": good}) as (server, session):
        events = [heard async for heard in await session.start("x", agent="bad")]
        last = check_run(events)
        assert (last.status, last.error and last.error.code) == ("error", code)
        assert list(texts(events).values()) == ["so far"]
        assert "secret" not in str(last)
        assert (await (await session.start("y", agent="good")).result()).final_response == "fine"
        assert tasks_of(server) == 0


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
async def test_a_task_that_wants_the_process_to_exit(error: BaseException) -> None:
    """SystemExit and KeyboardInterrupt of a task stop the loop of asyncio, but nobody else's work in it."""
    running = threading.Event()

    @netra_ws.bridge
    async def bystander(run: AsyncioRun) -> str:
        running.set()
        for _ in range(20):
            await asyncio.sleep(0.01)
        return "not held up"

    @netra_ws.bridge
    async def bad(run: AsyncioRun) -> str:
        async def leave() -> None:
            raise error

        with pytest.raises(type(error)):
            await asyncio.create_task(leave())
        return "told"

    async with open_session({"bad": bad, "bystander": bystander}, MANY) as (server, session):
        other = await session.start("x", agent="bystander", thread_id="other")
        await until(running.is_set)
        assert (await (await session.start("x", agent="bad")).result()).final_response == "told"
        assert (await other.result()).final_response == "not held up"
        assert tasks_of(server) == 0


async def test_what_cannot_be_said_is_told_at_the_next_call() -> None:
    """An error of what was handed over comes from the next call; what was said behind it is not told."""
    seen: list[str] = []

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> str:
        with pytest.raises(EventTooLarge):
            await run.emit("large", "x" * 5000)
        with pytest.raises(TypeError):
            await run.emit("odd", object())
        with pytest.raises((TypeError, AttributeError)):
            await run.say(5)  # type: ignore[arg-type]
        with pytest.raises(UnicodeEncodeError):
            await run.say("\ud800")
        await run.say("one ")
        try:
            for number in range(10_000):
                await run.say(f"{number} ")
        except QuotaExceeded:
            seen.append("quota")
            raise
        return "never"

    events = await run_agent(agent, overrides={"limits.max_event_bytes": 4096, "limits.max_events_per_run": 100})
    last = check_run(events)
    assert (last.status, last.cancelled_by) == ("cancelled", "quota")
    assert seen in (["quota"], [])  # the cancel may have come first
    said = next(iter(texts(events).values()))
    assert said.startswith("one 0 1 2 ")
    assert said.split()[1:] == [str(number) for number in range(len(said.split()) - 1)]


async def test_an_error_of_the_last_piece_is_the_runs() -> None:
    """What goes wrong with the last words, behind which no call comes, is not lost."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> str:
        for _ in range(12):
            await run.say("x")
        return "all well"

    last = check_run(await run_agent(agent, overrides={"limits.max_events_per_run": 10}))
    assert (last.status, last.cancelled_by) == ("cancelled", "quota")


@pytest.mark.parametrize("response", [object(), {1, 2}, float("nan"), "x" * 70_000])
async def test_odd_responses(response: Any) -> None:
    """What is no JSON value, or too large, is this run's error."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> Any:
        return response

    last = check_run(await run_agent(agent, overrides={"limits.max_event_bytes": 65_536}))
    assert last.status == ("success" if isinstance(response, float) else "error")


async def test_a_run_is_used_in_its_own_loop_only() -> None:
    """From a thread, from Trio or after its end a bridged run refuses, with a text that says what to do."""
    kept: list[AsyncioRun] = []
    refused: list[str] = []

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> str:
        kept.append(run)

        def from_thread() -> None:
            coroutine = run.say("x")
            try:
                coroutine.send(None)
            except WrongThread as exc:
                refused.append(str(exc))

        await asyncio.to_thread(from_thread)
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(run.say("allowed"), loop).result())
        with pytest.raises(WrongThread):
            await run._run.say("x")
        return run.said

    @netra_ws.bridge
    async def borrower(run: AsyncioRun) -> str:
        with pytest.raises(RunClosed):
            await kept[0].say("late")
        with pytest.raises(RunClosed):
            async with kept[0].tool("late"):
                pass
        return "refused"

    async with open_session({"agent": agent, "borrower": borrower}) as (_, session):
        assert (await (await session.start("x", agent="agent")).result()).final_response == "allowed"
        assert "run_coroutine_threadsafe" in refused[0]
        with pytest.raises(WrongThread):
            await kept[0].say("from trio")
        assert (await (await session.start("x", agent="borrower")).result()).final_response == "refused"


# By cancels.


@asynccontextmanager
async def running(function: Any, **overrides: Any) -> AsyncIterator[tuple[Server, Any, Any]]:
    """Start a run of a bridged function and wait until it has set the event that it is called with."""
    started = threading.Event()

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> Any:
        return await function(run, started)

    @netra_ws.bridge
    async def good(run: AsyncioRun) -> str:
        await run.say("fine")
        return run.said

    dotted = {name.replace("__", "."): value for name, value in overrides.items()}
    async with open_session({"agent": agent, "good": good}, {**MANY, **dotted}) as (server, session):
        run = await session.start("x", agent="agent")
        await until(started.is_set)
        yield server, session, run


async def test_a_stop_is_answered_when_the_task_has_ended() -> None:
    """The asyncio task is cancelled, its orderly end is waited for, and open tools are told as cancelled."""
    log: list[str] = []

    async def work(run: AsyncioRun, started: threading.Event) -> None:
        try:
            async with run.tool("sleep"):
                await run.say("before")
                started.set()
                await asyncio.sleep(60)
        finally:
            log.append("begins to end")
            await asyncio.wait_for(asyncio.sleep(0.05), 5)  # an orderly end may use tasks
            for _ in range(2):
                with pytest.raises(asyncio.CancelledError):
                    await run.say("after")
            log.append("has ended")

    async with running(work) as (server, _, run):
        assert await run.stop() == "cancelled"
        assert log == ["begins to end", "has ended"]
        assert tasks_of(server) == 0
        events = [heard async for heard in run]
        last = check_run(events)
        assert (last.status, last.cancelled_by) == ("cancelled", "user")
        assert [e.message.status for e in events if isinstance(e.message, ToolCompleted)] == ["cancelled"]
        assert list(texts(events).values()) == ["before"]


async def test_what_was_said_before_a_cancel_is_told() -> None:
    """Text that was handed over is not lost when the cancel comes before Trio's side has taken it."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> None:
        for number in range(40):
            await run.say(f"{number} ")
        run._run.policy.asyncio.open().to_trio.send(lambda: run._run.cancel("user"))
        await asyncio.sleep(60)

    events = await run_agent(agent)
    assert check_run(events).cancelled_by == "user"
    assert "".join(texts(events).values()) == "".join(f"{number} " for number in range(40))


async def swallows_once(run: AsyncioRun, started: threading.Event) -> str:
    with contextlib.suppress(asyncio.CancelledError):
        started.set()
        await asyncio.sleep(60)
    return "went on"


async def shields(run: AsyncioRun, started: threading.Event) -> None:
    started.set()
    await asyncio.shield(asyncio.sleep(60))


async def groups(run: AsyncioRun, started: threading.Event) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(asyncio.sleep(60))
        started.set()


async def leaves_tasks(run: AsyncioRun, started: threading.Event) -> None:
    async def one() -> None:
        asyncio.create_task(asyncio.sleep(60))  # noqa: RUF006
        await asyncio.sleep(60)

    for _ in range(5):
        asyncio.create_task(one())  # noqa: RUF006
    await asyncio.sleep(0)
    started.set()
    await asyncio.sleep(60)


async def speaks_in_an_endless_loop(run: AsyncioRun, started: threading.Event) -> None:
    while True:
        try:
            await run.think("again")
        except asyncio.CancelledError:
            return
        started.set()


async def calls_and_catches_all(run: AsyncioRun, started: threading.Event) -> None:
    started.set()
    for _ in range(1000):
        with contextlib.suppress(BaseException):
            await run.think("again")


async def fails_at_its_end(run: AsyncioRun, started: threading.Event) -> None:
    try:
        started.set()
        await asyncio.sleep(60)
    finally:
        raise ValueError("in its orderly end")


async def waits_in_a_thread(run: AsyncioRun, started: threading.Event) -> None:
    def work() -> None:
        started.set()
        time.sleep(0.1)

    await asyncio.to_thread(work)


async def cancels_everything(run: AsyncioRun, started: threading.Event) -> None:
    asyncio.create_task(asyncio.sleep(60))  # noqa: RUF006
    started.set()
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    "work",
    [
        swallows_once,
        shields,
        groups,
        leaves_tasks,
        speaks_in_an_endless_loop,
        calls_and_catches_all,
        fails_at_its_end,
        waits_in_a_thread,
        cancels_everything,
    ],
)
async def test_whatever_it_does_a_stop_leaves_nothing(work: Any) -> None:
    """When a stop is answered, no task of the run is left, and others can work."""
    async with running(work) as (server, session, run):
        with contextlib.suppress(ClientError):  # it may have ended by itself
            await run.stop()
        last = check_run([heard async for heard in run])
        assert last.status in ("cancelled", "error")
        assert last.error is None or last.error.code == "AGENT_FAILED"
        assert tasks_of(server) == 0
        assert (await (await session.start("x", agent="good", thread_id="b")).result()).final_response == "fine"


@pytest.mark.parametrize("how", ["timeout", "idle_timeout", "shutdown", "parent"])
async def test_every_reason_reaches_it(how: str) -> None:
    """A timeout, a silence, the server's end and the user's leaving cancel the asyncio task as a stop does."""
    log: list[str] = []

    async def work(run: AsyncioRun, started: threading.Event) -> None:
        try:
            started.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.02)
            log.append("ended")
            raise

    limits = {"timeout": {"timing__run_timeout_s": 0.2}, "idle_timeout": {"timing__idle_timeout_s": 0.2}}
    with trio.fail_after(PATIENCE_S):
        async with running(work, **limits.get(how, {})) as (server, _, run):
            if how == "shutdown":
                await server.drain(0.0)
            elif how == "parent":
                for context in server.registry:
                    context.close("disconnect")
            await until(lambda: log)
            if how in limits:
                assert check_run([heard async for heard in run]).cancelled_by == how
    assert log == ["ended"]


async def test_code_that_ignores_its_cancel_is_stuck_and_holds_up_nobody() -> None:
    """A task that swallows every cancel gets its run sealed; its later calls raise RunClosed; others go on."""
    release, refused = threading.Event(), list[str]()

    async def work(run: AsyncioRun, started: threading.Event) -> None:
        async with run.tool("stubborn"):
            started.set()
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.01)
        for attempt in (run.say("x"), run.think("x"), run.emit("x", 1), run.thread.history()):
            try:
                await attempt
            except RunClosed:
                refused.append("closed")

    async with running(work, timing__finalise_s=0.2) as (server, session, run):
        try:
            with trio.fail_after(PATIENCE_S), pytest.raises(ClientError, match="CANCEL_TIMEOUT"):
                await run.stop()
            assert server.registry.statistics().stuck == 1
            other = await session.start("y", agent="good", thread_id="another")
            assert (await other.result()).status == "success"
            last = check_run([heard async for heard in run])
            assert last.error is not None
            assert last.error.code == "CANCEL_TIMEOUT"
        finally:
            release.set()
        await until(lambda: server.registry.statistics().stuck == 0)
        assert refused == ["closed"] * 4
        assert tasks_of(server) == 0


async def test_a_server_ends_while_runs_of_it_are_bridged() -> None:
    """Leaving the server ends bridged runs, their tasks, the loop and its thread, in bounded time."""
    ended: list[str] = []

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(run.run_id)

    with trio.fail_after(PATIENCE_S):
        for _ in range(3):
            async with open_session({"agent": agent}, MANY) as (server, session):
                for number in range(10):
                    await session.start("x", thread_id=str(number), agent="agent")
                await until(lambda server=server: tasks_of(server) == 10)
                loop = server.registry.policy.run.asyncio.open().events
            assert loop.is_closed()
    assert len(ended) == 30


async def test_two_servers_have_a_loop_each() -> None:
    """Servers of one program do not share a loop: the end of one leaves the runs of the other alone."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> int:
        await asyncio.sleep(0.1)
        return id(asyncio.get_running_loop())

    async with open_session({"agent": agent}) as (_, one):
        run = await one.start("x", agent="agent")
        async with open_session({"agent": agent}) as (_, two):
            second = (await (await two.start("x", agent="agent")).result()).final_response
        assert (await run.result()).final_response != second


async def test_a_server_without_bridged_agents_has_no_loop() -> None:
    """The loop is opened by the first bridged run, not before."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> None: ...

    async with open_session({"agent": agent}) as (_, session):
        await (await session.start("x", agent="echo")).result()
        assert not [thread for thread in threading.enumerate() if thread.name == "netra-ws asyncio"]
        await (await session.start("x", agent="agent")).result()
        assert [thread for thread in threading.enumerate() if thread.name == "netra-ws asyncio"]


# What is left behind.


async def test_what_a_function_leaves_behind_ends_with_its_run() -> None:
    """Tasks, tasks of tasks and open generators of a function that has returned end before agent_completed."""
    log: list[str] = []

    async def background(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            log.append(name)

    async def numbers(name: str) -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            log.append(name)

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> str:
        kept.append(numbers("held"))
        async for _ in kept[0]:
            break
        async for _ in numbers("dropped"):
            break
        tool = run.tool("open")
        await tool.__aenter__()
        kept.append(tool)

        async def nest() -> None:
            kept.append(asyncio.create_task(background("inner")))
            await background("outer")

        kept.append(asyncio.create_task(nest()))
        kept.append(asyncio.create_task(background("without variables"), context=contextvars.Context()))
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.01, lambda: kept.append(asyncio.ensure_future(background("late"))))
        return "done"

    kept: list[Any] = []
    async with open_session({"agent": agent}) as (server, session):
        run = await session.start("x", agent="agent")
        events = [heard async for heard in run]
        assert check_run(events).final_response == "done"
        assert {"held", "dropped", "inner", "outer", "without variables"} <= set(log)
        assert [e.message.status for e in events if isinstance(e.message, ToolCompleted)] == ["cancelled"]
        assert tasks_of(server) == 0


async def test_errors_that_nobody_awaits_are_logged_with_their_run(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task that fails unobserved is told by our logger under the run's name, and not on stderr."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> None:
        async def fail(error: Exception) -> None:
            raise error

        for error in (ValueError("unobserved"), Odd()):
            asyncio.create_task(fail(error))  # noqa: RUF006
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0.01)

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        assert (await run.result()).status == "success"
        gc.collect()
    told = [record for record in caplog.records if record.name == "netra_ws.agents.bridge.loop"]
    assert len(told) == 3
    assert all(run.run_id in record.getMessage() for record in told)
    assert "unobserved" in caplog.text
    assert capsys.readouterr().err == ""


async def test_nothing_keeps_a_run_alive() -> None:
    """When a bridged run has ended, nothing of the bridge holds what its agent held."""

    class Large:
        pass

    gone: list[weakref.ref[Large]] = []

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> None:
        large = Large()
        gone.append(weakref.ref(large))
        if run.text == "fail":
            raise AgentError("with a traceback")
        await run.say("x")

    async with open_session({"agent": agent}) as (_, session):
        for text in ("x", "fail"):
            await (await session.start(text, agent="agent")).result()
        await (await session.start("x", agent="echo")).result()
        gc.collect()
        assert [each() for each in gone] == [None, None]


# Isolation.


async def test_context_variables_stay_with_their_run() -> None:
    """A variable set in one run is seen in all of that run, and by no other."""
    from contextvars import ContextVar

    who: ContextVar[str] = ContextVar("who", default="nobody")

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> list[str]:
        before = who.get()
        who.set(run.text)
        await run.say("x")
        await asyncio.sleep(0.01)
        inner = await asyncio.create_task(asyncio.sleep(0, who.get()))
        return [before, who.get(), inner, await asyncio.to_thread(who.get)]

    class Tracing:
        async def __call__(self, run: Run) -> Any:
            who.set("set around the bridge")  # as a tracer does with its span
            return await agent(run)

    async with open_session({"agent": agent, "traced": Tracing()}, MANY) as (_, session):
        runs = [await session.start(str(n), agent="agent", thread_id=str(n)) for n in range(10)]
        answers = [(await run.result()).final_response for run in runs]
        assert answers == [["nobody", str(n), str(n), str(n)] for n in range(10)]
        traced = await (await session.start("t", agent="traced")).result()
        assert traced.final_response[0] == "set around the bridge"
    assert who.get() == "nobody"


async def test_a_blocked_loop_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Code that blocks the asyncio thread is named with its run and line, once; Trio's loop goes on meanwhile."""
    caplog.set_level(logging.WARNING, "netra_ws.agents.watchdog")

    async def blocks() -> None:
        time.sleep(0.6)  # what nobody should do

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> str:
        await asyncio.create_task(blocks())
        return "done"

    async with open_session({"agent": agent}, MANY) as (_, session):
        run = await session.start("x", agent="agent")
        other = await (await session.start("x", agent="echo", thread_id="b")).result()
        assert other.status == "success"
        assert (await run.result()).status == "success"
        await trio.sleep(0.4)  # an idle loop is not blocked
    told = [record.getMessage() for record in caplog.records if "asyncio loop" in record.getMessage()]
    assert len(told) == 1
    assert run.run_id in told[0]
    assert "what nobody should do" in told[0]


@pytest.mark.parametrize("seed", range(3))
async def test_a_hundred_at_once_cancelled_at_random(seed: int) -> None:
    """A hundred bridged runs, some of them stopped at any moment, all end in the grammar and leave nothing."""
    dice = random.Random(seed)

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> str:
        async def side(number: int) -> None:
            async with run.tool("side", number=number) as call:
                await asyncio.sleep(0.01 * number)
                call.results = await asyncio.to_thread(lambda: number)

        asyncio.create_task(asyncio.sleep(60))  # noqa: RUF006
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(side(number))
            for number in range(20):
                await run.say(f"{number} ")
                await asyncio.sleep(0.001)
        await run.emit("end", 1)
        return run.said

    whole = "".join(f"{number} " for number in range(20))
    async with open_session({"agent": agent}, MANY) as (server, session):
        runs = [await session.start("x", agent="agent", thread_id=str(n)) for n in range(100)]

        async def stop(run: Any) -> None:
            await trio.sleep(dice.random() * 0.5)
            with contextlib.suppress(ClientError):
                await run.stop()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for run in dice.sample(runs, 60):
                    nursery.start_soon(stop, run)
            await until(lambda: not any(context.runs for context in server.registry))
        assert tasks_of(server) == 0
        assert server.registry.statistics().stuck == 0
        ends = [check_run([heard async for heard in run]) for run in runs[:20]]
        assert {end.status for end in ends} <= {"success", "cancelled"}
        assert all(end.final_response == whole for end in ends if end.status == "success")
