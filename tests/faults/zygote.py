"""Servers that can be started as fast as they can be killed: forked from a process that has imported everything.

Run as a program. Reads one word per line: ``start`` forks a server on the store given as first argument
and answers ``pid N``, the server itself says ``port N`` when it can be connected to; ``kill N`` and
``end N`` send SIGKILL or SIGTERM to it; ``wait N`` answers ``gone N`` and how it ended.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sys

import trio

from netra_ws import AgentError, Run, Settings, open_server
from netra_ws.history.opening import make_store


async def worker(run: Run) -> str:
    """Does several things at once, and ends by itself or not."""
    ends_at = random.choice((3, 10, 40, 10**6))

    async def tool(number: int) -> None:
        async with run.tool("inner", number=number):
            await trio.sleep(random.random() / 200)

    await run.think("working")
    async with run.tool("outer"):
        for number in itertools.count():
            await run.say(f"{number} ")
            await run.job("log").emit("step", [run.run_id, number])
            if number == ends_at:
                return run.said
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tool, number)
                nursery.start_soon(tool, -number)
            if number % 5 == 4:
                run.end_message()
            if number % 3 == 1:
                await side(run)
    raise AssertionError


async def side(run: Run) -> None:
    """Ask the user, or have a sub-run do so; nobody may answer."""
    with contextlib.suppress(AgentError):
        if random.random() < 0.5 and run.parent is None:
            await run.delegate("assistant_of_worker", "x")
        else:
            await run.ask("go on?", choices=["yes", "no"], expires_in=0.1)


async def assistant(run: Run) -> str:
    """Works beside its parent: says something, uses a tool, asks."""
    await run.say("beside ")
    async with run.tool("deep"):
        await side(run)
    return "done"


AGENTS = {"worker": worker, "assistant_of_worker": assistant}


async def serve(url: str, secret: str) -> None:
    """Serve until SIGTERM, then drain."""
    overrides = {
        "server.port": 0,
        "store.url": url,
        "auth.secret": secret,
        "timing.drain_s": 0.1,
        "limits.messages_per_minute": 10_000,
    }
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with open_server(Settings.make(overrides, environment="testing"), agents=AGENTS) as server:
            await server.job("ada", "log").open()
            print(f"port {server.port}", flush=True)
            await anext(signals)
            await server.drain()


def main(url: str, secret: str) -> None:
    """Start, kill and wait as told."""
    make_store(url)  # imports its driver, once for all
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        if word == "start":
            pid = os.fork()
            if not pid:
                random.seed()
                try:
                    trio.run(serve, url, secret)
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(int(sys.exc_info()[0] is not None))
            print(f"pid {pid}", flush=True)
        elif word == "wait":
            print(f"gone {os.waitstatus_to_exitcode(os.waitpid(int(number), 0)[1])}", flush=True)
        else:
            os.kill(int(number), signal.SIGKILL if word == "kill" else signal.SIGTERM)


if __name__ == "__main__":
    main(*sys.argv[1:])
