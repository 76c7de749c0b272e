"""Makes an asyncio function an agent."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ..agent import check_agent
from .asyncio_run import AsyncioRun
from .crossing import Crossing

if TYPE_CHECKING:
    from ..run import Run


class BridgedAgent:
    """An agent whose code runs in the server's asyncio loop, beside those of all bridged agents."""

    def __init__(self, function: Callable[[AsyncioRun], Awaitable[Any]]) -> None:
        self._function = function
        functools.update_wrapper(self, function, updated=())

    def __repr__(self) -> str:
        return f"<bridged {self._function!r}>"

    async def __call__(self, run: Run) -> Any:
        """Run the function until nothing of it is left.

        *Cancellation:* its asyncio task is cancelled and waited for.
        """
        crossing = Crossing(run, run.policy.asyncio.open())
        bridged = AsyncioRun(run, crossing)
        return await crossing.carry(lambda: self._function(bridged))


def bridge(function: Callable[[AsyncioRun], Awaitable[Any]]) -> BridgedAgent:
    """Make an asyncio function of one argument, an ``AsyncioRun``, an agent; also as ``@netra_ws.bridge``.

    For code that needs asyncio: pydantic-ai, LangGraph, openai-agents and others. It runs in a thread of its
    own, one for all bridged agents of a server, so it must not block: blocking code goes through
    ``asyncio.to_thread``. What it leaves behind, tasks and open async generators, ends with its run.

    Args:
        function: An async function, or an object with an async ``__call__``.

    Raises:
        ConfigError: It is not callable as an async function of one argument.
    """
    check_agent(getattr(function, "__name__", type(function).__name__), function)
    return BridgedAgent(function)
