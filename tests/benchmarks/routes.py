"""How long the older system's ways to the server take: ``python -m tests.benchmarks.routes``.

A real server and sockets of this machine, one client after the other; the figures are printed, never asserted.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import trio

from netra_ws.server import Server, open_server
from tests.kit import PATIENCE_S, connect, http, raw, settings, token, upgrade

TIMES = 200
ROUNDS = 3


async def connections(server: Server) -> None:
    """Come in with a token in the header, and go."""
    for _ in range(TIMES):
        async with connect(server):
            pass


async def handshakes(server: Server) -> None:
    """Come in as an older client does, up to the end of the handshake."""
    offer = ("jwt-auth", f"jwt.local.{token()}")
    for _ in range(TIMES):
        async with raw(server) as client:
            await client.open(upgrade(protocols=offer))
            offered = await client.receive()
            await client.send("handshake_acknowledged", thread_id=offered["thread_id"])
            assert (await client.receive())["type"] == "handshake_complete"


async def messages(server: Server) -> None:
    """Say a message and read its answer, over one connection."""
    async with connect(server) as client:
        for _ in range(TIMES):
            await client.send("ping")
            await client.receive()


async def pages(server: Server) -> None:
    """Look at the health page under its older address."""
    for _ in range(TIMES):
        assert (await http(server, "/ws/isolated/health")).status == 200


WORK: tuple[Callable[[Server], Awaitable[None]], ...] = (connections, handshakes, messages, pages)


async def main() -> None:
    many = settings(
        limits__messages_per_minute=10**6,
        limits__pings_per_minute_per_connection=10**6,
        limits__connects_per_minute_per_address=10**6,
        limits__max_threads_per_user=10**6,
    )
    async with open_server(many) as server:
        for work in WORK:
            best = float("inf")
            for _ in range(ROUNDS):
                with trio.fail_after(PATIENCE_S * 10):
                    began = time.perf_counter()
                    await work(server)
                    best = min(best, time.perf_counter() - began)
            print(f"{work.__name__:12} {TIMES / best:8,.0f}/s  {best / TIMES * 1e6:8,.0f} µs each")


if __name__ == "__main__":
    for module in ("netra_ws.wire.paths", "netra_ws.pages.older", "netra_ws.compat", "netra_ws.server"):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        print(f"import {module:24} {time.perf_counter() - began:6.2f} s, with the interpreter's own start")
    trio.run(main)
