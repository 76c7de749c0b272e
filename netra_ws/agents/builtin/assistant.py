"""The default agent: reads what is asked by simple rules, does it with real tools, answers from their results.

It needs no model and no network. Its tools are ``calculate``, ``clock``, ``search_history`` over the
user's own messages, and ``analyze_usage`` when usage logs come along. What it cannot do, it says.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from netra_ws.errors import AgentError

from ..agent import Agent
from ..run import Run
from .intent import Intent, read_intent
from .tools import Prices, calculate, clock, make_analyze_usage, search_history

_HELP = (
    "I can calculate (“What is 17% of 2,340?”), tell the time anywhere (“What time is it in Tokyo?”), "
    "search your own messages (“Search my messages for invoice”), and analyse LLM usage logs that you attach. "
    "For anything else, plug in an agent of your own: python -m netra_ws --agent module:name"
)


def make_assistant(prices: Prices | None = None) -> Agent:
    """Return the assistant.

    Args:
        prices: Model → ``input``, ``output``, ``cached`` price per million tokens; without it no cost is shown.
    """

    analyze_usage = make_analyze_usage(prices)

    async def assistant(run: Run) -> str:
        """Pick a tool from the text, use it, and answer."""
        intent = read_intent(run.text, run.jsonl_logs is not None)
        await run.think(_plan(intent))
        if intent.tool == "analyze_usage":
            answer = "\n".join(_report(await analyze_usage(run)))
        else:
            answer = await _TOOLS[intent.tool](run, intent)
        for piece in re.findall(r"\s*\S+|\s+$", answer):
            await run.say(piece)
        return run.said

    return assistant


def _plan(intent: Intent) -> str:
    plans = {
        "calculate": f"This is a calculation: {intent.argument}",
        "clock": f"This asks for the time: {intent.argument}",
        "search_history": f"This looks for earlier messages about “{intent.argument}”",
        "analyze_usage": "Usage logs came along: adding them up by model and by day",
    }
    if intent.tool is None:
        return "None of my tools fits; looking whether we talked about it before"
    return plans[intent.tool]


async def _calculate(run: Run, intent: Intent) -> str:
    try:
        value = (await calculate(run, intent.argument))["value"]
    except AgentError as exc:
        return f"I cannot calculate “{intent.argument}”: {exc.text}"
    if isinstance(value, str) or abs(value) >= 1e15:
        return f"{intent.argument} = {value}"
    return f"{intent.argument} = {value:,}"


async def _clock(run: Run, intent: Intent) -> str:
    try:
        shown = await clock(run, intent.argument)
    except AgentError as exc:
        return exc.text
    return (
        f"It is {shown['time']} on {shown['weekday']}, {shown['date']} in {shown['zone']} (UTC{shown['utc_offset']})."
    )


async def _search(run: Run, intent: Intent) -> str:
    found = await search_history(run, intent.argument)
    if not found:
        return f"I found nothing about “{intent.argument}” in your messages."
    lines = [f"I found {len(found)} of your messages about “{intent.argument}”:"]
    return "\n".join([*lines, *(_line(message) for message in found)])


async def _help(run: Run, intent: Intent) -> str:
    found = await search_history(run, run.text[:200])
    if found:
        told = [_line(message) for message in found]
        return "\n".join(["I have no tool for this, but we had it before:", *told, "", _HELP])
    return f"I have no tool for this. {_HELP}"


def _line(message: Mapping[str, Any]) -> str:
    day = datetime.fromtimestamp(message["created_at"], UTC).date().isoformat()
    return f"- {day}, {'you' if message['role'] == 'user' else 'answer'}: {message['excerpt']}"


def _report(usage: Mapping[str, Any]) -> Sequence[str]:
    totals = usage["totals"]
    lines = [f"{usage['calls']:,} calls, {totals['total']:,} tokens{_cost(totals)}."]
    if usage["cache_hit_rate"] is not None:
        lines.append(f"Cache hit rate: {usage['cache_hit_rate']:.1%}.")
    for title, key, name in (("By model:", "by_model", "model"), ("By day (UTC):", "by_day", "day")):
        rows = usage[key]
        if rows:
            lines += ["", title]
            lines += [
                f"- {row[name]}: {row['calls']:,} calls, input {row['input']:,}, output {row['output']:,}, "
                f"cache read {row['cache_read']:,}, cache write {row['cache_write']:,}{_cost(row)}"
                for row in rows[:20]
            ]
    if usage["bad_lines_total"]:
        shown = ", ".join(str(bad["line"]) for bad in usage["bad_lines"][:20])
        lines += ["", f"{usage['bad_lines_total']:,} lines could not be read: {shown}."]
    if usage["unpriced_models"]:
        lines += ["", f"No price is set for {', '.join(usage['unpriced_models'][:20])}."]
    return lines


def _cost(row: Mapping[str, Any]) -> str:
    if row.get("cost") is None:
        return ""
    return f", ${row['cost']:,.4f}{' at least' if row.get('cost_is_partial') else ''}"


_TOOLS: Mapping[str | None, Callable[[Run, Intent], Awaitable[str]]] = {
    "calculate": _calculate,
    "clock": _clock,
    "search_history": _search,
    None: _help,
}
