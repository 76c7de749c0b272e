"""The real server over memory: no port, no socket, and clients that dial over links which may fail."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from netra_ws.access import mint
from netra_ws.agents.agent import Agent
from netra_ws.client import ClientPolicy, Session, Token, connect
from netra_ws.history.stream import Stream
from netra_ws.protocol.codec import Heard, read_server
from netra_ws.protocol.replies import Position
from netra_ws.protocol.values import MAX_SEQ
from netra_ws.server import Server, Surroundings, open_server

from .faults import Faults
from .frames import Answer, Headers, request, upgrade
from .leaks import Ground
from .lines import Line
from .links import Link
from .raw import RawClient
from .running import SECRET, make_settings
from .store import FaultyStore

#: Unix seconds at which Trio's clock stands at 0: 2030-01-01. The same in each test, so that texts with a time are.
EPOCH = 1_893_456_000.0
#: How clients call the server; nothing resolves it.
URL = "http://testserver"
#: Seconds that a raw client waits; longer than every timeout of the server's defaults but those of runs.
RAW_PATIENCE_S = 120.0
#: How often and how far apart, in seconds of the system's clock, it is looked whether a process has died.
_LOOKS, _LOOK_EVERY_S = 20, 0.05
_NEVER = threading.Event()  # what a thread waits for, to wait by the system's clock


@attrs.define(eq=False)
class MemoryServer:
    """A running server that is reached over memory alone, and everything that can go wrong around it.

    Attributes:
        server: The server itself: ``context_for``, ``drain``, its numbers.
        store: What it keeps its rows in; ``store.hang()`` and others make it ill.
        faults: Seed, log and plans of what goes wrong.
    """

    server: Server
    store: FaultyStore
    faults: Faults
    _ground: Ground

    def now(self) -> float:
        """Return Unix seconds as the server sees them: they follow Trio's clock."""
        return unix_now()

    def token(
        self, user: str = "tester", *, permissions: Iterable[str] | None = None, expires_s: float = 3600, **claims: Any
    ) -> str:
        """Return a token for *user* that expires after so many seconds of Trio's clock."""
        return mint(SECRET, user, permissions, expires_s, unix_now(), **claims)

    def link(self, name: str = "tester") -> Link:
        """Return the way of a client to the server, to let something happen to it: ``server.link("alice").drop()``."""
        return self.faults.link(name)

    # Clients.

    @asynccontextmanager
    async def connect(
        self,
        user: str = "tester",
        *,
        link: str | None = None,
        token: Token | None = None,
        policy: ClientPolicy | None = None,
        **more: Any,
    ) -> AsyncIterator[Session]:
        """Open a session as *user*: the product's own client, which reconnects and resumes.

        Args:
            link: Name of its link; by default the user's name, with ``-2``, ``-3``, … behind it for
                further clients at the same time.
            token: By default a function that gives a new one, good for an hour, whenever it is asked.
            policy: Its ``open_stream`` and ``random`` are those of the kit.
            more: ``position``, ``job_positions``, ``thread_id`` and ``on_state``, as ``netra_ws.connect`` has them.

        Raises:
            Rejected, ConnectionLost: As ``netra_ws.connect``.
        """
        over = self._take_link(user) if link is None else self.link(link)
        policy = attrs.evolve(
            policy or ClientPolicy(),
            open_stream=over.open_stream,
            random=self.faults.dice(f"{over.name}/jitter").random,
        )
        over.users += 1
        try:
            async with connect(URL, token or (lambda: self.token(user)), policy=policy, **more) as session:
                yield session
        finally:
            over.users -= 1

    def _take_link(self, user: str) -> Link:
        names = itertools.chain([user], (f"{user}-{number}" for number in itertools.count(2)))
        return next(link for link in map(self.link, names) if not link.users)

    @asynccontextmanager
    async def raw(self, link: str = "raw") -> AsyncIterator[RawClient]:
        """Open a connection on which nothing was said yet, for a client that sees and says every byte."""
        stream = await self.link(link).open_stream()
        try:
            yield RawClient(stream, patience_s=RAW_PATIENCE_S)
        finally:
            await trio.aclose_forcefully(stream)

    @asynccontextmanager
    async def connect_raw(
        self,
        user: str = "tester",
        *,
        link: str | None = None,
        token: str | None = None,
        path: str = "/ws",
        protocols: Sequence[str] = ("netra.v1",),
        headers: Headers = (),
    ) -> AsyncIterator[RawClient]:
        """Open a WebSocket as *user* and read the welcome; from then on every frame is in the test's hands.

        Args:
            path: With its query, such as ``/ws?resume=<epoch>:<seq>``.
        """
        async with self.raw(user if link is None else link) as client:
            bearer = self.token(user) if token is None else token
            await client.open(upgrade(path, bearer=bearer, protocols=protocols, headers=headers))
            yield client

    async def get(self, path: str, *, headers: Headers = (), user: str | None = None) -> Answer:
        """Make a GET request, with a token of *user* where one is named."""
        bearer = [] if user is None else [("authorization", f"Bearer {self.token(user)}")]
        async with self.raw("http") as client:
            await client.send_bytes(request(path, [*headers, *bearer]))
            return await client.read_answer()

    # What is there, and what is left.

    async def recorded(self, user: str = "tester") -> list[Heard]:
        """Return every durable event of *user*, as the store has it: the witness of what happened.

        Raises:
            StoreError: The store is ill.
        """
        stream = await self.server.streams.open(user)
        try:
            return await self._rows(stream)
        finally:
            self.server.streams.release(stream)

    async def recorded_job(self, job_id: str) -> list[Heard]:
        """Return every event of a job since it was opened, as the store has it.

        Raises:
            StoreError: The store is ill.
        """
        async with self.server.registry.jobs.using(job_id) as live:
            return await self._rows(live.stream)

    async def _rows(self, stream: Stream) -> list[Heard]:
        rows = await self.store.events(stream.key, stream.epoch, 0, MAX_SEQ, MAX_SEQ)
        return [read_server(row.payload) for row in rows]

    async def caught_up(self, session: Session, within_s: float = 120.0) -> None:
        """Wait until *session* has heard everything that its user's log holds by then, whatever its link does.

        Raises:
            trio.TooSlowError: It has not within that time.
        """
        stream = await self.server.streams.open(session.welcome.user_id)
        try:
            with trio.fail_after(within_s):
                while stream.visible > (session.position.seq if session.position else 0):  # noqa: ASYNC110
                    await trio.sleep(0.01)
        finally:
            self.server.streams.release(stream)

    def start_of(self, session: Session) -> Position:
        """Return the position before the first event of a session's user, to hear everything once more."""
        return Position(epoch=session.welcome.stream.epoch, seq=0)

    def leaks(self) -> list[str]:
        """Say what there is that was not there before anybody came, a line for each thing.

        Contexts, runs, seats, tasks of the server and system tasks, child processes, connections that
        the server has not closed. Empty when everybody has gone and nothing was left behind.
        """
        return [*self._inside(), *self._ground.processes()]

    def _inside(self) -> list[str]:
        open_lines = [line for link in self.faults.links.values() for line in link.unclosed]
        return [*self._ground.leftovers(), *(f"connection {line.name} is not closed" for line in open_lines)]

    async def settled(self, within_s: float = 120.0) -> None:
        """Wait until nothing is left (``leaks``); call it when all clients have gone.

        Args:
            within_s: Seconds of Trio's clock; the default is longer than the grace of a lost connection.

        Raises:
            AssertionError: Something is left; the text names it.
        """
        with trio.move_on_after(within_s):
            while self._inside():  # noqa: ASYNC110  (nobody tells when the last of it is gone)
                await trio.sleep(0.05)
        for _ in range(_LOOKS):
            if not (left := self.leaks()):
                return
            if self._inside():
                break
            # Processes die by the system's clock, which a virtual one has outrun.
            await trio.to_thread.run_sync(_NEVER.wait, _LOOK_EVERY_S)
        raise AssertionError("\n  ".join(["left behind:", *left]))


