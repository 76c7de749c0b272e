"""However a run with MCP servers ends, nothing of them is left: no process, no socket, no task."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from netra_ws import ClientError, McpServer, Run, open_mcp
from netra_ws.testing import check_run, open_session

from .kit import alive, descriptors, heard, plain, signed, until
from .site import open_site

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def stepping(*servers: McpServer) -> Callable[[Run], Any]:
    """Return an agent that says where it is: it opens, calls, calls what never answers."""

    async def agent(run: Run) -> None:
        await run.emit("at", "opening")
        async with open_mcp(run, servers) as tools:
            by_name = {tool.name: tool for tool in tools}
            await run.emit("at", "opened")
            await by_name["echo"](run, text="x")
            await run.emit("at", "called")
            await by_name["never"](run)

    return agent


@pytest.mark.parametrize("at", ["opening", "signed", "opened", "called", "never"])
async def test_a_stop_at_every_step(at: str, tmp_path: Path) -> None:
    """A run that is stopped while it opens a server, or calls it, is answered when the process has gone."""
    async with open_session({"agent": stepping(plain(tmp_path))}) as (_, session):
        before = descriptors()
        run = await session.start("x", agent="agent")
        if at == "signed":
            await until(lambda: signed(tmp_path))
        elif at == "never":
            await until(lambda: "never" in heard(tmp_path))
        else:
            async for event in run:
                if event.fields.get("value") == at:
                    break
        tasks = trio.lowlevel.current_statistics().tasks_living
        assert await run.stop() == "cancelled"
        assert not alive(tmp_path)
        assert descriptors() == before
        assert trio.lowlevel.current_statistics().tasks_living <= tasks
    if at == "never":
        assert heard(tmp_path) == ["never", "cancelled", "asked to go"]


FIRST_USE = """
import sys, trio
from netra_ws import McpServer, open_mcp
from netra_ws.testing import open_session

async def agent(run):
    await run.emit("at", "opening")
    async with open_mcp(run, [McpServer("never", command=["/no/such/program"])]):
        pass

async def main():
    async with open_session({"agent": agent}, {"timing.finalise_s": 0.2}) as (_, session):
        run = await session.start("x", agent="agent")
        async for event in run:
            if event.type == "agent_event":
                break
        print("mcp_types" in sys.modules, await run.stop())

