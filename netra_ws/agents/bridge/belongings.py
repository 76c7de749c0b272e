"""What one run has in the asyncio loop, which all bridged runs share: its tasks and its open generators.

asyncio lets a function leave tasks behind; a run leaves none. Each task knows its owner from birth: that
of the task that made it, or the one that its context names, which callbacks and other threads carry along.
When the run's main task has ended, what is left is cancelled, then generators that are still open are
closed, and that again until there is nothing. It is done by callbacks, not by a task of ours: whoever
cancels ``asyncio.all_tasks()`` does not cut it short.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import Future
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from ..run import Run

logger = logging.getLogger(__name__)

#: Whose code is running, where there is no task to ask.
OWNER: ContextVar[Belongings | None] = ContextVar("netra_ws_owner", default=None)


class OwnedTask(asyncio.Task[Any]):
    """A task that knows whose it is, also when nothing else of it is left."""

    owner: Belongings | None = None


def find_owner(context: Context | None = None) -> Belongings | None:
    """Return whose code is running in this thread, or is going to run in *context*."""
    try:
        owner = getattr(asyncio.current_task(), "owner", None)
    except RuntimeError:  # no loop runs in this thread
        owner = None
    if isinstance(owner, Belongings):
        return owner
    return OWNER.get() if context is None else context.get(OWNER)


def make_task(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
    """Make a task of whoever is making it; the loop's task factory."""
    owner = find_owner(options.get("context"))
    task = OwnedTask(coro, loop=loop, **options)
    task.owner = owner
    if owner is not None:
        owner.add(task)
    return task


@attrs.define(eq=False, repr=False)
class Belongings:
    """The tasks and generators of one run; lives in the loop's thread.

    Attributes:
        run: Whose they are.
        submit: Has blocking code run in a worker thread of the run.
        on_gone: Called once, when the main task has ended and nothing is left.
    """

    run: Run
    submit: Callable[[Callable[[], Any]], Future[Any]]
    on_gone: Callable[[], None]
    tasks: set[asyncio.Task[Any]] = attrs.field(factory=set)
    generators: weakref.WeakSet[AsyncGenerator[Any, Any]] = attrs.field(factory=weakref.WeakSet)
    _context: Context = attrs.field(init=False)
    _main: asyncio.Task[Any] | None = None
    #: Those that the end waits for before it looks again.
    _awaited: set[asyncio.Task[Any]] = attrs.field(factory=set)
    _gone: bool = False

    def __repr__(self) -> str:
        return f"<{len(self.tasks)} tasks of {self.run!r}>"

    def start(self, main: Coroutine[Any, Any, Any], context: Context) -> None:
        """Start the task whose end is the beginning of the run's end."""
        self._context = context
        context.run(OWNER.set, self)
        name = f"{self.run.agent_name} {self.run.run_id}"
        self._main = asyncio.get_running_loop().create_task(main, context=context, name=name)

    def add(self, task: asyncio.Task[Any]) -> None:
        """Take a new task in."""
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """Cancel the main task, which cancels what it waits for; behind its end, everything that is left."""
        if self._main is not None and not self._main.done():
            self._main.cancel()
        else:
            self._cancel_left()

    def _cancel_left(self) -> None:
        self._awaited = set(self.tasks)
        for task in self._awaited:
            task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        self._awaited.discard(task)
        if self._main is not None and self._main.done() and not self._awaited:
            self._sweep()

    def _sweep(self) -> None:
        # Each task is cancelled once, not again and again: what it does then may be its orderly end, for
        # which it may need new tasks. Those are looked at when the ones before have gone.
        if self.tasks:
            logger.info("run %s left %d asyncio tasks behind; they are cancelled", self.run.run_id, len(self.tasks))
            self._cancel_left()
        elif self.generators:
            self._close_generators()
        else:
            # Once more behind what the loop has to do already: it may be a dropped generator's closing.
            asyncio.get_running_loop().call_soon(self._check_gone)

    def _close_generators(self) -> None:
        loop = asyncio.get_running_loop()
        for generator in list(self.generators):
            self._awaited.add(loop.create_task(_close(generator), context=self._context))
        self.generators.clear()

    def _check_gone(self) -> None:
        if self.tasks or self.generators:
            if not self._awaited:
                self._sweep()
        elif not self._gone:
            self._gone = True
            self.on_gone()


async def _close(generator: AsyncGenerator[Any, Any]) -> None:
    try:
        await generator.aclose()
    except RuntimeError:
        # Its own closing is under way, as part of another one's; or it yields once more, which asyncio
        # cannot help, either.
        logger.debug("an async generator cannot be closed", exc_info=True)
