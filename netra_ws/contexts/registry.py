"""The nursery of contexts: who is here, and the way to them for the rooms above."""

from __future__ import annotations

import contextvars
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Protocol

import attrs
import trio

from netra_ws.agents.run import Run
from netra_ws.contexts.context import UserContext
from netra_ws.contexts.memory import Memories
from netra_ws.contexts.policy import ContextPolicy
from netra_ws.errors import Refused
from netra_ws.history.ledger import Ledger
from netra_ws.history.stream import Streams
from netra_ws.identity import Identity
from netra_ws.measures import Histogram
from netra_ws.protocol.events import CancelledBy
from netra_ws.protocol.replies import Draining

Serve = Callable[[UserContext], Awaitable[bool]]


class Owner(Protocol):
    """How the wire reaches a user's context; local here, in another process some day."""

    async def seat(self, identity: Identity, serve: Serve) -> None:
        """Take a seat in the user's context and run *serve* there as a task.

        *serve* returns whether the client said that it will not come back.

        Raises:
            Refused: There are too many connections, or the server is draining.
            StoreError: The user's stream cannot be read.
        """
        ...


@attrs.define
class RunCounts:
    """Counts and times of all runs since the start."""

    ended: Counter[tuple[str, str, str]] = attrs.field(factory=Counter)
    seconds: dict[str, Histogram] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class RegistryStatistics:
    """Numbers of this moment."""

    users: int
    connections: int
    runs: int
    stuck: int


