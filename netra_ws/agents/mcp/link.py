"""One run's connection to one MCP server, from its opening to its end in one task."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import attrs
import mcp_types as types
import trio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from pydantic import TypeAdapter, ValidationError

from netra_ws.access import RateLimit
from netra_ws.errors import AgentError
from netra_ws.version import __version__

from ..failures import leaves
from ..run import Run
from ..tools import ToolCall
from .bounds import MAX_UNSENT, PARTING_S, STALL_S
from .http import open_http
from .pipe import open_pipe
from .progress import Progress
from .questions import Questions
from .quiet import quiet
from .results import error_text, read_results
from .servers import McpServer
from .wire import MAX_WORDS, Gone, Wire, broken, tool_error, unavailable

logger = logging.getLogger(__name__)

#: Questions of a server that it has not read the answers of.
MAX_ASKED = 64
#: What a server may tell without being asked, at once and per minute; what is above that is dropped.
MAX_NOTES = 100
NOTES_PER_MINUTE = 3000
#: Pages and tools of a list; what is behind them is left out.
MAX_PAGES = 50
MAX_TOOLS = 256

_ANSWERS: TypeAdapter[types.CallToolResult | types.InputRequiredResult] = TypeAdapter(
    types.CallToolResult | types.InputRequiredResult
)
#: How the texts begin of errors that the library makes where there is no answer; their codes are servers', too.
_LIBRARY_WORDS = (
    "Connection closed",
    "SSE stream",
    "Failed to parse",
    "Unexpected content type",
    "server answered a request with 202",
)
_CLIENT = types.Implementation(name="netra_ws", version=__version__)


@attrs.define(eq=False)
class Link:
    """A connection; ``own`` is its life, everything else talks to it from other tasks of the run.

    Attributes:
        opened: Set when its tools are known, or when it has failed.
        offers: The server's tools.
        failure: Why it cannot be used any more.
    """

    run: Run
    server: McpServer
    opened: trio.Event = attrs.field(factory=trio.Event)
    offers: Sequence[types.Tool] = ()
    failure: AgentError | None = None
    _questions: Questions = attrs.field(
        init=False, default=attrs.Factory(lambda self: Questions(self.run, self.server), takes_self=True)
    )
    _session: ClientSession | None = None
    _wire: Wire | None = None
    _asked: int = 0
    _notes: RateLimit = attrs.field(factory=lambda: RateLimit(NOTES_PER_MINUTE, MAX_NOTES))
    _closing: trio.Event = attrs.field(factory=trio.Event)
    _said: trio.Event = attrs.field(factory=trio.Event)
    # Shielded: a run that is cancelled still has to tell its server so. ``close`` bounds that.
    _life: trio.CancelScope = attrs.field(factory=lambda: trio.CancelScope(shield=True))

    @property
    def patience_s(self) -> float:
        """How long the server has to part from us."""
        return min(PARTING_S, self.run.policy.finalise_s / 4)

    def close(self) -> None:
        """Ask ``own`` to end, which it does within bounds. May be called again."""
        self._closing.set()
        if self.opened.is_set():
            self._life.deadline = min(self._life.deadline, trio.current_time() + self.patience_s)
        else:
            self._life.cancel()

    async def own(self) -> None:
        """Open the client, hold it and close it, all in the task that calls this, as its cancel scopes demand.

        Never raises for what the server or the library does: that is its ``failure``.
        """
        self._life.deadline = trio.current_time() + self.server.start_timeout_s
        try:
            with quiet(), self._life:
                async with self._open_wire() as self._wire:
                    await self._converse(self._wire)
        except Exception as exc:
            # A crash wall: what another's library makes of another's bytes must not end the run's nursery.
            trouble = self._wire.trouble if self._wire is not None else ""
            self._fail(trouble or _why(exc))
            logger.debug("run %s: MCP server %s", self.run.run_id, self.server.name, exc_info=exc)
        finally:
            if self._life.cancelled_caught and not self._closing.is_set():
                self._fail(f"did not tell its tools within {self.server.start_timeout_s:g} s")
            self._closing.set()
            self._fail("is closed")
            self.opened.set()

    def _open_wire(self) -> AbstractAsyncContextManager[Wire]:
        if self.server.command is not None:
            return open_pipe(self.run, self.server, self.patience_s)
        return open_http(self.server)

    async def _converse(self, wire: Wire) -> None:
        into, heard = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        said, out_of = anyio.create_memory_object_stream[SessionMessage](MAX_UNSENT)
        with into, heard, said, out_of:
            async with trio.open_nursery() as pumps:
                pumps.start_soon(self._hear, wire, into)
                pumps.start_soon(self._say, wire, out_of)
                async with self._client(heard, said) as self._session:
                    self.offers = await _greet(self._session)
                    if not self._closing.is_set():
                        self._life.deadline = float("inf")
                    self.opened.set()
                    await self._closing.wait()
                # The session has closed its end, so this is when its last word, perhaps a cancel, is out.
                await self._said.wait()
                pumps.cancel_scope.cancel()

    def _client(
        self, heard: MemoryObjectReceiveStream[SessionMessage | Exception], said: MemoryObjectSendStream[SessionMessage]
    ) -> ClientSession:
        # What has no callback is declined, and not offered to the server in the first place.
        answer = self._questions.answer if self.server.may_ask else None
        return ClientSession(
            heard, said, client_info=_CLIENT, logging_callback=self._log_words, elicitation_callback=answer
        )

    async def _hear(self, wire: Wire, into: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        with into:
            try:
                while True:
                    message = await wire.receive()
                    if isinstance(message.message, types.JSONRPCRequest):
                        self._asked += 1
                        if self._asked > MAX_ASKED:
                            raise Gone("asks and does not read the answers")
                    if isinstance(message.message, types.JSONRPCNotification) and self._notes.take(time.monotonic()):
                        await trio.lowlevel.checkpoint()
                        continue  # nothing is lost with progress or a log line; each is work for the library
                    await into.send(message)
            except Gone as exc:
                self._fail(str(exc))
            except anyio.BrokenResourceError:
                pass  # the session has ended

    async def _say(self, wire: Wire, out_of: MemoryObjectReceiveStream[SessionMessage]) -> None:
        with out_of:
            try:
                async for message in out_of:
                    with trio.fail_after(STALL_S):
                        await wire.send(message)
                    if isinstance(message.message, types.JSONRPCResponse | types.JSONRPCError):
                        self._asked -= 1
            except trio.TooSlowError:
                self._fail(f"has not read for {STALL_S:g} s")
            except Gone as exc:
                self._fail(str(exc))
            finally:
                self._said.set()

    async def _log_words(self, params: types.LoggingMessageNotificationParams) -> None:
        words = self.server.masked(str(params.data)[:MAX_WORDS])
        logger.debug("run %s: MCP server %s logs: %s", self.run.run_id, self.server.name, words)

    def _fail(self, why: str) -> None:
        """Note why the connection is of no use any more, and end it; the first reason counts."""
        if self.failure is None:
            error = broken if self.opened.is_set() else unavailable
            self.failure = error(self.server, why)
            if not self._closing.is_set():
                words = self._wire.last_words if self._wire is not None else ""
                logger.warning("run %s: %s%s", self.run.run_id, self.failure, f"; it said: {words}" if words else "")
        self._session = None
        if self.opened.is_set():
            self.close()

    async def call(self, tool: str, call: ToolCall, arguments: Mapping[str, Any]) -> Any:
        """Call the tool that the server itself names *tool*; its progress is told of *call*. Return its results.

        Raises:
            AgentError: ``MCP_TOOL_ERROR``: the tool's own word; ``MCP_BROKEN``: there is no answer to be had.

        *Cancellation:* the server is told ``notifications/cancelled``.
        """
        session, progress = self._session, Progress(self.server, call)
        if session is None:
            raise self._gone()
        request = types.CallToolRequest(params=types.CallToolRequestParams(name=tool, arguments=dict(arguments)))
        try:
            # Not call_tool: that checks results by the server's schema, with its regular expressions.
            with self._questions.during(call):
                answer = await session.send_request(request, _ANSWERS, progress_callback=progress.note)
        except MCPError as exc:
            raise self._refusal(exc) from None
        except ValidationError:
            raise broken(self.server, "gave an answer that is none of MCP") from None
        finally:
            progress.over = True
        if isinstance(answer, types.InputRequiredResult):
            raise tool_error(self.server, "the tool asks for more input, which it cannot have here")
        if answer.is_error:
            raise tool_error(self.server, error_text(answer))
        return read_results(answer, self.run.policy.max_event_bytes)

    def _refusal(self, exc: MCPError) -> AgentError:
        if self.failure is not None:
            return self._gone()
        if self._wire is not None and self._wire.trouble:
            return broken(self.server, self._wire.trouble)
        if exc.message.startswith(_LIBRARY_WORDS):
            return broken(self.server, "gave no complete answer")
        return tool_error(self.server, exc.message[:MAX_WORDS] or "the tool cannot be called")

    def _gone(self) -> AgentError:
        failure = self.failure or broken(self.server, "is closed")
        # Another one for each who is told: an exception carries the way it came.
        return AgentError(failure.text, code=failure.code, retryable=failure.retryable)


async def _greet(session: ClientSession) -> list[types.Tool]:
    """Agree on a version of the protocol and return the server's tools."""
    try:
        await session.initialize()
    except MCPError as exc:
        # Versions from 2026 on know no handshake.
        if exc.code not in (types.METHOD_NOT_FOUND, types.UNSUPPORTED_PROTOCOL_VERSION):
            raise
        await session.discover()
    if session.server_capabilities is None or session.server_capabilities.tools is None:
        return []
    tools: list[types.Tool] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await session.list_tools(params=types.PaginatedRequestParams(cursor=cursor) if cursor else None)
        tools += page.tools
        cursor = page.next_cursor
        if not cursor or len(tools) >= MAX_TOOLS:
            break
    return tools[:MAX_TOOLS]


def _why(exc: BaseException) -> str:
    """Return what an exception says of the server, to go on behind its name."""
    for each in leaves(exc):
        if isinstance(each, Gone):
            return str(each)
        if isinstance(each, MCPError):
            return f"says: {each.message[:MAX_WORDS]}"
        if isinstance(each, ValidationError):
            return "gave an answer that is none of MCP"
    return f"cannot be talked to ({type(leaves(exc)[0]).__name__})"
