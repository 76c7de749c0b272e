"""Opens the MCP servers of a run for as long as a block takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import trio

from netra_ws.errors import ConfigError

from ..run import Run
from ..tools import Tool
from .servers import McpServer

if TYPE_CHECKING:
    from .link import Link

#: Who comes while the library is loaded waits here, and not in one of the threads that everybody shares. One for each
#: ``trio.run``: a thread that was abandoned in an earlier one never gives its place back.
_LOADERS: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("netra_ws_mcp_loaders")


@asynccontextmanager
async def open_mcp(run: Run, servers: Iterable[McpServer], *, taken: Collection[str] = ()) -> AsyncIterator[list[Tool]]:
    """Connect *run* to its MCP servers and yield their tools; when the block is left, all of it is gone.

    ::

        async with open_mcp(run, [McpServer("files", command=["uvx", "mcp-server-files", "/srv/docs"])]) as tools:
            box = Toolbox([*tools, lookup])

    Tools keep their names where models can call those; where two servers offer the same one, or it is among
    *taken*, the server's name stands before it.

    Raises:
        AgentError: ``MCP_UNAVAILABLE``: a server that is not optional cannot be had.
        ConfigError: Two servers have the same name.

    *Cancellation:* open calls are told to their servers as cancelled, then connections and processes are ended,
    all within half of the run's ``finalise_s``.
    """
    run.check_open()
    servers = list(servers)
    twice = [name for name, count in Counter(server.name for server in servers).items() if count > 1]
    if twice:
        raise ConfigError(f"MCP servers: the name {twice[0]} is there twice")
    if not servers:
        yield []
        return
    code = await _load()
    links: list[Link] = [code.Link(run, server) for server in servers]
    left_by: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            nursery.start_soon(_close_when_cancelled, links)
            for link in links:
                nursery.start_soon(link.own)
            yield await code.make_tools(await _opened(links), taken)
        except BaseException as exc:
            left_by = exc  # raised outside of the nursery, which would make a group of it
        finally:
            for link in links:
                link.close()
            nursery.cancel_scope.cancel()
    if left_by is not None:
        raise left_by


async def _load() -> Any:
    # In a thread: it takes a second or two of a processor at its first time, which would hold up everybody. That is
    # the process's work and not the run's: a run that is stopped meanwhile leaves it to those who come later.
    try:
        loaders = _LOADERS.get()
    except LookupError:
        loaders = trio.CapacityLimiter(1)
        _LOADERS.set(loaders)
    return await trio.to_thread.run_sync(
        import_module, f"{__package__}.offers", abandon_on_cancel=True, limiter=loaders
    )


async def _close_when_cancelled(links: Sequence[Link]) -> None:
    # The block may be held up by a last word that a server does not read: that is bounded from here on.
    try:
        await trio.sleep_forever()
    finally:
        for link in links:
            link.close()


async def _opened(links: Sequence[Link]) -> list[Link]:
    for link in links:
        await link.opened.wait()
        if link.failure is not None and not link.server.optional:
            raise link.failure
    return [link for link in links if link.failure is None]
