"""The agent handler together with the rest of the older surface: its manager, messages, contexts and accessors."""

from __future__ import annotations

import pytest

from netra_ws.compat.agent_handler import AgentMessageHandler
from netra_ws.compat.connection import WebSocketConnection
from netra_ws.compat.context import UserExecutionContext
from netra_ws.compat.factory import create_websocket_manager, get_websocket_manager
from netra_ws.compat.manager import UnifiedWebSocketManager
from netra_ws.compat.message_types import MessageType
from netra_ws.compat.structures import WebSocketMessage
from netra_ws.errors import InvalidContextError
from netra_ws.testing import open_test_server

from .handling import Socket, Witness, said


async def test_the_older_manager_and_messages(autojump_clock: None) -> None:
    """With the manager of this package: the connection is found and moved, its user told on their sockets alone."""
    witness, socket, other, stranger = Witness(), Socket(), Socket(), Socket()
    manager = UnifiedWebSocketManager()
    for number, (user, each) in enumerate((("ada", socket), ("ada", other), ("bob", stranger))):
        await manager.add_connection(WebSocketConnection(f"c{number}", user, each))
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server, manager=manager)
        message = WebSocketMessage(type=MessageType.CHAT, payload={"content": "hi"}, thread_id="t1", user_id="bob")
        assert handler.can_handle(message.type)
        assert await handler.handle_message("ada", socket, message)
        assert (witness.seen[0].user_id, witness.seen[0].websocket_connection_id) == ("ada", "c0")
        assert manager.get_connection("c0").thread_id == "t1"  # type: ignore[union-attr]
        assert await handler.handle_message("ada", socket, said("on it goes"))
        assert await handler.handle_message("ada", other, said("elsewhere"))
        assert [request.thread_id == "t1" for request in witness.seen] == [True, True, False]
        assert not await handler.handle_message("ada", socket, said(""))
        for told in (socket.told, other.told):
            assert [each["type"] for each in told] == ["error"]
            assert "try again" in told[0]["error"]
        assert stranger.told == []


async def test_a_context_of_the_older_system(autojump_clock: None) -> None:
    """A user's context and its manager go in; the run's context is one, too, whatever its thread is called."""
    witness, socket = Witness(), Socket()
    async with open_test_server({"witness": witness}) as server:
        caller = UserExecutionContext("ada", "t1", "r1")
        manager = create_websocket_manager(caller)
        await manager.add_connection(WebSocketConnection("c1", "ada", socket))
        handler = AgentMessageHandler(server.server, manager=manager)
        assert await handler.handle_message(caller, socket, said("one"))
        assert await handler.handle_message(caller, socket, said("two", thread_id="test"))
        first, second = witness.seen
        assert isinstance(first, UserExecutionContext)
        assert (first.thread_id, first.parent_request_id, second.thread_id) == ("t1", caller.request_id, "test")
        assert first.run_id != caller.run_id
        child = second.create_child_context("step")
        assert (child.user_id, child.thread_id, child.run_id) == ("ada", "test", second.run_id)
        with pytest.raises(InvalidContextError):
            UserExecutionContext("ada", "test", "r1")


async def test_the_deprecated_accessor_is_noticed(autojump_clock: None) -> None:
    """Who takes a manager from the deprecated accessor is warned; it is nobody else's, and the handler takes it."""
    with pytest.warns(UserWarning, match="SECURITY WARNING"):
        manager = get_websocket_manager()
    async with open_test_server({"witness": Witness()}) as server:
        assert await AgentMessageHandler(server.server, manager=manager).handle_message("ada", None, said())
        with pytest.warns(UserWarning, match="SECURITY WARNING"):
            assert get_websocket_manager() is not manager
