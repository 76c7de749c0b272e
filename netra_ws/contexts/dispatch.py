"""The dispatcher of a connection: commands in the order in which they came, each answered once.

One function per command, in one table. A function returns the answer, or a coroutine function for
an answer that takes waiting (for a run's end): that becomes a task of its own, so the commands
behind it go on. What a client got wrong leaves a function as ``ClientError``.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import trio

from netra_ws.contexts.connection import Connection
from netra_ws.contexts.context import UserContext
from netra_ws.contexts.memory import Remembered, digest
from netra_ws.contexts.starting import Ask, find_thread, open_thread, start, write_thread
from netra_ws.errors import ClientError, StoreError
from netra_ws.history.stores.contract import DeleteThread as DeleteThreadRow
from netra_ws.history.stores.contract import RenameThread as RenameThreadRow
from netra_ws.protocol import commands as said
from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.codec import Incoming, error_reply
from netra_ws.protocol.events import ThreadDeleted, ThreadRenamed
from netra_ws.protocol.replies import (
    MALFORMED,
    MAX_MALFORMED,
    Ack,
    Error,
    HandshakeComplete,
    HeartbeatAck,
    Pong,
    Reply,
    StreamReset,
    ThreadCreatedReply,
    ThreadDeletedReply,
    ThreadRenamedReply,
    ThreadSwitched,
    Typing,
)

logger = logging.getLogger(__name__)


@attrs.frozen
class Answer:
    """What a command is answered with; with *barrier*, right after the event of that seq."""

    reply: Reply
    barrier: int = 0


Later = Callable[[], Awaitable[Answer]]
#: None: the function has told the connection itself.
Result = Answer | Later | None
Function = Callable[["Turn", Any], Awaitable[Result]]


@attrs.define
class Turn:
    """One command's turn: where it came from."""

    context: UserContext
    connection: Connection
    incoming: Incoming
    count: Callable[[str, str], None]

    async def take(self) -> None:
        """Carry the command out and answer it, whatever happens."""
        incoming = self.incoming
        if incoming.error is not None:
            self._answer_malformed(incoming.error)
            return
        self.connection.malformed = 0
        command = incoming.command
        assert command is not None
        if not incoming.rpc and command.id is not None and type(command) in REMEMBERED:
            await self._once(command, command.id)
        else:
            self._give(command, await self._try(command), None)

    def _answer_malformed(self, error: ClientError) -> None:
        connection = self.connection
        self._tell(Answer(error_reply(error)))
        if error.code in MALFORMED:
            connection.malformed += 1
            if connection.malformed >= MAX_MALFORMED:
                connection.shut(CloseCode.POLICY, "too many malformed messages")

    async def _once(self, command: said.Command, command_id: str) -> None:
        """Carry out a command with an id; a repeat gets the first one's answer."""
        memory = self.context.memory
        body_digest = digest(self.incoming.body)
        known = memory.find(command_id, trio.current_time())
        if known is None and isinstance(command, said.Start):
            known = await self._from_ledger(command_id, body_digest)
        if known is None:
            remembered = memory.begin(command_id, body_digest, trio.current_time())
            try:
                result = await self._try(command)
            except BaseException:
                memory.settle(command_id, remembered, None, 0)
                raise
            self._give(command, result, (command_id, remembered))
        elif known.digest != body_digest:
            self._tell(Answer(error_reply(ClientError("CONFLICT", "this id was used for another command"))))
        elif known.done.is_set() and known.reply is not None:
            self._tell(Answer(known.reply, known.barrier))
        else:
            self.context.start_soon(lambda: self._join(known))

    async def _from_ledger(self, command_id: str, body_digest: bytes) -> Remembered | None:
        """Return what a restart did not forget: the run that this command started."""
        try:
            row = await self.context.ledger.run_of_command(self.context.user_id, command_id)
        except StoreError:
            return None  # the start itself will say that the store is away
        if row is None:
            return None
        remembered = Remembered(bytes.fromhex(row.command_digest or ""), 0.0)
        remembered.reply = Ack(
            run_id=row.run_id, thread_id=row.thread_id, message_id=row.message_id, disposition="started"
        )
        remembered.done.set()
        return remembered

    async def _join(self, known: Remembered) -> None:
        await known.done.wait()
        if known.reply is None:
            error = ClientError("UNAVAILABLE", "the first try of this command failed", retryable=True)
            self._tell(Answer(error_reply(error)))
        else:
            self._tell(Answer(known.reply, known.barrier))

    async def _try(self, command: said.Command) -> Result:
        async def carry_out() -> Result:
            self._check(command)
            return await FUNCTIONS[type(command)](self, command)

        return await _guarded(command, carry_out)

    def _check(self, command: said.Command) -> None:
        connection, now = self.connection, trio.current_time()
        identity = connection.identity
        if (
            identity.expires_at is not None
            and connection.clock() >= identity.expires_at
            and type(command) not in WITHOUT_TOKEN
        ):
            raise ClientError("AUTH_FAILED", "the token has expired")
        needed = NEEDS.get(type(command))
        if needed is not None and not identity.may(needed):
            raise ClientError("FORBIDDEN", f"this needs the permission {needed}")
        if type(command) in (said.Ping, said.Heartbeat):
            return  # these have a budget of their own: the pump reads no faster
        budgets = self.context.memory.budgets
        budget = budgets.talk if isinstance(command, said.TALK) else budgets.other
        wait_s = budget.take(now)
        if wait_s > 0:
            raise ClientError(
                "RATE_LIMITED", "too many messages", retryable=True, retry_after_s=round(wait_s + 0.0005, 3)
            )

    def _give(self, command: said.Command, result: Result, remembered: tuple[str, Remembered] | None) -> None:
        if result is None:
            self.count(self.incoming.type_name, "ok")
            return
        if isinstance(result, Answer):
            self._settle(result, remembered)
            return

        async def wait() -> None:
            answer = await _guarded(command, result)
            assert isinstance(answer, Answer)
            self._settle(answer, remembered)

        self.context.start_soon(wait)

    def _settle(self, answer: Answer, remembered: tuple[str, Remembered] | None) -> None:
        if remembered is not None:
            reply = answer.reply
            keep = None if isinstance(reply, Error) and reply.retryable else reply
            self.context.memory.settle(*remembered, keep, answer.barrier)
        self._tell(answer)

    def _tell(self, answer: Answer) -> None:
        reply = answer.reply
        code = reply.code if isinstance(reply, Error) else "ok"
        if isinstance(reply, Error):
            self.connection.traffic.errors += 1
        self.count(self.incoming.type_name, code)
        self.connection.tell(reply, self.incoming, answer.barrier)


