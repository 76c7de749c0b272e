"""The agent that says what it hears: for diagnosis, and the smallest example of an agent."""

from __future__ import annotations

from ..run import Run


async def echo(run: Run) -> str:
    """Think once, use one tool, and say the user's text back."""
    await run.think("Saying it back")
    async with run.tool("echo", text=run.text) as call:
        call.results = {"text": run.text, "characters": len(run.text)}
    await run.say(run.text)
    return run.said
