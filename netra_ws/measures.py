"""Numbers that rooms keep about themselves, and ``pages`` pulls: plain counts and histograms."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

import attrs

#: Upper bounds in seconds, from a loop pass to a long run.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


@attrs.define
class Histogram:
    """How often a figure fell below each bound.

    Attributes:
        bounds: Upper bounds, ascending; one more bucket counts what is above the last.
        counts: One number per bucket, not added up.
        total: Sum of all figures.
    """

    bounds: Sequence[float] = SECONDS
    counts: list[int] = attrs.field(init=False)
    total: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, figure: float) -> None:
        """Count one figure."""
        self.counts[bisect_left(self.bounds, figure)] += 1
        self.total += figure


@attrs.define
class Recent:
    """Commands of the last minute, in slots of five seconds."""

    _slots: deque[list[float]] = attrs.field(factory=deque)

    def add(self, now: float, failed: bool) -> None:
        """Count one command."""
        if not self._slots or now - self._slots[-1][0] >= 5.0:
            self._slots.append([now, 0, 0])
            self._forget(now)
        self._slots[-1][1] += 1
        self._slots[-1][2] += failed

    def error_rate(self, now: float, least: int = 20) -> float:
        """Return the share of failed ones, 0 to 1; 0 while there are fewer than *least*."""
        self._forget(now)
        total = sum(slot[1] for slot in self._slots)
        return sum(slot[2] for slot in self._slots) / total if total >= least else 0.0

    def _forget(self, now: float) -> None:
        while self._slots and now - self._slots[0][0] > 60.0:
            self._slots.popleft()


def memory_bytes() -> int:
    """Return the resident memory of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  (read at every probe)
            return int(file.read().split()[1]) * 4096
    except (OSError, IndexError, ValueError):
        return 0
