"""What a client may say (PROTOCOL §2): one frozen class per command, its fields named as on the wire.

Aliases of types and fields stand in two tables below; the codec applies them before it builds the
class, so nothing behind the codec knows that a field ever had another name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NewType

import attrs

from .values import (
    ClientTime,
    CommandId,
    Id,
    JobId,
    JsonlLogs,
    JsonObject,
    Page100,
    Page200,
    PositionText,
    Seconds,
    Seq,
    Title,
    TokenId,
    UserId,
)

#: Text that a person wrote: stripped, and ``EMPTY_MESSAGE`` when nothing is left.
Text = NewType("Text", str)

DEFAULT_THREADS = Page100(50)
DEFAULT_MESSAGES = Page200(100)

OnBusy = Literal["enqueue", "reject", "interrupt", "rollback", "steer"]
OnDisconnect = Literal["grace", "cancel", "continue"]
StopMode = Literal["now", "after_step"]


@attrs.frozen(kw_only=True)
class Attachment:
    """A file or link that travels with a message; stored, never fetched.

    Attributes:
        name: File name as the client calls it.
        media_type: Such as ``image/png``.
        data: The content in base64, or None when there is a url.
        url: Where the content is, or None when there is data.
    """

    name: str
    media_type: str
    data: str | None = None
    url: str | None = None


@attrs.frozen(kw_only=True)
class Command:
    """What every command may have. ``id`` names it in the answer; ``timestamp`` is only informative."""

    type: ClassVar[str]

    id: CommandId | None = None
    timestamp: ClientTime | None = None


@attrs.frozen(kw_only=True)
class Start(Command):
    """What the two commands that start a run have in common."""

    thread_id: Id | None = None
    agent: str | None = None
    context: JsonObject | None = None
    on_busy: OnBusy = "enqueue"
    on_disconnect: OnDisconnect | None = None
    timeout_s: Seconds | None = None

    @property
    def text(self) -> str:
        """What the agent is asked."""
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class StartAgent(Start):
    type: ClassVar[str] = "start_agent"

    user_request: Text
    run_id: Id | None = None
    idle_timeout_s: Seconds | None = None

    @property
    def text(self) -> str:
        return self.user_request


@attrs.frozen(kw_only=True)
class UserMessage(Start):
    type: ClassVar[str] = "user_message"

    content: Text
    attachments: list[Attachment] = attrs.field(factory=list)
    jsonl_logs: JsonlLogs | None = None

    @property
    def text(self) -> str:
        return self.content


@attrs.frozen(kw_only=True)
class StopAgent(Command):
    type: ClassVar[str] = "stop_agent"

    run_id: Id
    mode: StopMode = "now"
    reason: str | None = None


@attrs.frozen(kw_only=True)
class InputResponse(Command):
    type: ClassVar[str] = "input_response"

    input_id: Id
    status: Literal["resolved", "cancelled"]
    value: Any = None


@attrs.frozen(kw_only=True)
class CreateThread(Command):
    type: ClassVar[str] = "create_thread"

    thread_id: Id | None = None
    title: Title | None = None
    metadata: JsonObject | None = None


@attrs.frozen(kw_only=True)
class ListThreads(Command):
    type: ClassVar[str] = "list_threads"

    limit: Page100 = DEFAULT_THREADS
    before: str | None = None


@attrs.frozen(kw_only=True)
class GetThreadHistory(Command):
    type: ClassVar[str] = "get_thread_history"

    thread_id: Id
    limit: Page200 = DEFAULT_MESSAGES
    before: str | None = None


@attrs.frozen(kw_only=True)
class RenameThread(Command):
    type: ClassVar[str] = "rename_thread"

    thread_id: Id
    title: Title


@attrs.frozen(kw_only=True)
class DeleteThread(Command):
    type: ClassVar[str] = "delete_thread"

    thread_id: Id


@attrs.frozen(kw_only=True)
class SwitchThread(Command):
    type: ClassVar[str] = "switch_thread"

    thread_id: Id


@attrs.frozen(kw_only=True)
class ConnectJob(Command):
    type: ClassVar[str] = "connect_job"

    job_id: JobId
    resume: PositionText | None = None


@attrs.frozen(kw_only=True)
class DisconnectJob(Command):
    type: ClassVar[str] = "disconnect_job"

    job_id: JobId


@attrs.frozen(kw_only=True)
class PublishJob(Command):
    type: ClassVar[str] = "publish_job"

    job_id: JobId
    name: str
    value: Any


@attrs.frozen(kw_only=True)
class Resume(Command):
    type: ClassVar[str] = "resume"

    epoch: str
    seq: Seq
    job_id: JobId | None = None


@attrs.frozen(kw_only=True)
class RefreshAuth(Command):
    type: ClassVar[str] = "refresh_auth"

    token: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Kick(Command):
    """Sign a user out everywhere, or end the connections of one token; exactly one of the two is named."""

    type: ClassVar[str] = "kick"

    user_id: UserId | None = None
    jti: TokenId | None = None
    reason: Title | None = None


@attrs.frozen(kw_only=True)
class UserTyping(Command):
    type: ClassVar[str] = "user_typing"

    thread_id: Id
    is_typing: bool = True


@attrs.frozen(kw_only=True)
class Ping(Command):
    type: ClassVar[str] = "ping"


@attrs.frozen(kw_only=True)
class Heartbeat(Command):
    type: ClassVar[str] = "heartbeat"


@attrs.frozen(kw_only=True)
class Connect(Command):
    type: ClassVar[str] = "connect"


@attrs.frozen(kw_only=True)
class Disconnect(Command):
    type: ClassVar[str] = "disconnect"


@attrs.frozen(kw_only=True)
class HandshakeAcknowledged(Command):
    """An older client has read its ``handshake_response`` (PROTOCOL §1)."""

    type: ClassVar[str] = "handshake_acknowledged"

    thread_id: Id | None = None


COMMANDS: tuple[type[Command], ...] = (
    StartAgent,
    UserMessage,
    StopAgent,
    InputResponse,
    CreateThread,
    ListThreads,
    GetThreadHistory,
    RenameThread,
    DeleteThread,
    SwitchThread,
    ConnectJob,
    DisconnectJob,
    PublishJob,
    Resume,
    RefreshAuth,
    Kick,
    UserTyping,
    Ping,
    Heartbeat,
    Connect,
    Disconnect,
    HandshakeAcknowledged,
)

#: Name on the wire → class; the older names, too.
TYPES: Mapping[str, type[Command]] = {
    **{command.type: command for command in COMMANDS},
    "agent_request": StartAgent,
    "execute_agent": StartAgent,
    "chat": UserMessage,
    "user_input": UserMessage,
    "message": UserMessage,
    "chat_message": UserMessage,
    "cancel": StopAgent,
    "typing_started": UserTyping,
    "typing_stopped": UserTyping,
}

#: Class → field → the names it may have on the wire, the first that says something wins.
FIELD_NAMES: Mapping[type[Command], Mapping[str, tuple[str, ...]]] = {
    StartAgent: {"user_request": ("user_request", "content", "text", "query")},
    UserMessage: {"content": ("content", "text", "message", "user_request")},
}

#: Commands that cost the budget for talking; all others but pings cost the larger one.
TALK = (StartAgent, UserMessage)
