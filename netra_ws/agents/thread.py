"""What a run has of its conversation, and of the worker threads: ``run.thread``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

import attrs
import trio

from netra_ws.history.stores.contract import MessageRow

if TYPE_CHECKING:
    from .run import Run

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@attrs.define(repr=False)
class RunThread:
    """The conversation of a run, ``run.thread``; called with a function, it runs blocking code."""

    _run: Run

    @property
    def id(self) -> str:
        return self._run.request.thread_id

    async def history(self, limit: int = 50) -> list[MessageRow]:
        """Return the last messages of this conversation, oldest first, the one that started the run included."""
        run = self._run
        if run.stream.visible < run.started_seq:  # else the message might not be committed yet
            with run.waiting_for_the_store():
                await run.stream.wait_visible(run.started_seq)
        return await run.ledger.messages(run.identity.user_id, self.id, limit, run.stream.visible)

    async def __call__(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run blocking code in a worker thread of the server's bounded pool, of which each user has a share.

        The thread may emit through ``trio.from_thread.run(run.say, …)``. Code that wants to be
        stoppable calls ``trio.from_thread.check_cancelled()`` now and then.

        *Cancellation:* waits for the thread. One that does not end within ``finalise_s`` gets the
        run sealed: the stop is answered with ``CANCEL_TIMEOUT``, and the run counts as stuck until
        the thread has ended.
        """
        self._run.check_thread()
        policy, token = self._run.policy, object()
        if policy.user_threads is not None:
            # Whoever waits for their own share holds nothing of the common pool meanwhile.
            await policy.user_threads.acquire_on_behalf_of(token)
        try:
            return await trio.to_thread.run_sync(fn, *args, limiter=policy.threads)
        finally:
            if policy.user_threads is not None:
                policy.user_threads.release_on_behalf_of(token)
