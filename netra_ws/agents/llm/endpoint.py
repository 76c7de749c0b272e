"""The HTTP side of a model: one request, its answer as chunks, and what is told when there is none.

One short-lived transport per run, over TLS settings that all runs share. A transport and not a client: it knows no
redirects (the key would travel to wherever they point), no cookies, no ``.netrc``, and logs no addresses. Nor does it
read proxies from the environment: an endpoint on this machine would be asked through one, with the key in the clear.
Who needs a proxy names it (``llm.proxy``, ``ModelEndpoint.proxy``).

The key is in no repr, log line, event or exception. Errors of the libraries below are not even kept as the context
of ours, because the frames in their tracebacks hold the headers that were sent.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import attrs
import httpx
import orjson
import trio

from netra_ws.errors import ConfigError, ModelError
from netra_ws.version import __version__

from .bounds import CONNECT_S, IDLE_S, MAX_REFUSAL_BYTES, MAX_REQUEST_BYTES
from .failures import away, refusal
from .listening import ChunkStream, Source, form_of
from .secrecy import Secrecy

_PATH = "/chat/completions"

Prices = Mapping[str, Mapping[str, float]]


def _read_only(prices: Prices) -> Prices:
    return MappingProxyType(dict(prices))


def _mask(url: str | None) -> str:
    return "None" if url is None else repr(httpx.URL(url).host)


@attrs.frozen
class ModelEndpoint:
    """An OpenAI-compatible endpoint, and the model that is asked there by default.

    Attributes:
        base_url: Such as ``https://api.example.org/v1``; ``/chat/completions`` is put behind its path.
        api_key: Sent as a bearer token; None where none is needed.
        prices: Model → ``input``, ``output`` and ``cached`` price per million tokens; without, no cost is told.
        proxy: URL of an HTTP proxy to go through; the environment is not asked for one.

    Raises:
        ConfigError: A URL is none, or the key cannot be sent; its text has no piece of them.
    """

    base_url: str = attrs.field(repr=_mask)
    model: str
    api_key: str | None = attrs.field(default=None, repr=False)
    prices: Prices = attrs.field(factory=dict, kw_only=True, eq=False, repr=False, converter=_read_only)
    proxy: str | None = attrs.field(default=None, kw_only=True, repr=_mask)

    def __attrs_post_init__(self) -> None:
        _check_url("base_url", self.base_url)
        if self.proxy is not None:
            _check_url("proxy", self.proxy)
        if not self.model:
            raise ConfigError("ModelEndpoint: a model is needed")
        key = self.api_key
        if key is not None and not (key.isascii() and key.isprintable() and key and " " not in key):
            raise ConfigError("ModelEndpoint: the key holds characters that cannot be sent")

    @property
    def provider(self) -> str:
        """The name of the host: what usage and log lines call the endpoint."""
        return httpx.URL(self.base_url).host

    @property
    def secrecy(self) -> Secrecy:
        """What keeps the key out of texts."""
        return Secrecy(self.api_key or "")

    def cost_usd(self, model: str, input_tokens: int | None, output_tokens: int | None, cached: int) -> float | None:
        """Return what so many tokens cost, *cached* ones being part of the input; None where that is not known."""
        price = self.prices.get(model)
        if price is None or input_tokens is None or output_tokens is None:
            return None
        cached = min(cached, input_tokens)
        cached_price = price.get("cached", price["input"])
        return (
            (input_tokens - cached) * price["input"] + cached * cached_price + output_tokens * price["output"]
        ) / 1_000_000


def _check_url(name: str, text: str) -> None:
    try:
        urlsplit(text)  # the library's own takes a bracket that is not closed for part of a name
        url = httpx.URL(text)
    except (httpx.InvalidURL, TypeError, ValueError):
        raise ConfigError(f"ModelEndpoint: {name} is not a URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"ModelEndpoint: {name} must be an http or https URL with a host")
    if url.userinfo and name != "proxy":
        raise ConfigError(f"ModelEndpoint: a user or password in {name} is not sent; use api_key")


@functools.cache
def _trust() -> ssl.SSLContext:
    # ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` name other authorities than the usual ones, as everywhere.
    return httpx.create_ssl_context()


@functools.cache
def _no_trust() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # knows no authority: for plain HTTP, which has no use for it


async def _trust_for(url: str) -> ssl.SSLContext:
    if not url.lower().startswith("https:"):
        return _no_trust()
    if _trust.cache_info().currsize:
        return _trust()
    try:
        return await trio.to_thread.run_sync(_trust)  # 30 ms of a processor
    except OSError:  # ssl.SSLError is one
        raise ConfigError("what SSL_CERT_FILE or SSL_CERT_DIR names cannot be read") from None


@asynccontextmanager
async def open_endpoint(endpoint: ModelEndpoint) -> AsyncIterator[OpenEndpoint]:
    """Open what one run needs to ask *endpoint*; every socket is closed behind the block, also when cancelled."""
    context = await _trust_for(endpoint.base_url)
    async with httpx.AsyncHTTPTransport(verify=context, trust_env=False, proxy=endpoint.proxy) as transport:
        yield OpenEndpoint(endpoint, transport)


@attrs.frozen
class OpenEndpoint:
    """An endpoint that can be asked, one request at a time."""

    endpoint: ModelEndpoint
    _transport: httpx.AsyncHTTPTransport = attrs.field(repr=False)

    @asynccontextmanager
    async def ask(self, body: Mapping[str, Any]) -> AsyncIterator[ChunkStream]:
        """Send a request; the block reads its answer. Leaving the block early closes the connection.

        Raises:
            ModelError: The endpoint cannot be reached, or says no.
        """
        content = orjson.dumps(body)
        if len(content) > MAX_REQUEST_BYTES:
            text = f"the conversation has more than {MAX_REQUEST_BYTES} bytes with its attachments"
            raise ModelError("LLM_CONTEXT_TOO_LONG", text)
        response = await self._send(content)
        source = Source(response.aiter_raw())
        try:
            if response.status_code != 200:
                raise await self._refusal(response, source)
            yield ChunkStream(source, self.endpoint.secrecy, *form_of(response))
        finally:
            await source.leave()

    async def _send(self, content: bytes) -> httpx.Response:
        try:
            return await self._transport.handle_async_request(_request(self.endpoint, content))
        except (httpx.HTTPError, OSError, ValueError) as exc:
            failure = away(exc)
        raise failure  # out here: see the module's docstring

    async def _refusal(self, response: httpx.Response, source: Source) -> ModelError:
        with trio.move_on_after(CONNECT_S):
            await source.read_whole(MAX_REFUSAL_BYTES)
        return refusal(response.status_code, response.headers, bytes(source.whole), self.endpoint.secrecy)


def _request(endpoint: ModelEndpoint, content: bytes) -> httpx.Request:
    url = httpx.URL(endpoint.base_url)
    path = url.path.rstrip("/").removesuffix(_PATH)
    headers = {
        "Host": url.netloc.decode("ascii"),
        "Accept": "text/event-stream, application/json",
        "Accept-Encoding": "identity",
        "Content-Length": str(len(content)),
        "Content-Type": "application/json",
        "User-Agent": f"netra-ws/{__version__}",
    }
    if endpoint.api_key is not None:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    timeout = httpx.Timeout(IDLE_S, connect=CONNECT_S)
    return httpx.Request(
        "POST",
        url.copy_with(path=path + _PATH, fragment=None),
        headers=headers,
        stream=_Content(content),
        extensions={"timeout": timeout.as_dict()},
    )


class _Content(httpx.AsyncByteStream):
    """The bytes of a request.

    The library's own stream of bytes is a generator, which a cancel in the middle leaves to the garbage collector.
    """

    def __init__(self, content: bytes) -> None:
        self._pieces = iter([content])

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration
