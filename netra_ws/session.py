"""What a client's session knows between its sockets: position, unanswered commands, runs it follows, its jobs.

No socket and no clock here, so every rule can be tested by handing frames in. ``client.py`` carries
a ``Conversation`` over as many sockets as it takes.
"""

from __future__ import annotations

import secrets
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Any, Literal, Self, cast

import attrs
import trio

from netra_ws.errors import (
    AlreadyAnswered,
    CommandFailed,
    ConnectionLost,
    Rejected,
    SessionError,
    UnfitAnswer,
    UnknownInput,
)
from netra_ws.joined import JoinedJobs, farewell
from netra_ws.pending import PendingInputs
from netra_ws.protocol.closing import CloseCode, may_reconnect
from netra_ws.protocol.codec import Heard, encode_command
from netra_ws.protocol.commands import Command, ConnectJob, DisconnectJob, InputResponse, Resume, Start
from netra_ws.protocol.events import AgentCompleted, AgentMessage, AgentThinking, MessageReceived, RunEvent
from netra_ws.protocol.events import ThreadDeleted as ThreadDeletedEvent
from netra_ws.protocol.replies import (
    Ack,
    ConnectionEstablished,
    Draining,
    Error,
    JobConnected,
    JobDisconnected,
    Position,
    ReplayCompleted,
    StreamReset,
)
from netra_ws.protocol.values import CommandId

#: Events that wait for one reader; beyond it the queue's policy decides.
QUEUE_LIMIT = 4096
#: What an answer to an input may be refused with; other codes say nothing about the input.
_REFUSED_ANSWERS: Mapping[str, type[CommandFailed]] = {
    "ALREADY_ANSWERED": AlreadyAnswered,
    "NOT_FOUND": UnknownInput,
    "INVALID_MESSAGE": UnfitAnswer,
}
#: HTTP refusals of the range 400 to 499 that are worth another try.
_LATER = frozenset({408, 425, 429})

Policy = Literal["reset", "fail"]


class SessionState(Enum):
    """Where a session stands; ``TRANSITIONS`` says what may follow."""

    CONNECTING = "connecting"
    OPEN = "open"
    WAITING = "waiting"
    CLOSED = "closed"


TRANSITIONS: Mapping[SessionState, frozenset[SessionState]] = {
    SessionState.CONNECTING: frozenset({SessionState.OPEN, SessionState.WAITING, SessionState.CLOSED}),
    SessionState.OPEN: frozenset({SessionState.WAITING, SessionState.CLOSED}),
    SessionState.WAITING: frozenset({SessionState.CONNECTING, SessionState.CLOSED}),
    SessionState.CLOSED: frozenset(),
}


@attrs.frozen(kw_only=True)
class StateChange:
    """What ``on_state`` is told.

    Attributes:
        reason: Why, for people; empty where it goes without saying.
        attempt: Connection attempts since the last stable connection, from 0.
        delay_s: Seconds until the next attempt, when ``state`` is WAITING.
        error: What the session ended with, when it is CLOSED by somebody else than its user.
        welcome: What the server said first, when ``state`` is OPEN.
    """

    state: SessionState
    reason: str = ""
    attempt: int = 0
    delay_s: float | None = None
    error: SessionError | None = None
    welcome: ConnectionEstablished | None = None


@attrs.frozen(kw_only=True)
class Ended:
    """How one connection ended.

    Attributes:
        code: Close code, or 1006 when there was none.
        status: HTTP status when the connection was refused before it began, else None.
        word: The refusal's word, such as ``TOKEN_EXPIRED``.
        retry_after_s: How long the server wants to be left alone.
    """

    reason: str
    code: int = 1006
    status: int | None = None
    word: str = ""
    retry_after_s: float = 0.0


def backoff_delay(attempt: int, random: Callable[[], float], base_s: float = 0.5, cap_s: float = 30.0) -> float:
    """Return the seconds to wait before attempt number *attempt* (from 0).

    Anywhere between nothing and the doubled span, so that clients that were cut off together do not
    come back together ("full jitter", M. Brooker, AWS Architecture Blog, 2015). *random* returns a
    number from 0 (inclusive) to 1 (exclusive).
    """
    return random() * min(cap_s, base_s * 2.0 ** min(attempt, 32))


