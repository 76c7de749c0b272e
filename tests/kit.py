"""What the tests over sockets share: settings, tokens, and ways to the public kit's raw client."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from netra_ws.access import mint
from netra_ws.server import Server
from netra_ws.settings import Settings
from netra_ws.testing.frames import BINARY as BINARY
from netra_ws.testing.frames import CLOSE as CLOSE
from netra_ws.testing.frames import CONTINUATION as CONTINUATION
from netra_ws.testing.frames import PING as PING
from netra_ws.testing.frames import PONG as PONG
from netra_ws.testing.frames import TEXT as TEXT
from netra_ws.testing.frames import Answer as Answer
from netra_ws.testing.frames import Ended as Ended
from netra_ws.testing.frames import Frame as Frame
from netra_ws.testing.frames import Headers as Headers
from netra_ws.testing.frames import close_payload as close_payload
from netra_ws.testing.frames import frame as frame
from netra_ws.testing.frames import request as request
from netra_ws.testing.frames import upgrade as upgrade
from netra_ws.testing.frames import upgrade_headers as upgrade_headers
from netra_ws.testing.frames import xor as xor
from netra_ws.testing.raw import PATIENCE_S as PATIENCE_S
from netra_ws.testing.raw import RawClient

SECRET = "the tests' own secret, 32 bytes or more"


class Client(RawClient):
    """The public kit's client, which does nothing by itself, and what a client of manners does."""

    async def leave(self) -> Frame:
        """Read up to the server's Close frame, answer it, and end this side; the server waits three seconds for that.

        Raises:
            Ended: There was no Close frame.
        """
        received = await self.receive_close()
        await self.send_frame(CLOSE, received.payload)
        if isinstance(self.stream, trio.SocketStream):
            await self.stream.send_eof()
        return received


def settings(overrides: Mapping[str, object] | None = None, /, **more: object) -> Settings:
    """Return settings of the testing environment: port 0, a store in memory, the tests' secret.

    Names are dotted in *overrides*, with two underscores in *more*: ``limits__max_runs_per_user=1``.
    """
    names = {name.replace("__", "."): value for name, value in more.items()}
    return Settings.make(
        {"server.port": 0, "store.url": "memory:", "auth.secret": SECRET, **(overrides or {}), **names},
        environment="testing",
    )


def token(
    user: str = "ada", *, permissions: Iterable[str] | None = None, expires_s: float = 3600, **claims: object
) -> str:
    """Return a token that a server with ``settings()`` accepts."""
    return mint(SECRET, user, permissions, expires_s, time.time(), **claims)


def operator(user: str = "root") -> str:
    """Return a token of an operator."""
    return token(user, permissions=("chat", "read", "operator"))


async def dial(server: Server, *, receive_buffer: int | None = None) -> trio.SocketStream:
    """Open a TCP connection to a server; *receive_buffer* bytes of its data fit into this side."""
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        with trio.fail_after(PATIENCE_S):
            await sock.connect(("127.0.0.1", server.port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


@asynccontextmanager
async def raw(server: Server, *, receive_buffer: int | None = None) -> AsyncIterator[Client]:
    """Open a TCP connection on which nothing was said yet."""
    stream = await dial(server, receive_buffer=receive_buffer)
    try:
        yield Client(stream, patience_s=PATIENCE_S)
    finally:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def connect(
    server: Server,
    user: str = "ada",
    *,
    path: str = "/ws",
    bearer: str | None = None,
    protocols: Sequence[str] = ("netra.v1",),
    headers: Headers = (),
    welcome: bool = True,
    receive_buffer: int | None = None,
    **claims: Any,
) -> AsyncIterator[Client]:
    """Open a WebSocket as *user* and read the welcome; *claims* go into the token (see ``token``)."""
    async with raw(server, receive_buffer=receive_buffer) as client:
        head = upgrade(path, bearer=bearer or token(user, **claims), protocols=protocols, headers=headers)
        await client.open(head, welcome=welcome)
        yield client


async def http(
    server: Server,
    path: str,
    *,
    method: str = "GET",
    headers: Headers = (),
    bearer: str | None = None,
    body: bytes = b"",
    version: str = "1.1",
) -> Answer:
    """Make one HTTP request."""
    carried = [("authorization", f"Bearer {bearer}")] if bearer is not None else []
    return await exchange(server, request(path, [*headers, *carried], method=method, body=body, version=version))


async def exchange(server: Server, data: bytes) -> Answer:
    """Send bytes on a new connection and read the HTTP answer to them."""
    async with raw(server) as client:
        await client.send_bytes(data)
        return await client.read_answer()


# What a server holds.


@attrs.frozen
class Holdings:
    """What a server keeps of its clients; the same before and after they came and went.

    Not among it: entries of the heartbeat, which go at the next beat.
    """

    tasks: int
    seats: int
    connections: int
    readers: int
    users: int


def holdings(server: Server) -> Holdings:
    """Count what a server holds right now."""
    return Holdings(
        tasks=trio.lowlevel.current_statistics().tasks_living,
        seats=server.registry.seats,
        connections=sum(len(context.connections) for context in server.registry),
        readers=sum(stream.statistics().readers for stream in server.streams),
        users=server.registry.statistics().users,
    )


async def settles(server: Server, before: Holdings, *, within_s: float = 5.0) -> None:
    """Wait until the server holds what it held before.

    Raises:
        AssertionError: It does not within that time.
    """
    with trio.move_on_after(within_s):
        while holdings(server) != before:
            await trio.sleep(0.01)
        return
    raise AssertionError(f"{holdings(server)} instead of {before}")
