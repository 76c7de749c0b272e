"""The compact form of a signed token (RFC 7515 §7.1): three parts, taken apart once and strictly.

Written here in a few lines of the standard library, because PyJWT brings all of ``cryptography`` with it, which a
server that has only a secret would load at each start for one HMAC. Keys of other kinds are checked by PyJWT.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, NoReturn

import attrs

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


@attrs.frozen
class Compact:
    """A token in parts; nothing in it is believed before its signature is.

    Attributes:
        header: The JOSE header, an object.
        payload: What was signed, decoded but not read.
        signed: The bytes that the signature is over.
    """

    header: Mapping[str, Any] = attrs.field(repr=False)
    payload: bytes = attrs.field(repr=False)
    signed: bytes = attrs.field(repr=False)
    signature: bytes = attrs.field(repr=False)


def take_apart(token: str) -> Compact:
    """Return the parts of *token*; who calls has bounded its length.

    Raises:
        ValueError: It has not that form.
    """
    match = _COMPACT.fullmatch(token)
    if match is None:
        raise ValueError("not three parts")
    header = read_json(decode(match[1]))
    if not isinstance(header, dict):
        raise ValueError("the header is not an object")  # noqa: TRY004 - a value of the client's, not a type of ours
    return Compact(header, decode(match[2]), f"{match[1]}.{match[2]}".encode(), decode(match[3]))


def put_together(header: Mapping[str, Any], claims: Mapping[str, Any]) -> bytes:
    """Return the bytes that are to be signed."""
    parts = (json.dumps(part, separators=(",", ":")).encode() for part in (header, claims))
    return b".".join(encode(part).encode() for part in parts)


def encode(content: bytes) -> str:
    """Return base64url without padding (RFC 7515 §2)."""
    return urlsafe_b64encode(content).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Read base64url without padding.

    Raises:
        ValueError: It is none, or not the one way to write these bytes.
    """
    content = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    # Bits that stand for nothing (RFC 4648 §3.5) would let one token be written in many ways.
    if encode(content) != text:
        raise ValueError("not base64url")
    return content


def read_json(content: bytes) -> Any:
    """Read JSON in UTF-8, as RFC 8259 has it.

    Raises:
        ValueError: It is none, or goes too deep.
    """
    try:
        # Decoded here: from bytes, the library would guess UTF-16 and UTF-32, too.
        return json.loads(content.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
