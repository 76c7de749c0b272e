"""What is wrong with the settings of keys; found without a look at any file or address."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from urllib.parse import urlsplit

from .rules import ALGORITHMS, mask_address
from .sections import Settings


def has_public_keys(settings: Settings) -> bool:
    """Whether tokens of an identity service are accepted."""
    return settings.auth.jwks_url is not None or settings.auth.jwks_file is not None


def key_problems(settings: Settings) -> Iterator[str]:
    """Yield what stops a start, one line each."""
    if settings.auth.jwks_url is not None and (fault := _fault_of(settings.auth.jwks_url)):
        yield f"auth.jwks_url: {mask_address(settings.auth.jwks_url)}: {fault}"
    yield from _algorithm_problems(settings)


def _algorithm_problems(settings: Settings) -> Iterator[str]:
    auth = settings.auth
    chosen = dict.fromkeys(auth.algorithms)
    by_secret, *by_keys = ALGORITHMS
    for name in chosen:
        if name not in ALGORITHMS:
            yield f"auth.algorithms: {name!a} is none of {', '.join(ALGORITHMS)}"
        elif name == by_secret and auth.secret is None and settings.environment != "development":
            yield f"auth.algorithms: {name} needs auth.secret"
        elif name in by_keys and not has_public_keys(settings):
            yield f"auth.algorithms: {name} needs auth.jwks_url or auth.jwks_file"
    if chosen and has_public_keys(settings) and chosen.keys().isdisjoint(by_keys):
        yield f"auth.algorithms: one of {', '.join(by_keys)} is needed for auth.jwks_url and auth.jwks_file"


def _fault_of(url: str) -> str | None:
    """Return what is wrong with the address of a key set, or None."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "not a URL"
    if not host or any(character.isspace() or not character.isprintable() for character in url):
        return "not a URL"
    if parts.scheme not in ("https", "http"):
        return "expected https"
    if parts.scheme == "http" and not _is_loopback(host):
        return "expected https; whoever can change the answer on its way can make tokens"
    if "@" in parts.netloc:
        return "a user or password in it is not sent"
    return "a fragment in it is not sent" if parts.fragment else None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
