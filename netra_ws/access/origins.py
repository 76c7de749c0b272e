"""Which web pages may connect.

A browser sends the page's origin (RFC 6454) and lets no script change it; programs send none.
The decision is pure: those who were refused are remembered and blocked in ``strikes.py``.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Iterable, Sequence

import attrs

from netra_ws.errors import ConfigError, Refused

#: Stands for the missing origin of a client where one is required.
NO_ORIGIN = "(none)"
_DEFAULT_PORTS = {"http": 80, "https": 443}
# No user, path, query or fragment can match; neither can a port with leading zeros, which no browser writes.
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\*\.)?(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([1-9][0-9]{0,4}))?", re.ASCII)
_LOOPBACK_NETWORK = ipaddress.ip_network("127.0.0.0/8")


class OriginFault(enum.StrEnum):
    """Why an origin was refused; a label of statistics."""

    MISSING = "missing"
    SEVERAL = "several"
    OPAQUE = "opaque"
    MALFORMED = "malformed"
    NOT_ALLOWED = "not_allowed"

    def refusal(self) -> Refused:
        """Return the answer to the client; the text is the same for every fault."""
        return Refused(403, "ORIGIN_REFUSED", "Clients of this origin may not connect.")


@attrs.frozen
class Origin:
    """Scheme, host and port in one spelling; two origins are the same when they are equal.

    Attributes:
        port: None only for a scheme without a default port.
        any_label: Whether exactly one more label must stand before the host (patterns only).
    """

    scheme: str
    host: str
    port: int | None
    any_label: bool = False

    def covers(self, origin: Origin) -> bool:
        """Whether this pattern allows that origin."""
        if (self.scheme, self.port) != (origin.scheme, origin.port):
            return False
        if not self.any_label:
            return self.host == origin.host
        label, _, parent = origin.host.partition(".")
        return bool(label) and parent == self.host

    def __str__(self) -> str:
        port = "" if self.port is None or self.port == _DEFAULT_PORTS.get(self.scheme) else f":{self.port}"
        return f"{self.scheme}://{'*.' if self.any_label else ''}{self.host}{port}"

    @property
    def is_loopback(self) -> bool:
        """Whether a page of this origin was served by the same machine."""
        if self.scheme not in _DEFAULT_PORTS:
            return False
        if self.host in ("localhost", "[::1]") or self.host.endswith(".localhost"):
            return True
        try:
            return ipaddress.IPv4Address(self.host) in _LOOPBACK_NETWORK
        except ValueError:
            return False


def parse_origin(text: str) -> Origin | None:
    """Read an origin or a pattern; None when it is neither."""
    match = _ORIGIN.fullmatch(text.lower()) if text.isascii() else None
    if match is None:
        return None
    scheme, wildcard, raw_host, digits = match.groups()
    host = _normal_host(raw_host)
    port = int(digits) if digits else _DEFAULT_PORTS.get(scheme)
    if host is None or (port is not None and port > 65535) or (wildcard and not _may_have_labels(host)):
        return None
    return Origin(scheme, host, port, wildcard is not None)


def spelling(origin_headers: Sequence[bytes]) -> str:
    """Return one text for each origin, whatever its spelling; of those that cannot be read, what was sent."""
    texts = sorted({value.decode("latin-1").strip() for value in origin_headers})
    return ", ".join(str(parse_origin(text) or text) for text in texts) or NO_ORIGIN


def embedded_elsewhere(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a page of another origin had its visitor's browser ask in a way that sends no Origin: an image, a frame.

    Browsers say so (https://www.w3.org/TR/fetch-metadata/), and no script can change it. A link that somebody
    follows is their own request.
    """
    said = {name: value for name, value in headers if name.startswith(b"sec-fetch-")}
    elsewhere = said.get(b"sec-fetch-site") in (b"cross-site", b"same-site")
    return elsewhere and said.get(b"sec-fetch-dest") != b"document"


def _normal_host(host: str) -> str | None:
    if host.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            return None
    host = host.removesuffix(".")  # the root label: the same name, fully qualified
    return host if len(host) <= 253 and all(host.split(".")) else None


def _may_have_labels(host: str) -> bool:
    return not host.startswith("[") and not host.rpartition(".")[2].isdigit()


def _punycode(text: str) -> str:
    """Spell a configured origin as browsers send it."""
    if text.isascii():
        return text
    scheme, separator, rest = text.partition("://")
    try:
        spelled = rest.encode("idna")
        unchanged = spelled.decode("idna") == rest.lower()
    except UnicodeError:
        unchanged = False
    if not unchanged:
        # Python follows IDNA 2003, which reads "straße" as "strasse": somebody else's name.
        raise ConfigError(f"origins.allowed: write {text!r} in punycode (xn--…)")
    return f"{scheme}{separator}{spelled.decode('ascii')}"


def _patterns(allowed: Iterable[str]) -> tuple[Origin, ...]:
    patterns = []
    for text in allowed:
        pattern = parse_origin(_punycode(text.strip()))
        if pattern is None:
            raise ConfigError(
                f"origins.allowed: {text!r} is not scheme://host[:port]; a host may begin with *. for exactly one label"
            )
        patterns.append(pattern)
    return tuple(patterns)


@attrs.frozen
class OriginPolicy:
    """Decides about origins.

    Attributes:
        allowed: Exact origins and patterns such as ``https://*.example.org``. Empty means nobody, but in
            development and testing it means loopback origins and the server's own.
        required: Whether a client without an Origin is refused; browsers always send one.
        environment: Name of the profile.

    Raises:
        ConfigError: an allowed origin cannot be read.
    """

    allowed: tuple[Origin, ...] = attrs.field(converter=_patterns)
    required: bool = False
    environment: str = "production"

    def fault(self, origin_headers: Sequence[bytes], host_header: bytes | None) -> OriginFault | None:
        """Return what is wrong with the Origin headers of a request; None when nothing is."""
        if not origin_headers:
            return OriginFault.MISSING if self.required else None
        texts = {value.decode("latin-1").strip() for value in origin_headers}
        if "null" in texts:  # sandboxed frames and files: anybody can be that
            return OriginFault.OPAQUE
        origins = {parse_origin(text) for text in texts}
        if len(origins) > 1:
            return OriginFault.SEVERAL
        origin = origins.pop()
        if origin is None or origin.any_label:
            return OriginFault.MALFORMED
        return None if self._allows(origin, host_header) else OriginFault.NOT_ALLOWED

    def _allows(self, origin: Origin, host_header: bytes | None) -> bool:
        if self.allowed or self.environment not in ("development", "testing"):
            return any(pattern.covers(origin) for pattern in self.allowed)
        return origin.is_loopback or _is_own(origin, host_header)


def _is_own(origin: Origin, host_header: bytes | None) -> bool:
    if host_header is None or origin.scheme not in _DEFAULT_PORTS:
        return False
    # The Host header has no scheme; the page's own scheme supplies the port that it may leave out.
    return parse_origin(f"{origin.scheme}://{host_header.decode('latin-1').strip()}") == origin
