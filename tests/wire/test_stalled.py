"""What clients that stop reading cost: a cursor and a slice, however far they are behind."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from netra_ws import Run
from netra_ws.history.cursor import CHUNK_BYTES
from netra_ws.wire.stream import SLICE

from ..conftest import StartServer
from ..kit import connect, holdings, settles

STALLED = 40


async def flood(run: Run) -> None:
    """Say ten times what the ring holds, in deltas and in large results."""
    for number in range(200):
        for _ in range(20):
            await run.say("word " * 40)
        async with run.tool("step", number=number) as call:
            call.results = "r" * 20_000
        await trio.sleep(0)


def held_bytes(connection: Any) -> int:
    """Everything that is kept for one client and nobody else."""
    stream, cursor = connection.wire.stream, connection.cursor
    ahead = [frame for _, frame in [*cursor._ahead, *cursor._fulls]]
    return sum(map(len, [stream._tail, *stream._own, *connection._control, *ahead]))


@pytest.mark.parametrize("ring_bytes", [500_000, 20_000_000])
async def test_a_stalled_connection_costs_a_bounded_piece_of_memory(server: StartServer, ring_bytes: int) -> None:
    """Forty clients that read nothing while megabytes are said hold at most what they have read ahead, each."""
    running = await server(
        agents={"flood": flood},
        limits__max_connections_per_user=1000,
        history__ring_bytes=ring_bytes,
        history__ring_events=100_000,
    )
    before = holdings(running)
    async with connect(running) as quick:
        await quick.send("chat", content="warm up", agent="flood")
        await quick.until("agent_completed")
        async with AsyncExitStack() as stack:
            for _ in range(STALLED):
                await stack.enter_async_context(connect(running, receive_buffer=4096))
            await quick.send("chat", content="x", agent="flood")
            await quick.until("agent_completed")
            (context,) = running.registry
            stalled = [c for c in context.connections.values() if c.cursor.seq < context.stream.visible]
            assert len(stalled) >= STALLED
            held = [held_bytes(connection) for connection in stalled]
            print(f"{max(held) / 1024:.0f} KiB at most, {sum(held) / len(held) / 1024:.0f} on average, 4 MB behind")
            assert max(held) < SLICE + CHUNK_BYTES + 50_000
    await settles(running, before)
