"""What RFC 6455 and the protocol say about a stream of frames: a second reading, written for clarity alone.

It knows all bytes at once, so it needs neither buffers nor states that survive a cut.
"""

from __future__ import annotations

import codecs
import struct

import attrs

from netra_ws.protocol.reading import read_command
from netra_ws.protocol.replies import MALFORMED, MAX_MALFORMED
from netra_ws.testing.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT

#: Codes that a peer may send (RFC 6455 §7.4, and those that were registered later).
_CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)})


@attrs.define
class Expected:
    """What the server has to say to a stream of frames.

    Attributes:
        codes: The Close codes that may come, None for an end without one.
        pongs: Payloads of the pongs, in order.
        errors: The codes of malformed messages, in order.
        cut_short: Whether the server may stop reading anywhere behind the message that made it close.
    """

    codes: set[int | None] = attrs.field(factory=set)
    pongs: list[bytes] = attrs.field(factory=list)
    errors: list[str] = attrs.field(factory=list)
    cut_short: bool = False


@attrs.frozen
class _Head:
    first: int
    second: int
    size: int
    length: int
    mask: bytes

    @property
    def opcode(self) -> int:
        return self.first & 0x0F


def _read_head(data: bytes) -> _Head | None:
    """Return the head at the beginning of *data*, None when it is not complete."""
    if len(data) < 2:
        return None
    second = data[1]
    wide = {126: 2, 127: 8}.get(second & 0x7F, 0)
    size = 2 + wide + (4 if second & 0x80 else 0)
    if len(data) < size:
        return None
    length = int.from_bytes(data[2 : 2 + wide], "big") if wide else second & 0x7F
    return _Head(data[0], second, size, length, data[2 + wide : size])


@attrs.define
class Oracle:
    """Reads a stream from its first byte to the first one that may not be there.

    Attributes:
        most_bytes: Of one message.
        most_fragments: Continuation frames of one message.
    """

    most_bytes: int
    most_fragments: int
    expected: Expected = attrs.field(factory=Expected)
    _opcode: int | None = None
    _message: bytes = b""
    _fragments: int = 0
    _malformed: int = 0

    def read(self, data: bytes) -> Expected:
        """Return what has to be said to *data* and the client's end behind it."""
        expected = self.expected
        while data:
            head = _read_head(data)
            if head is None:
                # What is wrong with it may be told before it is complete.
                expected.codes |= {None, 1002, 1008, 1009}
                return expected
            code = self._judge_head(head)
            if code is None:
                payload = _unmasked(data[head.size : head.size + head.length], head.mask)
                whole = len(data) >= head.size + head.length
                code = self._judge(head, payload, whole=whole)
                if not whole and code is None:
                    break
                data = data[head.size + head.length :]
            if code is not None:
                expected.codes.add(code)
                return expected
        if not expected.cut_short:
            expected.codes.add(None)
        return expected

    def _judge_head(self, head: _Head) -> int | None:
        form, opcode = head.second & 0x7F, head.opcode
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG) or head.first & 0x70 or not head.mask:
            return 1002
        if opcode >= CLOSE:
            return 1002 if form > 125 or not head.first & 0x80 else None
        if (form == 126 and head.length < 126) or (form == 127 and not 2**16 <= head.length < 2**63):
            return 1002
        if (opcode == CONTINUATION) != (self._opcode is not None):
            return 1002
        self._fragments = self._fragments + 1 if opcode == CONTINUATION else 0
        if len(self._message) + head.length > self.most_bytes:
            return 1009
        return 1008 if self._fragments > self.most_fragments else None

    def _judge(self, head: _Head, payload: bytes, *, whole: bool) -> int | None:
        if head.opcode == CLOSE:
            return _judge_close(payload) if whole else None
        if head.opcode in (PING, PONG):
            if head.opcode == PING and whole:
                self.expected.pongs.append(payload)
            return None
        self._opcode = head.opcode if self._opcode is None else self._opcode
        self._message += payload
        final = whole and bool(head.first & 0x80)
        if self._opcode == TEXT and not _is_utf8(self._message, final=final):
            return 1007
        if final:
            self._hear(self._message)
            self._opcode, self._message = None, b""
        return None

    def _hear(self, message: bytes) -> None:
        expected = self.expected
        if expected.cut_short:
            return
        if self._opcode == BINARY:
            expected.codes.add(1003)
            expected.cut_short = True
            return
        incoming = read_command(message)
        if incoming.error is not None:
            if not incoming.silent:
                expected.errors.append(incoming.error.code)
            self._malformed = self._malformed + 1 if incoming.error.code in MALFORMED else 0
        else:
            self._malformed = 0
        if self._malformed == MAX_MALFORMED:
            expected.codes.add(1008)
            expected.cut_short = True
        if incoming.type_name == "disconnect" and incoming.command is not None:
            expected.codes.add(1000)
            expected.cut_short = True


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[position % 4] for position, byte in enumerate(payload))


def _is_utf8(data: bytes, *, final: bool) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, final)
    except UnicodeDecodeError:
        return False
    return True


def _judge_close(payload: bytes) -> int:
    """Return the code that answers a Close: its own, or what is wrong with it; 1005 for none."""
    if not payload:
        return 1005
    if len(payload) == 1:
        return 1002
    (code,) = struct.unpack("!H", payload[:2])
    if code not in _CODES:
        return 1002
    return int(code) if _is_utf8(payload[2:], final=True) else 1007
