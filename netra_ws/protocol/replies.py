"""Control frames (PROTOCOL §4): answers to commands and notices. Not stored, no ``seq``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import attrs

ErrorCode = Literal[
    "INVALID_JSON",
    "INVALID_MESSAGE",
    "MISSING_TYPE",
    "UNKNOWN_TYPE",
    "EMPTY_MESSAGE",
    "NOT_FOUND",
    "CONFLICT",
    "FORBIDDEN",
    "BUSY",
    "RATE_LIMITED",
    "QUOTA_EXCEEDED",
    "ALREADY_ANSWERED",
    "UNKNOWN_AGENT",
    "AUTH_FAILED",
    "DRAINING",
    "UNAVAILABLE",
    "CANCEL_TIMEOUT",
    "INTERNAL",
]

#: So many of these in a row close a connection with 1008 (``MAX_MALFORMED``).
MALFORMED = frozenset({"INVALID_JSON", "INVALID_MESSAGE", "MISSING_TYPE", "UNKNOWN_TYPE"})
MAX_MALFORMED = 20


@attrs.frozen(kw_only=True)
class Position:
    """A place in a stream: nothing up to ``seq`` of ``epoch`` is missing."""

    epoch: str
    seq: int


@attrs.frozen(kw_only=True)
class Reply:
    """Any control frame. ``reply_to`` is the command's id, added by the codec where there is one."""

    type: ClassVar[str]


@attrs.frozen(kw_only=True)
class AdvertisedLimits:
    max_message_bytes: int
    messages_per_minute: int
    max_connections_per_user: int
    max_runs_per_user: int


@attrs.frozen(kw_only=True)
class ActiveRun:
    """A run that has not ended; ``started_seq`` is the seq of its first event."""

    run_id: str
    thread_id: str
    agent_name: str
    state: str
    started_seq: int


@attrs.frozen(kw_only=True)
class ConnectionEstablished(Reply):
    type: ClassVar[str] = "connection_established"

    connection_id: str
    user_id: str
    protocol: str
    server_time: float
    heartbeat_interval_s: float
    pong_timeout_s: float
    limits: AdvertisedLimits
    stream: Position
    resume_window_s: float
    resumed: bool
    active_runs: list[ActiveRun]
    pending_inputs: list[Mapping[str, Any]]
    agents: list[str]
    connection_ready: bool = True


@attrs.frozen(kw_only=True)
class Ack(Reply):
    """The positive answer; which fields it has depends on the command."""

    type: ClassVar[str] = "ack"

    run_id: str | None = None
    thread_id: str | None = None
    message_id: str | None = None
    disposition: str | None = None
    status: str | None = None
    seq: int | None = None
    connections: int | None = None
    runs: int | None = None


@attrs.frozen(kw_only=True)
class Error(Reply):
    type: ClassVar[str] = "error"

    code: str
    error: str
    message: str
    retryable: bool
    retry_after_s: float | None = None
    details: Mapping[str, Any] | None = None
    correlation_id: str | None = None


@attrs.frozen(kw_only=True)
class Pong(Reply):
    type: ClassVar[str] = "pong"

    original_timestamp: Any = None


@attrs.frozen(kw_only=True)
class HeartbeatAck(Reply):
    type: ClassVar[str] = "heartbeat_ack"

    status: Literal["healthy"] = "healthy"


@attrs.frozen(kw_only=True)
class ThreadReply(Reply):
    thread_id: str
    title: str
    metadata: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class ThreadCreatedReply(ThreadReply):
    type: ClassVar[str] = "thread_created"


@attrs.frozen(kw_only=True)
class ThreadRenamedReply(ThreadReply):
    type: ClassVar[str] = "thread_renamed"


@attrs.frozen(kw_only=True)
class ThreadDeletedReply(ThreadReply):
    type: ClassVar[str] = "thread_deleted"


@attrs.frozen(kw_only=True)
class ThreadSwitched(Reply):
    type: ClassVar[str] = "thread_switched"

    thread_id: str


@attrs.frozen(kw_only=True)
class ThreadSummary:
    """One row of a thread list; times are Unix seconds."""

    thread_id: str
    title: str
    metadata: Mapping[str, Any]
    created_at: float
    updated_at: float