def refusal(ended: Ended, *, renewable: bool) -> Rejected | None:
    """Return the error that ends a session for good, or None when connecting again makes sense.

    *renewable* says that the next attempt would come with a new token.
    """
    if ended.status is not None:
        if 300 <= ended.status < 500 and ended.status not in _LATER:
            return Rejected(ended.status, ended.word, ended.reason)
        return None
    if ended.code == CloseCode.TOKEN_EXPIRED and not renewable:
        return Rejected(None, "TOKEN_EXPIRED", "the token has expired, and there is no function that gives a new one")
    if not may_reconnect(ended.code):
        return Rejected(None, str(ended.code), ended.reason or "the server closed the connection for good")
    return None


def message_text(text: str, event: AgentMessage | AgentThinking) -> str:
    """Return a message's text after *event*: a ``delta`` is appended, a ``full`` replaces what was there.

    Keep one text for each ``message_id``, and one for the open thought.
    """
    piece = event.reasoning if isinstance(event, AgentThinking) else event.content
    return text + piece if event.phase == "delta" else piece


@attrs.define(eq=False)
class EventQueue:
    """A bounded queue of ``Heard``, read with ``async for``; ends with the session or with what it follows.

    When more than *limit* events wait, *policy* decides. ``reset``: all of them are dropped and one
    ``stream_reset`` with the reason ``overflow`` takes their place, after which the reader reloads
    what it shows. ``fail``: the reader gets a ``SessionError``.

    With *job_id* it holds what is said in that job alone, and ends with it.
    """

    limit: int = QUEUE_LIMIT
    policy: Policy = "reset"
    job_id: str | None = None
    _waiting: deque[Heard] = attrs.field(factory=deque)
    _news: trio.Event = attrs.field(factory=trio.Event)
    _over: bool = False
    _error: SessionError | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, heard: Heard) -> None:
        """Add an event; never waits."""
        if self._over:
            return
        if len(self._waiting) >= self.limit:
            self._waiting.clear()
            if self.policy == "fail":
                self.end(SessionError(f"more than {self.limit} events were waiting to be read"))
                return
            self._waiting.append(_overflow(heard, self.job_id))
        self._waiting.append(heard)
        self._wake()

    def wants(self, heard: Heard) -> bool:
        """Whether *heard* is for this queue's reader."""
        return self.job_id is None or heard.fields.get("job_id") == self.job_id

    def take_over(self, other: EventQueue) -> None:
        """Add what waits in *other* and is for this reader, or says that something is missing there."""
        for heard in other._waiting:
            if self.wants(heard) or heard.fields.get("reason") == _OVERFLOW:
                self.push(heard)

    def end(self, error: SessionError | None = None) -> None:
        """Let the reader finish what is waiting; then it ends, or gets *error*."""
        if not self._over:
            self._over = True
            self._error = error
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Heard:
        """*Cancellation:* nothing is lost."""
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if self._over:
                raise StopAsyncIteration
            await self._news.wait()
        return self._waiting.popleft()


#: No reason of the protocol: the server has lost nothing, the queue has.
_OVERFLOW = "overflow"


def _overflow(heard: Heard, job_id: str | None) -> Heard:
    seq = heard.stamp.seq if heard.stamp is not None else 0
    message = StreamReset(epoch="", seq=seq, reason=cast("Any", _OVERFLOW), job_id=job_id)
    fields: dict[str, Any] = {"type": StreamReset.type, "epoch": "", "seq": seq, "reason": _OVERFLOW}
    if job_id is not None:
        fields["job_id"] = job_id
    return Heard(type=StreamReset.type, fields=fields, message=message, stamp=None, reply_to=None)


