"""Values that must not show up anywhere, and the search for them in every dress they might wear."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from urllib.parse import quote, quote_plus

import attrs

#: Characters of a value that count as a leak of it: enough to be no accident, little enough to find a
#: value that was cut off.
PIECE = 16


@attrs.define
class Marks:
    """What is secret, by a name for the failing test.

    A token counts by the parts that are its own, claims and signature: every token has the same header.
    """

    _values: dict[str, str] = attrs.field(factory=dict)
    _needles: dict[bytes, str] = attrs.field(factory=dict)

    def secret(self, name: str, value: str) -> str:
        """Mark a value; return it."""
        assert len(value) >= PIECE, f"{name}: too short to be told from other text"
        self._values[name] = value
        for needle in _dresses(value):
            self._needles.setdefault(needle, name)
        return value

    def token(self, name: str, token: str) -> str:
        """Mark a JWT; return it."""
        self._values[name] = token
        _, _, rest = token.partition(".")
        claims, _, signature = rest.rpartition(".")
        # The first claims of all tokens may look alike, up to the name of the user.
        for part in (claims[PIECE:], signature, token):
            if len(part) >= PIECE:
                dresses = _encoded(token) if part is token else _dresses(part)
                for needle in dresses:
                    self._needles.setdefault(needle, name)
        return token

    def found(self, text: bytes | str) -> list[str]:
        """Return the names of what shows in *text*, with the words around it."""
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        leaks = {}
        for needle, name in self._needles.items():
            at = data.find(needle)
            if at >= 0 and name not in leaks:
                leaks[name] = f"{name}: …{data[max(0, at - 120) : at + 60]!r}"
        return list(leaks.values())

    def leaks(self, places: Mapping[str, bytes | str]) -> list[str]:
        """Return what shows where, by place."""
        return [f"in {place}: {leak}" for place, text in places.items() for leak in self.found(text)]

    def __len__(self) -> int:
        return len(self._values)


def _dresses(value: str) -> Iterator[bytes]:
    """Yield what betrays *value*: each piece of it, plain and escaped, and encodings of the whole."""
    for start in {*range(0, len(value) - PIECE, PIECE // 2), len(value) - PIECE}:
        piece = value[start : start + PIECE]
        escaped = {
            piece,
            repr(piece)[1:-1],
            repr(f"'{piece}")[2:-1],  # as repr writes it beside a quote
            repr(piece.encode())[2:-1],
            json.dumps(piece)[1:-1],
            json.dumps(piece, ensure_ascii=False)[1:-1],
            quote(piece, safe=""),
            quote(piece),
            quote_plus(piece),
        }
        yield from (text.encode() for text in escaped)
    yield from _encoded(value)


def _encoded(value: str) -> Iterator[bytes]:
    data = value.encode()
    yield data.hex().encode()
    yield data.hex().upper().encode()
    # Inside a longer text base64 begins at any of three places; what depends on the neighbours is left out.
    for shift in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            core = encode(bytes(shift) + data)[4:-4]
            # A part of it is enough, since it may be cut off.
            for start in range(0, len(core) - 2 * PIECE, PIECE):
                yield core[start : start + 2 * PIECE]
            yield core
