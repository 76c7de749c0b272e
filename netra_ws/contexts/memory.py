"""What is remembered of a user while nothing of them is open: budgets, threads, and answers by command id.

All must outlive a context, or a reconnect would reset them. At most ``MAX_USERS`` users are
remembered, the least recently seen is forgotten; that user's budgets are full again then. Answers of all
users together have a bound, too: beyond it the oldest is forgotten before its time.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

import attrs
import orjson
import trio

from netra_ws.access.limits import Budgets
from netra_ws.agents.inputs import Inputs
from netra_ws.agents.tools import Tool
from netra_ws.protocol.replies import Reply

MAX_USERS = 10_000
#: Worker threads that the runs of one user hold at the same time, out of those of all.
USER_THREADS = 8
#: Answers of one user, and how many seconds each is kept.
MAX_ANSWERS = 1000
KEEP_S = 300.0
#: Answers of all users.
MAX_ALL_ANSWERS = 100_000
#: Ids of one user that are remembered beside the ledger; the backlog of what is not committed is no longer.
MAX_LATELY = 1024


@attrs.define
class Remembered:
    """The answer to one command, or the wait for it.

    Attributes:
        digest: Of the command's body, to tell a repeat from another command under the same id.
        expires_at: When it is forgotten; never while the command is being carried out.
        reply: The answer; None while the command is being carried out, or when there will be none.
        barrier: The seq that has to be passed before the answer is given.
        done: Set when there is an answer, or will be none.
    """

    digest: bytes
    expires_at: float = math.inf
    reply: Reply | None = None
    barrier: int = 0
    done: trio.Event = attrs.field(factory=trio.Event)


def digest(body: Mapping[str, Any]) -> bytes:
    """Return what makes two commands the same: their fields without id and time."""
    said = {name: value for name, value in body.items() if name not in ("id", "message_id", "timestamp", "payload")}
    return hashlib.blake2b(orjson.dumps(said, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


@attrs.define
class Shelf:
    """Answers of all users, the oldest first, so that they go when their time is over, whoever comes again."""

    _kept: deque[tuple[UserMemory, str, Remembered]] = attrs.field(factory=deque)

    def put(self, memory: UserMemory, command_id: str, remembered: Remembered, now: float) -> None:
        """Note an answer, and let go what is too old or too much."""
        self._kept.append((memory, command_id, remembered))
        while self._kept[0][2].expires_at <= now or len(self._kept) > MAX_ALL_ANSWERS:
            owner, old_id, old = self._kept.popleft()
            owner.drop(old_id, old)

    def __len__(self) -> int:
        return len(self._kept)


@attrs.define(repr=False)
class Lately:
    """The last ids that something was done with; longer than it takes until the store knows of it."""

    _ids: dict[str, None] = attrs.field(factory=dict)

    def add(self, id_: str) -> None:
        """Note an id; the oldest one beyond the bound is forgotten."""
        self._ids[id_] = None
        if len(self._ids) > MAX_LATELY:
            del self._ids[next(iter(self._ids))]

    def discard(self, id_: str) -> None:
        """Forget an id."""
        self._ids.pop(id_, None)

    def __contains__(self, id_: str) -> bool:
        return id_ in self._ids


@attrs.define(eq=False, repr=False)
class UserMemory:
    """Budgets and answers of one user, and their share of worker threads.

    Attributes:
        removed: Threads that were removed; the ledger may still show one whose removal is not committed.
        used: Ids of runs; the ledger may not yet show one that was just started.
        inputs: Open questions; a run that an older context still ends may have some.
        tools: The places of this user at tools that have a number of them, for as long as the tools exist.
    """

    budgets: Budgets
    removed: Lately = attrs.field(factory=Lately)
    used: Lately = attrs.field(factory=Lately)
    inputs: Inputs = attrs.field(factory=Inputs)
    threads: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(USER_THREADS))
    tools: MutableMapping[Tool, trio.CapacityLimiter] = attrs.field(factory=WeakKeyDictionary)
    _shelf: Shelf = attrs.field(factory=Shelf)
    _answers: dict[str, Remembered] = attrs.field(factory=dict)

    def find(self, command_id: str, now: float) -> Remembered | None:
        """Return what is known of a command, unless it is too old."""
        self._forget(now)
        return self._answers.get(command_id)

    def begin(self, command_id: str, body_digest: bytes) -> Remembered:
        """Note that a command is being carried out; call ``settle`` exactly once after it."""
        remembered = self._answers[command_id] = Remembered(body_digest)
        if len(self._answers) > MAX_ANSWERS:
            del self._answers[next(iter(self._answers))]
        return remembered

    def settle(
        self, command_id: str, remembered: Remembered, reply: Reply | None, barrier: int, now: float, *, keep: bool
    ) -> None:
        """Note the answer for who waits for it, None when there is none; without *keep* a repeat tries again."""
        remembered.reply, remembered.barrier = reply, barrier
        remembered.expires_at = now + KEEP_S
        remembered.done.set()
        if self._answers.get(command_id) is not remembered:
            return  # pushed out by others meanwhile
        del self._answers[command_id]
        if keep:
            self._answers[command_id] = remembered  # behind those that will be forgotten before it
            self._shelf.put(self, command_id, remembered, now)

    def drop(self, command_id: str, remembered: Remembered) -> None:
        """Forget an answer, unless another one stands there by now."""
        if self._answers.get(command_id) is remembered:
            del self._answers[command_id]

    def _forget(self, now: float) -> None:
        for command_id, remembered in list(self._answers.items()):
            if remembered.expires_at <= now:
                del self._answers[command_id]
            elif remembered.done.is_set():
                break


@attrs.define(repr=False)
class Memories:
    """``UserMemory`` by user, the most recently seen last."""

    messages_per_minute: int
    shelf: Shelf = attrs.field(factory=Shelf)
    _users: dict[str, UserMemory] = attrs.field(factory=dict)

    def of(self, user_id: str) -> UserMemory:
        """Return a user's memory, a fresh one where there is none."""
        memory = self._users.pop(user_id, None)
        if memory is None:
            memory = UserMemory(Budgets.of(self.messages_per_minute), shelf=self.shelf)
            if len(self._users) >= MAX_USERS:
                del self._users[next(iter(self._users))]
        self._users[user_id] = memory
        return memory

    def __len__(self) -> int:
        return len(self._users)