async def dispatch(context: UserContext, connection: Connection, count: Callable[[str, str], None]) -> None:
    """Take a connection's commands until its inbox is closed."""
    with connection.inbox:  # closed behind us, so that nobody waits for room in it
        async for incoming in connection.inbox:
            await Turn(context, connection, incoming, count).take()
            if connection.closing:
                return


async def _guarded(command: said.Command, work: Callable[[], Awaitable[Result]]) -> Result:
    """Carry *work* out; what goes wrong becomes the answer. This is the crash wall of a connection's commands."""
    try:
        return await work()
    except ClientError as error:
        return Answer(error_reply(error))
    except StoreError as exc:
        logger.warning("command %s failed: %s", command.type, exc)
        return Answer(error_reply(_away()))
    except Exception as exc:  # a bug of ours must not end the connection
        return Answer(_internal(command, exc))


def _away() -> ClientError:
    return ClientError("UNAVAILABLE", "the store does not answer", retryable=True)


def _internal(command: said.Command, exc: Exception) -> Error:
    correlation_id = secrets.token_hex(4)
    logger.error("command %s failed [%s]", command.type, correlation_id, exc_info=exc)
    text = f"the server failed; its log has it under {correlation_id}"
    return error_reply(ClientError("INTERNAL", text), correlation_id)


