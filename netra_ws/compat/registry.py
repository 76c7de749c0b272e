"""Where older programs put connections in by hand and get back the very objects that they put in."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import attrs

from netra_ws.errors import ManagerClosed

from .arguments import checked_text
from .connection import WebSocketConnection

if TYPE_CHECKING:
    from .manager import UnifiedWebSocketManager


@attrs.define(eq=False)
class RegistryCompat:
    """The connections of a manager by the program's own objects; it holds the manager weakly, which holds it."""

    _manager: weakref.ref[UnifiedWebSocketManager]

    @property
    def manager(self) -> UnifiedWebSocketManager:
        """The manager.

        Raises:
            ManagerClosed: Nobody has it any more.
        """
        manager = self._manager()
        if manager is None:
            raise ManagerClosed("nobody has the manager of this registry any more")
        return manager

    async def register_connection(self, user_id: str, connection_info: Any) -> WebSocketConnection:
        """Make a connection of an object with ``connection_id``, ``websocket`` and perhaps ``thread_id``.

        Raises:
            InvalidArgument, ContextIsolationError, LimitReached: As ``add_connection``.
        """
        connection = WebSocketConnection(
            connection_id=checked_text(getattr(connection_info, "connection_id", None), "connection_info"),
            user_id=user_id,
            websocket=getattr(connection_info, "websocket", None),
            metadata={"connection_info": connection_info},
            thread_id=getattr(connection_info, "thread_id", None),
        )
        await self.manager.add_connection(connection)
        return connection

    def get_user_connections(self, user_id: str) -> list[Any]:
        """Return the objects that were registered for a user, themselves."""
        found = (connection.metadata or {} for connection in self.manager.connections_of(user_id))
        return [metadata["connection_info"] for metadata in found if "connection_info" in metadata]

    async def unregister_connection(self, connection_id: str) -> None:
        """Take a connection out again."""
        await self.manager.remove_connection(connection_id)
