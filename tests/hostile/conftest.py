"""What every hostile test checks around its attack."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

from netra_ws.measures import memory_bytes
from netra_ws.server import Server
from tests.kit import PATIENCE_S, connect, holdings, http, settles

Unharmed = Callable[[Server], AbstractAsyncContextManager[None]]

#: Bytes by which the process may have grown behind an attack: what the allocator keeps of a few of the largest
#: messages and of a user's ring, far less than any attack here sends or announces in all.
MOST_GROWTH = 64 * 2**20
_DESCRIPTORS = Path("/proc/self/fd")


@asynccontextmanager
async def _unharmed(server: Server) -> AsyncIterator[None]:
    async with connect(server, "bystander") as bystander:
        before, descriptors, memory = holdings(server), _descriptors(), memory_bytes()
        yield
        with trio.fail_after(PATIENCE_S):
            assert (await bystander.ask("ping"))["type"] == "pong"
            assert (await http(server, "/health")).status == 200
            async with connect(server, "newcomer") as newcomer:
                assert (await newcomer.ask("ping"))["type"] == "pong"
        await settles(server, before)
        with trio.fail_after(5):
            while _descriptors() > descriptors:  # what was closed in the settling is gone a moment later
                await trio.sleep(0.01)
        if memory_bytes() - memory >= MOST_GROWTH:
            gc.collect()  # too slow to be done each time
            assert memory_bytes() - memory < MOST_GROWTH


def _descriptors() -> int:
    return sum(1 for _ in _DESCRIPTORS.iterdir()) if _DESCRIPTORS.exists() else 0


@pytest.fixture
def unharmed() -> Unharmed:
    """Around an attack: others are served at once behind it, and then the server holds what it held before.

    That is: its tasks, seats, connections, readers and users, the descriptors of the process, and about its memory.
    """
    return _unharmed
