"""Threads, messages and runs: what is kept beside the log, read as the protocol tells it.

Reads come here; writes are rows that travel with events in one step (``history.stream``), so that a
thread's page and its events can never disagree: a message carries the seq of the event that made
it final, and a page is read up to the position that it names.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from netra_ws.errors import ClientError
from netra_ws.protocol.replies import HistoryMessage, Position, ThreadHistory, ThreadList, ThreadSummary

from .stores.contract import MessageRow, RunRow, Store, ThreadRow
from .stream import Stream

#: Text of one page of a thread; what is older comes with the next page.
PAGE_CHARACTERS = 2 * 1024 * 1024
#: Characters of a message that become the title of the thread it opens.
TITLE_LENGTH = 80


def title_from(text: str) -> str:
    """Return a thread's title made from its first message: one line, at most 80 characters."""
    line = " ".join(text.split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1].rstrip() + "…"


@attrs.frozen
class Ledger:
    """Reads of one store, always for one named user.

    Every method raises ``StoreError`` when the store does not answer.
    """

    store: Store

    async def thread(self, user_id: str, thread_id: str) -> ThreadRow | None:
        """Return a user's thread, or None; another user's thread is None, too."""
        return await self.store.thread(user_id, thread_id)

    async def count_threads(self, user_id: str) -> int:
        """Return how many threads a user has."""
        return await self.store.count_threads(user_id)

    async def run_of_command(self, user_id: str, command_id: str) -> RunRow | None:
        """Return the run that a client's command started, also before a restart."""
        return await self.store.run_of_command(user_id, command_id)

    async def thread_list(self, user_id: str, limit: int, before: str | None) -> ThreadList:
        """Return a page of threads, the last used first.

        Raises:
            ClientError: *before* was not made by this method.
        """
        rows = await self.store.threads(user_id, limit + 1, _read_thread_mark(before))
        page = rows[:limit]
        threads = [
            ThreadSummary(
                thread_id=row.thread_id,
                title=row.title,
                metadata=row.metadata,
                created_at=row.created_at,
                updated_at=row.updated_at,
            )
            for row in page
        ]
        more = len(rows) > limit
        return ThreadList(threads=threads, next=f"{page[-1].updated_at!r}/{page[-1].thread_id}" if more else None)

    async def thread_history(self, stream: Stream, thread_id: str, limit: int, before: str | None) -> ThreadHistory:
        """Return a page of a thread as it stands at the visible end of its user's stream.

        Raises:
            ClientError: *before* was not made by this method.
        """
        upto = stream.visible
        partial = stream.partial(thread_id)
        # A snapshot that was stored on the way is no message yet.
        unfinished = {message.message_id for message in partial}
        most = limit + 1 + len(unfinished)
        rows = await self.store.messages(stream.user_id, thread_id, most, _read_seq_mark(before), upto)
        rows = [row for row in rows if row.message_id not in unfinished]
        page = _newest(rows[-limit:])
        messages = [
            HistoryMessage(
                id=row.message_id,
                role=row.role,
                content=row.content,
                created_at=row.created_at,
                run_id=row.run_id,
                attachments=list(row.attachments) or None,
            )
            for row in page
        ]
        return ThreadHistory(
            thread_id=thread_id,
            messages=messages,
            partial=partial if before is None else [],
            stream=Position(epoch=stream.epoch, seq=upto),
            next=str(page[0].seq) if len(rows) > len(page) else None,
        )

    async def messages(self, user_id: str, thread_id: str, limit: int, upto: int) -> list[MessageRow]:
        """Return the last *limit* messages of a thread up to a seq, oldest first: context for an agent."""
        return list(await self.store.messages(user_id, thread_id, limit, None, upto))

    async def search(self, user_id: str, query: str, limit: int) -> list[MessageRow]:
        """Return the user's own messages that contain every word of *query*."""
        return list(await self.store.search(user_id, query, limit))

    async def run(self, user_id: str, run_id: str) -> RunRow | None:
        """Return a run of this user that was ever started under *run_id*."""
        return await self.store.run(user_id, run_id)


def _newest(rows: Sequence[MessageRow]) -> Sequence[MessageRow]:
    """Return the last rows that fit into one answer, at least one."""
    size = 0
    for count, row in enumerate(reversed(rows)):
        size += len(row.content) + sum(len(str(attachment)) for attachment in row.attachments)
        if size > PAGE_CHARACTERS and count:
            return rows[len(rows) - count :]
    return rows


def _read_thread_mark(mark: str | None) -> tuple[float, str] | None:
    if mark is None:
        return None
    updated_at, _, thread_id = mark.partition("/")
    try:
        return float(updated_at), thread_id
    except ValueError:
        raise _bad_mark() from None


def _read_seq_mark(mark: str | None) -> int | None:
    if mark is None:
        return None
    if not (mark.isascii() and mark.isdigit() and len(mark) <= 18):
        raise _bad_mark()
    return int(mark)


def _bad_mark() -> ClientError:
    text = "expected a value that an earlier answer gave as next"
    return ClientError("INVALID_MESSAGE", f"$.before: {text}", details={"fields": {"$.before": text}})
