"""Many users on one server that restarts, over links and a store that fail; what they do, step by step."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import attrs
import trio

from netra_ws import Identity
from netra_ws.errors import ClientError, StoreError
from netra_ws.testing import FaultyStore, MemoryServer, open_test_server
from netra_ws.testing.frames import request, upgrade

from .agents import AGENTS, OPEN_TO_ALL, WHOSE, own_job
from .clients import GONE, Tab, User
from .marks import NOBODY, Watch
from .sayings import SAYINGS, chat, job_of

#: What a step is: which user, what, and three numbers that its verb reads as it likes.
Step = tuple[int, str, int, int, int]

SETTINGS = {
    "timing.finalise_s": 2.0,
    "timing.resume_window_s": 4.0,
    "timing.run_timeout_s": 20.0,
    "timing.drain_s": 3.0,
    "limits.max_queued_per_thread": 2,
    "limits.max_runs_per_user": 5,
    "limits.messages_per_minute": 10_000,
    "history.ring_events": 60,
}
PAGES = (
    "/ws/stats",
    "/ws/stats",
    "/ws/stats",
    "/metrics",
    "/health",
    "/ready",
    "/ws/config",
    "/ws/bounds",
    "/ws/beacon",
    "/nowhere",
)
FULL = ("chat", "read", "job:publish")
GRANTS: Sequence[Sequence[str] | None] = (FULL, FULL, FULL, FULL, FULL, None, None, ("chat",), ("read",), ())


@attrs.define(eq=False)
class World:
    """Everything that lives through restarts of the server."""

    users: list[User]
    watch: Watch = attrs.field(factory=Watch)
    store: FaultyStore = attrs.field(factory=FaultyStore)
    _server: MemoryServer | None = None
    _nursery: trio.Nursery | None = None

    @classmethod
    def of(cls, count: int) -> World:
        """Return a world of so many users whom nobody has seen yet."""
        users = [User.make(number) for number in range(count)]
        world = cls(users)
        for user in users:
            for job in user.reader.granted:
                world.watch.publishers.setdefault(job, set()).add(user.mark.encode())
        return world

    @property
    def server(self) -> MemoryServer:
        assert self._server is not None
        return self._server

    async def live(self, steps: Sequence[Step]) -> None:
        """Take all steps; each ``restart`` ends one server and begins the next on the same store.

        The first leaks end it: where everybody hears everything, there is no end to looking at it.
        """
        rest = list(steps)
        async with self._serving():  # by users who were granted it; they never close it
            for number in range(3):
                await self.server.server.job(self.users[number % len(self.users)].id, f"job-{number}").open()
        while rest and not self.watch.leaks:
            async with self._serving():
                while rest and not self.watch.leaks:
                    step = rest.pop(0)
                    self.watch.step += 1
                    if step[1] == "restart":
                        if step[2] % 2:
                            await self.server.server.drain(0.5)
                        break
                    await self.take(step)
        if not self.watch.leaks:
            async with self._serving():
                await self._look_round()

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        async with open_test_server(AGENTS, SETTINGS, store=self.store) as server, trio.open_nursery() as nursery:
            self._server, self._nursery = server, nursery
            yield
            nursery.cancel_scope.cancel()
            await self._look_at_seats()
        for user in self.users:
            user.tabs.clear()

    async def _look_at_seats(self) -> None:
        """Whoever has gone reads no job any more."""
        with trio.move_on_after(60):
            while self.server.server.registry.seats:
                await trio.sleep(0.5)
        for live in self.server.server.registry.jobs:
            for connection in live.seats:
                if connection.connection_id not in {
                    c for each in self.server.server.registry for c in each.connections
                }:
                    reader = next(user.reader for user in self.users if user.id == connection.identity.user_id)
                    self.watch.note(reader, f"a seat in {live.job_id} of a connection that has gone", b"")

    async def take(self, step: Step) -> None:
        """Take one step, and let things happen."""
        who, verb, a, b, c = step
        user, victim = self.users[who % len(self.users)], self.users[(who + 1 + b) % len(self.users)]
        await VERBS[verb](self, user, victim, a, b, c)
        for _ in range(4):
            await trio.lowlevel.checkpoint()
        await trio.sleep(0.01)

    async def _look_round(self) -> None:
        """At the end, everybody reads everything that they may."""
        for user in self.users:
            await self.open(user, user, 0, 0, 3)
            await self._say(user, 0, "list_threads", "plain", {"limit": 100})
            for thread_id in list(user.threads):
                await self._say(user, 0, "get_thread_history", "plain", {"thread_id": thread_id})
            await self._say(user, 0, "resume", "plain", {"epoch": user.epoch, "seq": 0})
        await trio.sleep(5)

    # Clients come and go.

    async def open(self, user: User, victim: User, a: int, b: int, c: int) -> None:
        """Open a tab, in one of many ways; wait until it is there or refused."""
        slot = a % 3
        if (tab := user.tabs.get(slot)) is not None and not tab.broken:
            return
        ways = (
            "", f"?resume={user.epoch}:{user.seq}", f"?resume={user.epoch}:0", "",
            f"?resume={victim.epoch}:{victim.seq}", f"?resume={victim.epoch}:0", f"?resume={user.epoch}:{victim.seq}",
            f"?thread_id={victim.threads[-1]}" if victim.threads else "", "?thread_id=t-a",
        )  # fmt: skip
        path = "/ws" + ways[c % len(ways)]
        if victim is not user:
            user.reader.said |= {victim.epoch.encode(), *(thread.encode() for thread in victim.threads)}
        grants = FULL if c == 3 else GRANTS[(b * 5 + c) % len(GRANTS)]
        jobs = [f"job:{job}" for job in user.reader.granted]
        permissions = None if grants is None else [*grants, *jobs]
        token = self.server.token(user.id, permissions=permissions, email=f"{user.mark}@example.org", jti=user.mark)
        user.bearer = token
        protocols = (f"jwt.{token}", "jwt-auth") if c % 13 == 12 else ("netra.v1",)
        there = trio.Event()
        assert self._nursery is not None
        self._nursery.start_soon(self._hold, user, slot, upgrade(path, bearer=token, protocols=protocols), there)
        with trio.move_on_after(2):
            await there.wait()

    async def _hold(self, user: User, slot: int, head: bytes, there: trio.Event) -> None:
        WHOSE.set(NOBODY)
        try:
            async with self.server.raw(f"{user.id}-{slot}") as client:
                await client.send_bytes(head)
                answer = await client.read_head()
                if answer.status != 101:
                    self.watch.look_at_page(user.reader, await client.read_rest())
                    return
                tab = user.tabs[slot] = Tab(user=user, watch=self.watch, client=client)
                there.set()
                with tab.scope:
                    await tab.read()
        except (*GONE, OSError):
            pass
        finally:
            there.set()

    async def close(self, user: User, victim: User, a: int, b: int, c: int) -> None:
        """Close a tab by a command, a reset, or a cut in the middle of a frame."""
        tab = user.tabs.pop(a % 3, None)
        if tab is None:
            return
        if c % 3 == 0:
            await tab.say("disconnect", "plain", {})
        elif c % 3 == 1:
            tab.client.reset()
        else:
            self.server.link(f"{user.id}-{a % 3}").cut_mid_frame(1 + c)
            await tab.say("list_threads", "plain", {})

    # What they say.

    async def say(self, user: User, victim: User, a: int, b: int, c: int) -> None:
        """Say any command about one's own things, others', shared names or nothing at all."""
        type_name, fields = SAYINGS[c % len(SAYINGS)](user, victim, a, b)
        if (a + b) % 4 == 0:
            fields["user_id"] = victim.id
        if (a + b) % 5 and "id" not in fields:
            fields["id"] = f"{type_name}-{self.watch.step}"
        await self._say(user, a, type_name, ("plain", "payload", "rpc", "plain")[b % 4], fields)

    async def talk(self, user: User, victim: User, a: int, b: int, c: int) -> None:
        """Start something, so that there is something to find."""
        type_name, fields = chat(user, victim, a, c)
        await self._say(user, a, type_name, "plain", fields)

    async def crowd(self, user: User, victim: User, a: int, b: int, c: int) -> None:
        """Let everybody say the same at once."""
        for each in self.users:
            await self.say(each, victim, a, b, c)

    async def _say(self, user: User, slot: int, type_name: str, form: str, fields: dict[str, Any]) -> None:
        tab = user.tabs.get(slot % 3)
        if tab is None or tab.broken:
            await self.open(user, user, slot, 0, 0)
            tab = user.tabs.get(slot % 3)
        if tab is not None and not tab.broken:
            await tab.say(type_name, form, fields)

    async def embed(self, user: User, victim: User, a: int, b: int, c: int) -> None:
        """Have a program of the server's own do something for the user, whoever's variables it runs in."""
        names, agent = ("t-a", None, "t-b"), sorted(AGENTS)[a % len(AGENTS)]

        async def work() -> None:
            WHOSE.set(NOBODY)
            try:
                with trio.move_on_after(8):
                    async with self.server.server.context_for(Identity(user.id)) as session:
                        run = await session.start(f"secret {user.mark}", agent=agent, thread_id=names[b % 3])
                        user.reader.knows.add(run.run_id)
                        async for heard in run:
                            self.watch.look(user.reader, _encoded(heard.fields))
            except (ClientError, StoreError):
                pass

        user.reader.knows.update(name for name in names if name)
        assert self._nursery is not None
        self._nursery.start_soon(work)

    async def job(self, user: User, victim: User, a: int, b: int, c: int) -> None:
        """Have a program use a job in the user's name, and look at what it hears."""
        job_id = job_of(user, victim, b)
        job = self.server.server.job(Identity(user.id), job_id)

        async def work() -> None:
            WHOSE.set(NOBODY)
            try:
                with trio.move_on_after(3):
                    if a % 4 == 0:
                        await job.emit("note", {"of": user.mark})
                    elif a % 4 == 1 and job_id in (own_job(user.mark), OPEN_TO_ALL):
                        await job.close()
                    elif a % 4 >= 2:
                        async with job.events() as events:
                            async for heard in events:
                                self.watch.look(user.reader, _encoded(heard.fields))
            except (ClientError, StoreError):
                pass

        if job_id not in (own_job(victim.mark), *(f"job-{n}" for n in range(3))) or a % 4 >= 2 or victim is user:
            assert self._nursery is not None
            self._nursery.start_soon(work)

    async def build(self, user: User, victim: User, a: int, b: int, c: int) -> None:
        """Read a job that the user may read, or try another's, and have its owner and a publisher speak there."""
        job_id = (f"job-{user.number % 3}", own_job(user.mark), OPEN_TO_ALL, job_of(user, victim, c))[b % 4]
        resume = user.places.get(job_id) if a % 3 == 0 else None
        await self._say(user, a, "connect_job", ("plain", "rpc")[a % 2], {"job_id": job_id, "resume": resume})
        await trio.sleep(0.01)
        for speaker in (user, victim):
            granted = frozenset({"chat", "read", "job:publish", *(f"job:{job}" for job in speaker.reader.granted)})
            if job_id != own_job(victim.mark) or speaker is victim:
                with suppress(ClientError, StoreError), trio.move_on_after(1):
                    job = self.server.server.job(Identity(speaker.id, granted), job_id)
                    await job.emit("n", {"of": speaker.mark})
                    if c % 2 == 0 and (job_id == OPEN_TO_ALL or not job_id.startswith("job-")):
                        await job.close()
        if c % 4 == 1:
            await self._say(user, a, "disconnect_job", "plain", {"job_id": job_id})

    async def page(self, user: User, victim: User, a: int, b: int, c: int) -> None:
        """Fetch a page, with a token or without."""
        path = PAGES[a % len(PAGES)]
        headers = [] if b % 2 else [("authorization", f"Bearer {self.server.token(user.id)}")]
        with trio.move_on_after(5):
            async with self.server.raw(f"http-{user.id}") as client:
                await client.send_bytes(request(path, headers))
                await client.read_head()
                self.watch.look_at_page(user.reader, await client.read_rest())

    # What goes wrong.

    async def break_link(self, user: User, victim: User, a: int, b: int, c: int) -> None:
        """Let something happen to a link."""
        link = self.server.link(f"{user.id}-{a % 3}")
        actions: Sequence[Callable[[], None]] = (
            link.drop, lambda: link.stall(0.5 + c / 10), lambda: link.cut_mid_frame(1 + c * 3),
            lambda: link.slow_reader(200.0 * (c + 1), 3.0), link.heal,
        )  # fmt: skip
        actions[b % len(actions)]()

    async def break_store(self, user: User, victim: User, a: int, b: int, c: int) -> None:
        """Let the store be ill for a while."""
        (self.store.fail, self.store.hang, self.store.full, self.store.lose_answers)[a % 4]()
        assert self._nursery is not None

        async def heal() -> None:
            await trio.sleep((0.05, 0.5, 3.0, 7.0)[b % 4])
            self.store.recover()

        self._nursery.start_soon(heal)

    async def wait(self, user: User, victim: User, a: int, b: int, c: int) -> None:
        """Let time pass."""
        await trio.sleep((0.02, 0.1, 0.3, 1.0, 5.0, 13.0)[a % 6])


def _encoded(fields: Any) -> bytes:
    return json.dumps(dict(fields)).encode()


Verb = Callable[[World, User, User, int, int, int], Any]
VERBS: dict[str, Verb] = {
    "open": World.open,
    "close": World.close,
    "say": World.say,
    "talk": World.talk,
    "crowd": World.crowd,
    "embed": World.embed,
    "job": World.job,
    "build": World.build,
    "page": World.page,
    "break_link": World.break_link,
    "break_store": World.break_store,
    "wait": World.wait,
}
