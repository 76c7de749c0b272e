"""What ``check-config`` tells: every value with its source, and what would stop a start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from .keys import has_public_keys, key_problems
from .loading import Loaded
from .model import model_in_the_clear, model_problems
from .rules import MIN_SECRET_BYTES, is_loopback, mask_address
from .sections import LEAVES, Settings


@attrs.frozen
class Line:
    """One row of ``check-config``; secrets are already masked."""

    name: str
    value_text: str
    source: str


def describe(loaded: Loaded) -> list[Line]:
    """Return every setting in order, as ``check-config`` prints it."""
    lines = []
    for name, field in LEAVES.items():
        section, _, key = name.rpartition(".")
        value = getattr(getattr(loaded.settings, section) if section else loaded.settings, key)
        mask = field.metadata["mask"]
        lines.append(Line(name, mask(value) if mask else _value_text(value), loaded.sources[name]))
    return lines


def _value_text(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(value) or "none"
    return str(value)


def problems(settings: Settings, *, tokens: bool = True) -> list[str]:
    """Return what stops a start with these settings, one line each; none means that it can start.

    Args:
        tokens: Whether tokens say who somebody is, and not a rule of the program's own.
    """
    return [*_not_available(settings), *_unsafe(settings, tokens), *key_problems(settings), *model_problems(settings)]


def _not_available(settings: Settings) -> Iterator[str]:
    server = settings.server
    later = {
        "server.workers above 1": server.workers > 1,
        "backplane.url other than 'local:'": settings.backplane.url != "local:",
    }
    for what, wanted in later.items():
        if wanted:
            yield f"{what}: not available yet"


def _unsafe(settings: Settings, tokens: bool) -> Iterator[str]:
    environment, auth, origins = settings.environment, settings.auth, settings.origins
    yield from _exposed(settings)
    if tokens and environment != "development" and auth.secret is None and not has_public_keys(settings):
        yield (
            f"auth.secret: required in {environment}, at least {MIN_SECRET_BYTES} bytes; "
            "or public keys by auth.jwks_url or auth.jwks_file"
        )
    if environment in ("staging", "production") and not origins.allowed and origins.required is not False:
        yield (
            f"origins.allowed: no page may connect in {environment}; list the origins, "
            "or set origins.required to false to serve only clients that send no Origin"
        )
    if environment in ("staging", "production") and auth.query_token:
        yield f"auth.query_token: not in {environment}, tokens would end up in access logs"


def _exposed(settings: Settings) -> Iterator[str]:
    server, environment = settings.server, settings.environment
    if (server.tls_cert is None) is not (server.tls_key is None):
        there, missing = ("tls_key", "tls_cert") if server.tls_cert is None else ("tls_cert", "tls_key")
        yield f"server.{missing}: needed where server.{there} is set"
    if server.trusted_proxies and not server.behind_proxy:
        yield "server.trusted_proxies: nobody is believed unless server.behind_proxy is true"
    if environment != "development" and _in_the_clear(settings):
        yield (
            f"server.host: {server.host} can be reached by others, so {environment} needs server.tls_cert and tls_key, "
            "or server.behind_proxy where a proxy speaks TLS"
        )


def _in_the_clear(settings: Settings) -> bool:
    server = settings.server
    return not (is_loopback(server.host) or server.behind_proxy or server.tls_cert or server.tls_key)


def warnings(settings: Settings) -> list[str]:
    """Return what deserves a second look, one line each: about proxies always, the rest before it meets the world."""
    server = settings.server
    doubtful = {
        f"server.host: {server.host} can be reached by others, who can read everything; "
        "set server.tls_cert and tls_key": settings.environment == "development" and _in_the_clear(settings),
        "server.trusted_proxies: none are named, so X-Forwarded-* is believed from this machine only, "
        "and all clients of another proxy share the limits of its address": (
            server.behind_proxy and not server.trusted_proxies
        ),
        "server.trusted_proxies: a whole address family is believed, so every client can choose its address": any(
            proxy.endswith("/0") for proxy in server.trusted_proxies
        ),
    }
    if settings.environment != "development":
        doubtful |= {
            f"llm.base_url: {mask_address(settings.llm.base_url)} is asked without TLS; key and conversations travel "
            "in the clear": model_in_the_clear(settings),
        }
    if settings.environment in ("staging", "production"):
        secret, algorithms = settings.auth.secret or "", settings.auth.algorithms
        plain = [origin for origin in settings.origins.allowed if not origin.lower().startswith("https://")]
        doubtful |= {
            f"origins.allowed: {', '.join(plain)}: whoever is on the way can change such a page": bool(plain),
            "auth.secret: it has few different characters, so it can be guessed": 0 < len(set(secret)) < 8,
            "auth.secret: not used, for auth.algorithms leaves HS256 out": bool(
                secret and algorithms and "HS256" not in algorithms
            ),
            "auth.issuer: not set, tokens of any issuer that has a key are accepted": settings.auth.issuer is None,
            "auth.audience: not set, tokens made for other services are accepted": settings.auth.audience is None,
            "store.url: memory: forgets everything when the process ends": settings.store.url.startswith("memory:"),
            "server.console: the console page is public": server.console,
        }
    return [line for line, doubt in doubtful.items() if doubt]
