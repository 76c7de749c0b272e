"""One-use tickets: what a browser puts into an address instead of its token.

A ticket stands in a URL, and URLs end up in logs and histories. So it is good for half a minute and for one
connection, and it is kept only as a digest: whoever reads this process's memory cannot use it either.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from netra_ws.errors import Refused
from netra_ws.identity import Identity

from .challenge import not_good

#: Seconds for a page to open its socket after it asked.
TICKET_S = 30.0
#: Tickets of one user at the same time; a page asks right before it connects, so more are leftovers.
MAX_OF_USER = 16
#: Tickets of everybody. With the bound per user it takes 625 users to reach it.
MAX_TICKETS = 10_000
_RANDOM_BYTES = 32
#: A ticket of ours has 43 characters; nothing longer is worth hashing.
_MAX_CHARACTERS = 64


@attrs.frozen
class Issued:
    """A new ticket, told once to who asked.

    Attributes:
        ticket: 43 characters that need no quoting in a URL.
        expires_at: Unix seconds.
    """

    ticket: str = attrs.field(repr=False)
    expires_at: float


@attrs.define
class _Ticket:
    identity: Identity
    asked_at: float
    expires_at: float
    in_use: bool = False


@attrs.frozen
class Tickets:
    """Tickets that were issued and neither used nor forgotten.

    Attributes:
        max_of_user: Beyond it the user's oldest ticket is forgotten.
        max_total: Beyond it nobody gets a ticket until one is used or has expired.
    """

    max_of_user: int = MAX_OF_USER
    max_total: int = MAX_TICKETS
    _tickets: OrderedDict[bytes, _Ticket] = attrs.field(init=False, factory=OrderedDict, repr=False)
    _of_user: dict[str, list[bytes]] = attrs.field(init=False, factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self._tickets)

    def issue(self, identity: Identity, now: float) -> Issued:
        """Make a ticket that stands for *identity*; it never outlives the token that asked for it.

        Raises:
            Refused: 401 ``TOKEN_EXPIRED``: the token lives only by the leeway between two clocks;
                503 ``OVERLOADED`` where nobody gets one.
        """
        expires_at = now + TICKET_S
        if identity.expires_at is not None:
            expires_at = min(expires_at, identity.expires_at)
        if expires_at <= now:
            raise not_good("TOKEN_EXPIRED", "The token has expired.")
        self._make_room(identity.user_id, now)
        ticket = secrets.token_urlsafe(_RANDOM_BYTES)
        digest = _digest(ticket)
        self._tickets[digest] = _Ticket(identity, now, expires_at)
        self._of_user.setdefault(identity.user_id, []).append(digest)
        return Issued(ticket, expires_at)

    def find(self, ticket: str, now: float) -> Identity:
        """Return whom a ticket stands for, and leave it as it is.

        Raises:
            Refused: 401 ``TICKET_INVALID``: unknown, used, expired, or in use by somebody else right
                now; which of them is not told.
        """
        return self._find(ticket, now).identity

    def asked_at(self, ticket: str, now: float) -> float:
        """Return when a ticket was asked for, in Unix seconds.

        Raises:
            Refused: As ``find``.
        """
        return self._find(ticket, now).asked_at

    @contextmanager
    def use(self, ticket: str, now: float) -> Iterator[Identity]:
        """Hold a ticket inside the block, so that nobody else gets in with it; it is used up when the block succeeds.

        When the block raises, the ticket is as good as before.

        Raises:
            Refused: As ``find``.
        """
        found = self._find(ticket, now)
        found.in_use = True
        try:
            yield found.identity
        except BaseException:
            found.in_use = False
            raise
        self._forget(_digest(ticket))

    def _find(self, ticket: str, now: float) -> _Ticket:
        found = self._tickets.get(_digest(ticket)) if len(ticket) <= _MAX_CHARACTERS else None
        # A clock that was set back makes no ticket live longer than it was given.
        if found is None or found.in_use or not found.asked_at <= now < found.expires_at:
            raise not_good("TICKET_INVALID", "The ticket is not valid; ask for a new one.")
        return found

    def _make_room(self, user_id: str, now: float) -> None:
        # The oldest stand first; behind them only those of tokens that were about to expire end earlier.
        while self._tickets and (digest := next(iter(self._tickets))) and self._tickets[digest].expires_at <= now:
            self._forget(digest)
        of_user = self._of_user.get(user_id, [])
        if len(of_user) >= self.max_of_user:
            self._forget(of_user[0])
        if len(self._tickets) >= self.max_total:
            for digest in [digest for digest, kept in self._tickets.items() if kept.expires_at <= now]:
                self._forget(digest)
        if len(self._tickets) >= self.max_total:
            wait_s = min(kept.expires_at for kept in self._tickets.values()) - now
            raise Refused(503, "OVERLOADED", "There are too many tickets.", retry_after_s=math.ceil(wait_s))

    def _forget(self, digest: bytes) -> None:
        kept = self._tickets.pop(digest, None)
        if kept is None:
            return  # it made room for a newer one while it was in use
        of_user = self._of_user[kept.identity.user_id]
        of_user.remove(digest)
        if not of_user:
            del self._of_user[kept.identity.user_id]


def _digest(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode("utf-8", "replace")).digest()
