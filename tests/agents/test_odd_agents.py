"""Agents that do what nobody should do: their run ends in the grammar, and nobody else notices."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from netra_ws import AgentError, ClientError, Run, RunClosed, WrongThread
from netra_ws.protocol.events import ToolCompleted
from netra_ws.testing import check_run, open_session, run_agent

MakeError = Callable[[], BaseException]


class OwnBase(BaseException):
    """Not an Exception, as the errors of some libraries are."""


class Unspeakable(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("not even that")

    __repr__ = __str__


class Unprintable(Exception):
    """Fails whoever formats its traceback."""

    @property
    def __notes__(self) -> list[str]:
        raise RuntimeError("no notes")


class Forgetful(AgentError):
    """Does not call its base class."""

    def __init__(self) -> None:
        pass


class Indivisible(BaseExceptionGroup[BaseException]):
    """A group that answers a split with an error."""

    def derive(self, excs: Any, /) -> Any:
        raise RuntimeError("indivisible")


class Guarded(AgentError):
    """Lets nobody look."""

    @property
    def retryable(self) -> bool:  # type: ignore[override]
        raise RuntimeError("not for you")

    code = text = retryable  # type: ignore[assignment]

    def __init__(self) -> None:
        pass


def nested(depth: int) -> BaseException:
    error: BaseException = ValueError("at the bottom")
    for _ in range(depth):
        error = BaseExceptionGroup("one more", [error])
    return error


def caused_by(depth: int) -> BaseException:
    error = ValueError("at the top")
    error.__cause__ = nested(depth)
    return error


def endless() -> BaseException:
    try:
        return endless()
    except RecursionError as exc:
        return exc


ERRORS: list[MakeError] = [
    OwnBase,
    Unspeakable,
    Unprintable,
    Forgetful,
    Guarded,
    endless,
    MemoryError,
    GeneratorExit,
    StopIteration,
    StopAsyncIteration,
    KeyboardInterrupt,
    asyncio.CancelledError,
    lambda: SystemExit(3),
    lambda: AgentError(Unspeakable()),  # type: ignore[arg-type]
    lambda: nested(500),
    lambda: nested(5000),
    lambda: caused_by(5000),
    lambda: Indivisible("whole", [ValueError(), SystemExit()]),
    lambda: BaseExceptionGroup("both", [KeyboardInterrupt(), ValueError()]),
]


async def good(run: Run) -> str:
    async with run.tool("fine"):
        pass
    return "as ever"


def in_the_body(make: MakeError) -> Callable[[Run], Awaitable[None]]:
    async def agent(run: Run) -> None:
        await run.say("so far")
        raise make()

    return agent


def in_a_tool(make: MakeError) -> Callable[[Run], Awaitable[None]]:
    async def agent(run: Run) -> None:
        async with run.tool("risky"):
            raise make()

    return agent


class _Leaving:
    def __init__(self, make: MakeError) -> None:
        self.make = make

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exc: object) -> None:
        raise self.make()


def in_aexit(make: MakeError) -> Callable[[Run], Awaitable[None]]:
    async def agent(run: Run) -> None:
        async with run.tool("outer"), _Leaving(make):
            await run.think("on the way out", delta=True)

    return agent


@pytest.fixture
def formats_everything() -> Any:
    """Logging that formats tracebacks as a server's does, and lets nothing pass that goes wrong in it."""
    texts: list[str] = []

    class Strict(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(logging.Formatter().format(record))

    handler = Strict()
    logging.getLogger("netra_ws").addHandler(handler)
    yield texts
    logging.getLogger("netra_ws").removeHandler(handler)


@pytest.mark.parametrize("place", [in_the_body, in_a_tool, in_aexit])
async def test_whatever_is_raised_wherever(
    place: Callable[[MakeError], Any], autojump_clock: trio.testing.MockClock, formats_everything: list[str]
) -> None:
    """Each error, of whatever class, shape or depth, is its own run's end and nobody else's."""
    agents = {f"bad{number}": place(make) for number, make in enumerate(ERRORS)}
    async with open_session({**agents, "good": good}) as (server, session):
        for name in agents:
            run = await session.start("x", agent=name, thread_id=name)
            last = check_run([heard async for heard in run])
            assert (last.status, last.cancelled_by) == ("error", None), name
            assert (await (await session.start("y", agent="good")).result()).status == "success", name
        assert server.registry.statistics().runs == 0
    assert any("at the bottom" in text for text in formats_everything)


@pytest.mark.parametrize("make", ERRORS)
async def test_whatever_is_raised_while_being_cancelled(
    make: MakeError, autojump_clock: trio.testing.MockClock
) -> None:
    """What an agent raises in its finally while it is stopped changes nothing: it was stopped."""

    async def agent(run: Run) -> None:
        try:
            async with run.tool("long"):
                await trio.sleep_forever()
        finally:
            raise make()

    async with open_session({"agent": agent, "good": good}) as (_, session):
        run = await session.start("x", agent="agent")
        await trio.sleep(0.1)
        assert await run.stop() == "cancelled"
        last = check_run([heard async for heard in run])
        assert (last.status, last.cancelled_by) == ("cancelled", "user")
        assert (await (await session.start("y", agent="good")).result()).status == "success"


@pytest.mark.parametrize(
    "usage",
    [
        {"input_tokens": 12.0},
        {"output_tokens": "12"},
        {"input_tokens": True},
        {"cost_usd": "0.1"},
        {"cost_usd": float("nan")},
        {"provider": None},
        {"model": 5},
    ],
)
async def test_usage_that_is_none(usage: dict[str, Any]) -> None:
    """Usage of a wrong type is the agent's mistake where it is made: the run's last event is one that readers know."""

    async def agent(run: Run) -> str:
        with pytest.raises(TypeError, match=next(iter(usage))):
            run.usage(**{"provider": "p", "model": "m", **usage})
        for wrong in ({"progress": "half"}, {"progress": float("inf")}, {"step": 1.5}):
            with pytest.raises(TypeError, match="expected"):
                await run.think("x", **wrong)  # type: ignore[arg-type]
        async with run.tool("work") as call:
            with pytest.raises(TypeError, match="expected"):
                await call.progress("half")  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="expected"):
                await call.progress(0.5, 5)  # type: ignore[arg-type]
        return "done"

    assert check_run(await run_agent(agent)).final_response == "done"


