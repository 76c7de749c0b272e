"""Messages that no socket has taken: kept for their user, sent again in order, each once."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from datetime import UTC, datetime

import attrs

from .encoding import Encoded
from .policy import ManagerPolicy


@attrs.define(eq=False)
class Kept:
    """One message that waits.

    Attributes:
        reason: ``no_connections`` or ``all_connections_failed``.
        attempts: How often it was tried again and the socket failed over the message itself.
        failed_at: Unix seconds.
        sending: Whether it is on its way right now.
        sent: Whether a socket has taken it.
    """

    message: Encoded
    reason: str
    failed_at: float
    attempts: int = 0
    sending: bool = False
    sent: bool = False

    @property
    def recovered(self) -> Encoded:
        """The message as it is sent again."""
        return self.message.with_fields(recovered=True)

    def as_dict(self) -> dict[str, object]:
        """Return the message with what is known of its failure."""
        failed_at = datetime.fromtimestamp(self.failed_at, UTC).isoformat()
        told = {"failure_reason": self.reason, "failed_at": failed_at, "recovery_attempts": self.attempts}
        return self.message.fields | told


@attrs.define(eq=False)
class Queue:
    """What waits for one user, the oldest first; *busy* while somebody sends it again."""

    waiting: deque[Kept] = attrs.field(factory=deque)
    busy: bool = False


@attrs.define
class Undelivered:
    """The queues of all users, within the bounds of a policy.

    Attributes:
        dropped: Messages that went for want of room: the user's oldest.
        dropped_users: Users whose messages went for want of room: who was written to least recently.
        given_up: Messages that went because sockets failed over them again and again.
    """

    policy: ManagerPolicy
    size: int = 0
    dropped: int = 0
    dropped_users: int = 0
    given_up: int = 0
    _queues: OrderedDict[str, Queue] = attrs.field(factory=OrderedDict)

    def __len__(self) -> int:
        return sum(len(queue.waiting) for queue in self._queues.values())

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return ((user_id, len(queue.waiting)) for user_id, queue in self._queues.items() if queue.waiting)

    def of(self, user_id: str) -> Queue | None:
        """Return what waits for a user."""
        return self._queues.get(user_id)

    def keep(self, user_id: str, message: Encoded, reason: str, now: float) -> Kept:
        """Put a message behind those that wait for its user; the oldest one goes when there are too many."""
        kept = Kept(message, reason, now)
        queue = self._queues.setdefault(user_id, Queue())
        self._queues.move_to_end(user_id)
        queue.waiting.append(kept)
        self.size += message.size
        if len(queue.waiting) > self.policy.max_undelivered + queue.waiting[0].sending:
            self._drop_oldest(queue)
        if len(self._queues) > self.policy.max_undelivered_users:
            self._drop_user(but=user_id)
        while self.size > self.policy.max_undelivered_bytes:
            if not self._drop_user(but=user_id):
                self._drop_oldest(queue)  # there is one, at least the new message
        return kept

    def take(self, queue: Queue, kept: Kept) -> None:
        """Take a message out."""
        queue.waiting.remove(kept)
        self.size -= kept.message.size

    def _drop_oldest(self, queue: Queue) -> None:
        # What is on its way is as good as gone.
        self.take(queue, next(kept for kept in queue.waiting if not kept.sending))
        self.dropped += 1

    def _drop_user(self, but: str) -> bool:
        found = next((user_id for user_id, queue in self._queues.items() if user_id != but and not queue.busy), None)
        if found is None:
            return False
        queue = self._queues.pop(found)
        self.size -= sum(kept.message.size for kept in queue.waiting)
        self.dropped += len(queue.waiting)
        self.dropped_users += 1
        return True

    def tidy(self, user_id: str) -> None:
        """Forget a user for whom nothing waits."""
        queue = self._queues.get(user_id)
        if queue is not None and not queue.waiting and not queue.busy:
            del self._queues[user_id]

    def forget_before(self, moment: float) -> int:
        """Forget what has waited since before *moment*; return for how many users nothing is left by that."""
        emptied = 0
        for user_id, queue in list(self._queues.items()):
            for kept in [kept for kept in queue.waiting if kept.failed_at < moment and not kept.sending]:
                self.take(queue, kept)
            if not queue.waiting and not queue.busy:
                del self._queues[user_id]
                emptied += 1
        return emptied
