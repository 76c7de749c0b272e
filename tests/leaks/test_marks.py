"""The search itself: a search that finds nothing proves nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest

from tests.kit import token

from .marks import Marks

VALUE = 'it\'s "quoted" \\ and/ünïcode + more of it'

DRESSES: dict[str, Callable[[str], str]] = {
    "plain": str,
    "repr": repr,
    "repr in repr": lambda value: repr({"a": [value]}),
    "repr of bytes": lambda value: repr(value.encode()),
    "JSON": json.dumps,
    "JSON as it is": lambda value: json.dumps(value, ensure_ascii=False),
    "percent": lambda value: quote(value, safe=""),
    "percent, slashes kept": quote,
    "form": quote_plus,
    "base64": lambda value: base64.b64encode(value.encode()).decode(),
    "base64 inside": lambda value: base64.b64encode(b"user:" + value.encode() + b"@host").decode(),
    "base64url": lambda value: base64.urlsafe_b64encode(b"ab" + value.encode()).decode(),
    "hex": lambda value: value.encode().hex(),
    "cut off": lambda value: value[:30] + "…",
    "the end alone": lambda value: "…" + value[-24:],
}


@pytest.mark.parametrize("dress", DRESSES)
def test_a_secret_is_found_in_every_dress(dress: str) -> None:
    """A marked value is found as it is, escaped, encoded, and cut off."""
    marks = Marks()
    marks.secret("secret", VALUE)
    assert marks.found(f"some text {DRESSES[dress](VALUE)} and more"), dress


@pytest.mark.parametrize("dress", [dress for dress in DRESSES if dress != "cut off"])
def test_a_token_is_found_in_every_dress(dress: str) -> None:
    """A marked token is found as it is, escaped and encoded."""
    marks = Marks()
    marked = marks.token("token", token("somebody with a name", jti="one"))
    assert marks.found(DRESSES[dress](marked).encode()), dress


def test_parts_of_a_token_are_found() -> None:
    """The signature alone and the claims alone are leaks; the header, which all tokens share, is none."""
    marks = Marks()
    header, claims, signature = marks.token("token", token("somebody with a name", jti="one")).split(".")
    assert marks.found(signature)
    assert marks.found(signature[8:32])
    assert marks.found(claims)
    assert marks.found(base64.b64encode(f"{header}.{claims}.{signature}".encode()))
    assert not marks.found(header)
    assert not marks.found(token("somebody else", jti="two"))
