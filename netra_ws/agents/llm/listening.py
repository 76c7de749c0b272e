"""Listening to a model: the bytes of a response, however they end, and the chunks in them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

import attrs
import httpx
import orjson
import trio

from netra_ws.errors import ModelError

from .bounds import MAX_ANSWER_BYTES, MAX_REFUSAL_BYTES, MAX_WHOLE_BYTES, REST_S
from .failures import away, told_inside
from .secrecy import Secrecy
from .sse import EventDecoder, EventTooLong, ServerEvent

Form = Literal["events", "whole"]


def form_of(response: httpx.Response) -> tuple[Form, str | None]:
    """Return how an answer comes, and what is wrong with it."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return "events", "in an encoding that was not asked for"
    kind = response.headers.get("content-type", "text/event-stream").partition(";")[0].strip().lower()
    if kind == "application/json":
        return "whole", None  # there are servers that do not stream at all
    return "events", "with a page or an image" if kind.startswith(("text/html", "image/")) else None


@attrs.define(eq=False)
class Source:
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

    _source: Source = attrs.field(repr=False)
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
