"""The same over real sockets: a client that we did not write, and stores that outlive the server."""

from __future__ import annotations

import asyncio
import random

import attrs
import pytest
import trio

from netra_ws import Run, open_server
from netra_ws.server import Server

from .. import kit
from ..end_to_end.needs import need
from .agents import AGENTS, WHOSE, echo
from .clients import Seat, User
from .marks import NOBODY
from .sayings import SAYINGS, chat
from .test_isolation import SIZE, report
from .world import SETTINGS, World

USERS = 12
#: Visits of each user to each of two servers, two at the same time; and what is said in each.
VISITS = max(1, int(SIZE))
COMMANDS = 15
#: Seconds for all of it in one server.
LONGEST_S = 60 * max(1.0, SIZE)


async def threads(run: Run) -> str:
    """Tell what a worker thread finds in a variable of the context."""
    found = WHOSE.get()
    WHOSE.set(run.text)
    return f"{found} {await run.thread(WHOSE.get)}"


#: On the real clock nobody may need 40 s to end.
REAL_AGENTS = {**AGENTS, "stubborn": threads, "echo": echo}


@attrs.define
class Visitors:
    """All users, each in a client of the package websockets, in an event loop of their own."""

    world: World
    port: int
    dice: random.Random

    async def come(self) -> None:
        """Let every user make all visits, two at the same time."""
        await asyncio.gather(*(self._stay(user) for user in self.world.users for _ in range(2)))

    async def _stay(self, user: User) -> None:
        WHOSE.set(NOBODY)
        for _ in range(VISITS):
            victim = self.dice.choice(self.world.users)
            await self._visit(user, victim)

    async def _visit(self, user: User, victim: User) -> None:
        client = need("websockets.asyncio.client")
        whose = self.dice.choice((user, victim))
        query = self.dice.choice(("", f"?resume={whose.epoch}:{self.dice.choice((0, whose.seq))}", "?thread_id=t-a"))
        user.reader.said.add(whose.epoch.encode())
        token = kit.token(
            user.id, permissions=("chat", "read", "job:publish", *(f"job:{j}" for j in user.reader.granted))
        )
        headers = {"Authorization": f"Bearer {token}"}
        seat = Seat(user=user, watch=self.world.watch)
        url = f"ws://127.0.0.1:{self.port}/ws{query}"
        async with client.connect(url, subprotocols=["netra.v1"], additional_headers=headers) as socket:
            reading = asyncio.create_task(self._read(seat, socket))
            for _ in range(COMMANDS):
                a, b, c = self.dice.randrange(60), self.dice.randrange(12), self.dice.randrange(60)
                say = chat if c % 3 == 0 else SAYINGS[c % len(SAYINGS)]
                type_name, fields = say(user, victim, a, b)
                self.world.watch.step += 1
                fields |= {"user_id": victim.id} if a % 4 == 0 else {}
                fields.setdefault("id", f"{type_name}-{self.world.watch.step}")
                await socket.send(seat.worded(type_name, ("plain", "payload", "rpc")[b % 3], fields).decode())
                await asyncio.sleep(0.01)
            if self.dice.random() < 0.3:
                socket.transport.abort()
            elif self.dice.random() < 0.5:
                await asyncio.sleep(0.3)
                await socket.close()
            else:
                await asyncio.sleep(0.3)
                await socket.send('{"type":"disconnect"}')
            await reading

    async def _read(self, seat: Seat, socket: object) -> None:
        closed = need("websockets.exceptions").ConnectionClosed
        try:
            async for message in socket:  # type: ignore[attr-defined]
                seat.hear(message.encode())
        except closed:
            pass


async def visit(world: World, server: Server, seed: int) -> None:
    visitors = Visitors(world, server.port, random.Random(seed))
    with trio.fail_after(LONGEST_S):
        await trio.to_thread.run_sync(asyncio.run, visitors.come())


@pytest.mark.heavy
async def test_over_real_sockets(store_url: str) -> None:
    """Over TCP, SQLite and PostgreSQL, and a restart in between, nobody hears what is another's."""
    world = World.of(USERS)
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    more = {"limits.max_connections_per_user": 100, "limits.connects_per_minute_per_address": 10**6}
    settings = kit.settings({**SETTINGS, **more, "store.url": store_url, "timing.drain_s": 1.0})
    for number in range(2):
        async with open_server(settings, agents=REAL_AGENTS) as server:
            await visit(world, server, seed + number)
            for user in world.users:
                for path in ("/ws/stats", "/metrics", "/health"):
                    world.watch.look_at_page(user.reader, (await kit.http(server, path)).body)
    print(report(world), dict(world.watch.types), dict(world.watch.denied))
    assert not world.watch.leaks, "\n".join(map(str, world.watch.leaks[:5]))
    assert world.watch.frames > USERS * COMMANDS
