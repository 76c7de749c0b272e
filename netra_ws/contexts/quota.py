"""How much may be kept of one user: ``limits.max_stored_bytes_per_user``, watched in the background.

A user's store is measured after every sixteenth of the quota that was written, and a sixteenth of that for each
job, so it may stand that much above it. What goes first is the oldest part of the log, which serves only
clients that come back: down to a quarter of the quota. Then the logs of the user's jobs are cut, the largest one
first. Then whole threads go, the one that was used longest ago first, each with its
``thread_deleted``; never one in which a run goes on or waits. A sixteenth is made free beyond the quota,
so that the next message does not start all over.
"""

from __future__ import annotations

import logging
import random

import attrs
import trio

from netra_ws.errors import StoreError
from netra_ws.history.stores.contract import Store
from netra_ws.history.stream import Stream

from .context import UserContext
from .registry import Registry
from .starting import find_thread, remove_thread
from .threads import ThreadState

logger = logging.getLogger(__name__)

#: Part of the quota after which a user is measured again, and that is made free beyond it.
SHARE = 16
#: Part of the quota that the log may keep however much the threads hold.
LOG_SHARE = 4
#: Threads looked at in one read.
PAGE = 50
#: Users that wait to be measured; beyond it one waits for the next share.
MAX_DUE = 10_000
#: Seconds until the next user when the store did not answer.
RETRY_S = 5.0


@attrs.define(repr=False)
class Quota:
    """Measures users and removes what is too much, one user at a time."""

    limit_bytes: int
    registry: Registry
    store: Store
    _due: dict[str, None] = attrs.field(factory=dict)
    _wake: trio.Event = attrs.field(factory=trio.Event)

    def note(self, stream: Stream, size: int) -> None:
        """Count what was kept; called by the recorder."""
        share = self.limit_bytes // (SHARE if stream.key == f"user:{stream.user_id}" else SHARE * SHARE)
        if stream.unmeasured is None:
            # Nobody knows how much was written before: after a restart, users come due one by one.
            stream.unmeasured = random.randrange(share + 1)  # noqa: S311  (spreads work, protects nothing)
        stream.unmeasured += size
        if stream.unmeasured >= share:
            stream.unmeasured = 0
            if len(self._due) < MAX_DUE:
                self._due[stream.user_id] = None
                self._wake.set()

    async def run(self) -> None:
        """Look at users that wrote much until cancelled."""
        while True:
            if not self._due:
                self._wake = trio.Event()
                await self._wake.wait()
            user_id = next(iter(self._due))
            del self._due[user_id]
            try:
                await self._check(user_id)
            except StoreError as exc:
                logger.warning("the store of user=%s was not measured: %s", user_id, exc)
                self._due[user_id] = None
                await trio.sleep(RETRY_S)

    async def _check(self, user_id: str) -> None:
        stream = await self.registry.streams.open(user_id)
        try:
            usage = await self.store.usage(user_id, stream.key)
            if usage.total <= self.limit_bytes:
                return
            excess = usage.total - self.limit_bytes + self.limit_bytes // SHARE
            log_bytes = min(usage.events, max(usage.events - excess, self.limit_bytes // LOG_SHARE))
            await self.registry.recorder.shorten(self.registry.streams, stream.key, log_bytes)
        finally:
            self.registry.streams.release(stream)
        excess = await self._shorten_jobs(user_id, excess - (usage.events - log_bytes))
        removed = 0
        if excess > 0:
            async with self.registry.borrow(user_id) as context:
                removed = await self._remove_threads(context, excess)
        logger.warning(
            "quota user=%s kept=%d of=%d: the log was cut to %d bytes, %d threads were removed",
            user_id,
            usage.total,
            self.limit_bytes,
            log_bytes,
            removed,
        )

    async def _shorten_jobs(self, user_id: str, excess: int) -> int:
        """Cut the logs of a user's largest jobs; return how much is still too much."""
        if excess <= 0:
            return 0
        seen: set[str] = set()  # what an unfinished run has said cannot go: it would be found again and again
        while page := [each for each in await self.store.largest_jobs(user_id, PAGE) if each[0] not in seen]:
            for key, size in page:
                cut = min(size, excess)
                await self.registry.recorder.shorten(self.registry.streams, key, size - cut)
                seen.add(key)
                excess -= cut
                if excess <= 0:
                    return excess
        return excess

    async def _remove_threads(self, context: UserContext, excess: int) -> int:
        removed = seq = skipped = 0
        while excess > 0:
            page = (await self.store.oldest_threads(context.user_id, skipped + PAGE))[skipped:]
            for row, size in page:
                if excess <= 0:
                    break
                async with context.lock:
                    thread = await find_thread(context, row.thread_id)
                    if not context.living:
                        return removed  # the rest comes with the next measurement
                    if thread is None or self._is_busy(context, thread):
                        skipped += 1
                        continue
                    seq = remove_thread(context, thread).seq
                removed += 1
                self.registry.streams.counts.threads_removed += 1
                excess -= size
            await context.stream.wait_visible(seq)
            if len(page) < PAGE:
                break
        return removed

    def _is_busy(self, context: UserContext, thread: ThreadState) -> bool:
        leaving = self.registry.leaving(context.user_id)
        going_on = thread.busy or bool(thread.queue) or thread.deleting
        return going_on or any(run.thread_id == thread.thread_id for run in leaving)
