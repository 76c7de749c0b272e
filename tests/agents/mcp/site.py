"""An HTTP server of the test's own, which answers MCP's messages however the test wants."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import h11
import trio

from netra_ws import McpServer

#: Tells that a connection is to be cut where it is.
CUT = object()

TOOLS = [{"name": "echo", "inputSchema": {"type": "object"}}]
RESULTS: dict[str, Any] = {
    "initialize": {
        "protocolVersion": "2025-11-25",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "site", "version": "1"},
    },
    "tools/list": {"tools": TOOLS},
    "tools/call": {"content": [{"type": "text", "text": "echoed"}]},
}


@attrs.define
class Asked:
    """One request."""

    method: str
    target: str
    headers: dict[str, str]
    body: Any
    stream: trio.SocketStream

    @property
    def what(self) -> str:
        """The message's method, or that of the request without one."""
        return self.body.get("method", "answer") if isinstance(self.body, dict) else self.method


@attrs.define
class Answer:
    """What is sent for a request: a body, whole or in pieces; ``CUT`` among them ends the connection."""

    status: int = 200
    headers: dict[str, str] = attrs.field(factory=dict)
    body: Any = b""


Answering = Callable[[Asked], Awaitable[Answer | None]]


def result(asked: Asked, value: Any) -> Answer:
    """Answer a message with a result."""
    text = json.dumps({"jsonrpc": "2.0", "id": asked.body["id"], "result": value})
    return Answer(200, {"content-type": "application/json"}, text.encode())


def error(asked: Asked, code: int, message: str, data: Any = None) -> Answer:
    """Answer a message with an error."""
    said = {"code": code, "message": message, "data": data}
    text = json.dumps({"jsonrpc": "2.0", "id": asked.body["id"], "error": said})
    return Answer(200, {"content-type": "application/json"}, text.encode())


def usual(asked: Asked) -> Answer:
    """Answer as a good server does that has no streams."""
    if asked.what in RESULTS:
        answer = result(asked, RESULTS[asked.what])
        if asked.what == "initialize":
            answer.headers["mcp-session-id"] = "the-session"
        return answer
    if asked.method == "GET":
        return Answer(405)
    return Answer(200 if asked.method == "DELETE" else 202)


@attrs.define
class Site:
    """A server, and what it was asked."""

    answering: Answering
    port: int = 0
    asked: list[Asked] = attrs.field(factory=list)
    open: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def server(self, **more: Any) -> McpServer:
        """Return the value for agents."""
        return McpServer("site", url=self.url, **more)

    def whats(self) -> list[str]:
        return [each.what for each in self.asked]

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection."""
        self.open += 1
        try:
            async with stream:
                connection = h11.Connection(h11.SERVER)
                while await self._answer(stream, connection):
                    connection.start_next_cycle()
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass
        finally:
            self.open -= 1

    async def _answer(self, stream: trio.SocketStream, connection: h11.Connection) -> bool:
        request, body = None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        assert request is not None
        headers = {name.decode(): value.decode() for name, value in request.headers}
        method, target = request.method.decode(), request.target.decode()
        asked = Asked(method, target, headers, json.loads(body) if body else None, stream)
        self.asked.append(asked)
        answer = await self.answering(asked)
        if answer is None:
            return False
        whole = isinstance(answer.body, bytes)
        length = {"content-length": str(len(answer.body))} if whole else {}
        head = h11.Response(status_code=answer.status, headers=list({**length, **answer.headers}.items()))
        await stream.send_all(connection.send(head) or b"")
        for piece in [answer.body] if whole else answer.body:
            if piece is CUT:
                return False
            await stream.send_all(connection.send(h11.Data(data=piece)) or b"")
        await stream.send_all(connection.send(h11.EndOfMessage()) or b"")
        return connection.our_state is h11.DONE


@asynccontextmanager
async def open_site(answering: Answering | None = None) -> AsyncIterator[Site]:
    """Serve on a free port of the loopback."""

    async def as_usual(asked: Asked) -> Answer:
        return usual(asked)

    site = Site(answering or as_usual)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(lambda task_status: _serve(site, task_status))
        site.port = listeners[0].socket.getsockname()[1]
        yield site
        nursery.cancel_scope.cancel()


async def _serve(site: Site, task_status: Any) -> None:
    await trio.serve_tcp(site.serve, 0, host="127.0.0.1", task_status=task_status)
