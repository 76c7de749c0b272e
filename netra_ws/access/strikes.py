"""Who was refused for their origin again and again, and is not looked at any more for a while.

Strikes are remembered per pair of origin and client address, never per origin alone: else anybody could have
a victim's origin blocked for everyone. For the same reason an origin that is allowed is never asked about
here: whoever shares an address with somebody blocked goes on unharmed.

An address that invents origins has as many pairs as origins have strikes, then it is blocked as a whole and
holds one entry. So no address takes more than a few places from others.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterator

import attrs

from netra_ws.errors import Refused

from .limits import address_key

#: Stands for every origin of an address that is blocked as a whole.
EVERY_ORIGIN = "*"
#: Characters of an origin that are kept; a longer one is told from others by its digest.
MAX_TEXT = 96
_Pair = tuple[str, str]


@attrs.define
class _Strikes:
    count: int
    until: float


@attrs.frozen
class Blocked:
    """A block as operators see it.

    Attributes:
        origin: ``*`` for every origin that is not allowed.
        address: An IPv6 network where that is one client.
        until: Unix seconds.
    """

    origin: str
    address: str
    until: float


@attrs.frozen
class Tracked:
    """What is remembered of a pair.

    Attributes:
        origin: ``*`` for every origin of an address that is blocked as a whole.
        address: An IPv6 network where that is one client.
        strikes: Refusals that counted.
    """

    origin: str
    address: str
    strikes: int
    blocked: bool


@attrs.define
class Strikes:
    """Counts refusals by pair and tells who is blocked.

    Beyond *max_tracked* pairs the ones whose time has passed go first, then the oldest that is not blocked,
    then the block that ends first.

    Attributes:
        strikes: Refusals of a pair within the window that are answered one by one; different origins of
            one address before it is blocked as a whole, then at least two.
        window_s: Seconds after the first strike in which they count together, and seconds of a block.
        max_tracked: Pairs remembered at most.
    """

    strikes: int = attrs.field(default=5, validator=attrs.validators.ge(1))
    window_s: float = attrs.field(default=600.0, validator=attrs.validators.gt(0))
    max_tracked: int = attrs.field(default=1000, validator=attrs.validators.ge(1))
    # Both in the order in which they end.
    _struck: OrderedDict[_Pair, _Strikes] = attrs.field(init=False, factory=OrderedDict, repr=False)
    _blocked: OrderedDict[_Pair, _Strikes] = attrs.field(init=False, factory=OrderedDict, repr=False)
    _origins: dict[str, set[str]] = attrs.field(init=False, factory=dict, repr=False)
    _latest: float = attrs.field(init=False, default=float("-inf"), repr=False)

    def __len__(self) -> int:
        return len(self._struck) + len(self._blocked)

    def strike(self, origin: str, address: str, now: float) -> Refused | None:
        """Count a refusal; return the answer of a block that was there already, which counts nothing.

        Args:
            origin: One spelling for each origin, of any length.
            now: In seconds of a clock that may be set back: no block lasts longer than the window from now.
        """
        place, origin = address_key(address), bounded(origin)
        self._expire(now)
        pair = (origin, place)
        block = self._blocked.get((EVERY_ORIGIN, place)) or self._blocked.get(pair)
        if block is not None:
            return _refusal(block.until - now)
        kept = self._struck.get(pair)
        if kept is None:
            kept = _Strikes(0, now + self.window_s)
            self._add(self._struck, pair, kept)
        kept.count += 1
        if len(self._origins[place]) >= max(2, self.strikes):
            self._forget_all([(each, place) for each in self._origins[place]])
            self._add(self._blocked, (EVERY_ORIGIN, place), _Strikes(kept.count, now + self.window_s))
        elif kept.count >= self.strikes:
            self._forget_all([pair])
            self._add(self._blocked, pair, _Strikes(kept.count, now + self.window_s))
        return None

    def unblock(self, origin: str | None, address: str | None, now: float) -> int:
        """Forget blocks and strikes of an origin, of an address, or of both together; return how many blocks.

        With both, the block of the address as a whole goes as well: the pair would still be behind it.
        """
        place = None if address is None else address_key(address)
        origins = None if origin is None else {origin, bounded(origin)}  # the text of ``blocked`` is taken, too
        if origins is not None and place is not None:
            origins.add(EVERY_ORIGIN)
        self._expire(now)
        found = [
            pair
            for pair in (*self._struck, *self._blocked)
            if (origins is None or pair[0] in origins) and (place is None or pair[1] == place)
        ]
        blocked = sum(pair in self._blocked for pair in found)
        self._forget_all(found)
        return blocked

    def blocked(self, now: float) -> Iterator[Blocked]:
        """Yield who is blocked now, the block that ends first before the others."""
        self._expire(now)
        for (origin, place), kept in self._blocked.items():
            yield Blocked(origin, place, kept.until)

    def blocked_count(self, now: float) -> int:
        """Return how many pairs are blocked now."""
        self._expire(now)
        return len(self._blocked)

    def tracked(self, now: float) -> Iterator[Tracked]:
        """Yield every pair that is remembered now, those that are blocked last."""
        self._expire(now)
        for among in (self._struck, self._blocked):
            for (origin, place), kept in among.items():
                yield Tracked(origin, place, kept.count, among is self._blocked)

    def _add(self, among: OrderedDict[_Pair, _Strikes], pair: _Pair, kept: _Strikes) -> None:
        while len(self) >= self.max_tracked:
            self._forget_all([next(iter(self._struck or self._blocked))])
        among[pair] = kept
        self._origins.setdefault(pair[1], set()).add(pair[0])

    def _expire(self, now: float) -> None:
        if now < self._latest:  # the clock was set back; cutting keeps the order
            for kept in (*self._struck.values(), *self._blocked.values()):
                kept.until = min(kept.until, now + self.window_s)
        self._latest = now
        for among in (self._struck, self._blocked):
            while among and (first := next(iter(among))) and among[first].until <= now:
                self._forget_all([first])

    def _forget_all(self, pairs: list[_Pair]) -> None:
        for pair in pairs:
            origin, place = pair
            self._struck.pop(pair, None)
            self._blocked.pop(pair, None)
            origins = self._origins.get(place, set())
            origins.discard(origin)
            if not origins:
                self._origins.pop(place, None)


def bounded(origin: str) -> str:
    """Return what is remembered of an origin: printable ASCII of at most ``MAX_TEXT`` characters and a digest."""
    text = origin.encode("ascii", "backslashreplace").decode("ascii")
    text = "".join(character if character.isprintable() else "?" for character in text)
    # Nobody's text may pass for the one of a whole address.
    if text == origin and len(text) <= MAX_TEXT and text != EVERY_ORIGIN:
        return text
    digest = hashlib.blake2b(origin.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()
    return f"{text[:MAX_TEXT]}…{digest}"


def _refusal(wait_s: float) -> Refused:
    return Refused(
        403,
        "ORIGIN_BLOCKED",
        "Clients of this origin were refused too often.",
        retry_after_s=max(1, math.ceil(wait_s - 1e-6)),  # a sum of floats may be a little too long
    )
