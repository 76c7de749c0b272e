"""What a manager sends: to a user, a thread, one connection, or all of its users; and what nobody has taken.

A message is made JSON once. Each socket has its own deadline and its own turn, so a stalled one holds up
nobody, and messages keep their order on each. No lock of the manager is held while anything is sent. A message
that the program addresses to one user goes out as it is: names in it that end in ``_user_id`` are its own
business, and are not rewritten.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import trio

from netra_ws.errors import InvalidArgument

from .arguments import checked_seconds, checked_text
from .connection import WebSocketConnection
from .encoding import Encoded, encode
from .failures import FailureKind
from .holding import Holding
from .lines import Line
from .recovery import Kept, Queue
from .sockets import put, put_in_turn

logger = logging.getLogger(__name__)

#: How often a waiting message is tried again when sockets fail over the message itself.
MAX_ATTEMPTS = 3


@attrs.define(eq=False, repr=False, slots=False)
class Speaking(Holding):
    """A manager's voice.

    Attributes:
        messages_sent: Messages that a socket or the user's stream has taken.
    """

    messages_sent: int = attrs.field(default=0, init=False)

    # Coming.

    async def add_connection(self, connection: WebSocketConnection) -> int:
        """Take a connection in, and send it what its user has missed.

        Returns:
            How many messages were sent again. A socket that fails meanwhile is out again: ``is_active``.

        Raises:
            InvalidArgument: It is no connection, its id is taken, or nothing can be sent on its socket.
            ContextIsolationError: It, its socket or its thread is another user's.
            LimitReached: There are too many.

        *Cancellation:* the connection stays; what was not sent still waits.
        """
        await trio.lowlevel.checkpoint()
        line = self._admit(connection)
        return await self._recover(line.connection.user_id)

    async def connect_user(
        self, user_id: str, websocket: Any, *, connection_id: str | None = None, thread_id: str | None = None
    ) -> WebSocketConnection:
        """Take a socket in as a connection of a user, under a new id, and return it.

        Raises:
            InvalidArgument, ContextIsolationError, LimitReached: As ``add_connection``; *websocket* may not be None.
        """
        if websocket is None:
            raise InvalidArgument("websocket", "expected an object with send_json or send_message")
        chosen = self._new_id() if connection_id is None else connection_id
        connection = WebSocketConnection(chosen, self._user(user_id), websocket, thread_id=thread_id)
        await self.add_connection(connection)
        return connection

    # Sending.

    async def send_to_user(self, user_id: str, message: Any) -> bool:
        """Send a message to all connections of a user.

        Returns:
            Whether at least one has taken it, or their stream on the server has. If not, it waits for the
            user's next connection, unless JSON cannot say it or it is above the bound; the counts of
            ``get_error_statistics`` tell. Connections that fail are taken out.

        Raises:
            InvalidArgument: *user_id* or *message* is not good.
            ContextIsolationError: The manager serves another user.
            ClientError: ``UNAVAILABLE``: the server's store takes nothing; nothing was sent.

        *Cancellation:* some may have it; connections on which it was begun are taken out.
        """
        user = self._user(user_id)
        self._held()
        encoded = self._encoded(message, user)
        await trio.lowlevel.checkpoint()
        return encoded is not None and await self._send(user, encoded)

    async def send_to_user_with_wait(self, user_id: str, message: Any, timeout: float = 3.0) -> bool:
        """Send as ``send_to_user``, after waiting at most *timeout* seconds for a connection."""
        within_s = checked_seconds(timeout, "timeout")
        user = self._user(user_id)
        await self.wait_for_connection(user, within_s)
        return await self.send_to_user(user, message)

    async def send_to_thread(self, thread_id: str, message: Any) -> bool:
        """Send as ``send_to_user`` to whoever owns a thread.

        Returns:
            Whether it was taken. A thread that nobody here was in is nobody's: False, and nothing is kept.
        """
        checked_text(thread_id, "thread_id")
        owner = await self._owner(thread_id)
        if owner is None:
            await trio.lowlevel.checkpoint()
            self._encoded(message, None)
            self._failures.note(FailureKind.NO_CONNECTION, None, self.clock())
            return False
        return await self.send_to_user(owner, message)

    async def _owner(self, thread_id: str) -> str | None:
        held = self._held()
        owner = self._owners.owner(thread_id)
        if owner is None:  # a program may have put a connection into a thread by hand
            users = (one.connection.user_id for one in held if one.connection.thread_id == thread_id)
            owner = next(users, None)
        if owner is None and self._native is not None and await self._native.has_thread(thread_id):
            owner = self._native.session.identity.user_id
        return owner

    async def emit_critical_event(self, user_id: str, event_type: str, data: Any) -> bool:
        """Send ``{type, data, timestamp, critical: true}`` to a user; returns as ``send_to_user``.

        There is no second try within the call: nobody can take what nobody could take, and it waits. When JSON
        cannot say it, or it is above the bound, the user is told by a ``system_error`` that something is missing.
        The older ``connection_error`` would go to a user who has no connection, and is never sent.
        """
        user = self._user(user_id)
        name = checked_text(event_type, "event_type")
        self._held()
        encoded = self._encoded(self._message(name, data), user)
        await trio.lowlevel.checkpoint()
        if encoded is not None:
            return await self._send(user, encoded)
        text = f"An update ({name}) could not be shown."
        notice = {
            "message": text,
            "event_type": name,
            "user_friendly_message": text,
            "severity": "error",
            "action_required": "Reload to see the current state.",
            "support_code": f"SYS_ERR_{user[:8]}_{name}",
        }
        told = self._encoded(self._message("system_error", notice), user)
        if told is not None and self.is_connection_active(user):
            await self._send(user, told)
        return False

    def _message(self, name: str, data: Any) -> dict[str, Any]:
        return {"type": name, "data": data, "timestamp": self.clock(), "critical": True}

    async def send_error(self, user_id: str, error_message: str, error_code: str = "ERROR") -> bool:
        """Tell a user of an error, in the form of the protocol: ``{type: "error", code, error, message}``."""
        if not isinstance(error_message, str) or not error_message.strip():
            raise InvalidArgument("error_message", "expected a text that is not blank")
        checked_text(error_code, "error_code")
        told = {"type": "error", "code": error_code, "error": error_message, "message": error_message}
        return await self.send_to_user(user_id, told | {"timestamp": self.clock()})

    async def send_message(self, connection_id: str, message: Any) -> bool:
        """Send a message on one connection; return whether it was taken. Nothing is kept when it was not.

        On the server's own sockets a user has one stream for all: there it is said to all of them.
        """
        checked_text(connection_id, "connection_id")
        line = self._held().get(connection_id)
        encoded = self._encoded(message, None if line is None else line.connection.user_id)
        await trio.lowlevel.checkpoint()
        if encoded is None:
            return False
        if line is not None:
            return await self._count(await self._put_all([line], encoded))
        if self._native is not None and self._native.get(connection_id) is not None:
            return await self._say(encoded)
        self._failures.note(FailureKind.NO_CONNECTION, None, self.clock())
        return False

    async def send_event(self, connection_id: str, event_type: str, data: Any) -> bool:
        """Send ``{type, data, timestamp, connection_id}`` on one connection; returns as ``send_message``."""
        name = checked_text(event_type, "event_type")
        message = {"type": name, "data": data, "timestamp": self.clock(), "connection_id": connection_id}
        return await self.send_message(connection_id, message)

    async def broadcast(self, message: Any, exclude_users: Iterable[str] = ()) -> int:
        """Send a message to every connection of this manager's users, and to nobody else's.

        Returns:
            How many have taken it; a user's stream on the server counts as one. Members of jobs are not
            meant, and nothing is kept for who was not there.
        """
        if isinstance(exclude_users, str | bytes) or not isinstance(exclude_users, Iterable):
            raise InvalidArgument("exclude_users", "expected ids of users")
        excluded = {self._user(user_id) for user_id in exclude_users}
        lines = [one for one in self._held() if one.job_id is None and one.connection.user_id not in excluded]
        encoded = self._encoded(message, None)
        await trio.lowlevel.checkpoint()
        if encoded is None:
            return 0
        said = 0
        if self._native is not None and self._native.session.identity.user_id not in excluded:
            said = int(await self._say(encoded))
        taken = await self._put_all(lines, encoded)
        await self._count(taken)
        return taken + said

    async def broadcast_to_all(self, message: Any, exclude_users: Iterable[str] = ()) -> int:
        """The same as ``broadcast``: all of this manager."""
        return await self.broadcast(message, exclude_users)

    # How it is done.

    def _encoded(self, message: object, user_id: str | None) -> Encoded | None:
        encoded = encode(message, self.policy.max_message_bytes)
        if isinstance(encoded, Encoded):
            return encoded
        self._failures.note(encoded, user_id, self.clock())
        logger.warning("a message was not sent: %s", encoded.value)
        return None

    async def _send(self, user_id: str, encoded: Encoded) -> bool:
        said = self._native is not None and await self._say(encoded)
        lines = self._held().of(user_id)
        if not lines:
            if not said:
                self._failures.note(FailureKind.NO_CONNECTION, user_id, self.clock())
                if self._native is None:
                    self._undelivered.keep(user_id, encoded, "no_connections", self.clock())
            return said
        if await self._count(await self._put_all(lines, encoded)) or said or self._closed:
            return True
        kept = self._undelivered.keep(user_id, encoded, "all_connections_failed", self.clock())
        await self._recover(user_id)  # another connection may have come meanwhile
        return kept.sent

    async def _say(self, encoded: Encoded) -> bool:
        """Put it on the user's stream; what is there is not kept a second time."""
        assert self._native is not None
        kind = await self._native.say(encoded)
        if kind is not None:
            self._failures.note(kind, self._native.session.identity.user_id, self.clock())
            return False
        self.messages_sent += 1
        return True

    async def _count(self, taken: int) -> bool:
        self.messages_sent += taken
        return taken > 0

    async def _put_all(self, lines: Sequence[Line], encoded: Encoded) -> int:
        """Send on several lines at the same time; return how many have taken it."""
        taken = 0

        async def put_on(line: Line) -> None:
            nonlocal taken
            try:
                kind = await put(line, encoded, self.policy.send_timeout_s)
            except BaseException:
                if line.cut:  # the caller was cancelled in the middle of a message
                    self._fail(line, FailureKind.TIMEOUT)
                raise
            taken += self._done(line, kind)

        async with trio.open_nursery() as nursery:
            for line in lines:
                nursery.start_soon(put_on, line)
        return taken

    def _done(self, line: Line, kind: FailureKind | None) -> bool:
        if kind is None:
            line.connection.touch(self.clock())
            return True
        self._fail(line, kind)
        return False

    def _fail(self, line: Line, kind: FailureKind) -> None:
        self._failures.note(kind, None if line.job_id is not None else line.connection.user_id, self.clock())
        self._drop(line)

    # What nobody has taken.

    async def attempt_message_recovery(self, user_id: str) -> int:
        """Send again what waits for a user who has a connection; return how many messages were taken."""
        user = self._user(user_id)
        self._held()
        await trio.lowlevel.checkpoint()
        return await self._recover(user)

    async def _recover(self, user_id: str) -> int:
        """Send what waits for a user on their newest connection, and on the next one when that fails.

        One task at a time does so for a user; what comes behind meanwhile is sent by it, too.
        """
        queue = self._undelivered.of(user_id)
        if queue is None or queue.busy:
            return 0
        queue.busy = True
        sent = 0
        try:
            while queue.waiting and (line := self._newest(user_id)) is not None:
                sent += await self._replay(line, queue)
        finally:
            queue.busy = False
            self._undelivered.tidy(user_id)
        await self._count(sent)
        return sent

    def _newest(self, user_id: str) -> Line | None:
        lines = reversed(self._lines.of(user_id))
        return next((line for line in lines if line.live), None)

    async def _replay(self, line: Line, queue: Queue) -> int:
        """Send what waits on one line, without anything in between, until it fails or nothing waits."""
        sent = 0
        async with line.turn:
            while queue.waiting and line.live:
                kept = queue.waiting[0]
                kept.sending = True
                try:
                    kind = await put_in_turn(line, kept.recovered, self.policy.send_timeout_s)
                except BaseException:
                    if line.cut:
                        self._fail(line, FailureKind.TIMEOUT)
                    raise
                finally:
                    kept.sending = False
                if self._done(line, kind):
                    kept.sent = True
                    self._undelivered.take(queue, kept)
                    sent += 1
                else:
                    self._note_attempt(queue, kept, kind)
        return sent

    def _note_attempt(self, queue: Queue, kept: Kept, kind: FailureKind | None) -> None:
        # A closed socket says nothing about a message; one that fails over it would fail for ever, and each
        # connection of its user with it.
        kept.attempts += kind is FailureKind.OTHER
        if kept.attempts >= MAX_ATTEMPTS:
            self._undelivered.take(queue, kept)
            self._undelivered.given_up += 1
            logger.warning("a message was given up: sockets fail over it attempts=%d", kept.attempts)

    def get_undelivered(self, user_id: str) -> list[Mapping[str, object]]:
        """Return what waits for a user, the oldest first: each message with its failure."""
        user = self._user(user_id)
        self._held()
        queue = self._undelivered.of(user)
        return [] if queue is None else [kept.as_dict() for kept in queue.waiting]
