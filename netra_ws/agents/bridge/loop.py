"""An asyncio loop that many runs share without knowing of each other, and the thread's work around it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import attrs
import trio

from ..watchdog import BEAT_S, Pulse, find_run
from .belongings import find_owner, make_task
from .post import Post

if TYPE_CHECKING:
    from ..run import Run

logger = logging.getLogger(__name__)

#: Seconds that tasks and generators of nobody have to end when the loop is closed.
CLOSE_S = 1.0

P = ParamSpec("P")
T = TypeVar("T")


class _Threads(ThreadPoolExecutor):
    """The loop's executor: ``asyncio.to_thread`` works in the threads of ``run.thread``, under the same bounds."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        owner = find_owner()
        if owner is None:
            return super().submit(fn, *args, **kwargs)
        return owner.submit(partial(fn, *args, **kwargs))


@attrs.define(eq=False)
class Loop:
    """The loop of a server's bridged agents, for the thread that runs it.

    Made in the server's Trio task; calls can be sent to it from then on, whether it runs already or not.

    Attributes:
        to_asyncio: Into this loop.
        to_trio: Into the server's.
    """

    _pulse: Pulse
    to_asyncio: Post = attrs.field(init=False)
    to_trio: Post = attrs.field(init=False)
    events: asyncio.AbstractEventLoop = attrs.field(init=False)
    _stopping: bool = False
    _nudge: asyncio.Event = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.events = asyncio.new_event_loop()
        self.to_asyncio = Post(self._call_soon)
        self.to_trio = Post(partial(_call_in_trio, trio.lowlevel.current_trio_token()))
        self.events.set_task_factory(make_task)  # type: ignore[arg-type]
        self.events.set_exception_handler(_complain)
        for name in ("subprocess_exec", "subprocess_shell"):
            with contextlib.suppress(AttributeError):  # a loop of another library may not allow it
                setattr(self.events, name, _claiming(getattr(self.events, name)))
        self.events.set_default_executor(_Threads(1, "netra-ws asyncio worker"))
        self._pulse.whose = self._find_run
        self._pulse.waits = self._waits
        self._nudge = asyncio.Event()

    def run(self) -> None:
        """Run the loop until ``stop``; the body of its thread."""
        self._pulse.start()
        living = self.events.create_task(self._live())
        try:
            while not living.done():
                self.events.call_soon(_notice_generators)
                try:
                    # With a task at the root, anyio keeps its worker threads as long as that lives.
                    self.events.run_until_complete(living)
                except BaseException as exc:
                    # SystemExit and KeyboardInterrupt leave the loop from any task. That task has ended by
                    # them, and whoever awaits it is told; the others are not to know.
                    logger.debug("%s left an asyncio task", type(exc).__name__)
        finally:
            self._pulse.stop()
            self.events.close()

    def stop(self) -> None:
        """Have the loop end; from any thread."""
        self.to_asyncio.send(self._stop)

    def _call_soon(self, call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            # In a context of nobody, since it carries calls of many runs.
            self.events.call_soon_threadsafe(call, context=contextvars.Context())

    def _stop(self) -> None:
        self._stopping = True
        self._nudge.set()

    async def _live(self) -> None:
        while not self._stopping:
            self._pulse.beat()
            try:
                async with asyncio.timeout(BEAT_S):
                    await self._nudge.wait()
            except (TimeoutError, asyncio.CancelledError):
                continue  # whoever cancels all tasks there are does not mean this one
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=CLOSE_S)
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.events.shutdown_asyncgens()
        except TimeoutError:
            logger.warning("an async generator that belongs to no run cannot be closed")

    def _waits(self, frame: FrameType | None) -> bool:
        # Late, because the interpreter was somewhere else all the time: in Trio's thread, for example.
        idle = frame is not None and frame.f_globals.get("__name__") == "selectors"
        return idle and asyncio.current_task(self.events) is None

    def _find_run(self, frame: FrameType | None) -> Run | None:
        owner = getattr(asyncio.current_task(self.events), "owner", None)
        return find_run(frame) if owner is None else owner.run


def _claiming(start: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return *start*, a loop's way to start a process, so that what it starts goes with its run."""

    async def start_claimed(*args: Any, env: Mapping[str, str] | None = None, **options: Any) -> Any:
        owner = find_owner()
        if owner is not None:
            env, options = owner.run.processes.claim(env), {**options, "start_new_session": True}
        return await start(*args, env=env, **options)

    return start_claimed


def _call_in_trio(token: trio.lowlevel.TrioToken, call: Callable[[], None]) -> None:
    with contextlib.suppress(trio.RunFinishedError):  # then nobody is there who could mind
        token.run_sync_soon(call)


def _notice_generators() -> None:
    """Have each async generator that is first used in this thread noted with its owner."""
    noticed, finalizer = sys.get_asyncgen_hooks()

    def notice(generator: AsyncGenerator[Any, Any]) -> None:
        owner = find_owner()
        if owner is not None:
            owner.generators.add(generator)
        if noticed is not None:
            noticed(generator)

    sys.set_asyncgen_hooks(notice, finalizer)


def _complain(loop: asyncio.AbstractEventLoop, trouble: dict[str, Any]) -> None:
    """Log what nobody awaits the error of, with its run; the loop's exception handler."""
    source = trouble.get("task") or trouble.get("future")
    # A callback has it in its context, in which this is not called before Python 3.12.
    context = getattr(trouble.get("handle"), "_context", None)
    # From the garbage collector this may be any thread.
    owner = getattr(source, "owner", None) or find_owner(context)
    who = "no run" if owner is None else f"run {owner.run.run_id} of agent {owner.run.agent_name}"
    exc = trouble.get("exception")
    try:
        logger.error("asyncio, %s: %s", who, trouble.get("message"), exc_info=exc)
    except Exception as beyond:  # formatting it runs code of the agent's own class
        logger.error("asyncio, %s: %s that cannot be shown: %s", who, type(exc).__name__, type(beyond).__name__)
