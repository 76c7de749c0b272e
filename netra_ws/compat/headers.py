"""Headers as programs have them: mappings, pairs, text or bytes, or an object that carries them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from netra_ws.access.origins import spelling
from netra_ws.errors import InvalidArgument

Pairs: TypeAlias = "list[tuple[bytes, bytes]]"
#: A mapping of names to one value or a list of them, pairs of name and value, or an object with ``headers``.
HeadersLike: TypeAlias = Any


def header_pairs(headers: HeadersLike) -> Pairs:
    """Return pairs of lower-case names and values, none of them left out.

    Raises:
        InvalidArgument: They are no headers.
    """
    headers = getattr(headers, "headers", headers)
    headers = getattr(headers, "raw", headers)  # of a mapping that would hide all but one of a name
    if isinstance(headers, Mapping):
        headers = [(name, each) for name, value in headers.items() for each in _each(value)]
    if isinstance(headers, str | bytes) or not isinstance(headers, Iterable):
        raise InvalidArgument("headers", f"expected a mapping or pairs, got {type(headers).__name__}")
    found = []
    for pair in headers:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InvalidArgument("headers", "expected pairs of name and value")
        found.append((_bytes(pair[0]).lower(), _bytes(pair[1])))
    return found


def values_of(pairs: Pairs, name: bytes) -> list[bytes]:
    """Return all values of a lower-case name."""
    return [value for key, value in pairs if key == name]


def extract_origin(headers: HeadersLike) -> str | None:
    """Return the Origin that headers name, also when they name it twice; None when there is none, or several.

    So None does not mean that no page asks: to decide, give the headers to ``check_headers``, which tells the
    two apart.

    Raises:
        InvalidArgument: They are no headers.
    """
    sent = values_of(header_pairs(headers), b"origin")
    if not sent or len({spelling([value]) for value in sent}) > 1:
        return None
    return sent[0].decode("latin-1").strip()


def _each(value: object) -> Iterable[object]:
    return value if isinstance(value, list | tuple) else (value,)


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace")
    raise InvalidArgument("headers", f"expected text or bytes, got {type(value).__name__}")
