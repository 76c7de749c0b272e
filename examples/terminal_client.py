"""A client in a few lines: asks, prints the answer as it comes, reconnects by itself.

    python terminal_client.py http://127.0.0.1:8000 "$(netra-ws token --user alice)" "What is 17% of 2,340?"

More texts go on in the same conversation. Stop the server while it answers and start it again: the
client goes on where it was.
"""

from __future__ import annotations

import sys

import trio

import netra_ws
from netra_ws.protocol.events import AgentMessage, ToolExecuting
from netra_ws.session import StateChange, message_text


def tell(change: StateChange) -> None:
    """Show how the connection is doing."""
    print(f"[{change.state.value}] {change.reason}".rstrip(), file=sys.stderr)


async def ask(session: netra_ws.Session, text: str) -> None:
    """Say a text and print the run that answers."""
    run = await session.start(text)
    shown, current = "", ""
    async for heard in run:
        match heard.message:
            case ToolExecuting(tool_name=name):
                print(f"({name} …)")
            case AgentMessage() as message:
                if message.message_id != current:
                    shown, current = "", message.message_id
                answer = message_text(shown, message)  # a delta is appended, a full text replaces it
                print(answer[len(shown) :], end="", flush=True)
                shown = answer
    print()
    completed = await run.result()
    print(f"{completed.status}, {completed.events} events, now at {session.position}")


async def main(url: str, token: str, texts: list[str]) -> None:
    async with netra_ws.connect(url, token, on_state=tell) as session:
        for text in texts or ["What can you do?"]:
            await ask(session, text)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3:])
    except netra_ws.SessionError as error:
        sys.exit(f"no: {error}")
