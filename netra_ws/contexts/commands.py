"""What each command does: one function per command, in one table.

A function returns the answer, or a coroutine function for an answer that takes waiting (for a run's
end), or None when it has told the connection itself. What a client got wrong leaves as ``ClientError``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import trio

from netra_ws.errors import ClientError, InvalidArgument, Refused
from netra_ws.history.stores.contract import RenameThread as RenameThreadRow
from netra_ws.protocol import commands as said
from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.codec import Incoming
from netra_ws.protocol.events import Announcement, ThreadRenamed
from netra_ws.protocol.replies import (
    Ack,
    AuthRefreshed,
    HandshakeComplete,
    HeartbeatAck,
    JobConnected,
    JobDisconnected,
    Pong,
    Position,
    Reply,
    ThreadCreatedReply,
    ThreadDeletedReply,
    ThreadRenamedReply,
    ThreadSwitched,
    Typing,
)
from netra_ws.protocol.values import split_position

from .connection import Connection
from .context import UserContext
from .kicking import Whom
from .live_job import LiveJob, missing_job
from .memory import digest
from .reading import check_event
from .starting import Ask, ensure_thread, find_thread, remove_thread, start, wait_for_leaving
from .stopping import proof_of_end


@attrs.frozen
class Asked:
    """A command's place: whose it is, which connection said it, and how it came."""

    context: UserContext
    connection: Connection
    incoming: Incoming


@attrs.frozen
class Answer:
    """What a command is answered with; with *barrier*, right after the event of that seq."""

    reply: Reply
    barrier: int = 0


Later = Callable[[], Awaitable[Answer]]
#: None: the function has told the connection itself.
Result = Answer | Later | None
Function = Callable[["Asked", Any], Awaitable[Result]]


def _missing(what: str) -> ClientError:
    return ClientError("NOT_FOUND", f"there is no such {what}")


async def _start(asked: Asked, command: said.Start) -> Answer:
    connection = asked.connection
    remembered = command.id is not None and not asked.incoming.rpc
    ask = Ask(
        text=command.text,
        trigger="start_agent" if isinstance(command, said.StartAgent) else "message",
        thread_id=command.thread_id or connection.thread_id,
        agent=command.agent,
        context=command.context or {},
        on_busy=command.on_busy,
        on_disconnect=command.on_disconnect,
        timeout_s=command.timeout_s,
        command_id=command.id if remembered else None,
        command_digest=digest(asked.incoming.body).hex() if remembered else None,
    )
    if isinstance(command, said.StartAgent):
        ask = attrs.evolve(ask, run_id=command.run_id, idle_timeout_s=command.idle_timeout_s)
    elif isinstance(command, said.UserMessage):
        ask = attrs.evolve(ask, attachments=command.attachments, jsonl_logs=command.jsonl_logs)
    started = await start(asked.context, ask, connection.identity)
    if command.thread_id is None:
        connection.thread_id = started.thread_id
    return Answer(
        Ack(
            run_id=started.run_id,
            thread_id=started.thread_id,
            message_id=started.message_id,
            disposition=started.disposition,
        ),
        started.seq,
    )


async def _stop(asked: Asked, command: said.StopAgent) -> Result:
    run = asked.context.find_run(command.run_id)
    if run is None:

        async def how_it_ended() -> Answer:
            status = await asked.context.status_of(command.run_id)
            if status is None:
                raise _missing("run")
            return Answer(Ack(run_id=command.run_id, status=status), asked.context.stream.visible)

        return how_it_ended
    stopped = run
    if command.mode == "after_step":
        stopped.cancel_after_step()
    else:
        asked.context.stop(stopped)

    async def proof() -> Answer:
        status = await proof_of_end(stopped)
        return Answer(Ack(run_id=stopped.run_id, status=status), stopped.last_seq)

    return proof


async def _create_thread(asked: Asked, command: said.CreateThread) -> Answer:
    thread, seq = await ensure_thread(asked.context, command.thread_id, command.title or "", command.metadata)
    reply = ThreadCreatedReply(thread_id=thread.thread_id, title=thread.title, metadata=thread.metadata)
    return Answer(reply, seq)


async def _switch_thread(asked: Asked, command: said.SwitchThread) -> Answer:
    thread, seq = await ensure_thread(asked.context, command.thread_id, "")
    asked.connection.thread_id = thread.thread_id
    return Answer(ThreadSwitched(thread_id=thread.thread_id), seq)


async def _list_threads(asked: Asked, command: said.ListThreads) -> Answer:
    context = asked.context
    return Answer(await context.ledger.thread_list(context.user_id, command.limit, command.before))


async def _get_thread_history(asked: Asked, command: said.GetThreadHistory) -> Answer:
    context = asked.context
    if await find_thread(context, command.thread_id) is None:
        raise _missing("thread")
    history = await context.ledger.thread_history(context.stream, command.thread_id, command.limit, command.before)
    return Answer(history)


