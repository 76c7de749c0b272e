"""A run: one execution of an agent, and everything an agent may do with it.

An agent gets a ``Run`` and speaks through it; nothing else can speak in its name. What it says
becomes numbered events on its user's stream, and only there. ``agents/execution.py`` carries a run
from its first event to its last one; the states are in ``agents/states.py``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, TypeVarTuple

import attrs
import orjson
import trio

from netra_ws.errors import AgentError, EventTooLarge, QuotaExceeded, RunClosed, WrongThread
from netra_ws.history.ledger import Ledger
from netra_ws.history.stores.contract import MessageRow, Write
from netra_ws.history.stream import Entry, Stream
from netra_ws.identity import Identity
from netra_ws.protocol.commands import Attachment
from netra_ws.protocol.events import (
    AgentEvent,
    AgentStarted,
    CancelledBy,
    ErrorText,
    Event,
    ToolCompleted,
    ToolExecuting,
    ToolProgress,
    ToolStatus,
    Usage,
)

from .processes import Processes
from .request import RunPolicy, RunRequest, new_id
from .speech import RowMaker, Speech
from .states import CLOSED, SPEAKING, TRANSITIONS, RunState, RunStep
from .tools import ToolCall, judge

logger = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: A run gives way to others after so many events or so many seconds, whichever comes first.
BURST_EVENTS = 16
BURST_S = 0.001
#: Tool calls of one run at the same time.
MAX_OPEN_CALLS = 100
#: Characters of a tool's or an event's name.
MAX_NAME = 256


@attrs.define(repr=False)
class RunThread:
    """The conversation of a run, ``run.thread``; called with a function, it runs blocking code."""

    _run: Run

    @property
    def id(self) -> str:
        return self._run.request.thread_id

    async def history(self, limit: int = 50) -> list[MessageRow]:
        """Return the last messages of this conversation, oldest first, the one that started the run included."""
        run = self._run
        return await run.ledger.messages(run.identity.user_id, self.id, limit, run.stream.visible)

    async def __call__(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run blocking code in a worker thread of the server's bounded pool, of which each user has a share.

        The thread may emit through ``trio.from_thread.run(run.say, …)``. Code that wants to be
        stoppable calls ``trio.from_thread.check_cancelled()`` now and then.

        *Cancellation:* waits for the thread. One that does not end within ``finalise_s`` gets the
        run sealed: the stop is answered with ``CANCEL_TIMEOUT``, and the run counts as stuck until
        the thread has ended.
        """
        self._run.check_thread()
        policy, token = self._run.policy, object()
        if policy.user_threads is not None:
            # Whoever waits for their own share holds nothing of the common pool meanwhile.
            await policy.user_threads.acquire_on_behalf_of(token)
        try:
            return await trio.to_thread.run_sync(fn, *args, limiter=policy.threads)
        finally:
            if policy.user_threads is not None:
                policy.user_threads.release_on_behalf_of(token)


