"""A tool block of the asyncio side, held open on Trio's side: a pair of events with code of another thread between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio

from ..failures import find_agent_error, leaves
from .crossing import Crossing

if TYPE_CHECKING:
    from ..run import Run
    from ..tools import ToolCall


class BlockFailed(Exception):
    """The block was left by an error that is not for its user's eyes."""


class BlockCancelled(Exception):
    """The block was left by a cancellation, or not at all."""


@attrs.define(eq=False)
class Block:
    """What is between ``tool_executing`` and ``tool_completed``; made by the asyncio side, held by Trio's.

    Attributes:
        call: Trio's side of it, once it is open.
    """

    run: Run
    name: str
    parameters: Mapping[str, Any]
    timeout_s: float | None
    call: ToolCall | None = None
    _results: Any = None
    _verdict: Exception | None = attrs.field(factory=BlockCancelled)
    _error: Exception | None = None
    _left: trio.Event = attrs.field(factory=trio.Event)
    _closed: trio.Event = attrs.field(factory=trio.Event)

    async def hold(self, opened: Callable[[], None]) -> None:
        """Open the tool, call *opened*, and keep it open until the block is left."""
        try:
            with trio.CancelScope() as dropped:
                async with self.run.tool(self.name, self.parameters, timeout_s=self.timeout_s) as self.call:
                    opened()
                    # Shielded, also from the tool's own timeout: the asyncio side sees to both.
                    with trio.CancelScope(shield=True):
                        await self._left.wait()
                    self.call.results = self._results
                    if isinstance(self._verdict, BlockCancelled):
                        dropped.cancel()
                        await trio.lowlevel.checkpoint()
                    if self._verdict is not None:
                        raise self._verdict
        except Exception as exc:
            if self.call is None:
                raise
            self._error = exc if exc is not self._verdict else None
        finally:
            self._closed.set()

    async def leave(self, results: Any, verdict: Exception | None) -> None:
        """Close the tool, and wait until that is told.

        Raises:
            EventTooLarge: The results are.
        """
        self._results, self._verdict = results, verdict
        trace = None if verdict is None else verdict.__traceback__
        self._left.set()
        await self._closed.wait()
        if verdict is not None:
            verdict.__traceback__ = trace  # raised here, too, which is nothing to show
        if self._error is not None:
            raise self._error

    def drop(self) -> None:
        """Close the tool as cancelled, unless it is closed; nobody leaves it any more."""
        self._left.set()


@attrs.define(eq=False)
class AsyncioToolCall:
    """What a bridged agent holds between ``tool_executing`` and ``tool_completed``.

    Attributes:
        tool_call_id: The id of both events.
        name: The tool's.
        results: Any JSON value; told when the block is left.
    """

    tool_call_id: str = attrs.field(on_setattr=attrs.setters.frozen)
    name: str = attrs.field(on_setattr=attrs.setters.frozen)
    _call: ToolCall
    _crossing: Crossing
    results: Any = None

    async def progress(self, progress: float | None, message: str | None = None) -> None:
        """Tell how far the tool is, 0 to 1; not stored."""
        await self._crossing.call(lambda: self._call.progress(progress, message))


def verdict_on(exc: BaseException, *, late: bool) -> Exception:
    """Return what Trio's side raises in the tool for what has left the block; *late* is the tool's own timeout."""
    if late:
        return trio.TooSlowError()
    if isinstance(exc, GeneratorExit) or any(isinstance(each, asyncio.CancelledError) for each in leaves(exc)):
        return BlockCancelled()
    return find_agent_error(exc) or BlockFailed()
