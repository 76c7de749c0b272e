"""How a message becomes a run: its thread, its turn, and the step that commits it all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from netra_ws.agents.request import RunRequest, new_id, row_of
from netra_ws.agents.run import Run
from netra_ws.agents.states import LIVE, RunState
from netra_ws.errors import ClientError
from netra_ws.history.ledger import title_from
from netra_ws.history.stores.contract import DeleteThread, DropMessages, MessageRow, PutMessage, PutRun, PutThread
from netra_ws.history.stream import Entry, Step
from netra_ws.identity import Identity
from netra_ws.protocol.commands import Attachment, OnBusy, OnDisconnect
from netra_ws.protocol.events import (
    Disposition,
    MessageReceived,
    RunQueued,
    ThreadCreated,
    ThreadDeleted,
    Trigger,
)

from .context import UserContext
from .threads import ThreadState


@attrs.frozen(kw_only=True)
class Ask:
    """What somebody wants an agent to do, from a socket or from an embedding program.

    Attributes:
        on_disconnect: None for the operator's default.
        command_id: The client's id of the command, kept with the run across restarts.
    """

    text: str
    trigger: Trigger
    thread_id: str | None = None
    agent: str | None = None
    run_id: str | None = None
    context: Mapping[str, Any] = attrs.field(factory=dict)
    on_busy: OnBusy = "enqueue"
    on_disconnect: OnDisconnect | None = None
    timeout_s: float | None = None
    idle_timeout_s: float | None = None
    attachments: Sequence[Attachment] = ()
    jsonl_logs: Any = None
    command_id: str | None = None
    command_digest: str | None = None


@attrs.frozen(kw_only=True)
class Started:
    """What became of an ``Ask``; the message is committed when ``seq`` is visible."""

    run_id: str
    thread_id: str
    message_id: str
    disposition: Disposition
    seq: int


async def start(context: UserContext, ask: Ask, identity: Identity) -> Started:
    """Put the message into its thread and start the run, queue it, or hand it to the running one.

    Raises:
        ClientError: ``DRAINING``, ``UNAVAILABLE``, ``UNKNOWN_AGENT``, ``CONFLICT``, ``BUSY``,
            ``QUOTA_EXCEEDED`` or ``FORBIDDEN``; nothing was stored then.
        StoreError: The store did not answer; nothing was stored.
    """
    if context.home.draining:
        raise ClientError("DRAINING", "the server is about to stop", retryable=True)
    context.check_store()
    agent_name, _ = context.agent_named(ask.agent)
    if ask.thread_id is not None:
        await wait_for_leaving(context, ask.thread_id)
    async with context.lock:
        await _check_run_id(context, ask.run_id)
        thread, created = await open_thread(context, ask.thread_id, title_from(ask.text))
        if not context.living:
            raise ClientError("UNAVAILABLE", "the user's context is closing", retryable=True)
        return _place(context, ask, identity, agent_name, thread, created)


async def wait_for_leaving(context: UserContext, thread_id: str) -> None:
    """Wait for the runs of this thread that an older context of the user is still ending; ``finalise_s`` at most."""
    for run in context.home.leaving(context.user_id):
        if run.thread_id == thread_id:
            await run.settled.wait()


async def _check_run_id(context: UserContext, run_id: str | None) -> None:
    if run_id is None:
        return
    used = run_id in context.runs or run_id in context.memory.used
    if used or await context.ledger.run(context.user_id, run_id) is not None:
        raise ClientError("CONFLICT", "this run_id was used before")


async def open_thread(
    context: UserContext, thread_id: str | None, title: str, metadata: Mapping[str, Any] | None = None
) -> tuple[ThreadState, bool]:
    """Return a thread of the user, and whether it has to be created; the caller holds the lock.

    Raises:
        ClientError: ``BUSY`` while it is being deleted, ``QUOTA_EXCEEDED`` when there are too many,
            ``UNAVAILABLE`` when it would have to be made and could not be kept.
        StoreError: The store did not answer.
    """
    known = await find_thread(context, thread_id) if thread_id is not None else None
    if known is not None:
        if known.deleting:
            raise ClientError("BUSY", "the thread is being deleted", retryable=True)
        return known, False
    context.check_store()
    if context.known_threads is None:
        context.known_threads = await context.ledger.count_threads(context.user_id)
    if context.known_threads >= context.policy.max_threads_per_user:
        raise ClientError("QUOTA_EXCEEDED", f"more than {context.policy.max_threads_per_user} threads")
    return ThreadState(thread_id or new_id("thread"), title, dict(metadata or {})), True


async def ensure_thread(
    context: UserContext, thread_id: str | None, title: str, metadata: Mapping[str, Any] | None = None
) -> tuple[ThreadState, int]:
    """Return a thread of the user, made if it is unknown, and the seq of its ``thread_created`` (0 if it was known).

    Raises:
        ClientError, StoreError: As ``open_thread``.
    """
    async with context.lock:
        thread, created = await open_thread(context, thread_id, title, metadata)
        if not created:
            return thread, 0
        with context.stream.step() as step:
            return thread, write_thread(context, step, thread)


async def find_thread(context: UserContext, thread_id: str) -> ThreadState | None:
    """Return a thread of this user, or None; another user's thread is None, too."""
    known = context.threads.get(thread_id)
    if known is not None:
        return known
    row = await context.ledger.thread(context.user_id, thread_id)
    if row is None or thread_id in context.memory.removed:
        return None
    # Somebody else may have asked meanwhile.
    return context.threads.get(thread_id) or context.threads.add(ThreadState(thread_id, row.title, dict(row.metadata)))


