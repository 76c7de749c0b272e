"""The agent that says what it hears: for diagnosis, and the smallest example of an agent."""

from __future__ import annotations

from ..run import Run

#: Characters of the text that are shown as parameter and result of the tool.
EXCERPT = 1000
#: Longest text that is returned as it is; in the worst case each character takes six bytes of JSON.
WHOLE = 32 * 1024


async def echo(run: Run) -> str:
    """Think once, use one tool, and say the user's text back."""
    await run.think("Saying it back")
    async with run.tool("echo", text=_excerpt(run.text)) as call:
        call.results = {"text": _excerpt(run.text), "characters": len(run.text)}
    await run.say(run.text)
    # A message may be longer than one event may be; then it was said, and only its beginning is returned.
    return run.text if len(run.text) <= WHOLE else _excerpt(run.text)


def _excerpt(text: str) -> str:
    return text if len(text) <= EXCERPT else text[:EXCERPT] + "…"
