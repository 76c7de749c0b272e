"""An MCP server as people write them, with the library's own server side.

Usage: ``real.py stdio``, or ``real.py http [json]``, which prints its port first.
"""

from __future__ import annotations

import socket
import sys

import anyio
import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from pydantic import BaseModel

server = MCPServer("real", version="1.0")


class Place(BaseModel):
    """Where something is."""

    name: str
    latitude: float


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def locate(name: str, tags: list[str] | None = None) -> Place:
    """Find a place."""
    return Place(name=name, latitude=52.5)


@server.tool()
async def count(to: int, ctx: Context) -> str:
    """Count, and tell how far it is."""
    for number in range(to):
        await ctx.report_progress(number + 1, to, f"at {number + 1}")
        await anyio.sleep(0.11)
    return "counted"


@server.tool()
async def wait() -> str:
    """Wait for ever."""
    print("waiting", file=sys.stderr, flush=True)
    try:
        await anyio.sleep_forever()
    finally:
        print("waited enough", file=sys.stderr, flush=True)


@server.tool()
def fail() -> str:
    """Fail."""
    raise ValueError("nothing works")


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run("stdio")
    else:
        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        app = server.streamable_http_app(json_response="json" in sys.argv)
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])
