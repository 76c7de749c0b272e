"""The words in ``type``: those of the older system, ours, and how one becomes another.

Each of the five agent events is its own type: where several share one, a client cannot tell them apart.
The wire takes only the older names that PROTOCOL §2 lists; the map here is wider, for programs.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Mapping
from types import MappingProxyType

from netra_ws.errors import InvalidArgument
from netra_ws.protocol.commands import TYPES


class MessageType(enum.StrEnum):
    """Every type of message by its name on the wire; a member is equal to that text."""

    # The life of a connection.
    CONNECT = "connect"
    DISCONNECT = "disconnect"
    CONNECTION = "connection"
    CONNECTION_ESTABLISHED = "connection_established"
    HEARTBEAT = "heartbeat"
    HEARTBEAT_ACK = "heartbeat_ack"
    PING = "ping"
    PONG = "pong"
    # What people and systems say.
    USER_MESSAGE = "user_message"
    CHAT = "chat"
    SYSTEM_MESSAGE = "system_message"
    ERROR_MESSAGE = "error_message"
    ERROR = "error"
    # Typing.
    TYPING = "typing"
    USER_TYPING = "user_typing"
    AGENT_TYPING = "agent_typing"
    TYPING_STARTED = "typing_started"
    TYPING_STOPPED = "typing_stopped"
    # What is asked of agents.
    START_AGENT = "start_agent"
    STOP_AGENT = "stop_agent"
    AGENT_REQUEST = "agent_request"
    AGENT_TASK = "agent_task"
    AGENT_TASK_ACK = "agent_task_ack"
    AGENT_RESPONSE = "agent_response"
    AGENT_RESPONSE_CHUNK = "agent_response_chunk"
    AGENT_RESPONSE_COMPLETE = "agent_response_complete"
    AGENT_STATUS_REQUEST = "agent_status_request"
    AGENT_STATUS_UPDATE = "agent_status_update"
    AGENT_PROGRESS = "agent_progress"
    AGENT_ERROR = "agent_error"
    # Events of a run.
    AGENT_START = "agent_start"
    AGENT_STARTED = "agent_started"
    AGENT_THINKING = "agent_thinking"
    AGENT_COMPLETE = "agent_complete"
    AGENT_COMPLETED = "agent_completed"
    TOOL_EXECUTE = "tool_execute"
    TOOL_EXECUTING = "tool_executing"
    TOOL_COMPLETE = "tool_complete"
    TOOL_COMPLETED = "tool_completed"
    AGENT_MESSAGE = "agent_message"
    AGENT_EVENT = "agent_event"
    TOOL_PROGRESS = "tool_progress"
    INPUT_REQUIRED = "input_required"
    INPUT_RESPONSE = "input_response"
    INPUT_RECEIVED = "input_received"
    RUN_QUEUED = "run_queued"
    # Threads.
    THREAD_UPDATE = "thread_update"
    THREAD_MESSAGE = "thread_message"
    CREATE_THREAD = "create_thread"
    LIST_THREADS = "list_threads"
    GET_THREAD_HISTORY = "get_thread_history"
    RENAME_THREAD = "rename_thread"
    DELETE_THREAD = "delete_thread"
    SWITCH_THREAD = "switch_thread"
    THREAD_CREATED = "thread_created"
    THREAD_LIST = "thread_list"
    THREAD_HISTORY = "thread_history"
    THREAD_RENAMED = "thread_renamed"
    THREAD_DELETED = "thread_deleted"
    THREAD_SWITCHED = "thread_switched"
    # To several.
    BROADCAST = "broadcast"
    BROADCAST_TEST = "broadcast_test"
    DIRECT_MESSAGE = "direct_message"
    ROOM_MESSAGE = "room_message"
    CONNECT_JOB = "connect_job"
    DISCONNECT_JOB = "disconnect_job"
    PUBLISH_JOB = "publish_job"
    JOB_CONNECTED = "job_connected"
    JOB_DISCONNECTED = "job_disconnected"
    # JSON-RPC 2.0.
    JSONRPC_REQUEST = "jsonrpc_request"
    JSONRPC_RESPONSE = "jsonrpc_response"
    JSONRPC_NOTIFICATION = "jsonrpc_notification"
    # Positions, tokens, notices.
    ACK = "ack"
    RESUME = "resume"
    REPLAY_COMPLETED = "replay_completed"
    STREAM_RESET = "stream_reset"
    LAGGING = "lagging"
    REFRESH_AUTH = "refresh_auth"
    AUTH_REFRESHED = "auth_refreshed"
    AUTH_EXPIRING = "auth_expiring"
    CONNECTION_WARNING = "connection_warning"
    DRAINING = "draining"
    KICK = "kick"
    HANDSHAKE_RESPONSE = "handshake_response"
    HANDSHAKE_ACKNOWLEDGED = "handshake_acknowledged"
    HANDSHAKE_COMPLETE = "handshake_complete"
    # Others.
    QUALITY_METRICS = "quality_metrics"
    BATCH = "batch"
    RESILIENCE_TEST = "resilience_test"
    RECOVERY_TEST = "recovery_test"


#: Names of before that are no type of their own any more → what they are called.
OLDER_NAMES: Mapping[str, MessageType] = MappingProxyType(
    {
        "connected": MessageType.CONNECT,
        "factory_connection_established": MessageType.CONNECTION_ESTABLISHED,
        "isolated_connection_established": MessageType.CONNECTION_ESTABLISHED,
        "legacy_connection_established": MessageType.CONNECTION_ESTABLISHED,
        "legacy_heartbeat": MessageType.HEARTBEAT,
        "user": MessageType.USER_MESSAGE,
        "user_input": MessageType.USER_MESSAGE,
        "message": MessageType.USER_MESSAGE,
        "chat_message": MessageType.USER_MESSAGE,
        "agent": MessageType.AGENT_REQUEST,
        "execute_agent": MessageType.START_AGENT,
        "EXECUTE_AGENT": MessageType.START_AGENT,
        "cancel": MessageType.STOP_AGENT,
        "legacy_response": MessageType.AGENT_RESPONSE,
        "agent_status": MessageType.AGENT_STATUS_UPDATE,
        "agent_update": MessageType.AGENT_STATUS_UPDATE,
        "agent_failed": MessageType.AGENT_ERROR,
        "agent_fallback": MessageType.AGENT_ERROR,
        "thread": MessageType.THREAD_UPDATE,
        "system": MessageType.SYSTEM_MESSAGE,
    }
)
#: Every name that ``normalize_message_type`` takes → its type.
LEGACY_MESSAGE_TYPE_MAP: Mapping[str, MessageType] = MappingProxyType(
    {**OLDER_NAMES, **{member.value: member for member in MessageType}}
)

#: What the browser calls some types.
_FRONTEND_NAMES = {
    "agent_response": "agent_completed",
    "agent_progress": "agent_update",
    "thread_update": "thread_updated",
    "error_message": "error",
}
#: Events that go to the browser under the name that the program gave them.
_PASSING = frozenset(
    {
        "agent_cancelled",
        "agent_failed",
        "agent_fallback",
        "agent_log",
        "agent_manager_shutdown",
        "agent_metrics_updated",
        "agent_registered",
        "agent_status_changed",
        "agent_stopped",
        "agent_unregistered",
        "final_report",
        "partial_result",
        "stream_chunk",
        "tool_started",
    }
)

#: Type → the command of our wire that says the same.
_NATIVE: Mapping[MessageType, str] = {
    **{member: member.value for member in MessageType if member.value in TYPES},
    MessageType.TYPING: "user_typing",
}


def normalize_message_type(message_type: object, argument: str = "message_type") -> MessageType:
    """Return the type of that name, which may be an older one; every agent event stays itself.

    Raises:
        InvalidArgument: It is no text, or no type has this name; the text says which one is near.
    """
    if not isinstance(message_type, str):
        raise InvalidArgument(argument, f"expected text, got {type(message_type).__name__}")
    found = LEGACY_MESSAGE_TYPE_MAP.get(message_type)
    if found is None:
        shown = message_type[:64]
        near = difflib.get_close_matches(shown.lower(), LEGACY_MESSAGE_TYPE_MAP, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidArgument(argument, f"no message type is called {shown!r}{hint}")
    return found


def get_frontend_message_type(message_type: object) -> str:
    """Return what the older browser client calls a type.

    Events that only the browser knows (``partial_result``, ``agent_log`` …) keep their name.

    Raises:
        InvalidArgument: As ``normalize_message_type``.
    """
    if isinstance(message_type, str) and message_type in _PASSING:
        return str(message_type)
    name = normalize_message_type(message_type).value
    return _FRONTEND_NAMES.get(name, name)


def native_command_type(message_type: MessageType) -> str | None:
    """Return the type under which our wire takes such a message as a command; None when it takes none."""
    return _NATIVE.get(message_type)
