"""A server inside a Trio program, beside the program's own work.

The program holds one user's context open without a socket, starts a run in it, and follows the
user's events; whoever connects as that user sees the same events in the same order.

    python embedded_server.py [--port 8000] [--once] ["What is 17% of 2,340?"]

``--once`` ends after the answer; without it the server goes on until Ctrl-C.
"""

from __future__ import annotations

import argparse
import secrets

import trio

import netra_ws
from netra_ws.protocol.events import AgentCompleted


async def follow(context: netra_ws.UserSession, after: netra_ws.Position, run_id: str) -> None:
    """Print the user's events behind a position until a run has ended."""
    async for heard in context.events(after=after):
        print(heard.stamp.seq if heard.stamp else "-", heard.type)
        if isinstance(heard.message, AgentCompleted) and heard.message.run_id == run_id:
            print(f"{heard.message.status}: {heard.message.final_response}")
            return


async def main(args: argparse.Namespace) -> None:
    settings = netra_ws.Settings.make(
        {"server.port": args.port, "store.url": "memory:", "auth.secret": secrets.token_hex(32)}
    )
    async with trio.open_nursery() as nursery:
        server: netra_ws.Server = await nursery.start(netra_ws.serve, settings)
        print(f"serving at {server.url}")
        async with server.context_for(netra_ws.Identity("alice")) as context:
            before = context.position
            run = await context.start(args.text)
            await follow(context, before, run.run_id)
        if args.once:
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A server inside a Trio program.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("text", nargs="?", default="What is 17% of 2,340?")
    try:
        trio.run(main, parser.parse_args())
    except KeyboardInterrupt:
        print("bye")
