"""Declared tools: typed, validated, timed, bounded per user; called by code here, offered to a model elsewhere.

Give it to a server, in this folder:      netra-ws serve --agent tools_agent:shop
and ask it from another terminal:         netra-ws chat --agent shop "two espressos and a tea"
Or see it work from end to end at once:   python tools_agent.py "two espressos and a tea"
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Literal

import attrs
import trio

import netra_ws
from netra_ws.testing import run_agent

PRICES = {"espresso": 2.50, "tea": 2.80}


@attrs.frozen
class Order:
    """What somebody wants."""

    drink: Literal["espresso", "tea"]
    count: int = 1


@netra_ws.tool
def read_orders(text: Annotated[str, "what the guest has said"]) -> list[Order]:
    """Find the drinks in a text. A plain function: it runs in a worker thread."""
    words = text.lower().replace(",", " ").split()
    numbers = {"a": 1, "an": 1, "two": 2, "three": 3}
    found = [(before, word.removesuffix("s")) for before, word in zip(["", *words], words, strict=False)]
    return [Order(drink, numbers.get(before, 1)) for before, drink in found if drink in PRICES]  # type: ignore[arg-type]


@netra_ws.tool(timeout_s=10, per_user=2)
async def brew(call: netra_ws.ToolCall, order: Order) -> str:
    """Make a drink. At most two at once for each user, and none may take longer than ten seconds."""
    for number in range(order.count):
        await trio.sleep(0.05)
        await call.progress((number + 1) / order.count, f"{order.drink} {number + 1}")
    return f"{order.count} × {order.drink}"


@netra_ws.tool(permission="till")  # only for users whose token has it
async def open_till(run: netra_ws.Run) -> str:
    """Open the till."""
    return f"opened for {run.user_id}"


async def shop(run: netra_ws.Run) -> str:
    """Take an order and make everything of it at the same time."""
    orders = await read_orders(run, run.text)
    async with trio.open_nursery() as nursery:
        for order in orders:
            nursery.start_soon(brew, run, order)
    try:
        await open_till(run)
    except netra_ws.ToolDenied as denied:
        await run.think(f"The till stays closed: {denied.text}")
    total = sum(PRICES[order.drink] * order.count for order in orders)
    await run.say(f"That is {total:.2f}, please.")
    return run.said


SHOWN = ("tool_name", "parameters", "status", "results", "message", "content")

if __name__ == "__main__":
    print(json.dumps(brew.schema))  # what a model would be told
    for heard in trio.run(run_agent, shop, " ".join(sys.argv[1:]) or "two espressos and a tea"):
        fields = {name: heard.fields[name] for name in SHOWN if heard.fields.get(name) is not None}
        print(heard.type, json.dumps(fields, ensure_ascii=False))
