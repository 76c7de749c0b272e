"""What every hostile test checks around its attack."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio

from netra_ws.server import Server
from tests.kit import connect, holdings, http, settles

Unharmed = Callable[[Server], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _unharmed(server: Server) -> AsyncIterator[None]:
    async with connect(server, "bystander") as bystander:
        before = holdings(server)
        yield
        with trio.fail_after(1.5):
            assert (await bystander.ask("ping"))["type"] == "pong"
            assert (await http(server, "/health")).status == 200
            async with connect(server, "newcomer") as newcomer:
                assert (await newcomer.ask("ping"))["type"] == "pong"
        await settles(server, before)


@pytest.fixture
def unharmed() -> Unharmed:
    """Around an attack: others are served at once behind it, and then the server holds what it held before."""
    return _unharmed