def test_ctrl_c_is_not_the_agents(capfd: pytest.CaptureFixture[str]) -> None:
    """A KeyboardInterrupt that a signal has raised in an agent's code ends the program, as Ctrl-C should."""
    ends: list[str] = []

    async def agent(run: Run) -> None:
        signal.raise_signal(signal.SIGINT)
        await trio.sleep(0)

    async def program() -> None:
        async with open_session({"agent": agent}) as (_, session):
            ends.append((await (await session.start("x", agent="agent")).result()).status)
            await trio.sleep_forever()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(BaseException) as raised:
            trio.run(program)
    finally:
        signal.signal(signal.SIGINT, before)
    found = raised.value
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, KeyboardInterrupt)


async def _nursery_of_a_generator(run: Run) -> str:
    async def pieces() -> AsyncIterator[int]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_slow_to_leave, run)
            yield 1

    async for _ in pieces():
        break
    return "left it open"


async def _nursery_by_hand(run: Run) -> str:
    nursery = await trio.open_nursery().__aenter__()
    nursery.start_soon(_slow_to_leave, run)
    return "left it open"


async def _scope_by_hand(run: Run) -> str:
    trio.CancelScope().__enter__()
    return "left it open"


async def _tool_by_hand(run: Run) -> str:
    kept.append(run.tool("left open"))
    await kept[-1].__aenter__()
    return "left it open"


async def _generator_that_is_kept(run: Run) -> str:
    async def pieces() -> AsyncIterator[int]:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_slow_to_leave, run)
                yield 1
        finally:
            await run.say("far too late")

    kept.append(pieces())
    await kept[-1].__anext__()
    return "left it open"


async def _task_beside_itself(run: Run) -> str:
    nursery = trio.lowlevel.current_task().parent_nursery
    assert nursery is not None
    nursery.start_soon(_slow_to_leave, run)
    nursery.cancel_scope.cancel()
    return "left it open"


kept: list[Any] = []
running: set[str] = set()


async def _slow_to_leave(run: Run) -> None:
    running.add(run.run_id)
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        running.discard(run.run_id)


