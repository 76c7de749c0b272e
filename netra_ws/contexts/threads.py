"""The conversations of one user that something is going on in: whose turn it is, and who waits."""

from __future__ import annotations

from collections import deque

import attrs

from netra_ws.agents.run import Run


@attrs.define(eq=False)
class ThreadState:
    """One thread while it is busy or was used lately.

    Attributes:
        title: As the ledger has it.
        active: The run whose turn it is; a thread has one at a time.
        queue: Runs that wait for their turn, the next one first.
        deleting: Whether it is being deleted; nothing new starts in it.
    """

    thread_id: str
    title: str
    metadata: dict[str, object] = attrs.field(factory=dict)
    active: Run | None = None
    queue: deque[Run] = attrs.field(factory=deque)
    deleting: bool = False

    @property
    def busy(self) -> bool:
        return self.active is not None


@attrs.define
class ThreadStates:
    """Threads of one user by id; idle ones are forgotten beyond a bound, the ledger has them."""

    keep: int
    _threads: dict[str, ThreadState] = attrs.field(factory=dict)

    def get(self, thread_id: str) -> ThreadState | None:
        """Return a thread that is known here."""
        return self._threads.get(thread_id)

    def add(self, thread: ThreadState) -> ThreadState:
        """Remember a thread; idle ones beyond the bound are forgotten, the oldest first."""
        if len(self._threads) >= self.keep:
            for known in list(self._threads.values()):
                if not known.busy and not known.deleting:
                    del self._threads[known.thread_id]
                    break
        self._threads[thread.thread_id] = thread
        return thread

    def remove(self, thread_id: str) -> None:
        """Forget a thread that was deleted."""
        self._threads.pop(thread_id, None)

    def __len__(self) -> int:
        return len(self._threads)
