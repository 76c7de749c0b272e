"""Which tokens are no longer good before their time: those of a user who was signed out, or a single one.

A token cannot be changed once it is out, so what is remembered is from when on tokens of a user count again, and
which tokens never do. Both are forgotten when the last such token must have expired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import attrs

from netra_ws.identity import Identity

from .challenge import not_good

#: Tokens are taken to live no longer than this, in seconds, where nobody knows their end. A token that does
#: outlives its revocation: who makes such tokens revokes again in time.
LONGEST_LIFE_S = 366 * 86_400.0
#: Seconds for which an expired token may still be taken for good somewhere: far above any leeway.
LEEWAY_S = 86_400.0
#: Far above any calendar; NaN, infinity and what overflows a float are not below it.
_LAST_SECOND = 2.0**53
#: Revocations that are remembered at the same time, of users and of tokens each.
MOST = 100_000


@attrs.frozen
class Revocation:
    """What was revoked: either all tokens of a user up to then, or one token; times in Unix seconds.

    Attributes:
        user_id: The user whose tokens of up to *revoked_at* are refused, or None.
        token: Digest of the id of the token that is refused, or None: whoever calls a token back may have named all
            of it, and what is kept must open no door.
        until: When all of them have expired.
    """

    user_id: str | None
    token: str | None
    revoked_at: float
    until: float

    def raised_to(self, other: Revocation) -> Revocation:
        """Return this one with the later times of the two."""
        return attrs.evolve(self, revoked_at=max(self.revoked_at, other.revoked_at), until=max(self.until, other.until))


@attrs.define(repr=False)
class Revocations:
    """The revocations that count now.

    Attributes:
        most: How many of each kind are remembered; beyond it a new one is refused, for none may be forgotten
            before its time.
    """

    most: int = MOST
    _users: dict[str, Revocation] = attrs.field(factory=dict)
    _tokens: dict[str, Revocation] = attrs.field(factory=dict)

    def __repr__(self) -> str:
        return f"<Revocations {len(self)}>"

    def __len__(self) -> int:
        return len(self._users) + len(self._tokens)

    def load(self, revocations: Iterable[Revocation]) -> None:
        """Take what a store has kept."""
        for revocation in revocations:
            self._put(revocation)

    def revoke(
        self, now: float, user_id: str | None, token_id: str | None, last_expiry: float | None = None
    ) -> Revocation | None:
        """Revoke the tokens of a user, or one token; None when there is no room for another revocation.

        Args:
            last_expiry: When the last of them that is in use expires, where it is known. Of a user there may
                be more, so it can only make the revocation last longer.
        """
        until = now + LONGEST_LIFE_S
        if last_expiry is not None:
            expired_at = last_expiry + LEEWAY_S
            until = expired_at if user_id is None else max(until, expired_at)
        revocation = Revocation(user_id, None if token_id is None else digest_of(token_id), now, until)
        kind, subject = self._place(revocation)
        if subject not in kind and len(kind) >= self.most:
            for over in [name for name, each in kind.items() if each.until <= now]:
                del kind[over]
            if len(kind) >= self.most:
                return None
        return self._put(revocation)

    def _put(self, revocation: Revocation) -> Revocation:
        kind, subject = self._place(revocation)
        known = kind.get(subject)
        kind[subject] = raised = revocation if known is None else revocation.raised_to(known)
        return raised

    def _place(self, revocation: Revocation) -> tuple[dict[str, Revocation], str]:
        if revocation.user_id is not None:
            return self._users, revocation.user_id
        return self._tokens, revocation.token or ""

    def cover(self, identity: Identity, now: float, since: float | None) -> bool:
        """Whether this identity was revoked at *now*.

        Args:
            since: When it was last found good, or its token issued (Unix seconds); None when nobody knows, which
                counts as before.
        """
        if identity.token_id is not None and self._tokens:
            token = self._tokens.get(digest_of(identity.token_id))
            if token is not None and now < token.until:
                return True
        user = self._users.get(identity.user_id)
        return user is not None and now < user.until and (since is None or since <= user.revoked_at)

    def check(self, identity: Identity, now: float, since: float | None) -> None:
        """Let an identity pass that was not revoked; arguments as for ``cover``.

        Raises:
            Refused: 401 ``TOKEN_REVOKED``.
        """
        if self.cover(identity, now, since):
            raise not_good("TOKEN_REVOKED", "The token was revoked.")


def digest_of(token_id: str) -> str:
    """Return what stands for the id of a token where it is kept."""
    return hashlib.sha256(token_id.encode(errors="surrogatepass")).hexdigest()


def issued_at(identity: Identity) -> float | None:
    """Return when the token of an identity was issued, in Unix seconds; None when it does not say, or no time."""
    at: object = identity.claims.get("iat")  # of a program's own rule: anything
    return float(at) if isinstance(at, int | float) and 0 <= at <= _LAST_SECOND else None
