"""A store in plain dictionaries: for tests, trials and servers whose history may end with them.

It keeps its rows as long as the object lives, also over ``close`` and ``open``. It is bounded for
each stream and each user, so that none grows without end: the oldest goes first.
"""

from __future__ import annotations

import heapq
import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import trio

from netra_ws.errors import StoreError

from .contract import (
    NO_BOUND,
    UNFINISHED,
    CloseJob,
    DeleteThread,
    DropMessages,
    EventRow,
    ForgetJob,
    JobRow,
    MessageRow,
    PutEvent,
    PutJob,
    PutMessage,
    PutRevocation,
    PutRun,
    PutStream,
    PutThread,
    RenameThread,
    RevocationRow,
    RunRow,
    SetRunState,
    StreamRow,
    ThreadRow,
    Usage,
    Write,
)
from .shelves import Ledger, Log
from .words import query_words

#: Durable events of one stream; older ones are trimmed, also those of unfinished runs.
MOST_EVENTS_PER_STREAM = 100_000
#: Messages of one user; the first ones are dropped.
MOST_MESSAGES_PER_USER = 20_000
#: Runs of one user; of those that have ended, the first ones are forgotten with their command ids.
MOST_RUNS_PER_USER = 20_000
# Cutting the front of a list moves all of it: cut rarely, and more than one.
_SLACK = 1_000


