"""Streams of frames behind a good upgrade."""

from __future__ import annotations

from netra_ws.testing.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_payload, frame

_PING = frame(TEXT, '{"type":"ping","id":"p"}')
_LIST = frame(TEXT, '{"type":"list_threads","id":"l"}')

SEEDS: tuple[bytes, ...] = (
    _PING,
    _PING + _LIST + frame(CLOSE, close_payload(1000, "bye")),
    frame(TEXT, '{"type":"create_thread","id":"c","title":"ü"}') + _LIST,
    frame(TEXT, '{"jsonrpc":"2.0","id":7,"method":"ping","params":{}}'),
    frame(TEXT, '{"jsonrpc":"2.0","method":"ping"}') + frame(TEXT, '{"type":"disconnect","id":"d"}') + _PING,
    frame(TEXT, '{"type":"pi', fin=False) + frame(PING, "x") + frame(CONTINUATION, 'ng","id":"f"}'),
    frame(TEXT, b'{"type":"ping","id":"\xc3', fin=False) + frame(CONTINUATION, b'\xbc"}'),
    frame(TEXT, b"\xf0\x9f", fin=False) + frame(CONTINUATION, b"\x98"),
    frame(TEXT, "") * 19 + _PING,
    frame(TEXT, "") * 25,
    frame(TEXT, "{", fin=False) + frame(CONTINUATION, " ", fin=False) * 300,
    frame(PING, "x" * 125) + frame(PONG, "y") * 3 + frame(PING),
    frame(PING, "x") * 70,
    frame(CLOSE) + _PING,
    frame(CLOSE, b"\x03"),
    frame(CLOSE, close_payload(1005)),
    frame(CLOSE, close_payload(4999)),
    frame(CLOSE, b"\x03\xe8\xff"),
    frame(TEXT, '{"type":"disconnect","id":"d"}') + frame(PING, "late") * 150,
    frame(BINARY, "") + frame(PING, "late") * 150,
    frame(TEXT, "x" * 4096) + _PING,
    frame(TEXT, "x" * 5000),
    frame(TEXT, "x" * 3000, fin=False) + frame(CONTINUATION, "x" * 1096, fin=False) + frame(CONTINUATION, "x"),
    frame(TEXT, "", size=2**62),
    frame(TEXT, "", size=2**63),
    frame(TEXT, "x", wide=16),
    frame(TEXT, "x" * 200, wide=64),
    frame(TEXT, "x", mask=None),
    frame(TEXT, '{"type":"ping"}', mask=bytes(4)),
    frame(TEXT, "x", rsv=4),
    frame(BINARY, b"x") + _PING,
    frame(BINARY, b"x") + frame(3, b"x"),
    frame(11, b"x"),
    frame(PING, "x", fin=False),
    frame(PING, "x" * 126),
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"",
)
