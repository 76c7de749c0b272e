"""HTTP heads: read with h11 under a limit, judged by ourselves, answered and closed.

One request per TCP connection: a page is answered and the connection closed, an upgrade becomes a
WebSocket. Only what RFC 6455 §4.2.1 asks of an upgrade goes on; trio-websocket never sees the head
that a client sent, but a canonical one, because odd bytes in it have crashed it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

import attrs
import h11
import trio

from netra_ws.errors import Refused

from .protection import protection

MAX_HEAD_BYTES = 16 * 1024
#: Browsers send about twenty, proxies add a few.
MAX_HEADERS = 100
MAX_BODY_BYTES = 64 * 1024
MAX_QUERY_FIELDS = 100
METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST"})

Headers = Sequence[tuple[bytes, bytes]]


def _shown_path(path: str) -> str:
    # Ours are all short and lower case; a token is neither.
    return repr(path) if re.fullmatch(r"[a-z0-9/._-]{0,64}", path) else "…"


def _names(headers: Headers) -> str:
    return repr([name.decode("latin-1") for name, _ in headers])


@attrs.frozen
class Head:
    """A request head; its ``repr`` may stand in a log, so it shows nothing in which a token could be.

    Attributes:
        path: Decoded as Latin-1, without the query.
        query: The first value of each name.
        headers: Names in lower case.
        peer: Address of the client, without port.
        rest: Bytes that came behind the head of an upgrade.
        https: Whether the client speaks TLS with us, or with a proxy that is believed.
    """

    method: str
    path: str = attrs.field(repr=_shown_path)
    query: Mapping[str, str] = attrs.field(repr=False)
    headers: Headers = attrs.field(repr=_names)
    peer: str
    http_version: str = "1.1"
    rest: bytes = attrs.field(default=b"", repr=False)
    https: bool = False

    def get(self, name: bytes) -> bytes | None:
        """Return the first header of that lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    def tokens(self, name: bytes) -> list[str]:
        """Return the comma-separated words of all headers of that name, in lower case."""
        values = b",".join(value for key, value in self.headers if key == name).decode("latin-1")
        return [word.strip().lower() for word in values.split(",") if word.strip()]

    @property
    def origin(self) -> str | None:
        """The Origin header as text, for an answer's CORS header."""
        value = self.get(b"origin")
        return None if value is None else value.decode("latin-1")


