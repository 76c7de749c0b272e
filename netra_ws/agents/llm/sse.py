"""Server-sent events out of bytes, wherever these are cut (WHATWG HTML, "Interpreting an event stream").

Of an own make, because what there is takes other characters for line ends, which may stand inside JSON (U+2028
with ``httpx.Response.aiter_lines``), or keeps a line of any length in memory.
"""

from __future__ import annotations

import re

import attrs

#: Bytes of one event, its field names included; one chunk of a completion takes a few hundred.
MAX_EVENT_BYTES = 2**20

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class EventTooLong(ValueError):
    """An event has more bytes than anybody wants to keep."""


@attrs.frozen
class ServerEvent:
    """One event: its ``data`` lines joined by line feeds; *name* is ``message`` where none was given."""

    data: str
    name: str = "message"


@attrs.define
class EventDecoder:
    """Decodes one stream; ``id`` and ``retry`` mean nothing here, for nobody connects again."""

    max_event_bytes: int = MAX_EVENT_BYTES
    _head: bytes | None = b""  # until it is known whether there is a byte order mark
    _line: bytearray = attrs.field(factory=bytearray)
    _after_cr: bool = False
    _data: list[bytes] = attrs.field(factory=list)
    _name: bytes = b""
    _size: int = 0

    def feed(self, data: bytes) -> list[ServerEvent]:
        """Take the next bytes; return the events that end in them. Takes time linear in all bytes, however cut.

        Raises:
            EventTooLong: One grows above ``max_event_bytes``; the stream cannot be read on.
        """
        if self._head is not None:
            data = self._head + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._head = data
                return []
            self._head, data = None, data.removeprefix(_BOM)
        events: list[ServerEvent] = []
        start = 0
        if self._after_cr and data:
            # A CR ends its line at once: waiting for the LF behind it would hold back the last event.
            self._after_cr = False
            start = int(data.startswith(b"\n"))
        for end in _LINE_END.finditer(data, start):
            self._grow(data[start : end.start()])
            start = end.end()
            self._after_cr = end.group() == b"\r" and start == len(data)
            line = bytes(self._line)
            self._line.clear()
            if line:
                self._field(line)
            elif event := self._dispatch():
                events.append(event)
        self._grow(data[start:])
        return events

    def finish(self) -> ServerEvent | None:
        """Return what stands there when the stream has ended, though no blank line has ended it.

        The standard drops such an event; servers that forget the last line feed behind ``[DONE]`` are more common
        than such as break off exactly between a complete line and a blank one.
        """
        if self._line:
            self._field(bytes(self._line))
            self._line.clear()
        return self._dispatch()

    def _grow(self, piece: bytes) -> None:
        self._line += piece
        if self._size + len(self._line) > self.max_event_bytes:
            raise EventTooLong(f"more than {self.max_event_bytes} bytes in one event")

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value
        else:  # a comment, or nothing of ours
            return
        self._size += len(line) + 1

    def _dispatch(self) -> ServerEvent | None:
        data, name = self._data, self._name
        self._data, self._name, self._size = [], b"", 0
        if not data:
            return None
        return ServerEvent(b"\n".join(data).decode(errors="replace"), name.decode(errors="replace") or "message")
