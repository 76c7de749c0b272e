"""Origins for programs that ask about them by themselves: in front of an app of their own, or beside our server.

The decision is ``netra_ws.access.origins``, what is remembered of refusals is ``netra_ws.access.strikes``. Added
here is what the older system had per environment:

============= ================ ====================== ======= ==========================================
environment   without Origin   pages of this network  https   pages that are suspicious
============= ================ ====================== ======= ==========================================
development   allowed          allowed                no      as others
testing       allowed          allowed                no      as others
staging       refused          where listed           no      refused, but for this machine's
production    refused          where listed           needed  refused
============= ================ ====================== ======= ==========================================

What is listed passes, ``*.`` being exactly one label. A server of ours judges origins itself, before it asks an
``authenticate=``; there ``WebSocketCORSHandler.check_origin`` is for rules beyond ``origins.allowed``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import attrs

from netra_ws.access.origins import (
    OriginFault,
    OriginPolicy,
    embedded_elsewhere,
    parse_origin,
    spelling,
)
from netra_ws.access.strikes import Strikes
from netra_ws.errors import ConfigError, InvalidArgument, Refused

from .environments import RULES, THIS_MACHINE, Rules, is_local, is_suspicious
from .headers import HeadersLike, header_pairs, values_of

MAX_ORIGIN_LENGTH = 253
_CORS_HEADERS = MappingProxyType(
    {
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Methods": "GET",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, Origin, Accept, X-Request-ID, X-Trace-ID, "
        "X-Service-ID, X-Cross-Service-Auth",
        "Access-Control-Expose-Headers": "X-Trace-ID, X-Request-ID, X-Service-Name, X-Service-Version",
    }
)
# Without X-XSS-Protection: browsers have dropped what it switched on, because it could be used against pages.
_PRODUCTION_HEADERS = MappingProxyType(
    {
        "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "strict-origin-when-cross-origin",
    }
)


class AskingHead(Protocol):
    """What ``check_origin`` needs of a request head; ``authenticate=`` is given one."""

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]: ...

    @property
    def peer(self) -> str: ...


def _listed(value: Any) -> tuple[str, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InvalidArgument("allowed_origins", f"expected a list of texts, got {type(value).__name__}")
    texts = tuple(value)
    if not all(isinstance(text, str) for text in texts):
        raise InvalidArgument("allowed_origins", "expected a list of texts")
    # An origin has no path; programs that wrote one meant the root.
    return tuple(text.strip().removesuffix("/") for text in texts)


@attrs.define
class WebSocketCORSHandler:
    """Decides about origins for one program, and remembers whom it refused.

    Five refusals of an origin within ten minutes block it for that address; five origins block the address for
    all that are not allowed. What is allowed is never blocked, so nobody can have somebody else's page shut out.

    Attributes:
        environment: ``development``, ``testing``, ``staging`` or ``production``.
        allowed_origins: Exact origins and patterns such as ``https://*.example.org``.
        clock: Unix seconds.
        strikes: What is remembered, at most 1,000 pairs of origin and address.

    Raises:
        InvalidArgument: The environment is unknown, or an origin cannot be read.
    """

    environment: str = attrs.field(default="development", on_setattr=attrs.setters.frozen)
    allowed_origins: Sequence[str] = attrs.field(default=(), converter=_listed, on_setattr=attrs.setters.frozen)
    clock: Callable[[], float] = attrs.field(default=time.time, kw_only=True, repr=False)
    strikes: Strikes = attrs.field(factory=Strikes, kw_only=True, repr=False)
    _policy: OriginPolicy = attrs.field(init=False, repr=False)
    _violations: Counter[str] = attrs.field(init=False, factory=Counter, repr=False)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.environment, str) or self.environment not in RULES:
            raise InvalidArgument("environment", f"expected one of {', '.join(RULES)}")
        try:
            self._policy = OriginPolicy(self.allowed_origins, not self._rules.local, self.environment)
        except ConfigError as exc:
            raise InvalidArgument("allowed_origins", str(exc).removeprefix("origins.allowed: ")) from None

    @property
    def _rules(self) -> Rules:
        return RULES[self.environment]

    def is_origin_allowed(self, origin: str | None, address: str = "", *, host: str | None = None) -> bool:
        """Whether a page of that origin may connect; a no counts against it.

        Args:
            origin: As the browser sent it; None where it sent none.
            address: Of the client; all who are asked about without one count as one.
            host: The Host header: in development and testing a server's own pages may connect.

        Raises:
            InvalidArgument: An argument is no text; nothing is counted.
        """
        _check_texts(origin=origin, host=host)
        _check_texts(optional=False, address=address)
        sent = [] if origin is None else [_as_sent(origin)]
        return self._refusal(sent, address, None if host is None else _as_sent(host)) is None

    def check_headers(self, headers: HeadersLike, address: str = "") -> None:
        """Let the headers of an allowed origin pass; count any other.

        Raises:
            Refused: 403 ``ORIGIN_REFUSED``; ``ORIGIN_BLOCKED`` with ``retry_after_s`` after too many.
            InvalidArgument: They are no headers, or *address* is no text.
        """
        _check_texts(optional=False, address=address)
        pairs = header_pairs(headers)
        hosts = values_of(pairs, b"host")
        elsewhere = embedded_elsewhere(pairs)
        refused = self._refusal(values_of(pairs, b"origin"), address, hosts[0] if len(hosts) == 1 else None, elsewhere)
        if refused is not None:
            raise refused

    def check_origin(self, head: AskingHead) -> None:
        """Let a request head of an allowed origin pass, as ``check_headers``, counting by its address.

        Raises:
            Refused: As ``check_headers``.
        """
        self.check_headers(head.headers, head.peer)

    def unblock_origin(self, origin: str, address: str | None = None) -> bool:
        """Forget what is remembered of an origin, at one address or at all; return whether it was blocked.

        With an address, its block as a whole goes as well.

        Raises:
            InvalidArgument: An argument is no text.
        """
        _check_texts(optional=False, origin=origin)
        _check_texts(address=address)
        return self.strikes.unblock(spelling([_as_sent(origin)]), address, self.clock()) > 0

    def get_cors_headers(self, origin: str | None) -> dict[str, str]:
        """Return the headers of an answer to a page; an origin that is not allowed is not named in them.

        Nothing is counted.

        Raises:
            InvalidArgument: *origin* is neither text nor None.
        """
        _check_texts(origin=origin)
        headers = {"Vary": "Origin"}
        if origin is not None and self._fault([_as_sent(origin)], None) is None:
            headers |= {"Access-Control-Allow-Origin": spelling([_as_sent(origin)]), **_CORS_HEADERS}
        return headers | _PRODUCTION_HEADERS if self.environment == "production" else headers

    def get_security_stats(self) -> dict[str, Any]:
        """Return what was refused since the start, and what is remembered and blocked now.

        ``violation_counts`` and ``blocked_origins`` are of now; ``*`` there stands for every origin of an address
        that is blocked as a whole. ``total_violations`` and ``violations_by_reason`` count all refusals.
        """
        counts: Counter[str] = Counter()
        blocked: dict[str, None] = {}
        tracked = 0
        for pair in self.strikes.tracked(self.clock()):
            tracked += 1
            counts[pair.origin] += pair.strikes
            if pair.blocked:
                blocked[pair.origin] = None
        return {
            "environment": self.environment,
            "violation_counts": dict(counts),
            "violations_by_reason": dict(self._violations),
            "total_violations": self._violations.total(),
            "blocked_origins": list(blocked),
            "blocked_origin_count": len(blocked),
            "tracked_origin_count": tracked,
            "security_config": {
                "max_origin_length": MAX_ORIGIN_LENGTH,
                "require_https": self._rules.https,
                "require_origin": self._policy.required,
                "block_suspicious_patterns": self._rules.suspicious,
                "violations_before_block": self.strikes.strikes,
                "block_s": self.strikes.window_s,
                "max_tracked": self.strikes.max_tracked,
            },
        }

    def _refusal(
        self, sent: Sequence[bytes], address: str, host: bytes | None, elsewhere: bool = False
    ) -> Refused | None:
        reason = self._fault(sent, host)
        if reason is None and not sent and elsewhere:
            reason = OriginFault.MISSING.value  # a page had its visitor's browser ask without saying who it is
        if reason is None:
            return None
        blocked = self.strikes.strike(spelling([_bare(value) for value in sent]), address, self.clock())
        self._violations[reason if blocked is None else "blocked"] += 1
        return blocked or OriginFault.NOT_ALLOWED.refusal()

    def _fault(self, sent: Sequence[bytes], host: bytes | None) -> str | None:
        """Return what is wrong, as a word; None when nothing is."""
        sent = [_bare(value) for value in sent]
        if any(len(value) > MAX_ORIGIN_LENGTH for value in sent):
            return "too_long"
        fault = self._policy.fault(sent, host)
        origin = parse_origin(sent[0].decode("latin-1").strip()) if sent else None
        if origin is None or fault not in (None, OriginFault.NOT_ALLOWED):
            return None if fault is None else fault.value
        if self._rules.https and origin.scheme != "https":
            return "https_required"
        spared = self._rules.spares_this_machine and origin.host in THIS_MACHINE
        if self._rules.suspicious and not spared and is_suspicious(origin):
            return "suspicious"
        if fault is None or (self._rules.local and is_local(origin)):
            return None
        return fault.value


def _check_texts(*, optional: bool = True, **arguments: object) -> None:
    for argument, value in arguments.items():
        if not isinstance(value, str) and not (optional and value is None):
            raise InvalidArgument(argument, f"expected text, got {type(value).__name__}")


def _as_sent(origin: str) -> bytes:
    # What is not Latin-1 no browser sends; it is refused in any spelling.
    return _bare(origin.strip().encode("utf-8", "backslashreplace"))


def _bare(origin: bytes) -> bytes:
    """Return an origin without the one slash that programs put behind it."""
    return origin.removesuffix(b"/") if origin.count(b"/") == 3 else origin


def get_websocket_cors_handler(
    environment: str = "development", allowed_origins: Sequence[str] = ()
) -> WebSocketCORSHandler:
    """Return a new handler; keep it, since what it remembers of refusals is in it and nowhere else.

    Raises:
        InvalidArgument: As ``WebSocketCORSHandler``.
    """
    return WebSocketCORSHandler(environment, allowed_origins)


def validate_websocket_origin(headers: HeadersLike, handler: WebSocketCORSHandler, address: str = "") -> bool:
    """Whether headers are of an allowed origin; a no counts against it.

    Raises:
        InvalidArgument: They are no headers, or *handler* is none.
    """
    if not isinstance(handler, WebSocketCORSHandler):
        raise InvalidArgument("handler", f"expected a WebSocketCORSHandler, got {type(handler).__name__}")
    try:
        handler.check_headers(headers, address)
    except Refused:
        return False
    return True
