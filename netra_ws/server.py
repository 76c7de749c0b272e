"""Puts the rooms together, in the order in which they are opened, and closes them in reverse.

A list, not logic: what is decided is decided in the rooms. Everything of the server runs in one shielded
nursery beside the program's own block, so that it closes in order even when the program is cancelled:
the door, the runs, the last events into the store and onto the sockets, the sockets, the store.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from netra_ws.access import Admission, Revocations
from netra_ws.agents.agent import Agent
from netra_ws.agents.asyncio_thread import JOIN_S
from netra_ws.agents.processes import end_lost
from netra_ws.agents.tracing import load as load_tracing
from netra_ws.agents.watchdog import Watchdog
from netra_ws.asking import Authenticate, make_admit, make_identify, make_renew
from netra_ws.contexts.embedding import UserSession
from netra_ws.contexts.job import ProgramJob, check_job_id
from netra_ws.contexts.quota import Quota
from netra_ws.contexts.registry import Registry
from netra_ws.errors import ConfigError, InvalidArgument, NetraError
from netra_ws.history.ledger import Ledger
from netra_ws.history.opening import make_store
from netra_ws.history.recorder import Recorder
from netra_ws.history.recovery import EVERY_RUN, close_lost_runs
from netra_ws.history.stores.contract import Store
from netra_ws.history.streams import Streams
from netra_ws.identity import Identity
from netra_ws.keyring import Keyring, key_sources
from netra_ws.measures import Histogram
from netra_ws.policies import context_policy, make_admission, make_certificates, make_proxies, public_config
from netra_ws.settings import Settings, problems
from netra_ws.version import __version__
from netra_ws.wire.door import Door, Identify, Page
from netra_ws.wire.flusher import Flusher
from netra_ws.wire.heartbeat import Heartbeat
from netra_ws.wire.protection import STRICT_S
from netra_ws.wire.pump import CLOSE_S, Wiring

logger = logging.getLogger(__name__)

#: Connections that the system holds before they are accepted.
LISTEN_BACKLOG = 4096
#: Seconds for the last events to be committed when the server ends, and for what may come behind them.
FLUSH_S = 10.0
LAST_FLUSH_S = 2.0
#: Seconds for the sockets to close behind their last event, and again where they stand.
SHUT_S = CLOSE_S + 2.0
DAY_S = 86_400.0


@attrs.frozen(kw_only=True)
class Surroundings:
    """What a server takes from the world; a test, or a program with a door of its own, gives it another one.

    Attributes:
        clock: Unix seconds: stamps events, judges tokens, tells what retention removes. Durations
            are measured by Trio's clock.
        dice: Spread clients that come back after a drain; seeded ones replay.
        store: In place of the one of ``store.url``; it is opened and closed by the server.
        listens: Whether there is a port; without one, clients come by ``Server.serve_stream``.
        watches: Whether a blocked event loop is noticed; needs Trio's clock to be the real one.
    """

    clock: Callable[[], float] = time.time
    dice: random.Random = attrs.field(factory=random.Random)
    store: Store | None = None
    listens: bool = True
    watches: bool = True


_WORLD = Surroundings()


@attrs.define(eq=False, repr=False)
class Server:
    """A running server.

    Attributes:
        settings: What it was started with.
        port: The port it listens on, also when the settings said 0; 0 when it does not listen.
        kept: Whether the store took everything up to the last event; known when the server has ended.
    """

    settings: Settings
    registry: Registry
    streams: Streams
    recorder: Recorder
    store: Store
    wiring: Wiring
    door: Door
    port: int = 0
    _drained: bool = False
    kept: bool = True

    def __repr__(self) -> str:
        return f"<Server {self.url}>"

    @property
    def url(self) -> str:
        """Where it is, such as ``http://127.0.0.1:8000``."""
        host = self.settings.server.host
        scheme = "http" if self.door.certificates is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def reload_certificates(self) -> bool:
        """Read ``server.tls_cert`` and ``tls_key`` again, for the handshakes to come; connections stay.

        Returns:
            Whether they are in use now; if not, the log says why, and the ones before stay. Without TLS: False.
        """
        return self.door.certificates is not None and self.door.certificates.reload()

    @asynccontextmanager
    async def context_for(self, identity: Identity) -> AsyncIterator[UserSession]:
        """Hold a user's context open without a socket; it closes when nobody holds it and no run goes on.

        Raises:
            StoreError: The user's stream cannot be read.
        """
        async with self.registry.hold(identity) as context:
            yield UserSession(context, identity, self.store)

    def job(self, owner: Identity | str, job_id: str) -> ProgramJob:
        """Return a job, a stream of its own that several users may be granted; nothing is opened yet.

        Args:
            owner: In whose name it is used; who says the first word into a free id owns it.
            job_id: 1 to 128 of the characters ``A-Za-z0-9_.:-``; one namespace for all users.

        Raises:
            InvalidArgument: *job_id* or *owner* is none.
        """
        if isinstance(owner, str):
            try:
                owner = Identity(owner)
            except ValueError as exc:
                raise InvalidArgument("owner", str(exc)) from None
        if not isinstance(owner, Identity):
            raise InvalidArgument("owner", f"expected an Identity or a user's id, got {type(owner).__name__}")
        most = self.registry.policy.run.max_event_bytes
        return ProgramJob(check_job_id(job_id), owner, self.registry.jobs, most)

    async def serve_stream(self, stream: trio.abc.Stream, peer: str = "local") -> None:
        """Serve one client on a stream that came another way than through the port, as if it had come so.

        Returns when the client has its answer, or its seat: a socket is then served by a task in its
        user's context. From the call on the stream belongs to the server, which closes it; nothing
        is raised, whatever the client does.

        Args:
            stream: A Unix socket, TLS of the program's own, a memory stream. Bytes that it takes are
                expected to arrive, and ``send_all`` to wait while the client reads slowly.
            peer: Whose limits per address count.

        *Cancellation:* the stream is closed, unless the client has its seat.
        """
        await self.door.greet(stream, peer)

    async def drain(self, patience_s: float | None = None) -> bool:
        """Stop taking new work, let runs end, cancel the rest, close every socket with 1012.

        Args:
            patience_s: Seconds that runs have to end by themselves; ``timing.drain_s`` by default.

        Returns:
            Whether nothing is left; False when a run could not be stopped (``stuck``), or when the store
            did not take the last events.
        """
        timing = self.settings.timing
        if not self._drained:  # what was cut short, or is under way elsewhere, is gone through again
            began = trio.current_time()
            await self.registry.drain(timing.drain_s if patience_s is None else patience_s, timing.finalise_s)
            with trio.move_on_after(FLUSH_S) as scope:
                await self.recorder.flush()
            self.kept = not scope.cancelled_caught
            await self.registry.shut_connections(SHUT_S)
            if not self._drained:
                logger.info("drained after=%.1fs", trio.current_time() - began)
            self._drained = True
        return self.kept and not self.stuck

    @property
    def stuck(self) -> int:
        """How many runs could not be stopped."""
        return self.registry.statistics().stuck


