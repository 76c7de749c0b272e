"""A TCP proxy that lets bad things happen to the connections through it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum

import attrs
import trio

from .postgres import Postgres


class Fate(Enum):
    """What becomes of the bytes."""

    PASS = "they go through"
    COMMIT_LOST = "the next COMMIT does not reach the server; both sides are cut"
    ANSWER_LOST = "the next COMMIT reaches the server, its answer not the client; both sides are cut"
    SILENCE = "nothing goes through, and nobody is told"
    REFUSE = "every connection is cut, also new ones"


@attrs.define(eq=False)
class Proxy:
    """Stands before a server on a port of its own."""

    port: int
    target: int
    fate: Fate = Fate.PASS
    commits: int = 0
    _pairs: set[tuple[trio.SocketStream, trio.SocketStream]] = attrs.Factory(set)

    def cut(self, fate: Fate = Fate.PASS) -> None:
        """Cut what goes through now; what comes later meets *fate*."""
        self.fate = fate
        for pair in self._pairs:
            for stream in pair:
                stream.socket.close()

    async def serve(self, client: trio.SocketStream) -> None:
        """Forward one connection."""
        if self.fate is Fate.REFUSE:
            return
        server = await trio.open_tcp_stream("127.0.0.1", self.target)
        pair = (client, server)
        self._pairs.add(pair)
        try:
            async with client, server, trio.open_nursery() as nursery:
                watched = trio.Event()
                nursery.start_soon(self._up, client, server, watched, nursery.cancel_scope)
                nursery.start_soon(self._down, client, server, watched, nursery.cancel_scope)
        finally:
            self._pairs.discard(pair)

    async def _up(
        self, client: trio.SocketStream, server: trio.SocketStream, watched: trio.Event, scope: trio.CancelScope
    ) -> None:
        try:
            async for said in client:
                if b"COMMIT" in said:
                    self.commits += 1
                    if self.fate is Fate.COMMIT_LOST:
                        self.fate = Fate.PASS
                        break
                    if self.fate is Fate.ANSWER_LOST:
                        self.fate = Fate.PASS
                        watched.set()
                if self.fate is not Fate.SILENCE:
                    await server.send_all(said)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        if self.fate is not Fate.SILENCE:
            scope.cancel()

    async def _down(
        self, client: trio.SocketStream, server: trio.SocketStream, watched: trio.Event, scope: trio.CancelScope
    ) -> None:
        try:
            async for said in server:
                if watched.is_set():
                    break
                if self.fate is not Fate.SILENCE:
                    await client.send_all(said)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        if self.fate is not Fate.SILENCE:
            scope.cancel()


@asynccontextmanager
async def proxy(postgres: Postgres) -> AsyncIterator[Proxy]:
    """Run a proxy before *postgres*."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        made = Proxy(listener.socket.getsockname()[1], postgres.port)
        nursery.start_soon(trio.serve_listeners, made.serve, [listener])
        yield made
        nursery.cancel_scope.cancel()
