"""Sockets of programs that embed the older manager: fakes with ``send_json``, and a real one with ``send_message``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from trio.testing import memory_stream_pair
from trio_websocket import WebSocketConnection as RealSocket
from trio_websocket import wrap_client_stream, wrap_server_stream


@attrs.define(eq=False)
class JsonSocket:
    """Takes objects: at once, after some seconds, never (``stalled``), or by raising ``error``.

    Attributes:
        got: What it has taken, in order.
        closed: What it was closed with.
    """

    error: BaseException | None = None
    takes_s: float = 0.0
    stalled: bool = False
    got: list[dict[str, Any]] = attrs.field(factory=list)
    closed: list[tuple[int, str]] = attrs.field(factory=list)
    busy: bool = False

    async def send_json(self, message: dict[str, Any]) -> None:
        assert not self.busy, "two messages at the same time"
        self.busy = True
        try:
            await (trio.sleep_forever() if self.stalled else trio.sleep(self.takes_s))
        finally:
            self.busy = False
        if self.error is not None:
            raise self.error
        self.got.append(message)

    async def close(self, code: int, reason: str) -> None:
        self.closed.append((code, reason))

    @property
    def types(self) -> list[str]:
        """The types of what it has taken."""
        return [message["type"] for message in self.got]


def texts(sockets: Iterable[JsonSocket]) -> list[list[str]]:
    """Return the types of what each socket has taken."""
    return [socket.types for socket in sockets]


@asynccontextmanager
async def real_pair() -> AsyncIterator[tuple[RealSocket, RealSocket]]:
    """Give both ends of a WebSocket of trio-websocket: the server's, and its client's."""
    near, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        ends: dict[str, RealSocket] = {}

        async def accept() -> None:
            ends["server"] = await (await wrap_server_stream(nursery, near)).accept()

        async def connect() -> None:
            ends["client"] = await wrap_client_stream(nursery, far, "localhost", "/")

        async with trio.open_nursery() as opening:
            opening.start_soon(accept)
            opening.start_soon(connect)
        yield ends["server"], ends["client"]
        nursery.cancel_scope.cancel()
