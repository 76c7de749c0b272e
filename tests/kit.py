"""What the tests over sockets share: settings, tokens, and a client that may say any bytes at all.

The client knows no library: it writes what it is told and reads the server's frames strictly, so a
server that masks, fragments a control frame or uses a reserved bit fails the test at once. Every
wait of it has a deadline.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from netra_ws.access import mint
from netra_ws.server import Server
from netra_ws.settings import Settings

SECRET = "the tests' own secret, 32 bytes or more"
#: Seconds after which a wait of the client fails the test.
PATIENCE_S = 8.0

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

Headers = Iterable[tuple[str, str]]


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


# Bytes on the wire.


@attrs.frozen
class Frame:
    """One frame of the server."""

    opcode: int
    payload: bytes
    fin: bool = True

    @property
    def code(self) -> int:
        """The code of a Close frame; 1005 when it has none."""
        assert self.opcode == CLOSE, f"not a Close frame: {self}"
        return struct.unpack("!H", self.payload[:2])[0] if self.payload else 1005

    @property
    def reason(self) -> str:
        """The reason of a Close frame."""
        assert self.opcode == CLOSE, f"not a Close frame: {self}"
        return self.payload[2:].decode()

    def json(self) -> dict[str, Any]:
        """The object in a text frame."""
        assert self.opcode == TEXT, f"not a text frame: {self}"
        fields = json.loads(self.payload)
        assert isinstance(fields, dict)
        return fields


def frame(
    opcode: int,
    payload: bytes | str = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\x12\x34\x56\x78",
    size: int | None = None,
    wide: int | None = None,
) -> bytes:
    """Return a frame as a client writes it, or as no client should.

    Args:
        mask: None leaves the frame unmasked, which only servers may do.
        size: The length to claim instead of the true one.
        wide: 16 or 64: the length is written with so many bits even when it is small.
    """
    body = payload.encode() if isinstance(payload, str) else payload
    claimed = len(body) if size is None else size
    first = (fin << 7) | (rsv << 4) | opcode
    bit = 0 if mask is None else 0x80
    if wide == 64 or (wide is None and claimed > 0xFFFF):
        head = struct.pack("!BBQ", first, bit | 127, claimed)
    elif wide == 16 or claimed > 125:
        head = struct.pack("!BBH", first, bit | 126, claimed)
    else:
        head = struct.pack("!BB", first, bit | claimed)
    return head + body if mask is None else head + mask + xor(body, mask)


def xor(body: bytes, mask: bytes) -> bytes:
    """Return *body* masked (RFC 6455 §5.3)."""
    key = (mask * (len(body) // 4 + 1))[: len(body)]
    return (int.from_bytes(body, "big") ^ int.from_bytes(key, "big")).to_bytes(len(body), "big")


def close_payload(code: int, reason: str = "") -> bytes:
    """Return the payload of a Close frame."""
    return struct.pack("!H", code) + reason.encode()


def request(
    path: str = "/ws", headers: Headers = (), *, method: str = "GET", body: bytes = b"", version: str = "1.1"
) -> bytes:
    """Return an HTTP request."""
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *(f"{name}: {value}" for name, value in headers)]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def upgrade_headers(*, key: str | None = None, without: Sequence[str] = (), **other: str) -> list[tuple[str, str]]:
    """Return the headers of an opening handshake; *other* replaces or adds (``sec_websocket_version="8"``)."""
    headers = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-version": "13",
        "sec-websocket-key": key or base64.b64encode(os.urandom(16)).decode(),
        **{name.replace("_", "-"): value for name, value in other.items()},
    }
    return [(name, value) for name, value in headers.items() if name not in without]


def upgrade(
    path: str = "/ws",
    *,
    bearer: str | None = None,
    protocols: Sequence[str] = ("netra.v1",),
    headers: Headers = (),
    key: str | None = None,
) -> bytes:
    """Return an opening handshake."""
    lines = upgrade_headers(key=key)
    if bearer is not None:
        lines.append(("authorization", f"Bearer {bearer}"))
    if protocols:
        lines.append(("sec-websocket-protocol", ", ".join(protocols)))
    return request(path, [*lines, *headers])


@attrs.frozen
class Answer:
    """An HTTP answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


class Ended(Exception):
    """The server closed the TCP connection where more was expected."""


# The client.


