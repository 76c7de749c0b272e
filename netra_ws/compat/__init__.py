"""The older system's names, with Trio: a thin face over contexts, streams and runs.

Coming from the older API
-------------------------

This page says for each thing that the older system had what it was, what has its name here, and how it is
done natively. Everything here runs on Trio, and nothing is shared between users: there is no object with which one
could send to everybody. What only the older names need is under *Before*; what is under *With these names* and
*Natively* is run by the tests.

Managers become contexts and streams
....................................

A manager was one object for all users. Now a user has a context, the nursery in which all of theirs lives, and a
stream, the log that all of their connections read. Nothing is sent to a connection: what is said goes on the stream.

Before::

    manager = get_websocket_manager()
    await manager.connect_user(user_id, websocket)
    await manager.send_to_user(user_id, {"type": "agent_progress", "data": {"step": 1}})
    await manager.disconnect_user(user_id, websocket)

With these names::

    from netra_ws.compat import UserExecutionContext, create_websocket_manager

    user_context = UserExecutionContext(user_id="ada", thread_id="thread-1", run_id="run-1")
    async with create_websocket_manager(user_context, server=server) as manager:
        delivered = await manager.send_to_user("ada", {"type": "agent_progress", "payload": {"step": 1}})

Natively::

    async with server.context_for(netra_ws.Identity("ada")) as context:
        await context.emit("progress", {"step": 1})

One instance for all becomes one for each user context
......................................................

``get_websocket_manager()`` still works: it warns, and what it returns belongs to nobody else. ``mode`` is ignored:
there is one mode, the isolated one. Where no isolated manager can be made an error is raised, and never another kind
made.

Before::

    manager = get_websocket_manager(mode=WebSocketManagerMode.UNIFIED)

With these names::

    from netra_ws.compat import UserExecutionContext, create_websocket_manager

    ada = create_websocket_manager(UserExecutionContext(user_id="ada", thread_id="t", run_id="r"))
    bob = create_websocket_manager(UserExecutionContext(user_id="bob", thread_id="t", run_id="r"))
    assert ada is not bob

Natively a user's context is found by the user's identity, as above; two users never have the same one.

Critical events become the events of a run
..........................................

``agent_started`` and ``agent_completed`` come by themselves, exactly once, whatever happens in between; each
``tool_executing`` has its ``tool_completed``. An agent cannot forget them, and nobody can send them for another user.

Before::

    await manager.emit_critical_event(user_id, "agent_started", {"agent": "research", "status": "started"})
    await manager.emit_critical_event(user_id, "agent_thinking", {"thought": "Where to look"})
    await manager.emit_critical_event(user_id, "tool_executing", {"tool": "search", "parameters": {"query": text}})
    await manager.emit_critical_event(user_id, "tool_completed", {"tool": "search", "result": found})
    await manager.emit_critical_event(user_id, "agent_completed", {"result": answer})

Natively::

    async def research(run: netra_ws.Run) -> str:
        await run.think("Where to look")
        async with run.tool("search", query=run.text) as call:
            call.results = ["a page about it"]
        return "There is a page about it."

    async with netra_ws.open_server(settings, agents={"research": research}) as server:
        async with server.context_for(netra_ws.Identity("ada")) as context:
            run = await context.start("What is a nursery?", agent="research")
            assert (await run.result()).final_response == "There is a page about it."

Agent handlers become agents
............................

A message of a type for agents starts a run: ``start_agent``, ``user_message``, ``chat``, and the older ``user_input``,
``message``, ``chat_message``, ``agent_request``, ``execute_agent``. Thread, permissions, limits and the stored
conversation are the server's work. ``handle_message`` is for programs that hold the sockets themselves: inside
``async with create_websocket_manager(user_context, server=server)`` what the run says reaches them.

Before::

    handler = AgentHandler(MessageHandlerService(supervisor, thread_service), manager)
    router.add_handler(handler)

With these names::

    from netra_ws.compat import AgentMessageHandler

    handler = AgentMessageHandler(server)
    assert await handler.handle_message("ada", None, {"type": "chat", "payload": {"content": "hello"}})

Natively::

    async def greet(run: netra_ws.Run) -> str:
        return f"You said: {run.text}"

    async with netra_ws.open_server(settings, agents={"greet": greet}) as server:
        async with server.context_for(netra_ws.Identity("ada")) as context:
            run = await context.start("hello", agent="greet", thread_id="thread-1")
            assert (await run.result()).final_response == "You said: hello"

Jobs and rooms become job streams
.................................

A job is a stream of its own, with an owner. Others read it when their token has ``job:<its id>``, by ``connect_job``
over their socket; who leaves has left. It is named by a text, and by nothing that was made of an address in memory.

Before::

    connection = await manager.connect_to_job(websocket, job_id)
    await manager.disconnect_from_job(job_id, websocket)

With these names::

    from netra_ws.compat import UserExecutionContext, create_websocket_manager

    class Socket:
        async def send_json(self, message):
            print(message)

    manager = create_websocket_manager(UserExecutionContext(user_id="ada", thread_id="t", run_id="r"))
    socket = Socket()
    connection = await manager.connect_to_job(socket, "build-7")
    assert manager.room_manager.get_room_connections("build-7") == [connection.user_id]
    assert await manager.disconnect_from_job("build-7", socket)

Natively::

    job = server.job("ada", "build-7")
    await job.emit("progress", 0.5)
    await job.close()

In an agent it is ``run.job("build-7")``. A client says ``{"type": "connect_job", "job_id": "build-7"}``.

Three envelopes become one
..........................

The server's messages are flat: every field stands beside ``type``, and ``timestamp`` is a number, Unix seconds. In the
other direction both older shapes are read: with a ``payload``, and with everything beside ``type``.

Before::

    {"type": "agent_thinking", "data": {"thought": "…"}, "timestamp": "2025-09-05T10:00:00", "critical": true}
    {"type": "agent_thinking", "payload": {"thought": "…", "agent_name": "…"}}

On the wire now::

    {"type": "agent_thinking", "event_id": "…", "seq": 42, "timestamp": 1763.1, "user_id": "ada", "thread_id": "…",
     "run_id": "…", "agent_name": "…", "reasoning": "…", "phase": "full"}

Natively::

    async with netra_ws.connect(server.url, token) as session:
        run = await session.start("hello", agent="echo")
        async for event in run:
            if event.type == "agent_thinking":
                assert event.fields["reasoning"] == "Saying it back"

Errors have one shape, too: ``{"type": "error", "code", "error", "message", "reply_to", …}``; ``error`` and ``message``
are the same text. A type that is not known is an ``UNKNOWN_TYPE``, and no ``ack``.

What carries a token
....................

Who somebody is, is decided before the upgrade is answered; headers of tests and ``DEMO_MODE`` open nothing::

    Authorization: Bearer <jwt>                     as before, and before every other carrier
    Sec-WebSocket-Protocol: jwt.<jwt or base64url>  as before, also jwt-auth. and bearer., and with a word of the
                                                    environment (jwt.local.<jwt>); it is never echoed
    Sec-WebSocket-Protocol: staging-auth.<…>        no more: nothing is special in staging
    ?ticket=<ticket>                                of POST /ws/ticket (before: /websocket/ticket), once, for 30 s
    ?token=<jwt>                                    in development, or where auth.query_token allows it

A refusal is an HTTP answer: 401 without a good token, 403 for an origin or a permission, 429 for too many.

How connections end
...................

Codes that meant several things mean one each::

    1000 said goodbye                               as before; never right behind the welcome
    1003 no supported subprotocol                   no refusal any more; 1003 is for binary messages
    1008 auth failed, origin not allowed            401 and 403 before the upgrade; 1008 is for 20 bad messages in a row
                                                    and for tokens that were revoked
    401  (no code that may be sent)                 401, as an HTTP answer
    1009 an oversized message was ignored           the end of that connection
    1011 startup, services, internal errors         503 before the upgrade while it cannot serve; 1011 is a bug of ours
    1012 a restart                                  come again after reconnect_after_ms
    4000 too slow, 4001 no pong                     new: come again and go on from your position
    4003 the token's time is over                   new: come again with another one
    4010 signed out by an operator                  new

Origins are settings
....................

A pattern ``https://*.example.org`` is exactly one label in front. Strikes are counted for an origin and an address
together, so nobody locks out a victim's origin; they are forgotten after ``origins.strike_window_s``.

Before::

    handler = WebSocketCORSHandler(allowed_origins=["https://app.example.org"], environment="production")
    app = WebSocketCORSMiddleware(app, handler)

With these names::

    from netra_ws.compat import WebSocketCORSHandler

    handler = WebSocketCORSHandler("production", ["https://app.example.org", "https://*.example.org"])
    assert handler.is_origin_allowed("https://app.example.org", "192.0.2.1")
    assert not handler.is_origin_allowed("https://evil.example", "192.0.2.1")

Natively::

    allowed = ["https://app.example.org", "https://*.example.org"]
    settings = netra_ws.Settings.make({"origins.allowed": allowed, "origins.strikes": 5, "auth.secret": "…" * 32})

Where things are asked for
..........................

Sockets are at ``/ws``, ``/websocket``, ``/api/v1/websocket``, and at the older ``/ws/isolated`` and ``/ws/factory``;
``?mode=`` changes nothing. Pages, with GET, HEAD and OPTIONS; the beacon also takes a POST, the ticket only that::

    /ws/health    also /health, /ws/isolated/health, /ws/factory/health
    /ws/config    also /ws/isolated/config
    /ws/stats     also /ws/isolated/stats, /ws/factory/status; names are told to operators only
    /ws/beacon    also /websocket/beacon
    /ws/ticket    also /websocket/ticket, where permissions in the body make the ticket worth less than its token

Not there: ``/ws/test`` (no token), ``/ws/auth/…`` (three bad tokens of anybody closed it for all), and addresses with
a ticket in the path. The pages say their numbers in the older words, too::

    health   status (healthy, degraded, unhealthy), service, version, timestamp, errors, config,
             metrics.websocket.{active_connections, total_connections, messages_processed, error_rate},
             metrics.authentication.{success_rate, rate_limited_requests},
             metrics.monitoring.{monitored_connections, healthy_connections}
    config   websocket.{endpoint, version, authentication, supported_auth_methods, features, limits},
             server.{active_connections, uptime_seconds, server_time}
    stats    timestamp, websocket_manager, message_router, authentication, security, connection_monitoring, system

The welcome is ``connection_established``, and always the first frame. A client that offers its token as a subprotocol,
and not ``netra.v1``, then gets ``handshake_response``, says ``handshake_acknowledged``, and gets
``handshake_complete``.

Numbers
.......

``python -m netra_ws check-config`` shows every value with its source. What has a home::

    limits.messages_per_minute                     1000 testing, 300 development, 100 staging, 30 production
    limits.max_connections_per_user                10
    limits.max_connections                         20000
    limits.max_message_bytes                       1048576
    limits.connects_per_minute_per_address         6000 testing, 6000 development, 600 staging, 600 production
    limits.failed_connects_per_minute_per_address  3000 testing, 3000 development, 30 staging, 30 production
    timing.heartbeat_interval_s                    25 testing, 45 development, 30 staging, 25 production
    timing.pong_timeout_s                          8
    timing.handshake_s                             10
    timing.run_timeout_s                           300
    timing.idle_timeout_s                          120
    timing.resume_window_s                         30
    origins.strikes                                5

What has none, because what it bounded is gone or is bounded otherwise::

    3 connections a user, 8,192 bytes a message    not kept, or too small for what people write; above is what holds
    connection timeout 300 / 600 / 900 s           a connection ends when it does not answer a ping, not by its age
    heartbeat timeout 60 / 90 / 75 s               timing.pong_timeout_s in all environments
    cleanup interval 60 / 120 / 180 s              nothing is swept: what lives in a nursery is gone when it ends
    receive timeouts by tier                       nobody waits for a client: it is pinged
    wait for the start, readiness guard            the port is open when everything is ready
    5 errors before a disconnect, with pauses      20 malformed messages in a row; other errors end nothing
    retries of a send, 1,000 messages in a queue   a connection holds a position in a log, and no queue
    50 messages kept for a user                    everything durable is, for history.retention_days
    batches of 10 or 0.1 s                         what is ready at the same moment is written together
    back-off of a reconnecting client              the client's own; it is told reconnect_after_ms
    typing that expires after 5 s                  the client's own: a notice is not kept
    5 managers a user, 1,800 s without use         of WebSocketManagerFactory alone; contexts end with their user
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netra_ws.errors import ContextIsolationError as ContextIsolationError
    from netra_ws.errors import InvalidContextError as InvalidContextError
    from netra_ws.errors import LimitReached as LimitReached
    from netra_ws.errors import ManagerClosed as ManagerClosed

    from .agent_handler import AgentMessageHandler as AgentMessageHandler
    from .agent_message import RequestContext as RequestContext
    from .connection import WebSocketConnection as WebSocketConnection
    from .context import UserExecutionContext as UserExecutionContext
    from .cors import WebSocketCORSHandler as WebSocketCORSHandler
    from .cors import get_websocket_cors_handler as get_websocket_cors_handler
    from .cors import validate_websocket_origin as validate_websocket_origin
    from .factory import WebSocketManagerFactory as WebSocketManagerFactory
    from .factory import create_websocket_manager as create_websocket_manager
    from .factory import get_factory_stats as get_factory_stats
    from .factory import get_websocket_manager as get_websocket_manager
    from .failures import FailureKind as FailureKind
    from .headers import extract_origin as extract_origin
    from .jsonrpc import JsonRpcMessage as JsonRpcMessage
    from .jsonrpc import is_jsonrpc as is_jsonrpc
    from .jsonrpc import make_error as make_error
    from .jsonrpc import make_notification as make_notification
    from .jsonrpc import make_request as make_request
    from .jsonrpc import make_result as make_result
    from .jsonrpc import read_jsonrpc as read_jsonrpc
    from .manager import UnifiedWebSocketManager as UnifiedWebSocketManager
    from .manager import WebSocketManager as WebSocketManager
    from .manager import WebSocketManagerProtocol as WebSocketManagerProtocol
    from .messages import LEGACY_MESSAGE_TYPE_MAP as LEGACY_MESSAGE_TYPE_MAP
    from .messages import BroadcastMessage as BroadcastMessage
    from .messages import ErrorMessage as ErrorMessage
    from .messages import MessageType as MessageType
    from .messages import ServerMessage as ServerMessage
    from .messages import WebSocketMessage as WebSocketMessage
    from .messages import create_error_message as create_error_message
    from .messages import create_server_message as create_server_message
    from .messages import create_standard_message as create_standard_message
    from .messages import get_frontend_message_type as get_frontend_message_type
    from .messages import is_valid_message as is_valid_message
    from .messages import normalize_message_type as normalize_message_type
    from .messages import validate_message as validate_message
    from .middleware import WebSocketCORSMiddleware as WebSocketCORSMiddleware
    from .policy import ManagerPolicy as ManagerPolicy
    from .registry import RegistryCompat as RegistryCompat
    from .serialising import _serialize_message_safely as _serialize_message_safely
    from .serialising import serialize_message_safely as serialize_message_safely
    from .timestamps import to_datetime as to_datetime
    from .timestamps import to_timestamp as to_timestamp

__all__ = [
    "LEGACY_MESSAGE_TYPE_MAP",
    "AgentMessageHandler",
    "BroadcastMessage",
    "ContextIsolationError",
    "ErrorMessage",
    "FailureKind",
    "InvalidContextError",
    "JsonRpcMessage",
    "LimitReached",
    "ManagerClosed",
    "ManagerPolicy",
    "MessageType",
    "RegistryCompat",
    "RequestContext",
    "ServerMessage",
    "UnifiedWebSocketManager",
    "UserExecutionContext",
    "WebSocketCORSHandler",
    "WebSocketCORSMiddleware",
    "WebSocketConnection",
    "WebSocketManager",
    "WebSocketManagerFactory",
    "WebSocketManagerProtocol",
    "WebSocketMessage",
    "_serialize_message_safely",
    "create_error_message",
    "create_server_message",
    "create_standard_message",
    "create_websocket_manager",
    "extract_origin",
    "get_factory_stats",
    "get_frontend_message_type",
    "get_websocket_cors_handler",
    "get_websocket_manager",
    "is_jsonrpc",
    "is_valid_message",
    "make_error",
    "make_notification",
    "make_request",
    "make_result",
    "normalize_message_type",
    "read_jsonrpc",
    "serialize_message_safely",
    "to_datetime",
    "to_timestamp",
    "validate_message",
    "validate_websocket_origin",
]

#: Name → the module that has it; the same as the imports above, for the running program.
_HOMES: Mapping[str, str] = {
    "AgentMessageHandler": "netra_ws.compat.agent_handler",
    "BroadcastMessage": "netra_ws.compat.messages",
    "ContextIsolationError": "netra_ws.errors",
    "ErrorMessage": "netra_ws.compat.messages",
    "FailureKind": "netra_ws.compat.failures",
    "InvalidContextError": "netra_ws.errors",
    "JsonRpcMessage": "netra_ws.compat.jsonrpc",
    "LEGACY_MESSAGE_TYPE_MAP": "netra_ws.compat.messages",
    "LimitReached": "netra_ws.errors",
    "ManagerClosed": "netra_ws.errors",
    "ManagerPolicy": "netra_ws.compat.policy",
    "MessageType": "netra_ws.compat.messages",
    "RegistryCompat": "netra_ws.compat.registry",
    "RequestContext": "netra_ws.compat.agent_message",
    "ServerMessage": "netra_ws.compat.messages",
    "UnifiedWebSocketManager": "netra_ws.compat.manager",
    "UserExecutionContext": "netra_ws.compat.context",
    "WebSocketCORSHandler": "netra_ws.compat.cors",
    "WebSocketCORSMiddleware": "netra_ws.compat.middleware",
    "WebSocketConnection": "netra_ws.compat.connection",
    "WebSocketManager": "netra_ws.compat.manager",
    "WebSocketManagerFactory": "netra_ws.compat.factory",
    "WebSocketManagerProtocol": "netra_ws.compat.manager",
    "WebSocketMessage": "netra_ws.compat.messages",
    "_serialize_message_safely": "netra_ws.compat.serialising",
    "create_error_message": "netra_ws.compat.messages",
    "create_server_message": "netra_ws.compat.messages",
    "create_standard_message": "netra_ws.compat.messages",
    "create_websocket_manager": "netra_ws.compat.factory",
    "extract_origin": "netra_ws.compat.headers",
    "get_factory_stats": "netra_ws.compat.factory",
    "get_frontend_message_type": "netra_ws.compat.messages",
    "get_websocket_cors_handler": "netra_ws.compat.cors",
    "get_websocket_manager": "netra_ws.compat.factory",
    "is_jsonrpc": "netra_ws.compat.jsonrpc",
    "is_valid_message": "netra_ws.compat.messages",
    "make_error": "netra_ws.compat.jsonrpc",
    "make_notification": "netra_ws.compat.jsonrpc",
    "make_request": "netra_ws.compat.jsonrpc",
    "make_result": "netra_ws.compat.jsonrpc",
    "normalize_message_type": "netra_ws.compat.messages",
    "read_jsonrpc": "netra_ws.compat.jsonrpc",
    "serialize_message_safely": "netra_ws.compat.serialising",
    "to_datetime": "netra_ws.compat.timestamps",
    "to_timestamp": "netra_ws.compat.timestamps",
    "validate_message": "netra_ws.compat.messages",
    "validate_websocket_origin": "netra_ws.compat.cors",
}


def __getattr__(name: str) -> Any:
    """Load a name at its first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
