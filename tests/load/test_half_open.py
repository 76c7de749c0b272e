"""Clients that are gone without a word: found by the heartbeat, and nothing of them stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from netra_ws import Run
from netra_ws.server import Server
from netra_ws.wire import pump, stream
from tests.conftest import StartServer
from tests.kit import Ended, connect, holdings, settles, token

from .process import ROOT, eventually


@attrs.define
class Wire:
    """A way to a server that can go dead: from then on no byte passes, and neither side is told."""

    port: int = 0
    alive: bool = True
    passed: int = 0

    async def carry(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            async for data in source:
                if not self.alive:
                    await trio.sleep_forever()
                await sink.send_all(data)
                self.passed += len(data)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


@asynccontextmanager
async def wire_to(server: Server) -> AsyncIterator[Wire]:
    wire = Wire()

    async def join(client: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as inner, trio.open_nursery() as nursery:
            nursery.start_soon(wire.carry, client, inner)
            nursery.start_soon(wire.carry, inner, client)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, join, 0, host="127.0.0.1"))
        wire.port = listener.socket.getsockname()[1]
        yield wire
        nursery.cancel_scope.cancel()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def brief_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for clients that will not answer a Close; by default it is three seconds."""
    monkeypatch.setattr(pump, "CLOSE_S", 0.2)
    monkeypatch.setattr(stream, "LINGER_S", 0.2)


QUICK = {"timing__heartbeat_interval_s": 0.4, "timing__pong_timeout_s": 0.3, "timing__resume_window_s": 0.3}


async def test_packets_vanish(server: StartServer) -> None:
    """A client whose packets vanish is closed with 4001, its run ends by grace, and its descriptor is free again."""

    async def forever(run: Run) -> None:
        await trio.sleep_forever()

    running = await server(agents={"forever": forever}, **QUICK)
    before, open_before = holdings(running), descriptors()
    async with wire_to(running) as wire:
        async with connect(wire) as client:  # type: ignore[arg-type]
            await client.ask("chat", content="x", agent="forever")
            (context,) = running.registry
            wire.alive = False
            began = trio.current_time()
            await eventually(lambda: running.registry.seats == 0, 5.0)
            print(f"found after {trio.current_time() - began:.2f} s of 0.4 + 0.3 and the closing handshake's bounds")
            assert running.wiring.counts.closes[4001] == 1
            ended = context.runs
            await eventually(lambda: not ended, 5.0)
        await settles(running, attrs.evolve(before, tasks=holdings(running).tasks))
    assert running.registry.runs.ended == {("forever", "cancelled", "disconnect"): 1}
    await eventually(lambda: descriptors() <= open_before)
    assert len(running.wiring.heartbeat) == 0


LISTENER = """
import asyncio, sys
import trio
from tests.kit import connect


class Where:
    port = int(sys.argv[1])


async def main():
    async with connect(Where, bearer=sys.argv[2]) as client:
        await client.send("chat", content="x", agent="flood")
        while True:
            await client.receive()


trio.run(main)
"""


async def test_a_client_that_was_stopped(server: StartServer) -> None:
    """A process that is stopped, its socket full, is found as well, and the agent that talks to it is not held up."""

    async def flood(run: Run) -> str:
        while True:
            await run.emit("flood", "x" * 10_000)
            await trio.sleep(0.005)  # faster, and it would be found by its byte budget first

    # Before it is stopped it has to answer in time, however busy the machine is.
    settings = {**QUICK, "timing__pong_timeout_s": 2.0}
    running = await server(agents={"flood": flood}, limits__max_events_per_run=10**6, **settings)
    before, open_before = holdings(running), descriptors()
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENER, str(running.port), token()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        await eventually(lambda: running.streams.counts.events["agent_event"] > 100)
        process.send_signal(signal.SIGSTOP)
        told = running.streams.counts.events["agent_event"]
        await eventually(lambda: running.streams.counts.events["agent_event"] > told + 100)
        await eventually(lambda: running.wiring.counts.closes[4001] == 1, 20.0)
        async with connect(running, "bob") as bob:
            await bob.ask("ping")
            await bob.finish()
        await settles(running, before)
        assert running.registry.runs.ended == {("flood", "cancelled", "disconnect"): 1}
    finally:
        process.kill()
        process.wait()
    await eventually(lambda: descriptors() <= open_before)


async def test_a_client_that_answers_is_kept(server: StartServer) -> None:
    """On a wire that lives, nobody is closed, however long it is quiet."""
    # A pong may take its time on a busy machine; a client without a sign of life would be gone before the end.
    running = await server(**{**QUICK, "timing__heartbeat_interval_s": 0.2, "timing__pong_timeout_s": 1.0})
    async with wire_to(running) as wire, connect(wire) as client:  # type: ignore[arg-type]
        with trio.move_on_after(1.6):
            try:
                await client.receive_data()
            except Ended as exc:
                raise AssertionError("closed") from exc
        assert running.registry.seats == 1
        assert not running.wiring.counts.closes
