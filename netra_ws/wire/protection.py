"""Headers that keep an answer harmless in a browser, whatever page shows it or embeds it.

Every answer has them, so that no page of ours can forget one; what a page says itself comes before.
"""

from __future__ import annotations

from collections.abc import Iterator

#: Nothing of an answer is run, loaded or framed; a page that needs more says what.
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
#: Seconds for which browsers then come by TLS only: half a year.
STRICT_S = 15_768_000

_EVERY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",  # frame-ancestors, for browsers that do not know it
    "Content-Security-Policy": NOTHING,
    "Cross-Origin-Resource-Policy": "same-origin",
}
_OF_PAGES = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
}


def protection(content_type: str, said: tuple[tuple[str, str], ...], strict_s: int) -> Iterator[tuple[str, str]]:
    """Yield the headers that an answer still needs.

    Args:
        said: The headers that it has.
        strict_s: Seconds of Strict-Transport-Security (RFC 6797); 0 where the client did not come by TLS.
    """
    headers = _EVERY | _OF_PAGES if content_type.startswith("text/html") else _EVERY
    known = {name.lower() for name, _ in said}
    yield from ((name, value) for name, value in headers.items() if name.lower() not in known)
    if strict_s:
        yield "Strict-Transport-Security", f"max-age={strict_s}"
