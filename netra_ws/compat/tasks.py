"""Background tasks that are started again when they fail: tasks of one nursery, which the manager's block opens.

There is no sweep and no watcher: a task that fails waits and starts itself again, and after too many failures
the log says that somebody must look.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import trio

from netra_ws.errors import InvalidArgument, LimitReached, ManagerClosed

from .arguments import checked_text
from .policy import ManagerPolicy

logger = logging.getLogger(__name__)

Work = Callable[..., Awaitable[object]]


@attrs.define(eq=False)
class MonitoredTask:
    """One task under its name.

    Attributes:
        failures: How often it has failed.
        last_failure: The error of the last time, shortened.
        cancelled: Whether it was stopped.
        given_up: Whether it has failed too often.
    """

    name: str
    work: Work
    args: tuple[object, ...]
    failures: int = 0
    last_failure: str | None = None
    cancelled: bool = False
    given_up: bool = False
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ended: trio.Event = attrs.field(factory=trio.Event)

    @property
    def running(self) -> bool:
        """Whether it goes on, or waits to start again."""
        return not self.ended.is_set()

    def status(self) -> dict[str, Any]:
        """Return what is known of it."""
        return {
            "running": self.running,
            "cancelled": self.cancelled,
            "exception": self.last_failure if self.given_up else None,
            "failure_count": self.failures,
            "last_failure": self.last_failure,
        }


@attrs.define(eq=False)
class MonitoredTasks:
    """The tasks of one manager; names are remembered until there are too many, those that run always.

    Attributes:
        enabled: Whether tasks may be started.
        restarts: How often a task was started again.
    """

    policy: ManagerPolicy
    enabled: bool = True
    restarts: int = 0
    _tasks: dict[str, MonitoredTask] = attrs.field(factory=dict)
    _nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def open(self, *beside: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
        """Open the nursery of the tasks; leaving the block cancels them and waits for them.

        Args:
            beside: What else runs within the block; not one of the tasks that a program sees.

        What the block raises is raised outside the nursery: nobody has to look into a group.
        """
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for work in beside:
                nursery.start_soon(work)
            try:
                yield
            except Exception as exc:
                failure = exc
            finally:
                self._nursery = None
                for task in self._tasks.values():
                    task.cancelled |= task.running
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def beside(self, work: Callable[[], Awaitable[object]]) -> None:
        """Let something else run, too, until the block is left.

        Raises:
            ManagerClosed: The manager is not inside ``async with``.
        """
        contextvars.Context().run(self._check_open().start_soon, work)

    def cancel(self) -> None:
        """Cancel every task, without waiting."""
        for task in self._tasks.values():
            if task.running:
                task.cancelled = True
                task.scope.cancel()

    async def start(self, name: str, work: Work, *args: object) -> str:
        """Start ``work(*args)`` under a name, and again when it fails; one of that name ends first.

        Returns:
            The name; "" while monitoring is switched off.

        Raises:
            InvalidArgument: *name* is no name, or *work* cannot be called.
            LimitReached: So many tasks are running.
            ManagerClosed: The manager is not inside ``async with``.
        """
        checked_text(name, "name")
        if not callable(work):
            raise InvalidArgument("func", f"expected an async function, got {type(work).__name__}")
        if not self.enabled:
            await trio.lowlevel.checkpoint()
            return ""
        self._check_open()
        await self.stop(name)
        nursery = self._check_open()
        self._tasks.pop(name, None)
        self._make_room()
        task = self._tasks[name] = MonitoredTask(name, work, args)
        # In a fresh context: variables of whoever starts it would reach the task, and stay in it.
        contextvars.Context().run(nursery.start_soon, partial(self._carry, task))
        return name

    def _check_open(self) -> trio.Nursery:
        if self._nursery is None:
            raise ManagerClosed("background tasks live inside `async with manager:`")
        return self._nursery

    def _make_room(self) -> None:
        if len(self._tasks) < self.policy.max_tasks:
            return
        ended = next((name for name, task in self._tasks.items() if not task.running), None)
        if ended is None:
            raise LimitReached("background tasks", self.policy.max_tasks)
        del self._tasks[ended]

    async def _carry(self, task: MonitoredTask) -> None:
        try:
            with task.scope:
                while not await self._try(task):
                    delay_s = self.policy.first_delay_s * 2 ** min(task.failures - 1, 30)
                    await trio.sleep(min(delay_s, self.policy.longest_delay_s))
                    self.restarts += 1
        finally:
            task.ended.set()

    async def _try(self, task: MonitoredTask) -> bool:
        """Run it once; return whether that was the last time."""
        try:
            await task.work(*task.args)
        except Exception as exc:  # the task's own crash wall: the manager and the other tasks go on
            task.failures += 1
            task.last_failure = f"{type(exc).__name__}: {exc}"[:1000]
            task.given_up = task.failures >= self.policy.max_task_failures
            if task.given_up:
                logger.exception(
                    "a background task has failed for the last time; somebody must look task=%s failures=%d",
                    task.name,
                    task.failures,
                )
            else:
                logger.warning("a background task failed and starts again task=%s: %r", task.name, exc)
            return task.given_up
        return True

    async def stop(self, name: str) -> bool:
        """Cancel a task and wait until it has ended; return whether one of that name was running."""
        checked_text(name, "name")
        await trio.lowlevel.checkpoint()
        task = self._tasks.get(name)
        if task is None or not task.running:
            return False
        task.cancelled = True
        task.scope.cancel()
        await task.ended.wait()
        return True

    async def switch_off(self) -> None:
        """Cancel all tasks, wait for them, and start no more."""
        self.enabled = False
        self.cancel()
        await trio.lowlevel.checkpoint()
        for task in list(self._tasks.values()):
            await task.ended.wait()

    async def switch_on(self, *, restart_previous: bool = True) -> int:
        """Let tasks be started again, and start those that were cancelled; return how many."""
        self.enabled = True
        again = [task for task in self._tasks.values() if restart_previous and task.cancelled and not task.running]
        await trio.lowlevel.checkpoint()
        for task in again:
            await self.start(task.name, task.work, *task.args)
        return len(again)

    def status(self) -> dict[str, Any]:
        """Return how many there are and how each does."""
        tasks = {name: task.status() for name, task in self._tasks.items()}
        return {
            "monitoring_enabled": self.enabled,
            "total_tasks": len(tasks),
            "running_tasks": sum(task["running"] for task in tasks.values()),
            "failed_tasks": sum(task.given_up for task in self._tasks.values()),
            "tasks": tasks,
        }

    def health(self) -> dict[str, Any]:
        """Return how many do well, how many were given up, and how often one was started again."""
        return {
            "healthy_tasks": sum(not task.given_up for task in self._tasks.values()),
            "unhealthy_tasks": sum(task.given_up for task in self._tasks.values()),
            "restarted_tasks": self.restarts,
            "failed_restarts": sum(task.failures - 1 for task in self._tasks.values() if task.given_up),
        }
