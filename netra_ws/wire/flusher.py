"""Writes for all connections of the process, once per scheduler pass.

Whoever has something to say marks its wire; the flusher then writes, per wire, all that is pending
in one system call. So a hundred events of one pass cost one call, and no event costs a task switch. It
works at most a millisecond, then gives way; what is left goes first in the next pass (round robin).
"""

from __future__ import annotations

import logging
import time
from collections import deque

import attrs
import trio

from .stream import Duplex, Progress

logger = logging.getLogger(__name__)

#: Seconds of writing before other tasks get their turn.
SLICE_S = 0.001


@attrs.define(repr=False)
class Flusher:
    """The one writer of sockets that are not full.

    Attributes:
        passes: How often it ran.
        moved_at: When it last ran (``trio.current_time``).
    """

    passes: int = 0
    moved_at: float = 0.0
    _dirty: deque[Duplex] = attrs.field(factory=deque)
    _wake: trio.Event = attrs.field(factory=trio.Event)

    def plan(self, stream: Duplex) -> None:
        """Have *stream* flushed in the next pass."""
        stream.planned = True
        self._dirty.append(stream)
        self._wake.set()

    @property
    def waiting_s(self) -> float:
        """Seconds since the last pass while something waits; 0 when nothing does."""
        return trio.current_time() - self.moved_at if self._dirty else 0.0

    def __len__(self) -> int:
        return len(self._dirty)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            if not self._dirty:
                self._wake = trio.Event()
                self.moved_at = trio.current_time()
                await self._wake.wait()
            else:
                await trio.lowlevel.checkpoint()
            self._pass()

    def _pass(self) -> None:
        self.passes += 1
        self.moved_at = trio.current_time()
        ends = time.perf_counter() + SLICE_S
        for _ in range(len(self._dirty)):
            stream = self._dirty.popleft()
            stream.planned = False
            if stream.closed:
                continue
            try:
                progress = stream.flush()
            except Exception:  # the crash wall of that connection, on this side: others are still written
                logger.exception("a connection could not be written")
                stream.give_up()
                continue
            if progress is Progress.MORE:
                self.plan(stream)
            elif progress is not Progress.IDLE:
                stream.write_later()
            if time.perf_counter() > ends:
                return
