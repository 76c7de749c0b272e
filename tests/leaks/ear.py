"""A client of a real server that remembers every byte that it was sent."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from netra_ws.testing.raw import RawClient


@attrs.define(eq=False)
class _Heard(trio.abc.Stream):
    """A stream that copies what it receives."""

    inner: trio.SocketStream
    heard: bytearray

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self.inner.receive_some(max_bytes)
        self.heard += data
        return bytes(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.inner.aclose()


@attrs.define(eq=False)
class Ear:
    """Opens connections to one port.

    Attributes:
        heard: Everything that was received, by what it was the answer to.
    """

    port: int
    heard: dict[str, bytearray] = attrs.field(factory=dict)

    @asynccontextmanager
    async def dial(self, what: str) -> AsyncIterator[RawClient]:
        """Open a connection on which nothing was said yet."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        try:
            yield RawClient(_Heard(stream, self.heard.setdefault(what, bytearray())))
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def exchange(self, what: str, data: bytes) -> bytes:
        """Send bytes on a new connection and return all that comes back."""
        async with self.dial(what) as client:
            assert isinstance(client.stream, _Heard)
            with contextlib.suppress(trio.BrokenResourceError):  # it may be refused before it was all said
                await client.send_bytes(data)
                await client.stream.inner.send_eof()
            return await client.read_rest()
