"""When keys are read again, and until when those at hand are believed. Pure decisions, with the clock handed in."""

from __future__ import annotations

import math
import re

import attrs

#: How often keys are fetched when the answer says nothing about it, and within what it may say otherwise.
REFRESH_S, LEAST_REFRESH_S, MOST_REFRESH_S = 600.0, 60.0, 86_400.0
#: A token of an unknown key brings the next fetch forward, but however many come, not closer than this.
EARLY_S = 30.0
#: The wait after a first failure; it doubles up to ``REFRESH_S``.
RETRY_S = 15.0
#: Keys of a service that has not answered for that long are given up: it may be withdrawing them.
BELIEVED_S = 86_400.0
#: How long a request whose token names an unknown key waits for the keys that are being read, and how many may.
#: Each holds a place of the door or a connection meanwhile; a fetch takes some 0.1 s.
NEWS_S = 3.0
MAX_AWAITING = 100
#: For one reading, whatever it waits for: a name, a connection, TLS, the last byte; a file system.
READ_S = 10.0
#: For the first reading at the start of a server, with as many attempts as fit.
START_S = 10.0
#: How often a file is looked at.
LOOK_S = 5.0

_MAX_AGE = re.compile(r"(?:^|[\s,])max-age\s*=\s*\"?(\d{1,9})\b", re.IGNORECASE)
_UNCACHED = re.compile(r"(?:^|[\s,])no-(?:store|cache)\b", re.IGNORECASE)


class Unread(Exception):
    """A source gave no keys that can be used; the text says why in a few words, without its address.

    Attributes:
        lasting: Whether trying again soon is pointless.
        known: Whether nothing was tried, because nothing has changed since this was said before.
    """

    def __init__(self, why: str, *, lasting: bool = False, known: bool = False) -> None:
        super().__init__(why)
        self.lasting = lasting
        self.known = known


def refresh_after_s(cache_control: str) -> float:
    """Return the seconds for which an answer with this ``Cache-Control`` is kept (RFC 9111 §5.2.2)."""
    if _UNCACHED.search(cache_control):
        return LEAST_REFRESH_S
    if match := _MAX_AGE.search(cache_control):
        return min(max(float(match[1]), LEAST_REFRESH_S), MOST_REFRESH_S)
    return REFRESH_S


@attrs.define(eq=False)
class Freshness:
    """What is known of one source; times are those of the caller's clock, in seconds.

    Attributes:
        due: When it is to be read next.
        believed_s: How long after the first failure in a row its keys still count.
        tried_at: When it was last tried.
        failing_since: When the outage began that is under way, or None.
        failures: Attempts that failed since then.
    """

    due: float
    believed_s: float = BELIEVED_S
    tried_at: float = -math.inf
    failing_since: float | None = None
    failures: int = 0

    def succeeded(self, now: float, after_s: float) -> bool:
        """Note a good answer that is kept for *after_s*; return whether an outage ends with it."""
        was_out = self.failing_since is not None
        self.tried_at, self.due = now, now + after_s
        self.failing_since, self.failures = None, 0
        return was_out

    def failed(self, now: float) -> bool:
        """Note a failure; return whether an outage begins with it."""
        begins = self.failing_since is None
        if begins:
            self.failing_since = now
        self.failures += 1
        self.tried_at = now
        self.due = now + min(RETRY_S * 2.0 ** min(self.failures - 1, 10), REFRESH_S)
        return begins

    def hurry(self, now: float) -> bool:
        """Bring the next attempt forward as far as may be; return whether that changed anything."""
        due = max(now, self.tried_at + EARLY_S)
        if due >= self.due:
            return False
        self.due = due
        return True

    def believed(self, now: float) -> bool:
        """Whether the keys at hand still count."""
        return self.failing_since is None or now - self.failing_since < self.believed_s