@attrs.frozen
class Reply:
    """An HTTP answer."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


def json_reply(status: int, fields: object, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """Return *fields* as a JSON answer."""
    return Reply(status, json.dumps(fields).encode() + b"\n", "application/json", headers)


def refusal(refused: Refused) -> Reply:
    """Return the answer that turns a client down."""
    headers = refused.headers
    if refused.retry_after_s is not None:
        headers = (*headers, ("Retry-After", str(refused.retry_after_s)))
    return json_reply(refused.status, {"code": refused.code, "error": refused.text}, headers)


@attrs.define
class Request:
    """One HTTP exchange on a stream: read the head, read a small body, answer.

    Attributes:
        https: Whether the client speaks TLS, with us or with a proxy that is believed.
        strict_s: Seconds for which such a client is told to come by TLS only; 0: not told.
        limited: What it is answered whatever it asks for, because its address has asked too often.
    """

    stream: trio.abc.Stream
    peer: str
    https: bool = False
    strict_s: int = 0
    limited: Refused | None = None
    _h11: h11.Connection = attrs.field(
        factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    )
    _head_only: bool = False

    def feed(self, data: bytes) -> None:
        """Take bytes that were read before anybody knew what they are."""
        if data:
            self._h11.receive_data(data)

    async def head(self) -> Head | None:
        """Read the head; None when the client left without sending one.

        Raises:
            Refused: 400 or 413 when it is none, or too large; 405 and 501 for other methods.
        """
        try:
            event = await self._next()
        except h11.RemoteProtocolError as exc:
            if exc.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
                raise Refused(413, "HEAD_TOO_LARGE", f"The head has more than {MAX_HEAD_BYTES} bytes.") from None
            raise Refused(400, "BAD_REQUEST", "This is not an HTTP request.") from None
        if not isinstance(event, h11.Request):
            return None
        if len(event.headers) > MAX_HEADERS:
            raise Refused(413, "HEAD_TOO_LARGE", f"The head has more than {MAX_HEADERS} fields.")
        # h11 counts only heads that are not complete yet.
        if len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers) > MAX_HEAD_BYTES:
            raise Refused(413, "HEAD_TOO_LARGE", f"The head has more than {MAX_HEAD_BYTES} bytes.")
        names = {name for name, _ in event.headers}
        if b"transfer-encoding" in names and b"content-length" in names:
            # RFC 9112 §6.1: two lengths of one body are how requests are smuggled past a proxy.
            raise Refused(400, "BAD_REQUEST", "The body has two lengths.")
        head = self._parse(event)
        self._head_only = head.method == "HEAD"
        if head.method not in METHODS:
            raise method_refused("GET", "HEAD", "OPTIONS", "POST")
        return head

    def rest(self) -> bytes:
        """Return the bytes behind the head of an upgrade.

        Raises:
            Refused: The request has a body, which an upgrade must not have.
        """
        # Without a body h11 knows the end of the request already; it is not waited for.
        if not isinstance(self._h11.next_event(), h11.EndOfMessage):
            raise Refused(400, "BAD_REQUEST", "An upgrade has no body.")
        return bytes(self._h11.trailing_data[0])

    async def body(self) -> bytes:
        """Read the body of a POST, at most 64 KiB.

        Raises:
            Refused: 413 when it is larger, 400 when it is broken.
        """
        body = bytearray()
        try:
            while isinstance(event := await self._next(), h11.Data):
                body += event.data
                if len(body) > MAX_BODY_BYTES:
                    raise Refused(413, "BODY_TOO_LARGE", f"The body has more than {MAX_BODY_BYTES} bytes.")
        except h11.RemoteProtocolError:
            raise Refused(400, "BAD_REQUEST", "The body is broken.") from None
        if not isinstance(event, h11.EndOfMessage):
            raise Refused(400, "BAD_REQUEST", "The body is broken.")
        return bytes(body)

    async def answer(self, reply: Reply) -> None:
        """Send *reply* and say that nothing follows; the caller closes the stream."""
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        names_upgrade = any(name == "Upgrade" for name, _ in reply.headers)
        headers = [
            ("Content-Type", reply.content_type),
            ("Content-Length", str(len(reply.body))),
            ("Connection", "Upgrade, close" if names_upgrade else "close"),  # RFC 9110 §7.8
            *reply.headers,
            *protection(reply.content_type, reply.headers, self.strict_s if self.https else 0),
        ]
        reason = HTTPStatus(reply.status).phrase if reply.status in _STATUSES else ""
        response = h11.Response(status_code=reply.status, headers=headers, reason=reason.encode())
        data = self._h11.send(response) or b""
        if not self._head_only:
            data += self._h11.send(h11.Data(data=reply.body)) or b""
        data += self._h11.send(h11.EndOfMessage()) or b""
        await self.stream.send_all(data)

    async def _next(self) -> object:
        while True:
            event = self._h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            try:
                data = await self.stream.receive_some(MAX_HEAD_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            self._h11.receive_data(bytes(data))

    def _parse(self, request: h11.Request) -> Head:
        target = request.target.decode("latin-1")
        query: dict[str, str] = {}
        try:
            path, raw_query = _split(target)
            for name, value in parse_qsl(raw_query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS):
                query.setdefault(name, value)
        except ValueError:
            raise Refused(400, "BAD_REQUEST", "The target cannot be read.") from None
        return Head(
            method=request.method.decode("latin-1"),
            path=path,
            query=query,
            headers=[(bytes(name), bytes(value)) for name, value in request.headers],
            peer=self.peer,
            http_version=request.http_version.decode("latin-1"),
            https=self.https,
        )


def _split(target: str) -> tuple[str, str]:
    """Return path and query of a request target (RFC 9112 §3.2)."""
    if target.startswith("/"):
        # Not urlsplit: it reads the beginning of "//name/path" as a host.
        path, _, query = target.partition("?")
        return path, query
    parts = urlsplit(target)
    return parts.path, parts.query


def method_refused(*allowed: str) -> Refused:
    """Return the refusal of a method; *allowed* are those that may be used."""
    text = f"Only {', '.join(allowed)} may be used here."
    return Refused(405, "METHOD_NOT_ALLOWED", text, headers=(("Allow", ", ".join(allowed)),))


_STATUSES = frozenset(status.value for status in HTTPStatus)
_UPGRADE = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))


def check_upgrade(head: Head) -> None:
    """Check what RFC 6455 §4.2.1 asks of an opening handshake.

    Raises:
        Refused: 426 when it is no WebSocket upgrade of version 13, 400 when its key or head is wrong.
    """
    if (
        head.method != "GET"
        or head.http_version != "1.1"
        or "websocket" not in head.tokens(b"upgrade")
        or "upgrade" not in head.tokens(b"connection")
    ):
        raise Refused(426, "UPGRADE_REQUIRED", "This address speaks WebSocket.", headers=_UPGRADE)
    if head.tokens(b"sec-websocket-version") != ["13"]:
        raise Refused(426, "UPGRADE_REQUIRED", "Only WebSocket version 13 is spoken here.", headers=_UPGRADE)
    keys = [value for key, value in head.headers if key == b"sec-websocket-key"]
    try:
        good = len(keys) == 1 and len(base64.b64decode(keys[0], validate=True)) == 16
    except (binascii.Error, ValueError):
        good = False
    if not good:
        raise Refused(400, "BAD_REQUEST", "Sec-WebSocket-Key is not 16 bytes in base64.")


def canonical_upgrade(head: Head, subprotocol: str | None) -> bytes:
    """Return the only head that trio-websocket gets to see: nothing a client wrote but its checked key."""
    key = head.get(b"sec-websocket-key") or b""
    chosen = b"" if subprotocol is None else b"Sec-WebSocket-Protocol: " + subprotocol.encode() + b"\r\n"
    return (
        b"GET /ws HTTP/1.1\r\nHost: netra\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\n" + chosen + b"Sec-WebSocket-Key: " + key + b"\r\n\r\n"
    )