@pytest.mark.parametrize(
    "agent",
    [
        _nursery_of_a_generator,
        _nursery_by_hand,
        _scope_by_hand,
        _tool_by_hand,
        _generator_that_is_kept,
        _task_beside_itself,
    ],
)
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_what_an_agent_leaves_open(agent: Any, autojump_clock: trio.testing.MockClock) -> None:
    """Nurseries, scopes, tools and generators left open end with their run; once they ended the server."""
    async with open_session({"agent": agent, "good": good}, {"timing.finalise_s": 3.0}) as (server, session):
        for _ in range(2):
            run = await session.start("x", agent="agent")
            check_run([heard async for heard in run])
            assert not running
            assert (await (await session.start("y", agent="good")).result()).status == "success"
            kept.clear()
            gc.collect()
            await trio.sleep(1)
        assert server.registry.statistics().runs == 0
        assert (await (await session.start("y", agent="good")).result()).status == "success"


async def test_a_cancelled_that_was_kept(autojump_clock: trio.testing.MockClock) -> None:
    """A Cancelled of the agent's own scope that is raised again later is its error; nobody shut anything down."""

    async def agent(run: Run) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep_forever()
            except trio.Cancelled as exc:
                late = exc
        await run.say("on")
        raise late

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        last = check_run([heard async for heard in run])
        assert (last.status, last.cancelled_by) == ("error", None)


async def test_spawning_behind_a_cancel(autojump_clock: trio.testing.MockClock) -> None:
    """Tasks that an agent starts while it is being stopped are gone when the stop is answered, too."""
    seen: list[str] = []

    async def late(shield: bool) -> None:
        with trio.CancelScope(shield=shield):
            seen.append("in")
            try:
                await trio.sleep(0.5)
            finally:
                seen.append("out")

    async def agent(run: Run) -> None:
        async with trio.open_nursery() as nursery:
            try:
                await trio.sleep_forever()
            finally:
                for shield in (False, True):
                    nursery.start_soon(late, shield)

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        await trio.sleep(0.1)
        assert await run.stop() == "cancelled"
        assert (seen.count("in"), seen.count("out")) == (2, 2)


async def test_nothing_is_said_after_the_end(autojump_clock: trio.testing.MockClock) -> None:
    """A run that another agent has kept says nothing any more when it has ended; that is the other one's error only."""
    runs: list[Run] = []
    refused: list[str] = []

    async def first(run: Run) -> str:
        runs.append(run)
        await run.say("mine")
        return "done"

    async def second(run: Run) -> str:
        other = runs[0]
        for attempt in (
            lambda: other.say("x"),
            lambda: other.think("x"),
            lambda: other.think("x", delta=True),
            lambda: other.emit("x", 1),
            lambda: other.tool("x").__aenter__(),
            lambda: other.process(["true"]),
        ):
            with pytest.raises(RunClosed):
                await attempt()
            refused.append("once")
        other.cancel("user")
        other.end_message()
        return "went on"

    async with open_session({"first": first, "second": second}) as (_, session):
        one = await session.start("x", agent="first")
        assert check_run([heard async for heard in one]).status == "success"
        two = await session.start("x", agent="second")
        assert check_run([heard async for heard in two]).final_response == "went on"
        assert len(refused) == 6
        events = session.events(after=one._since)
        with trio.move_on_after(1):
            heard = [each async for each in events]
            assert not heard
    assert runs[0].status == "success"


async def test_tools_of_another_run(autojump_clock: trio.testing.MockClock) -> None:
    """A tool that is open in another run's hands is closed with its run, and closing it again says nothing."""
    runs: dict[str, Run] = {}
    ready = trio.Event()

    async def owner(run: Run) -> None:
        runs["owner"] = run
        ready.set()
        await trio.sleep(2)

    async def borrower(run: Run) -> str:
        await ready.wait()
        async with runs["owner"].tool("borrowed"):
            await trio.sleep(5)
        return "late"

    async with open_session({"owner": owner, "borrower": borrower}) as (_, session):
        one = await session.start("x", agent="owner", thread_id="a")
        two = await session.start("x", agent="borrower", thread_id="b")
        events = [heard async for heard in one]
        assert check_run(events).status == "success"
        assert [e.message.status for e in events if isinstance(e.message, ToolCompleted)] == ["cancelled"]
        # Its own work was fine; closing the pair once more was not heard.
        assert check_run([heard async for heard in two]).status == "success"


