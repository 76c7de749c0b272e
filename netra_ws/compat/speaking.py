"""What a manager sends: to a user, a thread, one connection, or all of its users.

A message that the program addresses to one user goes out as it is: names in it that end in ``_user_id`` are its
own business, and are not rewritten.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
import trio

from netra_ws.errors import InvalidArgument

from .arguments import checked_seconds, checked_text
from .connection import WebSocketConnection
from .delivering import Delivering
from .failures import FailureKind


@attrs.define(eq=False, repr=False, slots=False)
class Speaking(Delivering):
    """A manager's voice."""

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
            users = (one.connection.user_id for one in held if one.connection.thread_id == thread_id and not one.job_id)
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
            return self._count(await self._put_all([line], encoded))
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
        self._count(taken)
        return taken + said

    async def broadcast_to_all(self, message: Any, exclude_users: Iterable[str] = ()) -> int:
        """The same as ``broadcast``: all of this manager."""
        return await self.broadcast(message, exclude_users)
