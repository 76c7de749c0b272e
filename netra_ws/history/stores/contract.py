"""What a store must do for the recorder and the ledger.

A store is written to by the recorder only, in batches, one at a time. It is read from anywhere. Promises
that every driver keeps, and that ``tests/contract/test_stores.py`` checks on each:

- ``write`` is one transaction: after an error nothing of the batch is there, after success all of it.
- ``write`` is idempotent: handing over a batch again, after an error that left its fate unknown,
  changes nothing more. Events are told apart by (stream, epoch, seq), rows by their keys.
- What was written is seen by every read that starts after ``write`` returned.
- Each row carries its user; no read returns a row of another user.
- Reads and writes raise ``StoreError`` for everything that the engine beneath may raise, for what
  cannot be kept (metadata that is no JSON), and when the store is not open. The text is one line.
- A text is given back as it was handed over, also with NUL characters or lone surrogates in it.
- A *limit* of 0 or less finds nothing.

*Cancellation:* a cancelled ``write`` may or may not have happened; hand it over again. Reads lose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import attrs

#: What a committed write survives: ``process`` the death of this process, ``power`` also that of the machine.
Durability = Literal["process", "power"]

RunState = Literal["queued", "running", "success", "cancelled", "error", "timeout", "lost"]

#: More than any store keeps.
NO_BOUND = 2**62

#: States of a run that has not ended; what a crash leaves behind.
UNFINISHED: tuple[RunState, ...] = ("queued", "running")


# Rows: what reads return.


@attrs.frozen(kw_only=True)
class StreamRow:
    """A stream as it is kept.

    Attributes:
        key: Such as ``user:alice``.
        epoch: Lives as long as the store keeps this stream.
        reserved: Every seq up to here may have been used; a restart goes on behind it.
        trimmed: Durable events up to here may have been removed; 0 when none was.
    """

    key: str
    epoch: str
    reserved: int
    trimmed: int = 0


@attrs.frozen(kw_only=True)
class EventRow:
    """A durable event: ``payload`` is the JSON text (UTF-8) as it went out."""

    seq: int
    type: str
    payload: bytes


@attrs.frozen(kw_only=True)
class ThreadRow:
    user_id: str
    thread_id: str
    title: str
    metadata: Mapping[str, Any]
    created_at: float
    updated_at: float


@attrs.frozen(kw_only=True)
class MessageRow:
    """``seq`` is the number of the event that made the message final: its place in the thread."""

    user_id: str
    thread_id: str
    message_id: str
    run_id: str | None
    role: Literal["user", "assistant"]
    content: str
    created_at: float
    seq: int
    attachments: Sequence[Mapping[str, Any]] = ()


@attrs.frozen(kw_only=True)
class RunRow:
    """``command_id`` is the client's id of the command that started it, unique for the user."""

    user_id: str
    run_id: str
    thread_id: str
    agent_name: str
    message_id: str
    state: RunState
    created_at: float
    started_seq: int
    trigger: str
    command_id: str | None = None
    command_digest: str | None = None
    parent_run_id: str | None = None


@attrs.frozen(kw_only=True)
class RevocationRow:
    """Tokens that are no longer good: those of a user that were issued up to *revoked_at*, or those of one id.

    Attributes:
        kind: Whether *subject* is a user's id or the digest of a token's.
        until: Unix seconds from which no such token can be good any more; the row may go then.
    """

    kind: Literal["user", "token"]
    subject: str
    revoked_at: float
    until: float


@attrs.frozen(kw_only=True)
class JobRow:
    """A job that somebody has opened.

    Attributes:
        key: Of its stream; another one for each time that an id is opened.
        user_id: Whose it is until it is closed.
    """

    key: str
    job_id: str
    user_id: str
    opened_at: float


@attrs.frozen(kw_only=True)
class Usage:
    """About how much is kept of a user, in bytes.

    Attributes:
        events: Payloads on the user's own stream.
        messages: Texts and attachments.
        jobs: Payloads on the streams of jobs that are or were the user's.
    """

    events: int
    messages: int
    jobs: int = 0

    @property
    def total(self) -> int:
        return self.events + self.messages + self.jobs


# Writes: what the recorder hands over.