@attrs.define(eq=False, repr=False)
class Run:
    """One execution of an agent, for the agent's hands.

    Attributes:
        request: What was asked.
        identity: Whose run it is.
        cancelled_by: Who asked it to end first; None while nobody has.
        status: The final one; empty until the closing events are written.
        sealed: Whether they were written while its code was still there.
        last_seq: Seq of its ``agent_completed``.
        at_close: Rows to be written together with it.
        settled: Set when the closing events are written and the task is gone, or the run is sealed.
        held_up: Whether it waits for the store; its silence is not its own then.
    """

    request: RunRequest
    identity: Identity
    policy: RunPolicy
    stream: Stream
    ledger: Ledger
    thread: RunThread = attrs.field(init=False)
    state: RunState = RunState.QUEUED
    status: str = ""
    sealed: bool = False
    last_seq: int = 0
    at_close: tuple[Write, ...] = ()
    cancelled_by: CancelledBy | None = None
    events: int = 0
    started_seq: int = 0
    started_at: float = 0.0
    deadline: float = float("inf")
    last_event_at: float = 0.0
    first_word_at: float | None = None
    held_up: bool = False
    cancelled_at: float | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    nudge: trio.Event = attrs.field(factory=trio.Event)
    settled: trio.Event = attrs.field(factory=trio.Event)
    processes: Processes = attrs.field(init=False)
    open_calls: dict[str, ToolCall] = attrs.field(factory=dict)
    used: list[Usage] = attrs.field(factory=list)
    speech: Speech = attrs.field(init=False)
    _usage_bytes: int = 0
    _stop_after_step: bool = False
    steerer: Identity | None = None
    _steered: list[str] = attrs.field(factory=list)
    _burst: int = 0
    _slice_ends: float = 0.0
    _trio_thread: int = attrs.field(factory=threading.get_ident)

    def __attrs_post_init__(self) -> None:
        self.thread = RunThread(self)
        self.speech = Speech(self, self.policy)
        self.processes = Processes(self.run_id)

    def __repr__(self) -> str:
        return f"<Run {self.run_id} of {self.agent_name} {self.state.name}>"

    # What was asked.

    @property
    def user_id(self) -> str:
        return self.identity.user_id

    @property
    def run_id(self) -> str:
        return self.request.run_id

    @property
    def thread_id(self) -> str:
        return self.request.thread_id

    @property
    def agent_name(self) -> str:
        return self.request.agent_name

    @property
    def text(self) -> str:
        """What the user asked."""
        return self.request.text

    @property
    def context(self) -> Mapping[str, Any]:
        """The ``context`` object of the command; empty when there was none."""
        return self.request.context

    @property
    def attachments(self) -> Sequence[Attachment]:
        return self.request.attachments

    @property
    def jsonl_logs(self) -> str | Sequence[Mapping[str, Any]] | None:
        """Usage logs that came along: a text of JSON lines, a list of objects, or None."""
        return self.request.jsonl_logs

    # Speaking.

    @property
    def said(self) -> str:
        """Text of the current message so far."""
        return self.speech.said

    async def say(self, piece: str) -> None:
        """Append *piece* to the current message; readers get it as a delta.

        A schedule point at least every 16 events or every millisecond; in between only a cancelled
        run stops here. Waits while the store is behind; never for a slow reader. A message that
        grows above ``limits.max_response_bytes`` is ended, and the text goes on in a new one.

        Raises:
            RunClosed: The run has ended.
        """
        self.check_open()
        for _ in self.speech.say(piece):
            await self._pause()

    def end_message(self) -> None:
        """End the current message; the next ``say`` begins another one."""
        self.speech.end_message()

    async def think(
        self, reasoning: str, *, delta: bool = False, step: str | int | None = None, progress: float | None = None
    ) -> None:
        """Tell what the agent is thinking.

        Args:
            reasoning: A whole thought, or with *delta* the next piece of the current one.
            delta: Stream the thought; the next whole thought, tool or message ends it.
            step: Where in its plan the agent is.
            progress: How far it is, 0 to 1.

        Raises:
            EventTooLarge: The thought is above ``limits.max_event_bytes``.
            RunClosed: The run has ended.
        """
        self.check_open()
        await self._step_boundary(delta)
        self.speech.think(reasoning, delta=delta, step=step, progress=progress)
        await self._pause()

    async def emit(self, name: str, value: Any) -> None:
        """Say something of the agent's own: an ``agent_event`` with any JSON value.

        Raises:
            EventTooLarge: The value is above ``limits.max_event_bytes``.
            TypeError: It is no JSON value.
            RunClosed: The run has ended.
        """
        check_name("the event's name", name)
        self.check_size("the value", value)
        self.tell(AgentEvent(**self.names(), name=name, value=value))
        await self._pause()

    def usage(
        self,
        provider: str,
        model: str,
        *,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cost_usd: float | None = None,
    ) -> None:
        """Note what the run used of a model; told with ``agent_completed``. None means not known, not zero.

        Raises:
            EventTooLarge: All usage of the run together is above ``limits.max_event_bytes``.
            TypeError: A value that JSON cannot say, such as a ``Decimal``.
        """
        used = Usage(
            provider=provider,
            model=model,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cost_usd=cost_usd,
        )
        # Checked here, where the agent can be told: agent_completed has to be written in any case.
        self._usage_bytes += self.check_size("the usage", attrs.astuple(used), self._usage_bytes)
        self.used.append(used)

    def steered(self) -> list[str]:
        """Return the texts that the user handed in since the last call."""
        texts, self._steered = self._steered, []
        return texts

    # Working.

    @asynccontextmanager
    async def tool(
        self, name: str, parameters: Mapping[str, Any] | None = None, /, *, timeout_s: float | None = None, **more: Any
    ) -> AsyncIterator[ToolCall]:
        """Do one piece of work under a name: ``tool_executing``, the block, ``tool_completed``, always a pair.

        Parameters are shown to the user; give them as a mapping, by keyword, or both. The block sets
        ``call.results`` to any JSON value. An exception that leaves the block is told and goes on.

        Args:
            timeout_s: The block is cancelled after so many seconds.

        Raises:
            TooSlowError: The block took longer than *timeout_s*.
            EventTooLarge: Parameters or results are above ``limits.max_event_bytes``.
            AgentError: ``QUOTA_EXCEEDED``: ``MAX_OPEN_CALLS`` are open already; nothing was told of this one.
            RunClosed: The run has ended.
        """
        self.check_open()
        await self._step_boundary()
        if len(self.open_calls) >= MAX_OPEN_CALLS:
            text = f"a run may have {MAX_OPEN_CALLS} tool calls open at the same time"
            raise AgentError(text, code="QUOTA_EXCEEDED")
        check_name("the tool's name", name)
        shown = {**(parameters or {}), **more}
        self.check_size("the parameters", shown)
        self.speech.end_thought()
        call = ToolCall(new_id("call"), name, self._progress)
        self.tell(
            ToolExecuting(
                **self.names(), tool_call_id=call.tool_call_id, tool_name=name, parameters=shown, timeout_s=timeout_s
            )
        )
        self.open_calls[call.tool_call_id] = call
        try:
            await self._pause()
            patience_s = float("inf") if timeout_s is None else timeout_s
            with trio.CancelScope(deadline=trio.current_time() + patience_s) as scope:
                yield call
            if scope.cancelled_caught:
                raise trio.TooSlowError(f"{name} took longer than {timeout_s} s")
            self.check_size("the results", call.results)
        except BaseException as exc:
            call.results = None
            self.complete_call(call, *judge(exc, stopping=self.scope.cancel_called))
            raise
        self.complete_call(call, "ok", None)
        await self._pause()

    def complete_call(self, call: ToolCall, status: ToolStatus, error: ErrorText | None) -> None:
        """Write the second event of a pair, unless it is there already."""
        if self.open_calls.pop(call.tool_call_id, None) is None or self.state not in SPEAKING:
            return
        self.tell(
            ToolCompleted(
                **self.names(),
                tool_call_id=call.tool_call_id,
                tool_name=call.name,
                status=status,
                success=status == "ok",
                results=call.results,
                error=error,
                duration_ms=round((trio.current_time() - call.started_at) * 1000),
            ),
            closing=True,
        )

    async def _progress(self, call: ToolCall, progress: float | None, message: str | None) -> None:
        self.check_size("the progress", message)
        self.tell(ToolProgress(**self.names(), tool_call_id=call.tool_call_id, progress=progress, message=message))
        await self._pause()

    async def process(self, command: Sequence[str] | str, **options: Any) -> trio.Process:
        """Start a subprocess in a process group of its own; at the end of the run all that came of it is killed.

        Options are those of ``trio.lowlevel.open_process``, such as ``stdout=subprocess.PIPE``.
        """
        self.check_open()
        return await self.processes.start(command, **options)

    async def search_history(self, query: str, limit: int = 10) -> list[MessageRow]:
        """Return the user's own messages, of all threads, that contain every word of *query*."""
        self.check_open()
        return await self.ledger.search(self.identity.user_id, query, limit)

    # For those who run it.

    def move(self, step: RunStep) -> None:
        """Take a step of the state table.

        Raises:
            KeyError: The table does not allow it; a bug.
        """
        self.state = TRANSITIONS[self.state][step]

    def begin(self) -> None:
        """Write ``agent_started`` and start the clocks."""
        self.move(RunStep.START)
        self.started_at = self.last_event_at = trio.current_time()
        self.deadline = self.started_at + self.request.timeout_s
        entry = self.tell(
            AgentStarted(**self.names(), message_id=self.request.message_id, trigger=self.request.trigger)
        )
        self.started_seq = entry.seq

    def cancel(self, by: CancelledBy) -> None:
        """Ask the run to end; the first who asks is named in ``agent_completed``. Returns at once.

        Raises:
            WrongThread: Called outside the server's Trio thread.
        """
        self.check_thread()
        if self.state is not RunState.RUNNING:
            return
        self.cancelled_by = by
        self.cancelled_at = trio.current_time()
        self.move(RunStep.STOP)
        self.scope.cancel()
        self.nudge.set()

    def cancel_after_step(self) -> None:
        """Ask the run to end when its current tool call is done, or before the next step."""
        self._stop_after_step = True

    @property
    def unread(self) -> int:
        """How many steered texts the agent has not read."""
        return len(self._steered)

    def steer(self, text: str, identity: Identity) -> None:
        """Hand *text* to the running agent; it finds it in ``steered()``, or the next run begins with it."""
        self._steered.append(text)
        self.steerer = identity

    def append(self, event: Event, *rows: Write) -> Entry:
        """Append an event with its rows, whatever the bounds say."""
        entry = self.stream.append(event, *rows)
        self._noted()
        return entry

    def names(self) -> dict[str, Any]:
        """Return the fields that every event of this run has."""
        request = self.request
        return {
            "thread_id": request.thread_id,
            "run_id": request.run_id,
            "agent_name": request.agent_name,
            "parent_run_id": request.parent_run_id,
        }

    def check_thread(self) -> None:
        """Raise ``WrongThread`` outside the server's Trio thread."""
        if threading.get_ident() != self._trio_thread:
            raise WrongThread("use trio.from_thread.run(run.say, …) from a worker thread")

    def check_open(self) -> None:
        """Raise ``RunClosed`` when the run has ended."""
        self.check_thread()
        if self.state not in SPEAKING:
            raise RunClosed(f"{self.run_id} has ended" if self.state in CLOSED else f"{self.run_id} has not begun")

    def check_size(self, what: str, value: Any, already: int = 0) -> int:
        """Return the size of *value* in an event that carries *already* so many bytes.

        Raises:
            EventTooLarge, TypeError: No event can carry it.
        """
        size = len(orjson.dumps([value])) - 2  # in a list, because it will stand one level deep: that is bounded, too
        if already + size > self.policy.max_event_bytes:
            raise EventTooLarge(what, already + size, self.policy.max_event_bytes)
        return size

    def tell(self, event: Event, *, closing: bool = False) -> Entry:
        """Append an event of this run; *closing* ones are past its bound on events.

        Raises:
            RunClosed: The run has ended.
            QuotaExceeded: It has said too much, and is being ended for it.
        """
        self.check_open()
        if self.events >= self.policy.max_events and not closing:
            self.cancel("quota")
            raise QuotaExceeded(f"more than {self.policy.max_events} events in one run")
        return self.append(event)

    def commit(self, event: Event, row: RowMaker) -> Entry:
        """Append a closing event together with the row that is made of its entry."""
        self.check_open()
        with self.stream.step() as step:
            entry = step.append(event)
            step.write(row(entry))
        self._noted()
        return entry

    def _noted(self) -> None:
        self.events += 1
        self.last_event_at = trio.current_time()
        if self.events == 2:
            self.first_word_at = self.last_event_at

    async def _step_boundary(self, within: bool = False) -> None:
        if self._stop_after_step and not within and not self.open_calls:
            self.cancel("user")
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _pause(self) -> None:
        self._burst += 1
        if self._burst < BURST_EVENTS and time.perf_counter() < self._slice_ends and not self.stream.full:
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        if self.stream.full:
            self.held_up = True
            try:
                await self.stream.wait_for_room()
            finally:
                self.held_up = False
                self.last_event_at = trio.current_time()
        await trio.lowlevel.checkpoint()
        self._burst = 0
        self._slice_ends = time.perf_counter() + BURST_S


def check_name(what: str, name: str) -> None:
    """Raise ``EventTooLarge`` for a name of more than ``MAX_NAME`` characters."""
    if len(name) > MAX_NAME:
        raise EventTooLarge(what, len(name), MAX_NAME)
