"""A store in an SQL database, reached by synchronous drivers in worker threads.

No asynchronous driver works well on Trio, and no disk may hold up its loop. What is particular
to one engine (connections, lease, errors) is behind ``Database``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import attrs
import sqlalchemy as sa
import trio

from netra_ws.errors import StoreError

from . import queries, search
from .contract import NO_BOUND, EventRow, JobRow, MessageRow, RevocationRow, RunRow, StreamRow, ThreadRow, Usage, Write
from .trimming import Cut, find, mark, remove
from .usage import find_excess, largest_jobs, measure, oldest
from .writes import carry_out

Row = TypeVar("Row")
T = TypeVar("T")


@attrs.frozen
class _Size:
    seq: int
    size: int


class Database(Protocol):
    """What one engine gives to ``SqlStore``; every method blocks and is called in a worker thread."""

    name: str
    #: The name that SQLAlchemy has for it.
    dialect: str
    #: How many threads may be in ``reading`` at the same time.
    readers: int

    def open(self) -> None: ...
    def close(self) -> None: ...
    def reading(self) -> AbstractContextManager[sa.Connection]: ...
    def writing(self) -> AbstractContextManager[sa.Connection]: ...


class SqlStore:
    """Keeps streams and the ledger in *database*; see ``contract.Store`` for the promises.

    *Cancellation:* a write that has reached its thread is waited for, then goes on as if not cancelled; a read is
    left alone there.
    """

    def __init__(self, database: Database) -> None:
        self.name = database.name
        self._database = database
        self._open = False
        # Behind which key the next portion of ``trim`` begins.
        self._trimmed_to = ""
        # One token each: the writer is never behind readers, nor they behind it.
        self._writer = trio.CapacityLimiter(1)
        self._readers = trio.CapacityLimiter(database.readers)

    def __repr__(self) -> str:
        return f"<SqlStore on {self._database!r}>"

    # Public methods: the life of the store.

    async def open(self) -> None:
        async with self._alone():
            if self._open:
                raise StoreError("the store is open already")
            # A limiter of its own: Trio's may be used up by whatever else runs in this process.
            await trio.to_thread.run_sync(self._database.open, limiter=trio.CapacityLimiter(1))
            self._open = True

    async def close(self) -> None:
        # Shielded: an unclosed connection would keep the lease. It waits for calls in their threads
        # only, and the longest of those is bounded by the engine's own timeouts.
        with trio.CancelScope(shield=True):
            async with self._alone():
                if self._open:
                    self._open = False
                    self._trimmed_to = ""
                    await trio.to_thread.run_sync(self._database.close, limiter=trio.CapacityLimiter(1))

    @property
    def worker_threads(self) -> int:
        """How many worker threads it uses at most: one writes, the others read."""
        return 1 + self._database.readers

    async def ping(self) -> None:
        await self._rows(queries.PING, dict[str, int], {})

    # Public methods: for the recorder.

    async def write(self, batch: Sequence[Write]) -> Mapping[str, int]:
        await self._written(lambda connection: carry_out(connection, batch))
        return {}

    async def trim(self, before: float) -> Mapping[str, int]:
        cuts, behind = await self._read(lambda connection: find(connection, before, self._trimmed_to))
        ends = await self._mark(cuts)
        self._trimmed_to = behind or ""
        return ends

    async def shorten(self, key: str, keep_bytes: int) -> Mapping[str, int]:
        return await self._mark(await self._read(lambda connection: find_excess(connection, key, keep_bytes)))

    async def _mark(self, cuts: Sequence[Cut]) -> Mapping[str, int]:
        return await self._written(lambda connection: mark(connection, cuts)) if cuts else {}

    async def remove(self, ends: Mapping[str, int]) -> None:
        # From the start again, unless all of it goes now: else what stays is looked at in the next round only.
        behind, self._trimmed_to = self._trimmed_to, ""
        await self._written(lambda connection: remove(connection, ends))
        self._trimmed_to = behind

    # Public methods: reads.

    async def stream(self, key: str) -> StreamRow | None:
        return _first(await self._rows(queries.STREAM, StreamRow, {"key": key}))

    async def events(
        self, key: str, epoch: str, after: int, upto: int, limit: int, max_bytes: int = NO_BOUND
    ) -> Sequence[EventRow]:
        where = {"stream": key, "epoch": epoch, "after": after, "upto": min(upto, NO_BOUND), "limit": max(0, limit)}
        if max_bytes < NO_BOUND:
            # Their sizes first: an engine may hand over the last row together with the first. What is removed
            # between the two reads is missing, as after a removal: readers know by the stream's mark.
            for row in await self._rows(queries.EVENT_SIZES, _Size, where):
                max_bytes -= row.size
                if max_bytes <= 0:
                    where["upto"] = row.seq
                    break
        return await self._rows(queries.EVENTS, EventRow, where)

    async def run_events(self, key: str, epoch: str, run_id: str) -> Sequence[EventRow]:
        return await self._rows(queries.RUN_EVENTS, EventRow, {"stream": key, "epoch": epoch, "run_id": run_id})

    async def thread(self, user_id: str, thread_id: str) -> ThreadRow | None:
        return _first(await self._rows(queries.THREAD, ThreadRow, {"user_id": user_id, "thread_id": thread_id}))

    async def threads(self, user_id: str, limit: int, before: tuple[float, str] | None) -> Sequence[ThreadRow]:
        at, thread_id = before or (math.inf, "")
        where = {"user_id": user_id, "at": at, "thread_id": thread_id, "limit": max(0, limit)}
        return await self._rows(queries.THREADS, ThreadRow, where)

    async def count_threads(self, user_id: str) -> int:
        (row,) = await self._rows(queries.COUNT_THREADS, dict[str, int], {"user_id": user_id})
        return row["count"]

    async def oldest_threads(self, user_id: str, limit: int) -> Sequence[tuple[ThreadRow, int]]:
        return await self._read(lambda connection: oldest(connection, user_id, limit))

    async def usage(self, user_id: str, key: str) -> Usage:
        return await self._read(lambda connection: measure(connection, user_id, key))

    async def messages(
        self, user_id: str, thread_id: str, limit: int, before: int | None, upto: int
    ) -> Sequence[MessageRow]:
        end = min(NO_BOUND if before is None else before, upto + 1)
        where = {"user_id": user_id, "thread_id": thread_id, "end": end, "limit": max(0, limit)}
        return (await self._rows(queries.MESSAGES, _message, where))[::-1]

    async def search(self, user_id: str, query: str, limit: int) -> Sequence[MessageRow]:
        sought = search.sought(self._database.dialect, user_id, query)
        where = {"user_id": user_id, "query": sought, "limit": max(0, limit)}
        return await self._rows(search.INDEX_OF[self._database.dialect].search, _message, where)

    async def run(self, user_id: str, run_id: str) -> RunRow | None:
        return _first(await self._rows(queries.RUN, RunRow, {"user_id": user_id, "run_id": run_id}))

    async def run_of_command(self, user_id: str, command_id: str) -> RunRow | None:
        where = {"user_id": user_id, "command_id": command_id}
        return _first(await self._rows(queries.RUN_OF_COMMAND, RunRow, where))

    async def unfinished_runs(self, limit: int) -> Sequence[RunRow]:
        return await self._rows(queries.UNFINISHED_RUNS, RunRow, {"limit": max(0, limit)})

    async def job(self, job_id: str) -> JobRow | None:
        return _first(await self._rows(queries.JOB, JobRow, {"job_id": job_id}))

    async def count_jobs(self, user_id: str) -> int:
        (row,) = await self._rows(queries.COUNT_JOBS, dict[str, int], {"user_id": user_id})
        return row["count"]

    async def largest_jobs(self, user_id: str, limit: int) -> Sequence[tuple[str, int]]:
        return await self._read(lambda connection: largest_jobs(connection, user_id, limit))

    async def empty_jobs(self, before: float, limit: int) -> Sequence[JobRow]:
        return await self._rows(queries.EMPTY_JOBS, JobRow, {"before": before, "limit": max(0, limit)})

    async def revocations(self, now: float, limit: int) -> Sequence[RevocationRow]:
        return await self._rows(queries.REVOCATIONS, RevocationRow, {"now": now, "limit": max(0, limit)})

    # Threads.

    async def _rows(self, query: sa.Executable, make: Callable[..., Row], where: Mapping[str, Any]) -> list[Row]:
        def made(connection: sa.Connection) -> list[Row]:
            rows = connection.execute(query, where)
            names = list(rows.keys())
            # A third of the cost of ``rows.mappings()``, which counts when a long stream is replayed.
            return [make(**dict(zip(names, row, strict=True))) for row in rows]

        return await self._read(made)

    async def _read(self, work: Callable[[sa.Connection], T]) -> T:
        def read() -> T:
            self._check_open()
            with self._database.reading() as connection:
                return work(connection)

        # Left alone when cancelled: it changes nothing, and keeps its token until it ends.
        return await trio.to_thread.run_sync(read, limiter=self._readers, abandon_on_cancel=True)

    async def _written(self, work: Callable[[sa.Connection], T]) -> T:
        def write() -> T:
            self._check_open()
            with self._database.writing() as connection:
                return work(connection)

        return await trio.to_thread.run_sync(write, limiter=self._writer)

    def _check_open(self) -> None:
        # In the thread, with the token in hand: nothing can close the store from here on.
        if not self._open:
            raise StoreError("the store is not open")

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Wait until no thread works on the database, and let none begin within the block."""
        async with contextlib.AsyncExitStack() as stack:
            for limiter in [self._writer] + [self._readers] * self._database.readers:
                token = object()
                await limiter.acquire_on_behalf_of(token)
                stack.callback(limiter.release_on_behalf_of, token)
            yield


def _first(rows: Sequence[Row]) -> Row | None:
    return rows[0] if rows else None


def _message(attachments: Sequence[Mapping[str, Any]], **values: Any) -> MessageRow:
    return MessageRow(attachments=tuple(attachments), **values)
