"""The one thread of a server in which asyncio runs, for all bridged agents; opened when the first one starts.

A server without bridged agents pays nothing for it, not even asyncio's import.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import attrs
import trio

from .watchdog import Pulse

if TYPE_CHECKING:
    from .bridge.loop import Loop

logger = logging.getLogger(__name__)

#: Seconds that the thread has to end with its server. Runs have ended by then, so what is left belongs to nobody.
JOIN_S = 5.0
#: Orders, and characters of text, of one run that wait for Trio's side before whoever speaks has to wait.
MAX_ORDERS = 64
MAX_CHARS = 64 * 1024


@attrs.define(eq=False)
class AsyncioThread:
    """A server's asyncio loop and its thread.

    Attributes:
        pulse: Its sign of life, for the watchdog.
    """

    pulse: Pulse = attrs.field(factory=lambda: Pulse("the asyncio loop of bridged agents"))
    _loop: Loop | None = None
    _thread: threading.Thread | None = None
    _closed: bool = False

    def open(self) -> Loop:
        """Return the loop, which runs from the first call on; never waits.

        Raises:
            RuntimeError: The server has ended, or the system has no thread to give.
        """
        if self._closed:
            raise RuntimeError("the server of this asyncio loop has ended")
        if self._loop is None:
            from .bridge.loop import Loop

            loop = Loop(self.pulse)
            thread = threading.Thread(target=loop.run, name="netra-ws asyncio", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                loop.events.close()
                raise
            self._loop, self._thread = loop, thread
        return self._loop

    async def close(self) -> None:
        """End the loop and its thread; for the server, when its runs have ended.

        Tasks that belong to no run are cancelled. Takes ``JOIN_S`` seconds of the system's clock at most:
        a thread in which something blocks for longer is left behind, and the log says so.
        """
        self._closed = True
        if self._loop is None or self._thread is None:
            return
        self._loop.stop()
        # By the system's clock, since the thread lives by that one.
        await trio.to_thread.run_sync(self._thread.join, JOIN_S)
        if self._thread.is_alive():
            logger.error(
                "the asyncio loop of bridged agents did not end within %s s; its thread is left behind", JOIN_S
            )
