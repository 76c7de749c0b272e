"""Finds dead peers and expired tokens: one task, one heap of moments for all connections."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

import attrs
import trio

from netra_ws.contexts.connection import Connection
from netra_ws.measures import Histogram
from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.replies import AuthExpiring
from netra_ws.wire.stream import Duplex

#: Seconds before the end of a token at which its client is told.
WARN_S = 60.0

_count = itertools.count()


@attrs.frozen(order=True)
class _Moment:
    at: float
    number: int
    act: Callable[[], None] = attrs.field(order=False)


@attrs.define
class Heartbeat:
    """Pings every connection each interval; one that says nothing within the timeout is closed with 4001.

    Anything that a client sends counts as a sign of life, not only the pong.

    Attributes:
        rtt: Round trips of pings, in seconds.
    """

    interval_s: float
    timeout_s: float
    expiry_grace_s: float
    rtt: Histogram = attrs.field(factory=Histogram)
    _moments: list[_Moment] = attrs.field(factory=list)
    _wake: trio.Event = attrs.field(factory=trio.Event)

    def watch(self, connection: Connection, stream: Duplex) -> None:
        """Look after a connection until its wire is closed."""
        self._in(self.interval_s, lambda: self._ping(connection, stream))
        expires_at = connection.identity.expires_at
        if expires_at is not None:
            left_s = expires_at - connection.clock()
            self._in(max(0.0, left_s - WARN_S), lambda: self._warn(connection, expires_at))
            self._in(left_s + self.expiry_grace_s, lambda: self._expire(connection))

    def _in(self, seconds: float, act: Callable[[], None]) -> None:
        moment = _Moment(trio.current_time() + seconds, next(_count), act)
        heapq.heappush(self._moments, moment)
        if self._moments[0] is moment:
            self._wake.set()

    async def run(self) -> None:
        """Act at each moment until cancelled."""
        while True:
            at = self._moments[0].at if self._moments else float("inf")
            with trio.move_on_at(at):
                await self._wake.wait()
            self._wake = trio.Event()
            now = trio.current_time()
            while self._moments and self._moments[0].at <= now:
                heapq.heappop(self._moments).act()

    def _ping(self, connection: Connection, stream: Duplex) -> None:
        if stream.closed or connection.closing:
            return
        stream.ping()
        self._in(self.timeout_s, lambda: self._check(connection, stream))

    def _check(self, connection: Connection, stream: Duplex) -> None:
        if stream.closed or connection.closing:
            return
        if stream.ping_sent_at is not None and stream.heard_at < stream.ping_sent_at:
            connection.shut(CloseCode.NO_PONG, "no pong")
            return
        if stream.rtt_s is not None:
            self.rtt.observe(stream.rtt_s)
            connection.traffic.rtt_s = stream.rtt_s
        self._in(max(0.0, self.interval_s - self.timeout_s), lambda: self._ping(connection, stream))

    def _warn(self, connection: Connection, expires_at: float) -> None:
        if not connection.closing:
            left_s = max(0.0, expires_at - connection.clock())
            connection.tell(AuthExpiring(expires_at=expires_at, expires_in_s=left_s))

    def _expire(self, connection: Connection) -> None:
        connection.shut(CloseCode.TOKEN_EXPIRED, "the token has expired")

    def __len__(self) -> int:
        return len(self._moments)
