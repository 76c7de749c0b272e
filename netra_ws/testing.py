"""The public test kit: run an agent for real and look at what it said.

Nothing here is a mock. ``run_agent`` executes an agent in a real server with a memory store, and
returns the events as a client would get them::

    async def test_my_agent(autojump_clock):
        events = await run_agent(my_agent, "hello")
        assert check_run(events).final_response == "HELLO"
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from netra_ws.agents.agent import Agent
from netra_ws.contexts.embedding import UserSession
from netra_ws.identity import Identity
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import (
    AgentCompleted,
    AgentMessage,
    AgentStarted,
    AgentThinking,
    InputReceived,
    InputRequired,
    RunEvent,
    ToolCompleted,
    ToolExecuting,
    ToolProgress,
)
from netra_ws.server import Server, open_server
from netra_ws.settings import Settings

#: Signs tokens in tests; never use it anywhere else.
SECRET = "only-for-tests-" + "0" * 32


def make_settings(overrides: Mapping[str, object] | None = None) -> Settings:
    """Return settings for a server in a test: any free port, a memory store, a known secret.

    Args:
        overrides: Dotted names to values, such as ``{"timing.run_timeout_s": 5.0}``.
    """
    return Settings.make(
        {"server.port": 0, "store.url": "memory:", "auth.secret": SECRET, **(overrides or {})},
        environment="testing",
    )


@asynccontextmanager
async def open_session(
    agents: Mapping[str, Agent], overrides: Mapping[str, object] | None = None, *, user_id: str = "tester"
) -> AsyncIterator[tuple[Server, UserSession]]:
    """Run a server with *agents* and hold one user's context open in it."""
    async with (
        open_server(make_settings(overrides), agents=agents) as server,
        server.context_for(Identity(user_id)) as session,
    ):
        yield server, session


async def run_agent(
    agent: Agent,
    text: str = "hello",
    *,
    context: Mapping[str, Any] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> list[Heard]:
    """Run *agent* once on *text* and return its events, ``agent_completed`` last."""
    async with open_session({"agent_under_test": agent}, overrides) as (_, session):
        run = await session.start(text, agent="agent_under_test", context=context)
        return [heard async for heard in run if isinstance(heard.message, RunEvent)]


def check_run(events: Sequence[Heard]) -> AgentCompleted:
    """Check that the events of one run keep the grammar of PROTOCOL §3.

    Args:
        events: Everything heard of one run; what comes before ``agent_started`` is left out.

    Returns:
        The last event.

    Raises:
        AssertionError: The grammar is broken; the text says where.
    """
    heard = _from_start(events)
    tools: set[str] = set()
    inputs: set[str] = set()
    texts: set[str] = set()
    thinking = False
    for one in heard[1:-1]:
        event = one.message
        if isinstance(event, ToolExecuting):
            _expect(event.tool_call_id not in tools, one, "a tool call began twice")
            tools.add(event.tool_call_id)
        elif isinstance(event, ToolCompleted):
            _expect(event.tool_call_id in tools, one, "a tool call ended that is not open")
            tools.remove(event.tool_call_id)
        elif isinstance(event, ToolProgress):
            _expect(event.tool_call_id in tools, one, "progress of a tool call that is not open")
        elif isinstance(event, InputRequired):
            inputs.add(event.input_id)
        elif isinstance(event, InputReceived):
            _expect(event.input_id in inputs, one, "an input was received that is not open")
            inputs.remove(event.input_id)
        elif isinstance(event, AgentMessage):
            (texts.add if event.phase == "delta" else texts.discard)(event.message_id)
        elif isinstance(event, AgentThinking):
            thinking = event.phase == "delta"
        _expect(not isinstance(event, AgentStarted | AgentCompleted), one, "a second start or an early end")
    last = heard[-1].message
    assert isinstance(last, AgentCompleted), f"the last event is {heard[-1].type}, not agent_completed"
    assert not tools, f"tool calls without an end: {tools}"
    assert not inputs, f"inputs without an end: {inputs}"
    assert not texts, f"messages without a final full: {texts}"
    assert not thinking, "a thought without a final full"
    seqs = [one.stamp.seq for one in heard if one.stamp is not None]
    assert seqs == sorted(set(seqs)), "numbers do not grow"
    assert last.success == (last.status == "success"), "success and status disagree"
    return last


_BEFORE_A_RUN = ("thread_created", "user_message", "run_queued")


def _from_start(events: Sequence[Heard]) -> list[Heard]:
    starts = [position for position, one in enumerate(events) if isinstance(one.message, AgentStarted)]
    assert len(starts) == 1, f"{len(starts)} agent_started instead of one"
    before = [one.type for one in events[: starts[0]] if one.type not in _BEFORE_A_RUN]
    assert not before, f"said before agent_started: {before}"
    heard = list(events[starts[0] :])
    runs = {one.fields.get("run_id") for one in heard}
    assert len(runs) == 1, f"events of several runs: {runs}"
    return heard


def _expect(holds: bool, heard: Heard, text: str) -> None:
    assert holds, f"{text}: {dict(heard.fields)}"
