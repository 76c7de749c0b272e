"""A tool call from its first event to its second one, whatever happens in between."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from netra_ws.errors import AgentError
from netra_ws.protocol.events import ErrorText, ToolCompleted, ToolExecuting, ToolStatus

from .failures import log_failure
from .request import check_name, new_id
from .tools import FAILED, ToolCall, judge, working_in
from .tracing import begin_call

if TYPE_CHECKING:
    from .run import Run

logger = logging.getLogger(__name__)

#: Tool calls of one run at the same time.
MAX_OPEN_CALLS = 100


@asynccontextmanager
async def open_call(
    run: Run, name: str, parameters: Mapping[str, Any], timeout_s: float | None
) -> AsyncIterator[ToolCall]:
    """Do the block as a tool call of *run* (see ``Run.tool``)."""
    run.check_open()
    await run.step_boundary()
    if len(run.open_calls) >= MAX_OPEN_CALLS:
        text = f"a run may have {MAX_OPEN_CALLS} tool calls open at the same time"
        raise AgentError(text, code="QUOTA_EXCEEDED")
    check_name("the tool's name", name)
    run.check_size("the parameters", parameters)
    run.speech.end_thought()
    call = ToolCall(new_id("call"), name, run)
    run.tell(
        ToolExecuting(
            **run.names(),
            tool_call_id=call.tool_call_id,
            tool_name=name,
            parameters=parameters,
            timeout_s=timeout_s,
        )
    )
    run.open_calls[call.tool_call_id] = call
    span = begin_call(run, name, call.tool_call_id)
    try:
        with working_in(call), span.current():
            await run.pause()
            if timeout_s is not None:
                call.scope.deadline = trio.current_time() + timeout_s
            with call.scope:
                yield call
        if call.scope.cancel_called:  # also when code that blocks has come to its end behind the time
            raise trio.TooSlowError(f"{name} took longer than {timeout_s} s")
        run.check_size("the results", call.results)
    except BaseException as exc:
        call.results = None
        status, error = judge(exc, stopping=run.scope.cancel_called)
        if error is FAILED:  # its user is told no more than that, and the agent may well handle it
            log_failure(logger, logging.WARNING, exc, "tool %s failed in run %s", name, run.run_id)
        run.complete_call(call, status, error)
        span.end(status, None if error is None else error.code)
        raise
    run.complete_call(call, "ok", None)
    span.end("ok")
    await run.pause()


def completed(run: Run, call: ToolCall, status: ToolStatus, error: ErrorText | None = None) -> ToolCompleted:
    """Return the second event of a pair."""
    return ToolCompleted(
        **run.names(),
        tool_call_id=call.tool_call_id,
        tool_name=call.name,
        status=status,
        success=status == "ok",
        results=call.results,
        error=error,
        duration_ms=round((trio.current_time() - call.started_at) * 1000),
    )
