"""The agent ``llm`` of a server that has a model: the default, with the assistant's tools."""

from __future__ import annotations

import json
from typing import Any

import pytest

from netra_ws import ConfigError
from netra_ws.contexts.starting import Ask, start
from netra_ws.policies import context_policy
from netra_ws.protocol.events import AgentCompleted, ToolCompleted
from netra_ws.settings import problems
from netra_ws.testing import check_run, open_session, run_agent
from netra_ws.testing.running import make_settings

from ...conftest import StartServer
from ...kit import http
from ..llm.endpoint import KEY, MODEL, FakeEndpoint, answer, call, fake_endpoint, finish, stream

LOGS = [{"model": MODEL, "input_tokens": 100, "output_tokens": 10, "timestamp": "2025-09-05T10:00:00Z"}]


def settings_for(endpoint: FakeEndpoint) -> dict[str, object]:
    return {"llm.base_url": endpoint.url, "llm.model": MODEL, "llm.api_key": KEY}


async def test_it_is_the_default() -> None:
    """Where a model is set, who names no agent talks to it; the assistant is still there."""
    async with (
        fake_endpoint(answer("Hello")) as endpoint,
        open_session({}, settings_for(endpoint)) as (_, session),
    ):
        last = await (await session.start("Hi")).result()
        other = await (await session.start("What is 2+2?", agent="assistant")).result()
    assert (last.agent_name, last.final_response) == ("llm", "Hello")
    assert (other.agent_name, other.final_response) == ("assistant", "2+2 = 4")
    (asked,) = endpoint.asked
    assert asked.body["messages"][0]["role"] == "system"
    names = [one["function"]["name"] for one in asked.body["tools"]]
    assert names == ["calculate", "clock", "search_history", "analyze_usage"]


async def test_without_a_model() -> None:
    """Without a model there is no such agent, and none can be the default."""
    assert make_settings().agents.default == "assistant"
    with pytest.raises(ConfigError, match="no agent 'llm'"):
        async with open_session({}, {"agents.default": "llm"}):
            pass


def test_a_wrong_model_is_said_once() -> None:
    """What is wrong with the settings of the model is one line of theirs; the agent is not missed besides."""
    for overrides in ({"llm.base_url": "ftp://h", "llm.model": "m"}, {"llm.base_url": "http://h"}):
        settings = make_settings(overrides)
        (line,) = problems(settings)
        assert line.startswith("llm.")
        assert context_policy(settings, {}).run.model is None


async def test_the_config(server: StartServer) -> None:
    """Clients are told whether there is a model, and nothing of where it is."""
    async with fake_endpoint(answer("Hello")) as endpoint:
        with_model = (await http(await server(**dotted(settings_for(endpoint))), "/ws/config")).json()
    without = (await http(await server(), "/ws/config")).json()
    assert (with_model["features"]["llm"], without["features"]["llm"]) == (True, False)
    assert ("llm" in with_model["agents"], "llm" in without["agents"]) == (True, False)
    assert KEY not in json.dumps(with_model)
    assert endpoint.url not in json.dumps(with_model)


def dotted(settings: dict[str, object]) -> dict[str, Any]:
    return {name.replace(".", "__"): value for name, value in settings.items()}


@pytest.mark.parametrize(
    ("name", "arguments", "found"),
    [
        ("calculate", {"expression": "17% of 2340"}, {"value": 397.8}),
        ("calculate", {"expression": "2**100"}, {"value": str(2**100)}),
        ("search_history", {"query": "nothing of the kind"}, []),
    ],
)
async def test_tools(name: str, arguments: dict[str, Any], found: Any) -> None:
    """The model uses the tools by their names and schemas."""
    script = (stream(call(name, json.dumps(arguments)), finish("tool_calls")), answer("So it is"))
    async with fake_endpoint(*script) as endpoint:
        events = await run_default(endpoint)
    assert check_run(events).final_response == "So it is"
    (done,) = [one.message for one in events if isinstance(one.message, ToolCompleted)]
    assert (done.tool_name, done.status, done.results) == (name, "ok", found)


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("calculate", {"expression": "1/0"}, "CALCULATION_FAILED"),
        ("clock", {"zone": "Atlantis"}, "UNKNOWN_TIME_ZONE"),
        ("clock", {"zone": 7}, "INVALID_PARAMETERS"),
        ("analyze_usage", {}, "NO_LOGS"),
    ],
)
async def test_tools_that_fail(name: str, arguments: dict[str, Any], code: str) -> None:
    """What a tool says of its failure reaches the model."""
    script = (stream(call(name, json.dumps(arguments)), finish("tool_calls")), answer("Sorry"))
    async with fake_endpoint(*script) as endpoint:
        check_run(await run_default(endpoint))
    told = json.loads(endpoint.asked[1].body["messages"][-1]["content"])
    assert told["error"]["code"] == code


async def run_default(endpoint: FakeEndpoint) -> Any:
    from netra_ws.agents.builtin.model import make_llm

    return await run_agent(make_llm(), overrides=settings_for(endpoint))


async def test_logs_and_prices() -> None:
    """Usage logs that come along are announced to the model and read by its tool; prices serve them and the run."""
    script = (stream(call("analyze_usage", "{}"), finish("tool_calls")), answer("110", prompt=1000, completion=100))
    async with fake_endpoint(*script) as endpoint:
        prices = {MODEL: {"input": 1.0, "output": 10.0}}
        async with open_session({}, {**settings_for(endpoint), "prices": prices}) as (_, session):
            since = session.position
            ask = Ask(text="How much?", trigger="api", jsonl_logs=LOGS)
            started = await start(session.context, ask, session.identity)
            events = [one async for one in session.events(since, run_id=started.run_id)]
    assert "Usage logs" in endpoint.asked[0].body["messages"][-1]["content"]
    (done,) = [one.message for one in events if isinstance(one.message, ToolCompleted)]
    assert done.results["totals"]["cost"] == pytest.approx(0.0002)
    last = events[-1].message
    assert isinstance(last, AgentCompleted)
    assert last.usage is not None
    assert [one.cost_usd for one in last.usage] == [None, pytest.approx(0.002)]