def _missing(what: str) -> ClientError:
    return ClientError("NOT_FOUND", f"there is no such {what}")


# The commands.


async def _start(turn: Turn, command: said.Start) -> Answer:
    connection = turn.connection
    remembered = command.id is not None and not turn.incoming.rpc
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
        command_digest=digest(turn.incoming.body).hex() if remembered else None,
    )
    if isinstance(command, said.StartAgent):
        ask = attrs.evolve(ask, run_id=command.run_id, idle_timeout_s=command.idle_timeout_s)
    elif isinstance(command, said.UserMessage):
        ask = attrs.evolve(ask, attachments=command.attachments, jsonl_logs=command.jsonl_logs)
    started = await start(turn.context, ask, connection.identity)
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


async def _stop(turn: Turn, command: said.StopAgent) -> Result:
    run = turn.context.runs.get(command.run_id) or turn.context.home.find_run(turn.context.user_id, command.run_id)
    if run is None:
        row = await turn.context.ledger.run(turn.context.user_id, command.run_id)
        if row is None:
            raise _missing("run")
        return Answer(Ack(run_id=row.run_id, status=row.state), turn.context.stream.last)
    stopped = run
    if command.mode == "after_step":
        stopped.cancel_after_step()
    else:
        turn.context.stop(stopped)

    async def proof() -> Answer:
        await stopped.settled.wait()
        if stopped.sealed:
            raise ClientError("CANCEL_TIMEOUT", "the agent did not stop in time", details={"run_id": stopped.run_id})
        return Answer(Ack(run_id=stopped.run_id, status=stopped.status), stopped.last_seq)

    return proof


async def _create_thread(turn: Turn, command: said.CreateThread) -> Answer:
    context = turn.context
    async with context.lock:
        thread, created = await open_thread(context, command.thread_id, command.title or "", command.metadata)
        barrier = 0
        if created:
            with context.stream.step() as step:
                barrier = write_thread(context, step, thread)
    reply = ThreadCreatedReply(thread_id=thread.thread_id, title=thread.title, metadata=thread.metadata)
    return Answer(reply, barrier)


async def _switch_thread(turn: Turn, command: said.SwitchThread) -> Answer:
    context = turn.context
    async with context.lock:
        thread, created = await open_thread(context, command.thread_id, "")
        barrier = 0
        if created:
            with context.stream.step() as step:
                barrier = write_thread(context, step, thread)
    turn.connection.thread_id = thread.thread_id
    return Answer(ThreadSwitched(thread_id=thread.thread_id), barrier)


async def _list_threads(turn: Turn, command: said.ListThreads) -> Answer:
    context = turn.context
    return Answer(await context.ledger.thread_list(context.user_id, command.limit, command.before))


async def _get_thread_history(turn: Turn, command: said.GetThreadHistory) -> Answer:
    context = turn.context
    if await find_thread(context, command.thread_id) is None:
        raise _missing("thread")
    history = await context.ledger.thread_history(context.stream, command.thread_id, command.limit, command.before)
    return Answer(history)


async def _rename_thread(turn: Turn, command: said.RenameThread) -> Answer:
    context = turn.context
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


async def _delete_thread(turn: Turn, command: said.DeleteThread) -> Later:
    context = turn.context
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
        event = ThreadDeleted(thread_id=thread.thread_id, title=thread.title, metadata=thread.metadata)
        entry = context.stream.append(event, DeleteThreadRow(user_id=context.user_id, thread_id=thread.thread_id))
        context.threads.remove(thread.thread_id)
        if context.known_threads:
            context.known_threads -= 1
        for connection in context.connections.values():
            if connection.thread_id == thread.thread_id:
                connection.thread_id = None
        reply = ThreadDeletedReply(thread_id=thread.thread_id, title=thread.title, metadata=thread.metadata)
        return Answer(reply, entry.seq)

    return delete


