from __future__ import annotations

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netra_ws.access.jws import decode, encode, put_together, read_json, take_apart

SECRET = "s" * 32
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
@settings(deadline=None)
def test_the_form_is_that_of_another_library(claims: dict[str, object]) -> None:
    """What PyJWT writes is taken apart into what went in."""
    parts = take_apart(jwt.PyJWS().encode(put_together({}, claims), SECRET, "HS256"))
    assert parts.header == {"alg": "HS256", "typ": "JWT"}
    signed = parts.payload.split(b".")
    assert read_json(decode(signed[1].decode())) == claims


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_base64url_has_one_form(content: bytes) -> None:
    """Bytes come back as they were; the same bytes written another way are refused."""
    text = encode(content)
    assert decode(text) == content
    if len(content) % 3:
        other = text[:-1] + chr(ord(text[-1]) + 1)  # differs in bits that stand for nothing
        with pytest.raises(ValueError):
            decode(other)
    with pytest.raises(ValueError):
        decode(text + "====")


@pytest.mark.parametrize("text", ["QQ==", "QR", "QUJDRA==", "A", "QUJDR", "QUJ+", "QUJ/"])
def test_base64_that_is_none_of_it(text: str) -> None:
    """Padding, spare bits, a lone character and the letters of the other base64 are refused."""
    with pytest.raises(ValueError):
        decode(text)


@given(st.text("abcABC123-_.={}\n", max_size=40) | st.text(max_size=40))
@settings(deadline=None)
def test_any_text(token: str) -> None:
    """Whatever comes is taken apart or refused with ValueError."""
    try:
        parts = take_apart(token)
    except ValueError:
        return
    assert isinstance(parts.header, dict)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"NaN",
        b"Infinity",
        b"\xff",
        '{"a":1}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b"9" * 5000,
    ],
    ids=["empty", "open", "nan", "infinity", "latin", "utf-16", "bom", "deep", "long"],
)
def test_json_that_is_none(content: bytes) -> None:
    """Only JSON in UTF-8 is read, and no depth or length of it is an error of ours."""
    with pytest.raises(ValueError):
        read_json(content)


def test_nothing_of_a_token_is_shown() -> None:
    """The parts of a token are not in a repr, which may end in a log."""
    parts = take_apart(jwt.encode({"sub": "someone-special"}, SECRET, "HS256"))
    assert repr(parts) == "Compact()"
