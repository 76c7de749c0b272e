"""Lines of a terminal, without a thread: one that waits for input could not be left behind."""

from __future__ import annotations

import os
import select
from collections import deque

import attrs
import trio


@attrs.define(eq=False)
class Keyboard:
    """Reads lines from a descriptor."""

    descriptor: int
    _lines: deque[str] = attrs.field(factory=deque)
    _rest: bytes = b""

    async def line(self) -> str | None:
        """Return the next line, or None at the end of the input; a terminal may go on behind its Ctrl-D.

        *Cancellation:* nothing is lost.
        """
        while not self._lines:
            await trio.lowlevel.wait_readable(self.descriptor)
            if not self._take():
                return None
        await trio.lowlevel.checkpoint()
        return self._lines.popleft()

    def set_aside(self) -> deque[str]:
        """Return, and hold back, what was typed up to now: it was not meant for what is asked next."""
        while select.select([self.descriptor], [], [], 0)[0] and self._take():
            pass
        aside, self._lines = self._lines, deque()
        return aside

    def give_back(self, aside: deque[str]) -> None:
        """Let lines that were set aside come next."""
        self._lines.extendleft(reversed(aside))

    def _take(self) -> bool:
        piece = os.read(self.descriptor, 65536)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if not piece and self._rest:
            lines, self._rest = [self._rest], b""
        self._lines.extend(line.decode(errors="replace") for line in lines)
        return bool(piece or lines)
