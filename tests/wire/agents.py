"""Agents that say much, for the tests of slow readers."""

from __future__ import annotations

import trio

from netra_ws.agents.agent import Agent
from netra_ws.agents.run import Run


def text_of(pieces: int, size: int) -> list[str]:
    """Return pieces of text, each recognisable and of *size* characters."""
    return [f"<{number:06}>".ljust(size, "x") for number in range(pieces)]


def talker(pieces: int, size: int) -> Agent:
    """Return an agent that says ``text_of(pieces, size)``, giving way after each piece."""

    async def talk(run: Run) -> str:
        for piece in text_of(pieces, size):
            await run.say(piece)
        return "said"

    return talk


def worker(tools: int, size: int) -> Agent:
    """Return an agent that uses many tools with results of *size* characters: only durable events."""

    async def work(run: Run) -> str:
        for number in range(tools):
            async with run.tool("step", number=number) as call:
                call.results = {"text": "y" * size}
        return "done"

    return work


async def waiter(run: Run) -> str:
    """Wait until it is cancelled."""
    await trio.sleep_forever()
    return "never"
