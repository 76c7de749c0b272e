"""What stands at which address, and which methods it takes; older addresses lead to the same things."""

from __future__ import annotations

from collections.abc import Mapping

SOCKET_PATHS = frozenset({"/ws", "/websocket", "/api/v1/websocket"})
ECHO_PATH = "/ws/echo"
READ = ("GET", "HEAD", "OPTIONS")
#: Pages that take a POST, with all that they take.
POSTED: Mapping[str, tuple[str, ...]] = {
    "/ws/beacon": (*READ, "POST"),
    "/ws/kick": ("OPTIONS", "POST"),
    "/ws/ticket": ("OPTIONS", "POST"),
    "/ws/unblock": ("OPTIONS", "POST"),
}
#: Pages that answer OPTIONS themselves, because scripts of other origins may use them.
SHARED = frozenset({"/ws/beacon", "/ws/ticket"})

#: Where the older system had a thing → where it stands. Its modes were the same for a client, and here every
#: connection is isolated. Absent with intent: ``/ws/test`` (no token), ``/ws/auth/…`` (a lock that three guesses of
#: anybody closed for all), ``/websocket/ticket/<ticket>…`` (a ticket in a path ends up in logs).
OLDER_PATHS: Mapping[str, str] = {
    "/ws/isolated": "/ws",
    "/ws/factory": "/ws",
    "/ws/isolated/health": "/ws/health",
    "/ws/isolated/stats": "/ws/stats",
    "/ws/isolated/config": "/ws/config",
    "/ws/factory/health": "/ws/health",
    "/ws/factory/status": "/ws/stats",
    "/websocket/beacon": "/ws/beacon",  # a page that goes away says so below the address of its socket
    "/websocket/ticket": "/ws/ticket",
}


def meant_by(path: str) -> str:
    """Return the address that *path* stands for: its own, unless it is an older one."""
    return OLDER_PATHS.get(path, path)
