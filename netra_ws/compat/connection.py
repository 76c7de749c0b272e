"""One connection as programs for the older system know it: ids, a socket of any kind, and what they note of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import attrs

from netra_ws.errors import InvalidArgument

from .arguments import checked_text, checked_user


def _now() -> datetime:
    return datetime.now(UTC)


def _aware(value: datetime) -> datetime:
    """Read a time without an offset as UTC: ages of both kinds can then be compared."""
    if not isinstance(value, datetime):
        raise InvalidArgument("connected_at", f"expected a datetime, got {type(value).__name__}")
    return value if value.utcoffset() is not None else value.replace(tzinfo=UTC)


def _connection_id(_instance: object, _attribute: object, value: str) -> None:
    checked_text(value, "connection_id")


def _user_id(_instance: object, _attribute: object, value: str) -> None:
    checked_user(value)


def _thread_id(_instance: object, _attribute: object, value: str | None) -> None:
    if value is not None:
        checked_text(value, "thread_id")


def _metadata(_instance: object, _attribute: object, value: dict[str, Any] | None) -> None:
    if not isinstance(value, dict | None):
        raise InvalidArgument("metadata", f"expected a dict or None, got {type(value).__name__}")


@attrs.define(repr=False)
class WebSocketConnection:
    """A connection of a manager: whose it is never changes, the rest may; two with equal values are equal.

    Attributes:
        connection_id: Unique within its manager; fixed.
        user_id: Whose it is; fixed, for a socket that changed hands would carry one user's messages to another.
        websocket: Anything with ``send_json`` (gets an object) or ``send_message`` (gets JSON text); None for none.
        connected_at: When it was made, with an offset.
        metadata: Whatever the program notes.
        thread_id: The conversation that it is in.
        last_activity: When something was last sent to it or came from it; no part of its value.
        is_active: False once it was removed from its manager; no part of its value.
    """

    connection_id: str = attrs.field(validator=_connection_id, on_setattr=attrs.setters.frozen)
    user_id: str = attrs.field(validator=_user_id, on_setattr=attrs.setters.frozen)
    websocket: Any = None
    connected_at: datetime = attrs.field(factory=_now, converter=_aware)
    metadata: dict[str, Any] | None = attrs.field(default=None, validator=_metadata)
    thread_id: str | None = attrs.field(default=None, validator=_thread_id)
    last_activity: datetime | None = attrs.field(default=None, eq=False)
    is_active: bool = attrs.field(default=True, eq=False)

    def __repr__(self) -> str:
        return f"<WebSocketConnection {self.connection_id} of {self.user_id!r}>"

    @property
    def job_id(self) -> str | None:
        """The job that it is a member of, if it is one of a job."""
        job_id = (self.metadata or {}).get("job_id")
        return job_id if isinstance(job_id, str) else None

    def touch(self, moment: float) -> None:
        """Note that something went to or came from it at these Unix seconds."""
        self.last_activity = datetime.fromtimestamp(moment, UTC)
