"""A user's context in the hands of a program: runs and events without a socket."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import attrs
import trio

from netra_ws.agents.run import Run
from netra_ws.contexts.context import UserContext
from netra_ws.contexts.starting import Ask, start
from netra_ws.errors import ClientError, RunClosed, Trimmed
from netra_ws.history.stores.contract import Store
from netra_ws.history.stream import Cursor
from netra_ws.identity import Identity
from netra_ws.protocol.codec import Heard, frame_payload, read_server
from netra_ws.protocol.commands import OnBusy, OnDisconnect
from netra_ws.protocol.events import AgentCompleted
from netra_ws.protocol.replies import Position

#: Bytes read from the log in one go.
CHUNK = 64 * 1024


@attrs.define(eq=False)
class _Bell:
    """Wakes one task when the stream has more (``history.stream.Reader``)."""

    _rung: trio.Event = attrs.field(factory=trio.Event)

    def wake(self) -> None:
        self._rung.set()

    async def wait(self) -> None:
        await self._rung.wait()
        self._rung = trio.Event()


@attrs.define
class RunHandle:
    """A run that a program has started; iterate over it for its events, up to ``agent_completed``.

    Attributes:
        disposition: ``started``, ``queued`` or ``steered``.
    """

    run_id: str
    thread_id: str
    message_id: str
    disposition: str
    _session: UserSession
    _since: int

    async def __aiter__(self) -> AsyncGenerator[Heard, None]:
        """Yield the events of this run, from its first to ``agent_completed``."""
        stream = self._session.context.stream
        position = Position(epoch=stream.epoch, seq=self._since)
        async with aclosing(self._session.events(after=position)) as events:
            async for heard in events:
                if heard.fields.get("run_id") == self.run_id:
                    yield heard
                    if isinstance(heard.message, AgentCompleted):
                        return

    async def result(self) -> AgentCompleted:
        """Wait for the run's end and return its last event."""
        async with aclosing(self.__aiter__()) as events:
            async for heard in events:
                if isinstance(heard.message, AgentCompleted):
                    return heard.message
        raise RunClosed(f"{self.run_id} has no end in this log")

    async def stop(self) -> str:
        """Stop the run; return its final status when nothing of it is left.

        Raises:
            ClientError: ``CANCEL_TIMEOUT`` when its code could not be stopped.
        """
        return await self._session.stop(self.run_id)


@attrs.define
class UserSession:
    """What ``server.context_for(identity)`` gives: the user's context stays open while it is held."""

    context: UserContext
    identity: Identity
    _store: Store

    @property
    def position(self) -> Position:
        """The visible end of the user's log now."""
        stream = self.context.stream
        return Position(epoch=stream.epoch, seq=stream.visible)

    async def start(
        self,
        text: str,
        *,
        agent: str | None = None,
        thread_id: str | None = None,
        run_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        on_busy: OnBusy = "enqueue",
        on_disconnect: OnDisconnect = "continue",
        timeout_s: float | None = None,
    ) -> RunHandle:
        """Start a run for the user; it goes on when nobody is connected, unless said otherwise.

        Raises:
            ClientError: It cannot be started; ``code`` says why.
            StoreError: The store did not answer.
        """
        if not text.strip():
            raise ClientError("EMPTY_MESSAGE", "the message has no text")
        since = self.context.stream.visible
        ask = Ask(
            text=text.strip(),
            trigger="api",
            agent=agent,
            thread_id=thread_id,
            run_id=run_id,
            context=context or {},
            on_busy=on_busy,
            on_disconnect=on_disconnect,
            timeout_s=timeout_s,
        )
        started = await start(self.context, ask, self.identity)
        return RunHandle(started.run_id, started.thread_id, started.message_id, started.disposition, self, since)

    async def stop(self, run_id: str) -> str:
        """Stop a run of the user; return its final status when nothing of it is left.

        Raises:
            ClientError: ``NOT_FOUND``, or ``CANCEL_TIMEOUT`` when its code could not be stopped.
        """
        run: Run | None = self.context.runs.get(run_id)
        if run is None:
            row = await self.context.ledger.run(self.context.user_id, run_id)
            if row is None:
                raise ClientError("NOT_FOUND", "there is no such run")
            return row.state
        self.context.stop(run)
        await run.settled.wait()
        if run.sealed:
            raise ClientError("CANCEL_TIMEOUT", "the agent did not stop in time")
        return run.status

    async def events(self, after: Position | None = None) -> AsyncGenerator[Heard, None]:
        """Yield every event of the user behind *after*, then live ones, without end.

        Args:
            after: None for what comes from now on.

        Raises:
            ClientError: ``CONFLICT`` when the position cannot be continued; ``details.reason`` says why.
        """
        stream = self.context.stream
        if after is not None:
            reason = stream.judge(after.epoch, after.seq)
            if reason is not None:
                raise ClientError("CONFLICT", "the position cannot be continued", details={"reason": reason})
        cursor = Cursor(stream, self._store, stream.visible if after is None else after.seq)
        bell = _Bell()
        stream.attach(bell)
        try:
            while True:
                while cursor.pending:
                    try:
                        frames = cursor.take(CHUNK)
                    except Trimmed:
                        await cursor.refill()
                        continue
                    for frame in frames:
                        yield read_server(frame_payload(frame))
                await bell.wait()
        finally:
            stream.detach(bell)
