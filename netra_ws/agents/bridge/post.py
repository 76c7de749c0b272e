"""Calls from one thread into the loop of another one, as many as there are for one wake-up."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import attrs


@attrs.define(eq=False)
class Post:
    """Carries calls to a loop's thread, in their order.

    A wake-up is a system call, which lets the other thread have the interpreter, and then it may take
    milliseconds to get it back: with one for each call of a hundred runs little else would be done.
    """

    #: Has the loop call something soon; safe from any thread.
    _call_soon: Callable[[Callable[[], None]], object]
    _lock: threading.Lock = attrs.field(factory=threading.Lock)
    _calls: deque[Callable[[], object]] = attrs.field(factory=deque)
    _under_way: bool = False

    def send(self, call: Callable[[], object]) -> None:
        """Have *call*, which must not raise, called by the loop."""
        with self._lock:
            self._calls.append(call)
            under_way, self._under_way = self._under_way, True
        if not under_way:
            self._call_soon(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, deque()
            self._under_way = False
        for call in calls:
            call()
