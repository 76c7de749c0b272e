"""A tool call: one named piece of work of a run, and how its end is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio

from netra_ws.protocol.events import ErrorText, ToolStatus

from .failures import find_agent_error, leaves, wording

#: What a user reads when a tool failed with an exception that was not meant for them.
FAILED = ErrorText(code="TOOL_FAILED", message="the tool failed")


@attrs.define(eq=False)
class ToolCall:
    """What an agent holds between ``tool_executing`` and ``tool_completed``.

    Attributes:
        results: Any JSON value; told when the block is left.
    """

    # Frozen: the end of the pair is written from them.
    tool_call_id: str = attrs.field(on_setattr=attrs.setters.frozen)
    name: str = attrs.field(on_setattr=attrs.setters.frozen)
    _report: Callable[[ToolCall, float | None, str | None], Awaitable[None]]
    results: Any = None
    started_at: float = attrs.field(factory=trio.current_time, on_setattr=attrs.setters.frozen)

    async def progress(self, progress: float | None, message: str | None = None) -> None:
        """Tell how far the tool is, 0 to 1; not stored."""
        await self._report(self, progress, message)


def judge(exc: BaseException, *, stopping: bool) -> tuple[ToolStatus, ErrorText | None]:
    """Turn what left a tool's block into the status and error that its user is told.

    Args:
        exc: The exception, perhaps a group.
        stopping: Whether the run is being cancelled; a group then counts as cancelled whatever else is in it.
    """
    cancelled = any(isinstance(each, trio.Cancelled) for each in leaves(exc))
    if isinstance(exc, trio.Cancelled) or (cancelled and stopping):
        return "cancelled", None
    if isinstance(exc, trio.TooSlowError):
        return "timeout", ErrorText(code="TOOL_TIMEOUT", message="the tool took too long")
    told = find_agent_error(exc)
    if told is not None:
        code, text, _ = wording(told)
        return "error", ErrorText(code=code, message=text)
    return "error", FAILED
