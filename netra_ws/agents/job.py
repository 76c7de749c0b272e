"""A job in an agent's hands: a stream of its own that several users may be granted."""

from __future__ import annotations

from typing import Any, Protocol


class Job(Protocol):
    """What ``run.job(job_id)`` gives."""

    @property
    def job_id(self) -> str: ...

    async def emit(self, name: str, value: Any) -> None:
        """Say something into the job: an ``agent_event`` with any JSON value, numbered on the job's own stream.

        Whoever says the first word has opened the job and owns it. Everybody who reads it sees ``user_id``,
        ``run_id`` and ``agent_name``. It counts against ``limits.max_events_per_run``.

        Raises:
            AgentError: ``NOT_FOUND``: another user owns it, and this one may not publish there.
                ``QUOTA_EXCEEDED``: the user has a thousand open jobs.
            EventTooLarge: The value is above ``limits.max_event_bytes``.
            TypeError: It is no JSON value.
            RunClosed: The run has ended.
        """
        ...

    async def close(self) -> None:
        """Make the id free for others; who reads it gets what was said, then ``job_disconnected``.

        Raises:
            AgentError: ``NOT_FOUND``: it is not open, or not this user's.
            RunClosed: The run has ended.
        """
        ...