@attrs.frozen(kw_only=True)
class PutStream:
    """Make the stream, or raise its reservation (never lower it). ``trimmed`` stays as it is.

    A stream keeps its epoch: a write that names another one changes nothing.
    """

    key: str
    epoch: str
    reserved: int


@attrs.frozen(kw_only=True)
class PutEvent:
    """Keep a durable event; the first one of its (stream, epoch, seq) stays. Its stream is made before."""

    key: str
    epoch: str
    seq: int
    type: str
    thread_id: str | None
    run_id: str | None
    created_at: float
    payload: bytes


@attrs.frozen(kw_only=True)
class PutThread:
    """Make a thread; an existing one of that id stays as it is."""

    user_id: str
    thread_id: str
    title: str
    metadata: Mapping[str, Any]
    created_at: float


@attrs.frozen(kw_only=True)
class RenameThread:
    """Give a thread another title, and raise its ``updated_at`` to *at*; an unknown one stays unknown."""

    user_id: str
    thread_id: str
    title: str
    at: float


@attrs.frozen(kw_only=True)
class DeleteThread:
    """Remove a thread, its messages and what search knows of them; its runs' ids stay used."""

    user_id: str
    thread_id: str


@attrs.frozen(kw_only=True)
class PutMessage:
    """Make or replace a message, make it findable, and raise the thread's ``updated_at`` to its time.

    A message is known by (user, message id). In a thread that is not there nothing happens, so what
    a run says after its thread was deleted does not come back.
    """

    row: MessageRow


@attrs.frozen(kw_only=True)
class DropMessages:
    """Remove all messages of one run, also from search (``cancelled_by: "rollback"``)."""

    user_id: str
    run_id: str


@attrs.frozen(kw_only=True)
class PutRun:
    """Make a run; where the user has one of that id or of that ``command_id``, it stays and nothing is made."""

    row: RunRow


@attrs.frozen(kw_only=True)
class SetRunState:
    """Move a run on; ``at`` is Unix seconds. A run that has ended stays ended."""

    user_id: str
    run_id: str
    state: RunState
    at: float


@attrs.frozen(kw_only=True)
class PutRevocation:
    """Keep a revocation, or raise the times of the one that is there; those whose time is over at that moment go."""

    row: RevocationRow


@attrs.frozen(kw_only=True)
class PutJob:
    """Open a job; where one of that id is open, it stays and nothing is made."""

    row: JobRow


@attrs.frozen(kw_only=True)
class CloseJob:
    """Make a job's id free for others; its events stay until retention or the quota removes them."""

    key: str


@attrs.frozen(kw_only=True)
class ForgetJob:
    """Remove a job and its stream, which has no event any more."""

    key: str


Write = (
    PutStream
    | PutEvent
    | PutThread
    | RenameThread
    | DeleteThread
    | PutMessage
    | DropMessages
    | PutRun
    | SetRunState
    | PutRevocation
    | PutJob
    | CloseJob
    | ForgetJob
)


