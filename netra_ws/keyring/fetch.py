"""One GET for a JWK Set, with a bound on everything: time, bytes, redirects, and who is asked."""

from __future__ import annotations

import ssl

import attrs
import httpx
import trio

from netra_ws.access.freshness import READ_S, Unread, refresh_after_s
from netra_ws.access.jwks import MAX_SET_BYTES
from netra_ws.errors import ConfigError


@attrs.frozen
class Answer:
    """What came, unread, and for how many seconds it is to be kept."""

    body: bytes = attrs.field(repr=False)
    after_s: float


def trust() -> ssl.SSLContext:
    """Return whom fetches trust; it takes 30 ms of a processor, so it is made once.

    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` name other authorities than the usual ones.

    Raises:
        ConfigError: What these name cannot be read.
    """
    try:
        return httpx.create_ssl_context()
    except OSError:  # ssl.SSLError is one
        raise ConfigError("auth.jwks_url: what SSL_CERT_FILE or SSL_CERT_DIR names cannot be read") from None


async def fetch(url: str, context: ssl.SSLContext) -> Answer:
    """Return what *url* answers with a 200.

    A transport of its own for each fetch: a pool loses its places when a call is cancelled (httpcore #1093).
    The transport and not a client: it knows no redirects, cookies, proxies of the environment or ``.netrc``, and
    logs no addresses.

    Raises:
        Unread: Anything else came, or nothing in time.
    """
    try:
        with trio.fail_after(READ_S):
            async with httpx.AsyncHTTPTransport(verify=context) as transport:
                response = await transport.handle_async_request(_request(url))
                try:
                    return await _read(response)
                finally:
                    await response.aclose()
    except (trio.TooSlowError, httpx.TimeoutException):
        raise Unread(f"no complete answer in {READ_S:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as exc:
        # Its own words may hold a piece of the address, or of what came.
        raise Unread(_reason(exc)) from None


def _request(url: str) -> httpx.Request:
    return httpx.Request(
        "GET",
        url,
        headers={"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"},
        extensions={"timeout": httpx.Timeout(READ_S).as_dict()},
    )


async def _read(response: httpx.Response) -> Answer:
    status = response.status_code
    if 300 <= status < 400:
        raise Unread(f"answered {status}; redirects are not followed", lasting=True)
    if status != 200:
        raise Unread(f"answered {status}", lasting=status not in (408, 425, 429) and status < 500)
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise Unread("answered in an encoding that was not asked for", lasting=True)
    body = bytearray()
    with trio.CancelScope() as scope:
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > MAX_SET_BYTES:
                # Left by a cancel at the next byte and not by a break: the library's generators, which stand one
                # inside the other, close from the inside only.
                scope.cancel()
    if len(body) > MAX_SET_BYTES:
        raise Unread(f"answered with more than {MAX_SET_BYTES} bytes", lasting=True)
    return Answer(bytes(body), refresh_after_s(response.headers.get("cache-control", "")))


def _reason(exc: BaseException) -> str:
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({cause.verify_message})"
        if isinstance(cause, ssl.SSLError):
            return "TLS failed"
        cause = cause.__cause__ or cause.__context__
    if isinstance(exc, httpx.ConnectError):
        return "no connection"
    return f"no answer ({type(exc).__name__})"
