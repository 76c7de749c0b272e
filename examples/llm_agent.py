"""A model as an agent, with tools of yours: any OpenAI-compatible endpoint, such as Ollama or vLLM on your own machine.

Say where it is:                          export NETRA_WS_LLM_BASE_URL=http://localhost:11434/v1
                                          export NETRA_WS_LLM_MODEL=qwen3   (and NETRA_WS_LLM_API_KEY, if it wants one)
Give it to a server, in this folder:      netra-ws serve --agent llm_agent:clerk
and ask it from another terminal:         netra-ws chat --agent clerk "Where is order 4711?"
Or see it work from end to end at once:   python llm_agent.py "Where is order 4711?"
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import trio

import netra_ws

ORDERS = {"4711": "on its way", "4712": "waiting for payment"}


@netra_ws.tool(timeout_s=10)
async def find_order(order_id: Annotated[str, "Digits, as the customer gives them"]) -> dict[str, Any]:
    """Tell the state of an order."""
    if order_id not in ORDERS:
        # The code and the text are for the user and go back to the model; any other exception tells them nothing.
        raise netra_ws.AgentError(f"there is no order {order_id}", code="NO_ORDER")
    return {"order_id": order_id, "state": ORDERS[order_id]}


@netra_ws.tool
async def cancel_order(run: netra_ws.Run, order_id: str) -> str:
    """Cancel an order. The customer is asked first."""
    if await run.ask(f"Cancel order {order_id}?", choices=["yes", "no"]) == "no":
        raise netra_ws.ToolDenied("the customer said no")
    ORDERS.pop(order_id, None)
    return "cancelled"


#: Streams text and reasoning, uses the tools (several at once), tells usage, and has the conversation as its memory.
clerk = netra_ws.LlmAgent(
    tools=[find_order, cancel_order],
    instructions="You are the clerk of a small shop. Use your tools; never guess. Answer in one or two sentences.",
    context_tokens=8_000,
    options={"temperature": 0.2},
)


async def main(text: str) -> None:
    """Run the agent once, without a client, and print what it does as it comes."""
    model = {name: os.environ.get(f"NETRA_WS_LLM_{name.upper()}") for name in ("base_url", "model", "api_key")}
    settings = netra_ws.Settings.make(
        {"server.port": 0, "store.url": "memory:", **{f"llm.{name}": value for name, value in model.items() if value}}
    )
    async with (
        netra_ws.open_server(settings, agents={"clerk": clerk}) as server,
        server.context_for(netra_ws.Identity("alice")) as context,
    ):
        async for heard in await context.start(text, agent="clerk"):
            fields = heard.fields
            if heard.type == "agent_message" and fields["phase"] == "delta":
                print(fields["content"], end="", flush=True)
            elif heard.type == "tool_completed":
                print(f"[{fields['tool_name']}: {fields['status']} {fields['results'] or fields.get('error')}]")
            elif heard.type == "agent_completed":
                print(f"\n{fields['status']} {fields.get('error') or ''} {fields.get('usage') or ''}")


if __name__ == "__main__":
    trio.run(main, " ".join(sys.argv[1:]) or "Where is order 4711?")
