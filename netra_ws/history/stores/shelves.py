"""What the store in memory keeps: a log for each epoch of a stream, a ledger for each user."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from typing import Any

import attrs

from .contract import MessageRow, PutEvent, RunRow, ThreadRow
from .words import words


class Log:
    """The events of one epoch of a stream, ascending."""

    __slots__ = ("rows", "seqs")

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.rows: list[PutEvent] = []

    def put(self, row: PutEvent) -> None:
        if not self.seqs or row.seq > self.seqs[-1]:
            self.seqs.append(row.seq)
            self.rows.append(row)
            return
        at = bisect_left(self.seqs, row.seq)
        if self.seqs[at] != row.seq:
            self.seqs.insert(at, row.seq)
            self.rows.insert(at, row)

    def cut(self, upto: int) -> None:
        """Remove the events up to the seq *upto*."""
        count = bisect_right(self.seqs, upto)
        del self.seqs[:count], self.rows[:count]


@attrs.define
class Ledger:
    """The rows of one user."""

    threads: dict[str, ThreadRow] = attrs.Factory(dict)
    messages: dict[str, MessageRow] = attrs.Factory(dict)
    places: defaultdict[str, list[tuple[int, str]]] = attrs.Factory(lambda: defaultdict(list))
    counts: dict[str, Counter[str]] = attrs.Factory(dict)
    found: defaultdict[str, set[str]] = attrs.Factory(lambda: defaultdict(set))
    runs: dict[str, RunRow] = attrs.Factory(dict)
    commands: dict[str, str] = attrs.Factory(dict)

    def touch(self, thread: ThreadRow, at: float, **changes: Any) -> None:
        updated = attrs.evolve(thread, updated_at=max(thread.updated_at, at), **changes)
        self.threads[thread.thread_id] = updated

    def add(self, row: MessageRow) -> None:
        self.messages[row.message_id] = row
        insort(self.places[row.thread_id], (row.seq, row.message_id))
        self.counts[row.message_id] = count = Counter(words(row.content))
        for word in count:
            self.found[word].add(row.message_id)

    def size(self, thread_id: str) -> int:
        """Return the bytes of a thread's messages, about."""
        rows = [self.messages[message_id] for _, message_id in self.places.get(thread_id, ())]
        return sum(len(row.content) + len(json.dumps(list(row.attachments))) for row in rows)

    def remove(self, message_id: str) -> None:
        row = self.messages.pop(message_id)
        self.places[row.thread_id].remove((row.seq, message_id))
        if not self.places[row.thread_id]:
            del self.places[row.thread_id]
        for word in self.counts.pop(message_id):
            self.found[word].discard(message_id)
            if not self.found[word]:
                del self.found[word]
