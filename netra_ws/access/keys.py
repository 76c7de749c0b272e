"""The keys that tokens are checked with, and which of them may check which token.

A key has one algorithm, given by its kind: a secret HS256, an RSA key RS256, one on P-256 ES256, one on Ed25519
EdDSA. A token's header picks among keys, never how a key is used: that is how ``none``, and a public key taken
for a secret, are kept out (RFC 8725 §3.1). What is set is read in ``jwks.py``; nothing is fetched here.
"""

from __future__ import annotations

import hmac
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, islice
from types import MappingProxyType
from typing import Protocol

import attrs

from netra_ws.errors import ConfigError

#: HMAC-SHA256 keys below its output size are guessable (RFC 7518 §3.2); PyJWT would take one byte.
MIN_SECRET_BYTES = 32
SECRET_ALGORITHM = "HS256"  # noqa: S105 - its name only
PUBLIC_ALGORITHMS = ("RS256", "ES256", "EdDSA")
#: Of one source. Far above the sets of the large identity services (2 to 20), far below what is a burden to read.
MAX_KEYS = 100
#: One signature of RSA takes some 50 µs to check: a token without ``kid`` costs at most a millisecond.
MAX_TRIED = 16
#: What everybody may know cannot be a secret: a key or certificate in PEM or OpenSSH's form, a JWK.
_PUBLIC_LOOKS = re.compile(r'-----BEGIN |\A\s*(?:ssh-|ecdsa-|sk-)|\A\s*[{\[].*"kty"', re.DOTALL)


@attrs.frozen
class Secret:
    """An HMAC key."""

    _key: bytes = attrs.field(repr=False)

    @classmethod
    def of(cls, text: str) -> Secret:
        """Return the key that *text* is as UTF-8.

        Raises:
            ConfigError: it is too short, or a public key by its looks.
        """
        try:
            key = text.encode()
        except UnicodeEncodeError:
            raise ConfigError("auth.secret: must be text") from None
        if _PUBLIC_LOOKS.search(text):
            raise ConfigError("auth.secret: must be secret text, not a public key or certificate")
        if len(key) < MIN_SECRET_BYTES:
            raise ConfigError(f"auth.secret: at least {MIN_SECRET_BYTES} bytes are needed")
        return cls(key)

    def sign(self, message: bytes) -> bytes:
        """Return HMAC-SHA256 of *message*."""
        return hmac.digest(self._key, message, "sha256")

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether *signature* is this key's for *message*; takes as long for a near miss as for a far one."""
        return hmac.compare_digest(self.sign(message), signature)


class PublicKey(Protocol):
    """What checks signatures of one algorithm."""

    @property
    def algorithm(self) -> str:
        """One of ``PUBLIC_ALGORITHMS``."""
        ...

    @property
    def kid(self) -> str | None:
        """Its name in the set it came in; None for a key of a PEM file."""
        ...

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether *signature* is this key's for *message*; raises nothing."""
        ...


@attrs.frozen
class Statistics:
    """The public keys now.

    Attributes:
        count: How many there are.
        age_s: Seconds since the source that was longest not read was last read well; None before.
        failures: Attempts to read a source that have failed since, in a row.
        refreshes: Count of attempts by outcome: ``ok``, ``failed``.
    """

    count: int
    age_s: float | None
    failures: int
    refreshes: Mapping[str, int]


@attrs.frozen
class _Shelf:
    """What one source gave, and when."""

    keys: tuple[PublicKey, ...] = ()
    read_at: float | None = None
    failures: int = 0


@attrs.define(eq=False)
class PublicKeys:
    """The public keys of all sources, looked up by algorithm and ``kid``.

    Keys of one source are replaced together, between two tokens. Times are those of the caller's
    clock, which need not be the one of tokens.

    Two keys of one ``kid`` are both tried. A key without a ``kid`` is tried for tokens whose own
    ``kid`` names no key: a PEM file has no names.

    Attributes:
        on_unknown: Called when a token names a key that is not here, as often as that happens: whoever
            listens bounds what comes of it. It must not raise.
    """

    on_unknown: Callable[[], None] = lambda: None
    _shelves: dict[str, _Shelf] = attrs.field(init=False, factory=dict)
    _named: Mapping[tuple[str, str | None], tuple[PublicKey, ...]] = attrs.field(
        init=False, default=MappingProxyType({})
    )
    _refreshes: Counter[str] = attrs.field(init=False, factory=Counter)

    def __len__(self) -> int:
        return sum(len(shelf.keys) for shelf in self._shelves.values())

    def verifies(self, algorithm: str, kid: str | None, message: bytes, signature: bytes) -> bool:
        """Whether *signature* is one of a key of *algorithm* that *kid* may mean."""
        table = self._named
        named = () if kid is None else table.get((algorithm, kid), ())
        candidates: Iterable[PublicKey] = named or table.get((algorithm, None), ())
        if kid is None:
            candidates = chain(candidates, *(keys for (of, name), keys in table.items() if of == algorithm and name))
        if any(key.verifies(message, signature) for key in islice(candidates, MAX_TRIED)):
            return True
        if not named:
            self.on_unknown()
        return False

    def lacks(self, algorithm: str, kid: str, message: bytes, signature: bytes) -> bool:
        """Whether a key of that name may still have to come: none is here, and no nameless one made *signature*."""
        if (algorithm, kid) in self._named or algorithm not in PUBLIC_ALGORITHMS:
            return False
        nameless = self._named.get((algorithm, None), ())
        return not any(key.verifies(message, signature) for key in nameless[:MAX_TRIED])

    def replace(self, source: str, keys: Iterable[PublicKey], now: float) -> None:
        """Take what *source* gave just now in place of what it gave before."""
        self._refreshes["ok"] += 1
        self._put(source, _Shelf(tuple(keys), now))

    def confirm(self, source: str, now: float) -> None:
        """Note that *source* still gives what it gave before, without a count: nothing was read."""
        self._put(source, attrs.evolve(self._shelf(source), read_at=now, failures=0))

    def failed(self, source: str) -> None:
        """Note that *source* gave nothing that can be used; its keys stay."""
        self._refreshes["failed"] += 1
        shelf = self._shelf(source)
        self._put(source, attrs.evolve(shelf, failures=shelf.failures + 1))

    def give_up(self, source: str) -> bool:
        """Believe the keys of *source* no more; return whether there were any."""
        shelf = self._shelf(source)
        self._put(source, attrs.evolve(shelf, keys=()))
        return bool(shelf.keys)

    def statistics(self, now: float) -> Statistics:
        """Return the counts; both outcomes are there, if only with 0."""
        shelves = self._shelves.values()
        read = [shelf.read_at for shelf in shelves]
        oldest = [moment for moment in read if moment is not None]
        return Statistics(
            count=len(self),
            age_s=now - min(oldest) if oldest and len(oldest) == len(read) else None,
            failures=sum(shelf.failures for shelf in shelves),
            refreshes=MappingProxyType({outcome: self._refreshes[outcome] for outcome in ("ok", "failed")}),
        )

    def _shelf(self, source: str) -> _Shelf:
        return self._shelves.get(source, _Shelf())

    def _put(self, source: str, shelf: _Shelf) -> None:
        self._shelves[source] = shelf
        table: dict[tuple[str, str | None], tuple[PublicKey, ...]] = {}
        for key in chain.from_iterable(each.keys for each in self._shelves.values()):
            name = key.algorithm, key.kid
            table[name] = (*table.get(name, ()), key)
        self._named = MappingProxyType(table)
