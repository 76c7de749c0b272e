"""How fast messages of the older system become runs: ``python -m tests.benchmarks.handler``.

Ten users, a store in a SQLite file, an agent that tells all five events; the figures are printed, never asserted.
"""

from __future__ import annotations

import tempfile
import time

import trio

from netra_ws import open_server
from netra_ws.compat.agent_handler import AgentMessageHandler
from netra_ws.testing import make_settings
from tests.compat.handling import five, said

MESSAGES, USERS = 2000, 10


async def measure(at_once: int) -> None:
    """Send all messages, so many at the same time for each user, and print how long it took."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "store.url": f"sqlite:///{folder}/netra_ws.db",
            "agents.default": "five",
            "limits.messages_per_minute": 1_000_000,
            "limits.max_runs_per_user": 1000,
        }
        async with open_server(make_settings(overrides), agents={"five": five}) as server:
            handler = AgentMessageHandler(server)

            async def talk(user: str, number: int) -> None:
                for turn in range(MESSAGES // USERS // at_once):
                    assert await handler.handle_message(user, None, said(f"{turn}", thread_id=f"thread-{number}"))

            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for user in range(USERS):
                    for number in range(at_once):
                        nursery.start_soon(talk, f"user-{user}", number)
            took_s = time.perf_counter() - began
    done = handler.get_stats()["messages_processed"]
    print(f"{done} messages, {USERS} users, {at_once} at once each: {took_s:.2f} s, {done / took_s:.0f} messages/s")


async def main() -> None:
    """Print the figures."""
    for at_once in (1, 5, 20):
        await measure(at_once)


if __name__ == "__main__":
    trio.run(main)
