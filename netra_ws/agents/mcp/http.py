"""An MCP server behind an address: streamable HTTP by the library's client, over a transport of ours.

That transport is where secrets are added and where bounds are kept: no request leaves the server's origin,
no address is logged with its query, no answer is unpacked, or read without a bound, and one request that
fails is one answer that fails, not the end of the connection.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio
import attrs
import httpx2
import trio
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._stream_protocols import ReadStream, WriteStream
from mcp.shared.message import SessionMessage

from .bounds import MAX_MESSAGE_BYTES
from .servers import McpServer
from .wire import Gone

#: Seconds to connect, to send, and to get a place among ``MAX_SOCKETS``.
CONNECT_S = 10.0
#: Sockets of one connection: one per call that is open, one for what the server says by itself.
MAX_SOCKETS = 100
#: An answer is waited for a little longer than its caller does, whose timeout is the one to be told.
BEYOND_S = 30.0


@functools.cache
def trust() -> ssl.SSLContext:
    """Return whom connections trust; made once, since it takes 30 ms of a processor."""
    return httpx2.create_ssl_context()


@asynccontextmanager
async def open_http(server: McpServer) -> AsyncIterator[HttpWire]:
    """Make a client for the server's address; when the block is left, its session is ended there, too."""
    inner = httpx2.AsyncHTTPTransport(verify=trust(), limits=httpx2.Limits(max_connections=MAX_SOCKETS))
    transport = Bounded(inner, httpx2.URL(server.url or ""), server.headers)
    read_s = None if server.timeout_s is None else max(server.timeout_s, server.start_timeout_s) + BEYOND_S
    async with (
        httpx2.AsyncClient(
            transport=transport, timeout=httpx2.Timeout(CONNECT_S, read=read_s), trust_env=False
        ) as client,
        streamable_http_client(server.address, http_client=client, max_sse_event_size=MAX_MESSAGE_BYTES) as streams,
    ):
        yield HttpWire(*streams, transport)


@attrs.frozen(eq=False)
class HttpWire:
    """The streams of the library's client."""

    _read: ReadStream[SessionMessage | Exception]
    _write: WriteStream[SessionMessage]
    _transport: Bounded

    @property
    def trouble(self) -> str:
        return self._transport.trouble

    @property
    def last_words(self) -> str:
        return ""

    async def receive(self) -> SessionMessage:
        """Return the next message; see ``Wire``. What the library could not read is left out: it has logged it."""
        while True:
            try:
                message = await self._read.receive()
            except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
                raise Gone("has closed the connection") from None
            if isinstance(message, SessionMessage):
                return message

    async def send(self, message: SessionMessage) -> None:
        """Send a message; see ``Wire``."""
        try:
            await self._write.send(message)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            raise Gone("has closed the connection") from None


@attrs.define(eq=False)
class Bounded(httpx2.AsyncBaseTransport):
    """A transport to one origin.

    Attributes:
        trouble: Why the last message was not answered, behind the server's name.
    """

    _inner: httpx2.AsyncBaseTransport
    _home: httpx2.URL
    _headers: Mapping[str, str] = attrs.field(repr=False)
    trouble: str = ""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request with its secrets; every failure is an answer of its own."""
        home, url = self._home, request.url
        if (url.scheme, url.host, url.port) != (home.scheme, home.host, home.port):
            return self._failed(request, "sends its clients elsewhere")
        # Another request, not this one with more in it: the client above logs and keeps what it has made.
        headers = httpx2.Headers(request.headers)
        headers.update({**self._headers, "accept-encoding": "identity"})
        full = httpx2.Request(
            request.method,
            url.copy_with(query=home.query) if home.query and not url.query else url,
            headers=headers,
            stream=request.stream,
            extensions=request.extensions,
        )
        try:
            response = await self._inner.handle_async_request(full)
        except httpx2.TransportError as exc:
            return self._failed(request, _reason(exc))
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            await response.aclose()
            return self._failed(request, "answered in an encoding that was not asked for")
        if request.method == "POST":
            self.trouble = f"answered with HTTP status {response.status_code}" if response.is_error else ""
        is_stream = response.headers.get("content-type", "").lower().startswith("text/event-stream")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        return httpx2.Response(
            response.status_code,
            headers=response.headers,
            # A stream of events may be as long as its session; the library bounds each of them.
            stream=Body(response.stream, None if is_stream else MAX_MESSAGE_BYTES),
            extensions=response.extensions,
        )

    def _failed(self, request: httpx2.Request, trouble: str) -> httpx2.Response:
        # Raised, it would end the client's task group, and with it every other call.
        self.trouble = trouble
        return httpx2.Response(503, request=request)

    async def aclose(self) -> None:
        """Close all sockets."""
        await self._inner.aclose()


class Body(httpx2.AsyncByteStream):
    """What comes of an answer; an object and not a generator, which a reader who stops early would leave open."""

    def __init__(self, inner: httpx2.AsyncByteStream, limit: int | None) -> None:
        self._inner = inner
        self._left = limit
        self._pieces: AsyncIterator[bytes] | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._pieces is None:
            self._pieces = self._inner.__aiter__()
        try:
            piece = await self._pieces.__anext__()
        except httpx2.TransportError as exc:
            # The kind of error that the library takes for a broken answer.
            raise httpx2.StreamError(_reason(exc)) from None
        if self._left is not None:
            self._left -= len(piece)
            if self._left < 0:
                await self._stop()
                raise httpx2.StreamError(f"more than {MAX_MESSAGE_BYTES} bytes")
        return piece

    async def aclose(self) -> None:
        """Give the socket back, or close it where something is left on it."""
        await self._stop()
        await self._inner.aclose()

    async def _stop(self) -> None:
        # By a cancel at the next byte, and not by closing: the library's generators, which stand one inside the
        # other, close from the inside only.
        if self._pieces is None:
            return
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                while True:
                    await self._pieces.__anext__()
            except (StopAsyncIteration, httpx2.TransportError):
                return


def _reason(exc: BaseException) -> str:
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"has a certificate that is not trusted ({cause.verify_message})"
        cause = cause.__cause__ or cause.__context__
    if isinstance(exc, httpx2.ConnectError | httpx2.ConnectTimeout):
        return "cannot be reached"
    return f"gave no complete answer ({type(exc).__name__})"
