"""A server in memory that plays scripts, one for each connection; for tests of clients, on a virtual clock."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs
import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from netra_ws.client import ClientPolicy

JWT = "aaa.bbb.ccc"


@attrs.define(eq=False)
class Visit:
    """One connection as the scripted server sees it."""

    socket: WebSocketConnection
    query: dict[str, list[str]]

    async def welcome(self, seq: int = 0, **more: object) -> None:
        frame: dict[str, object] = {
            "type": "connection_established",
            "connection_id": "c",
            "user_id": "ada",
            "protocol": "netra.v1",
            "server_time": 1.0,
            "heartbeat_interval_s": 25,
            "pong_timeout_s": 8,
            "limits": {
                "max_message_bytes": 1000,
                "messages_per_minute": 30,
                "max_connections_per_user": 10,
                "max_runs_per_user": 8,
            },
            "stream": {"epoch": "e", "seq": seq},
            "resume_window_s": 30,
            "resumed": False,
            "active_runs": [],
            "pending_inputs": [],
            "agents": ["echo"],
            "connection_ready": True,
        }
        await self.say(**frame | more)

    async def say(self, **frame: object) -> None:
        await self.socket.send_message(json.dumps(frame))

    async def event(self, type_: str, seq: int, **fields: object) -> None:
        names = {"thread_id": "t", "run_id": "r", "agent_name": "a"}
        stamp = {"event_id": f"i{seq}", "seq": seq, "timestamp": 1.0, "user_id": "ada"}
        await self.say(type=type_, **stamp, **names | fields)

    async def completed(self, seq: int) -> None:
        await self.event(
            "agent_completed", seq, status="success", success=True, final_response="", duration_ms=1, events=2
        )

    async def command(self, type_: str) -> dict[str, Any]:
        command: dict[str, Any] = json.loads(await self.socket.get_message())
        assert command["type"] == type_
        return command

    async def started(self, seq: int) -> dict[str, Any]:
        """Answer a start as the server does: first its ``user_message``, then the ack."""
        command = await self.command("user_message")
        await self.event(
            "user_message", seq, message_id="m", content="hi", disposition="started", command_id=command["id"]
        )
        await self.ack(command, run_id="r", thread_id="t", message_id="m", disposition="started")
        return command

    async def ack(self, command: dict[str, Any], **fields: object) -> None:
        await self.say(type="ack", reply_to=command["id"], timestamp=1.0, **fields)

    async def goodbye(self) -> None:
        """Answer the client's disconnect, as every script ends whose client leaves by itself."""
        await self.ack(await self.command("disconnect"))
        await self.socket.aclose(1000)


@attrs.frozen
class Refuse:
    """A script: an HTTP answer instead of a socket."""

    status: int
    code: str = "WORD"
    retry_after: str | None = None
    body: bytes | None = None


#: Fields of an ``agent_completed``.
ENDED = {"status": "success", "success": True, "final_response": "", "duration_ms": 1, "events": 2}

Script = Callable[[Visit], Awaitable[None]] | Refuse | OSError
Scripted = Callable[..., ClientPolicy]


@attrs.define(eq=False)
class ScriptedServer:
    """Plays one script per connection; when there are none left, nobody is there."""

    nursery: trio.Nursery
    scripts: list[Script] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)
    tokens: list[str] = attrs.field(factory=list)

    def policy(self, *scripts: Script, **more: Any) -> ClientPolicy:
        self.scripts += scripts
        return ClientPolicy(open_stream=self.open_stream, **{"random": lambda: 0.5, **more})

    async def open_stream(self, host: str, port: int, context: object) -> trio.abc.Stream:
        self.times.append(trio.current_time())
        if not self.scripts:
            raise OSError("nobody is there")
        script = self.scripts.pop(0)
        if isinstance(script, OSError):
            raise script
        mine, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._play, script, mine)
        return theirs

    async def _play(self, script: Callable[[Visit], Awaitable[None]] | Refuse, stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream)
            self.tokens.append(dict(request.headers)[b"authorization"].decode().removeprefix("Bearer "))
            if isinstance(script, Refuse):
                body = script.body
                if body is None:
                    body = json.dumps({"code": script.code, "error": "no"}).encode()
                headers = [(b"content-length", str(len(body)).encode())]
                if script.retry_after is not None:
                    headers.append((b"Retry-After", script.retry_after.encode()))
                await request.reject(script.status, extra_headers=headers, body=body)
            else:
                socket = await request.accept(subprotocol="netra.v1")
                with contextlib.suppress(ConnectionClosed):  # the client may go first
                    await script(Visit(socket, parse_qs(urlsplit(request.path).query)))
            await stream.aclose()
            nursery.cancel_scope.cancel()


async def idle(visit: Visit) -> None:
    """Welcome the client and let it leave."""
    await visit.welcome()
    await visit.goodbye()