async def _rename_thread(asked: Asked, command: said.RenameThread) -> Answer:
    context = asked.context
    context.check_store()
    async with context.lock:
        thread = await find_thread(context, command.thread_id)
        if thread is None or thread.deleting:
            raise _missing("thread")
        thread.title = command.title
        row = RenameThreadRow(
            user_id=context.user_id, thread_id=thread.thread_id, title=thread.title, at=context.stream.now()
        )
        event = ThreadRenamed(thread_id=thread.thread_id, title=thread.title, metadata=thread.metadata)
        entry = context.stream.append(event, row)
    reply = ThreadRenamedReply(thread_id=thread.thread_id, title=thread.title, metadata=thread.metadata)
    return Answer(reply, entry.seq)


async def _delete_thread(asked: Asked, command: said.DeleteThread) -> Later:
    context = asked.context
    context.check_store()
    async with context.lock:
        thread = await find_thread(context, command.thread_id)
        if thread is None or thread.deleting:
            raise _missing("thread")
        thread.deleting = True
    for run in list(thread.queue):
        context.drop_queued(run, "user")
    active = thread.active
    if active is not None:
        context.stop(active)

    async def delete() -> Answer:
        if active is not None:
            await active.settled.wait()
        await wait_for_leaving(context, thread.thread_id)
        entry = remove_thread(context, thread)
        reply = ThreadDeletedReply(thread_id=thread.thread_id, title=thread.title, metadata=thread.metadata)
        return Answer(reply, entry.seq)

    return delete


async def _resume(asked: Asked, command: said.Resume) -> Result:
    connection = asked.connection
    lane = connection.lane if command.job_id is None else connection.job_lanes.get(command.job_id)
    if lane is None:
        raise missing_job()
    # The answer comes first, then whatever the position means.
    connection.tell(Ack(), asked.incoming)
    lane.go_on_behind(command.epoch, command.seq)
    return None


async def _typing(asked: Asked, command: said.UserTyping) -> Answer:
    if await find_thread(asked.context, command.thread_id) is None:
        raise _missing("thread")
    notice = Typing(user_id=asked.context.user_id, thread_id=command.thread_id, is_typing=command.is_typing)
    for connection in asked.context.connections.values():
        if connection is not asked.connection and connection.reads and not connection.quiet:
            connection.tell(notice)
    return Answer(Ack(thread_id=command.thread_id))


async def _ping(asked: Asked, command: said.Ping) -> Answer:
    return Answer(Pong(original_timestamp=command.timestamp))


async def _heartbeat(asked: Asked, command: said.Heartbeat) -> Answer:
    return Answer(HeartbeatAck())


async def _connect(asked: Asked, command: said.Connect) -> Answer:
    return Answer(Ack())


async def _disconnect(asked: Asked, command: said.Disconnect) -> Result:
    asked.connection.explicit = True
    asked.connection.tell(Ack(), asked.incoming)
    asked.connection.shut(CloseCode.NORMAL, "bye")
    return None


async def _handshake(asked: Asked, command: said.HandshakeAcknowledged) -> Result:
    connection = asked.connection
    if connection.offered is None:
        raise ClientError("INVALID_MESSAGE", "no handshake was begun")
    if command.thread_id not in (None, connection.offered):
        fields = {"$.thread_id": "expected that of the handshake_response"}
        raise ClientError("INVALID_MESSAGE", "the handshake is about another thread", details={"fields": fields})
    # In front of everything that was kept back; said once more to who acknowledges once more.
    connection.tell(HandshakeComplete(thread_id=connection.offered), asked.incoming)
    connection.end_quiet()
    return None


async def _answer_input(asked: Asked, command: said.InputResponse) -> Answer:
    context = asked.context
    return Answer(Ack(), context.inputs.answer(command.input_id, command.status, command.value, context.user_id))


async def _connect_job(asked: Asked, command: said.ConnectJob) -> Result:
    connection, jobs = asked.connection, asked.context.home.jobs
    lane = connection.job_lanes.get(command.job_id)
    most = asked.context.policy.max_jobs_per_connection
    if lane is None and len(connection.job_lanes) >= most:
        raise ClientError("QUOTA_EXCEEDED", f"more than {most} jobs on one connection")
    await jobs.check_granted(command.job_id, connection.identity)
    live = await jobs.pin(command.job_id)
    try:
        if not live.may_read(connection.identity):
            raise missing_job()
        if connection.closing:
            return None
        if connection not in live.seats:
            jobs.leave(connection, command.job_id)  # an older incarnation, which was closed
            jobs.join(live, connection)
        lane = live.seats[connection]
    finally:
        jobs.unpin(live)
    # The answer comes first: behind which place it is read, then what stands there.
    position = Position(epoch=live.stream.epoch, seq=lane.cursor.seq)
    connection.tell(JobConnected(job_id=command.job_id, stream=position), asked.incoming)
    if command.resume is not None:
        lane.go_on_behind(*split_position(command.resume))
    return None


async def _disconnect_job(asked: Asked, command: said.DisconnectJob) -> Answer:
    if not asked.context.home.jobs.leave(asked.connection, command.job_id):
        raise missing_job()
    return Answer(JobDisconnected(job_id=command.job_id))


