"""Connections in memory that fail as networks do.

A *line* is one connection: an end for the client, an end for the server, and a *lane* in each
direction. Lanes are bounded, as the buffers of a system are, so a reader that does not read is felt.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import attrs
import trio

from .boundaries import Boundaries

#: Bytes on their way in one direction before the sender waits; about what systems hold.
CAPACITY = 64 * 1024
#: A slow reader takes what it may take in so many pieces a second.
_SIPS_PER_S = 10

Towards = Literal["client", "server", "both"]


@attrs.define(eq=False)
class Lane:
    """One direction of a line.

    Attributes:
        capacity: Bytes that it holds.
        silent: Whether nothing arrives any more, and nobody is told: neither bytes nor the end.
        ready_at: Nothing arrives before this moment (``trio.current_time``).
        pace: Bytes a second that its reader takes, up to the moment ``slow_until``.
        left: Whether its reader has closed.
        ended: Whether its writer has closed, or said that nothing follows.
    """

    capacity: int = CAPACITY
    silent: bool = False
    ready_at: float = 0.0
    pace: float = float("inf")
    slow_until: float = 0.0
    left: bool = False
    ended: bool = False
    on_cut: Callable[[], None] = lambda: None
    _waiting: bytearray = attrs.field(factory=bytearray)
    _gone: bool = False
    _boundaries: Boundaries = attrs.field(factory=Boundaries)
    _cut_after: int | None = None
    _still_passes: int | None = None
    _changed: trio.Event = attrs.field(factory=trio.Event)
    _writer_busy: bool = False
    _reader_busy: bool = False

    def change(self) -> None:
        """Have both sides look at the lane again; call it after each change from outside."""
        self._changed.set()
        self._changed = trio.Event()

    def lose(self, *, keep: bool) -> None:
        """Be gone: both sides get an error, the reader behind what is on its way where *keep* says so."""
        self._gone = True
        if not keep:
            self._waiting.clear()
        self.change()

    def cut_after(self, count: int) -> None:
        """Let *count* bytes of the next frame pass, then call ``on_cut``."""
        self._cut_after = count

    # By the writer.

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """*Cancellation:* some of *data* may be on its way, as with a socket."""
        with self._alone("_writer_busy", "sending"):
            await trio.lowlevel.checkpoint()
            rest = bytes(data)
            self._check_writable()
            while rest:
                room = await self._room()
                piece, rest = rest[:room], rest[room:]
                self._put(piece)
                self._check_writable()

    async def wait_for_room(self) -> None:
        """Wait until a byte could be sent, or an error would come of it."""
        with self._alone("_writer_busy", "sending"):
            await trio.lowlevel.checkpoint()
            await self._room()

    async def _room(self) -> int:
        self._check_writable()
        while not (room := self.capacity - len(self._waiting)):
            await self._changed.wait()
            self._check_writable()
        return room

    def _check_writable(self) -> None:
        if self.ended:
            raise trio.ClosedResourceError("this end was closed")
        if self._gone or (self.left and not self.silent):
            raise trio.BrokenResourceError("the connection was reset")

    def _put(self, piece: bytes) -> None:
        starts = self._boundaries.follow(piece)
        if self._cut_after is not None and self._still_passes is None and starts:
            offset, size = starts[0]
            self._still_passes = offset + min(self._cut_after, size - 1)
        passes = len(piece) if self._still_passes is None else min(len(piece), self._still_passes)
        self._waiting += piece[:passes]
        self.change()
        if self._still_passes is not None:
            self._still_passes -= passes
            if not self._still_passes:
                self.on_cut()

    def end(self, *, alone: bool = False) -> None:
        """Say that nothing follows; *alone* says that nobody may be sending meanwhile."""
        if alone:
            with self._alone("_writer_busy", "sending"):
                pass
        self.ended = True
        self.change()

    # By the reader.

    async def receive(self, most: int | None) -> bytes:
        """Return what has arrived, at most *most* bytes; nothing at the end."""
        if most is not None and operator.index(most) < 1:
            raise ValueError("at least one byte has to be asked for")
        with self._alone("_reader_busy", "receiving"):
            await trio.lowlevel.checkpoint()
            while True:
                if self.left:
                    raise trio.ClosedResourceError("this end was closed")
                now = trio.current_time()
                if self._gone and not self._waiting:
                    raise trio.BrokenResourceError("the connection was reset")
                arrived = not self.silent and now >= self.ready_at
                if arrived and self._waiting:
                    return self._taken(most, now)
                if arrived and self.ended:
                    return b""
                with trio.move_on_at(float("inf") if arrived or self.silent else self.ready_at):
                    await self._changed.wait()

    def _taken(self, most: int | None, now: float) -> bytes:
        count = len(self._waiting) if most is None else most
        if now < self.slow_until:
            count = min(count, len(self._waiting), max(1, int(self.pace / _SIPS_PER_S)))
            self.ready_at = now + count / self.pace
        taken = bytes(self._waiting[:count])
        del self._waiting[:count]
        self.change()
        return taken

    def leave(self) -> None:
        """Read nothing more."""
        self.left = True
        self.change()

    @contextmanager
    def _alone(self, flag: str, doing: str) -> Iterator[None]:
        if getattr(self, flag):
            raise trio.BusyResourceError(f"another task is {doing} on this end")
        setattr(self, flag, True)
        try:
            yield
        finally:
            setattr(self, flag, False)


@attrs.define(eq=False)
class LineEnd(trio.abc.HalfCloseableStream):
    """One end of a line: a stream as a socket would be one."""

    line: Line = attrs.field(repr=False)
    _out: Lane = attrs.field(repr=False)
    _into: Lane = attrs.field(repr=False)

    @property
    def closed(self) -> bool:
        """Whether whoever has this end has closed it."""
        return self._into.left

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._into.receive(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._out.send(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._out.wait_for_room()

    async def send_eof(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("this end was closed")
        self._out.end(alone=True)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._out.end()
        self._into.leave()
        await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class Line:
    """One connection in memory.

    Attributes:
        name: Whose it is and which of theirs, such as ``alice/2``.
        client: The client's end.
        server: The server's end.
    """

    name: str
    to_client: Lane = attrs.field(factory=Lane, repr=False)
    to_server: Lane = attrs.field(factory=Lane, repr=False)
    client: LineEnd = attrs.field(init=False, repr=False)
    server: LineEnd = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.client = LineEnd(self, self.to_server, self.to_client)
        self.server = LineEnd(self, self.to_client, self.to_server)
        self.to_client.on_cut = lambda: self.reset(keep=self.to_client)
        self.to_server.on_cut = lambda: self.reset(keep=self.to_server)

    def lanes(self, towards: Towards) -> list[Lane]:
        """Return the lanes that lead to one end, or both."""
        return [
            lane for end, lane in (("client", self.to_client), ("server", self.to_server)) if towards in (end, "both")
        ]

    def reset(self, keep: Lane | None = None) -> None:
        """Be gone at both ends; only what is on its way in the lane *keep* still arrives."""
        for lane in self.lanes("both"):
            lane.lose(keep=lane is keep)

    @property
    def open(self) -> bool:
        """Whether both ends are."""
        return not self.client.closed and not self.server.closed
