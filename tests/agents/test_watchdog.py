"""Blocking code in an agent is found and named."""

from __future__ import annotations

import logging
import sys
import time
import weakref

import pytest

from netra_ws import Run
from netra_ws.agents.watchdog import find_run
from netra_ws.testing import check_run, open_session


async def test_a_stall_names_run_and_stack(caplog: pytest.LogCaptureFixture) -> None:
    """When an agent blocks the loop, the log names the run and the line, once; the run goes on afterwards."""
    caplog.set_level(logging.WARNING, "netra_ws.agents.watchdog")

    async def blocks(run: Run) -> str:
        await run.think("about to block")
        time.sleep(0.6)  # what nobody should do
        return "done"

    async with open_session({"blocks": blocks}) as (_, session):
        run = await session.start("x", agent="blocks")
        last = check_run([event async for event in run])
    assert last.status == "success"
    told = [record.getMessage() for record in caplog.records if "has not moved" in record.getMessage()]
    assert len(told) == 1
    assert run.run_id in told[0]
    assert "what nobody should do" in told[0]


async def test_a_quick_loop_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Short work between checkpoints is no stall."""
    async with open_session({}) as (_, session):
        await (await session.start("x", agent="echo")).result()
    assert not [record for record in caplog.records if "has not moved" in record.getMessage()]


def test_looking_keeps_nothing_alive() -> None:
    """What a function lets go after the watchdog looked at it is gone, however long the function goes on."""

    class Large:
        pass

    large = Large()
    gone = weakref.ref(large)
    assert find_run(sys._getframe()) is None
    del large
    assert gone() is None
