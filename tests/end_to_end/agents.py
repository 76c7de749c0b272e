"""Agents that do what the built-in ones are too quick or too polite for."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal
from uuid import UUID

import attrs
import trio

from netra_ws import Run
from netra_ws.errors import InputDeclined

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


@attrs.frozen
class Length:
    """Bounds of a text, as those of annotated-types are."""

    min_length: int
    max_length: int


@attrs.frozen
class Address:
    """Where it goes."""

    street: str
    zip: Annotated[str, Length(5, 5)]


@attrs.frozen
class Delivery:
    """What the courier has to know."""

    recipient: str
    boxes: int
    day: date
    speed: Literal["slow", "fast"]
    address: Address
    order: UUID
    extras: list[Literal["gift wrap", "insurance"]] = attrs.field(factory=list)
    note: str | None = None
    express: bool = False


async def asking(run: Run) -> str:
    """Ask for what the text names (``choice``, ``form``, ``text``), for as many seconds as it says; tell the answer."""
    kind, _, seconds = run.text.partition(" ")
    expires_in = float(seconds or 600)
    try:
        if kind == "form":
            answer = await run.ask("Where shall it go?", schema=Delivery, expires_in=expires_in)
        elif kind == "text":
            answer = await run.ask("What is its name?", expires_in=expires_in)
        else:
            answer = await run.ask("Publish this?", choices=["yes", "no"], expires_in=expires_in)
    except InputDeclined as declined:
        return f"no answer: {declined.status}"
    return f"answer: {answer}"


@attrs.frozen
class Publication:
    """How to publish a text."""

    channel: Annotated[Literal["website", "newsletter"], "Where it appears"]
    headline: Annotated[str, "At most 60 characters"]
    urgent: bool = False


async def publishing(run: Run) -> str:
    """Draft a text, have somebody look at it, and ask how to publish it; for the picture of the console."""

    async def proofreader(run: Run) -> str:
        async with run.tool("check_spelling", characters=len(run.text)) as call:
            call.results = {"mistakes": 0}
        await run.say("No mistakes found.")
        return run.said

    await run.think("A draft first, then somebody has to look at it")
    draft = f"From May on {run.text}."
    await run.say(f"Here is a draft: “{draft}” ")
    async with run.tool("proofread", text=draft) as call:
        call.results = await run.delegate(proofreader, draft)
    publication = await run.ask("How shall it be published?", schema=Publication)
    return f"published: {publication}"


async def delegating(run: Run) -> str:
    """Have two agents work at the same time inside one tool, one of which asks."""
    async with run.tool("survey") as call, trio.open_nursery() as nursery:
        await call.progress(0.5, "half of it")
        nursery.start_soon(run.delegate, asking, "choice")
        nursery.start_soon(run.delegate, brief, run.text)
    return "surveyed"


async def building(run: Run) -> str:
    """Say the numbers from 0 to 39 into the job that the text names, one each twentieth of a second."""
    job = run.job(run.text)
    for number in range(40):
        await job.emit("step", number)
        await run.say(f"{number} ")
        await trio.sleep(0.05)
    return run.said
