"""How agents come to be known: in code, by module and attribute, by entry point."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest

from netra_ws import ConfigError, Run, tool
from netra_ws.agents.agent import check_agent, collect_agents, load_agent


async def good(run: Run) -> None:
    """An agent."""


class Callable:
    async def __call__(self, run: Run) -> None:
        """An agent as an object."""


async def with_options(option: int, run: Run) -> None:
    """An agent that is configured first."""


@pytest.mark.parametrize("agent", [good, Callable(), functools.partial(with_options, 3)])
def test_what_can_be_an_agent(agent: Any) -> None:
    """An async function, an object with an async __call__, and a partial of one of them are agents."""
    assert check_agent("a", agent) is agent


async def with_a_run(run: Run, number: int = 0) -> None: ...


def not_async(run: Run) -> None: ...


async def no_argument() -> None: ...


async def two_arguments(run: Run, more: int) -> None: ...


def test_two_agents_of_one_name(module: str) -> None:
    """Two modules that give agents of the same name are refused; an alias tells them apart."""
    with pytest.raises(ConfigError, match="agent one: both"):
        collect_agents({}, [f"{module}:one", f"one={module}:holder.two"], {})
    assert {"one", "other"} <= collect_agents({}, [f"{module}:one", f"other={module}:holder.two"], {}).keys()


def test_a_tool_is_no_agent() -> None:
    """A tool in an agent's place is refused when the server starts, with a word on where it belongs."""
    with pytest.raises(ConfigError, match="this is a tool"):
        check_agent("a", tool(with_a_run))


@pytest.mark.parametrize("agent", [not_async, no_argument, two_arguments, Callable, 5, None, "text", lambda run: None])
def test_what_cannot(agent: Any) -> None:
    """Anything else is refused when the server starts, with one line that names the agent."""
    with pytest.raises(ConfigError, match=r"^agent a: expected") as error:
        check_agent("a", agent)
    assert "\n" not in str(error.value)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of somebody's own, importable."""
    (tmp_path / "my_agents.py").write_text(
        "async def one(run): return 1\nclass holder:\n    @staticmethod\n    async def two(run): return 2\nnumber = 5\n"
    )
    (tmp_path / "broken_agents.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_agents"
    for name in ("my_agents", "broken_agents"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("spec", "name"), [("my_agents:one", "one"), ("alias=my_agents:one", "alias"), ("my_agents:holder.two", "two")]
)
def test_by_module(module: str, spec: str, name: str) -> None:
    """module:attribute is known by the attribute's name, alias=module:attribute by the alias."""
    assert load_agent(spec)[0] == name


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("my_agents", "expected module:attribute"),
        ("my_agents:", "expected module:attribute"),
        (":one", "expected module:attribute"),
        ("no_such_module:one", "cannot import no_such_module"),
        ("broken_agents:one", "cannot import broken_agents"),
        ("my_agents:nothing", "has no attribute nothing"),
        ("my_agents:number", "expected an async function"),
    ],
)
def test_by_module_refused(module: str, spec: str, said: str) -> None:
    """A module or attribute that is not there, or no agent, is one clear line."""
    with pytest.raises(ConfigError, match=said):
        load_agent(spec)


def test_later_sources_win(module: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Code beats modules beats entry points beats built-ins; a broken entry point is logged and left out."""
    points = [
        importlib.metadata.EntryPoint("builtin", "my_agents:one", "netra_ws.agents"),
        importlib.metadata.EntryPoint("two", "my_agents:holder.two", "netra_ws.agents"),
        importlib.metadata.EntryPoint("bad", "broken_agents:x", "netra_ws.agents"),
    ]
    monkeypatch.setattr("netra_ws.agents.agent.entry_points", lambda group: points)
    agents = collect_agents({"builtin": good, "plain": good}, ["two=my_agents:one"], {"plain": Callable()})
    import my_agents  # type: ignore[import-not-found]

    assert agents["builtin"] is my_agents.one
    assert agents["two"] is my_agents.one
    assert isinstance(agents["plain"], Callable)
    assert "bad" not in agents
    assert "entry point bad" in caplog.text
