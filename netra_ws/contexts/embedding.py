"""A user's context in the hands of a program: runs and events without a socket."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import orjson
import trio

from netra_ws.errors import ClientError, RunClosed
from netra_ws.history.cursor import Cursor
from netra_ws.history.stores.contract import Store
from netra_ws.identity import Identity
from netra_ws.protocol.codec import read_command
from netra_ws.protocol.commands import OnBusy, OnDisconnect, StartAgent
from netra_ws.protocol.events import AgentCompleted, Announcement
from netra_ws.protocol.replies import Position

from .context import UserContext
from .reading import Events, check_event
from .starting import Ask, start
from .stopping import proof_of_end


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
    _since: Position

    def __aiter__(self) -> Events:
        """Iterate over the events of this run and its sub-runs, from its first to its own ``agent_completed``."""
        return self._session.events(after=self._since, run_id=self.run_id)

    async def result(self) -> AgentCompleted:
        """Wait for the run's end and return its last event."""
        async for heard in self:
            if isinstance(heard.message, AgentCompleted) and heard.message.run_id == self.run_id:
                return heard.message
        raise RunClosed(f"{self.run_id} has no end in this log")

    async def stop(self) -> str:
        """Stop the run; return its final status when nothing of it is left.

        Raises:
            ClientError: ``CANCEL_TIMEOUT`` when its code could not be stopped.
        """
        return await self._session.stop(self.run_id)


@attrs.define(repr=False)
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
        if context is not None and not isinstance(context, Mapping):
            raise ClientError("INVALID_MESSAGE", f"context: expected a mapping, got {type(context).__name__}")
        # A program gets the rules of clients: an id or a number that the server does not expect ends in a
        # task of its own. Only the context is not looked into; it may hold what JSON cannot say.
        command = _checked(
            text=text,
            agent=agent,
            thread_id=thread_id,
            run_id=run_id,
            on_busy=on_busy,
            on_disconnect=on_disconnect,
            timeout_s=timeout_s,
        )
        since = self.position
        ask = Ask(
            text=command.text,
            trigger="api",
            agent=command.agent,
            thread_id=command.thread_id,
            run_id=command.run_id,
            context=context or {},
            on_busy=command.on_busy,
            on_disconnect=on_disconnect,
            timeout_s=command.timeout_s,
        )
        started = await start(self.context, ask, self.identity)
        return RunHandle(started.run_id, started.thread_id, started.message_id, started.disposition, self, since)

    async def stop(self, run_id: str) -> str:
        """Stop a run of the user; return its final status when nothing of it is left.

        Raises:
            ClientError: ``NOT_FOUND``, or as ``proof_of_end``.
        """
        run = self.context.find_run(run_id)
        if run is None:
            status = await self.context.status_of(run_id)
            if status is None:
                raise ClientError("NOT_FOUND", "there is no such run")
            return status
        self.context.stop(run)
        return await proof_of_end(run)

    async def emit(self, name: str, value: Any) -> int:
        """Say something to the user outside any run: an ``agent_event`` on their stream, with any JSON value.

        It is numbered and kept like all others, so whoever is away gets it by resuming. It has no ``thread_id``,
        ``run_id`` and ``agent_name``. Waits while the store is behind; returns before it is committed.

        Returns:
            The event's seq.

        Raises:
            InvalidArgument: *name* is no text of 1 to 256 characters, or *value* is no JSON, or above
                ``limits.max_event_bytes``.
            ClientError: ``UNAVAILABLE``: the store takes nothing.
        """
        check_event(name, value, self.context.policy.run.max_event_bytes)
        self.context.check_store()
        await self.context.stream.wait_for_room()
        entry = self.context.stream.append(Announcement(name=name, value=value))
        await trio.lowlevel.checkpoint()
        return entry.seq

    @property
    def pending_inputs(self) -> list[Mapping[str, Any]]:
        """The questions of the user's agents that are open: fields of ``input_required``, the oldest first."""
        return self.context.inputs.pending()

    async def answer(self, input_id: str, value: Any) -> None:
        """Answer a question of an agent in the user's place.

        Raises:
            ClientError: ``NOT_FOUND``, ``ALREADY_ANSWERED``, or ``INVALID_MESSAGE`` for a value that does not fit.
        """
        await trio.lowlevel.checkpoint()
        self.context.inputs.answer(input_id, "resolved", value, self.identity.user_id)

    async def decline(self, input_id: str) -> None:
        """Decline to answer a question of an agent.

        Raises:
            ClientError: ``NOT_FOUND`` or ``ALREADY_ANSWERED``.
        """
        await trio.lowlevel.checkpoint()
        self.context.inputs.answer(input_id, "cancelled", None, self.identity.user_id)

    def events(self, after: Position | None = None, *, run_id: str | None = None) -> Events:
        """Iterate over every event of the user behind *after*, then live ones, without end.

        Args:
            after: None for what comes from now on.
            run_id: Only events of this run and its sub-runs, up to its end.

        Raises:
            ClientError: ``CONFLICT`` when the position cannot be continued; ``details.reason`` says why.
        """
        stream = self.context.stream
        if after is not None:
            reason = stream.judge(after.epoch, after.seq)
            if reason is not None:
                raise ClientError("CONFLICT", "the position cannot be continued", details={"reason": reason})
        return Events(Cursor(stream, self._store, stream.visible if after is None else after.seq), run_id)


def _checked(**fields: object) -> StartAgent:
    """Read *fields* as those of a client's ``start_agent``.

    Raises:
        ClientError: As a client would get it.
    """
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):  # which JSON has no word for
            raise ClientError("INVALID_MESSAGE", f"$.{name}: expected a finite number")
    try:
        incoming = read_command(orjson.dumps({"type": "start_agent", **fields}))
    except TypeError as exc:
        raise ClientError("INVALID_MESSAGE", f"JSON cannot say this: {exc}") from None
    if incoming.error is not None:
        raise incoming.error
    assert isinstance(incoming.command, StartAgent)
    return incoming.command
