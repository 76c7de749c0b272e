"""Spans of OpenTelemetry: one per run and tool call, in the trace of the client, and never a run's trouble."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from netra_ws import AgentError, Identity, Run
from netra_ws.testing import check_run, open_session, run_agent

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


class Fragile(SpanProcessor):
    """Fails when it is told to."""

    fails = False

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self.fails:
            raise RuntimeError("on_start")

    def on_end(self, span: ReadableSpan) -> None:
        if self.fails:
            raise RuntimeError("on_end")


EXPORTER = InMemorySpanExporter()
FRAGILE = Fragile()


@pytest.fixture(scope="module", autouse=True)
def _provider() -> None:
    """A provider of the program; there can be only one in a process."""
    provider = TracerProvider()
    provider.add_span_processor(FRAGILE)
    provider.add_span_processor(SimpleSpanProcessor(EXPORTER))
    trace.set_tracer_provider(provider)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    EXPORTER.clear()
    yield
    FRAGILE.fails = False


def spans() -> dict[str, ReadableSpan]:
    """Return what was exported, by name."""
    return {span.name: span for span in EXPORTER.get_finished_spans()}


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


async def test_a_run_with_tools_and_a_sub_run() -> None:
    """Spans nest as the work did, in the trace that the client has named; nobody's words are in them."""

    async def inner(run: Run) -> None:
        async with run.tool("look", secret="words of a user") as call:
            call.results = "words of a user"

    async def outer(run: Run) -> str:
        async with run.tool("research"):
            await run.delegate(inner, "words of a user")
        with trace.get_tracer("mine").start_as_current_span("my own"):
            return "words of a user"

    events = await run_agent(outer, "words of a user", context={"traceparent": TRACEPARENT, "tracestate": "a=b"})
    last = check_run(events)
    found = spans()
    run, research = found["invoke_agent agent_under_test"], found["execute_tool research"]
    assert run.context is not None
    assert f"{run.context.trace_id:032x}" == TRACE
    assert f"{parent_of(run):016x}" == PARENT
    assert {span.context.trace_id for span in found.values() if span.context} == {run.context.trace_id}
    assert parent_of(research) == id_of(run)
    assert parent_of(found["invoke_agent inner"]) == id_of(research)
    assert parent_of(found["execute_tool look"]) == id_of(found["invoke_agent inner"])
    assert parent_of(found["my own"]) == id_of(run)
    assert dict(run.attributes or {}) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "agent_under_test",
        "gen_ai.conversation.id": last.thread_id,
        "user.id": "tester",
        "netra_ws.run_id": last.run_id,
        "netra_ws.trigger": "api",
        "netra_ws.status": "success",
        "netra_ws.events": last.events,
    }
    assert not any("words of a user" in str(span.to_json()) for span in found.values())


@pytest.mark.parametrize(
    "context", [{}, {"traceparent": "nonsense"}, {"traceparent": 5}, {"traceparent": ["x"], "tracestate": {}}]
)
async def test_a_trace_of_its_own(context: dict[str, Any]) -> None:
    """Without a trace in the context, or with nonsense there, a run begins a trace of its own."""

    async def agent(run: Run) -> None: ...

    assert check_run(await run_agent(agent, context=context)).status == "success"
    assert spans()["invoke_agent agent_under_test"].parent is None


async def test_two_users_share_no_trace(autojump_clock: trio.testing.MockClock) -> None:
    """Runs that go on side by side are traced apart, whoever they belong to."""

    async def agent(run: Run) -> None:
        async with run.tool(f"of {run.user_id}"):
            await trio.sleep(1)

    async with open_session({"agent": agent}) as (server, session), server.context_for(Identity("bob")) as bob:
        runs = [await session.start("x", agent="agent"), await bob.start("x", agent="agent")]
        for run in runs:
            await run.result()
    by_user = {str((span.attributes or {}).get("user.id")): span for span in EXPORTER.get_finished_spans()}
    for user in ("tester", "bob"):
        assert parent_of(spans()[f"execute_tool of {user}"]) == id_of(by_user[user])
    assert len({span.context.trace_id for span in EXPORTER.get_finished_spans() if span.context}) == 2


async def test_how_it_ended(autojump_clock: trio.testing.MockClock) -> None:
    """A span says how its work ended: the status, the code of the error, and who has cancelled it."""

    async def agent(run: Run) -> None:
        try:
            async with run.tool("fails"):
                raise AgentError("words", code="NO_ORDER")
        except AgentError:
            async with run.tool("endless"):
                await trio.sleep_forever()

    events = await run_agent(agent, overrides={"timing.run_timeout_s": 3.0})
    assert check_run(events).status == "timeout"
    found = spans()
    assert (found["execute_tool fails"].attributes or {})["error.type"] == "NO_ORDER"
    assert not found["execute_tool fails"].status.is_ok
    assert (found["execute_tool endless"].attributes or {})["netra_ws.status"] == "cancelled"
    attributes = found["invoke_agent agent_under_test"].attributes or {}
    assert (attributes["netra_ws.cancelled_by"], attributes["error.type"]) == ("timeout", "TIMEOUT")


async def test_a_tracer_that_fails_hurts_no_run(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a program's tracing raises is logged, and the run goes on to its end."""

    async def agent(run: Run) -> str:
        async with run.tool("work") as call:
            FRAGILE.fails = True
            call.results = 1
        async with run.tool("more"):
            pass
        return "done"

    assert check_run(await run_agent(agent)).final_response == "done"
    assert "a span could not be ended" in caplog.text
    assert "a span could not be begun" in caplog.text


def test_without_the_extra() -> None:
    """A server without OpenTelemetry runs its agents all the same."""
    program = """
import sys
sys.modules["opentelemetry"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "opentelemetry" else find(name, *more)
import trio
from netra_ws.testing import check_run, run_agent
async def agent(run):
    async with run.tool("work"):
        return "done"
print(check_run(trio.run(run_agent, agent)).final_response)
"""
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (outcome.stdout, outcome.returncode) == ("done\n", 0), outcome.stderr
