"""Finds dead peers and expired tokens: one task, one heap of moments for all connections."""

from __future__ import annotations

import heapq
import itertools
import math

import attrs
import trio

from netra_ws.contexts.connection import Connection
from netra_ws.measures import Histogram
from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.replies import AuthExpiring

from .stream import Duplex

#: Seconds before the end of a token at which its client is told.
WARN_S = 60.0
#: Ended connections that may stand in the heap, if they are less than half of it.
ENDED = 64

_count = itertools.count()


@attrs.define(order=False, eq=False, repr=False)
class _Watch:
    """What is due for one connection; it stands in the heap once, at its next moment.

    Attributes:
        check: Whether the next beat looks for the answer to a ping, or sends one.
        warned_of: The end of the token that the client was told of.
    """

    connection: Connection
    stream: Duplex
    beat_at: float
    check: bool = False
    warned_of: float | None = None

    @property
    def over(self) -> bool:
        return self.stream.closed or self.connection.closing


@attrs.define(repr=False)
class Heartbeat:
    """Pings every connection each interval; one that says nothing within the timeout is closed with 4001.

    Anything that a client sends counts as a sign of life, not only the pong. Connections that ended are
    forgotten at their next beat, or together when they are half of the heap: else clients that come and go
    would stay in memory for an interval.

    Attributes:
        rtt: Round trips of pings, in seconds.
    """

    interval_s: float
    timeout_s: float
    expiry_grace_s: float
    rtt: Histogram = attrs.field(factory=Histogram)
    _moments: list[tuple[float, int, _Watch]] = attrs.field(factory=list)
    _ended: int = 0
    _wake: trio.Event = attrs.field(factory=trio.Event)

    def watch(self, connection: Connection, stream: Duplex) -> None:
        """Look after a connection until its wire is closed."""
        now = trio.current_time()
        self._plan(_Watch(connection, stream, now + self.interval_s), now)

    def look_again(self, connection: Connection) -> None:
        """Note that a connection has another identity, which may end before the next look at it.

        Looking for it in the heap is the price of a heap without an index; a client does this once in the life
        of a token, and mostly with one that lasts longer, which the next look will find.
        """
        left_s = (connection.identity.expires_at or math.inf) - connection.clock()
        now = trio.current_time()
        soonest = now + left_s - WARN_S
        for position, (at, _, watch) in enumerate(self._moments):
            if watch.connection is connection:
                if soonest < at:
                    del self._moments[position]
                    heapq.heapify(self._moments)
                    self._plan(watch, now)
                return

    def forget_ended(self) -> None:
        """Note that a watched connection has ended."""
        self._ended += 1
        if self._ended > ENDED and 2 * self._ended > len(self._moments):
            self._moments = [moment for moment in self._moments if not moment[2].over]
            heapq.heapify(self._moments)
            self._ended = 0

    def _plan(self, watch: _Watch, now: float) -> None:
        """Put *watch* into the heap at whatever comes first: its beat, its warning, its expiry."""
        at = watch.beat_at
        expires_at = watch.connection.identity.expires_at
        if expires_at is not None:
            # The token's clock is the system's, ours is Trio's: looked at anew each time.
            left_s = expires_at - watch.connection.clock()
            at = min(at, now + left_s + self.expiry_grace_s)
            if watch.warned_of != expires_at:
                at = min(at, now + left_s - WARN_S)
        moment = (at, next(_count), watch)
        heapq.heappush(self._moments, moment)
        if self._moments[0] is moment:
            self._wake.set()

    async def run(self) -> None:
        """Act at each moment until cancelled."""
        while True:
            at = self._moments[0][0] if self._moments else float("inf")
            with trio.move_on_at(at):
                await self._wake.wait()
            self._wake = trio.Event()
            now = trio.current_time()
            due = []
            while self._moments and self._moments[0][0] <= now:
                due.append(heapq.heappop(self._moments)[2])
            for watch in due:
                self._act(watch, now)

    def _act(self, watch: _Watch, now: float) -> None:
        if watch.over:
            return
        self._look_at_token(watch)
        if now >= watch.beat_at:
            self._beat(watch, now)
        if not watch.connection.closing:
            self._plan(watch, now)

    def _look_at_token(self, watch: _Watch) -> None:
        connection = watch.connection
        expires_at = connection.identity.expires_at
        if expires_at is None:
            return
        left_s = expires_at - connection.clock()
        if left_s + self.expiry_grace_s <= 0:
            connection.shut(CloseCode.TOKEN_EXPIRED, "the token has expired")
        elif left_s <= WARN_S and watch.warned_of != expires_at:
            watch.warned_of = expires_at
            connection.tell(AuthExpiring(expires_at=expires_at, expires_in_s=max(0.0, left_s)))

    def _beat(self, watch: _Watch, now: float) -> None:
        stream = watch.stream
        if not watch.check:
            stream.ping()
            watch.check = True
            watch.beat_at = now + self.timeout_s
            return
        if stream.ping_sent_at is not None and stream.heard_at < stream.ping_sent_at:
            watch.connection.shut(CloseCode.NO_PONG, "no pong")
            return
        if stream.rtt_s is not None:
            self.rtt.observe(stream.rtt_s)
            watch.connection.traffic.rtt_s = stream.rtt_s
        watch.check = False
        watch.beat_at = now + max(0.0, self.interval_s - self.timeout_s)

    def __len__(self) -> int:
        return len(self._moments)
