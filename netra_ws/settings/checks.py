"""What ``check-config`` tells: every value with its source, and what would stop a start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from .loading import Loaded
from .rules import MIN_SECRET_BYTES
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
    return [*_not_available(settings), *_unsafe(settings, tokens)]


def _not_available(settings: Settings) -> Iterator[str]:
    server, auth, llm = settings.server, settings.auth, settings.llm
    limits, usual = settings.limits, Settings(environment=settings.environment)
    later = {
        "limits.max_jobs_per_connection": limits.max_jobs_per_connection != usual.limits.max_jobs_per_connection,
        "server.tls_cert": server.tls_cert is not None,
        "server.tls_key": server.tls_key is not None,
        "server.workers above 1": server.workers > 1,
        "server.behind_proxy": server.behind_proxy,
        "server.trusted_proxies": bool(server.trusted_proxies),
        "auth.jwks_url": auth.jwks_url is not None,
        "auth.jwks_file": auth.jwks_file is not None,
        "auth.algorithms other than HS256": auth.algorithms != ("HS256",),
        "backplane.url other than local:": settings.backplane.url != "local:",
        "llm.base_url": llm.base_url is not None,
        "llm.model": llm.model is not None,
        "llm.api_key": llm.api_key is not None,
    }
    for what, wanted in later.items():
        if wanted:
            yield f"{what}: not available yet"


def _unsafe(settings: Settings, tokens: bool) -> Iterator[str]:
    environment, auth, origins = settings.environment, settings.auth, settings.origins
    if tokens and environment != "development" and auth.secret is None:
        yield f"auth.secret: required in {environment}, at least {MIN_SECRET_BYTES} bytes"
    if environment in ("staging", "production") and not origins.allowed and origins.required is not False:
        yield (
            f"origins.allowed: no page may connect in {environment}; list the origins, "
            "or set origins.required to false to serve only clients that send no Origin"
        )
    if environment == "production" and auth.query_token:
        yield "auth.query_token: not in production, tokens would end up in access logs"


def warnings(settings: Settings) -> list[str]:
    """Return what deserves a second look before these settings meet the world, one line each."""
    if settings.environment not in ("staging", "production"):
        return []
    doubtful = {
        "auth.issuer: not set, tokens of any issuer that knows the secret are accepted": settings.auth.issuer is None,
        "auth.audience: not set, tokens made for other services are accepted": settings.auth.audience is None,
        "auth.query_token: tokens in URLs end up in access logs": settings.auth.query_token,
        "store.url: memory: forgets everything when the process ends": settings.store.url.startswith("memory:"),
        "server.console: the console page is public": settings.server.console,
    }
    return [line for line, doubt in doubtful.items() if doubt]
