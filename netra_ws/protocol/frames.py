"""WebSocket frames as a server writes them: whole, unmasked, ready for any number of sockets (RFC 6455 §5.2)."""

from __future__ import annotations

import struct


def text_frame(payload: bytes) -> bytes:
    """Return *payload* as one complete, unmasked text frame."""
    size = len(payload)
    if size < 126:
        return b"\x81" + size.to_bytes(1, "big") + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


def frame_payload(frame: bytes) -> bytes:
    """Return the payload of a frame made by ``text_frame``."""
    return frame[{126: 4, 127: 10}.get(frame[1], 2) :]


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a Close frame; the reason is cut to the 123 bytes that a control frame has room for."""
    body = struct.pack("!H", code) + reason.encode()[:123].decode(errors="ignore").encode()
    return bytes((0x88, len(body))) + body


def ping_frame(payload: bytes = b"") -> bytes:
    """Return a Ping frame with at most 125 bytes of payload."""
    return bytes((0x89, len(payload))) + payload
