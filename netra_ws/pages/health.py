"""``/health``, ``/ready`` and ``/ws/beacon``: is it alive, may traffic come, is there a server at all."""

from __future__ import annotations

import attrs
import trio

from netra_ws.errors import StoreError
from netra_ws.measures import memory_bytes
from netra_ws.wire.head import Head, Reply, json_reply

from .older import health_words
from .sources import FRESH, STUCK_S, Sources

#: Seconds for a round trip to the store; the first where traffic depends on it, the second where it is only told.
PING_S = 2.0
LOOK_S = 0.5
#: Share of the last minute's commands that may fail by our fault.
ERROR_RATE = 0.05

#: What is said of a part that is not well.
PROBLEMS = {
    "store": "the store does not answer",
    "recorder": "the recorder has not moved for more than 5 s",
    "flusher": "the flusher has not moved for more than 5 s",
    "memory": "the memory is above its mark",
    "errors": "more than 5 % of the last minute's commands failed",
    "runs": "runs could not be stopped",
    "accepting": "the server is draining",
}


@attrs.frozen
class Health:
    """The three answers to "are you well?"."""

    sources: Sources

    async def health(self, head: Head, body: bytes) -> Reply:
        """Answer 200 while alive; the body says how well."""
        found = self._look()
        found["store"] = found["store"] and await self._store_answers(LOOK_S)
        problems = [text for name, text in PROBLEMS.items() if not found[name]]
        dead = not (found["recorder"] and found["flusher"])
        status = "unhealthy" if dead else "degraded" if problems else "healthy"
        statistics = self.sources.registry.statistics()
        older_metrics, older = health_words(self.sources)
        fields = {
            "status": status,
            "service": "websocket",
            "version": self.sources.version,
            "timestamp": self.sources.clock(),
            "checks": {name: {"status": "ok" if well else "failing"} for name, well in found.items()},
            "metrics": {
                **attrs.asdict(statistics),
                "memory_bytes": memory_bytes(),
                "uptime_s": round(self.sources.clock() - self.sources.started_at, 3),
                **older_metrics,
            },
            "errors": problems,
            **older,
        }
        return json_reply(200, fields, FRESH)

    def _look(self) -> dict[str, bool]:
        """Return what can be told without waiting: whether each part is well."""
        sources = self.sources
        recorder = sources.recorder.statistics()
        high = sources.memory_high_bytes
        return {
            "store": not recorder.failing,
            "recorder": recorder.idle_s <= STUCK_S,
            "flusher": sources.wiring.flusher.waiting_s <= STUCK_S,
            "memory": high is None or memory_bytes() <= high,
            "errors": sources.registry.recent.error_rate(trio.current_time()) <= ERROR_RATE,
            "runs": not sources.registry.statistics().stuck,
            "accepting": not sources.registry.draining,
        }

    async def ready(self, head: Head, body: bytes) -> Reply:
        """Answer 200 when traffic may come, 503 when it should go elsewhere."""
        sources = self.sources
        high = sources.memory_high_bytes
        checks = {
            "accepting": not sources.registry.draining,
            # A full disk still answers reads: what counts, too, is how the last writes went.
            "store": self._store_takes_writes() and await self._store_answers(PING_S),
            "backplane": True,  # local: this process is the only one
            "memory": high is None or memory_bytes() <= high,
        }
        ready = all(checks.values())
        return json_reply(200 if ready else 503, {"ready": ready, "checks": checks}, FRESH)

    def _store_takes_writes(self) -> bool:
        recorder = self.sources.recorder.statistics()
        return not recorder.failing and recorder.idle_s <= STUCK_S

    async def _store_answers(self, within_s: float) -> bool:
        with trio.move_on_after(within_s) as scope:
            try:
                await self.sources.store.ping()
            except StoreError:
                return False
        return not scope.cancelled_caught

    async def beacon(self, head: Head, body: bytes) -> Reply:
        """Answer that there is a WebSocket server here."""
        fields = {"status": "healthy", "service": "websocket_beacon", "timestamp": self.sources.clock()}
        return json_reply(200, fields, (*FRESH, ("Access-Control-Allow-Origin", "*")))
