"""Follows a client's frames just far enough to count the fragments of its open message.

trio-websocket keeps every fragment until the message is complete and bounds only the sum of their
characters, so empty fragments without end would grow its memory without end.
"""

from __future__ import annotations

import attrs

#: Smallest average size of a fragment, in bytes, below which a message counts as an attack; short messages
#: may be cut as the client likes.
LEAST_FRAGMENT = 16
FREE_FRAGMENTS = 1024

_CONTINUATION = 0x0
_FIRST_CONTROL = 0x8


class FragmentFlood(Exception):
    """A message comes in more pieces than any client needs; its connection is closed with 1008."""


@attrs.define
class Fragments:
    """Counts; the content is not looked at, and what is no frame is left to the library.

    Attributes:
        most: Continuation frames that one message may have.
    """

    most: int
    _count: int = 0
    _skip: int = 0
    _head: bytes = b""

    @classmethod
    def of(cls, max_message_bytes: int) -> Fragments:
        """Return a counter for messages of that size."""
        return cls(FREE_FRAGMENTS + max_message_bytes // LEAST_FRAGMENT)

    def follow(self, data: bytes) -> None:
        """Take the next bytes of the client.

        Raises:
            FragmentFlood: The open message has too many fragments.
        """
        data = self._head + data
        position, size = self._skip, len(data)
        self._skip, self._head = 0, b""
        while position < size:
            step = frame_size(data, position)
            if step is None:
                self._head = data[position:]
                return
            opcode = data[position] & 0x0F
            if opcode == _CONTINUATION:
                self._count += 1
                if self._count > self.most:
                    raise FragmentFlood
            elif opcode < _FIRST_CONTROL:
                self._count = 0
            position += step
        self._skip = position - size


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
