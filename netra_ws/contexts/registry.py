"""The nursery of contexts: who is here, and the way to them for the rooms above."""

from __future__ import annotations

import contextvars
import logging
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Protocol

import attrs
import trio

from netra_ws.access import Revocations
from netra_ws.agents.run import Run
from netra_ws.errors import ClientError, Refused
from netra_ws.history.ledger import Ledger
from netra_ws.history.recorder import AWAY_S, Recorder
from netra_ws.history.streams import Streams
from netra_ws.identity import Identity
from netra_ws.measures import Recent
from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.events import CancelledBy
from netra_ws.protocol.replies import ConnectionWarning, Draining

from .connection import Connection
from .context import UserContext
from .counts import RegistryStatistics, RunCounts
from .jobs import Jobs
from .kicking import Kick, Kicked, Whom, read_row, row_of, sign_out
from .memory import Memories
from .policy import ContextPolicy
from .returning import RETURN_AFTER_S, return_delays_ms, spread_s

logger = logging.getLogger(__name__)

#: Answers that are our fault; only these make a server look ill.
SERVER_FAULTS = frozenset({"INTERNAL", "UNAVAILABLE", "CANCEL_TIMEOUT"})

#: Seconds between two looks at whether everything was answered.
LOOK_EVERY_S = 0.005
#: Seconds between two looks at how the store does.
WATCH_EVERY_S = 0.5

OUTAGE = ConnectionWarning(code="UNAVAILABLE", error="the store does not answer; answers may wait for it")

#: Seconds beyond ``finalise_s`` that an operator who kicks waits for each part of the proof.
KICK_S = 1.0

#: Users with something alive, as a multiple of ``limits.max_connections``.
USERS_PER_SEAT = 2

#: Under what runs of agents are counted that have no name of the server's.
OTHER_AGENTS = "(other)"

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


