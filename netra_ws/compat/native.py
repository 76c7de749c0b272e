"""A user's real connections and stream as a manager of the older surface sees them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from netra_ws.errors import InvalidArgument, ManagerClosed
from netra_ws.identity import Identity
from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.values import read_id

from .connection import WebSocketConnection
from .encoding import Encoded
from .failures import FailureKind

if TYPE_CHECKING:  # programs that bring their own sockets need no server
    from netra_ws.contexts.connection import Connection
    from netra_ws.contexts.embedding import UserSession
    from netra_ws.contexts.job import ProgramJob

#: Fields of a message that an ``agent_event`` says in its own way, or that are its value.
_SAID = frozenset({"type", "data", "timestamp", "critical"})


class Speaker(Protocol):
    """A stream that events are said on: a user's, or a job's."""

    async def emit(self, name: str, value: Any) -> int:
        """Say an event; return its seq."""
        ...


class Contexts(Protocol):
    """What a manager needs of a server."""

    def job(self, owner: Identity, job_id: str) -> ProgramJob:
        """Return a job in a user's name."""
        ...

    def context_for(self, identity: Identity) -> AbstractAsyncContextManager[UserSession]:
        """Hold a user's context open."""
        ...


async def say(stream: Speaker, message: Encoded) -> int | FailureKind:
    """Say a message as an event that is named by its ``type``; return its seq, or why that failed.

    Its value is the message's ``data``; where the message has other fields than the event says itself,
    it is all of them but ``type``.

    Raises:
        InvalidArgument: The message has no ``type``.
        ClientError: ``UNAVAILABLE``: the store takes nothing; nothing was said. Of jobs also others.
    """
    fields = message.fields
    name = fields.get("type")
    if not isinstance(name, str):
        raise InvalidArgument("message.type", "expected a text: it names the event on the stream")
    value = fields.get("data") if fields.keys() <= _SAID else {key: fields[key] for key in fields if key != "type"}
    try:
        return await stream.emit(name, value)
    except InvalidArgument:
        return FailureKind.TOO_LARGE  # name and value are good, so it is its size


@attrs.frozen
class NativeConnections:
    """The connections of one user on the server, and their stream."""

    session: UserSession

    def _of(self, connection: Connection) -> WebSocketConnection:
        seen_at = connection.traffic.last_activity
        return WebSocketConnection(
            connection_id=connection.connection_id,
            user_id=self.session.identity.user_id,
            websocket=connection,
            connected_at=datetime.fromtimestamp(connection.admitted_at, UTC),
            thread_id=connection.thread_id,
            last_activity=datetime.fromtimestamp(seen_at, UTC) if seen_at else None,
            is_active=not connection.closing,
        )

    def all(self) -> list[WebSocketConnection]:
        """Return the connections of this moment; what is changed in them changes nothing."""
        return [self._of(connection) for connection in self.session.context.connections.values()]

    def get(self, connection_id: str) -> WebSocketConnection | None:
        """Return a connection by its id."""
        found = self.session.context.connections.get(connection_id)
        return None if found is None else self._of(found)

    def find(self, websocket: object) -> WebSocketConnection | None:
        """Return a connection by the server's own object of it."""
        found = self._find(websocket)
        return None if found is None else self._of(found)

    def _find(self, websocket: object) -> Connection | None:
        connections = self.session.context.connections.values()
        return next((connection for connection in connections if connection is websocket), None)

    def put_into(self, connection_id: str, thread_id: str) -> bool:
        """Let messages of a connection that name no thread go to this one; return whether there is one.

        Raises:
            InvalidArgument: The server has no thread of that id.
        """
        found = self.session.context.connections.get(connection_id)
        if found is None:
            return False
        try:
            found.thread_id = read_id(thread_id)
        except (TypeError, ValueError) as exc:
            raise InvalidArgument("thread_id", str(exc)) from None
        return True

    def check_living(self) -> None:
        """Say nothing behind the end of the user's context: nobody would commit it.

        Raises:
            ManagerClosed: The server has closed it.
        """
        if not self.session.context.living:
            raise ManagerClosed("the server has closed the user's context")

    def shut(self, websocket: object, code: int, reason: str) -> bool:
        """Close a connection; return whether *websocket* is one. A code that the server never sends becomes 1000."""
        found = self._find(websocket)
        if found is None:
            return False
        known = code in CloseCode.__members__.values()
        found.shut(CloseCode(code) if known else CloseCode.NORMAL, reason)
        return True

    async def has_thread(self, thread_id: str) -> bool:
        """Whether a thread is the user's.

        Raises:
            StoreError: The store did not answer.
        """
        context = self.session.context
        if context.threads.get(thread_id) is not None:
            return True
        return await context.ledger.thread(context.user_id, thread_id) is not None
