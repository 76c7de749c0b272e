"""Rules and bounds of the rooms of life, made once from the settings."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from netra_ws.agents.agent import Agent
from netra_ws.agents.request import RunPolicy
from netra_ws.protocol.commands import OnDisconnect


@attrs.frozen(kw_only=True)
class ContextPolicy:
    """What users may do and how long things last; times in seconds.

    Attributes:
        agents: Every agent by name.
        default_agent: Whom a message without ``agent`` goes to.
        on_disconnect: What the last connection going away means for a run that did not say.
        allow_continue: Whether a client may ask for ``continue``.
        run_timeout_s: Longest life of a run, and the cap of what a client asks for.
        idle_timeout_s: Longest silence of a run, and the cap of what a client asks for.
    """

    agents: Mapping[str, Agent]
    default_agent: str
    run: RunPolicy
    on_disconnect: OnDisconnect
    allow_continue: bool
    resume_window_s: float
    run_timeout_s: float
    idle_timeout_s: float
    heartbeat_interval_s: float
    pong_timeout_s: float
    expiry_grace_s: float
    max_message_bytes: int
    messages_per_minute: int
    pings_per_minute: int
    max_connections: int
    max_connections_per_user: int
    max_runs_per_user: int
    max_threads_per_user: int
    max_queued_per_thread: int
    max_jobs_per_connection: int