trio.run(main)
"""


async def test_a_stop_while_the_library_is_loaded() -> None:
    """A run that is stopped while the library is loaded for the first time does not wait for that."""
    done = await trio.run_process([sys.executable, "-c", FIRST_USE], capture_stdout=True)
    assert done.stdout.decode().split() == ["False", "cancelled"]


async def test_every_open_call_is_told_to_the_server(tmp_path: Path) -> None:
    """When a run with many open calls is stopped, each of them is told to the server as cancelled."""

    async def agent(run: Run) -> None:
        async with open_mcp(run, [plain(tmp_path)]) as tools:
            never = next(tool for tool in tools if tool.name == "never")
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(never, run)

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        await until(lambda: heard(tmp_path).count("never") == 50)
        assert await run.stop() == "cancelled"
    assert heard(tmp_path)[50:] == ["cancelled"] * 50 + ["asked to go"]


@pytest.mark.parametrize("mode", ["stays", "mute", "deaf", "complains", "chatters"])
async def test_a_stop_with_a_server_that_does_not_care(mode: str, tmp_path: Path) -> None:
    """A server that ignores everything, and what it has started, are gone when a stop is answered."""

    async def agent(run: Run) -> None:
        async with open_mcp(run, [plain(tmp_path, mode)]):
            await trio.sleep_forever()

    async with open_session({"agent": agent}) as (_, session):
        before = descriptors()
        run = await session.start("x", agent="agent")
        await until(lambda: signed(tmp_path) == (2 if mode == "stays" else 1))
        await trio.sleep(0.3)
        assert await run.stop() == "cancelled"
        assert not alive(tmp_path)
        assert descriptors() == before


async def test_a_stop_of_a_call_that_is_not_read(tmp_path: Path) -> None:
    """A stop is not held up by a large message that a server does not read."""

    async def agent(run: Run) -> None:
        async with open_mcp(run, [plain(tmp_path, "deaf", timeout_s=None)]) as tools:
            echo = next(tool for tool in tools if tool.name == "echo")
            async with trio.open_nursery() as nursery:
                for _ in range(90):
                    nursery.start_soon(lambda: echo(run, text="x" * 100_000))

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        calls = 0
        async for event in run:
            calls += event.type == "tool_executing"
            if calls == 90:
                break
        with trio.fail_after(4):
            assert await run.stop() == "cancelled"
        assert not alive(tmp_path)
        check_run([event async for event in run])


async def test_an_agent_that_cannot_be_stopped(tmp_path: Path) -> None:
    """An agent that shields itself inside the block is sealed, and its servers are killed all the same."""
    inside, let_go = trio.Event(), trio.Event()

    async def agent(run: Run) -> None:
        async with open_mcp(run, [plain(tmp_path, "stays")]):
            with trio.CancelScope(shield=True):
                inside.set()
                await let_go.wait()

    async with open_session({"agent": agent}, {"timing.finalise_s": 0.5}) as (server, session):
        run = await session.start("x", agent="agent")
        await until(lambda: signed(tmp_path) == 2 and inside.is_set())
        with pytest.raises(ClientError, match="CANCEL_TIMEOUT"):
            await run.stop()
        await until(lambda: not alive(tmp_path))
        let_go.set()
        await until(lambda: not server.registry.statistics().runs)


@pytest.mark.filterwarnings("ignore:Async generator '.*open_mcp:ResourceWarning")
async def test_an_agent_that_leaves_the_block_open(tmp_path: Path) -> None:
    """An agent that enters the block by hand and returns leaves no process."""

    async def agent(run: Run) -> str:
        await open_mcp(run, [plain(tmp_path)]).__aenter__()
        return "left open"

    async with open_session({"agent": agent}) as (_, session):
        result = await (await session.start("x", agent="agent")).result()
        assert result.status == "error"
        assert signed(tmp_path) == 1
        assert not alive(tmp_path)


async def test_the_end_of_a_context_and_of_the_server(tmp_path: Path) -> None:
    """When the whole server ends in the middle of a call, no process is left."""
    async with open_session({"agent": stepping(plain(tmp_path))}) as (_, session):
        await session.start("x", agent="agent")
        await until(lambda: "never" in heard(tmp_path))
    assert not alive(tmp_path)


async def test_twenty_runs_at_once(tmp_path: Path) -> None:
    """Of twenty runs of processes and addresses, stopped at random moments, nothing is left, and none harms another."""
    moments = random.Random(20)
    folders = [tmp_path / str(number) for number in range(20)]
    for folder in folders:
        folder.mkdir()

    async def agent(run: Run) -> Any:
        folder = folders[int(run.text)]
        servers = [plain(folder), site.server()] if int(run.text) % 2 else [plain(folder)]
        async with open_mcp(run, servers) as tools:
            by_name = {tool.name: tool for tool in tools}
            said = await by_name["plain_echo" if len(servers) == 2 else "echo"](run, text=run.text)
            if int(run.text) % 4:
                await by_name["never"](run)
        return said

    async def one(number: int, session: Any) -> None:
        run = await session.start(str(number), agent="agent")
        if number % 4:
            await trio.sleep(moments.uniform(0, 2.5))
            assert await run.stop() in ("cancelled", "success")
            assert not alive(folders[number])
        events = [event async for event in run]
        last = check_run(events)
        assert last.status == ("cancelled" if number % 4 else "success"), last
        assert last.final_response == (None if number % 4 else str(number))

    async with open_site() as site:
        limits = {"limits.max_runs_per_user": 20, "limits.max_threads_per_user": 100}
        async with open_session({"agent": agent}, limits) as (_, session):
            before, tasks = descriptors(), trio.lowlevel.current_statistics().tasks_living
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(one, number, session)
            await until(lambda: not site.open)
            assert not [pid for folder in folders for pid in alive(folder)]
            assert descriptors() == before
            await until(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks)
