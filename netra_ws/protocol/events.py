"""What the server says about runs and threads (PROTOCOL §3): numbered events of a stream.

An event does not know its number. ``history.stream`` stamps it when it is appended, and the codec
encodes both together, once, into a frame that every receiver gets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import attrs

Phase = Literal["delta", "full"]
ToolStatus = Literal["ok", "error", "denied", "cancelled", "timeout"]
RunStatus = Literal["success", "cancelled", "error", "timeout", "lost"]
Trigger = Literal["message", "start_agent", "api", "queue", "delegate"]
Disposition = Literal["started", "queued", "steered"]
CancelledBy = Literal[
    "user", "disconnect", "timeout", "idle_timeout", "interrupt", "rollback", "parent", "quota", "shutdown", "admin"
]


@attrs.frozen(kw_only=True)
class Stamp:
    """Where and when an event stands.

    Attributes:
        seq: Number in its stream, from 1, never used twice in an epoch.
        timestamp: Unix seconds, UTC.
        event_id: Unique in the installation.
        user_id: Whose stream it is.
    """

    seq: int
    timestamp: float
    event_id: str
    user_id: str


@attrs.frozen(kw_only=True)
class Event:
    """Any numbered event. ``durable`` ones are delivered only after they were committed."""

    type: ClassVar[str]

    @property
    def durable(self) -> bool:
        return True


@attrs.frozen(kw_only=True)
class RunEvent(Event):
    """An event of one run."""

    thread_id: str
    run_id: str
    agent_name: str
    parent_run_id: str | None = None


@attrs.frozen(kw_only=True)
class AgentStarted(RunEvent):
    type: ClassVar[str] = "agent_started"

    message_id: str
    trigger: Trigger
    parent_tool_call_id: str | None = None


@attrs.frozen(kw_only=True)
class AgentThinking(RunEvent):
    """``reasoning`` is the text so far for ``full``, the new piece for ``delta``."""

    type: ClassVar[str] = "agent_thinking"

    reasoning: str
    phase: Phase = "full"
    step: str | int | None = None
    progress: float | None = None

    @property
    def durable(self) -> bool:
        return self.phase == "full"


@attrs.frozen(kw_only=True)
class AgentMessage(RunEvent):
    """``content`` is the text so far for ``full``, the new piece for ``delta``."""

    type: ClassVar[str] = "agent_message"

    message_id: str
    phase: Phase
    content: str
    role: Literal["assistant"] = "assistant"

    @property
    def durable(self) -> bool:
        return self.phase == "full"


@attrs.frozen(kw_only=True)
class ToolExecuting(RunEvent):
    type: ClassVar[str] = "tool_executing"

    tool_call_id: str
    tool_name: str
    parameters: Mapping[str, Any]
    status: Literal["executing"] = "executing"
    timeout_s: float | None = None


@attrs.frozen(kw_only=True)
class ErrorText:
    """Why a tool failed: a stable word and a sentence."""

    code: str
    message: str


@attrs.frozen(kw_only=True)
class RunError:
    """Why a run failed: a stable word, a sentence, and whether asking again may help."""

    code: str
    message: str
    retryable: bool = False


@attrs.frozen(kw_only=True)
class ToolCompleted(RunEvent):
    type: ClassVar[str] = "tool_completed"

    tool_call_id: str
    tool_name: str
    status: ToolStatus
    success: bool
    results: Any
    error: ErrorText | None = None
    duration_ms: int


@attrs.frozen(kw_only=True)
class ToolProgress(RunEvent):
    type: ClassVar[str] = "tool_progress"

    tool_call_id: str
    progress: float | None
    message: str | None = None

    @property
    def durable(self) -> bool:
        return False


@attrs.frozen(kw_only=True)
class Usage:
    """What a run used of one model. A count that is absent was not told, which is not zero."""

    provider: str
    model: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None


@attrs.frozen(kw_only=True)
class AgentCompleted(RunEvent):
    """The last event of every run.

    Attributes:
        events: Number of events of this run, this one and ``agent_started`` included.
        duration_ms: Since ``agent_started``.
    """

    type: ClassVar[str] = "agent_completed"

    status: RunStatus
    success: bool
    final_response: Any
    error: RunError | None = None
    cancelled_by: CancelledBy | None = None
    usage: list[Usage] | None = None
    duration_ms: int
    events: int


@attrs.frozen(kw_only=True)
class InputRequired(RunEvent):
    type: ClassVar[str] = "input_required"

    input_id: str
    prompt: str
    choices: list[str] | None = None
    schema: Mapping[str, Any] | None = None
    expires_at: float | None = None


@attrs.frozen(kw_only=True)
class InputReceived(RunEvent):
    type: ClassVar[str] = "input_received"

    input_id: str
    status: str
    value: Any
    by: str


@attrs.frozen(kw_only=True)
class MessageReceived(RunEvent):
    """What the user said (``user_message`` on the wire; the command of that name is another class)."""

    type: ClassVar[str] = "user_message"

    message_id: str
    content: str
    disposition: Disposition
    command_id: str | None = None


@attrs.frozen(kw_only=True)
class RunQueued(RunEvent):
    """``position`` is 1 for the next in line."""

    type: ClassVar[str] = "run_queued"

    position: int


@attrs.frozen(kw_only=True)
class AgentEvent(RunEvent):
    """Whatever an agent wants to say under a name of its own."""

    type: ClassVar[str] = "agent_event"

    name: str
    value: Any


@attrs.frozen(kw_only=True)
class Announcement(Event):
    """An ``agent_event`` that belongs to no run of its stream: said into a job, or by a program to one user.

    Attributes:
        user_id: Who said it; the stream's owner where it is absent.
        job_id: The job whose stream it stands on.
        run_id: The run of ``user_id`` that has said it into the job.
    """

    type: ClassVar[str] = "agent_event"

    name: str
    value: Any
    user_id: str | None = None
    job_id: str | None = None
    run_id: str | None = None
    agent_name: str | None = None


@attrs.frozen(kw_only=True)
class ThreadEvent(Event):
    thread_id: str
    title: str
    metadata: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class ThreadCreated(ThreadEvent):
    type: ClassVar[str] = "thread_created"


@attrs.frozen(kw_only=True)
class ThreadRenamed(ThreadEvent):
    type: ClassVar[str] = "thread_renamed"


@attrs.frozen(kw_only=True)
class ThreadDeleted(ThreadEvent):
    type: ClassVar[str] = "thread_deleted"


EVENTS: tuple[type[Event], ...] = (
    AgentStarted,
    AgentThinking,
    AgentMessage,
    ToolExecuting,
    ToolCompleted,
    ToolProgress,
    AgentCompleted,
    InputRequired,
    InputReceived,
    MessageReceived,
    RunQueued,
    AgentEvent,
    Announcement,
    ThreadCreated,
    ThreadRenamed,
    ThreadDeleted,
)
