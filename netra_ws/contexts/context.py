"""The nursery of one user, and everything that lives in it: connections and runs, side by side.

When the user is gone, one cancellation ends everything here. Who may stay for how long after the
last connection is decided in one method, ``_left``. A context's states stand in ``states.py``.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import attrs
import trio

from netra_ws.agents.agent import Agent
from netra_ws.agents.execution import drop, execute
from netra_ws.agents.inputs import Inputs
from netra_ws.agents.request import RunRequest, new_id, row_of
from netra_ws.agents.run import Run
from netra_ws.agents.states import LIVE, RunState
from netra_ws.errors import ClientError, StoreError
from netra_ws.history.ledger import Ledger
from netra_ws.history.stores.contract import UNFINISHED, PutRun
from netra_ws.history.stream import Stream
from netra_ws.identity import Identity
from netra_ws.protocol.events import CancelledBy
from netra_ws.protocol.replies import ActiveRun

from .connection import Connection
from .job import RunJob, check_job_id
from .jobs import Jobs
from .kicking import Kicked, Whom
from .memory import UserMemory
from .policy import ContextPolicy
from .states import LIVING, TRANSITIONS, ContextState, ContextStep
from .threads import ThreadState, ThreadStates

logger = logging.getLogger(__name__)

#: Whoever ends a run for one of these reasons wants no follow-up of what was steered into it.
GIVEN_UP = frozenset({"user", "rollback", "disconnect", "shutdown", "admin"})


class Home(Protocol):
    """What a context needs of the registry that holds it."""

    @property
    def draining(self) -> bool:
        """Whether no new run may start."""
        ...

    @property
    def store_away(self) -> bool:
        """Whether nothing new should be begun, because the store takes nothing."""
        ...

    @property
    def jobs(self) -> Jobs:
        """The streams that several users may be granted."""
        ...

    def run_ended(self, run: Run) -> None:
        """Count a run that has ended or was sealed."""
        ...

    def attached(self, connection: Connection) -> None:
        """Tell a new connection what it must know of the server."""
        ...

    def leaving(self, user_id: str) -> list[Run]:
        """Return the runs of contexts of this user that are being closed."""
        ...

    def context_closing(self, context: UserContext) -> None:
        """Send newcomers elsewhere."""
        ...

    def kick(self, whom: Whom, by: Connection | None = None) -> Callable[[], Awaitable[Kicked]]:
        """Sign a user out, or end the connections of a token; what is returned waits for the proof."""
        ...


@attrs.define(eq=False, repr=False)
class UserContext:
    """Everything of one user that is alive.

    Attributes:
        seats: Connections that are open or being opened.
        holds: Embedding programs that keep the context open without a socket.
        waiting: Answers that wait for something, each in a task.
        lock: Held while threads are read and changed, so that two tabs cannot make one thread twice.
    """

    user_id: str
    stream: Stream
    ledger: Ledger
    policy: ContextPolicy
    memory: UserMemory
    home: Home
    state: ContextState = ContextState.OPEN
    seats: int = 0
    holds: int = 0
    waiting: int = 0
    connections: dict[str, Connection] = attrs.field(factory=dict)
    runs: dict[str, Run] = attrs.field(factory=dict)
    threads: ThreadStates = attrs.field(init=False)
    lock: trio.Lock = attrs.field(factory=trio.Lock)
    opened: trio.Event = attrs.field(factory=trio.Event)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    known_threads: int | None = None
    _nursery: trio.Nursery | None = None
    _changed: trio.Event = attrs.field(factory=trio.Event)
    _leave_at: float = float("inf")
    _left_at: float = 0.0
    _reason: CancelledBy = "disconnect"
    _ended_by_closing: int = 0

    def __repr__(self) -> str:
        return f"<UserContext {self.user_id!r} {self.state.name}>"

    def __attrs_post_init__(self) -> None:
        self.threads = ThreadStates(keep=self.policy.max_threads_per_user)

    # Life.

    async def live(self) -> None:
        """Open the nursery, stay while anybody is there or may come back, then end everything.

        *Cancellation:* ends the runs as ``shutdown`` or whatever ``close`` was told.
        """
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    self.opened.set()
                    try:
                        await self._until_left()
                    finally:
                        self._close()
                        nursery.cancel_scope.cancel()
        finally:
            self.opened.set()
            self.state = TRANSITIONS[self.state][ContextStep.GONE]
            logger.info(
                "context closed user=%s runs_cancelled=%d after=%.1fs",
                self.user_id,
                self._ended_by_closing,
                trio.current_time() - self._left_at if self._left_at else 0.0,
            )

    async def _until_left(self) -> None:
        while True:
            wake_at = self._leave_at
            if self.state is ContextState.LINGERING:
                if not self.runs:
                    return
                if trio.current_time() >= self._leave_at:
                    wake_at = float("inf")  # what stays says so when it changes
                    staying = [run for run in self.runs.values() if self._stays(run)]
                    if not staying:
                        return
                    self._end_runs([run for run in self.runs.values() if run not in staying], "disconnect")
            with trio.move_on_at(wake_at):
                await self._changed.wait()
            self._changed = trio.Event()

    def _stays(self, run: Run) -> bool:
        """Whether a run goes on without its user: because that was asked for, or because it waits for them."""
        return run.request.on_disconnect == "continue" or run.state is RunState.ASKING

    def _close(self) -> None:
        if self.state not in LIVING:
            return
        self.state = TRANSITIONS[self.state][ContextStep.CLOSE]
        self.home.context_closing(self)
        self.end_runs(self._reason)

    def close(self, reason: CancelledBy) -> None:
        """Tear everything down now; runs are told why."""
        self._reason = reason
        if self.state in LIVING:
            self._close()
        self.scope.cancel()

    @property
    def living(self) -> bool:
        """Whether connections and runs may still come."""
        return self.state in LIVING

    def check_store(self) -> None:
        """Begin nothing that could not be kept.

        Raises:
            ClientError: ``UNAVAILABLE`` while the store takes nothing.
        """
        if self.home.store_away:
            raise ClientError("UNAVAILABLE", "the store does not answer", retryable=True)

    def start_soon(self, work: Callable[[], Awaitable[object]]) -> None:
        """Start a task in the user's nursery, in a fresh contextvars context.

        Without that, variables of whoever starts it would reach the user's code.
        """
        assert self._nursery is not None
        contextvars.Context().run(self._nursery.start_soon, work)

    # Coming and going.

    def enter(self) -> None:
        """Take a seat or a hold; call ``leave`` exactly once after it."""
        if self.state is ContextState.LINGERING:
            self.state = TRANSITIONS[self.state][ContextStep.RETURN]
            self._leave_at = float("inf")
        self._changed.set()

    def attach(self, connection: Connection) -> None:
        """Let a connection hear and speak."""
        self.connections[connection.connection_id] = connection
        self.stream.attach(connection.lane)
        self.home.attached(connection)

    def detach(self, connection: Connection) -> None:
        """Take a connection out of everything; may be called twice."""
        self.connections.pop(connection.connection_id, None)
        self.stream.detach(connection.lane)
        self.home.jobs.leave_all(connection)

    def leave(self, *, explicit: bool = False) -> None:
        """Give a seat or a hold back; *explicit* says that no return is meant."""
        if not self.seats and not self.holds and self.state is ContextState.OPEN:
            self._left(explicit)
        self._changed.set()

    def _left(self, explicit: bool) -> None:
        """Decide what happens to the runs now that nobody is there: the whole disconnect policy.

        ``cancel`` ends at once. ``grace`` ends when the resume window has passed without a return, or later
        where the run waits for its user: when the question has expired. After an explicit disconnect it is
        over at once. ``continue`` goes on, and the context with it.
        """
        self.state = TRANSITIONS[self.state][ContextStep.LEAVE]
        self._left_at = trio.current_time()
        at_once = ("cancel", "grace") if explicit else ("cancel",)
        self._end_runs([run for run in self.runs.values() if run.request.on_disconnect in at_once], "disconnect")
        self._leave_at = self._left_at + (0.0 if explicit else self.policy.resume_window_s)

    def end_runs(self, reason: CancelledBy) -> None:
        """Ask every run to end."""
        self._end_runs(list(self.runs.values()), reason)

    def _end_runs(self, runs: Sequence[Run], reason: CancelledBy) -> None:
        for run in runs:
            if run.state is RunState.QUEUED:
                self.drop_queued(run, reason)
        for run in runs:
            if run.state in LIVE:
                run.cancel(reason)
                self._ended_by_closing += 1

    # Runs.

    @property
    def active(self) -> list[ActiveRun]:
        """The runs that have not ended, as a welcome tells them."""
        return [
            ActiveRun(
                run_id=run.run_id,
                thread_id=run.thread_id,
                agent_name=run.agent_name,
                state=run.state.value,
                started_seq=run.started_seq,
            )
            for run in self.runs.values()
        ]

    def agent_named(self, name: str | None) -> tuple[str, Agent]:
        """Return an agent by name, the default one for None.

        Raises:
            ClientError: ``UNKNOWN_AGENT``.
        """
        name = name or self.policy.default_agent
        agent = self.policy.agents.get(name)
        if agent is None:
            details = {"agents": sorted(self.policy.agents)}
            raise ClientError("UNKNOWN_AGENT", "there is no agent of that name", details=details)
        return name, agent

    @property
    def inputs(self) -> Inputs:
        """The user's open questions; they are remembered beyond this context."""
        return self.memory.inputs

    def job(self, job_id: str, run: Run) -> RunJob:
        """Return a job for the hands of a run.

        Raises:
            InvalidArgument: *job_id* is none.
        """
        return RunJob(check_job_id(job_id), run, self.home.jobs)

    def run_ended(self, run: Run) -> None:
        """Count a sub-run that has ended."""
        self.home.run_ended(run)

    def answered(self) -> None:
        """Look again at who stays: a run waits for its user no more.

        At once, before the run can ask again: its grace was that of the questions that were open.
        """
        if self.state is ContextState.LINGERING and trio.current_time() >= self._leave_at:
            self._end_runs([run for run in self.runs.values() if not self._stays(run)], "disconnect")
        self._changed.set()

    def find_run(self, run_id: str) -> Run | None:
        """Return a run of the user that has not ended, also a sub-run, and one that an older context still ends."""
        runs = [*self.runs.values(), *self.home.leaving(self.user_id)]
        while runs:
            run = runs.pop()
            if run.run_id == run_id:
                return run
            runs.extend(run.children.values())
        return None

    def make_run(self, request: RunRequest, identity: Identity) -> Run:
        """Return a run that waits for ``launch`` or in a queue."""
        policy = attrs.evolve(self.policy.run, user_threads=self.memory.threads, user_tools=self.memory.tools)
        run = Run(request, identity, policy, self.stream, self.ledger, self)
        self.runs[run.run_id] = run
        self.memory.used.add(run.run_id)
        return run

    def launch(self, run: Run, thread: ThreadState) -> None:
        """Start a run; it is its thread's turn.

        It has begun when this returns, so whoever stops it now stops a running one.
        """
        thread.active = run
        run.begin()
        agent = self.policy.agents[run.agent_name]

        async def carry() -> None:
            try:
                await execute(run, agent, lambda: self._turn_over(run, thread))
            finally:
                self.runs.pop(run.run_id, None)
                self.home.run_ended(run)
                self._turn_over(run, thread)

        self.start_soon(carry)

    def _turn_over(self, run: Run, thread: ThreadState) -> None:
        """Let the next one have its turn; a sealed run gives up its thread before it is gone."""
        if thread.active is run:
            thread.active = None
            self._next_turn(run, thread)
        self._changed.set()

    def _next_turn(self, ended: Run, thread: ThreadState) -> None:
        if not self.living:
            return
        unread = ended.steered()
        if unread and not thread.deleting and not self.home.draining and ended.cancelled_by not in GIVEN_UP:
            # Steered texts that the agent did not read start the next run, as whoever steered last.
            run = self.make_run(_follow_up(ended, unread), ended.steerer or ended.identity)
            with self.stream.step() as step:
                step.write(PutRun(row=row_of(run.request, self.user_id, self.stream.last, self.stream.now())))
            self.launch(run, thread)
            return
        if thread.queue:
            self.launch(thread.queue.popleft(), thread)

    def drop_queued(self, run: Run, by: CancelledBy) -> None:
        """End a run that waits for its turn."""
        thread = self.threads.get(run.thread_id)
        if thread is not None and run in thread.queue:
            thread.queue.remove(run)
        drop(run, by)
        self.runs.pop(run.run_id, None)
        self.home.run_ended(run)
        self._changed.set()

    def stop(self, run: Run, by: CancelledBy = "user") -> None:
        """Ask a run to end; wait for ``run.settled`` to know that it has."""
        if run.state is RunState.QUEUED:
            self.drop_queued(run, by)
        else:
            run.cancel(by)

    async def status_of(self, run_id: str) -> str | None:
        """Return the final status of a run that is not going on any more, None for one that never was.

        What was said last of it may not be committed; that is waited for, ``finalise_s`` at most.

        Raises:
            StoreError: The store did not answer.
        """
        last = self.stream.last
        with trio.move_on_after(self.policy.run.finalise_s):
            row = await self.ledger.run(self.user_id, run_id)
            if (row is None or row.state in UNFINISHED) and self.stream.visible < last:
                await self.stream.wait_visible(last)
                row = await self.ledger.run(self.user_id, run_id)
            return None if row is None else row.state
        raise StoreError("the run's end is not committed")


def _follow_up(ended: Run, unread: Sequence[str]) -> RunRequest:
    return attrs.evolve(
        ended.request,
        run_id=new_id("run"),
        text="\n\n".join(unread),
        trigger="queue",
        context={},
        attachments=(),
        jsonl_logs=None,
    )
