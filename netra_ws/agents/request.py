"""What somebody asked a run to do, the bounds that every run has, and what it needs of its user's context."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import orjson
import trio

from netra_ws.errors import EventTooLarge
from netra_ws.history.stores.contract import RunRow
from netra_ws.protocol.commands import Attachment, OnDisconnect
from netra_ws.protocol.events import Trigger

if TYPE_CHECKING:
    from .agent import Agent
    from .asyncio_thread import AsyncioThread
    from .inputs import Inputs
    from .job import Job
    from .llm.endpoint import ModelEndpoint
    from .run import Run
    from .tools import Tool

#: Characters of a tool's or an event's name.
MAX_NAME = 256


def new_id(kind: str) -> str:
    """Return a fresh id such as ``run_…``, unique everywhere."""
    return f"{kind}_{uuid.uuid4().hex}"


@attrs.frozen(kw_only=True)
class RunRequest:
    """What somebody asked for.

    Attributes:
        timeout_s: Longest life of the run, already capped.
        idle_timeout_s: Longest time without any event, already capped.
        on_disconnect: What the user's last connection going away means for it.
    """

    run_id: str
    thread_id: str
    message_id: str
    agent_name: str
    text: str
    trigger: Trigger
    on_disconnect: OnDisconnect
    timeout_s: float
    idle_timeout_s: float
    context: Mapping[str, Any] = attrs.field(factory=dict)
    attachments: Sequence[Attachment] = ()
    jsonl_logs: str | Sequence[Mapping[str, Any]] | None = None
    parent_run_id: str | None = None
    parent_tool_call_id: str | None = None


@attrs.frozen(kw_only=True)
class RunPolicy:
    """Bounds of every run, from the settings; sizes in bytes.

    Attributes:
        finalise_s: How long a run has to exit after a cancel before it is sealed.
        asyncio: Where bridged agents of the server run.
        threads: Bounds the worker threads of all runs together.
        user_threads: Bounds those of one user's runs, so that nobody takes all of them; None in the policy
            that all users share.
        user_tools: How many calls of each tool one user may have at the same time; None likewise.
        model: The endpoint of ``llm.base_url``, what the agents of models ask by default; None where none is set.
    """

    finalise_s: float
    max_response_bytes: int
    max_event_bytes: int
    max_events: int
    asyncio: AsyncioThread
    threads: trio.CapacityLimiter
    user_threads: trio.CapacityLimiter | None = None
    model: ModelEndpoint | None = None
    user_tools: MutableMapping[Tool, trio.CapacityLimiter] | None = None


class Host(Protocol):
    """What a run needs of the user's context that it lives in."""

    @property
    def inputs(self) -> Inputs:
        """The user's open questions."""
        ...

    def agent_named(self, name: str | None) -> tuple[str, Agent]:
        """Return an agent by name.

        Raises:
            ClientError: ``UNKNOWN_AGENT``.
        """
        ...

    def job(self, job_id: str, run: Run) -> Job:
        """Return a job for the hands of a run.

        Raises:
            InvalidArgument: *job_id* is none.
        """
        ...

    def run_ended(self, run: Run) -> None:
        """Count a sub-run that has ended."""
        ...

    def answered(self) -> None:
        """Decide again whether a run may go on: it does not wait for its user any more."""
        ...


def check_name(what: str, name: str) -> None:
    """Raise ``EventTooLarge`` for a name of more than ``MAX_NAME`` characters."""
    if len(name) > MAX_NAME:
        raise EventTooLarge(what, len(name), MAX_NAME)


def check_size(what: str, value: object, most: int, already: int = 0) -> int:
    """Return the size of *value* in an event that carries *already* so many of its *most* bytes.

    Raises:
        EventTooLarge, TypeError: No event can carry it.
    """
    size = len(orjson.dumps([value])) - 2  # in a list, because it will stand one level deep: that is bounded, too
    if already + size > most:
        raise EventTooLarge(what, already + size, most)
    return size


def check_progress(progress: object) -> None:
    """Raise ``TypeError`` for what is no number; readers of the event would not know it."""
    if progress is not None and not _is_number(progress):
        raise TypeError(f"progress: expected a number from 0 to 1, got {progress!r:.50}")


def check_usage(provider: object, model: object, input_tokens: object, output_tokens: object, cost_usd: object) -> None:
    """Raise ``TypeError`` for usage that readers of ``agent_completed`` would not know."""
    for name, text in (("provider", provider), ("model", model)):
        if not isinstance(text, str):
            raise TypeError(f"{name}: expected text, got {type(text).__name__}")
    for name, count in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
        if count is not None and type(count) is not int:
            raise TypeError(f"{name}: expected a whole number, got {type(count).__name__}")
    if cost_usd is not None and not _is_number(cost_usd):
        raise TypeError(f"cost_usd: expected a number, got {type(cost_usd).__name__}")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def row_of(
    request: RunRequest,
    user_id: str,
    seq: int,
    now: float,
    command_id: str | None = None,
    command_digest: str | None = None,
) -> RunRow:
    """Return the ledger's row of a run that is asked for; *seq* is that of its ``user_message``."""
    return RunRow(
        user_id=user_id,
        run_id=request.run_id,
        thread_id=request.thread_id,
        agent_name=request.agent_name,
        message_id=request.message_id,
        state="running",
        created_at=now,
        started_seq=seq,
        trigger=request.trigger,
        parent_run_id=request.parent_run_id,
        command_id=command_id,
        command_digest=command_digest,
    )
