"""Streams of frames through the whole server, in memory: the right pongs, errors and Close, however they arrive."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from netra_ws.testing import MemoryServer, RawClient, open_test_server
from netra_ws.testing.frames import CLOSE, CONTINUATION, PING, PONG, TEXT, Ended, frame
from netra_ws.wire.frames import Inbound

from .corpus.frames import SEEDS
from .corpus.messages import SEEDS as MESSAGES
from .mutation import mutated, pieces
from .oracle import Expected, Oracle

MOST_BYTES = 4096
#: Seconds of the virtual clock between two inputs: budgets are full again, and the last one's context is gone.
_REST_S = 60.0
#: Messages that change nothing outside of their own answer.
_MILD = tuple(m for m in MESSAGES if b'"ping"' in m or b"list_threads" in m or b'"type":' not in m)


@attrs.define
class Heard:
    """What the server said to a stream of frames.

    Attributes:
        errors: Codes of its ``error`` frames, but those that tell of something else than a malformed message.
    """

    code: int | None = None
    pongs: list[bytes] = attrs.field(factory=list)
    errors: list[str] = attrs.field(factory=list)


class Alarm(logging.Handler):
    """Keeps what the server logs as its own failure."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(self.format(record))


#: What says that a message was not understood; every other error is about what it asks for.
_MALFORMED = frozenset({"INVALID_JSON", "INVALID_MESSAGE", "MISSING_TYPE", "UNKNOWN_TYPE", "EMPTY_MESSAGE"})


@attrs.define(eq=False)
class Streams:
    """The target ``frames``; ``async with Streams.open()`` on a virtual clock."""

    server: MemoryServer
    alarm: Alarm
    name: str = "frames"
    _users: int = 0

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Streams]:
        """Run a server for the streams."""
        alarm, logger = Alarm(), logging.getLogger("netra_ws")
        logger.addHandler(alarm)
        try:
            async with open_test_server(overrides={"limits.max_message_bytes": MOST_BYTES}) as server:
                yield cls(server, alarm)
        finally:
            logger.removeHandler(alarm)

    def make(self, chance: random.Random) -> bytes:
        """Return frames, or what once were some."""
        if chance.random() < 0.5:
            return mutated(chance, SEEDS, SEEDS)
        return b"".join(_some_frame(chance) for _ in range(chance.randrange(1, 12)))

    async def check(self, data: bytes, where: Sequence[int]) -> None:
        """Fail where the server says something else than the oracle, or its tasks survive.

        Raises:
            Exception: What should not have happened.
        """
        inbound = Inbound.of(MOST_BYTES)
        expected = Oracle(MOST_BYTES, inbound.most_fragments).read(data)
        expected.errors = [code for code in expected.errors if code in _MALFORMED]
        for sent in ([data] if data else [], pieces(data, where)):
            heard = await self._converse(sent)
            assert agrees(heard, expected), f"{heard} instead of {expected} for {len(sent)} pieces"
        await trio.sleep(_REST_S)
        assert not self.alarm.heard, self.alarm.heard

    async def _converse(self, sent: Sequence[bytes]) -> Heard:
        self._users += 1
        user = f"u{self._users}"
        async with self.server.connect_raw(user, link="fuzz") as client, trio.open_nursery() as nursery:
            heard = Heard()
            nursery.start_soon(_listen, client, heard)
            for piece in sent:
                try:
                    await client.stream.send_all(piece)
                except trio.BrokenResourceError:
                    break  # the server has closed
                await trio.testing.wait_all_tasks_blocked()
            # Until the server is waiting for more, if it still is: an end would hide what it owes.
            await trio.sleep(5)
            await client.stream.send_eof()  # type: ignore[attr-defined]
        return heard


async def _listen(client: RawClient, heard: Heard) -> None:
    try:
        while True:
            received = await client.receive_frame()
            assert heard.code is None, f"{received} behind a Close"
            if received.opcode == CLOSE:
                heard.code = received.code
            elif received.opcode == PONG:
                heard.pongs.append(received.payload)
            elif received.opcode == TEXT:
                _note(received.json(), heard)
    except Ended as end:
        if str(end) != "end of stream":
            raise


def _note(said: dict[str, object], heard: Heard) -> None:
    if "jsonrpc" in said:
        failure = said.get("error")
        said = failure["data"] if isinstance(failure, dict) else {}
    if said.get("type") == "error" and said["code"] in _MALFORMED:
        heard.errors.append(str(said["code"]))


def agrees(heard: Heard, expected: Expected) -> bool:
    """Tell whether the server said what it had to.

    Who breaks the protocol or says Close is answered no more, though what it asked for before is still done; so
    of the answers the last ones may be missing. Pongs go at once: only a Close of the server's can cut them short.
    """
    pongs = expected.pongs[: len(heard.pongs)] if expected.cut_short else expected.pongs
    errors = expected.errors if heard.code is None else expected.errors[: len(heard.errors)]
    return heard.code in expected.codes and heard.pongs == pongs and heard.errors == errors


def _some_frame(chance: random.Random) -> bytes:
    opcode = chance.choice((TEXT,) * 8 + (PING, PING, PONG, CONTINUATION, CONTINUATION, CLOSE, *range(16)))
    if opcode == CLOSE:
        body = chance.choice((b"", b"\x03\xe8", b"\x03\xe9bye", b"\x0f\xa0", b"\x03\xed", chance.randbytes(3)))
    elif opcode in (PING, PONG):
        body = chance.randbytes(chance.choice((0, 1, 5, 125)))
    else:
        body = chance.choice((*_MILD, b"", b"x", json.dumps({"type": "ping", "x": "é" * 50}).encode()))[:5000]
    return frame(
        opcode,
        body,
        fin=chance.random() < 0.85,
        rsv=chance.choice((0,) * 60 + (1, 2, 4)),
        mask=None if chance.random() < 0.02 else chance.randbytes(4),
        wide=64 if chance.random() < 0.02 else None,
        size=2**40 if chance.random() < 0.01 else None,
    )
