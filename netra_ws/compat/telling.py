"""What a manager tells of itself: numbers, health, and what went wrong."""

from __future__ import annotations

from typing import Any

import attrs
import trio

from .arguments import checked_seconds
from .rooms import Joining

DAY_H = 24.0


@attrs.define(eq=False, repr=False, slots=False)
class Telling(Joining):
    """A manager's numbers.

    Attributes:
        messages_received: Messages that ``handle_message`` has noted.
    """

    messages_received: int = attrs.field(default=0, init=False)
    _started_at: float = attrs.field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._started_at = self.clock()

    def get_connection_count(self) -> int:
        """Return how many connections there are."""
        return len(self._held()) + (0 if self._native is None else len(self._native.all()))

    def get_stats(self) -> dict[str, Any]:
        """Return the numbers of this moment."""
        users = self._held().users()
        if self._native is not None and (native := len(self._native.all())):
            user_id = self._native.session.identity.user_id
            users[user_id] = users.get(user_id, 0) + native
        return {
            "total_connections": sum(users.values()),
            "unique_users": len(users),
            "connections_by_user": users,
            "messages_sent": self.messages_sent,
            "messages_received": self.messages_received,
            "uptime_seconds": max(0.0, self.clock() - self._started_at),
            "rooms": self.room_manager.get_stats(),
        }

    def get_connection_health(self, user_id: str) -> dict[str, Any]:
        """Return how the connections of a user do."""
        connections = self.connections_of(user_id)
        told = [
            {
                "connection_id": one.connection_id,
                "active": one.is_active and one.websocket is not None,
                "connected_at": one.connected_at.isoformat(),
                "last_activity": None if one.last_activity is None else one.last_activity.isoformat(),
                "thread_id": one.thread_id,
                "metadata": None if one.metadata is None else dict(one.metadata),
            }
            for one in connections
        ]
        active = sum(bool(one["active"]) for one in told)
        return {
            "user_id": user_id,
            "total_connections": len(told),
            "active_connections": active,
            "has_active_connections": active > 0,
            "connections": told,
        }

    def get_error_statistics(self) -> dict[str, Any]:
        """Return what went wrong: by kind, by user, and what waits to be sent again."""
        self._held()
        failures, waiting = self._failures, dict(self._undelivered)
        details = {
            user_id: {
                "error_count": 0 if (found := failures.of(user_id)) is None else found.count,
                "last_error": None if found is None else found.last,
                "queued_messages": waiting.get(user_id, 0),
            }
            for user_id in {**dict(failures), **waiting}
        }
        return {
            "total_users_with_errors": len(failures),
            "total_error_count": sum(failures.by_kind().values()),
            "failures_by_kind": failures.by_kind(),
            "recent_errors_5min": failures.recent(self.clock()),
            "error_recovery_enabled": True,
            "total_queued_messages": len(self._undelivered),
            "users_with_queued_messages": len(waiting),
            "dropped_messages": self._undelivered.dropped,
            "given_up_messages": self._undelivered.given_up,
            "isolation_violations": self.isolation_violations,
            "error_details": details,
        }

    async def cleanup_error_data(self, older_than_hours: float = DAY_H) -> dict[str, int]:
        """Forget failures and waiting messages from before so many hours; return how many went and stay."""
        before = self.clock() - 3600 * checked_seconds(older_than_hours, "older_than_hours")
        await trio.lowlevel.checkpoint()
        self._held()
        users, queues = self._failures.forget_before(before), self._undelivered.forget_before(before)
        return {
            "cleaned_error_users": users,
            "cleaned_queue_users": queues,
            "remaining_error_users": len(self._failures),
            "remaining_queue_users": len(dict(self._undelivered)),
        }

    def get_health_status(self) -> dict[str, Any]:
        """Return how it does: ``degraded`` while messages wait or a background task was given up."""
        stats, errors, tasks = self.get_stats(), self.get_error_statistics(), self._tasks.status()
        ill = errors["total_queued_messages"] or tasks["failed_tasks"]
        return {
            "status": "degraded" if ill else "healthy",
            "total_connections": stats["total_connections"],
            "unique_users": stats["unique_users"],
            "queued_messages": errors["total_queued_messages"],
            "recent_errors_5min": errors["recent_errors_5min"],
            "background_tasks": tasks["running_tasks"],
            "timestamp": self.clock(),
        }
