"""An MCP server that is a process of the run: one JSON message a line, on its standard input and output.

Not the library's own client for that: the process has to carry its run's mark and has to be gone, with all
that came of it, before the run has ended.
"""

from __future__ import annotations

import logging
import subprocess
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter
from pydantic import ValidationError

from netra_ws.errors import AgentError

from ..run import Run
from .bounds import KEPT_COMPLAINTS, MAX_COMPLAINTS, MAX_MESSAGE_BYTES
from .servers import McpServer
from .wire import MAX_WORDS, Gone

logger = logging.getLogger(__name__)

#: Bytes of one read.
READ_BYTES = 64 * 2**10
#: Lines of standard output that are no message; banners are common, more than so many are not.
MAX_GARBAGE = 100
#: Pause after each read of standard error that is not logged any more: who floods it waits.
FLOOD_PAUSE_S = 0.01
#: How long a process that has closed its output is waited for, to tell its exit status.
STATUS_S = 0.2


@asynccontextmanager
async def open_pipe(run: Run, server: McpServer, patience_s: float) -> AsyncIterator[Pipe]:
    """Start the server's program; when the block is left it has *patience_s* to go by itself, then it is killed.

    Raises:
        Gone: It cannot be started.
    """
    async with run.processes.part(run.policy.finalise_s) as processes:
        # Shielded: nobody else would close the pipes of a process that a cancel has left without an owner.
        with trio.CancelScope(shield=True):
            try:
                process = await processes.start(
                    list(server.command or ()),
                    env=server.environment,
                    cwd=server.cwd,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            except OSError as exc:
                raise Gone(f"cannot be started ({exc.strerror})") from None
            except AgentError as exc:
                raise Gone(f"cannot be started: {exc.text}") from None
        pipe = Pipe(run.run_id, server, process)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipe.hear_complaints)
            try:
                yield pipe
            finally:
                with trio.CancelScope(shield=True):
                    await pipe.close(patience_s)
                nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class Pipe:
    """The three streams of one process."""

    run_id: str
    server: McpServer
    process: trio.Process
    trouble: str = ""
    _complaints: deque[str] = attrs.field(factory=lambda: deque(maxlen=KEPT_COMPLAINTS))
    _heard: bytearray = attrs.field(factory=bytearray)
    _looked_at: int = 0
    _garbage: int = 0

    @property
    def last_words(self) -> str:
        """What came of its standard error last."""
        return " | ".join(self._complaints)

    async def receive(self) -> SessionMessage:
        """Return the next message; see ``Wire``."""
        while True:
            line = await self._line()
            try:
                return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
            except ValidationError:
                self._garbage += 1
                self._log("said what is no message: %s", line)
                if self._garbage > MAX_GARBAGE:
                    raise Gone("writes to its standard output what is no message") from None

    async def _line(self) -> bytes:
        heard = self._heard
        while (end := heard.find(b"\n", self._looked_at)) < 0:
            self._looked_at = len(heard)
            if len(heard) > MAX_MESSAGE_BYTES:
                raise Gone(f"sent a message of more than {MAX_MESSAGE_BYTES} bytes")
            stdout = self.process.stdout
            assert stdout is not None
            try:
                piece = await stdout.receive_some(READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                piece = b""
            if not piece:
                raise Gone(await self._ended())
            heard += piece
        line = bytes(heard[:end])
        del heard[: end + 1]
        self._looked_at = 0
        return line

    async def _ended(self) -> str:
        with trio.move_on_after(STATUS_S):
            status = await self.process.wait()
            return f"has ended with status {status}" if status >= 0 else f"was ended by signal {-status}"
        return "has closed its standard output"

    async def send(self, message: SessionMessage) -> None:
        """Send a message; see ``Wire``."""
        stdin = self.process.stdin
        assert stdin is not None
        text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
        try:
            await stdin.send_all(f"{text}\n".encode())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Gone("does not read any more") from None

    async def hear_complaints(self) -> None:
        """Log standard error until it ends; what is above the bound is read and dropped, slowly."""
        stderr, rest, count = self.process.stderr, b"", 0
        assert stderr is not None
        while piece := await stderr.receive_some(READ_BYTES):
            if count >= MAX_COMPLAINTS:
                await trio.sleep(FLOOD_PAUSE_S)
                continue
            *lines, rest = (rest + piece).split(b"\n")
            rest = rest[:MAX_WORDS]
            for line in lines[: MAX_COMPLAINTS - count]:
                count += 1
                self._complaints.append(self._log("says: %s", line))

    def _log(self, text: str, line: bytes) -> str:
        words = self.server.masked(line[:MAX_WORDS].decode(errors="replace")).rstrip()
        logger.debug("run %s: MCP server %s " + text, self.run_id, self.server.name, words)
        return words

    async def close(self, patience_s: float) -> None:
        """Close the server's input, which asks it to go, and wait so long for that."""
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        await process.stdin.aclose()
        with trio.move_on_after(patience_s):
            await process.wait()
        await process.stdout.aclose()
        await process.stderr.aclose()
