"""The lock: one request head goes in, an identity or a refusal comes out, before any 101."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import attrs

from netra_ws.errors import Refused
from netra_ws.identity import Identity

from .limits import AddressTable
from .origins import OriginFault, OriginPolicy, embedded_elsewhere, parse_origin, spelling
from .revocations import Revocations, issued_at
from .strikes import Blocked, Strikes
from .tickets import Issued, Tickets
from .tokens import Verifier, find_token

#: Why an origin was refused: a fault, or that nothing was looked at any more.
BLOCKED = "blocked"
#: Of an address.
BUDGETS = ("requests", "connects", "failed_connects")
#: How a look at a token, a ticket or a program's own rule may end.
OUTCOMES = ("ok", "missing", "expired", "invalid", "revoked", "ticket_invalid", "refused", "failed")
_OUTCOME_OF = {
    "TOKEN_MISSING": "missing",
    "TOKEN_EXPIRED": "expired",
    "TOKEN_INVALID": "invalid",
    "TOKEN_REVOKED": "revoked",
    "TICKET_INVALID": "ticket_invalid",
}


class Head(Protocol):
    """What admission needs of a request head."""

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Lower-case names with values, in the order of the request."""
        ...

    @property
    def query(self) -> Mapping[str, str]:
        """The first value of each parameter, decoded."""
        ...


@attrs.frozen
class Statistics:
    """Decisions since the start.

    Attributes:
        auth: Count by outcome: ``ok``, ``missing``, ``expired``, ``invalid``, ``revoked``,
            ``ticket_invalid``; of a program's own rule ``ok``, ``refused``, ``failed``.
        origins_refused: Count by the words of ``OriginFault``, and ``blocked``.
        origins_tracked: Pairs of origin and address remembered now, also those that are blocked.
        origins_blocked: Pairs that are blocked now.
        rate_limited: What was refused by the budgets of its address, ``requests``, ``connects`` and
            ``failed_connects``, and ``tickets`` that nobody got because there were too many.
        addresses_tracked: Addresses remembered now.
        tickets: Tickets that may be used now.
        tickets_issued: Tickets made since the start.
    """

    auth: Mapping[str, int]
    origins_refused: Mapping[str, int]
    origins_tracked: int
    origins_blocked: int
    rate_limited: Mapping[str, int]
    addresses_tracked: int
    tickets: int
    tickets_issued: int


