"""Sub-runs: an agent has another agent do a part of its work (``run.delegate``).

A sub-run is a run of its own, with its own events, which name its parent. It lives in its parent's
nursery, so it ends before its parent, and is cancelled with it and with the task that waits for it. Its
words are its parent's material: they are told and stored as events, and are no messages of the
conversation. All runs that come of one form its family, which is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from netra_ws.errors import AgentError, ClientError, DelegateFailed, QuotaExceeded, RunClosed

from .agent import Agent, check_agent
from .execution import execute
from .request import MAX_NAME, RunRequest, new_id
from .run import Run
from .tools import CURRENT_CALL

#: How many levels below the run that a user has started.
MAX_DEPTH = 5
#: Sub-runs of one family at the same time, and in its whole life.
MAX_OPEN = 16
MAX_FAMILY = 100


async def delegate(
    run: Run, agent: str | Agent, text: str, context: Mapping[str, Any] | None, timeout_s: float | None
) -> Any:
    """Run *agent* as a sub-run and return its final response (see ``Run.delegate``); the caller has checked *run*."""
    if timeout_s is not None and not (isinstance(timeout_s, int | float) and timeout_s > 0):
        raise ValueError("timeout_s: expected seconds above 0")
    if not isinstance(text, str):
        raise TypeError(f"text: expected text, got {type(text).__name__}")
    name, function = _resolve(run, agent)
    _check_bounds(run)
    nursery = run.nursery
    if nursery is None:
        raise RunClosed(f"the agent of {run.run_id} has ended")
    call = CURRENT_CALL.get()
    request = RunRequest(
        run_id=new_id("run"),
        thread_id=run.thread_id,
        message_id=run.request.message_id,
        agent_name=name,
        text=text,
        trigger="delegate",
        on_disconnect=run.request.on_disconnect,
        timeout_s=min(timeout_s or run.request.timeout_s, run.request.timeout_s),
        idle_timeout_s=run.request.idle_timeout_s,
        context=context or {},
        parent_run_id=run.run_id,
        parent_tool_call_id=call.tool_call_id if call is not None and call.run is run else None,
    )
    child = run.born(request)

    async def carry() -> None:
        try:
            await execute(child, function, lambda: None)
        finally:
            run.over(child)

    # Beside the task that waits here, so that code which cannot be stopped holds up only the end of the parent.
    nursery.start_soon(carry)
    try:
        await child.settled.wait()
    except trio.Cancelled:
        child.cancel("parent")
        with trio.CancelScope(shield=True):
            await child.settled.wait()
        raise
    return _response(child)


def _resolve(run: Run, agent: str | Agent) -> tuple[str, Agent]:
    if agent == "":
        raise ValueError("agent: expected a name")
    if isinstance(agent, str):
        try:
            return run.host.agent_named(agent)
        except ClientError as exc:
            raise AgentError(f"{exc.text}: {agent[:100]}", code=exc.code) from None
    name = str(getattr(agent, "__name__", type(agent).__name__))[:MAX_NAME].encode(errors="replace").decode()
    return name, check_agent(name, agent)


def _check_bounds(run: Run) -> None:
    family = run.family
    if family.events >= run.policy.max_events:
        run.cancel("quota")
        raise QuotaExceeded(f"more than {run.policy.max_events} events in one run")
    if len(run.line()) > MAX_DEPTH:
        raise AgentError(f"sub-runs may be {MAX_DEPTH} levels deep", code="QUOTA_EXCEEDED")
    if family.open >= MAX_OPEN:
        raise AgentError(f"a run may have {MAX_OPEN} sub-runs at the same time", code="QUOTA_EXCEEDED")
    if family.born >= MAX_FAMILY:
        raise AgentError(f"a run may have {MAX_FAMILY} sub-runs", code="QUOTA_EXCEEDED")


def _response(child: Run) -> Any:
    if child.status == "success":
        return child.response
    error = child.error
    raise DelegateFailed(
        f"the sub-run of {child.agent_name} was cancelled" if error is None else error.message,
        code="CANCELLED" if error is None else error.code,
        run_id=child.run_id,
        status=child.status,
        retryable=error is not None and error.retryable,
    )