def write_thread(context: UserContext, step: Step, thread: ThreadState) -> int:
    """Add a new thread to *step* and remember it; return the seq of its ``thread_created``."""
    entry = step.append(ThreadCreated(thread_id=thread.thread_id, title=thread.title, metadata=thread.metadata))
    step.write(
        PutThread(
            user_id=context.user_id,
            thread_id=thread.thread_id,
            title=thread.title,
            metadata=thread.metadata,
            created_at=entry.timestamp,
        )
    )
    context.memory.removed.discard(thread.thread_id)
    context.threads.add(thread)
    context.known_threads = (context.known_threads or 0) + 1
    return entry.seq


def remove_thread(context: UserContext, thread: ThreadState) -> Entry:
    """Remove a thread in which nothing goes on, for every connection; return its ``thread_deleted``."""
    event = ThreadDeleted(thread_id=thread.thread_id, title=thread.title, metadata=thread.metadata)
    entry = context.stream.append(event, DeleteThread(user_id=context.user_id, thread_id=thread.thread_id))
    context.memory.removed.add(thread.thread_id)
    context.threads.remove(thread.thread_id)
    if context.known_threads:
        context.known_threads -= 1
    for connection in context.connections.values():
        if connection.thread_id == thread.thread_id:
            connection.thread_id = None
    return entry


def _place(
    context: UserContext, ask: Ask, identity: Identity, agent_name: str, thread: ThreadState, created: bool
) -> Started:
    """Decide and write; without a checkpoint, so nothing can change in between."""
    active = thread.active
    if active is not None and active.state not in LIVE and ask.on_busy == "steer":
        ask = attrs.evolve(ask, on_busy="enqueue")  # it is ending and would not read it
    if active is not None and ask.on_busy == "steer":
        return _steer(context, ask, identity, thread, active)
    disposition: Disposition = "started"
    if active is not None:
        disposition = "queued"
        if ask.on_busy == "reject":
            raise ClientError("BUSY", "a run is active in this thread", retryable=True)
        if len(thread.queue) >= context.policy.max_queued_per_thread:
            raise ClientError("BUSY", "too many messages wait in this thread", retryable=True)
    elif _running(context) >= context.policy.max_runs_per_user:
        raise ClientError(
            "QUOTA_EXCEEDED", f"more than {context.policy.max_runs_per_user} runs at once", retryable=True
        )
    request = _request(context, ask, agent_name, thread, disposition)
    if disposition == "started":
        run = context.make_run(request, identity)
        seq = _write(context, ask, request, thread, created, disposition, 0)
        context.launch(run, thread)
    else:
        assert active is not None
        first = ask.on_busy in ("interrupt", "rollback")
        seq = _write(context, ask, request, thread, created, disposition, 1 if first else len(thread.queue) + 1)
        run = context.make_run(request, identity)
        run.started_seq = seq
        if first:
            thread.queue.appendleft(run)
            _cut_short(context, ask.on_busy, active)
        else:
            thread.queue.append(run)
    return Started(
        run_id=request.run_id,
        thread_id=thread.thread_id,
        message_id=request.message_id,
        disposition=disposition,
        seq=seq,
    )


