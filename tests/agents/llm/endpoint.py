"""A chat-completions endpoint for tests: the real protocol over real sockets, with every quirk there is a server for.

It answers each request with the next reply of its script, and keeps what it was asked::

    async with fake_endpoint(stream(say("Hello"), finish())) as endpoint:
        ...
        assert endpoint.asked[0].body["model"] == "m"

A reply is bytes, sent in pieces of any size, at any pace, up to any byte. The ``openai`` package reads it, too
(``test_endpoint.py``), so it is not made for our own eyes.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import attrs
import h11
import trio

from netra_ws.agents.llm.endpoint import ModelEndpoint

KEY = "sk-test-0123456789abcdefghijklmnop"
MODEL = "model-of-tests"
EVENT_STREAM = "text/event-stream"
#: Of Trio's clock, which goes fast in some tests.
PATIENCE_S = 60.0

Chunk = dict[str, Any]


# What models say, as chunks.


def chunk(delta: Mapping[str, Any] | None = None, reason: str | None = None, **more: Any) -> Chunk:
    """Return a chunk with one choice."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [{"index": 0, "delta": dict(delta or {}), "finish_reason": reason}],
        **more,
    }


def say(*pieces: str) -> list[Chunk]:
    return [chunk({"content": piece}) for piece in pieces]


def think(*pieces: str, field: str = "reasoning_content") -> list[Chunk]:
    return [chunk({field: piece}) for piece in pieces]


def call(name: str, *fragments: str, index: int | None = 0, call_id: str | None = "call_a") -> list[Chunk]:
    """Return a tool call as most servers stream it: id and name first, then the arguments in fragments."""
    first: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": ""}}
    rest: list[dict[str, Any]] = [{"function": {"arguments": fragment}} for fragment in fragments]
    if call_id is not None:
        first["id"] = call_id
    if index is not None:
        for part in (first, *rest):
            part["index"] = index
    return [chunk({"tool_calls": [part]}) for part in (first, *rest)]


def finish(reason: str = "stop") -> list[Chunk]:
    return [chunk({}, reason)]


def used(prompt: int, completion: int, *, cached: int | None = None, choices: Any = ()) -> list[Chunk]:
    """Return the chunk with the usage; *choices* are an empty list, None, or left out with ``...``."""
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    last = chunk(usage=usage) | {"choices": list(choices) if isinstance(choices, tuple) else choices}
    if choices is ...:
        del last["choices"]
    return [last]


# How servers send it.


@attrs.frozen(kw_only=True)
class Reply:
    """An HTTP answer.

    Attributes:
        piece_bytes: The body is sent in pieces of so many bytes; None at once.
        pause_s: Seconds before each piece but the first.
        first_after_s: Seconds before the head of the answer.
        stop_at: So many bytes of the body are sent; None all of them.
        then: What comes behind the last byte: the proper ``end``, a connection ``closed`` or ``reset`` without one,
            or nothing at all any more (``hang``), until the other side goes.
    """

    body: bytes
    status: int = 200
    content_type: str = EVENT_STREAM
    headers: Mapping[str, str] = attrs.field(factory=dict)
    piece_bytes: int | None = None
    pause_s: float = 0.0
    first_after_s: float = 0.0
    stop_at: int | None = None
    then: Literal["end", "closed", "reset", "hang"] = "end"
    keep_alive: bool = True

    def pieces(self) -> list[bytes]:
        body = self.body[: self.stop_at]
        size = self.piece_bytes or len(body) or 1
        return [body[at : at + size] for at in range(0, len(body), size)]


def encode(chunks: Sequence[Chunk], *, done: bool = True, line_end: str = "\n") -> bytes:
    """Return chunks as server-sent events."""
    events = [f"data: {json.dumps(one, ensure_ascii=False)}" for one in chunks]
    if done:
        events.append("data: [DONE]")
    return "".join(f"{event}{line_end}{line_end}" for event in events).encode()


def stream(*parts: Sequence[Chunk], done: bool = True, line_end: str = "\n", **how: Any) -> Reply:
    """Return a streamed answer of the chunks in *parts*."""
    return Reply(body=encode([one for part in parts for one in part], done=done, line_end=line_end), **how)


def answer(*pieces: str, prompt: int = 10, completion: int = 5, **how: Any) -> Reply:
    """Return the answer of a well-behaved server: a text, its end, the usage."""
    return stream(say(*pieces), finish(), used(prompt, completion), **how)


def whole(message: Mapping[str, Any], **how: Any) -> Reply:
    """Return an answer of a server that does not stream."""
    completion = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    return Reply(body=json.dumps(completion).encode(), content_type="application/json", **how)


