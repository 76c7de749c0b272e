"""Processes that a bridged agent starts by asyncio's own means go with its run."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from pathlib import Path

import pytest
import trio

import netra_ws
from netra_ws import AgentError, AsyncioRun, ClientError
from netra_ws.agents import processes
from netra_ws.testing import check_run, open_session, run_agent

from .test_processes import CHILDREN, alive, signed_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.mark.parametrize("child", CHILDREN)
async def test_nothing_stays_behind_a_stop(child: str, tmp_path: Path) -> None:
    """What asyncio has started, and all that came of it, is gone when the stop is answered."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILDREN[child], str(tmp_path))
        await process.wait()

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        await signed_in(tmp_path, 1 if child == "ignores SIGTERM" else 2)
        with trio.fail_after(20):
            assert await session.stop(run.run_id) == "cancelled"
        assert alive(tmp_path) == []


async def test_nothing_stays_behind_an_end(tmp_path: Path) -> None:
    """A process that nobody waits for is gone when its run has ended by itself, also one of a shell."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> str:
        command = shlex.join([sys.executable, "-c", CHILDREN["ignores SIGTERM"], str(tmp_path)])
        await asyncio.create_subprocess_shell(command, env={"PATH": "/usr/bin:/bin"})
        while not list(tmp_path.iterdir()):
            await asyncio.sleep(0.01)
        return "left it"

    with trio.fail_after(30):
        assert check_run(await run_agent(agent)).final_response == "left it"
    assert alive(tmp_path) == []


async def test_a_process_that_works() -> None:
    """Environment, pipes and status are those that were asked for."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> list[object]:
        program = "import os, sys; print(os.environ['MINE'], sys.stdin.read()); sys.exit(3)"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program),
            env={"MINE": "so"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate(b"and so")
        return [out.decode(), process.returncode]

    with trio.fail_after(30):
        assert check_run(await run_agent(agent)).final_response == ["so and so\n", 3]


async def test_they_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """They count for the number of processes that a run may start; one more is an error in the agent."""
    monkeypatch.setattr(processes, "MAX_PROCESSES", 2)

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> str:
        for _ in range(2):
            await (await asyncio.create_subprocess_exec(sys.executable, "-c", "")).wait()
        with pytest.raises(AgentError) as error:
            await asyncio.create_subprocess_exec(sys.executable, "-c", "")
        return error.value.code

    with trio.fail_after(30):
        assert check_run(await run_agent(agent)).final_response == "QUOTA_EXCEEDED"


async def test_a_seal_kills_them(tmp_path: Path) -> None:
    """Of a run that does not stop because it waits for such a process, that process is killed when it is sealed."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> None:
        child = CHILDREN["ignores SIGTERM"]
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", child, str(tmp_path))
        while process.returncode is None:
            with contextlib.suppress(asyncio.CancelledError):
                await process.wait()

    async with open_session({"agent": agent}, {"timing.finalise_s": 0.5}) as (server, session):
        run = await session.start("x", agent="agent")
        await signed_in(tmp_path, 1)
        with trio.fail_after(20):
            with pytest.raises(ClientError, match="CANCEL_TIMEOUT"):
                await session.stop(run.run_id)
            while server.registry.statistics().runs:
                await trio.sleep(0.01)
        assert alive(tmp_path) == []
