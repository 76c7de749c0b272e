"""The lock: one request head goes in, an identity or a refusal comes out, before any 101."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import attrs

from netra_ws.errors import Refused
from netra_ws.identity import Identity

from .limits import AddressTable
from .origins import OriginFault, OriginPolicy
from .revocations import Revocations, issued_at
from .tokens import Verifier, find_token


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
        auth: Count by outcome: ``ok``, ``missing``, ``expired``, ``invalid``, ``revoked``.
        origins_refused: Count by the words of ``OriginFault``.
        rate_limited: Attempts refused by the budgets of their address.
        addresses_tracked: Addresses remembered now.
    """

    auth: Mapping[str, int]
    origins_refused: Mapping[str, int]
    rate_limited: int
    addresses_tracked: int


@attrs.define
class Admission:
    """Decides who comes in: address budgets first because they protect the rest, then origin, then token.

    Attributes:
        verifier: Rule for tokens.
        origins: Rule for origins.
        addresses: Budgets by client address; failed attempts are counted there.
        allow_query: Whether ``?token=`` is a carrier.
        revocations: What is no longer good, though its signature and its time are.
    """

    verifier: Verifier
    origins: OriginPolicy
    addresses: AddressTable
    allow_query: bool = False
    revocations: Revocations = attrs.field(factory=Revocations)
    _auth: Counter[str] = attrs.field(init=False, factory=Counter, repr=False)
    _origins_refused: Counter[str] = attrs.field(init=False, factory=Counter, repr=False)
    _rate_limited: int = attrs.field(init=False, default=0, repr=False)

    def admit(self, head: Head, now: float, peer: str) -> Identity:
        """Return who sent *head* from the address *peer* at *now*, in Unix seconds.

        Raises:
            Refused: 429 ``RATE_LIMITED``, 403 ``ORIGIN_REFUSED`` or 401 ``TOKEN_…``.
        """
        self.screen(head, now, peer)
        return self.identify(head, now, peer)

    def screen(self, head: Head, now: float, peer: str) -> None:
        """Do the part of ``admit`` that needs no token, for programs that authenticate in their own way.

        Such a program reports its own refusals to ``addresses.failed``.

        Raises:
            Refused: 429 ``RATE_LIMITED`` or 403 ``ORIGIN_REFUSED``.
        """
        try:
            self.addresses.arrive(peer, now)
        except Refused:
            self._rate_limited += 1
            raise
        origin_headers = [value for name, value in head.headers if name == b"origin"]
        hosts = [value for name, value in head.headers if name == b"host"]
        host = hosts[0] if len(hosts) == 1 else None
        fault = self.origins.fault(origin_headers, host)
        if fault is not None:
            self._origins_refused[fault.value] += 1
            self.addresses.failed(peer, now)
            raise fault.refusal()

    def identify(self, head: Head, now: float, peer: str) -> Identity:
        """Do the part of ``admit`` that is about the token, for HTTP requests that need one.

        Raises:
            Refused: 401 ``TOKEN_MISSING``, ``TOKEN_EXPIRED``, ``TOKEN_INVALID`` or ``TOKEN_REVOKED``.
        """
        try:
            identity = self.verifier.verify(find_token(head.headers, head.query, self.allow_query), now)
            self.revocations.check(identity, now, issued_at(identity))
        except Refused as refused:
            self._auth[refused.code.removeprefix("TOKEN_").lower()] += 1
            self.addresses.failed(peer, now)
            raise
        self._auth["ok"] += 1
        return identity

    def statistics(self) -> Statistics:
        """Return the counts; every known outcome is there, if only with 0."""
        auth = {outcome: self._auth[outcome] for outcome in ("ok", "missing", "expired", "invalid", "revoked")}
        refused = {fault.value: self._origins_refused[fault.value] for fault in OriginFault}
        return Statistics(MappingProxyType(auth), MappingProxyType(refused), self._rate_limited, len(self.addresses))
