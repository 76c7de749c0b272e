"""What a value of a setting must be, and how a secret one is shown."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from netra_ws.errors import ConfigError

NO_OVERRIDES: Mapping[str, object] = MappingProxyType({})
ENVIRONMENTS = ("development", "testing", "staging", "production")
#: HMAC-SHA256 keys below its output size are guessable (RFC 7518 §3.2); PyJWT would take one byte.
MIN_SECRET_BYTES = 32
#: What tokens may be signed with: the first by the secret, the others by public keys.
ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")


@attrs.frozen
class Rule:
    """What a value must be; the same rule serves files, the environment and plain constructors."""

    expects: str
    holds: Callable[[Any], bool]

    def __call__(self, instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not self.holds(value):
            section = "" if type(instance).__name__ == "Settings" else f"{type(instance).__name__.lower()}."
            raise ConfigError(f"{section}{attribute.name}: expected {self.expects}")

    def or_none(self) -> Rule:
        return Rule(self.expects, lambda value: value is None or self.holds(value))


def whole(least: int, most: int = 2**53) -> Rule:
    limit = f"of at least {least}" if most == 2**53 else f"from {least} to {most}"
    return Rule(f"a whole number {limit}", lambda value: type(value) is int and least <= value <= most)


def finite(value: object) -> bool:
    # Not math.isfinite: it overflows on a huge int. NaN and infinity fail the comparison.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 2**53


def encodes(value: object) -> bool:
    # A byte of the environment that is not UTF-8 arrives as a lone surrogate and fails much later.
    return type(value) is str and not any("\ud800" <= character <= "\udfff" for character in value)


def one_of(*words: str) -> Rule:
    return Rule("one of " + ", ".join(words), lambda value: value in words)


def url(*beginnings: str) -> Rule:
    return Rule(
        "a URL that starts with " + " or ".join(beginnings),
        lambda value: encodes(value) and value.startswith(beginnings),
    )


FLAG = Rule("true or false", lambda value: type(value) is bool)
TEXT = Rule("text that is not empty", lambda value: encodes(value) and value != "")
LIST = Rule("a list of text", lambda value: isinstance(value, tuple) and all(encodes(item) and item for item in value))


def _is_network(text: object) -> bool:
    try:
        return encodes(text) and bool(ipaddress.ip_network(str(text), strict=False))
    except ValueError:
        return False


NETWORKS = Rule(
    "a list of addresses and networks, such as 10.0.0.5 or 10.1.0.0/16",
    lambda value: isinstance(value, tuple) and all(_is_network(item) for item in value),
)
SECRET = Rule(
    f"at least {MIN_SECRET_BYTES} bytes of text",
    lambda value: encodes(value) and len(value.encode()) >= MIN_SECRET_BYTES,
)
POSITIVE = Rule("a number above 0", lambda value: finite(value) and value > 0)
NOT_NEGATIVE = Rule("a number of at least 0", lambda value: finite(value) and value >= 0)


#: Clocks that differ by more are broken; what is revoked is remembered for longer than that.
LEEWAY = Rule("seconds from 0 to 3600", lambda value: finite(value) and 0 <= value <= 3600)


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a server that listens on *host*; a name must be localhost."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def mask_all(value: object) -> str:
    return "not set" if value is None else "***"


def mask_address(url: object) -> str:
    """Return the URL without user, password, query and fragment: an address is told, nothing that opens it."""
    if url is None:
        return "not set"
    scheme, separator, rest = str(url).partition("://")
    before, _, after = rest.rpartition("@")
    if not separator:
        return "***"
    if re.search(r"[?#/]", before):  # what was not quoted may be a password that goes on, or a query
        return f"{scheme}{separator}***"
    return f"{scheme}{separator}{re.split(r'[?#]', after, maxsplit=1)[0]}"


def mask_url(url: object) -> str:
    """Return the URL without its password, for logs and for ``check-config``."""
    if url is None:
        return "not set"
    # Greedy up to the last "@": a password that was not quoted may hold one itself.
    text = re.sub(r"^([^:]*://[^:@/?#]*):.*@", r"\1:***@", str(url), flags=re.DOTALL)
    return re.sub(r"(?i)([?&][\w.-]*(?:pass|pwd|secret|token|key)[\w.-]*=)[^&#]*", r"\1***", text)
