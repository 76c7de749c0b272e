"""Managers by user context: each user's own, so many at most, and forgotten when nobody uses them.

There is no instance for everybody, and no mode in which one user's manager stands in for another's: what
cannot be opened isolated is not opened.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import attrs

from netra_ws.errors import InvalidArgument, LimitReached

from .context import UserExecutionContext, checked_context
from .manager import UnifiedWebSocketManager
from .native import Contexts
from .policy import ManagerPolicy

MAX_MANAGERS_PER_USER = 5
MAX_MANAGERS = 10_000
#: Seconds without a call after which a manager is forgotten.
IDLE_S = 1800.0

WARNING = (
    "SECURITY WARNING: get_websocket_manager() without a user context is deprecated. The manager that it returns is "
    "new and belongs to nobody: what it is used for is up to you to keep apart by user. "
    "Use create_websocket_manager(user_context) instead."
)


@attrs.define(eq=False)
class _Made:
    manager: UnifiedWebSocketManager
    made_at: float
    used_at: float


@attrs.define(eq=False, repr=False)
class WebSocketManagerFactory:
    """An index of managers by user context.

    It can give nothing of one user to another: a manager is found only with a context of its own user, and
    serves nobody else. What expires is decided when somebody asks, by the clock that was handed in; there is
    no task that sweeps.

    Attributes:
        max_managers_per_user: Managers of one user that are alive.
        max_managers: Managers of all users.
        idle_s: Seconds without a call after which a manager is closed and forgotten; never inside ``async with``.
        policy: Of the managers that it makes.
        clock: Seconds that do not go back.
        limit_hits: How often a manager was refused.
    """

    max_managers_per_user: int = MAX_MANAGERS_PER_USER
    max_managers: int = MAX_MANAGERS
    idle_s: float = IDLE_S
    policy: ManagerPolicy = attrs.field(factory=ManagerPolicy)
    clock: Callable[[], float] = time.monotonic
    created: int = attrs.field(default=0, init=False)
    cleaned_up: int = attrs.field(default=0, init=False)
    limit_hits: int = attrs.field(default=0, init=False)
    _lifetimes_s: float = attrs.field(default=0.0, init=False)
    _violations: int = attrs.field(default=0, init=False)
    # In the order of their last use, so that what has expired stands in front.
    _made: OrderedDict[tuple[str, str], _Made] = attrs.field(factory=OrderedDict, init=False)
    _users: Counter[str] = attrs.field(factory=Counter, init=False)

    def __attrs_post_init__(self) -> None:
        for name in ("max_managers_per_user", "max_managers"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise InvalidArgument(name, "expected a whole number above 0")
        if isinstance(self.idle_s, bool) or not isinstance(self.idle_s, int | float) or not self.idle_s > 0:
            raise InvalidArgument("idle_s", "expected seconds above 0")

    def create_manager(
        self, user_context: UserExecutionContext, *, server: Contexts | None = None
    ) -> UnifiedWebSocketManager:
        """Return the manager of a user context: the one that it has, while that is alive, or a new one.

        Raises:
            InvalidContextError: That is no user context.
            InvalidArgument: The one that it has stands on another server.
            LimitReached: The user has too many (``managers of this user``), or there are too many in all.
        """
        context = checked_context(user_context)
        now = self.clock()
        self._expire(now)
        key = context.isolation_key
        found = self._made.get(key)
        if found is not None:
            if found.manager.server is not server:
                raise InvalidArgument("server", "the manager of this context stands on another server")
            self._used(key)
            return found.manager
        self._check_room(context.user_id)
        manager = UnifiedWebSocketManager(
            self.policy, context, server, on_use=lambda: self._used(key), on_close=lambda: self._forget(key)
        )
        self._made[key] = _Made(manager, now, now)
        self._users[context.user_id] += 1
        self.created += 1
        return manager

    def _check_room(self, user_id: str) -> None:
        for what, count, most in (
            ("managers of this user", self._users[user_id], self.max_managers_per_user),
            ("managers", len(self._made), self.max_managers),
        ):
            if count >= most:
                self.limit_hits += 1
                raise LimitReached(what, most)

    def _used(self, key: tuple[str, str]) -> None:
        self._made[key].used_at = self.clock()
        self._made.move_to_end(key)

    def _forget(self, key: tuple[str, str]) -> None:
        made = self._made.pop(key)
        self._users[key[0]] -= 1
        if not self._users[key[0]]:
            del self._users[key[0]]
        self.cleaned_up += 1
        self._lifetimes_s += self.clock() - made.made_at
        self._violations += made.manager.isolation_violations

    def _expire(self, now: float) -> None:
        """Close what nobody has used for so long; what is inside ``async with`` is in use."""
        for key, made in list(self._made.items()) if self._overdue(now) else ():
            if now - made.used_at < self.idle_s:
                return
            if made.manager.entered:
                self._used(key)
            else:
                made.manager.close()  # which forgets it

    def _overdue(self, now: float) -> bool:
        first = next(iter(self._made.values()), None)
        return first is not None and now - first.used_at >= self.idle_s

    def get_factory_stats(self) -> dict[str, Any]:
        """Return the numbers of this moment, behind what has expired."""
        now = self.clock()
        self._expire(now)
        alive = [made.manager for made in self._made.values()]
        return {
            "factory_metrics": {
                "managers_created": self.created,
                "managers_active": len(alive),
                "managers_cleaned_up": self.cleaned_up,
                "users_with_active_managers": len(self._users),
                "resource_limit_hits": self.limit_hits,
                "total_connections_managed": sum(manager.size for manager in alive),
                "security_violations_detected": self._violations + sum(one.isolation_violations for one in alive),
                "average_manager_lifetime_seconds": self._lifetimes_s / self.cleaned_up if self.cleaned_up else 0.0,
            },
            "configuration": {
                "max_managers_per_user": self.max_managers_per_user,
                "max_managers": self.max_managers,
                "connection_timeout_seconds": self.idle_s,
            },
            "current_state": {
                "active_managers": len(alive),
                "users_with_managers": len(self._users),
                "isolation_keys": [":".join(key) for key in self._made],
            },
            "user_distribution": dict(self._users),
            "oldest_manager_age_seconds": max((now - made.made_at for made in self._made.values()), default=0.0),
        }


#: What the functions below use; a program that wants limits of its own makes a factory of its own.
_FACTORY = WebSocketManagerFactory()


def create_websocket_manager(
    user_context: UserExecutionContext, *, server: Contexts | None = None
) -> UnifiedWebSocketManager:
    """Return the manager of one user context; it serves that user only.

    Args:
        server: Where the user's real connections are; then ``async with manager:`` holds their context open.

    Raises:
        InvalidContextError, InvalidArgument, LimitReached: As ``WebSocketManagerFactory.create_manager``.
    """
    return _FACTORY.create_manager(user_context, server=server)


def get_websocket_manager(
    user_context: UserExecutionContext | None = None, mode: object = None
) -> UnifiedWebSocketManager:
    """Return the manager of a user context; without one, a new manager that nobody else has, with a warning.

    Args:
        mode: Ignored, with a warning: there is one kind of manager, an isolated one.

    Raises:
        InvalidContextError, LimitReached: As ``create_websocket_manager``. There is no other manager instead.
    """
    if mode is not None:
        warnings.warn("mode is ignored: every manager is isolated", UserWarning, stacklevel=2)
    if user_context is not None:
        return create_websocket_manager(user_context)
    warnings.warn(WARNING, UserWarning, stacklevel=2)
    return UnifiedWebSocketManager()


def get_factory_stats() -> dict[str, Any]:
    """Return the numbers of the factory that ``create_websocket_manager`` uses."""
    return _FACTORY.get_factory_stats()