def refuse(status: int, message: str = "no", *, code: str | None = None, **how: Any) -> Reply:
    """Return an answer that says no, in OpenAI's form."""
    error = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    return Reply(body=json.dumps(error).encode(), status=status, content_type="application/json", **how)


# The server.


@attrs.frozen(kw_only=True)
class Asked:
    """One request: header names in lower case, the body as JSON."""

    method: str
    target: str
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: Any
    connection: int


@attrs.define(eq=False)
class FakeEndpoint:
    """A running endpoint.

    Attributes:
        script: The replies to come; the last one is given to all further requests.
        asked: Every request so far.
        left: How many connections the other side has gone from in the middle of an answer.
        open: How many connections are open right now.
    """

    url: str
    script: deque[Reply]
    asked: list[Asked] = attrs.field(factory=list)
    left: int = 0
    open: int = 0
    connections: int = 0
    _changed: trio.Event = attrs.field(factory=trio.Event)

    def model(self, **more: Any) -> ModelEndpoint:
        """Return how ours is told where it is; *more* are fields of ``ModelEndpoint``."""
        return ModelEndpoint(**{"base_url": self.url, "model": MODEL, "api_key": KEY, **more})

    async def until(self, what: str, least: int) -> None:
        """Wait until ``asked``, ``left`` or ``connections`` is at least so many, or ``open`` at most.

        Raises:
            TooSlowError: It is not within so many seconds as nothing takes.
        """
        with trio.fail_after(PATIENCE_S):
            while not self._is(what, least):
                await self._changed.wait()

    def _is(self, what: str, least: int) -> bool:
        value = getattr(self, what)
        number = len(value) if isinstance(value, list) else value
        return number <= least if what == "open" else number >= least

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end."""
        self.connections += 1
        self.open += 1
        self._change()
        try:
            await _Connection(self, stream, self.connections).serve()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            self.left += 1
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
            self.open -= 1
            self._change()

    def note(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        self._change()
        return self.script.popleft() if len(self.script) > 1 else self.script[0]


@attrs.define(eq=False)
class _Connection:
    _endpoint: FakeEndpoint
    _stream: trio.abc.Stream
    _number: int
    _http: h11.Connection = attrs.field(factory=lambda: h11.Connection(h11.SERVER))

    async def serve(self) -> None:
        while (asked := await self._request()) is not None:
            reply = self._endpoint.note(asked)
            async with trio.open_nursery() as nursery:
                # Whoever leaves is noticed at once, also while nothing is sent.
                nursery.start_soon(self._watch)
                await self._send(reply)
                nursery.cancel_scope.cancel()
            if reply.then != "end" or not reply.keep_alive:
                return
            self._http.start_next_cycle()

    async def _watch(self) -> None:
        # No client of ours sends anything before it has its answer.
        if not await self._stream.receive_some(1):
            raise trio.BrokenResourceError("the client has gone")

    async def _request(self) -> Asked | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._stream.receive_some())
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return Asked(
                    method=head.method.decode(),
                    target=head.target.decode(),
                    headers={name.decode(): value.decode() for name, value in head.headers},
                    body=json.loads(body) if body else None,
                    connection=self._number,
                )
            else:
                return None

    async def _send(self, reply: Reply) -> None:
        await trio.sleep(reply.first_after_s)
        headers = [("content-type", reply.content_type), ("transfer-encoding", "chunked"), *reply.headers.items()]
        if not reply.keep_alive:
            headers.append(("connection", "close"))
        await self._put(h11.Response(status_code=reply.status, headers=headers))
        for number, piece in enumerate(reply.pieces()):
            if number and reply.pause_s:
                await trio.sleep(reply.pause_s)
            await self._put(h11.Data(data=piece))
        if reply.then == "end":
            await self._put(h11.EndOfMessage())
        elif reply.then == "hang":
            await trio.sleep_forever()
        elif reply.then == "reset" and isinstance(self._stream, trio.SocketStream):
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _put(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            await self._stream.send_all(data)


@asynccontextmanager
async def fake_endpoint(*script: Reply, tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeEndpoint]:
    """Run an endpoint on a free port of the loopback; behind the block nothing of it is left."""
    async with trio.open_nursery() as nursery:
        listener: Any
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        scheme, port = ("https" if tls else "http"), listener.socket.getsockname()[1]
        endpoint = FakeEndpoint(f"{scheme}://127.0.0.1:{port}/v1", deque(script))
        if tls is not None:
            listener = trio.SSLListener(listener, tls, https_compatible=True)
        nursery.start_soon(trio.serve_listeners, endpoint.serve, [listener])
        try:
            yield endpoint
        finally:
            nursery.cancel_scope.cancel()
