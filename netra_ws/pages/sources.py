"""What the pages look at: one value that the server fills in, so that no page knows the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from netra_ws.access import Admission
from netra_ws.agents.watchdog import Watchdog
from netra_ws.contexts.registry import Registry
from netra_ws.errors import Refused
from netra_ws.history.recorder import Recorder
from netra_ws.history.stores.contract import Store
from netra_ws.history.streams import Streams
from netra_ws.identity import Identity
from netra_ws.measures import Histogram
from netra_ws.protocol.commands import TALK
from netra_ws.wire.door import Door, Identify
from netra_ws.wire.head import Head
from netra_ws.wire.heartbeat import Heartbeat
from netra_ws.wire.pump import Wiring

_TALK = frozenset(command.type for command in TALK)
#: For answers that are true at their moment only, or meant for one reader.
FRESH = (("Cache-Control", "no-store"),)
#: Seconds without progress after which the recorder or the flusher counts as stuck.
STUCK_S = 5.0


@attrs.frozen(kw_only=True)
class Sources:
    """The rooms beneath, and what a page needs to know of the settings.

    Attributes:
        identify: Finds out who sent a head, as the door does for sockets.
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
    identify: Identify
    config: Mapping[str, Any]
    memory_high_bytes: int | None
    longest_end_s: float
    commit: Histogram
    watchdog: Watchdog
    clock: Callable[[], float] = time.time
    started_at: float = attrs.field(factory=time.time)

    async def operator(self, head: Head) -> Identity:
        """Return the operator who asks; a ticket is not enough, for it would not be used up.

        Raises:
            Refused: 403 ``FORBIDDEN``, or as ``identify``.
        """
        identity = await self.identify(head, tickets=False)
        if not identity.may("operator"):
            raise Refused(403, "FORBIDDEN", "This needs the permission operator.")
        return identity

    async def shows_all(self, head: Head) -> bool:
        """Return whether an operator asks, for pages that tell everybody something.

        Raises:
            Refused: As ``identify``: a token that came along and is not good is not passed over in silence.
        """
        return self._names_somebody(head) and (await self.identify(head)).may("operator")

    def _names_somebody(self, head: Head) -> bool:
        carriers = {b"authorization"} if self.admission.verifier else {b"authorization", b"cookie"}
        words = {"ticket", "token"} if self.admission.allow_query else {"ticket"}
        return any(name in carriers for name, _ in head.headers) or any(head.query.get(word) for word in words)


def rate_limited(sources: Sources) -> dict[str, int]:
    """Return how often each budget refused: of addresses ``requests`` (whatever they are for), ``connects`` and
    ``failed_connects``; of users ``messages`` (starts and messages) and ``other`` (every other command); of all
    ``tickets``; and how often connections were read no faster for ``pings`` (commands) and ``control`` frames.
    """
    admission, slowed = sources.admission.statistics(sources.clock()), sources.wiring.counts.slowed
    counts = {**admission.rate_limited, **slowed, "messages": 0, "other": 0}
    for (command, code), count in sources.registry.commands.items():
        if code == "RATE_LIMITED":
            counts["messages" if command in _TALK else "other"] += count
    return counts