@asynccontextmanager
async def open_server(
    settings: Settings | None = None,
    *,
    agents: Mapping[str, Agent] | None = None,
    authenticate: Authenticate | None = None,
    surroundings: Surroundings = _WORLD,
) -> AsyncIterator[Server]:
    """Run a server beside the block; leaving the block ends it in order.

    Args:
        settings: Development defaults when None.
        agents: More agents by name.
        authenticate: Replaces tokens, for sockets and pages alike, so no secret is needed: takes the
            request head, returns who it is or raises ``Refused``. Origins and the limits per address are
            checked before it, and a ``?ticket=`` in its place. It has half of ``timing.handshake_s``.
            Pages that say something to everybody ask it where there is an Authorization or a Cookie.
        surroundings: Clock, dice, store and door in place of the usual ones.

    Raises:
        ConfigError: The settings cannot be served; one line per problem.
        StoreLeased: Another server has the store.
        StoreError: The store cannot be opened.
        OSError: The address cannot be listened on.
    """
    settings = settings or Settings()
    if found := problems(settings, tokens=authenticate is None):
        raise ConfigError("\n".join(found))
    failure: Exception | None = None
    stop, stopped = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        # What goes wrong is raised outside the nursery, so that nobody has to look into a group.
        try:
            rooms = _rooms(settings, agents or {}, authenticate, surroundings)
            server: Server = await nursery.start(_run_shielded, rooms, stop, stopped)
        except (NetraError, OSError, ExceptionGroup) as exc:
            failure = _only(exc)
        else:
            try:
                yield server
            except Exception as exc:  # of the program's own block
                failure = exc
            finally:
                stop.set()
                with trio.CancelScope(shield=True):
                    await stopped.wait()
    if failure is not None:
        raise failure