async def _resume(turn: Turn, command: said.Resume) -> Result:
    if command.job_id is not None:
        raise _missing("job")
    # The answer comes first, then whatever the position means.
    turn.connection.tell(Ack(), turn.incoming)
    set_position(turn.connection, command.epoch, command.seq)
    return None


def set_position(connection: Connection, epoch: str, seq: int) -> bool:
    """Go on behind a client's position, or tell it that nothing can be continued; return whether it could."""
    stream = connection.cursor.stream
    reason = stream.judge(epoch, seq)
    if reason is None:
        connection.replay(seq)
        return True
    connection.jump()
    connection.tell(StreamReset(epoch=stream.epoch, seq=stream.visible, reason=reason))
    return False


async def _typing(turn: Turn, command: said.UserTyping) -> Answer:
    notice = Typing(user_id=turn.context.user_id, thread_id=command.thread_id, is_typing=command.is_typing)
    for connection in turn.context.connections.values():
        if connection is not turn.connection:
            connection.tell(notice)
    return Answer(Ack(thread_id=command.thread_id))


async def _ping(turn: Turn, command: said.Ping) -> Answer:
    return Answer(Pong(original_timestamp=command.timestamp))


async def _heartbeat(turn: Turn, command: said.Heartbeat) -> Answer:
    return Answer(HeartbeatAck())


async def _connect(turn: Turn, command: said.Connect) -> Answer:
    return Answer(Ack())


async def _disconnect(turn: Turn, command: said.Disconnect) -> Result:
    turn.connection.explicit = True
    turn.connection.tell(Ack(), turn.incoming)
    turn.connection.shut(CloseCode.NORMAL, "bye")
    return None


async def _handshake(turn: Turn, command: said.HandshakeAcknowledged) -> Answer:
    thread_id = command.thread_id or turn.connection.thread_id
    if not turn.connection.older or thread_id is None:
        raise ClientError("INVALID_MESSAGE", "no handshake was begun")
    return Answer(HandshakeComplete(thread_id=thread_id))


async def _no_input(turn: Turn, command: said.InputResponse) -> Answer:
    raise _missing("input")


async def _no_job(turn: Turn, command: said.Command) -> Answer:
    raise _missing("job")


async def _not_yet(turn: Turn, command: said.Command) -> Answer:
    raise ClientError("UNAVAILABLE", f"{command.type} is not available on this server")


FUNCTIONS: Mapping[type[said.Command], Function] = {
    said.StartAgent: _start,
    said.UserMessage: _start,
    said.StopAgent: _stop,
    said.InputResponse: _no_input,
    said.CreateThread: _create_thread,
    said.ListThreads: _list_threads,
    said.GetThreadHistory: _get_thread_history,
    said.RenameThread: _rename_thread,
    said.DeleteThread: _delete_thread,
    said.SwitchThread: _switch_thread,
    said.ConnectJob: _no_job,
    said.DisconnectJob: _no_job,
    said.PublishJob: _no_job,
    said.Resume: _resume,
    said.RefreshAuth: _not_yet,
    said.Kick: _not_yet,
    said.UserTyping: _typing,
    said.Ping: _ping,
    said.Heartbeat: _heartbeat,
    said.Connect: _connect,
    said.Disconnect: _disconnect,
    said.HandshakeAcknowledged: _handshake,
}

#: Which permission a command needs; what is not here needs only a valid token.
NEEDS: Mapping[type[said.Command], str] = {
    said.StartAgent: "chat",
    said.UserMessage: "chat",
    said.StopAgent: "chat",
    said.InputResponse: "chat",
    said.CreateThread: "chat",
    said.RenameThread: "chat",
    said.DeleteThread: "chat",
    said.SwitchThread: "chat",
    said.ListThreads: "read",
    said.GetThreadHistory: "read",
    said.Resume: "read",
    said.PublishJob: "job:publish",
    said.Kick: "operator",
}

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
