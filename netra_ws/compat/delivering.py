"""How a manager sends: each message once as JSON, each socket with its own deadline and turn; and what waits.

A stalled socket holds up nobody, and messages keep their order on each. No lock of the manager is held while
anything is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial

import attrs
import trio

from .encoding import Encoded, encode
from .failures import FailureKind
from .following import Following
from .holding import Holding
from .lines import Line
from .native import say
from .recovery import Kept, Queue
from .sockets import put, put_in_turn

logger = logging.getLogger(__name__)

#: How often a waiting message is tried again when sockets fail over the message itself.
MAX_ATTEMPTS = 3


@attrs.define(eq=False, repr=False, slots=False)
class Delivering(Holding):
    """A manager's way to its sockets.

    Attributes:
        messages_sent: Messages that a socket or the user's stream has taken.
    """

    messages_sent: int = attrs.field(default=0, init=False)
    _following: Following = attrs.field(init=False, factory=Following)

    # Sending.

    def _encoded(self, message: object, user_id: str | None) -> Encoded | None:
        encoded = encode(message, self.policy.max_message_bytes)
        if isinstance(encoded, Encoded):
            return encoded
        self._failures.note(encoded, user_id, self.clock())
        logger.warning("a message was not sent: %s", encoded.value)
        return None

    async def _send(self, user_id: str, encoded: Encoded) -> bool:
        said = self._native is not None and await self._say(encoded)
        lines = self._lines.of(user_id)
        if self._native is not None:  # nothing is kept here: the stream keeps it
            return self._count(await self._put_all(lines, encoded)) or said
        if not lines:
            self._failures.note(FailureKind.NO_CONNECTION, user_id, self.clock())
            self._undelivered.keep(user_id, encoded, "no_connections", self.clock())
            return False
        if self._count(await self._put_all(lines, encoded)):
            return True
        if self._closed:
            return False
        kept = self._undelivered.keep(user_id, encoded, "all_connections_failed", self.clock())
        await self._recover(user_id)  # another connection may have come meanwhile
        return kept.sent

    async def _say(self, encoded: Encoded) -> bool:
        """Put it on the user's stream; what is there is not kept a second time."""
        assert self._native is not None
        self._native.check_living()
        said = await self._following.speak(partial(say, self._native.session, encoded))
        if isinstance(said, FailureKind):
            self._failures.note(said, self._native.session.identity.user_id, self.clock())
            return False
        self.messages_sent += 1
        return True

    def _count(self, taken: int) -> bool:
        self.messages_sent += taken
        return taken > 0

    async def _put_all(self, lines: Sequence[Line], encoded: Encoded) -> int:
        """Send on several lines at the same time; return how many have taken it."""
        taken = 0

        async def put_on(line: Line) -> None:
            nonlocal taken
            try:
                kind = await put(line, encoded, self.policy.send_timeout_s)
            except BaseException:
                if line.cut:  # the caller was cancelled in the middle of a message
                    self._fail(line, FailureKind.TIMEOUT)
                raise
            taken += self._done(line, kind)

        async with trio.open_nursery() as nursery:
            for line in lines:
                nursery.start_soon(put_on, line)
        return taken

    def _done(self, line: Line, kind: FailureKind | None) -> bool:
        if kind is None:
            line.connection.touch(self.clock())
            return True
        self._fail(line, kind)
        return False

    def _fail(self, line: Line, kind: FailureKind) -> None:
        self._failures.note(kind, None if line.job_id is not None else line.connection.user_id, self.clock())
        self._drop(line)

    # What nobody has taken.

    async def attempt_message_recovery(self, user_id: str) -> int:
        """Send again what waits for a user who has a connection; return how many messages were taken."""
        user = self._user(user_id)
        self._held()
        await trio.lowlevel.checkpoint()
        return await self._recover(user)

    async def _recover(self, user_id: str) -> int:
        """Send what waits for a user on their newest connection, and on the next one when that fails.

        One task at a time does so for a user; what comes behind meanwhile is sent by it, too.
        """
        queue = self._undelivered.of(user_id)
        if queue is None or queue.busy:
            return 0
        queue.busy = True
        sent = 0
        try:
            while queue.waiting and (line := self._newest(user_id)) is not None:
                sent += await self._replay(line, queue)
        finally:
            queue.busy = False
            self._undelivered.tidy(user_id)
        self._count(sent)
        return sent

    def _newest(self, user_id: str) -> Line | None:
        lines = reversed(self._lines.of(user_id))
        return next((line for line in lines if line.live), None)

    async def _replay(self, line: Line, queue: Queue) -> int:
        """Send what waits on one line, without anything in between, until it fails or nothing waits."""
        sent = 0
        async with line.turn:
            while queue.waiting and line.live:
                kept = queue.waiting[0]
                kept.sending = True
                try:
                    kind = await put_in_turn(line, kept.recovered, self.policy.send_timeout_s)
                except BaseException:
                    self._fail(line, FailureKind.TIMEOUT)
                    raise
                finally:
                    kept.sending = False
                if self._done(line, kind):
                    kept.sent = True
                    self._undelivered.take(queue, kept)
                    sent += 1
                else:
                    self._note_attempt(queue, kept, kind)
        return sent

    def _note_attempt(self, queue: Queue, kept: Kept, kind: FailureKind | None) -> None:
        # A closed socket says nothing about a message; one that fails over it would fail for ever, and each
        # connection of its user with it.
        kept.attempts += kind is FailureKind.OTHER
        if kept.attempts >= MAX_ATTEMPTS:
            self._undelivered.take(queue, kept)
            self._undelivered.given_up += 1
            logger.warning("a message was given up: sockets fail over it attempts=%d", kept.attempts)

    def get_undelivered(self, user_id: str) -> list[Mapping[str, object]]:
        """Return what waits for a user, the oldest first: each message with its failure."""
        user = self._user(user_id)
        self._held()
        queue = self._undelivered.of(user)
        return [] if queue is None else [kept.as_dict() for kept in queue.waiting]
