"""What is counted of runs and contexts, to be pulled by the pages."""

from __future__ import annotations

from collections import Counter

import attrs
import trio

from netra_ws.agents.run import Run
from netra_ws.measures import Histogram


@attrs.define
class RunCounts:
    """Counts and times of all runs since the start."""

    ended: Counter[tuple[str, str, str]] = attrs.field(factory=Counter)
    seconds: dict[str, Histogram] = attrs.field(factory=dict)
    first_event: Histogram = attrs.field(factory=Histogram)
    cancel: Histogram = attrs.field(factory=Histogram)

    def add(self, run: Run, agent: str) -> None:
        """Count a run that has ended, under the name of its *agent*."""
        now = trio.current_time()
        self.ended[(agent, run.status, run.cancelled_by or "")] += 1
        self.seconds.setdefault(agent, Histogram()).observe(now - run.started_at)
        if run.first_word_at is not None and run.events > 2:  # else its end was all it said
            self.first_event.observe(run.first_word_at - run.started_at)
        if run.cancelled_at is not None:
            self.cancel.observe(now - run.cancelled_at)


@attrs.frozen(kw_only=True)
class RegistryStatistics:
    """Numbers of this moment."""

    users: int
    connections: int
    runs: int
    stuck: int
