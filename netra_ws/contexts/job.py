"""Jobs in the hands of programs and agents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import attrs
import trio

from netra_ws.agents.request import check_name, check_size
from netra_ws.agents.run import Run
from netra_ws.errors import AgentError, ClientError, InvalidArgument
from netra_ws.history.cursor import Cursor
from netra_ws.identity import Identity
from netra_ws.protocol.events import Announcement
from netra_ws.protocol.replies import Position
from netra_ws.protocol.values import read_id

from .jobs import Jobs
from .live_job import LiveJob, missing_job
from .reading import Events, check_event


def check_job_id(job_id: object) -> str:
    """Return a job's id.

    Raises:
        InvalidArgument: It is none: 1 to 128 of the characters ``A-Za-z0-9_.:-``.
    """
    try:
        return read_id(job_id)
    except (TypeError, ValueError) as exc:
        raise InvalidArgument("job_id", str(exc)) from None


@attrs.frozen(repr=False)
class ProgramJob:
    """What ``server.job(owner, job_id)`` gives: a job in a program's hands, in the name of one user.

    Attributes:
        identity: In whose name: the owner's, once something was said and the id was free.
    """

    job_id: str
    identity: Identity
    _jobs: Jobs
    _max_bytes: int

    def __repr__(self) -> str:
        return f"<Job {self.job_id!r} by {self.identity.user_id!r}>"

    async def open(self) -> None:
        """Open the id without a word: from now on it is this user's, until it is closed.

        Raises:
            ClientError, StoreError: As ``emit``.
        """
        await self._jobs.open(self.job_id, self.identity)

    async def emit(self, name: str, value: Any) -> int:
        """Say something into the job: an ``agent_event`` with any JSON value, numbered on the job's own stream.

        Whoever says the first word has opened the job and owns it. Waits while the store is behind; returns
        before it is committed.

        Returns:
            The event's seq.

        Raises:
            InvalidArgument: *name* is no text of 1 to 256 characters, or *value* is no JSON, or above
                ``limits.max_event_bytes``.
            ClientError: ``NOT_FOUND``: another user owns it, and this one may not publish there.
                ``QUOTA_EXCEEDED``: the user has a thousand open jobs.
            StoreError: The store did not answer.
        """
        check_event(name, value, self._max_bytes)
        said = Announcement(name=name, value=value, user_id=self.identity.user_id, job_id=self.job_id)
        _, seq = await self._jobs.emit(self.job_id, self.identity, lambda live: said)
        await trio.lowlevel.checkpoint()
        return seq

    async def close(self) -> None:
        """Make the id free for others; who reads it gets what was said, then ``job_disconnected``.

        Raises:
            ClientError: ``NOT_FOUND``: it is not open, or not this user's.
            StoreError: The store did not answer.
        """
        await self._jobs.close(self.job_id, self.identity)

    async def members(self) -> int:
        """Return how many connections read the job now.

        Raises:
            ClientError: ``NOT_FOUND``: it is another user's, and was not granted to this one.
            StoreError: The store did not answer.
        """
        async with self._reading() as live:
            return len(live.seats)

    async def position(self) -> Position:
        """Return the visible end of the job's stream now.

        Raises:
            ClientError, StoreError: As ``members``.
        """
        async with self._reading() as live:
            return Position(epoch=live.stream.epoch, seq=live.stream.visible)

    @asynccontextmanager
    async def events(self, after: Position | None = None) -> AsyncIterator[Events]:
        """Read the job's events within the block: those behind *after*, then live ones, until it is closed.

        Args:
            after: None for what comes from now on.

        Raises:
            ClientError: As ``members``; or ``CONFLICT``: the position cannot be continued, ``details.reason``
                says why.
            StoreError: The store did not answer.
        """
        async with self._reading() as live:
            if not live.may_read(self.identity):  # nobody's yet: whoever opens it has not granted it
                raise missing_job()
            stream = live.stream
            reason = None if after is None else stream.judge(after.epoch, after.seq)
            if reason is not None:
                raise ClientError("CONFLICT", "the position cannot be continued", details={"reason": reason})
            cursor = Cursor(stream, self._jobs.store, stream.visible if after is None else after.seq)
            yield Events(cursor, over=lambda: live.over)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[LiveJob]:
        async with self._jobs.using(self.job_id) as live:
            if live.owner is not None and not live.may_read(self.identity):
                raise missing_job()
            yield live


@attrs.frozen(repr=False)
class RunJob:
    """What ``run.job(job_id)`` gives (``agents.job.Job``)."""

    job_id: str
    _run: Run
    _jobs: Jobs

    def __repr__(self) -> str:
        return f"<Job {self.job_id!r} by {self._run!r}>"

    async def emit(self, name: str, value: Any) -> None:
        run = self._run
        run.check_open()
        check_name("the event's name", name)
        check_size("the value", value, run.policy.max_event_bytes)

        def said(live: LiveJob) -> Announcement:
            run.spoke_elsewhere()
            return Announcement(
                name=name,
                value=value,
                user_id=run.user_id,
                job_id=live.job_id,
                run_id=run.run_id,
                agent_name=run.agent_name,
            )

        with _told_to_the_agent(), run.waiting_for_the_store():
            await self._jobs.emit(self.job_id, run.identity, said)
        await run.pause()

    async def close(self) -> None:
        self._run.check_open()
        with _told_to_the_agent(), self._run.waiting_for_the_store():
            await self._jobs.close(self.job_id, self._run.identity)


@contextmanager
def _told_to_the_agent() -> Iterator[None]:
    """What a client would be told, an agent's user may be told, too."""
    try:
        yield
    except ClientError as error:
        raise AgentError(error.text, code=error.code, retryable=error.retryable) from None
