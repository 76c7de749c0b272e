"""``/ws/config`` and ``/ws/stats``: what the server offers, and what it does right now."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import trio

from netra_ws.contexts.connection import Connection
from netra_ws.contexts.context import UserContext
from netra_ws.measures import memory_bytes
from netra_ws.wire.head import Head, Reply, json_reply

from .older import config_words, stats_words
from .sources import FRESH, Sources, rate_limited

#: Blocked pairs that are listed; ``origins_blocked`` tells how many there are.
SHOWN = 100


@attrs.frozen
class Stats:
    """Numbers for people and programs; names of users only for operators."""

    sources: Sources

    async def config(self, head: Head, body: bytes) -> Reply:
        """Tell how to connect, and the limits."""
        return json_reply(200, {**self.sources.config, **config_words(self.sources)}, FRESH)

    async def stats(self, head: Head, body: bytes) -> Reply:
        """Tell counts; with an operator's token also users and their connections.

        Raises:
            Refused: A token came along that is not good; or 429, 403 as for a socket.
        """
        fields = self._counts()
        if await self.sources.shows_all(head):
            now = self.sources.clock()
            fields["blocked_origins"] = [attrs.asdict(block) for block in self.sources.admission.blocked(now, SHOWN)]
            # Run ids are their user's own words; whoever else asks gets the number of stuck ones.
            runs = [run for context in self.sources.registry for run in context.runs.values()]
            fields["stuck_runs"] = [run.run_id for run in runs if run.sealed]
            fields["stalls"] = [attrs.asdict(stall) for stall in list(self.sources.watchdog.last)]
            fields["by_user"] = {context.user_id: _user(context) for context in self.sources.registry}
        return json_reply(200, fields, FRESH)

    def _counts(self) -> dict[str, Any]:
        sources = self.sources
        registry = sources.registry
        counts = sources.wiring.counts
        live = [connection for context in registry for connection in context.connections.values()]
        errors: Counter[str] = Counter()
        for (_, code), count in registry.commands.items():
            if code != "ok":
                errors[code] += count
        admission = sources.admission.statistics(sources.clock())
        threads = registry.policy.run.threads.statistics()
        return {
            **stats_words(sources),
            **attrs.asdict(registry.statistics()),
            "revocations": len(registry.revocations),
            "streams": len(sources.streams),
            "jobs": len(registry.jobs),
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "handshakes": sources.door.crowd.under_way,
            "run_threads": {
                "busy": threads.borrowed_tokens,
                "total": threads.total_tokens,
                "waiting": registry.threads_waiting(),
            },
            "stalls_total": sources.watchdog.stalls,
            "memory_bytes": memory_bytes(),
            "uptime_s": round(sources.clock() - sources.started_at, 3),
            "messages_in": counts.messages_in + sum(connection.traffic.messages_in for connection in live),
            "messages_out": counts.messages_out + sum(connection.traffic.messages_out for connection in live),
            "errors": dict(errors),
            "auth": dict(admission.auth),
            "keys": _keys(sources),
            "origins_refused": dict(admission.origins_refused),
            "origins_tracked": admission.origins_tracked,
            "origins_blocked": admission.origins_blocked,
            "tickets": admission.tickets,
            "tickets_issued": admission.tickets_issued,
            "rate_limited": rate_limited(sources),
            "connections_total": dict(sources.door.outcomes),
            "closes": {str(code): count for code, count in counts.closes.items()},
            "recorder": attrs.asdict(sources.recorder.statistics()),
        }


def _keys(sources: Sources) -> dict[str, Any] | None:
    """Return how fresh the public keys are; None where there are none."""
    verifier = sources.admission.verifier
    if verifier is None or verifier.public is None:
        return None
    numbers = verifier.public.statistics(trio.current_time())
    age_s = None if numbers.age_s is None else round(numbers.age_s, 3)
    return {"count": numbers.count, "last_refresh_age_s": age_s, "failures": numbers.failures}


def _user(context: UserContext) -> dict[str, Any]:
    return {
        "state": context.state.value,
        "runs": [attrs.asdict(run) for run in context.active],
        "stream": attrs.asdict(context.stream.statistics()),
        "connections": [_connection(connection) for connection in context.connections.values()],
    }


def _connection(connection: Connection) -> dict[str, Any]:
    traffic = connection.traffic
    return {
        "connection_id": connection.connection_id,
        "thread_id": connection.thread_id,
        "rtt_ms": None if traffic.rtt_s is None else round(traffic.rtt_s * 1000, 3),
        "bytes_in": connection.wire.bytes_in,
        "bytes_out": connection.wire.bytes_out,
        "messages_in": traffic.messages_in,
        "messages_out": traffic.messages_out,
        "errors": traffic.errors,
        "last_activity": traffic.last_activity,
        "jobs": len(connection.job_lanes),
        "cursor_lag": connection.cursor.stream.visible - connection.cursor.seq,
    }
