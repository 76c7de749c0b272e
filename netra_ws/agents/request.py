"""What somebody asked a run to do, and the bounds that every run has."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import trio

from netra_ws.protocol.commands import Attachment, OnDisconnect
from netra_ws.protocol.events import Trigger

if TYPE_CHECKING:
    from .asyncio_thread import AsyncioThread


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


@attrs.frozen(kw_only=True)
class RunPolicy:
    """Bounds of every run, from the settings; sizes in bytes.

    Attributes:
        finalise_s: How long a run has to exit after a cancel before it is sealed.
        asyncio: Where bridged agents of the server run.
        threads: Bounds the worker threads of all runs together.
        user_threads: Bounds those of one user's runs, so that nobody takes all of them; None in the policy
            that all users share.
    """

    finalise_s: float
    max_response_bytes: int
    max_event_bytes: int
    max_events: int
    asyncio: AsyncioThread
    threads: trio.CapacityLimiter
    user_threads: trio.CapacityLimiter | None = None
