"""Background tasks of the older manager: they start again, end with the block, and never hurt anybody."""

from __future__ import annotations

import contextvars
import logging
from typing import Any

import pytest
import trio

from netra_ws.compat.manager import UnifiedWebSocketManager
from netra_ws.compat.policy import ManagerPolicy
from netra_ws.errors import InvalidArgument, LimitReached, ManagerClosed


async def test_a_task_runs_until_its_end() -> None:
    """A task gets its arguments, runs, and is known to have ended; it is not started again."""
    done: list[int] = []

    async def work(a: int, b: int) -> None:
        done.append(a + b)

    async with UnifiedWebSocketManager() as manager:
        assert await manager.start_monitored_background_task("sum", work, 1, 2) == "sum"
        await trio.testing.wait_all_tasks_blocked()
        status = manager.get_background_task_status()
    assert done == [3]
    assert (status["total_tasks"], status["running_tasks"], status["failed_tasks"]) == (1, 0, 0)
    assert status["tasks"]["sum"] == {
        "running": False,
        "cancelled": False,
        "exception": None,
        "failure_count": 0,
        "last_failure": None,
    }


async def test_a_task_that_fails_starts_again(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing task starts again after one second, then two, and is given up the third time; the log says so."""
    began = trio.current_time()
    at: list[float] = []

    async def work() -> None:
        at.append(trio.current_time() - began)
        raise ValueError("odd")

    async with UnifiedWebSocketManager() as manager:
        await manager.start_monitored_background_task("bad", work)
        await trio.sleep(100)
        status = manager.get_background_task_status()
        health = await manager.health_check_background_tasks()
        assert manager.get_health_status()["status"] == "degraded"
    assert at == pytest.approx([0, 1, 3])
    assert (status["running_tasks"], status["failed_tasks"]) == (0, 1)
    assert status["tasks"]["bad"]["exception"] == "ValueError: odd"
    assert status["tasks"]["bad"]["failure_count"] == 3
    assert health == {"healthy_tasks": 0, "unhealthy_tasks": 1, "restarted_tasks": 2, "failed_restarts": 2}
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.WARNING, logging.ERROR]


async def test_a_failing_task_hurts_nobody(autojump_clock: trio.testing.MockClock) -> None:
    """Other tasks, and the block, go on while a task fails; also when it fails with a group."""
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await trio.sleep(1)
            beats += 1

    async def work() -> None:
        raise ExceptionGroup("", [ValueError(), KeyError()])

    async with UnifiedWebSocketManager() as manager:
        await manager.start_monitored_background_task("beat", beat)
        await manager.start_monitored_background_task("bad", work)
        await trio.sleep(10.5)
    assert beats == 10


async def test_a_task_that_recovers_is_well(autojump_clock: trio.testing.MockClock) -> None:
    """A task that fails once and then works has ended well, and its failure is remembered."""
    tries = 0

    async def work() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ValueError("once")

    async with UnifiedWebSocketManager() as manager:
        await manager.start_monitored_background_task("a", work)
        await trio.sleep(5)
        told = manager.get_background_task_status()["tasks"]["a"]
    assert tries == 2
    assert (told["running"], told["exception"], told["last_failure"]) == (False, None, "ValueError: once")


async def test_the_same_name_replaces() -> None:
    """A task under a name that is taken starts when the one before has ended."""
    order: list[str] = []

    async def work(name: str) -> None:
        order.append(f"{name} begins")
        try:
            await trio.sleep_forever()
        finally:
            order.append(f"{name} ends")

    async with UnifiedWebSocketManager() as manager:
        for name in ("one", "two"):
            await manager.start_monitored_background_task("a", work, name)
            await trio.testing.wait_all_tasks_blocked()
        assert manager.get_background_task_status()["total_tasks"] == 1
    assert order == ["one begins", "one ends", "two begins", "two ends"]


async def test_stopping_waits_for_the_end() -> None:
    """Stopping a task is done when it has ended; what is not running is not stopped."""
    async with UnifiedWebSocketManager() as manager:
        await manager.start_monitored_background_task("a", trio.sleep_forever)
        assert await manager.stop_background_task("a")
        told = manager.get_background_task_status()["tasks"]["a"]
        assert (told["running"], told["cancelled"]) == (False, True)
        assert not await manager.stop_background_task("a")
        assert not await manager.stop_background_task("b")


async def test_the_block_ends_them_all() -> None:
    """Leaving the block cancels every task and waits for it; none is left."""
    before = trio.lowlevel.current_statistics().tasks_living
    ended = 0

    async def work() -> None:
        nonlocal ended
        try:
            await trio.sleep_forever()
        finally:
            ended += 1

    async with UnifiedWebSocketManager() as manager:
        for number in range(10):
            await manager.start_monitored_background_task(f"t{number}", work)
        await trio.testing.wait_all_tasks_blocked()
    assert ended == 10
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_closing_inside_the_block_ends_them() -> None:
    """Closing a manager from inside its block cancels its tasks at once."""
    async with UnifiedWebSocketManager() as manager:
        await manager.start_monitored_background_task("a", trio.sleep_forever)
        manager.close()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ManagerClosed):
            manager.get_background_task_status()


async def test_there_is_no_task_outside_the_block() -> None:
    """Without ``async with`` no task is started, and the error says why."""
    manager = UnifiedWebSocketManager()
    with pytest.raises(ManagerClosed, match="async with"):
        await manager.start_monitored_background_task("a", trio.sleep_forever)
    assert manager.get_background_task_status()["total_tasks"] == 0


async def test_tasks_are_bounded() -> None:
    """So many tasks run at most; the names of those that have ended give way to new ones."""
    async with UnifiedWebSocketManager(ManagerPolicy(max_tasks=2)) as manager:
        for name in ("a", "b"):
            await manager.start_monitored_background_task(name, trio.sleep_forever)
        with pytest.raises(LimitReached, match="background tasks"):
            await manager.start_monitored_background_task("c", trio.sleep_forever)
        await manager.start_monitored_background_task("a", trio.sleep_forever)
        await manager.stop_background_task("b")
        await manager.start_monitored_background_task("c", trio.sleep_forever)
        assert set(manager.get_background_task_status()["tasks"]) == {"a", "c"}


async def test_switching_off_and_on() -> None:
    """While monitoring is off nothing runs and nothing starts; what ran starts again with it, unless not wanted."""
    async with UnifiedWebSocketManager() as manager:
        await manager.start_monitored_background_task("a", trio.sleep_forever)
        await manager.shutdown_background_monitoring()
        assert manager.get_background_task_status()["running_tasks"] == 0
        assert await manager.start_monitored_background_task("b", trio.sleep_forever) == ""
        assert await manager.enable_background_monitoring() == 1
        assert manager.get_background_task_status()["running_tasks"] == 1
        await manager.shutdown_background_monitoring()
        assert await manager.enable_background_monitoring(restart_previous=False) == 0
        assert manager.get_background_task_status()["running_tasks"] == 0


async def test_a_task_has_its_own_variables() -> None:
    """A task does not see the contextvars of whoever has started it."""
    whose = contextvars.ContextVar("whose", default="nobody")
    seen: list[str] = []

    async def work() -> None:
        seen.append(whose.get())

    async with UnifiedWebSocketManager() as manager:
        whose.set("ada")
        await manager.start_monitored_background_task("a", work)
        await trio.testing.wait_all_tasks_blocked()
    assert seen == ["nobody"]


@pytest.mark.parametrize(("argument", "name", "work"), [("name", "", trio.sleep), ("func", "a", None)])
async def test_what_is_no_task_is_refused(argument: str, name: str, work: Any) -> None:
    """A task needs a name and a function; the error names what is wrong."""
    async with UnifiedWebSocketManager() as manager:
        with pytest.raises(InvalidArgument) as caught:
            await manager.start_monitored_background_task(name, work)
        assert caught.value.argument == argument
