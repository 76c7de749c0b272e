"""An agent that is found by its entry point; see ``pyproject.toml`` beside it."""

from __future__ import annotations

import zlib
from typing import Any

import netra_ws


@netra_ws.tool(timeout_s=5)
async def look_out(place: str) -> dict[str, Any]:
    """Look out of a window at a place."""
    number = zlib.crc32(place.casefold().encode())
    return {"sky": ("clear", "cloudy", "rainy", "foggy")[number % 4], "celsius": number % 35 - 5}


async def weather(run: netra_ws.Run) -> str:
    """Tell the weather at the place that the user names."""
    seen = await look_out(run, run.text)
    await run.say(f"{run.text}: {seen['sky']}, {seen['celsius']} °C.")
    return run.said
