"""How long the older manager's work takes: ``python -m tests.benchmarks.compat_manager [word …]``."""

from __future__ import annotations

import sys
from typing import Any

import trio

from netra_ws.compat.connection import WebSocketConnection
from netra_ws.compat.context import UserExecutionContext
from netra_ws.compat.factory import WebSocketManagerFactory
from netra_ws.compat.manager import UnifiedWebSocketManager

from .compat import FIGURES, Figure, main


class Sink:
    """Takes every message at once."""

    async def send_json(self, message: dict[str, Any]) -> None:
        """Take a message."""


async def comings() -> int:
    """Let ten thousand connections come, look at the numbers, and let them go."""
    manager = UnifiedWebSocketManager()
    for number in range(10_000):
        await manager.add_connection(WebSocketConnection(f"c{number}", f"user{number % 1000}", Sink()))
    assert manager.get_stats()["total_connections"] == 10_000
    for number in range(10_000):
        await manager.remove_connection(f"c{number}")
    return 10_000


async def sendings() -> int:
    """Send to a user with three connections."""
    manager = UnifiedWebSocketManager()
    for _ in range(3):
        await manager.connect_user("ada", Sink())
    for _ in range(1000):
        assert await manager.send_to_user("ada", {"type": "m", "data": {"text": "a line of a usual length"}})
    return 1000


async def broadcasts() -> int:
    """Broadcast to a thousand connections."""
    manager = UnifiedWebSocketManager()
    for number in range(1000):
        await manager.connect_user(f"user{number}", Sink())
    assert await manager.broadcast({"type": "m", "data": {"text": "a line of a usual length"}}) == 1000
    return 1000


def managers() -> int:
    """Make a manager for each of a hundred user contexts, and close it."""
    factory = WebSocketManagerFactory()
    for number in range(100):
        factory.create_manager(UserExecutionContext(f"user{number}", "thread-1", "run-1")).close()
    return 100


MANAGER_FIGURES = [
    Figure("manager: a connection comes and goes", comings),
    Figure("manager: send to three connections", sendings),
    Figure("manager: broadcast to a thousand", broadcasts),
    Figure("manager: made for a context", managers),
]

if __name__ == "__main__":
    FIGURES[:] = MANAGER_FIGURES
    trio.run(main, sys.argv[1:])
