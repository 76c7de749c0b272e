"""How often something may happen: token buckets with the clock handed in."""

from __future__ import annotations

import ipaddress
import math
from collections import Counter, OrderedDict

import attrs

from netra_ws.errors import Refused

#: One who may open 600 sockets a minute may ask for ten times as many pages and handshakes.
REQUESTS_PER_CONNECT = 10
#: However few sockets an address may open, health checks and pages of a minute stay below this.
LEAST_REQUESTS = 600
#: Commands that start nothing (stops, answers, reads, typing) must still work when starts are used up.
OTHER_PER_TALK = 10
# A promised wait is computed in floats; without this slack a client that waits exactly so long is refused again.
# What it gains here it owes afterwards, so the long-run rate is exact.
_SLACK = 1e-3


@attrs.define
class RateLimit:
    """A bucket of *burst* tokens, refilled with *per_minute*; it starts full.

    Attributes:
        per_minute: Refill, above 0.
        burst: Size of the bucket, at least 1; as large as *per_minute* by default.
    """

    per_minute: float = attrs.field(validator=attrs.validators.gt(0))
    burst: float = attrs.field(
        default=attrs.Factory(lambda self: max(1.0, self.per_minute), takes_self=True), validator=attrs.validators.ge(1)
    )
    _tokens: float = attrs.field(init=False, default=attrs.Factory(lambda self: float(self.burst), takes_self=True))
    _refilled_at: float | None = attrs.field(init=False, default=None)

    def take(self, now: float) -> float:
        """Take one token at *now*, in seconds of any clock; return 0, or the seconds after which it may succeed."""
        wait_s = self.wait_s(now)
        if wait_s == 0:
            self._tokens -= 1
        return wait_s

    def wait_s(self, now: float) -> float:
        """Return what ``take`` would return, without taking."""
        self._refill(now)
        if self._tokens >= 1 - _SLACK:
            return 0.0
        return (1 - self._tokens) * 60 / self.per_minute

    def _refill(self, now: float) -> None:
        # A clock that was set back gives nothing and takes nothing.
        elapsed_s = max(0.0, now - self._refilled_at) if self._refilled_at is not None else 0.0
        self._tokens = min(float(self.burst), self._tokens + elapsed_s * self.per_minute / 60)
        self._refilled_at = now


def ping_budget(per_minute: int) -> RateLimit:
    """Return the budget of one connection for pings, heartbeats and control frames; above it, read no faster."""
    return RateLimit(per_minute)


@attrs.frozen
class Budgets:
    """What one user may say per minute, over all connections.

    Attributes:
        talk: Starts and messages.
        other: Everything else but pings, ten times as large.
    """

    talk: RateLimit
    other: RateLimit

    @classmethod
    def of(cls, messages_per_minute: int) -> Budgets:
        """Build full budgets from ``limits.messages_per_minute``."""
        return cls(talk=RateLimit(messages_per_minute), other=RateLimit(OTHER_PER_TALK * messages_per_minute))


@attrs.frozen
class _Address:
    requests: RateLimit
    connects: RateLimit
    failures: RateLimit


@attrs.frozen
class AddressTable:
    """Connections and attempts to open a socket by client address; the least recently seen address is forgotten first.

    Attributes:
        max_tracked: Addresses remembered at most; this bounds the memory.
        connects_per_minute: Attempts of one address; ``REQUESTS_PER_CONNECT`` times as many connections, whatever
            they are for, and at least ``LEAST_REQUESTS``.
        failed_connects_per_minute: Failed attempts of one address, after which all its attempts are refused.
        refused: Count of refusals by budget: ``requests``, ``connects``, ``failed_connects``.
    """

    max_tracked: int = attrs.field(validator=attrs.validators.ge(1))
    connects_per_minute: int = attrs.field(validator=attrs.validators.ge(1))
    failed_connects_per_minute: int = attrs.field(validator=attrs.validators.ge(1))
    refused: Counter[str] = attrs.field(init=False, factory=Counter, repr=False)
    _addresses: OrderedDict[str, _Address] = attrs.field(init=False, factory=OrderedDict, repr=False)

    def __len__(self) -> int:
        return len(self._addresses)

    def meet(self, address: str, now: float) -> None:
        """Count a connection, before anything is known of what it is for.

        Raises:
            Refused: 429 ``RATE_LIMITED`` with ``retry_after_s``; such a connection is not counted.
        """
        requests = self._find(address).requests
        self._refuse_for(requests.take(now), "requests", "Too many connections from this address.")

    def arrive(self, address: str, now: float) -> None:
        """Count an attempt to connect; call ``failed`` as well when it is refused later on.

        Raises:
            Refused: 429 ``RATE_LIMITED`` with ``retry_after_s``; such an attempt is not counted.
        """
        self.check_failures(address, now)
        connects = self._find(address).connects
        self._refuse_for(connects.take(now), "connects", "Too many connection attempts from this address.")

    def check_failures(self, address: str, now: float) -> None:
        """Let an address pass that may try once more, as a client does that is connected already; counts nothing.

        Raises:
            Refused: 429 ``RATE_LIMITED`` with ``retry_after_s``.
        """
        wait_s = self._find(address).failures.wait_s(now)
        self._refuse_for(wait_s, "failed_connects", "Too many failed attempts from this address.")

    def failed(self, address: str, now: float) -> None:
        """Count a failed attempt."""
        self._find(address).failures.take(now)

    def _refuse_for(self, wait_s: float, budget: str, text: str) -> None:
        if wait_s > 0:
            self.refused[budget] += 1
            raise Refused(429, "RATE_LIMITED", text, retry_after_s=math.ceil(wait_s))

    def _find(self, address: str) -> _Address:
        key = address_key(address)
        seen = self._addresses.get(key)
        if seen is None:
            seen = _Address(
                RateLimit(max(LEAST_REQUESTS, REQUESTS_PER_CONNECT * self.connects_per_minute)),
                RateLimit(self.connects_per_minute),
                RateLimit(self.failed_connects_per_minute),
            )
            self._addresses[key] = seen
            if len(self._addresses) > self.max_tracked:
                self._addresses.popitem(last=False)
        else:
            self._addresses.move_to_end(key)
        return seen


def address_key(address: str) -> str:
    """Return the key of an address: one subscriber usually holds a whole IPv6 /64, so that counts as one."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
