"""The dispatcher of a connection: commands in the order in which they came, each answered once.

What a command does stands in ``contexts/commands.py``. Here: permissions and budgets before it, the
memory of commands that must not happen twice, and the crash wall around it. An answer that takes
waiting becomes a task of its own, so the commands behind it go on.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import attrs
import trio

from netra_ws.access.limits import RateLimit
from netra_ws.errors import ClientError, StoreError
from netra_ws.protocol import commands as said
from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.codec import Incoming, error_reply
from netra_ws.protocol.replies import MALFORMED, MAX_MALFORMED, Ack, Error, Reply

from .commands import FUNCTIONS, READS_NOTHING, REMEMBERED, TAKES_TIME, WITHOUT_TOKEN, Answer, Asked, Result, needs
from .connection import Connection
from .context import UserContext
from .memory import Remembered, digest
from .starting import wait_for_leaving

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Answers of one user that wait for something, such as the end of a run; each is a task.
MAX_WAITING = 256
#: Seconds for what a command reads before it has an effect; the commands behind it wait as long.
READ_S = 5.0


@attrs.define(repr=False)
class Turn:
    """One command's turn."""

    asked: Asked
    count: Callable[[str, str], None]

    @property
    def context(self) -> UserContext:
        return self.asked.context

    @property
    def connection(self) -> Connection:
        return self.asked.connection

    @property
    def incoming(self) -> Incoming:
        return self.asked.incoming

    async def take(self) -> None:
        """Carry the command out and answer it, whatever happens."""
        incoming = self.incoming
        if incoming.type_name != said.HandshakeAcknowledged.type:
            self.connection.end_quiet()  # who says anything else wants to hear of it, or knows no handshake
        if incoming.error is not None:
            self._answer_malformed(incoming.error)
            return
        self.connection.malformed = 0
        command = incoming.command
        assert command is not None
        refusal = self._refusal(command)
        if refusal is not None:
            # Before anything is looked up, so it tells nothing; and not remembered: the next token may do it.
            self._tell(Answer(error_reply(refusal)))
            return
        key = self._key(command)
        if key is not None and type(command) in REMEMBERED:
            await self._once(command, key)
        else:
            self._give(command, await self._try(command), None)

    def _key(self, command: said.Command) -> str | None:
        """Return under what a command is remembered: its id; a JSON-RPC id counts on its connection only."""
        if not self.incoming.rpc:
            return command.id
        if self.incoming.silent or self.incoming.reply_to is None:
            return None
        return f"\0{self.connection.connection_id} {command.type} {self.incoming.reply_to!r}"

    def _answer_malformed(self, error: ClientError) -> None:
        connection = self.connection
        self._tell(Answer(error_reply(error)))
        connection.malformed = connection.malformed + 1 if error.code in MALFORMED else 0
        if connection.malformed >= MAX_MALFORMED:
            connection.shut(CloseCode.POLICY, "too many malformed messages")

    async def _once(self, command: said.Command, command_id: str) -> None:
        """Carry out a command with an id; a repeat gets the first one's answer."""
        memory = self.context.memory
        body_digest = digest(self.incoming.body)
        known = memory.find(command_id, trio.current_time())
        if known is None and isinstance(command, said.Start) and not self.incoming.rpc:
            wait_s = self.context.memory.budgets.talk.wait_s(trio.current_time())
            if wait_s > 0:  # the store is not asked for what will not be begun
                self._tell(Answer(error_reply(_too_fast(wait_s))))
                return
            try:
                known = await self._from_ledger(command_id)
            except StoreError as exc:
                # Begun now, it might be begun twice.
                logger.warning("command %s failed: %s", command.type, exc)
                self._tell(Answer(error_reply(_away())))
                return
            # Another tab may have begun the same command meanwhile.
            known = known or memory.find(command_id, trio.current_time())
        if known is None:
            remembered = memory.begin(command_id, body_digest)
            try:
                result = await self._try(command)
            except BaseException:
                self._give_up((command_id, remembered))
                raise
            self._give(command, result, (command_id, remembered))
        elif known.digest != body_digest:
            self._tell(Answer(error_reply(ClientError("CONFLICT", "this id was used for another command"))))
        elif known.done.is_set() and known.reply is not None:
            self._repeat(command, known.reply, known.barrier)
        else:
            # A repeat costs no token of the budgets, so only this bounds how many wait.
            if self.context.waiting < MAX_WAITING:
                self._wait(lambda: self._join(command, known))
            else:
                self._tell(Answer(error_reply(_too_many())))

    def _wait(self, work: Callable[[], Awaitable[None]]) -> None:
        """Have *work* answer later, in a task of its own."""
        context = self.context
        context.waiting += 1

        async def wait() -> None:
            try:
                await work()
            finally:
                context.waiting -= 1

        context.start_soon(wait)

    async def _from_ledger(self, command_id: str) -> Remembered | None:
        """Return what a restart did not forget: the run that this command started.

        Raises:
            StoreError: The store did not answer.
        """
        row = await _in_time(lambda: self.context.ledger.run_of_command(self.context.user_id, command_id))
        if row is None:
            return None
        remembered = Remembered(bytes.fromhex(row.command_digest or ""))
        remembered.reply = Ack(
            run_id=row.run_id,
            thread_id=row.thread_id,
            message_id=row.message_id,
            disposition="queued" if row.trigger == "queue" else "started",
        )
        remembered.done.set()
        return remembered

    async def _join(self, command: said.Command, known: Remembered) -> None:
        await known.done.wait()
        if known.reply is None:
            error = ClientError("UNAVAILABLE", "the first try of this command failed", retryable=True)
            self._tell(Answer(error_reply(error)))
        else:
            self._repeat(command, known.reply, known.barrier)

    def _repeat(self, command: said.Command, reply: Reply, barrier: int) -> None:
        """Answer as the first time; a message that opened a thread does so for this connection, too."""
        if isinstance(command, said.Start) and command.thread_id is None and isinstance(reply, Ack):
            self.connection.thread_id = reply.thread_id
        self._tell(Answer(reply, barrier))

    async def _try(self, command: said.Command) -> Result:
        async def carry_out() -> Result:
            self._check(command)
            function = FUNCTIONS[type(command)]
            if type(command) in READS_NOTHING:
                return await function(self.asked, command)
            if isinstance(command, said.Start) and (thread_id := command.thread_id or self.connection.thread_id):
                await wait_for_leaving(self.context, thread_id)  # no work of the store's
            return await _in_time(lambda: function(self.asked, command))

        return await _guarded(command, carry_out)

    def _refusal(self, command: said.Command) -> ClientError | None:
        """Return why this identity may not say this command at all; None when it may."""
        identity, clock = self.connection.identity, self.connection.clock
        expired = identity.expires_at is not None and clock() >= identity.expires_at
        needed = needs(command)
        if expired and type(command) not in WITHOUT_TOKEN:
            refusal = ClientError("AUTH_FAILED", "the token has expired")
        elif needed is not None and not identity.may(needed):
            refusal = ClientError("FORBIDDEN", f"this needs the permission {needed}")
        else:
            return None
        # Not of the budget for talking: a token that may only read must not use up what its user may say.
        return _rate_limited(self.context.memory.budgets.other) or refusal

    def _check(self, command: said.Command) -> None:
        if type(command) in (said.Ping, said.Heartbeat):
            return  # these have a budget of their own: the pump reads no faster
        if type(command) in TAKES_TIME and self.context.waiting >= MAX_WAITING:
            raise _too_many()
        budgets = self.context.memory.budgets
        limited = _rate_limited(budgets.talk if isinstance(command, said.TALK) else budgets.other)
        if limited is not None:
            raise limited

    def _give(self, command: said.Command, result: Result, remembered: tuple[str, Remembered] | None) -> None:
        if result is None:
            self.count(self.incoming.type_name, "ok")
            return
        if isinstance(result, Answer):
            self._settle(result, remembered)
            return

        async def wait() -> None:
            try:
                answer = await _guarded(command, result)
            except BaseException:  # the context is closing: a repeat must not wait for what will not come
                if remembered is not None:
                    self._give_up(remembered)
                raise
            assert isinstance(answer, Answer)
            self._settle(answer, remembered)

        self._wait(wait)

    def _settle(self, answer: Answer, remembered: tuple[str, Remembered] | None) -> None:
        if remembered is not None:
            reply = answer.reply
            keep = not (isinstance(reply, Error) and reply.retryable)
            self.context.memory.settle(*remembered, reply, answer.barrier, trio.current_time(), keep=keep)
        self._tell(answer)

    def _give_up(self, remembered: tuple[str, Remembered]) -> None:
        self.context.memory.settle(*remembered, None, 0, trio.current_time(), keep=False)

    def _tell(self, answer: Answer) -> None:
        reply = answer.reply
        code = reply.code if isinstance(reply, Error) else "ok"
        if isinstance(reply, Error):
            self.connection.traffic.errors += 1
        # Counted when it goes: while it waits for its event, another answer may be given in its place.
        told = partial(self.count, self.incoming.type_name, code)
        self.connection.tell(reply, self.incoming, answer.barrier, told)


