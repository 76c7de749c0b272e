"""A client that may say any bytes at all, and sees each frame.

It knows no library: it writes what it is told and reads the server's frames strictly, so a server
that masks, fragments a control frame or uses a reserved bit fails the test at once. Every wait of
it has a deadline.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

import attrs
import trio

from .frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Answer,
    Ended,
    Frame,
    close_payload,
    frame,
)
from .lines import LineEnd

#: Seconds after which a wait fails the test, by default.
PATIENCE_S = 8.0


@attrs.define(eq=False)
class RawClient:
    """A raw client on any stream.

    Attributes:
        answer: The head of the server's answer to the last request.
        welcome: Its first frame after the upgrade, once it was read.
        answers_pings: Whether reading sends pongs.
        patience_s: Seconds after which a wait fails the test.
    """

    stream: trio.abc.Stream
    answers_pings: bool = True
    patience_s: float = PATIENCE_S
    answer: Answer | None = None
    welcome: dict[str, Any] = attrs.field(factory=dict)
    _buffer: bytearray = attrs.field(factory=bytearray)
    _ids: int = 0

    # Writing.

    async def send_bytes(self, data: bytes) -> None:
        """Write *data* as it is."""
        with trio.fail_after(self.patience_s):
            await self.stream.send_all(data)

    async def send_frame(self, opcode: int, payload: bytes | str = b"", **how: Any) -> None:
        """Write one frame; see ``frame``."""
        await self.send_bytes(frame(opcode, payload, **how))

    async def send(self, type_name: str, /, **fields: object) -> None:
        """Say a command."""
        await self.send_frame(TEXT, json.dumps({"type": type_name, **fields}))

    async def say(self, text: str) -> None:
        """Send a text message as it is."""
        await self.send_frame(TEXT, text)

    # Reading.

    async def read_head(self) -> Answer:
        """Read the head of an HTTP answer."""
        with trio.fail_after(self.patience_s):
            while b"\r\n\r\n" not in self._buffer:
                await self._more()
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self._buffer[:] = rest
        first, *lines = head.decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            before = headers.get(name.lower())
            headers[name.lower()] = value if before is None else f"{before}, {value}"
        self.answer = Answer(int(first.split(" ")[1]), headers, b"")
        return self.answer

    async def read_answer(self) -> Answer:
        """Read a whole HTTP answer and the end of the connection behind it."""
        answer = await self.read_head()
        return attrs.evolve(answer, body=await self.read_rest())

    async def read_rest(self) -> bytes:
        """Read everything up to the server's end; a reset counts as one only after a whole answer."""
        with trio.fail_after(self.patience_s):
            try:
                while True:
                    await self._more()
            except Ended:
                pass
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    async def _more(self) -> None:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            raise Ended("reset") from None
        if not data:
            raise Ended("end of stream")
        self._buffer += data

    async def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._more()
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def receive_frame(self, patience_s: float | None = None) -> Frame:
        """Read the next frame, whatever it is, and check what RFC 6455 asks of a server's frame.

        Raises:
            Ended: The connection was closed.
        """
        with trio.fail_after(self.patience_s if patience_s is None else patience_s):
            first, second = await self._take(2)
            assert not first & 0x70, f"reserved bits in {first:#x}"
            assert not second & 0x80, "a server must not mask"
            size = second
            if size == 126:
                (size,) = struct.unpack("!H", await self._take(2))
                assert size > 125
            elif size == 127:
                (size,) = struct.unpack("!Q", await self._take(8))
                assert size > 0xFFFF
            payload = await self._take(size)
        opcode, fin = first & 0x0F, bool(first & 0x80)
        assert opcode in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG), f"opcode {opcode}"
        assert opcode < CLOSE or (fin and size <= 125), "a control frame that is none"
        return Frame(opcode, payload, fin)

    async def receive_data(self, patience_s: float | None = None) -> Frame:
        """Read the next frame that is no ping or pong; pings are answered."""
        while True:
            received = await self.receive_frame(patience_s)
            if received.opcode == PING and self.answers_pings:
                await self.send_frame(PONG, received.payload)
            elif received.opcode not in (PING, PONG):
                return received

    async def receive(self) -> dict[str, Any]:
        """Read the next JSON message; a Close frame fails the test."""
        received = await self.receive_data()
        assert received.opcode != CLOSE, f"closed with {received.code} {received.reason!r}"
        return received.json()

    async def until(self, type_name: str, **wanted: object) -> list[dict[str, Any]]:
        """Read messages up to the first one of that type with those fields; the last is that one."""
        seen: list[dict[str, Any]] = []
        with trio.fail_after(self.patience_s):
            while True:
                message = await self.receive()
                seen.append(message)
                if message["type"] == type_name and all(message.get(name) == value for name, value in wanted.items()):
                    return seen

    async def ask(self, type_name: str, /, **fields: object) -> dict[str, Any]:
        """Say a command with an id and return its answer; events in between are dropped."""
        self._ids += 1
        command_id = str(fields.pop("id", f"c{self._ids}"))
        await self.send(type_name, id=command_id, **fields)
        with trio.fail_after(self.patience_s):
            while True:
                message = await self.receive()
                if message.get("reply_to") == command_id:
                    return message

    async def receive_close(self) -> Frame:
        """Read up to the server's Close frame; pings are answered.

        Raises:
            Ended: There was none.
        """
        with trio.fail_after(self.patience_s):
            while True:
                received = await self.receive_data()
                if received.opcode == CLOSE:
                    return received

    async def finish(self, code: int = 1000) -> Frame:
        """Say Close, and return the server's."""
        await self.send_frame(CLOSE, close_payload(code))
        return await self.receive_close()

    async def receive_end(self) -> bytes:
        """Read to the end of the connection; return the bytes that came before it."""
        return await self.read_rest()

    # Opening and closing.

    async def open(self, head: bytes, *, welcome: bool = True) -> None:
        """Send an opening handshake, expect the 101, and read the welcome."""
        await self.send_bytes(head)
        answer = await self.read_head()
        if answer.status != 101:
            answer = attrs.evolve(answer, body=await self.read_rest())
        assert answer.status == 101, answer
        if welcome:
            self.welcome = await self.receive()
            assert self.welcome["type"] == "connection_established"

    def reset(self) -> None:
        """Close with a reset, as a process that is killed with unread data does."""
        if isinstance(self.stream, LineEnd):
            self.stream.line.reset()
            return
        assert isinstance(self.stream, trio.SocketStream)
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()
