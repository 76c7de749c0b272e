"""The origin rule in front of an ASGI app of a program's own; it needs no event loop of a certain kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import attrs

from netra_ws.errors import InvalidArgument, Refused

from .cors import WebSocketCORSHandler
from .headers import extract_origin

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


def _app(value: Any) -> App:
    if not callable(value):
        raise InvalidArgument("app", f"expected an ASGI app, got {type(value).__name__}")
    return value  # type: ignore[no-any-return]


@attrs.frozen
class WebSocketCORSMiddleware:
    """Asks about the origin of every WebSocket before the app sees it; other scopes go through.

    What is refused is closed with 1008 before it is accepted, which a server answers with HTTP 403. What is
    allowed finds its origin in ``scope["websocket_cors_origin"]``, None where there is none.

    Attributes:
        handler: One of development where none is given; kept for all connections.
    """

    app: App = attrs.field(converter=_app)
    handler: WebSocketCORSHandler = attrs.field(factory=WebSocketCORSHandler)

    @handler.validator
    def _is_one(self, _: object, value: object) -> None:
        if not isinstance(value, WebSocketCORSHandler):
            raise InvalidArgument("handler", f"expected a WebSocketCORSHandler, got {type(value).__name__}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        if scope.get("type") != "websocket":
            await self.app(scope, receive, send)
            return
        headers = scope.get("headers", ())
        address = str((scope.get("client") or ("",))[0])
        try:
            self.handler.check_headers(headers, address)
        except Refused:
            await send({"type": "websocket.close", "code": 1008, "reason": "Origin not allowed"})
            return
        await self.app({**scope, "websocket_cors_origin": extract_origin(headers)}, receive, send)
