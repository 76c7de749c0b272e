"""An agent of your own: it thinks aloud, calls a tool, and streams its answer.

Give it to a server, in this folder:      netra-ws serve --agent custom_agent:count_words
and ask it from another terminal:         netra-ws chat --agent count_words "to be or not to be"
Or see it work from end to end at once:   python custom_agent.py "to be or not to be"
"""

from __future__ import annotations

import secrets
import sys
from collections import Counter

import trio

import netra_ws
from netra_ws.protocol.events import AgentCompleted, AgentMessage, AgentThinking, ToolCompleted, ToolExecuting


async def count_words(run: netra_ws.Run) -> str:
    """Tell which words of the text come most often."""
    await run.think(f"I will look at {len(run.text)} characters")
    async with run.tool("count", text=run.text) as call:  # tool_executing … tool_completed, always a pair
        call.results = dict(Counter(run.text.lower().split()).most_common(3))
    for word, times in call.results.items():
        await run.say(f"{word!r} comes {times} times. ")  # each piece reaches the readers at once
        await trio.sleep(0.01)
    return run.said


async def main(text: str) -> None:
    """Start a server in this program, ask the agent, print what it does."""
    settings = netra_ws.Settings.make(
        {"server.port": 0, "store.url": "memory:", "auth.secret": secrets.token_hex(32), "log.level": "warning"}
    )
    async with (
        netra_ws.open_server(settings, agents={"count_words": count_words}) as server,
        server.context_for(netra_ws.Identity("alice")) as context,
    ):
        run = await context.start(text, agent="count_words")
        async for heard in run:
            match heard.message:
                case AgentThinking(reasoning=reasoning):
                    print("thinks:", reasoning)
                case ToolExecuting(tool_name=name, parameters=parameters):
                    print("calls:", name, dict(parameters))
                case ToolCompleted(results=results):
                    print("got:", results)
                case AgentMessage(phase="full", content=content):
                    print("says:", content)
                case AgentCompleted(status=status, duration_ms=duration_ms):
                    print(f"done: {status} after {duration_ms} ms")


if __name__ == "__main__":
    trio.run(main, " ".join(sys.argv[1:]) or "to be or not to be")
