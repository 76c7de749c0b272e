"""What the tests of MCP share: servers to start, and agents that use them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from netra_ws import McpServer, Run, Tool, open_mcp
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import ToolCompleted
from netra_ws.testing import run_agent

from ..test_processes import alive as alive

SERVERS = Path(__file__).parent / "servers"

Work = Callable[[Run, Mapping[str, Tool]], Awaitable[Any]]


def plain(folder: Path, mode: str = "good", name: str = "plain", **more: Any) -> McpServer:
    """Return the server of ``servers/plain.py``, which signs in *folder*."""
    return McpServer(name, command=[sys.executable, "-S", str(SERVERS / "plain.py"), str(folder), mode], **more)


def real(name: str = "real", **more: Any) -> McpServer:
    """Return the server of ``servers/real.py`` over standard input and output."""
    return McpServer(name, command=[sys.executable, str(SERVERS / "real.py"), "stdio"], **more)


def using(*servers: McpServer, work: Work) -> Callable[[Run], Awaitable[Any]]:
    """Return an agent that does *work* with the tools of *servers*, by name."""

    async def agent(run: Run) -> Any:
        async with open_mcp(run, servers) as tools:
            return await work(run, {tool.name: tool for tool in tools})

    return agent


async def heard_of(*servers: McpServer, work: Work, **more: Any) -> list[Heard]:
    """Run an agent that does *work* with the tools of *servers*."""
    with trio.fail_after(60):
        return await run_agent(using(*servers, work=work), **more)


async def one_call(server: McpServer, tool: str, /, **parameters: Any) -> ToolCompleted:
    """Call one tool and return how that was told."""

    async def work(run: Run, tools: Mapping[str, Tool]) -> None:
        await tools[tool](run, **parameters)

    events = await heard_of(server, work=work)
    return next(one.message for one in events if isinstance(one.message, ToolCompleted))


def signed(folder: Path) -> int:
    """Return how many processes have signed in *folder*."""
    return sum(each.name.isdigit() for each in folder.iterdir())


def heard(folder: Path) -> list[str]:
    """Return what the servers of *folder* have noted."""
    file = folder / "heard.txt"
    return file.read_text().splitlines() if file.exists() else []


async def until(holds: Callable[[], object]) -> None:
    """Wait until something is so."""
    with trio.fail_after(20):
        while not holds():
            await trio.sleep(0.01)


def descriptors() -> int:
    """Return how many sockets and pipes this process has open."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(entry.readlink()).startswith(("socket:", "pipe:"))
    return found


@asynccontextmanager
async def real_http(*options: str) -> AsyncIterator[str]:
    """Start ``servers/real.py`` as an HTTP server and yield its address."""
    command = [sys.executable, str(SERVERS / "real.py"), "http", *options]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(_start, command)
        try:
            with trio.fail_after(30):
                port = int(await process.stdout.receive_some())
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.kill()
            nursery.cancel_scope.cancel()


async def _start(command: list[str], *, task_status: trio.TaskStatus[trio.Process]) -> None:
    process = await trio.lowlevel.open_process(command, stdout=-1)
    task_status.started(process)
    try:
        await process.wait()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()
