"""Progress of a call, from an MCP server that tells it as often as it likes."""

from __future__ import annotations

import math

import attrs
import trio

from netra_ws.errors import AgentError, RunClosed

from ..tools import ToolCall
from .servers import McpServer
from .wire import MAX_WORDS

#: Seconds between two progress events of one call; of what comes in between, the latest stays.
EVERY_S = 0.1


@attrs.define(eq=False)
class Progress:
    """Tells a call's progress; a server's flood is neither a run's quota of events nor a queue.

    Attributes:
        over: Whether the call is answered: nothing is told of it any more.
    """

    server: McpServer
    call: ToolCall
    over: bool = False
    _latest: tuple[float | None, str | None] | None = None
    _telling: bool = False

    async def note(self, progress: float, total: float | None, message: str | None) -> None:
        """Take what the server says; called in a task of the library for each of its notifications."""
        told = None if message is None else self.server.masked(message[:MAX_WORDS])
        self._latest = (fraction(progress, total), told)
        if self._telling:
            return
        self._telling = True
        try:
            while self._latest is not None and not self.over:
                latest, self._latest = self._latest, None
                await self.call.progress(*latest)
                await trio.sleep(EVERY_S)
        except (RunClosed, AgentError):
            self.over = True  # the run hears of it where it is spoken to itself
        finally:
            self._telling = False


def fraction(progress: float, total: float | None) -> float | None:
    """Return how far a call is, 0 to 1, or None where the server does not say of how much."""
    if total is None or not math.isfinite(progress) or not math.isfinite(total) or total <= 0:
        return None
    return min(1.0, max(0.0, progress / total))
