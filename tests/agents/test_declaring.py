"""What a declaration says when it cannot be one."""

from __future__ import annotations

from typing import Any

import pytest

from netra_ws import ConfigError, Run, ToolCall, tool
from netra_ws.agents.bridge.asyncio_run import AsyncioRun


async def maybe(run: Run | None, n: int) -> int:
    return n


async def bridged(run: AsyncioRun, n: int) -> int:
    return n


async def late(n: int, call: ToolCall | None = None) -> int:
    return n


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (maybe, "tool maybe: run: annotate it Run, and nothing else"),
        (bridged, "tool bridged: run: annotate it Run, and nothing else"),
        (late, "tool late: call: annotate it ToolCall, and nothing else"),
    ],
)
def test_a_run_that_is_annotated_as_something_else(function: Any, words: str) -> None:
    """A parameter that is meant to get the run or the call, but is annotated otherwise, is told how to be."""
    with pytest.raises(ConfigError, match=words):
        tool(function)


def test_a_run_that_is_not_imported() -> None:
    """A name that is not to be found is named, and when it is the run's, so is where it comes from."""
    space: dict[str, Any] = {}
    exec("async def f(run: 'Run', n: int) -> int: return n", space)
    with pytest.raises(ConfigError, match=r"name 'Run' is not defined; .*annotate it Run, as imported from netra_ws"):
        tool(space["f"])
