"""Why a message did not reach a socket: the kinds, how an error of a foreign socket is put among them, and counts.

Sockets come from any library, and none of them is imported for the sake of its errors: they are known by the
names that they have there.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from enum import StrEnum

import attrs
import trio

#: Seconds for which an error is a recent one, and how many of those are remembered.
RECENT_S = 300.0
RECENT_MOST = 1000


class FailureKind(StrEnum):
    """Why a message was not sent. ``OTHER`` is an error of the socket's own that is none of the rest."""

    CLOSED = "closed"
    RESET = "reset"
    TIMEOUT = "timeout"
    TOO_LARGE = "too_large"
    NOT_SERIALISABLE = "not_serialisable"
    NO_CONNECTION = "no_connection"
    OTHER = "other"


class NoSocket(Exception):
    """A connection has no object that a message can be put on."""


#: Errors by type; the first that fits counts.
_BY_TYPE: tuple[tuple[tuple[type[BaseException], ...], FailureKind], ...] = (
    ((NoSocket,), FailureKind.NO_CONNECTION),
    ((trio.TooSlowError, TimeoutError), FailureKind.TIMEOUT),
    ((trio.ClosedResourceError,), FailureKind.CLOSED),
    ((trio.BrokenResourceError, OSError), FailureKind.RESET),
)
#: Errors of libraries by the name of their class: trio-websocket, websockets, Starlette, wsproto, wsproto's users.
_BY_NAME = {
    "ConnectionClosed": FailureKind.CLOSED,
    "WebSocketDisconnect": FailureKind.CLOSED,
    "LocalProtocolError": FailureKind.CLOSED,
    "ConnectionResetError": FailureKind.RESET,
}


def kind_of(error: BaseException) -> FailureKind:
    """Return the kind of an error that sending has raised; of a group, that of its first one."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    for types, kind in _BY_TYPE:
        if isinstance(error, types):
            return kind
    names = (class_.__name__ for class_ in type(error).__mro__)
    return next((_BY_NAME[name] for name in names if name in _BY_NAME), FailureKind.OTHER)


@attrs.define
class UserFailures:
    """What went wrong for one user."""

    count: int = 0
    last: str = ""
    last_at: float = 0.0


@attrs.define
class Failures:
    """Counts of send failures: by kind, and by user for a bounded number of users, the latest ones.

    Attributes:
        counts: Kind → how often.
        forgotten: Users whose own counts went for want of room.
    """

    max_users: int
    counts: Counter[FailureKind] = attrs.field(factory=Counter)
    forgotten: int = 0
    _users: OrderedDict[str, UserFailures] = attrs.field(factory=OrderedDict)
    _recent: deque[float] = attrs.field(factory=lambda: deque(maxlen=RECENT_MOST))

    def note(self, kind: FailureKind, user_id: str | None, now: float) -> None:
        """Count a failure."""
        self.counts[kind] += 1
        self._recent.append(now)
        if user_id is None:
            return
        found = self._users.setdefault(user_id, UserFailures())
        self._users.move_to_end(user_id)
        found.count += 1
        found.last, found.last_at = kind.value, now
        if len(self._users) > self.max_users:
            self._users.popitem(last=False)
            self.forgotten += 1

    def recent(self, now: float) -> int:
        """Return how many failures there were in the last five minutes, as far as they are remembered."""
        return sum(now - RECENT_S <= at for at in self._recent)

    def forget_before(self, moment: float) -> int:
        """Forget users whose last failure was before *moment*; return how many."""
        old = [user_id for user_id, found in self._users.items() if found.last_at < moment]
        for user_id in old:
            del self._users[user_id]
        return len(old)

    def by_kind(self) -> dict[str, int]:
        """Return every kind with its count, also those that never happened."""
        return {kind.value: self.counts[kind] for kind in FailureKind}

    def __iter__(self) -> Iterator[tuple[str, UserFailures]]:
        return iter(list(self._users.items()))

    def of(self, user_id: str) -> UserFailures | None:
        """Return what went wrong for one user."""
        return self._users.get(user_id)

    def __len__(self) -> int:
        return len(self._users)
