"""Follows a client's frames by their heads alone, ahead of the library, which looks too late in three cases.

trio-websocket keeps every fragment until the message is complete and bounds only the sum of their
characters, so empty fragments without end would grow its memory without end; it refuses a message when more
has come than is allowed, though the head has announced it long before; and it works through everything that
one read brings without a break, which ten thousand frames of six bytes make a long time for everybody.

Content is not looked at. What is no frame is left to the library, which closes with 1002 for it: it gets
every byte up to the frame that is judged here.
"""

from __future__ import annotations

import attrs

from netra_ws.protocol.closing import CloseCode

#: Smallest average size of a fragment, in bytes, below which a message counts as an attack; short messages
#: may be cut as the client likes.
LEAST_FRAGMENT = 16
FREE_FRAGMENTS = 1024
#: Frames that the library gets at once: about half a millisecond of its work.
FRAMES_AT_ONCE = 64

_CONTINUATION, _BINARY, _CLOSE, _PONG = 0x0, 0x2, 0x8, 0xA


@attrs.frozen
class Portion:
    """What the library may have of some bytes.

    Attributes:
        size: So many bytes, from the first.
        pong: Whether a pong is among them, always as the last frame that begins there.
    """

    size: int
    pong: bool


@attrs.define
class Inbound:
    """The client's frames up to here.

    Attributes:
        most_bytes: Payload that one message may have.
        most_fragments: Continuation frames that one message may have.
        verdict: Why nothing more may be read; None while all is well.
    """

    most_bytes: int
    most_fragments: int
    verdict: CloseCode | None = None
    _open: bool = False
    _bytes: int = 0
    _fragments: int = 0
    _skip: int = 0
    _head: bytes = b""
    _ended: bool = False

    @classmethod
    def of(cls, max_message_bytes: int) -> Inbound:
        """Return one for messages of that size."""
        return cls(max_message_bytes, FREE_FRAGMENTS + max_message_bytes // LEAST_FRAGMENT)

    def follow(self, data: bytes) -> Portion:
        """Take the next bytes of the client; those behind the portion have to be given again.

        With a ``verdict`` the portion ends before the frame that it is about, except for what was handed on of
        its head before.
        """
        if self._ended:
            return Portion(len(data), False)
        known = len(self._head)
        data = self._head + data
        position, size = self._skip, len(data)
        self._skip, self._head = 0, b""
        pong = False
        for _ in range(FRAMES_AT_ONCE):
            if position >= size or pong or self._ended:
                break
            step = frame_size(data, position)
            if step is None:
                self._head = data[position:]
                return Portion(size - known, pong)
            self._judge(data, position, step)
            if self.verdict is not None:
                return Portion(max(0, position - known), pong)
            pong = data[position] & 0x0F == _PONG
            position += step
        self._skip = max(0, position - size)
        return Portion(min(position, size) - known, pong)

    def _judge(self, data: bytes, position: int, step: int) -> None:
        first, opcode = data[position], data[position] & 0x0F
        if opcode > _BINARY:
            # Behind a Close nothing is a frame (RFC 6455 §5.5.1).
            self._ended = opcode == _CLOSE
            return
        head = head_size(data[position + 1])
        if first & 0x70 or not data[position + 1] & 0x80 or not _is_minimal(data[position + 1], step - head):
            return  # the library's 1002 says more than our 1009
        if (opcode == _CONTINUATION) is not self._open:
            return
        if opcode == _CONTINUATION:
            self._fragments += 1
        else:
            self._bytes = self._fragments = 0
        self._bytes += step - head
        self._open = not first & 0x80
        if self._bytes > self.most_bytes:
            self.verdict = CloseCode.TOO_BIG
        elif self._fragments > self.most_fragments:
            self.verdict = CloseCode.POLICY


def head_size(second: int) -> int:
    """Return the size of a frame's head by its second byte (RFC 6455 §5.2)."""
    extra = {126: 2, 127: 8}.get(second & 0x7F, 0)
    return 2 + extra + (4 if second & 0x80 else 0)


def _is_minimal(second: int, length: int) -> bool:
    """Tell whether a length stands in the shortest form that has room for it, as the RFC demands."""
    return {126: 126 <= length < 2**16, 127: 2**16 <= length < 2**63}.get(second & 0x7F, True)


def frame_size(data: bytes, position: int) -> int | None:
    """Return the size of the frame that begins at *position* (RFC 6455 §5.2), None when more is needed to know."""
    if position + 2 > len(data):
        return None
    second = data[position + 1]
    head, length = (6 if second & 0x80 else 2), second & 0x7F
    if length < 126:
        return head + length
    extra = 2 if length == 126 else 8
    if position + 2 + extra > len(data):
        return None
    return head + extra + int.from_bytes(data[position + 2 : position + 2 + extra], "big")