@attrs.frozen(kw_only=True)
class ThreadList(Reply):
    """Newest first; ``next`` is the ``before`` of the following page, null on the last one."""

    type: ClassVar[str] = "thread_list"

    threads: list[ThreadSummary]
    next: str | None


@attrs.frozen(kw_only=True)
class HistoryMessage:
    """One message of a thread; ``created_at`` is Unix seconds."""

    id: str
    role: Literal["user", "assistant"]
    content: str
    created_at: float
    run_id: str | None
    attachments: list[Mapping[str, Any]] | None = None


@attrs.frozen(kw_only=True)
class PartialMessage:
    """A message that an agent is still saying: its text up to the position of the reply."""

    message_id: str
    run_id: str
    content: str


@attrs.frozen(kw_only=True)
class ThreadHistory(Reply):
    """A thread as it stands at ``stream``: oldest message first; ``next`` leads to older ones."""

    type: ClassVar[str] = "thread_history"

    thread_id: str
    messages: list[HistoryMessage]
    partial: list[PartialMessage]
    stream: Position
    next: str | None


@attrs.frozen(kw_only=True)
class JobConnected(Reply):
    type: ClassVar[str] = "job_connected"

    job_id: str
    stream: Position


@attrs.frozen(kw_only=True)
class JobDisconnected(Reply):
    type: ClassVar[str] = "job_disconnected"

    job_id: str


@attrs.frozen(kw_only=True)
class AuthRefreshed(Reply):
    type: ClassVar[str] = "auth_refreshed"

    expires_at: float | None


@attrs.frozen(kw_only=True)
class Typing(Reply):
    """Another connection of the same user is typing."""

    type: ClassVar[str] = "typing"

    user_id: str
    thread_id: str | None
    is_typing: bool


@attrs.frozen(kw_only=True)
class ReplayCompleted(Reply):
    """Everything after ``from_seq`` up to ``to_seq`` was sent; what follows is live."""

    type: ClassVar[str] = "replay_completed"

    epoch: str
    from_seq: int
    to_seq: int
    count: int
    complete: bool
    reason: str | None
    job_id: str | None = None


@attrs.frozen(kw_only=True)
class StreamReset(Reply):
    """The position cannot be continued: nothing was replayed, reload the threads."""

    type: ClassVar[str] = "stream_reset"

    epoch: str
    seq: int
    reason: Literal["epoch_changed", "trimmed", "ahead"]
    job_id: str | None = None


@attrs.frozen(kw_only=True)
class Lagging(Reply):
    """``skipped`` deltas between the two positions were left out; their text follows in a ``full``."""

    type: ClassVar[str] = "lagging"

    skipped: int
    from_seq: int
    to_seq: int
    job_id: str | None = None


@attrs.frozen(kw_only=True)
class AuthExpiring(Reply):
    type: ClassVar[str] = "auth_expiring"

    expires_at: float
    expires_in_s: float


@attrs.frozen(kw_only=True)
class ConnectionWarning(Reply):
    type: ClassVar[str] = "connection_warning"

    code: str
    error: str


@attrs.frozen(kw_only=True)
class Draining(Reply):
    type: ClassVar[str] = "draining"

    reconnect_after_ms: int
    deadline_s: float


@attrs.frozen(kw_only=True)
class HandshakeResponse(Reply):
    type: ClassVar[str] = "handshake_response"

    thread_id: str
    run_id: str | None
    request_id: str
    session_token: str
    message: str


@attrs.frozen(kw_only=True)
class HandshakeComplete(Reply):
    type: ClassVar[str] = "handshake_complete"

    thread_id: str


REPLIES: tuple[type[Reply], ...] = (
    ConnectionEstablished,
    Ack,
    Error,
    Pong,
    HeartbeatAck,
    ThreadCreatedReply,
    ThreadRenamedReply,
    ThreadDeletedReply,
    ThreadSwitched,
    ThreadList,
    ThreadHistory,
    JobConnected,
    JobDisconnected,
    AuthRefreshed,
    Typing,
    ReplayCompleted,
    StreamReset,
    Lagging,
    AuthExpiring,
    ConnectionWarning,
    Draining,
    HandshakeResponse,
    HandshakeComplete,
)
