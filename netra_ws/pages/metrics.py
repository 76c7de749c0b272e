"""``/metrics``: the numbers of all rooms as Prometheus text; never a user, thread or run as a label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from netra_ws.measures import Histogram, memory_bytes
from netra_ws.wire.head import Head, Reply

from .containers import CONTAINERS
from .sources import FRESH, Sources, rate_limited

_PREFIX = "netra_ws_"


@attrs.frozen(eq=False)
class Metrics(Collector):
    """Pulls numbers when it is asked; nobody below knows Prometheus."""

    sources: Sources
    _registry: CollectorRegistry = attrs.field(factory=lambda: CollectorRegistry(auto_describe=False))

    def __attrs_post_init__(self) -> None:
        self._registry.register(self)

    async def page(self, head: Head, body: bytes) -> Reply:
        """Answer in the text format 0.0.4."""
        text = generate_latest(self._registry)
        return Reply(200, text, "text/plain; version=0.0.4; charset=utf-8", FRESH)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; called by prometheus-client."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()

    def _gauges(self) -> Iterator[Metric]:
        sources = self.sources
        numbers = sources.registry.statistics()
        threads = sources.registry.policy.run.threads.statistics()
        gauges = {
            "connections": ("Open connections.", numbers.connections),
            "users": ("Users with an open context.", numbers.users),
            "runs": ("Runs that have not ended.", numbers.runs),
            "runs_stuck": ("Runs that could not be stopped.", numbers.stuck),
            "jobs": ("Job streams in memory.", len(sources.registry.jobs)),
            "origins_blocked": (
                "Pairs of origin and address that are blocked.",
                sources.admission.strikes.blocked_count(sources.clock()),
            ),
            "handshakes": ("Clients that are being let in.", sources.door.crowd.under_way),
            "run_threads": ("Worker threads that runs hold.", threads.borrowed_tokens),
            "run_threads_waiting": ("Calls that wait for a worker thread.", sources.registry.threads_waiting()),
            "memory_bytes": ("Resident memory.", memory_bytes()),
            "streams": ("Streams in memory.", len(sources.streams)),
            "tasks": ("Trio tasks.", trio.lowlevel.current_statistics().tasks_living),
        }
        if (certificates := sources.door.certificates) is not None:
            text = "Unix time at which the certificate ends."
            yield GaugeMetricFamily(_PREFIX + "certificate_expiry_seconds", text, value=certificates.expires_at)
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(_PREFIX + name, text, value=value)
        size = GaugeMetricFamily(_PREFIX + "bounded_size", "How much a bounded thing holds.", labels=["what"])
        limit = GaugeMetricFamily(_PREFIX + "bounded_limit", "How much it may hold.", labels=["what"])
        for row in CONTAINERS:
            if row.size is not None and row.per == "process":
                size.add_metric([row.what], row.size(sources))
                limit.add_metric([row.what], row.bound(sources))
        yield from (size, limit)

    def _counters(self) -> Iterator[Metric]:
        sources = self.sources
        registry, counts = sources.registry, sources.wiring.counts
        admission = sources.admission.statistics(sources.clock())
        live = [connection for context in registry for connection in context.connections.values()]
        sizes = {
            ("in",): counts.bytes_in + sum(connection.wire.bytes_in for connection in live),
            ("out",): counts.bytes_out + sum(connection.wire.bytes_out for connection in live),
        }
        yield _counter("connections", "Attempts to open a socket.", ["outcome"], _single(sources.door.outcomes))
        yield _counter("commands", "Commands answered.", ["type", "code"], registry.commands)
        yield _counter("events", "Events appended.", ["type"], _single(sources.streams.counts.events))
        yield _counter("runs", "Runs ended.", ["agent", "status", "cancelled_by"], registry.runs.ended)
        yield _counter("closes", "Connections closed.", ["code"], _single(counts.closes))
        yield _counter("auth", "Tokens and tickets looked at.", ["outcome"], _single(admission.auth))
        verifier = sources.admission.verifier
        public = None if verifier is None else verifier.public
        read = {} if public is None else public.statistics(trio.current_time()).refreshes
        yield _counter("jwks_refreshes", "Public keys read, or not.", ["outcome"], _single(read))
        yield _counter("origins_refused", "Origins refused.", ["reason"], _single(admission.origins_refused))
        yield _counter("tickets_issued", "Tickets made.", [], {(): admission.tickets_issued})
        yield _counter("rate_limited", "Refused by a budget.", ["budget"], _single(rate_limited(sources)))
        yield _counter("replays", "Resumes asked for.", ["outcome"], _single(counts.replays))
        yield _counter("deltas_merged", "Deltas sent inside another frame.", [], {(): sources.streams.counts.merged})
        removed = {(): sources.streams.counts.threads_removed}
        yield _counter("quota_threads_removed", "Threads that went because a user had too much.", [], removed)
        yield _counter("bytes", "Bytes of all sockets.", ["direction"], sizes)
        yield _counter("store_errors", "Writes that failed.", [], {(): sources.recorder.statistics().errors})

    def _histograms(self) -> Iterator[Metric]:
        sources = self.sources
        runs = sources.registry.runs
        yield _histogram(
            "run_seconds", "From agent_started to the end.", ["agent"], {(name,): h for name, h in runs.seconds.items()}
        )
        yield _histogram("first_event_seconds", "Until an agent said something.", [], {(): runs.first_event})
        yield _histogram("commit_seconds", "Time of a transaction.", [], {(): sources.commit})
        yield _histogram("ping_rtt_seconds", "Round trip of a ping.", [], {(): sources.heartbeat.rtt})
        yield _histogram("loop_stall_seconds", "How late the event loop was.", [], {(): sources.watchdog.late})
        yield _histogram("cancel_seconds", "From a cancel to its proof.", [], {(): runs.cancel})


def _single(counts: Mapping[str, int] | Mapping[int, int]) -> dict[tuple[str, ...], int]:
    return {(str(label),): count for label, count in counts.items()}


def _counter(name: str, text: str, labels: list[str], counts: Mapping[Any, int]) -> Metric:
    """Return a counter; the keys of *counts* are tuples of label values."""
    family = CounterMetricFamily(_PREFIX + name, text, labels=labels)
    for values, count in counts.items():
        family.add_metric(list(values), count)
    return family


def _histogram(name: str, text: str, labels: list[str], histograms: Mapping[tuple[str, ...], Histogram]) -> Metric:
    family = HistogramMetricFamily(_PREFIX + name, text, labels=labels)
    for values, histogram in histograms.items():
        family.add_metric(list(values), buckets=_buckets(histogram), sum_value=histogram.total)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds: Iterable[str] = [*(str(bound) for bound in histogram.bounds), "+Inf"]
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip(bounds, histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