@attrs.define(eq=False)
class Run:
    """One run of an agent as its starter sees it.

    ``async for event in run`` gives each of its events once, from its ``user_message`` to its
    ``agent_completed``; a ``stream_reset`` among them says that some could not be kept. Events of its
    sub-runs, and of theirs, are among them: ``run_id`` tells whose an event is, ``parent_run_id`` who
    started that run. The end of a sub-run ends nothing here.

    Attributes:
        message_id: Id of the text that was sent.
        disposition: What became of it: ``started``, ``queued`` or ``steered``.
    """

    run_id: str
    thread_id: str
    message_id: str
    disposition: str
    _stop: Callable[[str], Awaitable[str]] = attrs.field(repr=False)
    _events: EventQueue = attrs.field(factory=EventQueue, repr=False)
    _done: trio.Event = attrs.field(factory=trio.Event, repr=False)
    _completed: AgentCompleted | None = attrs.field(default=None, repr=False)
    _error: SessionError | None = attrs.field(default=None, repr=False)
    seen: bool = attrs.field(default=False, repr=False)

    def __aiter__(self) -> EventQueue:
        return self._events

    async def result(self) -> AgentCompleted:
        """Wait for the end of the run and return its last event, whatever its status.

        Raises:
            SessionError: The session ended first, or the run ended where its events could not be read.
        """
        await self._done.wait()
        if self._completed is None:
            raise self._error or SessionError("the end of the run could not be read")
        return self._completed

    async def stop(self) -> str:
        """Stop the run; when this returns, nothing of it is left. Returns its final status.

        Raises:
            CommandFailed: ``CANCEL_TIMEOUT`` when the agent could not be stopped.
        """
        return await self._stop(self.run_id)

    def take(self, heard: Heard) -> None:
        """Hand in one event of this run or of its sub-runs (for the session)."""
        self.seen = True
        self._events.push(heard)
        if heard.type == AgentCompleted.type and heard.fields.get("run_id") == self.run_id:
            if isinstance(heard.message, AgentCompleted):
                self._completed = heard.message
            self._events.end()
            self._done.set()

    def mark(self, heard: Heard) -> None:
        """Hand in a ``stream_reset`` (for the session)."""
        self._events.push(heard)

    def lose(self, error: SessionError) -> None:
        """Say that nothing more can be heard of this run (for the session)."""
        self._error = error
        self._events.end(error)
        self._done.set()


@attrs.define(eq=False)
class Pending:
    """A command that waits for its answer.

    Attributes:
        text: What is sent; again, unchanged, on the next connection.
        run: The run that a start became, as soon as it is known.
        own: Whether the session itself says it, for this connection alone, and nobody waits.
    """

    id: str
    command: Command
    text: str = attrs.field(repr=False)  # perhaps with a token
    run: Run | None = None
    heard: Heard | None = None
    error: SessionError | None = None
    done: trio.Event = attrs.field(factory=trio.Event)
    own: bool = False

    def settle(self, heard: Heard | None, error: SessionError | None = None) -> None:
        self.heard = heard
        self.error = error
        self.done.set()