def _only(exc: Exception) -> Exception:
    """Return the one error inside nested groups, or the group when there are several."""
    while isinstance(exc, ExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def longest_end_s(settings: Settings) -> float:
    """Return the seconds after which a server that was asked to end must have ended; a sum of bounds."""
    timing = settings.timing
    runs_s = timing.drain_s + 2 * (timing.finalise_s + 1.0)
    return runs_s + FLUSH_S + 3 * SHUT_S + LAST_FLUSH_S + JOIN_S


async def serve(
    settings: Settings | None = None,
    *,
    agents: Mapping[str, Agent] | None = None,
    authenticate: Authenticate | None = None,
    surroundings: Surroundings = _WORLD,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a server until cancelled; ``await nursery.start(serve, settings)`` returns the ``Server``.

    Raises:
        ConfigError, StoreLeased, StoreError, OSError: As ``open_server``.
    """
    async with open_server(settings, agents=agents, authenticate=authenticate, surroundings=surroundings) as server:
        task_status.started(server)
        await trio.sleep_forever()


async def _run_shielded(
    rooms: contextlib.AbstractAsyncContextManager[Server],
    stop: trio.Event,
    stopped: trio.Event,
    *,
    task_status: trio.TaskStatus[Server],
) -> None:
    try:
        with trio.CancelScope(shield=True):
            async with rooms as server:
                task_status.started(server)
                await stop.wait()
    finally:
        stopped.set()


def _durability(settings: Settings) -> Any:
    return settings.store.durability


@asynccontextmanager
async def _rooms(
    settings: Settings, agents: Mapping[str, Agent], authenticate: Authenticate | None, world: Surroundings
) -> AsyncIterator[Server]:
    """Open the rooms from the bottom up."""
    load_tracing()
    # Everything that may be wrong with the settings is found before anything is opened.
    policy = context_policy(settings, agents)
    revocations = Revocations()
    tokens = authenticate is None
    keyring = Keyring(sources) if tokens and (sources := key_sources(settings)) else None
    admission = make_admission(settings, revocations, None if keyring is None else keyring.public, tokens=tokens)
    certificates = make_certificates(settings, world.clock) if world.listens else None
    store = world.store
    if store is None:
        store = make_store(settings.store.url, durability=_durability(settings))
    commit, watchdog, clock = Histogram(), Watchdog([policy.run.asyncio.pulse]), world.clock
    recorder = Recorder(store, settings.history.retention_days * DAY_S, clock=clock, on_commit=commit.observe)
    streams = Streams(store, recorder, clock, settings.history.ring_events, settings.history.ring_bytes)
    registry = Registry(policy, streams, Ledger(store), recorder, dice=world.dice, revocations=revocations)
    quota = Quota(settings.limits.max_stored_bytes_per_user, registry, store)
    recorder.on_kept = quota.note
    heartbeat = Heartbeat(policy.heartbeat_interval_s, policy.pong_timeout_s, policy.expiry_grace_s)
    patience_s = settings.timing.handshake_s / 2
    news = {} if keyring is None else {"news": keyring.news}
    renew = make_renew(admission, authenticate, clock, patience_s, **news)
    wiring = Wiring(store, Flusher(), heartbeat, settings.timing.handshake_s, registry.count, renew, clock)
    pages: dict[str, Page] = {}
    high = settings.limits.memory_high_mb
    identify = make_identify(admission, authenticate, clock, patience_s, **news)
    admit = make_admit(admission, identify, clock, None if high is None else high * 2**20)
    door = Door(
        wiring=wiring,
        owner=registry,
        admit=admit,
        pages=pages,
        handshake_s=settings.timing.handshake_s,
        addresses=admission.addresses,
        echo=settings.environment == "testing",
        proxies=make_proxies(settings),
        certificates=certificates,
        strict_s=STRICT_S if settings.environment == "production" else 0,
    )
    server = Server(settings, registry, streams, recorder, store, wiring, door)
    pages |= _pages(server, admission, identify, commit, watchdog)

    if keyring is not None:
        await keyring.load()
    async with contextlib.AsyncExitStack() as stack:
        listeners = await _listen(settings) if world.listens else ()
        for listener in listeners:
            stack.push_async_callback(listener.aclose)
            server.port = listener.socket.getsockname()[1]
        stack.push_async_callback(store.close)
        await store.open()
        stack.push_async_callback(policy.run.asyncio.close)  # when all runs have ended
        async with trio.open_nursery() as below:
            below.start_soon(recorder.run, streams)
            # Their end is told when they have ended.
            lost = [row.run_id for row in await store.unfinished_runs(EVERY_RUN)]
            if ended := await end_lost(lost):
                logger.warning("killed %d processes of runs that were lost when the server last stopped", ended)
            await close_lost_runs(store, streams, recorder)
            await registry.remember_revocations()
            async with trio.open_nursery() as nursery:
                watching = [watchdog.run] if world.watches else []
                if keyring is not None:
                    watching.append(keyring.run)
                for task in (wiring.flusher.run, heartbeat.run, registry.watch_outages, registry.jobs.sweep, *watching):
                    nursery.start_soon(task)
                await nursery.start(registry.run)
                nursery.start_soon(quota.run)
                await nursery.start(door.run, listeners)
                try:
                    yield server
                finally:
                    await server.drain(0.0)
                    if not await registry.close_all("shutdown", settings.timing.finalise_s + 1.0):
                        logger.error("runs are stuck; the server's task cannot end before they do")
                    nursery.cancel_scope.cancel()
            with trio.move_on_after(LAST_FLUSH_S) as scope:  # what came behind the drain's own flush
                await recorder.flush()
            server.kept = not scope.cancelled_caught
            if not server.kept:
                logger.error("the store did not take the last events; the next start closes what is open")
            below.cancel_scope.cancel()


async def _listen(settings: Settings) -> Sequence[trio.SocketListener]:
    host, port = settings.server.host, settings.server.port
    listeners = await trio.open_tcp_listeners(port, host=host, backlog=LISTEN_BACKLOG)
    if port == 0 and len(listeners) > 1:
        # A name with several addresses would get a random port for each: keep the first.
        for extra in listeners[1:]:
            await extra.aclose()
        return listeners[:1]
    return listeners


def _pages(
    server: Server, admission: Admission, identify: Identify, commit: Histogram, watchdog: Watchdog
) -> dict[str, Page]:
    # Imported late: prometheus-client takes a tenth of the time until we listen.
    from netra_ws.pages.assets import load_assets
    from netra_ws.pages.bounds import Bounds
    from netra_ws.pages.health import Health
    from netra_ws.pages.kick import KickPage
    from netra_ws.pages.metrics import Metrics
    from netra_ws.pages.origins import Unblock
    from netra_ws.pages.sources import Sources
    from netra_ws.pages.stats import Stats
    from netra_ws.pages.tickets import TicketDesk

    settings = server.settings
    high = settings.limits.memory_high_mb
    sources = Sources(
        version=__version__,
        registry=server.registry,
        streams=server.streams,
        recorder=server.recorder,
        store=server.store,
        wiring=server.wiring,
        heartbeat=server.wiring.heartbeat,
        door=server.door,
        admission=admission,
        identify=identify,
        config=public_config(settings, server.registry.policy, tokens=admission.verifier is not None),
        memory_high_bytes=None if high is None else high * 2**20,
        longest_end_s=longest_end_s(settings),
        commit=commit,
        watchdog=watchdog,
        clock=server.wiring.clock,
        started_at=server.wiring.clock(),
    )
    health, stats = Health(sources), Stats(sources)
    return {
        "/health": health.health,
        "/ws/health": health.health,
        "/ready": health.ready,
        "/ws/beacon": health.beacon,
        "/ws/config": stats.config,
        "/ws/stats": stats.stats,
        "/ws/bounds": Bounds(sources).page,
        "/ws/ticket": TicketDesk(sources).page,
        "/ws/unblock": Unblock(sources).page,
        "/ws/kick": KickPage(sources).page,
        "/metrics": Metrics(sources).page,
        **{path: asset.page for path, asset in load_assets(console=settings.server.console).items()},
    }