@attrs.define(eq=False, repr=False)
class Registry:
    """Every user context of this process.

    Attributes:
        draining: Whether no new connection and no new run is taken.
        commands: How often each command was answered, by type and code.
        dice: Spread clients over the time after a drain; seeded ones replay.
    """

    policy: ContextPolicy
    streams: Streams
    ledger: Ledger
    recorder: Recorder
    draining: bool = False
    commands: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    runs: RunCounts = attrs.field(factory=RunCounts)
    recent: Recent = attrs.field(factory=Recent)
    dice: random.Random = attrs.field(factory=random.Random)
    revocations: Revocations = attrs.field(factory=Revocations)
    memories: Memories = attrs.field(init=False)
    jobs: Jobs = attrs.field(init=False)
    seats: int = 0
    _patience_s: float = 0.0
    _shutting: bool = False
    _contexts: dict[str, UserContext] = attrs.field(factory=dict)
    _closing: dict[UserContext, None] = attrs.field(factory=dict)
    _nursery: trio.Nursery | None = None
    _outage_told: bool = False
    _emptied: trio.Event = attrs.field(factory=trio.Event)
    _stood_up: trio.Event = attrs.field(factory=trio.Event)

    def __repr__(self) -> str:
        return f"<Registry {len(self._contexts)} users, {self.seats} seats>"

    def __attrs_post_init__(self) -> None:
        self.memories = Memories(self.policy.messages_per_minute)
        self.jobs = Jobs(self.streams, self.ledger.store, self.recorder)

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
                raise self._draining_refusal()
            context.start_soon(sit)
        except BaseException:
            self._stand_up(context, False)
            raise

    def _stand_up(self, context: UserContext, explicit: bool) -> None:
        self.seats -= 1
        context.seats -= 1
        context.leave(explicit=explicit)
        self._stood_up.set()
        self._stood_up = trio.Event()

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

    @asynccontextmanager
    async def borrow(self, user_id: str) -> AsyncIterator[UserContext]:
        """Give the user's context for work of the server itself: an open one stays as it is, whoever comes or goes.

        It may be closed inside the block; look at ``living`` behind every checkpoint.
        """
        context = self._contexts.get(user_id)
        if context is not None and context.living:
            await context.opened.wait()
            yield context
        else:
            async with self.hold(Identity(user_id)) as held:
                yield held

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
            raise self._draining_refusal()
        if self.seats >= self.policy.max_connections:
            raise Refused(503, "OVERLOADED", "The server has no room for more connections.", retry_after_s=5)
        context = self._contexts.get(user_id)
        # Users who have gone but whose runs go on hold no seat.
        if context is None and len(self._contexts) + len(self._closing) >= USERS_PER_SEAT * self.policy.max_connections:
            raise Refused(503, "OVERLOADED", "The server has no room for more users.", retry_after_s=5)
        if context is not None and context.seats >= self.policy.max_connections_per_user:
            raise Refused(429, "TOO_MANY_CONNECTIONS", "This user has too many connections.", retry_after_s=5)

    def _draining_refusal(self) -> Refused:
        # Spread like those who were here: behind a balancer they all come back to the same door.
        retry_after_s = 1 + self.dice.randrange(math.ceil(spread_s(self.seats)))
        return Refused(503, "DRAINING", "The server is about to stop.", retry_after_s=retry_after_s)

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
        # A sub-run may be of a function that nobody has registered; such names would have no bound.
        self.runs.add(run, run.agent_name if run.agent_name in self.policy.agents else OTHER_AGENTS)

    def leaving(self, user_id: str) -> list[Run]:
        """Return the runs of contexts of this user that are being closed."""
        return [run for context in self._closing if context.user_id == user_id for run in context.runs.values()]

    def context_closing(self, context: UserContext) -> None:
        """From now on the user's newcomers get another context."""
        self._closing[context] = None
        if self._contexts.get(context.user_id) is context:
            del self._contexts[context.user_id]

    def count(self, type_name: str, code: str) -> None:
        """Count an answered command."""
        self.commands[(type_name, code)] += 1
        self.recent.add(trio.current_time(), code in SERVER_FAULTS)

    @property
    def store_away(self) -> bool:
        """Whether nothing new should be begun, because the store takes nothing."""
        return self.recorder.away

    async def watch_outages(self) -> None:
        """Tell every client, once per outage, that answers wait for the store; runs until cancelled.

        When nothing was committed for ``finalise_s``, answers that wait are given as ``UNAVAILABLE``.
        """
        while True:
            slept_since = trio.current_time()
            await trio.sleep(WATCH_EVERY_S)
            if trio.current_time() - slept_since >= 2 * WATCH_EVERY_S:
                continue  # the loop itself stood still, in an agent's code: the store has had no turn, either
            stalled_s = self.recorder.stalled_s
            if stalled_s < AWAY_S:
                self._outage_told = False
                continue
            seated = [connection for context in self for connection in context.connections.values()]
            for connection in seated:
                if not self._outage_told:
                    connection.tell(OUTAGE)
                if stalled_s >= self.policy.run.finalise_s:
                    for incoming in connection.give_up_waiting():
                        self.count(incoming.type_name, "UNAVAILABLE")
            self._outage_told = True

    # Leaving.

    async def drain(self, patience_s: float, finalise_s: float) -> None:
        """Take nothing new, tell every client, let the runs end, then cancel what is left.

        Args:
            patience_s: Seconds that runs have to end by themselves.
            finalise_s: Seconds after a cancel until a run is sealed.
        """
        if not self.draining:
            self.draining, self._patience_s = True, patience_s
            connections = [connection for context in self for connection in context.connections.values()]
            for connection, delay_ms in zip(connections, return_delays_ms(len(connections), self.dice), strict=True):
                connection.tell(Draining(reconnect_after_ms=delay_ms, deadline_s=patience_s))
            numbers = self.statistics()
            logger.info("draining connections=%d runs=%d for=%gs", numbers.connections, numbers.runs, patience_s)
        with trio.move_on_after(patience_s) as scope:
            await self._settled()
        if patience_s and scope.cancelled_caught:
            logger.warning("runs had not ended and are cancelled runs=%d after=%gs", self.statistics().runs, patience_s)
        for context in self:
            context.end_runs("shutdown")
        with trio.move_on_after(finalise_s + 1.0):
            await self._settled()

    def attached(self, connection: Connection) -> None:
        """Tell a connection that comes during an outage or a drain what all others were told."""
        if self._outage_told and self.recorder.stalled_s >= AWAY_S:
            connection.tell(OUTAGE)
        if self.draining:
            delay_s = RETURN_AFTER_S + self.dice.uniform(0.0, spread_s(self.seats))
            connection.tell(Draining(reconnect_after_ms=round(delay_s * 1000), deadline_s=self._patience_s))
        if self._shutting:
            connection.shut_behind(CloseCode.RESTART, "the server restarts")
        if self.revocations.cover(connection.identity, connection.clock(), connection.admitted_at):
            sign_out(connection, None)  # it was let in before the kick, and seated after it

    async def remember_revocations(self) -> None:
        """Take what the store has kept; before anybody comes in.

        Raises:
            StoreError: It cannot be read.
        """
        kept = await self.ledger.store.revocations(self.streams.clock(), 2 * self.revocations.most)
        self.revocations.load(map(read_row, kept))

    def kick(self, whom: Whom, by: Connection | None = None) -> Callable[[], Awaitable[Kicked]]:
        """Sign a user out, or end the connections of a token, at once.

        Returns:
            What waits for the proof and the store. It raises ``ClientError``: ``CANCEL_TIMEOUT``, ``UNAVAILABLE``,
            or ``QUOTA_EXCEEDED`` when there is no room for another revocation; what could be ended was.
        """
        kick = Kick(whom, by)
        now = self.streams.clock()
        met = kick.begin(self, now)
        at = max(now, met.last_issue)
        revocation = self.revocations.revoke(at, whom.user_id, whom.token_id, met.last_expiry)
        logger.info("signing out user=%r by=%r reason=%r: %r", whom.user_id, whom.operator, whom.reason, kick)
        kept = None if revocation is None else self.recorder.keep(row_of(revocation))
        patience_s = self.policy.run.finalise_s + KICK_S
        keep_until = trio.current_time() + patience_s
        assert self._nursery is not None
        contextvars.Context().run(self._nursery.start_soon, kick.look_again, patience_s)

        async def proof() -> Kicked:
            try:
                if kept is None:
                    raise ClientError("QUOTA_EXCEEDED", "too many revocations count; the tokens stay good")
                kicked = await kick.proof()
                with trio.move_on_at(keep_until):
                    await kept.wait()
            finally:
                kick.sign_out_last()
            if not kept.is_set():
                text = "done, but the store does not answer: a restart might forget it"
                raise ClientError("UNAVAILABLE", text, retryable=True, details=attrs.asdict(kicked))
            return kicked

        return proof

    async def _settled(self) -> None:
        """Wait until no run is going on that is not sealed."""
        while waiting := [run for context in self for run in context.runs.values() if not run.settled.is_set()]:
            await waiting[0].settled.wait()

    async def shut_connections(self, patience_s: float) -> None:
        """Close every connection with 1012 behind its last event, and wait until their tasks are gone.

        Args:
            patience_s: Seconds for slow readers; then they are closed where they stand.
        """
        with trio.move_on_after(patience_s):
            await self._answered()
        self._shutting = True
        for context in self:
            for connection in list(context.connections.values()):
                connection.shut_behind(CloseCode.RESTART, "the server restarts")
        with trio.move_on_after(patience_s):
            await self._stood_up_all()
        for context in self:
            for connection in list(context.connections.values()):
                connection.shut(CloseCode.RESTART, "the server restarts")
        with trio.move_on_after(patience_s):
            await self._stood_up_all()

    async def _answered(self) -> None:
        """Wait for answers that come behind a run's end: the proof of a stop, in the first place."""
        while any(context.waiting for context in self):  # noqa: ASYNC110  (once in a server's life)
            await trio.sleep(LOOK_EVERY_S)

    async def _stood_up_all(self) -> None:
        while self.seats:
            await self._stood_up.wait()

    async def close_all(self, reason: CancelledBy, patience_s: float) -> bool:
        """End every context; return whether all were gone within *patience_s* seconds."""
        self.draining = True
        for context in list(self):
            context.close(reason)
        with trio.move_on_after(patience_s) as scope:
            while self._contexts or self._closing:
                await self._emptied.wait()
        return not scope.cancelled_caught

    def __iter__(self) -> Iterator[UserContext]:
        """Iterate over all contexts, those that are being closed included."""
        return iter([*self._contexts.values(), *self._closing])

    def threads_waiting(self) -> int:
        """Count the calls of runs that wait for a worker thread: for the common pool, or for their user's share."""
        limiters = [self.policy.run.threads, *(context.memory.threads for context in self)]
        return sum(limiter.statistics().tasks_waiting for limiter in limiters)

    def statistics(self) -> RegistryStatistics:
        """Return the numbers of this moment."""
        runs = [run for context in self for run in context.runs.values()]
        return RegistryStatistics(
            users=len(self._contexts),
            connections=self.seats,
            runs=len(runs),
            stuck=sum(run.sealed for run in runs),
        )
