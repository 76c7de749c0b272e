"""What one client dials over, and everything that may go wrong with it by an explicit call."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import attrs
import trio

from .lines import Line, LineEnd, Towards

_FOR_EVER = float("inf")


@attrs.define(eq=False)
class Link:
    """The way of one client to the server: its lines (connections), one after the other.

    Faults strike the newest line and those who wait on it at once; without a line they only stand in
    the log. ``slow_reader`` and ``refuse`` belong to the client rather than to a line: they hold
    for later ones, too.

    Attributes:
        name: Such as ``alice``; in the log, a line has its number behind it.
        opened: How many lines there have been.
        newest: The line that was opened last.
        users: Clients that dial over it now.
    """

    name: str
    _carry: Callable[[Line], None] = attrs.field(repr=False)
    _note: Callable[[str, str], None] = attrs.field(repr=False)
    opened: int = 0
    newest: Line | None = None
    users: int = 0
    _lines: list[Line] = attrs.field(factory=list, repr=False)
    _refused_until: float = 0.0
    _pace: float = _FOR_EVER
    _slow_until: float = 0.0

    async def open_stream(self, host: str = "", port: int = 0, context: ssl.SSLContext | None = None) -> LineEnd:
        """Dial: open a line and return its client's end (``ClientPolicy.open_stream``).

        Raises:
            OSError: The link refuses.
        """
        await trio.lowlevel.checkpoint()
        if trio.current_time() < self._refused_until:
            raise ConnectionRefusedError(f"the link {self.name} refuses")
        self.opened += 1
        line = self.newest = Line(f"{self.name}/{self.opened}")
        line.to_client.pace, line.to_client.slow_until = self._pace, self._slow_until
        self._lines = [*self.unclosed, line]
        self._carry(line)
        return line.client

    @property
    def unclosed(self) -> list[Line]:
        """The lines whose end the server has not closed."""
        return [line for line in self._lines if not line.server.closed]

    @property
    def connected(self) -> bool:
        """Whether the newest line is open at both ends, dead or alive."""
        return self.newest is not None and self.newest.open

    # What may go wrong.

    def drop(self) -> None:
        """Reset the connection: both ends get an error at once, and what is on its way is lost."""
        self._log("drop")
        if self.newest is not None:
            self.newest.reset()

    def half_open(self, towards: Towards = "both") -> None:
        """Let nothing arrive any more, for good, and tell nobody: a cable pulled, a machine that died.

        A sender notices nothing until its buffer is full, and then waits. Only heartbeats find it.
        """
        self._log(f"half_open towards={towards}")
        for lane in self.newest.lanes(towards) if self.newest is not None else ():
            lane.silent = True
            lane.change()

    def stall(self, seconds: float, towards: Towards = "both") -> None:
        """Let nothing arrive for *seconds*; then all of it does, in order."""
        self._log(f"stall seconds={seconds:g} towards={towards}")
        for lane in self.newest.lanes(towards) if self.newest is not None else ():
            lane.ready_at = max(lane.ready_at, trio.current_time() + seconds)
            lane.change()

    def cut_mid_frame(self, after: int = 1, towards: Towards = "client") -> None:
        """Let *after* bytes of the next frame pass, of a shorter one all but its last, then reset as ``drop`` does.

        The piece of the frame still arrives, and the error behind it.

        Raises:
            ValueError: *after* is less than 1.
        """
        if after < 1:
            raise ValueError("at least one byte of a frame has to pass")
        self._log(f"cut_mid_frame after={after} towards={towards}")
        for lane in self.newest.lanes(towards) if self.newest is not None else ():
            lane.cut_after(after)

    def slow_reader(self, bytes_per_s: float, seconds: float = _FOR_EVER) -> None:
        """Let the client take no more than *bytes_per_s* for so many seconds, also on later connections."""
        if bytes_per_s <= 0:
            raise ValueError("a reader that takes nothing is a stall")
        self._log(f"slow_reader bytes_per_s={bytes_per_s:g} seconds={seconds:g}")
        self._pace, self._slow_until = bytes_per_s, trio.current_time() + seconds
        if self.newest is not None:
            self.newest.to_client.pace, self.newest.to_client.slow_until = self._pace, self._slow_until

    def refuse(self, seconds: float = _FOR_EVER) -> None:
        """Let every attempt to connect fail for so many seconds, as if nobody listened."""
        self._log(f"refuse seconds={seconds:g}")
        self._refused_until = trio.current_time() + seconds

    def heal(self) -> None:
        """End what can end: stalls, slowness, refusals. A half-open line stays dead, as in life."""
        self._log("heal")
        self._refused_until = self._slow_until = 0.0
        for lane in self.newest.lanes("both") if self.newest is not None else ():
            lane.ready_at = lane.slow_until = 0.0
            lane.change()

    def _log(self, what: str) -> None:
        self._note(f"{self.name}/{self.opened}", what)