async def test_every_way_to_speak_knows_its_thread() -> None:
    """What a run offers is refused in a foreign thread, and loses nothing of what was being said."""

    async def agent(run: Run) -> str:
        await run.say("a text")
        await run.think("a thought", delta=True)

        def drive(coroutine: Any) -> None:
            try:
                coroutine.send(None)
            finally:
                coroutine.close()

        def work() -> int:
            refused = 0
            for attempt in (
                run.end_message,
                lambda: drive(run.say("x")),
                lambda: drive(run.think("x")),
                lambda: drive(run.emit("x", 1)),
                lambda: drive(run.tool("x").__aenter__()),
                lambda: drive(run.process(["true"])),
                lambda: run.cancel("user"),
            ):
                try:
                    attempt()
                except WrongThread:
                    refused += 1
            return refused

        results: list[int] = []
        thread = threading.Thread(target=lambda: results.append(work()))
        thread.start()
        await trio.to_thread.run_sync(thread.join)
        return f"{await run.thread(work)} {results[0]}"

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        events = [heard async for heard in run]
        assert check_run(events).final_response == "7 7"
        fulls = [e.fields.get("content") or e.fields["reasoning"] for e in events if e.fields.get("phase") == "full"]
        assert sorted(fulls) == ["a text", "a thought"]


async def test_an_abandoned_thread_says_nothing_more() -> None:
    """A thread that the agent itself abandoned cannot speak in a run that has ended."""
    gate, said = threading.Event(), threading.Event()
    outcome: list[BaseException] = []

    async def agent(run: Run) -> None:
        def work() -> None:
            gate.wait(10)
            try:
                trio.from_thread.run(run.say, "too late")
            except BaseException as exc:
                outcome.append(exc)
            finally:
                said.set()

        await trio.to_thread.run_sync(work, abandon_on_cancel=True)

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        await trio.sleep(0.02)
        assert await run.stop() == "cancelled"
        events = [heard async for heard in run]
        gate.set()
        await trio.to_thread.run_sync(said.wait, 10)
        assert isinstance(outcome[0], RunClosed | trio.Cancelled)
        assert check_run(events).status == "cancelled"


async def test_a_generator_is_closed_before_the_stop_is_answered(autojump_clock: trio.testing.MockClock) -> None:
    """A generator that was being read when its run was stopped has run its finally when the stop is answered."""
    closed: list[str] = []

    async def pieces(run: Run) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await trio.sleep(1)
        finally:
            closed.append("yes")

    async def agent(run: Run) -> None:
        async for _ in pieces(run):
            await run.say(".")

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        await trio.sleep(0.5)
        assert await run.stop() == "cancelled"
        assert closed == ["yes"]


async def test_an_unfinished_tool_cannot_be_renamed(autojump_clock: trio.testing.MockClock) -> None:
    """What the end of a pair is written from cannot be changed by who holds the tool."""

    async def agent(run: Run) -> None:
        async with run.tool("t") as call:
            for name in ("tool_call_id", "name", "started_at"):
                with pytest.raises(AttributeError):
                    setattr(call, name, object())

    async with open_session({"agent": agent}) as (_, session):
        assert check_run([heard async for heard in await session.start("x", agent="agent")]).status == "success"


async def test_a_stuck_run_with_a_broken_end(autojump_clock: trio.testing.MockClock) -> None:
    """A sealed run whose code then raises anything at all is simply gone."""
    release = trio.Event()

    async def agent(run: Run) -> None:
        with trio.CancelScope(shield=True):
            await release.wait()
        raise nested(2000)

    async with open_session({"agent": agent, "good": good}, {"timing.finalise_s": 1.0}) as (server, session):
        run = await session.start("x", agent="agent")
        await trio.sleep(0.1)
        with pytest.raises(ClientError, match="CANCEL_TIMEOUT"):
            await run.stop()
        release.set()
        await trio.sleep(1)
        assert server.registry.statistics().runs == 0
        assert (await (await session.start("y", agent="good")).result()).status == "success"
