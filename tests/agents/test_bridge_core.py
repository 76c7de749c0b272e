"""What asyncio agents share with others: declared tools, questions, sub-runs; and agents of well-known frameworks."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest
import trio

import netra_ws
from netra_ws import AgentError, AsyncioRun, InputDeclined, Run
from netra_ws.errors import DelegateFailed, InvalidParameters, ToolDenied
from netra_ws.protocol.events import InputRequired, ToolCompleted
from netra_ws.testing import check_family, check_run, open_session, run_agent, texts

PATIENCE_S = 20.0

caller: ContextVar[str] = ContextVar("caller", default="nobody")


@netra_ws.tool
async def double(run: Run, number: int) -> int:
    """Double a number, on Trio."""
    await trio.sleep(0)
    return 2 * number


@netra_ws.tool(timeout_s=0.05)
async def slow() -> None:
    """Take a while."""
    await trio.sleep(60)


@netra_ws.tool(permission="no_such_permission")
async def secret() -> None:
    """Do what nobody may."""


@netra_ws.tool
async def who_calls() -> str:
    """Say what its caller has set."""
    return caller.get()


async def test_declared_tools_are_used_from_asyncio() -> None:
    """A declared tool works on Trio, validated, timed and permitted, and gives the asyncio side what it returns."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> list[Any]:
        with pytest.raises(InvalidParameters):
            await run.use(double, number="many")
        with pytest.raises(TimeoutError):
            await run.use(slow)
        with pytest.raises(ToolDenied):
            await secret(run)
        caller.set("the agent")
        return [await run.use(double, 4), await double(run, number=5), await who_calls(run)]

    events = await run_agent(agent)
    assert check_run(events).final_response == [8, 10, "the agent"]
    ends = [(e.message.tool_name, e.message.status) for e in events if isinstance(e.message, ToolCompleted)]
    assert ends == [
        ("double", "error"),
        ("slow", "timeout"),
        ("secret", "denied"),
        ("double", "ok"),
        ("double", "ok"),
        ("who_calls", "ok"),
    ]


async def test_a_tool_is_cancelled_with_the_task_that_waits_for_it() -> None:
    """When the asyncio task that uses a tool is cancelled, the tool is, and it has ended when the task goes on."""
    log: list[str] = []

    @netra_ws.tool
    async def endless() -> None:
        """Never end."""
        try:
            await trio.sleep_forever()
        finally:
            log.append("tool")

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await run.use(endless)
        log.append("agent")
        return "went on"

    events = await run_agent(agent)
    assert check_run(events).final_response == "went on"
    assert log == ["tool", "agent"]
    assert [e.message.status for e in events if isinstance(e.message, ToolCompleted)] == ["cancelled"]


@pytest.mark.parametrize("answer", ["yes", None])
async def test_it_asks_its_user(answer: str | None) -> None:
    """A question waits in asyncio while the clocks of run and tool stand still; declining it is an error there."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> str:
        async with run.tool("publish", timeout_s=0.2) as call:
            try:
                call.results = await run.ask("Publish this?", choices=["yes", "no"])
            except InputDeclined as exc:
                call.results = exc.status
        return call.results

    async with open_session({"agent": agent}, {"timing.idle_timeout_s": 0.2}) as (_, session):
        run = await session.start("x", agent="agent")
        events = []
        async for heard in run:
            events.append(heard)
            if isinstance(heard.message, InputRequired):
                await trio.sleep(0.5)  # longer than both clocks
                if answer is None:
                    await session.decline(heard.message.input_id)
                else:
                    await session.answer(heard.message.input_id, answer)
        last = check_run(events)
        assert (last.status, last.final_response) == ("success", answer or "cancelled")


async def test_a_tool_whose_time_is_over_while_asyncio_works() -> None:
    """The clock of a tool that has waited for its user goes on afterwards, and ends the block."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> str:
        with pytest.raises(TimeoutError, match="took longer"):
            async with run.tool("publish", timeout_s=0.1):
                await run.ask("Go on?")
                await asyncio.sleep(60)
        await asyncio.sleep(0)
        return "went on"

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        events = []
        async for heard in run:
            events.append(heard)
            if isinstance(heard.message, InputRequired):
                await session.answer(heard.message.input_id, "yes")
        assert check_run(events).final_response == "went on"
        assert [e.message.status for e in events if isinstance(e.message, ToolCompleted)] == ["timeout"]