@attrs.define(eq=False)
class Conversation:
    """Everything of a session that outlives a socket.

    Attributes:
        position: Of the last event heard; None before the first welcome.
        thread_id: Where a message without a thread goes; None: the next one opens a thread.
        welcome: The newest ``connection_established``.
        inputs: What waits for an answer of the user.
        jobs: The jobs that are joined.
        put_off: Jobs that the server had no time to seat us in, with the refusal; to be asked for again.
        reconnect_after_s: How long a draining server wants to be left alone.
        closed: Whether nothing more can be said; *error* tells why, None when its user left.
    """

    queue_limit: int
    stop: Callable[[str], Awaitable[str]]
    position: Position | None = None
    thread_id: str | None = None
    welcome: ConnectionEstablished | None = None
    reconnect_after_s: float = 0.0
    closed: bool = False
    error: SessionError | None = None
    pending: dict[str, Pending] = attrs.field(factory=dict)
    inputs: PendingInputs = attrs.field(factory=PendingInputs)
    jobs: JoinedJobs = attrs.field(factory=JoinedJobs)
    put_off: list[tuple[str, CommandFailed]] = attrs.field(factory=list)
    _runs: dict[str, list[Run]] = attrs.field(factory=dict)
    _roots: dict[str, str] = attrs.field(factory=dict)  # running sub-run → the run of ours that it is a part of
    _queues: weakref.WeakSet[EventQueue] = attrs.field(factory=weakref.WeakSet)
    _replaying: bool = False
    _prefix: str = attrs.field(factory=lambda: secrets.token_hex(12))
    _count: int = 0

    # Speaking.

    def ask(self, command: Command) -> Pending:
        """Give *command* an id and remember it until it is settled or forgotten.

        Raises:
            CommandFailed: ``MESSAGE_TOO_BIG``: it would end the connection for good (close code 1009).
            SessionError: The session is closed.
        """
        if self.closed:
            raise self.error or SessionError("the session is closed")
        pending = self._note(command)
        assert self.welcome is not None  # nobody has a session before it
        limit, size = self.welcome.limits.max_message_bytes, len(pending.text.encode())
        if size > limit:
            raise CommandFailed("MESSAGE_TOO_BIG", f"{command.type} has {size} bytes, the server takes at most {limit}")
        self.pending[pending.id] = pending
        return pending

    def _note(self, command: Command, *, own: bool = False) -> Pending:
        self._count += 1
        command_id = f"{self._prefix}-{self._count}"
        return Pending(command_id, command, encode_command(attrs.evolve(command, id=CommandId(command_id))), own=own)

    def come_back(self, command: ConnectJob) -> Pending:
        """Return what has to be said to read a job again from our position on; the session itself says it."""
        pending = self._note(command, own=True)
        self.pending[pending.id] = pending
        return pending

    def come_back_later(self, job_id: str) -> Pending | None:
        """Return what has to be said to read a job that was put off; None where somebody else is about to say it."""
        for pending in self.pending.values():
            if isinstance(pending.command, ConnectJob | DisconnectJob) and pending.command.job_id == job_id:
                return None
        command = self.jobs.come_back(job_id)
        return None if command is None else self.come_back(command)

    def forget(self, pending: Pending) -> None:
        """Stop waiting for an answer; a start that nobody waits for is not followed."""
        self.pending.pop(pending.id, None)
        if pending.run is not None and pending.heard is None:
            self._unfollow(pending.run)

    def follow(self, pending: Pending, ack: Ack) -> Run:
        """Return the run that a start became."""
        if pending.run is not None:
            return pending.run
        # Its ``user_message`` was not heard: a repeat after a restart or a reset, or no permission to read.
        run = self._adopt(ack.run_id or "", ack.thread_id or "", ack.message_id or "", ack.disposition or "")
        if not self._replaying:
            self._lose_unseen()
        return run

    def events(
        self, limit: int, policy: Policy, job_id: str | None = None, early: EventQueue | None = None
    ) -> EventQueue:
        """Return a queue of everything from now on, or of one job; it is let go when nobody holds it.

        Args:
            early: What was heard before, for a queue of a job to begin with.
        """
        queue = EventQueue(limit, policy, job_id)
        if early is not None:
            queue.take_over(early)
        if self.closed:
            queue.end(self.error)
        self._queues.add(queue)
        return queue

    def _tell(self, heard: Heard) -> None:
        for queue in list(self._queues):
            if queue.wants(heard):
                queue.push(heard)

    # Hearing.

    def welcomed(self, welcome: ConnectionEstablished, *, resuming: bool) -> list[Pending]:
        """Take a server's first frame; return the commands to send again."""
        self.welcome = welcome
        self.inputs.welcomed(welcome.pending_inputs)
        self.reconnect_after_s = 0.0
        self._replaying = resuming
        if self.position is None:
            self.position = welcome.stream
        waiting = [pending for pending in self.pending.values() if not pending.own]
        self.pending = {pending.id: pending for pending in waiting}
        self.put_off.clear()
        # First, so that a command of the program about a job finds it as it was.
        return [*map(self.come_back, self.jobs.stand_up()), *waiting]

    def hear(self, heard: Heard) -> None:
        """Take any further frame."""
        seq = heard.fields.get("seq")
        if heard.reply_to is not None:
            self._answered(heard)
        elif (job_id := heard.fields.get("job_id")) is not None:
            self._hear_job(job_id, heard)  # another stream, with numbers of its own
        elif isinstance(heard.message, StreamReset):
            self._reset(heard, heard.message)
        elif isinstance(heard.message, ReplayCompleted):
            self._replayed(heard.message)
        elif isinstance(heard.message, Draining):
            self.reconnect_after_s = max(0.0, heard.message.reconnect_after_ms / 1000)
        elif type(seq) is int and heard.type != StreamReset.type:
            self._numbered(heard, seq)  # of a newer server, perhaps: numbered all the same

    def _answered(self, heard: Heard) -> None:
        pending = self.pending.get(heard.reply_to or "")
        if pending is None:  # it has passed its deadline
            if isinstance(heard.message, JobDisconnected):
                self._part(heard.message.job_id, heard)
            return
        if pending.own:
            del self.pending[pending.id]
        command = pending.command
        if heard.type == Error.type:
            failure = _failure(heard, command)
            if isinstance(failure, AlreadyAnswered | UnknownInput) and isinstance(command, InputResponse):
                self.inputs.close(command.input_id)
            if isinstance(command, ConnectJob | DisconnectJob):
                self._refused_job(command, failure)
            pending.settle(heard, failure)
            return
        if isinstance(command, InputResponse):
            self.inputs.close(command.input_id)  # its event may be on its way, behind a replay
        if isinstance(command, Resume):
            # What follows the answer comes from there.
            self._go_back(command)
        if isinstance(command, ConnectJob) and isinstance(heard.message, JobConnected):
            self.jobs.connected(command, heard.message.stream, own=pending.own)
        if isinstance(command, DisconnectJob):
            self._part(command.job_id, heard)
        pending.settle(heard)

    def _go_back(self, command: Resume) -> None:
        position = Position(epoch=command.epoch, seq=command.seq)
        if command.job_id is None:
            self.position = position
        else:
            self.jobs.rewound(command.job_id, position)

    # Jobs.

    def _hear_job(self, job_id: Any, heard: Heard) -> None:
        if isinstance(heard.message, JobDisconnected):
            self._part(job_id, heard)
        elif self.jobs.hear(job_id, heard):
            self._tell(heard)

    def _refused_job(self, command: ConnectJob | DisconnectJob, failure: CommandFailed) -> None:
        job_id = command.job_id
        if isinstance(command, DisconnectJob):
            if failure.code == "NOT_FOUND":
                self._part(job_id, farewell(job_id))
        elif self.jobs.unseated(job_id) is None:
            return  # it was never joined, or goes on as it is
        elif failure.retryable or failure.code == "AUTH_FAILED":  # which ends with a new token
            self.put_off.append((job_id, failure))
        else:
            self._part(job_id, farewell(job_id, failure))

    def _part(self, job_id: str, last: Heard) -> None:
        """Forget a job, after its readers got the last word of it."""
        if self.jobs.drop(job_id):
            self._tell(last)
            for queue in [queue for queue in self._queues if queue.job_id == job_id]:
                queue.end()

    def _numbered(self, heard: Heard, seq: int) -> None:
        position = self.position
        if position is None or seq <= position.seq:
            return
        self.position = Position(epoch=position.epoch, seq=seq)
        message = heard.message
        if isinstance(message, MessageReceived) and message.command_id is not None:
            self._placed(message)
        if isinstance(message, ThreadDeletedEvent) and message.thread_id == self.thread_id:
            self.thread_id = None
        self.inputs.hear(heard)
        run_id: Any = message.run_id if isinstance(message, RunEvent) else heard.fields.get("run_id")
        root_id = self._root_of(run_id, heard.fields.get("parent_run_id"))
        for run in self._runs.get(root_id, ()):
            run.take(heard)
        if heard.type == AgentCompleted.type:
            self._roots.pop(run_id, None)
            if root_id == run_id and self._runs.pop(run_id, None) is not None:
                self._forget_parts(run_id)
        self._tell(heard)

    def _placed(self, message: MessageReceived) -> None:
        """Follow the run of a start of ours from its first event: the answer comes only behind it."""
        pending = self.pending.get(message.command_id or "")
        if pending is not None and isinstance(pending.command, Start) and pending.run is None:
            pending.run = self._adopt(message.run_id, message.thread_id, message.message_id, message.disposition)
            if self.thread_id is None and pending.command.thread_id is None:
                self.thread_id = message.thread_id

    def _replayed(self, message: ReplayCompleted) -> None:
        self._replaying = False
        position = self.position
        if position is not None and position.epoch == message.epoch and position.seq < message.to_seq:
            self.position = Position(epoch=position.epoch, seq=message.to_seq)
        self._lose_unseen()

    def _reset(self, heard: Heard, message: StreamReset) -> None:
        self.position = Position(epoch=message.epoch, seq=message.seq)
        self._tell(heard)
        for run in [run for runs in self._runs.values() for run in runs]:
            run.mark(heard)
            if self._replaying:
                run.seen = False  # what happened to it meanwhile was not heard
        if self._replaying:
            self._replaying = False
            self._lose_unseen()

    # Runs.

    def _root_of(self, run_id: Any, parent_run_id: Any) -> Any:
        """Return the followed run that a run is, or is a part of; *run_id* where nobody follows it."""
        if not isinstance(parent_run_id, str) or run_id in self._runs:
            return run_id
        root_id = self._roots.get(parent_run_id, parent_run_id)
        if root_id in self._runs:
            self._roots[run_id] = root_id
        return root_id

    def _forget_parts(self, root_id: str) -> None:
        self._roots = {run_id: root for run_id, root in self._roots.items() if root != root_id}

    def _adopt(self, run_id: str, thread_id: str, message_id: str, disposition: str) -> Run:
        run = Run(run_id, thread_id, message_id, disposition, self.stop, EventQueue(self.queue_limit))
        self._runs.setdefault(run_id, []).append(run)
        return run

    def _unfollow(self, run: Run) -> None:
        runs = [other for other in self._runs.pop(run.run_id, []) if other is not run]
        if runs:
            self._runs[run.run_id] = runs
        else:
            self._forget_parts(run.run_id)

    def _lose_unseen(self) -> None:
        """Give up runs of which nothing was heard and which the newest welcome does not name: they are over."""
        active = {run.run_id for run in self.welcome.active_runs} if self.welcome is not None else set()
        for run in [run for runs in self._runs.values() for run in runs]:
            if not run.seen and run.run_id not in active:
                run.lose(SessionError("the run's events cannot be read; its messages are in the thread's history"))
                self._unfollow(run)

    def end(self, error: SessionError | None) -> None:
        """Close everything: with *error*, or because the user of the session leaves."""
        self.closed = True
        self.error = error
        told = error or SessionError("the session was closed")
        for pending in self.pending.values():
            pending.settle(None, told)
        for runs in self._runs.values():
            for run in runs:
                run.lose(told)
        self._runs.clear()
        self._roots.clear()
        for queue in list(self._queues):
            queue.end(error)


def _failure(heard: Heard, command: Command) -> CommandFailed:
    error = heard.message
    if not isinstance(error, Error):
        return CommandFailed(str(heard.fields.get("code", "UNKNOWN")), str(heard.fields.get("error", "unknown error")))
    details = dict(error.details or {})
    if error.retry_after_s is not None:
        details["retry_after_s"] = error.retry_after_s
    kind = _REFUSED_ANSWERS.get(error.code, CommandFailed) if isinstance(command, InputResponse) else CommandFailed
    return kind(error.code, error.error, retryable=error.retryable, details=details or None)


def lost(ended: Ended, seconds: float) -> ConnectionLost:
    """Return the error for a session that found no way back in time."""
    return ConnectionLost(f"no connection for {seconds:g} s: {ended.reason}")
