"""A run: one execution of an agent, and everything an agent may do with it.

An agent gets a ``Run`` and speaks through it; nothing else can speak in its name. What it says
becomes numbered events on its user's stream, and only there. ``agents/execution.py`` carries a run
from its first event to its last one; the states are in ``agents/states.py``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from types import NoneType
from typing import TYPE_CHECKING, Any

import attrs
import trio

from netra_ws.errors import QuotaExceeded, RunClosed, WrongThread
from netra_ws.history.ledger import Ledger
from netra_ws.history.stores.contract import MessageRow, PutRun, Write
from netra_ws.history.stream import Entry, Stream
from netra_ws.identity import Identity
from netra_ws.protocol.commands import Attachment
from netra_ws.protocol.events import (
    AgentEvent,
    AgentStarted,
    CancelledBy,
    ErrorText,
    Event,
    RunError,
    ToolProgress,
    ToolStatus,
    Usage,
)

from .calling import completed, open_call
from .inputs import EXPIRES_IN, ask
from .job import Job
from .processes import Processes
from .request import Host, RunPolicy, RunRequest, check_name, check_progress, check_size, check_usage, row_of
from .speech import RowMaker, Speech
from .states import CLOSED, LIVE, SPEAKING, TRANSITIONS, RunState, RunStep
from .thread import RunThread
from .tools import ToolCall
from .tracing import Span

if TYPE_CHECKING:
    from .agent import Agent

logger = logging.getLogger(__name__)

#: A run gives way to others after so many events or so many seconds, whichever comes first.
BURST_EVENTS = 16
BURST_S = 0.001


@attrs.define
class Family:
    """What all runs that came of one have together.

    Attributes:
        events: How many they have told.
        born: How many sub-runs there were.
        open: How many of them have not ended.
    """

    events: int = 0
    born: int = 0
    open: int = 0


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
        response: Its final response, when that is written.
        error: Why it failed, when that is written.
        host: The user's context.
        parent: The run that has delegated to this one.
        span: Its span of OpenTelemetry.
        family: What counts for the run that a user has started and all that came of it together.
        children: Sub-runs that have not ended.
        at_close: Rows to be written together with it.
        settled: Set when the closing events are written and the task is gone, or the run is sealed.
        held_up: Whether it waits for the store; its silence is not its own then.
        queueing: How many of its calls wait for their place at a tool; likewise.
        ends_at: When its own time is over, by Trio's clock; that stands still while it waits for a person.
        nursery: Where its sub-runs live; None before its agent has begun and behind its end.
    """

    request: RunRequest
    identity: Identity
    policy: RunPolicy
    stream: Stream
    ledger: Ledger
    host: Host
    parent: Run | None = None
    thread: RunThread = attrs.field(init=False)
    state: RunState = RunState.QUEUED
    status: str = ""
    sealed: bool = False
    last_seq: int = 0
    response: Any = None
    error: RunError | None = None
    at_close: tuple[Write, ...] = ()
    cancelled_by: CancelledBy | None = None
    events: int = 0
    started_seq: int = 0
    started_at: float = 0.0
    ends_at: float = float("inf")
    last_event_at: float = 0.0
    first_word_at: float | None = None
    held_up: bool = False
    queueing: int = 0
    nursery: trio.Nursery | None = None
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
    span: Span = attrs.field(factory=Span)
    family: Family = attrs.field(init=False)
    children: dict[str, Run] = attrs.field(factory=dict)
    _holds: int = 0
    _held_at: float = 0.0
    _steered: list[str] = attrs.field(factory=list)
    _burst: int = 0
    _slice_ends: float = 0.0
    _trio_thread: int = attrs.field(factory=threading.get_ident)

    def __attrs_post_init__(self) -> None:
        self.thread = RunThread(self)
        self.speech = Speech(self, self.policy)
        self.processes = Processes(self.run_id)
        self.family = Family() if self.parent is None else self.parent.family

    def __repr__(self) -> str:
        return f"<Run {self.run_id} of {self.agent_name} {self.state.name}>"

    # What was asked.

    @property
    def user_id(self) -> str:
        return self.identity.user_id

    @property
    def deadline(self) -> float:
        """By when it has to end, by Trio's clock, as it looks now: waiting for a person puts that off."""
        held_s = trio.current_time() - self._held_at if self._holds else 0.0
        own = self.ends_at + held_s
        return own if self.parent is None else min(own, self.parent.deadline)

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

    @property
    def converses(self) -> bool:
        """Whether what it says belongs to the conversation; what a sub-run says belongs to its parent."""
        return self.parent is None

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
            await self.pause()

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
        check_progress(progress)
        if type(step) not in (str, int, NoneType):
            raise TypeError(f"step: expected text or a whole number, got {type(step).__name__}")
        await self.step_boundary(delta)
        self.speech.think(reasoning, delta=delta, step=step, progress=progress)
        await self.pause()

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
        await self.pause()

    def job(self, job_id: str) -> Job:
        """Return a job, a stream of its own that several users may be granted; nothing is opened yet.

        Args:
            job_id: 1 to 128 of the characters ``A-Za-z0-9_.:-``; one namespace for all users.

        Raises:
            InvalidArgument: *job_id* is none.
            RunClosed: The run has ended.
        """
        self.check_open()
        return self.host.job(job_id, self)

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
            TypeError: A name that is no text, a count that is no whole number, a cost that is no number.
        """
        check_usage(provider, model, input_tokens, output_tokens, cost_usd)
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

    def tool(
        self, name: str, parameters: Mapping[str, Any] | None = None, /, *, timeout_s: float | None = None, **more: Any
    ) -> AbstractAsyncContextManager[ToolCall]:
        """Do one piece of work under a name: ``tool_executing``, the block, ``tool_completed``, always a pair.

        Parameters are shown to the user; give them as a mapping, by keyword, or both. The block sets
        ``call.results`` to any JSON value. An exception that leaves the block is told and goes on.
        What is used often is better declared once, by ``@netra_ws.tool``.

        Args:
            timeout_s: The block is cancelled after so many seconds; waiting for the user does not count.

        Raises:
            TooSlowError: The block took longer than *timeout_s*.
            EventTooLarge: Parameters or results are above ``limits.max_event_bytes``.
            AgentError: ``QUOTA_EXCEEDED``: ``MAX_OPEN_CALLS`` are open already; nothing was told of this one.
            RunClosed: The run has ended.
        """
        return open_call(self, name, {**(parameters or {}), **more}, timeout_s)

    def complete_call(self, call: ToolCall, status: ToolStatus, error: ErrorText | None) -> None:
        """Write the second event of a pair, unless it is there already."""
        if self.open_calls.pop(call.tool_call_id, None) is None or self.state not in SPEAKING:
            return
        self.tell(completed(self, call, status, error), closing=True)

    async def tell_progress(self, call: ToolCall, progress: float | None, message: str | None) -> None:
        """Tell how far a call is."""
        check_progress(progress)
        if not isinstance(message, str | None):
            raise TypeError(f"message: expected text, got {type(message).__name__}")
        self.check_size("the progress", message)
        self.tell(ToolProgress(**self.names(), tool_call_id=call.tool_call_id, progress=progress, message=message))
        await self.pause()

    async def ask(
        self,
        prompt: str,
        *,
        choices: Sequence[str] | None = None,
        schema: type | Mapping[str, Any] | None = None,
        expires_in: float = EXPIRES_IN,
    ) -> Any:
        """Ask the user, and wait for the answer; it may come from any of their connections, also after reconnects.

        Meanwhile the clocks of this run, of those it belongs to, and of the tool calls around it stand
        still, and a lost connection does not end the run before the question expires. A restart of the
        server does: the run is lost then, and the question closed.

        Args:
            choices: The answers that there are, at most 100; clients show buttons.
            schema: What an answer must look like; clients make a form of it. An attrs class, or any type
                that ``@tool`` takes, or a JSON Schema (draft 2020-12) without ``pattern``,
                ``patternProperties`` and ``unevaluated…``: a regular expression can take for ever, so match
                the answer yourself. Without both, an answer is text.
            expires_in: Seconds until nobody may answer any more.

        Returns:
            The answer: one of *choices*, an object of the class, or the JSON value.

        Raises:
            InputDeclined: The user does not want to answer, or the time is over; ``status`` says which.
            AgentError: ``QUOTA_EXCEEDED``: the user has 20 open questions.
            EventTooLarge: The question is above ``limits.max_event_bytes``.
            ValueError: It is no question that can be asked.
            RunClosed: The run has ended.

        *Cancellation:* the question is closed as cancelled.
        """
        self.check_open()
        for run in self.line():
            if run._stop_after_step:  # its user has said that they want no more of it
                run.cancel("user")
        await self.step_boundary()
        await self.pause()
        self.speech.end_thought()
        self.speech.keep()
        return await ask(self, prompt, choices, schema, expires_in)

    async def delegate(
        self,
        agent: str | Agent,
        text: str,
        *,
        context: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Have another agent do a part of the work, as a sub-run, and return its final response.

        Its events are told like any others and name this run as their parent; it ends before this one,
        and is cancelled with it, or with the task that waits here. For several at once, wait for each in
        a task of its own. What it says is no message of the conversation.

        Args:
            agent: The name of one that the server knows, or an async function.
            text: What it is asked.
            context: Its ``run.context``.
            timeout_s: Seconds for it, at most those of this run.

        Raises:
            DelegateFailed: It ended otherwise than with success; ``status`` and ``code`` say how.
            AgentError: ``UNKNOWN_AGENT``; ``QUOTA_EXCEEDED``: more than 5 levels, 16 sub-runs at once, or 100 in all.
            RunClosed: The run has ended.
        """
        from .delegation import delegate  # it executes runs, so it stands above this module

        self.check_open()
        await self.step_boundary()
        await self.pause()
        self.speech.end_thought()
        return await delegate(self, agent, text, context, timeout_s)

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

    def line(self) -> list[Run]:
        """Return this run and those that it was delegated by, the one that the user has started last."""
        found, run = [self], self.parent
        while run is not None:
            found.append(run)
            run = run.parent
        return found

    def born(self, request: RunRequest) -> Run:
        """Return a sub-run that has begun; its end is told by ``over``."""
        child = Run(request, self.identity, self.policy, self.stream, self.ledger, self.host, self)
        self.children[child.run_id] = child
        self.family.born += 1
        self.family.open += 1
        with self.stream.step() as step:
            # Before its first event, so that no start of a server can miss it.
            step.write(PutRun(row=row_of(request, self.user_id, self.stream.last, self.stream.now())))
        child.begin()
        if self.state is RunState.STOPPING:
            child.cancel("parent")
        return child

    def over(self, child: Run) -> None:
        """Count a sub-run that has ended."""
        del self.children[child.run_id]
        self.family.open -= 1
        self.last_event_at = trio.current_time()
        self.stir()
        self.host.run_ended(child)

    def hold(self) -> None:
        """Let the clocks stand still, while the run waits for a person; ``release`` exactly once after it."""
        self._holds += 1
        if self._holds == 1:
            self._held_at = trio.current_time()
            if self.state is RunState.RUNNING:
                self.move(RunStep.ASK)
            self._stir_all()

    def release(self) -> None:
        """Let the clocks go on."""
        self._holds -= 1
        if self._holds:
            return
        self.last_event_at = trio.current_time()
        self.ends_at += self.last_event_at - self._held_at
        if self.state is RunState.ASKING:
            self.move(RunStep.ANSWER)
        self._stir_all()
        self.host.answered()

    def _stir_all(self) -> None:
        self.stir()
        for child in self.children.values():  # whose time is this one's
            child.stir()

    def stir(self) -> None:
        """Let whoever watches the run look at it again."""
        self.nudge.set()
        self.nudge = trio.Event()

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
        self.ends_at = self.started_at + self.request.timeout_s
        started = AgentStarted(
            **self.names(),
            message_id=self.request.message_id,
            trigger=self.request.trigger,
            parent_tool_call_id=self.request.parent_tool_call_id,
        )
        self.started_seq = self.append(started).seq

    def cancel(self, by: CancelledBy) -> None:
        """Ask the run to end; the first who asks is named in ``agent_completed``. Returns at once.

        Raises:
            WrongThread: Called outside the server's Trio thread.
        """
        self.check_thread()
        if self.state not in LIVE:
            return
        self.cancelled_by = by
        self.cancelled_at = trio.current_time()
        self.move(RunStep.STOP)
        self.scope.cancel()
        self.stir()

    def cancel_after_step(self) -> None:
        """Ask the run to end when its current tool call is done, or before the next step; at once while it asks."""
        self._stop_after_step = True
        if self.state is RunState.ASKING:
            self.cancel("user")

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
        return check_size(what, value, self.policy.max_event_bytes, already)

    def tell(self, event: Event, *, closing: bool = False) -> Entry:
        """Append an event of this run; *closing* ones are past its bound on events.

        Raises:
            RunClosed: The run has ended.
            QuotaExceeded: It has said too much, and is being ended for it.
        """
        self.check_open()
        if not closing:
            self._check_quota()
        return self.append(event)

    def spoke_elsewhere(self) -> None:
        """Count an event that this run says on another stream, before it is said.

        Raises:
            RunClosed, QuotaExceeded: As ``tell``.
        """
        self.check_open()
        self._check_quota()
        self.family.events += 1
        self.last_event_at = trio.current_time()

    def _check_quota(self) -> None:
        if self.family.events >= self.policy.max_events:
            self.cancel("quota")
            raise QuotaExceeded(f"more than {self.policy.max_events} events in one run")

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
        self.family.events += 1
        self.last_event_at = trio.current_time()
        if self.events == 2:
            self.first_word_at = self.last_event_at

    async def step_boundary(self, within: bool = False) -> None:
        """End here where somebody wants the run to end behind its step; *within* one it goes on."""
        if self._stop_after_step and not within and not self.open_calls:
            self.cancel("user")
        await trio.lowlevel.checkpoint_if_cancelled()

    @contextmanager
    def waiting_for_the_store(self) -> Iterator[None]:
        """Let nobody take the silence of the block for that of the run."""
        self.held_up = True
        try:
            yield
        finally:
            self.held_up = False
            self.last_event_at = trio.current_time()

    async def pause(self) -> None:
        """Give way behind an event: at least every 16 events or every millisecond; wait while the store is behind."""
        self._burst += 1
        if self._burst < BURST_EVENTS and time.perf_counter() < self._slice_ends and not self.stream.full:
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        if self.stream.full:
            with self.waiting_for_the_store():
                await self.stream.wait_for_room()
        await trio.lowlevel.checkpoint()
        self._burst = 0
        self._slice_ends = time.perf_counter() + BURST_S