async def test_it_delegates_in_both_directions() -> None:
    """A bridged agent has others work for it, bridged or not, at the same time, and hears how they end."""

    async def native(run: Run) -> str:
        await trio.sleep(0)
        return run.text.upper()

    @netra_ws.bridge
    async def inner(run: AsyncioRun) -> str:
        await asyncio.sleep(0)
        return run.text[::-1]

    @netra_ws.bridge
    async def failing(run: AsyncioRun) -> str:
        raise AgentError("no", code="NO")

    @netra_ws.bridge
    async def outer(run: AsyncioRun) -> list[str]:
        with pytest.raises(DelegateFailed):
            await run.delegate(failing, "x")
        return await asyncio.gather(run.delegate("native", "abc"), run.delegate(inner, "abc"))

    async with open_session({"outer": outer, "native": native}) as (_, session):
        run = await session.start("x", agent="outer")
        events = [heard async for heard in run]
        check_family(events)
        assert events[-1].fields["final_response"] == ["ABC", "cba"]


# Frameworks.


@pytest.fixture
def pydantic_agent(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An agent of pydantic-ai, as its documentation shows one, whose model is its own for tests."""
    from pydantic_ai import Agent
    from pydantic_ai.models.test import TestModel

    return Agent(TestModel(custom_output_text="It is sunny in Paris."))


async def test_pydantic_ai(pydantic_agent: Any) -> None:
    """An unmodified agent of pydantic-ai streams its text to the user, and its tool is seen as a pair."""
    in_thread: list[str] = []

    @pydantic_agent.tool_plain
    async def weather(city: str) -> str:
        await asyncio.sleep(0)
        return "sunny"

    @pydantic_agent.tool_plain
    def population(city: str) -> int:
        in_thread.append(threading.current_thread().name)
        return 2_000_000

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> str:
        async with pydantic_agent.run_stream(run.text, event_stream_handler=None) as answer:
            async for piece in answer.stream_text(delta=True, debounce_by=None):
                await run.say(piece)
        for message in answer.all_messages():
            for part in message.parts:
                if part.part_kind == "tool-return":
                    async with run.tool(part.tool_name) as call:
                        call.results = part.content
        return run.said

    events = await run_agent(agent, "What is the weather in Paris?")
    last = check_run(events)
    assert (last.status, last.final_response) == ("success", "It is sunny in Paris.")
    assert list(texts(events).values()) == ["It is sunny in Paris."]
    pieces = [e.fields["content"] for e in events if e.fields.get("phase") == "delta"]
    assert len(pieces) > 1
    done = {e.message.tool_name: e.message.results for e in events if isinstance(e.message, ToolCompleted)}
    assert done == {"weather": "sunny", "population": 2_000_000}
    assert in_thread != [threading.current_thread().name]


async def test_a_stop_reaches_the_tool_of_pydantic_ai(pydantic_agent: Any) -> None:
    """A stop cancels the tool in which an agent of pydantic-ai is, before it is answered."""
    log: list[str] = []

    @pydantic_agent.tool_plain
    async def forever(city: str) -> str:
        log.append("begun")
        try:
            await asyncio.sleep(3600)
        finally:
            log.append("cancelled")
        return "never"

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> str:
        return (await pydantic_agent.run(run.text)).output

    async with open_session({"agent": agent}) as (server, session):
        run = await session.start("x", agent="agent")
        with trio.fail_after(PATIENCE_S):
            while not log:
                await trio.sleep(0.01)
            assert await run.stop() == "cancelled"
        assert log == ["begun", "cancelled"]
        assert len(asyncio.all_tasks(server.registry.policy.run.asyncio.open().events)) == 1
