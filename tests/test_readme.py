"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import netra_ws
from netra_ws.agents.agent import load_agent
from netra_ws.testing import check_run, open_session, run_agent
from netra_ws.testing.running import make_settings

from .agents.llm.endpoint import KEY, MODEL, answer, call, fake_endpoint, finish, stream

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def my_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The complete file of "Your agent in ten minutes", importable."""
    (code,) = re.findall(r"```python\n(# my_agents\.py\n.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "my_agents.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_agents"
    sys.modules.pop("my_agents", None)


async def test_trio_code(my_agents: str) -> None:
    """The agent of Trio code finds the order, asks, and tells."""
    _, support = load_agent(f"{my_agents}:support")
    events = await run_agent(support, "4711", answers=["yes"])
    assert check_run(events).final_response == "Order 4711 is on its way."
    calls = [e.fields["tool_name"] for e in events if e.type == "tool_completed"]
    assert calls == ["find_order", "cancel"]


async def test_asyncio_code(my_agents: str) -> None:
    """The agent of asyncio code streams through the bridge."""
    _, summarise = load_agent(f"{my_agents}:summarise")
    assert check_run(await run_agent(summarise, "one two three four")).final_response == "one two three "


async def test_a_model_endpoint(my_agents: str) -> None:
    """The model of the settings is asked with the file's tool."""
    _, clerk = load_agent(f"{my_agents}:clerk")
    asks = stream(call("find_order", '{"order_id": "7"}'), finish("tool_calls"))
    async with fake_endpoint(asks, answer("Soon.")) as end:
        model = {"llm.base_url": end.url, "llm.model": MODEL, "llm.api_key": KEY}
        async with open_session({"clerk": clerk}, model) as (_, session):
            run = await session.start("Where is 7?", agent="clerk")
            assert (await run.result()).final_response == "Soon."
        assert '"state":"on its way"' in end.asked[1].body["messages"][-1]["content"]


async def test_the_others(my_agents: str) -> None:
    """The agents of the file work beside each other in one server, and one delegates to another."""
    agents = dict(load_agent(f"{my_agents}:{name}") for name in ("support", "summarise", "clerk"))

    async def both(run: netra_ws.Run) -> str:
        return str(await run.delegate("summarise", run.text))

    async with (
        netra_ws.open_server(make_settings(), agents={**agents, "both": both}) as server,
        server.context_for(netra_ws.Identity("alice")) as context,
    ):
        with trio.fail_after(30):
            assert (await (await context.start("a b c d", agent="both")).result()).final_response == "a b c "
            last = await (await context.start("x", agent="clerk")).result()
        assert (last.status, last.error and last.error.code) == ("error", "LLM_UNAVAILABLE")


def test_names() -> None:
    """Every public name that the README writes with its module is there."""
    for name in set(re.findall(r"netra_ws\.([A-Za-z_]+)\b(?!:)", README.read_text())) - {
        "testing",
        "logs",
        "toml",
        "compat",
    }:
        assert hasattr(netra_ws, name), name
