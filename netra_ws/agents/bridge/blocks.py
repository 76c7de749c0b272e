"""A tool block of the asyncio side, held open on Trio's side: a pair of events with code of another thread between."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio

from ..failures import find_agent_error, leaves

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
        context: The variables of that side, once it is open.
        interrupt: Ends the block because its time is over; called on Trio's side, which has the clock.
    """

    run: Run
    name: str
    parameters: Mapping[str, Any]
    timeout_s: float | None
    call: ToolCall | None = None
    context: contextvars.Context = attrs.field(factory=contextvars.Context)
    interrupt: Callable[[], None] = lambda: None
    _results: Any = None
    _verdict: Exception | None = attrs.field(factory=BlockCancelled)
    _error: Exception | None = None
    _left: trio.Event = attrs.field(factory=trio.Event)
    _closed: trio.Event = attrs.field(factory=trio.Event)

    async def hold(self, opened: Callable[[], None]) -> None:
        """Open the tool, call *opened*, and keep it open until the block is left."""
        try:
            with trio.CancelScope() as dropped:
                async with self.run.tool(self.name, self.parameters, timeout_s=self.timeout_s) as call:
                    self.call, self.context = call, contextvars.copy_context()
                    opened()
                    await self._until_left(call)
                    call.results = self._results
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

    async def _until_left(self, call: ToolCall) -> None:
        try:
            await self._left.wait()
        finally:
            if call.scope.cancel_called:
                self.interrupt()
            # The asyncio side is cancelled then, and waited for: its code is in the block until it leaves.
            with trio.CancelScope(shield=True):
                await self._left.wait()

    async def leave(self, results: Any, verdict: Exception | None) -> None:
        """Close the tool, and wait until that is told.

        Raises:
            EventTooLarge: The results are.
            TooSlowError: The time was over before.
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


def verdict_on(exc: BaseException) -> Exception:
    """Return what Trio's side raises in the tool for what has left the block."""
    if isinstance(exc, GeneratorExit) or any(isinstance(each, asyncio.CancelledError) for each in leaves(exc)):
        return BlockCancelled()
    return find_agent_error(exc) or BlockFailed()


@contextlib.contextmanager
def variables_of(context: contextvars.Context) -> Iterator[None]:
    """Have the variables of *context* here, such as the current call and a tracer's current span."""
    missing = object()
    tokens = [
        (variable, variable.set(value)) for variable, value in context.items() if variable.get(missing) is not value
    ]
    try:
        yield
    finally:
        for variable, token in reversed(tokens):
            with contextlib.suppress(ValueError):  # a dropped generator is ended elsewhere
                variable.reset(token)