@attrs.define(eq=False)
class Registry:
    """Every user context of this process.

    Attributes:
        draining: Whether no new connection and no new run is taken.
        commands: How often each command was answered, by type and code.
    """

    policy: ContextPolicy
    streams: Streams
    ledger: Ledger
    draining: bool = False
    commands: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    runs: RunCounts = attrs.field(factory=RunCounts)
    memories: Memories = attrs.field(init=False)
    seats: int = 0
    _contexts: dict[str, UserContext] = attrs.field(factory=dict)
    _closing: dict[UserContext, None] = attrs.field(factory=dict)
    _nursery: trio.Nursery | None = None
    _emptied: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.memories = Memories(self.policy.messages_per_minute)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the contexts' nursery open until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    # Coming in.

    async def seat(self, identity: Identity, serve: Serve) -> None:
        """Take a seat and start *serve* in the user's nursery (see ``Owner``)."""
        context = await self._enter(identity, seat=True)

        async def sit() -> None:
            explicit = False
            try:
                explicit = await serve(context)
            finally:
                self._stand_up(context, explicit)

        try:
            await context.opened.wait()
            if not context.living:
                raise Refused(503, "DRAINING", "The server is about to stop.", retry_after_s=1)
            context.start_soon(sit)
        except BaseException:
            self._stand_up(context, False)
            raise

    def _stand_up(self, context: UserContext, explicit: bool) -> None:
        self.seats -= 1
        context.seats -= 1
        context.leave(explicit=explicit)

    @asynccontextmanager
    async def hold(self, identity: Identity) -> AsyncIterator[UserContext]:
        """Keep the user's context open without a socket, for embedding programs."""
        context = await self._enter(identity, seat=False)
        try:
            await context.opened.wait()
            yield context
        finally:
            context.holds -= 1
            context.leave()

    async def _enter(self, identity: Identity, *, seat: bool) -> UserContext:
        """Find or open the user's context and take a place in it, without a checkpoint in between."""
        if seat:
            self._check_seats(identity.user_id)
        stream = await self.streams.open(identity.user_id)
        try:
            if seat:
                self._check_seats(identity.user_id)
            context = self._contexts.get(identity.user_id)
            if context is None or not context.living:
                context = self._open(identity.user_id)
        finally:
            self.streams.release(stream)
        if seat:
            context.seats += 1
            self.seats += 1
        else:
            context.holds += 1
        context.enter()
        return context

    def _check_seats(self, user_id: str) -> None:
        if self.draining:
            raise Refused(503, "DRAINING", "The server is about to stop.", retry_after_s=1)
        if self.seats >= self.policy.max_connections:
            raise Refused(503, "OVERLOADED", "The server has no room for more connections.", retry_after_s=5)
        context = self._contexts.get(user_id)
        if context is not None and context.seats >= self.policy.max_connections_per_user:
            raise Refused(429, "TOO_MANY_CONNECTIONS", "This user has too many connections.", retry_after_s=5)

    def _open(self, user_id: str) -> UserContext:
        assert self._nursery is not None
        stream = self.streams.pinned(user_id)
        context = UserContext(user_id, stream, self.ledger, self.policy, self.memories.of(user_id), self)
        self._contexts[user_id] = context

        async def live() -> None:
            try:
                await context.live()
            finally:
                self.streams.release(stream)
                self._closing.pop(context, None)
                if self._contexts.get(user_id) is context:
                    del self._contexts[user_id]
                self._emptied.set()
                self._emptied = trio.Event()

        contextvars.Context().run(self._nursery.start_soon, live)
        return context

    # What contexts need (``Home``).

    def run_ended(self, run: Run) -> None:
        """Count a run that has ended."""
        self.runs.ended[(run.agent_name, run.status, run.cancelled_by or "")] += 1
        histogram = self.runs.seconds.setdefault(run.agent_name, Histogram())
        histogram.observe(trio.current_time() - run.started_at)

    def find_run(self, user_id: str, run_id: str) -> Run | None:
        """Return a run of a context of this user that is being closed."""
        for context in self._closing:
            if context.user_id == user_id and run_id in context.runs:
                return context.runs[run_id]
        return None

    def context_closing(self, context: UserContext) -> None:
        """From now on the user's newcomers get another context."""
        self._closing[context] = None
        if self._contexts.get(context.user_id) is context:
            del self._contexts[context.user_id]

    def count(self, type_name: str, code: str) -> None:
        """Count an answered command."""
        self.commands[(type_name, code)] += 1

    # Leaving.

    async def drain(self, deadline_s: float) -> None:
        """Take nothing new, tell every client, and wait for the runs, at most *deadline_s* seconds."""
        self.draining = True
        reconnect_after_ms = 500 + secrets.randbelow(1500)
        for context in self:
            for connection in list(context.connections.values()):
                connection.tell(Draining(reconnect_after_ms=reconnect_after_ms, deadline_s=deadline_s))
        with trio.move_on_after(deadline_s):
            while any(run for context in self for run in context.runs.values() if not run.sealed):
                await _next_end(self)

    async def close_all(self, reason: CancelledBy, patience_s: float) -> bool:
        """End every context; return whether all were gone within *patience_s* seconds."""
        self.draining = True
        for context in list(self):
            context.close(reason)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + patience_s) as scope:
            while self._contexts or self._closing:
                await self._emptied.wait()
        return not scope.cancelled_caught

    def __iter__(self) -> Iterator[UserContext]:
        """Iterate over all contexts, those that are being closed included."""
        return iter([*self._contexts.values(), *self._closing])

    def statistics(self) -> RegistryStatistics:
        """Return the numbers of this moment."""
        runs = [run for context in self for run in context.runs.values()]
        return RegistryStatistics(
            users=len(self._contexts),
            connections=self.seats,
            runs=len(runs),
            stuck=sum(run.sealed for run in runs),
        )


async def _next_end(registry: Registry) -> None:
    """Wait until any run of any context has settled."""
    async with trio.open_nursery() as nursery:

        async def watch(run: Run) -> None:
            await run.settled.wait()
            nursery.cancel_scope.cancel()

        for context in registry:
            for run in context.runs.values():
                if not run.settled.is_set():
                    nursery.start_soon(watch, run)
        # A run that settled a moment ago may still stand in its context for this pass.
        await trio.lowlevel.checkpoint()