async def dispatch(context: UserContext, connection: Connection, count: Callable[[str, str], None]) -> None:
    """Take a connection's commands until its inbox is closed."""
    with connection.inbox:  # closed behind us, so that nobody waits for room in it
        while (incoming := await connection.next_command()) is not None:
            try:
                await Turn(Asked(context, connection, incoming), count).take()
            finally:
                connection.end_turn()
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


async def _in_time(work: Callable[[], Awaitable[T]]) -> T:
    """Return what *work* returns: it may wait while it reads; from its first effect on it waits no more.

    Raises:
        StoreError: It took longer than ``READ_S``; nothing was done.
    """
    with trio.move_on_after(READ_S):
        return await work()
    raise StoreError(f"no answer within {READ_S:g} s")


def _rate_limited(budget: RateLimit) -> ClientError | None:
    """Take a token of *budget*; return what to answer when there is none."""
    wait_s = budget.take(trio.current_time())
    return _too_fast(wait_s) if wait_s > 0 else None


def _too_fast(wait_s: float) -> ClientError:
    return ClientError("RATE_LIMITED", "too many messages", retryable=True, retry_after_s=round(wait_s + 0.0005, 3))


def _too_many() -> ClientError:
    return ClientError("BUSY", "too many answers are waited for", retryable=True)


def _away() -> ClientError:
    return ClientError("UNAVAILABLE", "the store does not answer", retryable=True)


def _internal(command: said.Command, exc: Exception) -> Error:
    correlation_id = secrets.token_hex(4)
    logger.error("command %s failed [%s]", command.type, correlation_id, exc_info=exc)
    text = f"the server failed; its log has it under {correlation_id}"
    return error_reply(ClientError("INTERNAL", text), correlation_id)
