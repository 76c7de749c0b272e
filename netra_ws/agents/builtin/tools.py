"""The tools of the built-in agents: ``calculate``, ``clock``, ``search_history`` and ``analyze_usage``.

The assistant picks them by rules, the agent ``llm`` offers them to its model, and a program may give them to an agent
of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from netra_ws.errors import AgentError

from ..declaring import tool
from ..run import Run
from ..tools import Tool
from . import calculate as arithmetic
from . import clock as zones
from . import usage_logs

Prices = Mapping[str, Mapping[str, float]]

#: Integers beyond this are told as text: JSON readers keep only 53 bits.
_EXACT = 2**53
_SECONDS = 10.0
_EXCERPT = 160
MAX_FOUND = 20


@tool(timeout_s=_SECONDS)
async def calculate(
    expression: Annotated[str, "For example (17 + 4) * 2.5, 17% of 2340, sqrt(2) or 2**64; at most 1,000 characters"],
) -> dict[str, Any]:
    """Return the exact value of an arithmetic expression."""
    value = arithmetic.calculate(expression)
    return {"value": value if abs(value) < _EXACT else str(value)}


@tool(timeout_s=_SECONDS)
async def clock(
    run: Run,
    zone: Annotated[str, "An IANA name such as Europe/Berlin, a large city, or a distance such as UTC+5:30"] = "UTC",
) -> dict[str, Any]:
    """Return date, weekday and time as they are now, in UTC or another time zone."""
    now = datetime.now(UTC)
    # The first named zone reads the time zone database from the disk.
    return await run.thread(lambda: zones.clock(zone, now=now))


@tool(timeout_s=_SECONDS)
async def search_history(
    run: Run,
    query: Annotated[str, "Words that all have to occur"],
    limit: Annotated[int, f"At most so many messages, up to {MAX_FOUND}"] = 5,
) -> list[dict[str, Any]]:
    """Find earlier messages of this user, in all of their conversations."""
    limit = max(1, min(limit, MAX_FOUND))
    rows = await run.search_history(query, limit=limit + 1)
    found = [row for row in rows if row.run_id != run.run_id][:limit]  # not the question itself
    return [
        {
            "thread_id": row.thread_id,
            "message_id": row.message_id,
            "role": row.role,
            "excerpt": excerpt(row.content),
            "created_at": row.created_at,
        }
        for row in found
    ]


def excerpt(content: str) -> str:
    """Return the beginning of a message as one line."""
    line = " ".join(content.split())
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 1] + "…"


def make_analyze_usage(prices: Prices | None = None) -> Tool:
    """Return the tool ``analyze_usage``.

    Args:
        prices: Model → ``input``, ``output``, ``cached`` price per million tokens; without it no cost is shown.
    """

    @tool
    async def analyze_usage(run: Run) -> dict[str, Any]:
        """Add up the LLM usage logs that came along with the question: tokens, cache use and cost by model and day."""
        logs: str | Sequence[Mapping[str, Any]] | None = run.jsonl_logs
        if logs is None:
            raise AgentError("no usage logs came along with this question", code="NO_LOGS")
        return await run.thread(lambda: usage_logs.analyze_usage(logs, prices))

    return analyze_usage


def make_tools(prices: Prices | None = None) -> tuple[Tool, ...]:
    """Return all of them."""
    return calculate, clock, search_history, make_analyze_usage(prices)
