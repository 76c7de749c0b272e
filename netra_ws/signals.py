"""SIGTERM and SIGINT of a serving process: the first asks it to end, the second ends it at once; and SIGHUP.

Real ending, not a task that waits for signals: an agent that blocks the event loop keeps every task
from running, but not these. For the same reason an alarm bounds the whole end: a disk that hangs in a
worker thread, or a loop that never comes back, must not leave a process that only ``kill -9`` ends.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import attrs

ASKING = (signal.SIGTERM, signal.SIGINT)


@attrs.define
class _Ending:
    on_first: Callable[[], None]
    longest_s: float
    asked: bool = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            _end(128 + number, "ended at once; the next start closes the runs that were cut off")
        self.asked = True
        signal.setitimer(signal.ITIMER_REAL, self.longest_s)
        self.on_first()

    def give_up(self, number: int, frame: FrameType | None) -> None:
        _end(1, f"still not ended after {self.longest_s:g} s; the next start closes the runs that were cut off")


def _end(status: int, text: str) -> None:
    # No buffered stream: the signal may have come in the middle of a write to one.
    os.write(2, f"netra-ws: {text}\n".encode())
    os._exit(status)


@contextmanager
def until_signals(on_first: Callable[[], None], longest_s: float) -> Iterator[None]:
    """Have the first signal call *on_first*; a second one ends the process with 128 + its number.

    So does, with status 1, the time when the block was not left *longest_s* seconds after the first. *on_first*
    runs between any two instructions of the main thread, which must be the one that calls this.
    """
    ending = _Ending(on_first, longest_s)
    before = {number: signal.signal(number, ending.ask) for number in ASKING}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, ending.give_up)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def on_hangup(action: Callable[[], object] | None) -> Iterator[None]:
    """Have SIGHUP call *action* inside the block; with None it keeps its meaning, which is the process's end.

    *action* runs between any two instructions of the main thread, which must be the one that calls this.
    """
    if action is None:
        yield
        return

    def call(number: int, frame: FrameType | None) -> None:
        action()

    before = signal.signal(signal.SIGHUP, call)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