def _running(context: UserContext) -> int:
    # Those that an older context is still ending, or could not stop, count: a reconnect makes no room.
    leaving = len(context.home.leaving(context.user_id))
    return leaving + sum(run.state is not RunState.QUEUED for run in context.runs.values())


def _request(
    context: UserContext, ask: Ask, agent_name: str, thread: ThreadState, disposition: Disposition
) -> RunRequest:
    policy = context.policy
    on_disconnect = ask.on_disconnect or policy.on_disconnect
    if on_disconnect == "continue" and ask.trigger != "api" and not policy.allow_continue:
        raise ClientError("FORBIDDEN", "the operator does not allow on_disconnect continue")
    return RunRequest(
        run_id=ask.run_id or new_id("run"),
        thread_id=thread.thread_id,
        message_id=new_id("msg"),
        agent_name=agent_name,
        text=ask.text,
        trigger="queue" if disposition == "queued" else ask.trigger,
        on_disconnect=on_disconnect,
        timeout_s=min(ask.timeout_s or policy.run_timeout_s, policy.run_timeout_s),
        idle_timeout_s=min(ask.idle_timeout_s or policy.idle_timeout_s, policy.idle_timeout_s),
        context=ask.context,
        attachments=ask.attachments,
        jsonl_logs=ask.jsonl_logs,
    )


def _write(
    context: UserContext,
    ask: Ask,
    request: RunRequest,
    thread: ThreadState,
    created: bool,
    disposition: Disposition,
    position: int,
) -> int:
    names = {"thread_id": thread.thread_id, "run_id": request.run_id, "agent_name": request.agent_name}
    with context.stream.step() as step:
        if created:
            write_thread(context, step, thread)
        entry = step.append(
            MessageReceived(
                **names,
                message_id=request.message_id,
                content=ask.text,
                disposition=disposition,
                command_id=ask.command_id,
            )
        )
        step.write(
            PutMessage(row=_message_row(context, ask, request, entry.seq, entry.timestamp)),
            PutRun(
                row=row_of(request, context.user_id, entry.seq, entry.timestamp, ask.command_id, ask.command_digest)
            ),
        )
        if position:
            step.append(RunQueued(**names, position=position))
    return entry.seq


def _message_row(context: UserContext, ask: Ask, request: RunRequest, seq: int, now: float) -> MessageRow:
    return MessageRow(
        user_id=context.user_id,
        thread_id=request.thread_id,
        message_id=request.message_id,
        run_id=request.run_id,
        role="user",
        content=ask.text,
        created_at=now,
        seq=seq,
        attachments=[attrs.asdict(attachment) for attachment in ask.attachments],
    )


def _steer(context: UserContext, ask: Ask, identity: Identity, thread: ThreadState, active: Run) -> Started:
    if active.unread >= context.policy.max_queued_per_thread:
        raise ClientError("BUSY", "the agent has not read what was steered into it", retryable=True)
    request = attrs.evolve(active.request, message_id=new_id("msg"))
    with context.stream.step() as step:
        entry = step.append(
            MessageReceived(
                thread_id=thread.thread_id,
                run_id=active.run_id,
                agent_name=active.agent_name,
                message_id=request.message_id,
                content=ask.text,
                disposition="steered",
                command_id=ask.command_id,
            )
        )
        step.write(PutMessage(row=_message_row(context, ask, request, entry.seq, entry.timestamp)))
    active.steer(ask.text, identity)
    return Started(
        run_id=active.run_id,
        thread_id=thread.thread_id,
        message_id=request.message_id,
        disposition="steered",
        seq=entry.seq,
    )


def _cut_short(context: UserContext, how: OnBusy, active: Run) -> None:
    if how == "rollback":
        # The messages of the run go in the transaction of its last event.
        active.at_close = (DropMessages(user_id=context.user_id, run_id=active.run_id),)
        context.stop(active, "rollback")
        active.cancelled_by = "rollback"  # also when somebody has stopped it before: its messages go
    else:
        context.stop(active, "interrupt")