class Store(Protocol):
    """Where streams and the ledger are kept."""

    #: Such as ``sqlite``; for health and logs.
    name: str

    async def open(self) -> None:
        """Take the lease, make the schema, be ready.

        Raises:
            StoreLeased: Another process has it.
            StoreError: It cannot be opened.
        """
        ...

    async def close(self) -> None:
        """Give everything back, the lease last. May be called twice."""
        ...

    async def ping(self) -> None:
        """Make one round trip; raise ``StoreError`` when it fails."""
        ...

    async def write(self, batch: Sequence[Write]) -> Mapping[str, int]:
        """Carry out *batch* in order, in one transaction.

        Returns:
            Stream key → its new ``trimmed``, for each stream that lost its oldest events to a bound of
            the store; nothing where a store has no such bound. One that has must return right after their
            removal, without a checkpoint: a read that misses them may not come back before the streams
            in memory are told.
        """
        ...

    async def trim(self, before: float) -> Mapping[str, int]:
        """Raise ``trimmed`` of streams over events older than *before* (Unix seconds), a portion of them.

        The events are still there; ``remove`` takes them away. The caller first tells the streams in memory,
        so that a reader that misses an event finds it out: mark, tell, remove, and so on until nothing is
        returned. Writes and reads may go on meanwhile; another ``trim``, ``shorten`` or ``remove`` may not.
        Of each stream a prefix goes, never a hole: events after the first one that has to stay are kept, and
        one of an unfinished run has to. Such a run is known by its id alone: one of another user, too, may
        hold a stream back. After an error the marks may be raised or not; what they cover is found again.

        Returns:
            Stream key → its ``trimmed`` now, for each stream that has such events.
        """
        ...

    async def shorten(self, key: str, keep_bytes: int) -> Mapping[str, int]:
        """Raise ``trimmed`` of one stream over its oldest events, until *keep_bytes* bytes remain behind it.

        A portion of them, to be told and removed as those of ``trim``, and never from the first event of an
        unfinished run on.

        Returns:
            As ``trim``.
        """
        ...

    async def remove(self, ends: Mapping[str, int]) -> None:
        """Remove the events that ``trim`` or ``shorten`` marked: of each stream those up to the end they returned.

        After an error they may be there or not; those that are there are found again.
        """
        ...

    async def stream(self, key: str) -> StreamRow | None: ...

    async def events(
        self, key: str, epoch: str, after: int, upto: int, limit: int, max_bytes: int = NO_BOUND
    ) -> Sequence[EventRow]:
        """Return up to *limit* durable events with ``after < seq <= upto``, ascending.

        The first one whose payload makes them *max_bytes* or more together is the last. Any that a ``remove``
        takes away meanwhile may be missing: the caller looks at ``trimmed`` of the stream in memory afterwards.
        """
        ...

    async def run_events(self, key: str, epoch: str, run_id: str) -> Sequence[EventRow]:
        """Return all durable events of one run, ascending: what a restart needs to close it."""
        ...

    async def thread(self, user_id: str, thread_id: str) -> ThreadRow | None: ...

    async def threads(self, user_id: str, limit: int, before: tuple[float, str] | None) -> Sequence[ThreadRow]:
        """Return up to *limit* threads by (updated_at, thread_id) descending, below *before*."""
        ...

    async def count_threads(self, user_id: str) -> int: ...

    async def oldest_threads(self, user_id: str, limit: int) -> Sequence[tuple[ThreadRow, int]]:
        """Return up to *limit* threads by (updated_at, thread_id) ascending, each with the bytes of its messages."""
        ...

    async def usage(self, user_id: str, key: str) -> Usage:
        """Return how much is kept of a user, whose stream is *key*."""
        ...

    async def messages(
        self, user_id: str, thread_id: str, limit: int, before: int | None, upto: int
    ) -> Sequence[MessageRow]:
        """Return the last *limit* messages with ``seq < before`` and ``seq <= upto``, ascending by (seq, id)."""
        ...

    async def search(self, user_id: str, query: str, limit: int) -> Sequence[MessageRow]:
        """Return the user's messages that contain every word of *query*, best first.

        Words (see ``words.words``) are matched whole, without regard to case, and are always literals:
        no operator, quote or wildcard in *query* has a meaning. A query without any word finds
        nothing, of a very long one only the first words count. Better is where the words are more of
        the message; of equals the newer.
        """
        ...

    async def run(self, user_id: str, run_id: str) -> RunRow | None: ...

    async def run_of_command(self, user_id: str, command_id: str) -> RunRow | None: ...

    async def unfinished_runs(self, limit: int) -> Sequence[RunRow]:
        """Return up to *limit* runs whose state is ``queued`` or ``running``, of any user, oldest first."""
        ...

    async def job(self, job_id: str) -> JobRow | None:
        """Return the open job of an id, or None."""
        ...

    async def count_jobs(self, user_id: str) -> int:
        """Return how many open jobs are a user's."""
        ...

    async def largest_jobs(self, user_id: str, limit: int) -> Sequence[tuple[str, int]]:
        """Return up to *limit* keys of a user's jobs, the closed ones included, each with the bytes of its events.

        The largest first; jobs without events are left out.
        """
        ...

    async def empty_jobs(self, before: float, limit: int) -> Sequence[JobRow]:
        """Return up to *limit* jobs without events that are closed, or were opened before *before* (Unix seconds)."""
        ...

    async def revocations(self, now: float, limit: int) -> Sequence[RevocationRow]:
        """Return up to *limit* revocations that still count at *now* (Unix seconds), the last one to end first."""
        ...
