"""The default agent does real work with real tools, and says what it cannot do."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio.testing

from netra_ws.agents.builtin.assistant import make_assistant
from netra_ws.agents.builtin.echo import echo
from netra_ws.protocol.events import AgentCompleted, AgentThinking, ToolCompleted, ToolExecuting
from netra_ws.testing import check_run, open_session, run_agent

from ...conftest import StartServer
from ...kit import connect

CRITICAL = ["agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_completed"]


@pytest.mark.parametrize(
    ("text", "tool", "answer"),
    [
        ("What is 17% of 2,340?", "calculate", "17% of 2,340 = 397.8"),
        ("calculate 2**10", "calculate", "= 1,024"),
        ("9**9**9", "calculate", "I cannot calculate"),
        ("What is 10/0?", "calculate", "I cannot calculate"),
        ("what time is it in Tokyo?", "clock", "Asia/Tokyo (UTC+09:00)"),
        ("what time is it in Atlantis?", "clock", "Atlantis"),
        ("search my messages for elephants", "search_history", "nothing about “elephants”"),
        ("Tell me a joke", "search_history", "plug in an agent of your own"),
    ],
)
async def test_every_question_is_worked_on(text: str, tool: str, answer: str) -> None:
    """Each run has all five critical events in order, uses the tool that fits, and answers from its result."""
    events = await run_agent(make_assistant(), text)
    last = check_run(events)
    assert [event.type for event in events if event.type in CRITICAL] == CRITICAL
    assert [e.message.tool_name for e in events if isinstance(e.message, ToolExecuting)] == [tool]
    assert last.status == "success"
    assert answer in last.final_response


async def test_big_numbers_are_told_as_text() -> None:
    """A result that JSON readers cannot hold exactly is told as text, whole."""
    events = await run_agent(make_assistant(), "calculate 2**200")
    (result,) = [e.message.results for e in events if isinstance(e.message, ToolCompleted)]
    assert result == {"value": str(2**200)}


async def test_search_finds_only_what_is_the_users_own() -> None:
    """search_history finds earlier messages of all threads of the user, and not the question itself."""
    async with open_session({}, user_id="alice") as (server, alice):
        await (await alice.start("The invoice 2231 is late", agent="echo", thread_id="a")).result()
        from netra_ws import Identity

        async with server.context_for(Identity("bob")) as bob:
            await (await bob.start("My invoice is secret", agent="echo")).result()
        run = await alice.start("Search my messages for invoice", thread_id="b")
        events = [event async for event in run]
        (found,) = [e.message.results for e in events if isinstance(e.message, ToolCompleted)]
        assert {row["excerpt"] for row in found} == {"The invoice 2231 is late"}
        assert {row["thread_id"] for row in found} == {"a"}


LOGS = [
    {"model": "m1", "input_tokens": 100, "output_tokens": 10, "timestamp": "2025-09-05T10:00:00Z"},
    {"model": "m2", "input_tokens": 50, "output_tokens": 5, "timestamp": "2025-09-06T10:00:00Z"},
]


@pytest.mark.parametrize("form", ["text", "list"])
async def test_usage_logs(server: StartServer, form: str) -> None:
    """Logs that come along are added up by model and by day; bad lines are counted and named; no price, no cost."""
    running = await server()
    logs: Any = LOGS
    if form == "text":
        logs = "\n".join([json.dumps(LOGS[0]), "not json", json.dumps(LOGS[1])])
    async with connect(running) as client:
        await client.send("chat", content="How much did we use?", jsonl_logs=logs)
        heard = await client.until("agent_completed")
        result = next(e for e in heard if e["type"] == "tool_completed")
        assert result["tool_name"] == "analyze_usage"
        assert {row["model"]: row["total"] for row in result["results"]["by_model"]} == {"m1": 110, "m2": 55}
        assert [row["day"] for row in result["results"]["by_day"]] == ["2025-09-05", "2025-09-06"]
        answer = heard[-1]["final_response"]
        assert "2 calls, 165 tokens" in answer
        assert "$" not in answer
        assert ("1 lines could not be read: 2" in answer) == (form == "text")


async def test_cost_only_with_prices() -> None:
    """Where settings give prices, the cost of the models that have one is told."""
    from netra_ws.contexts.starting import Ask, start

    prices = {"m1": {"input": 10.0, "output": 20.0, "cached": 1.0}}
    async with open_session({"assistant": make_assistant(prices)}) as (_, session):
        ask = Ask(text="usage", trigger="api", jsonl_logs=LOGS)
        started = await start(session.context, ask, session.identity)
        async for event in session.events(run_id=started.run_id):
            if isinstance(event.message, AgentCompleted):
                assert "$0.0012" in event.message.final_response
                assert "No price is set for m2" in event.message.final_response


async def test_echo(autojump_clock: trio.testing.MockClock) -> None:
    """echo says the text back, with a thought and a tool, so that all critical events are there."""
    events = await run_agent(echo, "  hello  there ")
    assert [event.type for event in events if event.type in CRITICAL] == CRITICAL
    assert check_run(events).final_response == "hello  there"
    assert any(isinstance(event.message, AgentThinking) for event in events)