async def _publish_job(asked: Asked, command: said.PublishJob) -> Later:
    context, identity = asked.context, asked.connection.identity
    context.check_store()
    try:
        check_event(command.name, command.value, context.policy.run.max_event_bytes)
    except InvalidArgument as wrong:
        text = f"$.{wrong}"
        raise ClientError("INVALID_MESSAGE", text, details={"fields": {f"$.{wrong.argument}": text}}) from None
    event = Announcement(name=command.name, value=command.value, user_id=context.user_id, job_id=command.job_id)
    jobs = context.home.jobs
    await jobs.check_granted(command.job_id, identity)
    stream, seq = await jobs.emit(command.job_id, identity, lambda live: event, LiveJob.may_read)

    async def kept() -> Answer:
        with trio.move_on_after(context.policy.run.finalise_s):
            await stream.wait_visible(seq)
            return Answer(Ack(seq=seq))
        raise ClientError("UNAVAILABLE", "the store does not answer; this may still take effect", retryable=True)

    return kept


async def _refresh_auth(asked: Asked, command: said.RefreshAuth) -> Answer:
    connection = asked.connection
    try:
        identity = await connection.wire.identify(command.token)
    except Refused as refused:
        details = {"reason": refused.code}
        if refused.status == 429:
            wait_s = refused.retry_after_s
            raise ClientError("RATE_LIMITED", refused.text, retryable=True, retry_after_s=wait_s) from None
        if refused.status >= 500:  # a program's own rule that fails says nothing about the token
            raise ClientError("UNAVAILABLE", refused.text, retryable=True, details=details) from None
        raise ClientError("AUTH_FAILED", refused.text, details=details) from None
    if identity.user_id != asked.context.user_id:
        details = {"reason": "OTHER_USER"}
        raise ClientError("AUTH_FAILED", "the token is another user's; connect anew with it", details=details)
    if not connection.closing:
        connection.renew(identity)
        asked.context.home.jobs.look_again(connection)
    return Answer(AuthRefreshed(expires_at=identity.expires_at))


async def _kick(asked: Asked, command: said.Kick) -> Later:
    proof = asked.context.home.kick(
        Whom(command.user_id, command.jti, command.reason, asked.context.user_id), asked.connection
    )

    async def ended() -> Answer:
        kicked = await proof()
        return Answer(Ack(connections=kicked.connections, runs=kicked.runs))

    return ended


FUNCTIONS: Mapping[type[said.Command], Function] = {
    said.StartAgent: _start,
    said.UserMessage: _start,
    said.StopAgent: _stop,
    said.InputResponse: _answer_input,
    said.CreateThread: _create_thread,
    said.ListThreads: _list_threads,
    said.GetThreadHistory: _get_thread_history,
    said.RenameThread: _rename_thread,
    said.DeleteThread: _delete_thread,
    said.SwitchThread: _switch_thread,
    said.ConnectJob: _connect_job,
    said.DisconnectJob: _disconnect_job,
    said.PublishJob: _publish_job,
    said.Resume: _resume,
    said.RefreshAuth: _refresh_auth,
    said.Kick: _kick,
    said.UserTyping: _typing,
    said.Ping: _ping,
    said.Heartbeat: _heartbeat,
    said.Connect: _connect,
    said.Disconnect: _disconnect,
    said.HandshakeAcknowledged: _handshake,
}

#: Which permission a command needs (see ``needs``); what is not here needs only a valid token.
NEEDS: Mapping[type[said.Command], str] = {
    said.StartAgent: "chat",
    said.UserMessage: "chat",
    said.StopAgent: "chat",
    said.InputResponse: "chat",
    said.CreateThread: "chat",
    said.RenameThread: "chat",
    said.DeleteThread: "chat",
    said.SwitchThread: "chat",
    said.UserTyping: "chat",
    said.ListThreads: "read",
    said.GetThreadHistory: "read",
    said.Resume: "read",
    said.PublishJob: "job:publish",
    said.Kick: "operator",
}


def needs(command: said.Command) -> str | None:
    """Return the permission that a command needs; None for what needs only a valid token, or the grant of a job."""
    if isinstance(command, said.Resume) and command.job_id is not None:
        return None
    return NEEDS.get(type(command))


#: What the store is not asked for, so that no deadline has to be set for it; a program's own rule has its own.
READS_NOTHING = frozenset({said.Ping, said.Heartbeat, said.Connect, said.Disconnect, said.Resume, said.RefreshAuth})

#: What is answered in a task of its own.
TAKES_TIME = frozenset({said.StopAgent, said.DeleteThread, said.Kick, said.PublishJob})

#: What still works after the token has expired.
WITHOUT_TOKEN = (said.RefreshAuth, said.Ping, said.Heartbeat, said.StopAgent)

#: Commands with an effect: their id is remembered with its answer.
REMEMBERED = (
    said.StartAgent,
    said.UserMessage,
    said.StopAgent,
    said.InputResponse,
    said.CreateThread,
    said.RenameThread,
    said.DeleteThread,
    said.PublishJob,
    said.Kick,
)
