"""Names who holds up the event loop: blocking code in an agent stops every user at once.

A task of each loop (Trio's, and the asyncio one of bridged agents) leaves a sign of life every
``BEAT_S``. A thread beside them looks at it; when it is older than ``STALL_S``, the thread reads the
loop's stack, finds the run in it, and logs both, once per stall. It only looks: code that blocks without
a checkpoint cannot be stopped from outside.
"""

from __future__ import annotations

import inspect
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from types import FrameType

import attrs
import trio

from netra_ws.measures import Histogram

from .run import Run

logger = logging.getLogger(__name__)

BEAT_S = 0.05
STALL_S = 0.25
#: Frames of the stack that are logged, the innermost ones.
DEPTH = 12
#: Stalls that are remembered, the newest ones.
KEEP = 20


@attrs.frozen(kw_only=True)
class Stall:
    """One time at which the loop stood still.

    Attributes:
        at: Unix seconds.
        where: The innermost line of the stack.
    """

    at: float
    user_id: str | None
    run_id: str | None
    agent_name: str | None
    where: str


def find_run(frame: FrameType | None) -> Run | None:
    """Return the run whose agent is somewhere on this stack."""
    while frame is not None:
        for value in _values(frame):
            if issubclass(type(value), Run):  # isinstance would ask the agent's own object
                return value  # type: ignore[return-value]
        frame = frame.f_back
    return None


def _values(frame: FrameType) -> list[object]:
    """Return the values of a frame's variables, and leave no second reference to them in the frame."""
    variables = frame.f_locals
    values = list(variables.values())
    if frame.f_code.co_flags & inspect.CO_OPTIMIZED and type(variables) is dict:
        # Before Python 3.13 this is a copy that the frame keeps: what the function deletes would stay alive.
        variables.clear()
    return values


@attrs.define(eq=False)
class Pulse:
    """The signs of life of one loop; between ``start`` and ``stop`` they are missed when they stay away.

    Attributes:
        what: The loop, as the log calls it.
        at: When the last one came, by ``time.monotonic``.
        whose: Finds the run that is at work on a stack of the loop's thread.
        waits: Whether that stack shows that nothing is at work. Both are called from another thread.
    """

    what: str
    at: float = 0.0
    whose: Callable[[FrameType | None], Run | None] = find_run
    waits: Callable[[FrameType | None], bool] = lambda frame: False
    _thread: int | None = None
    _told: float = 0.0

    def start(self) -> None:
        """Begin; called in the loop's thread."""
        self.beat()
        self._thread = threading.get_ident()

    def beat(self) -> None:
        """Leave a sign of life."""
        self.at = time.monotonic()

    def stop(self) -> None:
        """End; nothing is missed from now on."""
        self._thread = None

    def overdue(self) -> int | None:
        """Return the loop's thread when it has stood still for too long; once per stall."""
        at, thread = self.at, self._thread
        if thread is None or at == self._told or time.monotonic() - at <= STALL_S:
            return None
        self._told = at
        return thread


@attrs.define
class Watchdog:
    """Watches the loop it is run in, and others that have a pulse.

    Attributes:
        others: Loops of other threads.
        late: By how much each beat came late, in seconds.
        stalls: How often the loop stood still for more than ``STALL_S``.
        last: The newest of them, for operators.
    """

    others: Sequence[Pulse] = ()
    late: Histogram = attrs.field(factory=Histogram)
    stalls: int = 0
    last: deque[Stall] = attrs.field(factory=lambda: deque(maxlen=KEEP))
    _own: Pulse = attrs.field(factory=lambda: Pulse("the event loop"))
    _stop: threading.Event = attrs.field(factory=threading.Event)

    async def run(self) -> None:
        """Beat until cancelled."""
        self._own.start()
        self._stop.clear()
        watcher = threading.Thread(target=self._watch, name="netra-ws watchdog", daemon=True)
        watcher.start()
        try:
            while True:
                await trio.sleep(BEAT_S)
                before = self._own.at
                self._own.beat()
                self.late.observe(max(0.0, self._own.at - before - BEAT_S))
        finally:
            self._stop.set()
            watcher.join()

    def _watch(self) -> None:
        while not self._stop.wait(BEAT_S):
            for pulse in (self._own, *self.others):
                thread = pulse.overdue()
                frame = None if thread is None else sys._current_frames().get(thread)
                if thread is not None and not pulse.waits(frame):
                    self.stalls += 1
                    self._tell(pulse, frame)

    def _tell(self, pulse: Pulse, frame: FrameType | None) -> None:
        stack = "".join(traceback.format_stack(frame, DEPTH)) if frame is not None else "(no stack)\n"
        run = pulse.whose(frame)
        self.last.append(
            Stall(
                at=time.time(),
                user_id=None if run is None else run.identity.user_id,
                run_id=None if run is None else run.run_id,
                agent_name=None if run is None else run.agent_name,
                where="?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}",
            )
        )
        who = f"run {run.run_id} of agent {run.agent_name}" if run is not None else "no run"
        logger.warning("%s has not moved for more than %s s; in its stack: %s\n%s", pulse.what, STALL_S, who, stack)
