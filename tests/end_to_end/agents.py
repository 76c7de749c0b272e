"""Agents that do what the built-in ones are too quick or too polite for."""

from __future__ import annotations

import trio

from netra_ws import Run

MARKUP = '<img src=x onerror="alert(1)"><script>alert(2)</script><b>bold</b>'
INTERNALS = "secret internals"


async def slow(run: Run) -> str:
    """Say a numbered word twenty times a second, for at most a minute, inside one tool."""
    await run.think("This takes a while")
    async with run.tool("count", until=1200) as call:
        for number in range(1200):
            await run.say(f"word{number} ")
            await trio.sleep(0.05)
        call.results = 1200
    return run.said


async def brief(run: Run) -> str:
    """Say thirty numbered words within a second and a half, with a streamed thought before them."""
    for piece in ("First ", "one ", "thing."):
        await run.think(piece, delta=True)
        await trio.sleep(0.02)
    async with run.tool("count", until=30) as call:
        for number in range(30):
            await run.say(f"word{number} ")
            await call.progress(number / 30, f"at {number}")
            await trio.sleep(0.05)
        call.results = {"counted": 30}
    return run.said


async def patient(run: Run) -> str:
    """Say one word in one tool, and wait for the file that the text names, for at most twenty seconds."""
    await run.think("Waiting for a file")
    async with run.tool("wait", minutes=1) as call:
        await run.say("waiting ")
        await call.progress(0.5, "half of it")
        with trio.move_on_after(20):
            while not await trio.Path(run.text).exists():
                await trio.sleep(0.02)
        call.results = {"found": True}
    await run.say("found")
    return run.said


async def markup(run: Run) -> str:
    """Put markup into everything that an agent can say."""
    await run.think(MARKUP)
    async with run.tool(MARKUP, {MARKUP: MARKUP}) as call:
        await call.progress(0.5, MARKUP)
        call.results = {MARKUP: [MARKUP]}
    await run.emit(MARKUP, {MARKUP: MARKUP})
    await run.say(f"{MARKUP} **not bold** [link](javascript:alert(3))")
    run.usage(MARKUP, MARKUP, input_tokens=1)
    return run.said


async def broken(run: Run) -> str:
    """Fail inside a tool."""
    async with run.tool("fetch", url="https://example.org/"):
        raise ValueError(INTERNALS)
