"""Questions that an MCP server has for the user in the middle of a call (elicitation)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import mcp_types as types
import orjson
import trio
from mcp.client.context import ClientRequestContext

from netra_ws.errors import AgentError, InputDeclined, RunClosed

from ..run import Run
from ..tools import ToolCall
from .schemas import Parameters, UnfitSchema
from .servers import McpServer

#: Characters of a question.
MAX_PROMPT = 2000
#: Forms are flat; a keyword of these would let a server run its regular expressions here, or unfold for ever.
_NOT_IN_FORMS = (b'"pattern', b'"$ref"', b'"$dynamicRef"', b'"unevaluated')

_DECLINED = types.ElicitResult(action="decline")


@attrs.define(eq=False)
class Questions:
    """Asks what a server wants to know, one question at a time, as long as a call of it is open."""

    run: Run
    server: McpServer
    _calls: list[ToolCall] = attrs.field(factory=list)
    _open: trio.CancelScope | None = None

    @contextmanager
    def during(self, call: ToolCall) -> Iterator[None]:
        """Let the server ask while *call* is open; a question that is open behind the last call is closed."""
        self._calls.append(call)
        try:
            yield
        finally:
            self._calls.remove(call)
            if not self._calls and self._open is not None:
                self._open.cancel()

    async def answer(
        self, context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult | types.ErrorData:
        """Return what the user says; called in a task of the library for each question."""
        if not isinstance(params, types.ElicitRequestFormParams) or self._open is not None or not self._calls:
            return _DECLINED
        # Which call it is that asks is not told; while a person thinks, none of them is late.
        held = list(self._calls)
        for call in held:
            call.hold()
        try:
            with trio.CancelScope() as self._open:
                return await self._ask(params)
        finally:
            self._open = None
            for call in held:
                call.release()
        return types.ElicitResult(action="cancel")

    async def _ask(self, params: types.ElicitRequestFormParams) -> types.ElicitResult:
        try:
            schema = Parameters.read(params.requested_schema).schema
            if any(keyword in orjson.dumps(schema) for keyword in _NOT_IN_FORMS):
                return _DECLINED
            # The name first: the user has to know that it is not the agent who asks.
            prompt = f"{self.server.name}: {params.message[:MAX_PROMPT]}"
            value: Any = await self.run.ask(prompt, schema=schema)
        except InputDeclined as exc:
            return types.ElicitResult(action="cancel" if exc.status == "expired" else "decline")
        except (UnfitSchema, AgentError, RunClosed, ValueError):
            return _DECLINED  # too many questions, too large, or none that can be asked
        return types.ElicitResult(action="accept", content=value)
