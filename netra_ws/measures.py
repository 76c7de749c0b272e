"""Numbers that rooms keep about themselves, and ``pages`` pulls: plain counts and histograms."""

from __future__ import annotations

from bisect import bisect_left
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