class MemoryStore:
    """Keeps streams and the ledger in this process; see ``contract.Store`` for the promises."""

    name = "memory"

    def __init__(self) -> None:
        self._open = False
        self._streams: dict[str, StreamRow] = {}
        self._lost: dict[str, int] = {}
        self._logs: defaultdict[tuple[str, str], Log] = defaultdict(Log)
        self._users: defaultdict[str, Ledger] = defaultdict(Ledger)
        self._unfinished: dict[tuple[str, str], RunRow] = {}
        self._revocations: dict[tuple[str, str], RevocationRow] = {}
        self._jobs: dict[str, JobRow] = {}  # by key, the closed ones included
        self._open_jobs: dict[str, JobRow] = {}  # by id
        self._carry_out: Mapping[type, Callable[[Any], None]] = {
            PutStream: self._put_stream,
            PutEvent: self._put_event,
            PutThread: self._put_thread,
            RenameThread: self._rename_thread,
            DeleteThread: self._delete_thread,
            PutMessage: self._put_message,
            DropMessages: self._drop_messages,
            PutRun: self._put_run,
            SetRunState: self._set_run_state,
            PutRevocation: self._put_revocation,
            PutJob: self._put_job,
            CloseJob: self._close_job,
            ForgetJob: self._forget_job,
        }

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self._streams)} streams, {len(self._users)} users>"

    # Public methods: the life of the store.

    async def open(self) -> None:
        await trio.lowlevel.checkpoint()
        self._open = True

    async def close(self) -> None:
        self._open = False
        await trio.lowlevel.checkpoint()

    async def ping(self) -> None:
        await self._ready()

    # Public methods: for the recorder.

    async def write(self, batch: Sequence[Write]) -> Mapping[str, int]:
        await self._ready()
        self._lost = {}
        kept = [_JSON_OF[type(write)](write) if type(write) in _JSON_OF else write for write in batch]
        for write in kept:
            self._carry_out[type(write)](write)
        return self._lost

    async def trim(self, before: float) -> Mapping[str, int]:
        await self._ready()
        unfinished = {run_id for _, run_id in self._unfinished}
        trimmed = {}
        for stream in list(self._streams.values()):
            log = self._logs[stream.key, stream.epoch]
            stays = (i for i, row in enumerate(log.rows) if row.created_at >= before or row.run_id in unfinished)
            if count := next(stays, len(log.rows)):
                trimmed[stream.key] = self._mark(stream, log.seqs[count - 1])
        return trimmed

    async def shorten(self, key: str, keep_bytes: int) -> Mapping[str, int]:
        await self._ready()
        stream = self._streams.get(key)
        if stream is None:
            return {}
        log = self._logs[key, stream.epoch]
        unfinished = {run_id for _, run_id in self._unfinished}
        excess, count = _bytes_of(log) - keep_bytes, 0
        for row in log.rows:
            if excess <= 0 or row.run_id in unfinished:
                break
            count += 1
            excess -= len(row.payload)
        return {key: self._mark(stream, log.seqs[count - 1])} if count else {}

    async def remove(self, ends: Mapping[str, int]) -> None:
        await self._ready()
        for key, last in ends.items():
            if (stream := self._streams.get(key)) is not None:
                self._logs[key, stream.epoch].cut(last)

    # Public methods: reads.

    async def stream(self, key: str) -> StreamRow | None:
        await self._ready()
        return self._streams.get(key)

    async def events(
        self, key: str, epoch: str, after: int, upto: int, limit: int, max_bytes: int = NO_BOUND
    ) -> Sequence[EventRow]:
        await self._ready()
        log = self._logs.get((key, epoch))
        if log is None or limit <= 0:
            return []
        first = bisect_right(log.seqs, after)
        rows: list[EventRow] = []
        for row in log.rows[first : min(bisect_right(log.seqs, upto), first + limit)]:
            if max_bytes <= 0:
                break
            rows.append(_event(row))
            max_bytes -= len(row.payload)
        return rows

    async def run_events(self, key: str, epoch: str, run_id: str) -> Sequence[EventRow]:
        await self._ready()
        log = self._logs.get((key, epoch))
        return [_event(row) for row in log.rows if row.run_id == run_id] if log else []

    async def thread(self, user_id: str, thread_id: str) -> ThreadRow | None:
        return (await self._ledger(user_id)).threads.get(thread_id)

    async def threads(self, user_id: str, limit: int, before: tuple[float, str] | None) -> Sequence[ThreadRow]:
        rows = (await self._ledger(user_id)).threads.values()
        below = (row for row in rows if before is None or (row.updated_at, row.thread_id) < before)
        return heapq.nlargest(limit, below, key=lambda row: (row.updated_at, row.thread_id))

    async def count_threads(self, user_id: str) -> int:
        return len((await self._ledger(user_id)).threads)

    async def oldest_threads(self, user_id: str, limit: int) -> Sequence[tuple[ThreadRow, int]]:
        ledger = await self._ledger(user_id)
        rows = heapq.nsmallest(limit, ledger.threads.values(), key=lambda row: (row.updated_at, row.thread_id))
        return [(row, ledger.size(row.thread_id)) for row in rows]

    async def usage(self, user_id: str, key: str) -> Usage:
        ledger, stream = await self._ledger(user_id), self._streams.get(key)
        events = 0 if stream is None else _bytes_of(self._logs[key, stream.epoch])
        messages = sum(ledger.size(thread_id) for thread_id in ledger.threads)
        jobs = sum(self._job_bytes(row) for row in self._jobs.values() if row.user_id == user_id)
        return Usage(events=events, messages=messages, jobs=jobs)

    async def messages(
        self, user_id: str, thread_id: str, limit: int, before: int | None, upto: int
    ) -> Sequence[MessageRow]:
        ledger = await self._ledger(user_id)
        places = ledger.places.get(thread_id, ())
        end = bisect_left(places, (upto + 1 if before is None else min(before, upto + 1), ""))
        return [ledger.messages[message_id] for _, message_id in places[max(0, end - max(0, limit)) : end]]

    async def search(self, user_id: str, query: str, limit: int) -> Sequence[MessageRow]:
        ledger = await self._ledger(user_id)
        wanted = query_words(query)
        if not wanted:
            return []
        hits = set.intersection(*sorted((ledger.found.get(word, set()) for word in wanted), key=len))

        def rank(row: MessageRow) -> tuple[float, int, str]:
            count = ledger.counts[row.message_id]
            return sum(count[word] for word in wanted) / count.total(), row.seq, row.message_id

        return heapq.nlargest(limit, (ledger.messages[hit] for hit in hits), key=rank)

    async def run(self, user_id: str, run_id: str) -> RunRow | None:
        return (await self._ledger(user_id)).runs.get(run_id)

    async def run_of_command(self, user_id: str, command_id: str) -> RunRow | None:
        ledger = await self._ledger(user_id)
        run_id = ledger.commands.get(command_id)
        return None if run_id is None else ledger.runs[run_id]

    async def unfinished_runs(self, limit: int) -> Sequence[RunRow]:
        await self._ready()
        rows = self._unfinished.values()
        return heapq.nsmallest(limit, rows, key=lambda row: (row.created_at, row.user_id, row.run_id))

    async def job(self, job_id: str) -> JobRow | None:
        await self._ready()
        return self._open_jobs.get(job_id)

    async def count_jobs(self, user_id: str) -> int:
        await self._ready()
        return sum(row.user_id == user_id for row in self._open_jobs.values())

    async def largest_jobs(self, user_id: str, limit: int) -> Sequence[tuple[str, int]]:
        await self._ready()
        sizes = ((row.key, self._job_bytes(row)) for row in self._jobs.values() if row.user_id == user_id)
        return heapq.nsmallest(limit, (each for each in sizes if each[1]), key=lambda each: (-each[1], each[0]))

    async def empty_jobs(self, before: float, limit: int) -> Sequence[JobRow]:
        await self._ready()
        over = (row for row in self._jobs.values() if row.opened_at < before or not self._is_open(row))
        empty = (row for row in over if not self._job_bytes(row))
        return heapq.nsmallest(limit, empty, key=lambda row: (row.opened_at, row.key))

    async def revocations(self, now: float, limit: int) -> Sequence[RevocationRow]:
        await self._ready()
        counting = (row for row in self._revocations.values() if row.until > now)
        return heapq.nsmallest(limit, counting, key=lambda row: (-row.until, row.kind, row.subject))

    # What each kind of write does.

    def _put_stream(self, write: PutStream) -> None:
        row = self._streams.get(write.key)
        if row is None:
            self._streams[write.key] = StreamRow(key=write.key, epoch=write.epoch, reserved=write.reserved)
        elif row.epoch == write.epoch and row.reserved < write.reserved:
            self._streams[write.key] = attrs.evolve(row, reserved=write.reserved)

    def _put_event(self, write: PutEvent) -> None:
        log = self._logs[write.key, write.epoch]
        log.put(write)
        if len(log.rows) > MOST_EVENTS_PER_STREAM:
            last = log.seqs[_SLACK - 1]
            stream = self._streams.get(write.key)
            self._lost[write.key] = last if stream is None else self._mark(stream, last)
            log.cut(last)

    def _put_thread(self, write: PutThread) -> None:
        row = ThreadRow(
            user_id=write.user_id,
            thread_id=write.thread_id,
            title=write.title,
            metadata=write.metadata,
            created_at=write.created_at,
            updated_at=write.created_at,
        )
        self._users[write.user_id].threads.setdefault(write.thread_id, row)

    def _rename_thread(self, write: RenameThread) -> None:
        ledger = self._users[write.user_id]
        if (thread := ledger.threads.get(write.thread_id)) is not None:
            ledger.touch(thread, write.at, title=write.title)

    def _delete_thread(self, write: DeleteThread) -> None:
        ledger = self._users[write.user_id]
        ledger.threads.pop(write.thread_id, None)
        for _, message_id in list(ledger.places.get(write.thread_id, ())):
            ledger.remove(message_id)

    def _put_message(self, write: PutMessage) -> None:
        row = write.row
        ledger = self._users[row.user_id]
        if (thread := ledger.threads.get(row.thread_id)) is None:
            return
        ledger.touch(thread, row.created_at)
        if row.message_id in ledger.messages:
            ledger.remove(row.message_id)
        ledger.add(row)
        if len(ledger.messages) > MOST_MESSAGES_PER_USER:
            ledger.remove(next(iter(ledger.messages)))

    def _drop_messages(self, write: DropMessages) -> None:
        ledger = self._users[write.user_id]
        for message_id in [row.message_id for row in ledger.messages.values() if row.run_id == write.run_id]:
            ledger.remove(message_id)

    def _put_run(self, write: PutRun) -> None:
        row = write.row
        ledger = self._users[row.user_id]
        if row.run_id in ledger.runs or row.command_id in ledger.commands:
            return
        ledger.runs[row.run_id] = row
        if row.command_id is not None:
            ledger.commands[row.command_id] = row.run_id
        if row.state in UNFINISHED:
            self._unfinished[row.user_id, row.run_id] = row
        if len(ledger.runs) > MOST_RUNS_PER_USER:
            self._forget_a_run(ledger)

    def _set_run_state(self, write: SetRunState) -> None:
        key = write.user_id, write.run_id
        row = self._unfinished.pop(key, None)
        if row is None:
            return
        self._users[write.user_id].runs[write.run_id] = moved = attrs.evolve(row, state=write.state)
        if write.state in UNFINISHED:
            self._unfinished[key] = moved

    def _put_revocation(self, write: PutRevocation) -> None:
        row = write.row
        known = self._revocations.get((row.kind, row.subject), row)
        self._revocations[row.kind, row.subject] = attrs.evolve(
            row, revoked_at=max(row.revoked_at, known.revoked_at), until=max(row.until, known.until)
        )
        self._revocations = {key: each for key, each in self._revocations.items() if each.until > row.revoked_at}

    def _put_job(self, write: PutJob) -> None:
        row = write.row
        if row.key not in self._jobs and row.job_id not in self._open_jobs:
            self._jobs[row.key] = self._open_jobs[row.job_id] = row

    def _close_job(self, write: CloseJob) -> None:
        row = self._jobs.get(write.key)
        if row is not None and self._is_open(row):
            del self._open_jobs[row.job_id]

    def _forget_job(self, write: ForgetJob) -> None:
        self._close_job(CloseJob(key=write.key))
        self._jobs.pop(write.key, None)
        stream = self._streams.pop(write.key, None)
        if stream is not None:
            self._logs.pop((stream.key, stream.epoch), None)

    # Helpers.

    def _is_open(self, row: JobRow) -> bool:
        return self._open_jobs.get(row.job_id) is row

    def _job_bytes(self, row: JobRow) -> int:
        stream = self._streams.get(row.key)
        return 0 if stream is None else _bytes_of(self._logs[row.key, stream.epoch])

    async def _ready(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self._open:
            raise StoreError("the store is not open")

    async def _ledger(self, user_id: str) -> Ledger:
        """Return the user's rows for reading; asking for an unknown user keeps nothing."""
        await self._ready()
        return self._users.get(user_id) or Ledger()

    def _mark(self, stream: StreamRow, last: int) -> int:
        trimmed = max(last, stream.trimmed)
        self._streams[stream.key] = attrs.evolve(stream, trimmed=trimmed)
        return trimmed

    def _forget_a_run(self, ledger: Ledger) -> None:
        ended = next((row for row in ledger.runs.values() if row.state not in UNFINISHED), None)
        if ended is not None:
            del ledger.runs[ended.run_id]
            if ended.command_id is not None:
                del ledger.commands[ended.command_id]


def _bytes_of(log: Log) -> int:
    return sum(len(row.payload) for row in log.rows)


def _event(row: PutEvent) -> EventRow:
    return EventRow(seq=row.seq, type=row.type, payload=row.payload)


def _plain(value: Any) -> Any:
    # What a caller changes later must not change what is kept, and what is no JSON no driver keeps.
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as exc:
        raise StoreError(f"cannot be kept as JSON: {exc}") from exc


def _plain_thread(write: PutThread) -> PutThread:
    return attrs.evolve(write, metadata=_plain(dict(write.metadata)))


def _plain_message(write: PutMessage) -> PutMessage:
    attachments = tuple(_plain([dict(each) for each in write.row.attachments]))
    return attrs.evolve(write, row=attrs.evolve(write.row, attachments=attachments))


_JSON_OF: Mapping[type, Callable[[Any], Write]] = {PutThread: _plain_thread, PutMessage: _plain_message}
