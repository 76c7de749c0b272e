"""The HTTP side of a model: one request, its answer as chunks, and what is told when there is none.

One short-lived transport per run, over TLS settings that all runs share. A transport and not a client: it knows no
redirects (the key would travel to wherever they point), no cookies, no ``.netrc``, and logs no addresses. Nor does it
read proxies from the environment: an endpoint on this machine would be asked through one, with the key in the clear.
Who needs a proxy names it (``llm.proxy``, ``ModelEndpoint.proxy``).

The key is in no repr, log line, event or exception. Errors of the libraries below are not even kept as the context
of ours, because the frames in their tracebacks hold the headers that were sent.
"""

from __future__ import annotations

import contextlib
import functools
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import urlsplit

import attrs
import httpx
import orjson
import trio

from netra_ws.errors import ConfigError, ModelError
from netra_ws.version import __version__

from .failures import away, refusal, told_inside
from .secrecy import Secrecy
from .sse import EventDecoder, EventTooLong, ServerEvent

CONNECT_S = 10.0
#: Longest silence of the server, and of its network, while it is listened to.
IDLE_S = 90.0
#: What comes behind the last word is listened to for so long, so that the connection can serve the next step.
REST_S = 0.5
#: Bytes of one request, with all attachments; of one answer; of an answer that says no; of one that is not streamed.
MAX_REQUEST_BYTES = 32 * 2**20
MAX_ANSWER_BYTES = 64 * 2**20
MAX_REFUSAL_BYTES = 64 * 2**10
MAX_WHOLE_BYTES = 8 * 2**20

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
        source = _Source(response.aiter_raw())
        try:
            if response.status_code != 200:
                raise await self._refusal(response, source)
            yield ChunkStream(source, self.endpoint.secrecy, *_form(response))
        finally:
            await source.leave()

    async def _send(self, content: bytes) -> httpx.Response:
        try:
            return await self._transport.handle_async_request(_request(self.endpoint, content))
        except (httpx.HTTPError, OSError, ValueError) as exc:
            failure = away(exc)
        raise failure  # out here: see the module's docstring

    async def _refusal(self, response: httpx.Response, source: _Source) -> ModelError:
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


Form = Literal["events", "whole"]


def _form(response: httpx.Response) -> tuple[Form, str | None]:
    """Return how an answer comes, and what is wrong with it."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return "events", "in an encoding that was not asked for"
    kind = response.headers.get("content-type", "text/event-stream").partition(";")[0].strip().lower()
    if kind == "application/json":
        return "whole", None  # there are servers that do not stream at all
    return "events", "with a page or an image" if kind.startswith(("text/html", "image/")) else None


@attrs.define(eq=False)
class _Source:
    """The bytes of a response, and the only way to leave it.

    The library's generators stand one inside the other and close from the inside only: so what is not read to its
    end is left by a cancel at the innermost, never by dropping the outermost.
    """

    _pieces: AsyncIterator[bytes]
    whole: bytearray = attrs.field(factory=bytearray, repr=False)
    _size: int = 0

    async def read(self) -> bytes | None:
        """Return the next bytes, or None at the end.

        Raises:
            ModelError: The connection broke, or nothing came for ``IDLE_S`` seconds, or too much.
        """
        try:
            piece = await anext(self._pieces, None)
        except (httpx.HTTPError, OSError, ValueError) as exc:
            failure = away(exc, answering=True)
        else:
            self._size += len(piece or b"")
            if self._size <= MAX_ANSWER_BYTES:
                return piece
            failure = ModelError("LLM_BROKEN", f"the model's server sent more than {MAX_ANSWER_BYTES} bytes")
        raise failure

    async def read_whole(self, limit: int) -> bool:
        """Read into ``whole``; return whether that was all of it, in at most *limit* bytes."""
        while (piece := await self.read()) is not None:
            self.whole += piece
            if len(self.whole) > limit:
                return False
        return True

    async def finish(self) -> None:
        """Read what little may still come, so that the connection can be used again."""
        with trio.move_on_after(REST_S), contextlib.suppress(ModelError):  # all that matters has come
            await self.read_whole(MAX_REFUSAL_BYTES)

    async def leave(self) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            with contextlib.suppress(httpx.HTTPError, OSError, ValueError):  # it is left in any case
                async for _ in self._pieces:
                    pass


@attrs.define(eq=False)
class ChunkStream:
    """The chunks of one answer, in order."""

    _source: _Source = attrs.field(repr=False)
    _secrecy: Secrecy
    _form: Form
    _fault: str | None
    _decoder: EventDecoder = attrs.field(factory=EventDecoder, repr=False)
    _ready: deque[ServerEvent] = attrs.field(factory=deque, repr=False)
    _ended: bool = False
    done: bool = False

    async def next(self) -> Mapping[str, Any] | None:
        """Return the next chunk; None when the server has said that it is done (``done``), or the stream has ended.

        Raises:
            ModelError: The stream broke, holds nonsense, or an error that the server tells in it.
        """
        if self._fault is not None:
            raise ModelError("LLM_BROKEN", f"the model's server answers {self._fault}")
        while not self.done:
            if self._ready:
                if (chunk := await self._read(self._ready.popleft())) is not None:
                    return chunk
            elif self._ended:
                return None
            else:
                await self._receive()
        return None

    async def _receive(self) -> None:
        if self._form == "whole":
            self._ended = True
            if not await self._source.read_whole(MAX_WHOLE_BYTES):
                raise ModelError("LLM_BROKEN", f"the model's server sent more than {MAX_WHOLE_BYTES} bytes at once")
            self._ready.append(ServerEvent(self._source.whole.decode(errors="replace")))
            return
        piece = await self._source.read()
        try:
            if piece is not None:
                self._ready.extend(self._decoder.feed(piece))
                return
        except EventTooLong as exc:
            raise ModelError("LLM_BROKEN", f"the model's server sent {exc}") from None
        self._ended = True
        if last := self._decoder.finish():
            self._ready.append(last)

    async def _read(self, event: ServerEvent) -> Mapping[str, Any] | None:
        if event.data.strip() == "[DONE]":
            self.done = True
            await self._source.finish()
            return None
        try:
            chunk = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            if self._ended and self._form == "events":
                return None  # the beginning of an event that was broken off
            raise ModelError("LLM_BROKEN", "the model's server sent something that is no JSON") from None
        if not isinstance(chunk, dict):
            raise ModelError("LLM_BROKEN", "the model's server sent a chunk that is no object")
        if chunk.get("error") or event.name == "error":
            raise told_inside(chunk, self._secrecy)
        return chunk
