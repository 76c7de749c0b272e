"""Finds where frames begin, so that a connection can be cut in the middle of one."""

from __future__ import annotations

import attrs

from netra_ws.wire.frames import frame_size

_HEAD_END = b"\r\n\r\n"


@attrs.define
class Boundaries:
    """Follows the bytes of one direction: the head of the handshake first, frames behind it.

    The body of a plain HTTP answer is taken for frames, too; what is found there means nothing.
    """

    _head: bytes | None = b""  # None behind the head
    _rest: bytes = b""
    _skip: int = 0

    def follow(self, data: bytes) -> list[tuple[int, int]]:
        """Take the next bytes; return (offset in *data*, size) of each frame that begins in them.

        The size is 2, the least there is, where the frame's own head is not complete yet.
        """
        offset = 0
        if self._head is not None:
            joined = self._head + data
            end = joined.find(_HEAD_END)
            if end < 0:
                self._head = joined[1 - len(_HEAD_END) :]
                return []
            offset = end + len(_HEAD_END) - len(self._head)
            self._head = None
        return self._frames(data[offset:], offset)

    def _frames(self, data: bytes, offset: int) -> list[tuple[int, int]]:
        offset -= len(self._rest)
        data = self._rest + data
        position, self._rest, self._skip = self._skip, b"", 0
        found = []
        while position < len(data):
            size = frame_size(data, position)
            if position + offset >= 0:  # else it was told when its first byte came
                found.append((position + offset, size or 2))
            if size is None:
                self._rest = data[position:]
                return found
            position += size
        self._skip = position - len(data)
        return found
