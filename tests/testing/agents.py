"""Agents that give faults something to strike."""

from __future__ import annotations

import trio

from netra_ws import Run


async def talker(run: Run) -> str:
    """Say 120 words, one each tenth of a second, with a tool call every thirty."""
    for number in range(120):
        if number % 30 == 10:
            async with run.tool("look", number=number) as call:
                await trio.sleep(0.2)
                call.results = {"seen": number}
        await run.say(f"word {number} ")
        await trio.sleep(0.1)
    return run.said


async def gusher(run: Run) -> str:
    """Think and speak in gusts of a hundred pieces, so that a reader falls behind."""
    for gust in range(4):
        for number in range(70):
            await run.think(f"{gust}:{number};", delta=True)
        for number in range(100):
            await run.say(f"{gust}.{number} ")
        await run.emit("gust", gust)
        await trio.sleep(4.0)
    return "gone"


async def thrower(run: Run) -> None:
    """Say something, and fail in the middle of two tool calls."""
    await run.say("all is well")
    await trio.sleep(1.0)
    async with run.tool("outer"), run.tool("inner"):
        await trio.sleep(2.0)
        raise ValueError("no")
