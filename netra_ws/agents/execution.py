"""Carries a run from its first event to its last, whatever its agent does.

Three tasks. The agent has one of its own, alone in the run's nursery: whatever it leaves behind, an
open nursery or a broken stack of scopes, ends there. ``work`` holds that nursery inside the run's
scope; the crash wall stands outside that scope. ``execute`` itself is the keeper beside them: it
watches the clocks and whoever cancels, and it is not in the agent's hands. When the run should end,
the keeper waits ``finalise_s`` for the agent; if that does not exit, the keeper seals the run, while
its own task stays until the agent goes. So timeouts cost nothing per event, and there is one place
that decides.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal

import attrs
import orjson
import trio
from structlog.contextvars import bound_contextvars

from netra_ws.errors import AgentError, EventTooLarge, QuotaExceeded
from netra_ws.history.stores.contract import SetRunState
from netra_ws.protocol.events import AgentCompleted, CancelledBy, RunError, RunStatus

from .agent import Agent
from .calling import completed as call_completed
from .failures import find_agent_error, flat, log_failure, log_safely, split, wording
from .inputs import SERVER
from .request import new_id
from .run import Run
from .states import CLOSED, LIVE, RunState, RunStep
from .tracing import begin_run

logger = logging.getLogger(__name__)

#: Seconds between two looks at nurseries that an agent has left open.
LOOK_EVERY_S = 0.005

EndStatus = Literal["success", "cancelled", "error", "timeout"]


@attrs.frozen(kw_only=True)
class Outcome:
    """How a run ended."""

    status: EndStatus
    response: Any = None
    error: RunError | None = None
    cancelled_by: CancelledBy | None = None


SEALED = RunError(
    code="CANCEL_TIMEOUT", message="the agent did not stop in time; nothing more is said in its name", retryable=False
)


async def execute(run: Run, agent: Agent, on_seal: Callable[[], None]) -> None:
    """Run *agent* and write everything up to ``agent_completed``; the caller has called ``run.begin()``.

    *on_seal* is called when the run was sealed: its end is told, but its task is still here.

    Runs as a task of the user's nursery. Only the cancellation of outer scopes and Ctrl-C leave it;
    everything else becomes the run's outcome, also a ``KeyboardInterrupt`` that the agent itself raised.
    """
    worker = _Worker(run, agent)
    with bound_contextvars(**_who(run)):
        run.span = begin_run(run)
        log_safely(logger, logging.INFO, "run started", extra={"trigger": run.request.trigger})
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.work)
                await _keep(run, worker, on_seal)
        finally:
            with trio.CancelScope(shield=True):
                await _end_processes(run)
            if run.state not in CLOSED:
                _close(run, worker.outcome or _interrupted(run))
            run.move(RunStep.FINISH)
            run.settled.set()


def _who(run: Run) -> dict[str, str]:
    """Return what every line of the log says that is written in a run."""
    return {
        "user_id": run.user_id,
        "thread_id": run.thread_id,
        "run_id": run.run_id,
        "agent_name": run.agent_name,
        **({} if run.parent is None else {"parent_run_id": run.parent.run_id}),
    }


def drop(run: Run, by: CancelledBy) -> None:
    """End a queued run that will not start: ``agent_started`` and ``agent_completed`` at once."""
    run.begin()
    run.cancel(by)
    with bound_contextvars(**_who(run)):
        _close(run, _interrupted(run))
    run.move(RunStep.FINISH)
    run.settled.set()


@attrs.define
class _Worker:
    run: Run
    agent: Agent
    outcome: Outcome | None = None
    returned: bool = False
    response: Any = None
    error: BaseException | None = None
    left_open: Sequence[trio.Nursery] = ()
    exited: trio.Event = attrs.field(factory=trio.Event)

    async def work(self) -> None:
        run = self.run
        try:
            with run.scope:
                async with trio.open_nursery() as run.nursery:
                    run.nursery.start_soon(self._call)
        except BaseException as exc:  # Trio's word on what the agent has left open
            self.error = exc if self.error is None else BaseExceptionGroup("and left open", [self.error, exc])
        try:
            await _gone(self.left_open)
            self._judge()
        finally:
            self.exited.set()
            run.stir()

    def _judge(self) -> None:
        run, error = self.run, self.error
        if error is not None:
            self.error = None  # its traceback holds what the agent held
            # Cancelling a run while its child raises gives BaseExceptionGroup[Cancelled, ValueError];
            # SystemExit and asyncio.CancelledError come this way, too. Only Ctrl-C goes on; everything
            # else is this run's outcome. The cancellation of outer scopes needs nobody to carry it.
            # And an agent may raise a Cancelled that it has kept: where nobody cancels, it is an error.
            cancelled = run.cancelled_by is not None or trio.current_effective_deadline() == -math.inf
            ctrl_c, own = split(error, cancelled=cancelled)
            self.outcome = _interrupted(run) if own is None else _failed(run, own)
            if ctrl_c is not None:
                raise ctrl_c
        elif self.returned:
            self.outcome = _succeeded(run, self.response)
        else:
            self.outcome = _failed(run, RuntimeError("the agent's task was ended from within"))

    async def _call(self) -> None:
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # stopped before its first step
            with self.run.span.current():
                self.response = await self.agent(self.run)
            self.returned = True
        except BaseException as exc:
            # Not through the nursery: Trio asks errors for their repr, and splits groups, which an
            # agent's own class may answer with another error. That would be Trio's end, and everybody's.
            self.error = flat(exc)
        finally:
            self.run.nursery = None
            self.left_open = list(trio.lowlevel.current_task().child_nurseries)


async def _gone(nurseries: Sequence[trio.Nursery]) -> None:
    """Wait for the tasks of nurseries that an agent has not left.

    A generator that yields inside one and is dropped does that. Trio has cancelled them and complained
    when the agent's task ended; it does not wait for them.
    """
    with trio.CancelScope(shield=True):
        while any(nursery.child_tasks for nursery in nurseries):  # noqa: ASYNC110  (nobody tells when they are gone)
            await trio.sleep(LOOK_EVERY_S)


async def _keep(run: Run, worker: _Worker, on_seal: Callable[[], None]) -> None:
    """Wait until the agent has exited; when it should and does not, seal the run."""
    try:
        while run.state in LIVE and not worker.exited.is_set():
            with trio.move_on_at(min(_ends_at(run), _idle_at(run))):
                await run.nudge.wait()
            now = trio.current_time()
            if worker.exited.is_set():
                break
            if now >= _ends_at(run):
                run.cancel("timeout")
            elif now >= _idle_at(run):
                run.cancel("idle_timeout")
    finally:
        if not worker.exited.is_set():
            # Whoever closes a context names a reason first, so this is the run that waits for this one, or
            # the whole server going away.
            run.cancel(_from_outside(run))
            with trio.CancelScope(shield=True, deadline=trio.current_time() + run.policy.finalise_s):
                await worker.exited.wait()
        if not worker.exited.is_set() and run.state not in CLOSED:
            _seal(run)
            on_seal()


def _from_outside(run: Run) -> CancelledBy:
    """Return who has cancelled a run that nobody has asked to end."""
    return "shutdown" if run.parent is None else "parent"


def _ends_at(run: Run) -> float:
    parent = run.parent
    if parent is not None and parent.state is RunState.RUNNING and run.ends_at >= parent.ends_at:
        return math.inf  # the parent's keeper ends both: one of them decides
    return math.inf if run.state is RunState.ASKING else run.ends_at


def _idle_at(run: Run) -> float:
    if run.state is RunState.ASKING or any(child.state not in CLOSED for child in run.children.values()):
        return math.inf  # sub-runs have clocks of their own
    # Held up by the store or by its user's other calls, it would be blamed for a silence that is not its own.
    quiet_since = trio.current_time() if run.held_up or run.queueing else run.last_event_at
    return quiet_since + run.request.idle_timeout_s


def _seal(run: Run) -> None:
    for child in list(run.children.values()):  # a sub-run ends before its parent
        if child.state not in CLOSED:
            child.cancel("parent")
            _seal(child)
    run.processes.kill()  # perhaps it is one of them that the agent waits for
    interrupted = _interrupted(run)
    _close(run, attrs.evolve(interrupted, error=SEALED))
    run.move(RunStep.SEAL)
    run.sealed = True
    run.settled.set()
    log_safely(
        logger,
        logging.ERROR,
        "run %s of agent %s did not stop within %s s after %s; it is sealed and counts as stuck",
        run.run_id,
        run.agent_name,
        run.policy.finalise_s,
        run.cancelled_by,
    )


async def _end_processes(run: Run) -> None:
    if not run.processes.any:
        return
    with trio.move_on_after(run.policy.finalise_s) as scope:
        await run.processes.end()
    if scope.cancelled_caught:
        log_safely(logger, logging.ERROR, "run %s left a process that ignores SIGKILL", run.run_id)


def _close(run: Run, outcome: Outcome) -> None:
    """Write what is missing for the grammar of PROTOCOL §3; never waits, so nothing can come between."""
    if run.cancelled_by == "rollback":
        # However it ended at the last moment, its messages are taken back: every client has to know.
        outcome = attrs.evolve(_interrupted(run), error=outcome.error)
    try:
        _close_open(run, outcome)
        _complete(run, outcome)
    except Exception as exc:
        # What agents hand over was checked when they did, but an object may have changed since. The last
        # event is owed all the same; an error from here would leave the crash wall and end the server.
        run.used.clear()
        _complete(run, _failed(run, exc))


def _close_open(run: Run, outcome: Outcome) -> None:
    for asked in run.host.inputs.of(run):
        run.host.inputs.close(asked, "cancelled", None, SERVER)
    for call in list(run.open_calls.values()):
        run.open_calls.pop(call.tool_call_id)
        call.results = None
        run.append(call_completed(run, call, "cancelled"))
    run.speech.end()
    if isinstance(outcome.response, str) and outcome.response and not run.speech.anything:
        # The answer belongs to the conversation, also when the agent only returned it.
        run.speech.write_message(new_id("msg"), outcome.response)


def _complete(run: Run, outcome: Outcome) -> None:
    if run.status:
        return  # written already; what went wrong did so behind it
    status: RunStatus = outcome.status
    completed = AgentCompleted(
        **run.names(),
        status=status,
        success=status == "success",
        final_response=outcome.response,
        error=outcome.error,
        cancelled_by=outcome.cancelled_by,
        usage=run.used or None,
        duration_ms=round((trio.current_time() - run.started_at) * 1000),
        events=run.events + 1,
    )
    ended = SetRunState(user_id=run.identity.user_id, run_id=run.run_id, state=status, at=run.stream.now())
    run.last_seq = run.append(completed, ended, *run.at_close).seq
    run.status, run.response, run.error = status, outcome.response, outcome.error
    error_code = None if outcome.error is None else outcome.error.code
    run.span.end(status, error_code, netra_ws__cancelled_by=outcome.cancelled_by, netra_ws__events=completed.events)
    log_safely(
        logger,
        logging.INFO,
        "run ended",
        extra={
            "status": status,
            "cancelled_by": outcome.cancelled_by,
            "error_code": error_code,
            "duration_ms": completed.duration_ms,
            "events": completed.events,
        },
    )


def _succeeded(run: Run, response: Any) -> Outcome:
    try:
        run.check_size("the final response", response)
    except (TypeError, EventTooLarge) as exc:
        return _failed(run, exc if isinstance(exc, AgentError) else AgentError(f"the final response: {exc}"))
    try:
        return Outcome(status="success", response=orjson.loads(orjson.dumps(response)))
    except orjson.JSONDecodeError:
        return _failed(run, AgentError("the final response is not JSON"))


def _failed(run: Run, exc: BaseException) -> Outcome:
    if run.cancelled_by is not None:
        if not isinstance(exc, QuotaExceeded):
            log_failure(logger, logging.WARNING, exc, "run %s failed while it was cancelled", run.run_id)
        return _interrupted(run)
    told = find_agent_error(exc)
    if told is not None:
        code, text, retryable = wording(told)
        return Outcome(status="error", error=RunError(code=code, message=text, retryable=retryable))
    correlation_id = secrets.token_hex(4)
    log_failure(
        logger, logging.ERROR, exc, "agent %s failed in run %s [%s]", run.agent_name, run.run_id, correlation_id
    )
    message = f"the agent failed; the server's log has it under {correlation_id}"
    return Outcome(status="error", error=RunError(code="AGENT_FAILED", message=message))


def _interrupted(run: Run) -> Outcome:
    by = run.cancelled_by or _from_outside(run)
    if by == "timeout":
        text = f"the run took longer than {run.request.timeout_s:g} s"
        return Outcome(status="timeout", cancelled_by=by, error=RunError(code="TIMEOUT", message=text, retryable=True))
    if by == "idle_timeout":
        text = f"the agent said nothing for {run.request.idle_timeout_s:g} s"
        return Outcome(
            status="timeout", cancelled_by=by, error=RunError(code="IDLE_TIMEOUT", message=text, retryable=True)
        )
    if by == "quota":
        text = f"the agent said more than {run.policy.max_events} events"
        return Outcome(status="cancelled", cancelled_by=by, error=RunError(code="QUOTA_EXCEEDED", message=text))
    return Outcome(status="cancelled", cancelled_by=by)
