"""An identity service on the loopback that publishes its keys, well or badly."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

import attrs
import trio

Behaviour = Literal["answer", "hang", "hang in body", "drip", "cut", "silent close", "endless", "garbage", "raw"]


@attrs.define(eq=False)
class IdentityService:
    """What it answers next, and what it was asked.

    Attributes:
        heads: The request heads that came, as bytes.
    """

    body: bytes
    port: int = 0
    status: str = "200 OK"
    headers: tuple[str, ...] = ("Content-Type: text/html",)
    behaviour: Behaviour = "answer"
    scheme: str = "http"
    heads: list[bytes] = attrs.field(factory=list)

    @property
    def url(self) -> str:
        """Where its keys are."""
        return f"{self.scheme}://localhost:{self.port}/jwks?tenant=hidden"

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer one request."""
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                piece = await stream.receive_some()
                if not piece:
                    return
                head += piece
            self.heads.append(head)
            await self._answer(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the other side has had enough
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer(self, stream: trio.abc.Stream) -> None:
        head = "\r\n".join([f"HTTP/1.1 {self.status}", *self.headers, f"Content-Length: {len(self.body)}", "", ""])
        if self.behaviour == "answer":
            await stream.send_all(head.encode() + self.body)
        elif self.behaviour == "hang":
            await trio.sleep_forever()
        elif self.behaviour == "hang in body":
            await stream.send_all(head.encode() + self.body[:10])
            await trio.sleep_forever()
        elif self.behaviour == "drip":
            for byte in head.encode() + self.body:
                await stream.send_all(bytes([byte]))
                await trio.sleep(1.0)
        elif self.behaviour == "cut":
            await stream.send_all(head.encode() + self.body[:10])
        elif self.behaviour == "endless":
            await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                await stream.send_all(b"1000\r\n" + b" " * 4096 + b"\r\n")
        elif self.behaviour == "raw":
            await stream.send_all(self.body)
        elif self.behaviour == "garbage":
            await stream.send_all(b"\x00\xff" * 100 + b"\r\n\r\n")


@asynccontextmanager
async def identity_service(body: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[IdentityService]:
    """Run one that answers with *body*."""
    service = IdentityService(body, scheme="https" if tls else "http")

    async def greet(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await service.serve(trio.SSLStream(stream, tls, server_side=True, https_compatible=True) if tls else stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        service.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, greet, listeners)
        yield service
        nursery.cancel_scope.cancel()
