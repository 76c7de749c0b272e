"""How much a manager of the older surface holds, and how long it waits: every bound in one place."""

from __future__ import annotations

import math
from typing import Any

import attrs

from netra_ws.errors import InvalidArgument


def _positive(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidArgument(attribute.name, "expected a number above 0")


def _whole(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not int or value < 1:
        raise InvalidArgument(attribute.name, "expected a whole number above 0")


@attrs.frozen(kw_only=True)
class ManagerPolicy:
    """The bounds of one manager; the defaults are those of the server's own limits.

    Attributes:
        send_timeout_s: Seconds that one socket has to take one message.
        close_timeout_s: Seconds that a socket has to close when it is told to.
        max_message_bytes: Bytes of one message as JSON.
        max_connections: Connections of all users and jobs.
        max_undelivered: Messages that wait for one user; the newest are kept.
        max_undelivered_users: Users for whom messages wait; who was written to least recently goes.
        max_undelivered_bytes: Bytes of all messages that wait.
        max_users_with_errors: Users whose send failures are remembered one by one.
        max_threads: Threads whose owner is remembered.
        max_job_members: Connections in one job.
        max_tasks: Background tasks.
        max_task_failures: Failures after which a background task is not started again.
        first_delay_s: Seconds before the first new start of a task; they double.
        longest_delay_s: Seconds before a new start at most.
    """

    send_timeout_s: float = attrs.field(default=5.0, validator=_positive)
    close_timeout_s: float = attrs.field(default=1.0, validator=_positive)
    max_message_bytes: int = attrs.field(default=2**20, validator=_whole)
    max_connections: int = attrs.field(default=20_000, validator=_whole)
    max_connections_per_user: int = attrs.field(default=10, validator=_whole)
    max_undelivered: int = attrs.field(default=50, validator=_whole)
    max_undelivered_users: int = attrs.field(default=1000, validator=_whole)
    max_undelivered_bytes: int = attrs.field(default=64 * 2**20, validator=_whole)
    max_users_with_errors: int = attrs.field(default=1000, validator=_whole)
    max_threads: int = attrs.field(default=10_000, validator=_whole)
    max_jobs: int = attrs.field(default=1000, validator=_whole)
    max_job_members: int = attrs.field(default=1000, validator=_whole)
    max_tasks: int = attrs.field(default=32, validator=_whole)
    max_task_failures: int = attrs.field(default=3, validator=_whole)
    first_delay_s: float = attrs.field(default=1.0, validator=_positive)
    longest_delay_s: float = attrs.field(default=60.0, validator=_positive)
