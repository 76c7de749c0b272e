"""An agent of an asyncio framework behind netra_ws: pydantic-ai here, with its test model, so without a network.

Give it to a server, in this folder:      python -m netra_ws --agent langgraph_or_pydantic_agent:agent
and ask it from another terminal:         netra-ws chat --agent agent "How is the weather in Paris?"
Or see it work from end to end at once:   python langgraph_or_pydantic_agent.py

Needs ``pip install pydantic-ai-slim``. The same for LangGraph is at the end of ``agent``.
"""

from __future__ import annotations

import asyncio

import trio
from pydantic_ai import Agent, RunContext
from pydantic_ai.models.test import TestModel

import netra_ws
from netra_ws.testing import run_agent

# As the framework's own documentation has it; only the model is one for tests. It calls each tool once.
weather_agent = Agent(TestModel(custom_output_text="It is sunny in Paris."), deps_type=netra_ws.AsyncioRun)


@weather_agent.tool
async def weather(context: RunContext[netra_ws.AsyncioRun], city: str) -> str:
    """Return the weather of a city."""
    # What the framework calls dependencies is the way for the run to its tools: the user sees them work.
    async with context.deps.tool("weather", city=city) as call:  # tool_executing … tool_completed, always a pair
        await asyncio.sleep(0.01)  # a request to somewhere; a stop of the user cancels it
        call.results = "sunny"
    return call.results


@netra_ws.bridge  # from here on it is asyncio, in a thread that all such agents of the server share
async def agent(run: netra_ws.AsyncioRun) -> str:
    """Stream the answer of an agent of pydantic-ai."""
    async with weather_agent.run_stream(run.text, deps=run) as answer:
        async for piece in answer.stream_text(delta=True, debounce_by=None):
            await run.say(piece)  # each piece reaches the readers at once
        used = answer.usage
        await run.usage("test", "test", input_tokens=used.input_tokens, output_tokens=used.output_tokens)

    # A graph of LangGraph, compiled once beside the functions above, streams the same way:
    #
    #     question = {"messages": [("user", run.text)]}
    #     async for message, _ in graph.astream(question, stream_mode="messages"):
    #         await run.say(message.text)
    #
    # Blocking code goes into a thread: await asyncio.to_thread(function). Tasks that are left are cancelled
    # when the function returns, and all of it when the user stops the run or it is over in another way.
    return run.said


async def main() -> None:
    """Run the agent once, without a client, and print its events."""
    for heard in await run_agent(agent, "How is the weather in Paris?"):
        told = heard.fields.get("content") or heard.fields.get("results") or heard.fields.get("final_response") or ""
        print(heard.type, heard.fields.get("phase", ""), told)


if __name__ == "__main__":
    trio.run(main)
