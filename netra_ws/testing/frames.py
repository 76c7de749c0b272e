"""What a client may write, byte by byte, and how a server's frames look: no library in between."""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

Headers = Iterable[tuple[str, str]]


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