@attrs.define(eq=False)
class Client:
    """A raw client on any stream.

    Attributes:
        answer: The head of the server's answer to the last request.
        welcome: Its first frame after the upgrade, once it was read.
        answers_pings: Whether ``receive`` sends pongs.
    """

    stream: trio.abc.Stream
    answers_pings: bool = True
    answer: Answer | None = None
    welcome: dict[str, Any] = attrs.field(factory=dict)
    _buffer: bytearray = attrs.field(factory=bytearray)
    _ids: int = 0

    # Writing.

    async def send_bytes(self, data: bytes) -> None:
        """Write *data* as it is."""
        with trio.fail_after(PATIENCE_S):
            await self.stream.send_all(data)

    async def send_frame(self, opcode: int, payload: bytes | str = b"", **how: Any) -> None:
        """Write one frame; see ``frame``."""
        await self.send_bytes(frame(opcode, payload, **how))

    async def send(self, type_name: str, /, **fields: object) -> None:
        """Say a command."""
        await self.send_frame(TEXT, json.dumps({"type": type_name, **fields}))

    async def say(self, text: str) -> None:
        """Send a text message as it is."""
        await self.send_frame(TEXT, text)

    # Reading.

    async def read_head(self) -> Answer:
        """Read the head of an HTTP answer."""
        with trio.fail_after(PATIENCE_S):
            while b"\r\n\r\n" not in self._buffer:
                await self._more()
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self._buffer[:] = rest
        first, *lines = head.decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            before = headers.get(name.lower())
            headers[name.lower()] = value if before is None else f"{before}, {value}"
        self.answer = Answer(int(first.split(" ")[1]), headers, b"")
        return self.answer

    async def read_answer(self) -> Answer:
        """Read a whole HTTP answer and the end of the connection behind it."""
        answer = await self.read_head()
        return attrs.evolve(answer, body=await self.read_rest())

    async def read_rest(self) -> bytes:
        """Read everything up to the server's end; a reset counts as one only after a whole answer."""
        with trio.fail_after(PATIENCE_S):
            try:
                while True:
                    await self._more()
            except Ended:
                pass
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    async def _more(self) -> None:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            raise Ended("reset") from None
        if not data:
            raise Ended("end of stream")
        self._buffer += data

    async def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._more()
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def receive_frame(self, patience_s: float = PATIENCE_S) -> Frame:
        """Read the next frame, whatever it is, and check what RFC 6455 asks of a server's frame.

        Raises:
            Ended: The connection was closed.
        """
        with trio.fail_after(patience_s):
            first, second = await self._take(2)
            assert not first & 0x70, f"reserved bits in {first:#x}"
            assert not second & 0x80, "a server must not mask"
            size = second
            if size == 126:
                (size,) = struct.unpack("!H", await self._take(2))
                assert size > 125
            elif size == 127:
                (size,) = struct.unpack("!Q", await self._take(8))
                assert size > 0xFFFF
            payload = await self._take(size)
        opcode, fin = first & 0x0F, bool(first & 0x80)
        assert opcode in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG), f"opcode {opcode}"
        assert opcode < CLOSE or (fin and size <= 125), "a control frame that is none"
        return Frame(opcode, payload, fin)

    async def receive_data(self, patience_s: float = PATIENCE_S) -> Frame:
        """Read the next frame that is no ping or pong; pings are answered."""
        while True:
            received = await self.receive_frame(patience_s)
            if received.opcode == PING and self.answers_pings:
                await self.send_frame(PONG, received.payload)
            elif received.opcode not in (PING, PONG):
                return received

    async def receive(self) -> dict[str, Any]:
        """Read the next JSON message; a Close frame fails the test."""
        received = await self.receive_data()
        assert received.opcode != CLOSE, f"closed with {received.code} {received.reason!r}"
        return received.json()

    async def until(self, type_name: str, **wanted: object) -> list[dict[str, Any]]:
        """Read messages up to the first one of that type with those fields; the last is that one."""
        seen: list[dict[str, Any]] = []
        with trio.fail_after(PATIENCE_S):
            while True:
                message = await self.receive()
                seen.append(message)
                if message["type"] == type_name and all(message.get(name) == value for name, value in wanted.items()):
                    return seen

    async def ask(self, type_name: str, /, **fields: object) -> dict[str, Any]:
        """Say a command with an id and return its answer; events in between are dropped."""
        self._ids += 1
        command_id = str(fields.pop("id", f"c{self._ids}"))
        await self.send(type_name, id=command_id, **fields)
        with trio.fail_after(PATIENCE_S):
            while True:
                message = await self.receive()
                if message.get("reply_to") == command_id:
                    return message

    async def receive_close(self) -> Frame:
        """Read up to the server's Close frame.

        Raises:
            Ended: There was none.
        """
        with trio.fail_after(PATIENCE_S):
            while True:
                received = await self.receive_frame()
                if received.opcode == CLOSE:
                    return received

    async def finish(self, code: int = 1000) -> Frame:
        """Say Close, and return the server's."""
        await self.send_frame(CLOSE, close_payload(code))
        return await self.receive_close()

    async def receive_end(self) -> bytes:
        """Read to the end of the connection; return the bytes that came before it."""
        return await self.read_rest()

    # Opening and closing.

    async def open(self, head: bytes, *, welcome: bool = True) -> None:
        """Send an opening handshake, expect the 101, and read the welcome."""
        await self.send_bytes(head)
        answer = await self.read_head()
        if answer.status != 101:
            answer = attrs.evolve(answer, body=await self.read_rest())
        assert answer.status == 101, answer
        if welcome:
            self.welcome = await self.receive()
            assert self.welcome["type"] == "connection_established"

    def reset(self) -> None:
        """Close with a TCP reset, as a process that is killed with unread data does."""
        assert isinstance(self.stream, trio.SocketStream)
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


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
        yield Client(stream)
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