@attrs.define
class Admission:
    """Decides who comes in: the origin first, then the budgets of the address, then who it is.

    The origin stands before the budgets because a foreign page acts in the name of whoever looks at it: what
    it is refused must not use up anything of that person's address.

    Attributes:
        verifier: Rule for tokens; None where the program has a rule of its own.
        origins: Rule for origins.
        addresses: Budgets by client address; failed attempts are counted there.
        allow_query: Whether ``?token=`` is a carrier.
        revocations: What is no longer good, though its signature and its time are.
        strikes: Remembers who was refused for their origin.
        tickets: One-use tickets.
    """

    verifier: Verifier | None
    origins: OriginPolicy
    addresses: AddressTable
    allow_query: bool = False
    revocations: Revocations = attrs.field(factory=Revocations)
    strikes: Strikes = attrs.field(factory=Strikes)
    tickets: Tickets = attrs.field(factory=Tickets)
    _auth: Counter[str] = attrs.field(init=False, factory=Counter, repr=False)
    _origins_refused: Counter[str] = attrs.field(init=False, factory=Counter, repr=False)
    _tickets_issued: int = attrs.field(init=False, default=0, repr=False)
    _tickets_refused: int = attrs.field(init=False, default=0, repr=False)

    def screen(self, head: Head, now: float, peer: str) -> None:
        """Decide what comes before the question who it is.

        Raises:
            Refused: 403 ``ORIGIN_REFUSED`` or ``ORIGIN_BLOCKED``, or 429 ``RATE_LIMITED``.
        """
        self.check_origin(head, now, peer)
        self.addresses.arrive(peer, now)

    def check_origin(self, head: Head, now: float, peer: str) -> None:
        """Let an allowed origin pass, always; count and refuse any other.

        Raises:
            Refused: 403 ``ORIGIN_REFUSED``; ``ORIGIN_BLOCKED`` with ``retry_after_s`` after too many.
        """
        origin_headers = [value for name, value in head.headers if name == b"origin"]
        hosts = [value for name, value in head.headers if name == b"host"]
        fault = self.origins.fault(origin_headers, hosts[0] if len(hosts) == 1 else None)
        if fault is None and not origin_headers and embedded_elsewhere(head.headers):
            fault = OriginFault.MISSING  # else any page could use up the budgets of whoever looks at it
        if fault is None:
            return
        blocked = self.strikes.strike(spelling(origin_headers), peer, now)
        self._origins_refused[BLOCKED if blocked else fault.value] += 1
        raise blocked or fault.refusal()

    def lacks_key(self, head: Head, *, tickets: bool = True) -> bool:
        """Whether ``identify`` would refuse *head* for a public key that may still come; counts nothing."""
        if self.verifier is None or self.verifier.public is None:
            return False
        try:
            if tickets and self.ticket_of(head) is not None:
                return False
            token = find_token(head.headers, head.query, self.allow_query)
        except Refused:
            return False
        return token is not None and self.verifier.names_unknown_key(token)

    def identify(self, head: Head, now: float, peer: str, *, tickets: bool = True) -> Identity:
        """Return who sent *head*, by token or ticket; a ticket stays as it is.

        Args:
            tickets: Whether a ticket is a carrier. Looking at it does not use it up, so it must not be one
                where something is changed.

        Raises:
            Refused: 401 ``TOKEN_MISSING``, ``TOKEN_EXPIRED``, ``TOKEN_INVALID``, ``TOKEN_REVOKED`` or
                ``TICKET_INVALID``.
        """
        try:
            identity, since = self._identity(head, now, tickets)
            self.revocations.check(identity, now, since)
        except Refused as refused:
            self.note_failure(refused, now, peer)
            raise
        self._auth["ok"] += 1
        return identity

    def _identity(self, head: Head, now: float, tickets: bool) -> tuple[Identity, float | None]:
        """Return who it is, and since when that is known to be good."""
        ticket = self.ticket_of(head) if tickets else None
        if ticket is not None:
            identity, asked_at = self.tickets.find(ticket, now), self.tickets.asked_at(ticket, now)
            # What a program's own rule found good without saying when it was issued was so at that moment.
            return identity, issued_at(identity) or (asked_at if self.verifier is None else None)
        if self.verifier is None:
            raise Refused(401, "TOKEN_MISSING", "A ticket is needed.")
        identity = self.verifier.verify(find_token(head.headers, head.query, self.allow_query), now)
        return identity, issued_at(identity)

    def ticket_of(self, head: Head) -> str | None:
        """Return the ticket where it is the carrier that counts: behind header and subprotocol, before ``?token=``.

        With a program's own rule a ticket that is there counts: what else the rule looks at is not known here.

        Raises:
            Refused: 401 ``TOKEN_INVALID``: a carrier before it is ambiguous or malformed.
        """
        ticket = head.query.get("ticket") or None
        if ticket is None or self.verifier is None:
            return ticket
        return ticket if find_token(head.headers, {}, False) is None else None

    def note_success(self, identity: Identity, now: float, peer: str, asked_at: float = math.inf) -> None:
        """Count what a program's own rule let in, which was asked at *asked_at*.

        Raises:
            Refused: 401 ``TOKEN_REVOKED``.
        """
        try:
            # What tells nothing of its issue was made by this rule when it was asked. Users who were kicked before are
            # its business; who was kicked while it thought about them is ours.
            self.revocations.check(identity, now, issued_at(identity) or asked_at)
        except Refused as refused:
            self.note_failure(refused, now, peer)
            raise
        self._auth["ok"] += 1

    def note_failure(self, refused: Refused, now: float, peer: str) -> None:
        """Count a refusal, and against its address where it was about who somebody is.

        A rule's own 503 says nothing about who asked, so an outage behind the rule locks out nobody.
        """
        guessed = refused.status in (401, 403)
        self._auth[_OUTCOME_OF.get(refused.code, "refused" if guessed else "failed")] += 1
        if guessed:
            self.addresses.failed(peer, now)

    def issue_ticket(self, identity: Identity, now: float) -> Issued:
        """Make a ticket; see ``Tickets.issue``."""
        try:
            issued = self.tickets.issue(identity, now)
        except Refused as refused:
            self._tickets_refused += refused.status == 503
            raise
        self._tickets_issued += 1
        return issued

    def unblock(self, origin: str | None, address: str | None, now: float) -> int:
        """Forget blocks and strikes of an origin in any spelling, of an address, or of both together.

        Returns:
            How many blocks there were.
        """
        if origin is not None:
            origin = str(parse_origin(origin) or origin)
        return self.strikes.unblock(origin, address, now)

    def blocked(self, now: float, limit: int) -> list[Blocked]:
        """Return at most *limit* of those who are blocked."""
        return [block for block, _ in zip(self.strikes.blocked(now), range(limit), strict=False)]

    def statistics(self, now: float) -> Statistics:
        """Return the counts at *now*; every known outcome is there, if only with 0."""
        limited = {budget: self.addresses.refused[budget] for budget in BUDGETS}
        limited["tickets"] = self._tickets_refused
        reasons = (*(fault.value for fault in OriginFault), BLOCKED)
        return Statistics(
            auth=MappingProxyType({outcome: self._auth[outcome] for outcome in OUTCOMES}),
            origins_refused=MappingProxyType({reason: self._origins_refused[reason] for reason in reasons}),
            origins_tracked=len(self.strikes),
            origins_blocked=self.strikes.blocked_count(now),
            rate_limited=MappingProxyType(limited),
            addresses_tracked=len(self.addresses),
            tickets=len(self.tickets),
            tickets_issued=self._tickets_issued,
        )
