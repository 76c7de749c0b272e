"""Names who holds up the event loop: blocking code in an agent stops every user at once.

A Trio task leaves a sign of life every ``BEAT_S``. A thread beside the loop looks at it; when it is
older than ``STALL_S``, the thread reads the loop's stack, finds the run in it, and logs both, once per
stall. It only looks: code that blocks without a checkpoint cannot be stopped from outside.
"""

from __future__ import annotations

import inspect
import logging
import sys
import threading
import time
import traceback
from collections import deque
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


@attrs.define
class Watchdog:
    """Watches the loop it is run in.

    Attributes:
        late: By how much each beat came late, in seconds.
        stalls: How often the loop stood still for more than ``STALL_S``.
        last: The newest of them, for operators.
    """

    late: Histogram = attrs.field(factory=Histogram)
    stalls: int = 0
    last: deque[Stall] = attrs.field(factory=lambda: deque(maxlen=KEEP))
    _beat: float = 0.0
    _stop: threading.Event = attrs.field(factory=threading.Event)

    async def run(self) -> None:
        """Beat until cancelled."""
        self._beat = time.monotonic()
        self._stop.clear()
        watcher = threading.Thread(
            target=self._watch, args=(threading.get_ident(),), name="netra-ws watchdog", daemon=True
        )
        watcher.start()
        try:
            while True:
                await trio.sleep(BEAT_S)
                now = time.monotonic()
                self.late.observe(max(0.0, now - self._beat - BEAT_S))
                self._beat = now
        finally:
            self._stop.set()
            watcher.join()

    def _watch(self, loop_thread: int) -> None:
        told = 0.0
        while not self._stop.wait(BEAT_S):
            beat = self._beat
            if time.monotonic() - beat > STALL_S and beat != told:
                told = beat
                self.stalls += 1
                self._tell(sys._current_frames().get(loop_thread))

    def _tell(self, frame: FrameType | None) -> None:
        stack = "".join(traceback.format_stack(frame, DEPTH)) if frame is not None else "(no stack)\n"
        run = find_run(frame)
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
        logger.warning("the event loop has not moved for more than %s s; in its stack: %s\n%s", STALL_S, who, stack)


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
