"""What the pages look at: one value that the server fills in, so that no page knows the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from netra_ws.access import Admission
from netra_ws.agents.watchdog import Watchdog
from netra_ws.contexts.registry import Registry
from netra_ws.history.recorder import Recorder
from netra_ws.history.stores.contract import Store
from netra_ws.history.streams import Streams
from netra_ws.measures import Histogram
from netra_ws.wire.door import Door
from netra_ws.wire.heartbeat import Heartbeat
from netra_ws.wire.pump import Wiring

#: Seconds without progress after which the recorder or the flusher counts as stuck.
STUCK_S = 5.0


@attrs.frozen(kw_only=True)
class Sources:
    """The rooms beneath, and what a page needs to know of the settings.

    Attributes:
        config: The answer of ``/ws/config``.
        memory_high_bytes: The mark above which the server takes nothing new, or None.
        longest_end_s: Seconds that an orderly end takes at most.
        commit: Seconds of each committed group.
        watchdog: Knows how late the event loop was, and who held it up.
    """

    version: str
    registry: Registry
    streams: Streams
    recorder: Recorder
    store: Store
    wiring: Wiring
    heartbeat: Heartbeat
    door: Door
    admission: Admission
    config: Mapping[str, Any]
    memory_high_bytes: int | None
    longest_end_s: float
    commit: Histogram
    watchdog: Watchdog
    clock: Callable[[], float] = time.time
    started_at: float = attrs.field(factory=time.time)