def unix_now() -> float:
    """Return Unix seconds that follow Trio's clock."""
    return EPOCH + trio.current_time()


@asynccontextmanager
async def open_test_server(
    agents: Mapping[str, Agent] | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    seed: int = 0,
    store: FaultyStore | None = None,
) -> AsyncIterator[MemoryServer]:
    """Run the real server, with all of its rooms, over memory: no port and no socket.

    On ``trio.testing.MockClock`` (the fixture ``autojump_clock`` of pytest-trio) every wait of server
    and client takes no time: grace, idle timeouts, heartbeats, back-off, the end of a token. An agent
    that waits for the world outside (a process, a thread, a socket) needs the real clock instead,
    since a virtual one jumps to the next timeout meanwhile.

    An exception that leaves the block has a note with the seed and the faults that were injected.

    Args:
        agents: By name; the first is the default agent.
        overrides: Dotted names of settings to values, such as ``{"timing.resume_window_s": 5.0}``.
        seed: Of everything random in the kit; see ``Faults``.
        store: One to go on with, such as an earlier server's; a fresh one by default.
    """
    default = {"agents.default": next(iter(agents))} if agents else {}
    settings = make_settings({**default, **(overrides or {})})
    failure: BaseException | None = None
    store = FaultyStore() if store is None else store

    def carry(line: Line) -> None:
        nursery.start_soon(server.serve_stream, line.server, line.name.rpartition("/")[0])

    faults = Faults(seed, store, carry)
    surroundings = Surroundings(clock=unix_now, dice=faults.dice("server"), store=store, listens=False, watches=False)
    async with open_server(settings, agents=agents, surroundings=surroundings) as server:
        (main,) = trio.lowlevel.current_task().child_nurseries[-1].child_tasks
        async with trio.open_nursery() as nursery:
            try:
                yield MemoryServer(server, store, faults, Ground(server, main))
            except trio.Cancelled:
                raise
            except BaseException as exc:  # raised outside, so that nobody has to look into a group
                failure = exc
            finally:
                store.recover()  # the server's last events need it
                nursery.cancel_scope.cancel()
    if failure is not None:
        if faults.log:
            failure.add_note(faults.report())
        raise failure
