"""Readers whose connections break at any byte: in the end each has what an unbroken reader has."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from netra_ws import Run
from netra_ws.server import Server

from ..conftest import StartServer
from ..kit import Client, Ended, connect, holdings, settles
from .test_resume import many, texts

#: Seconds for ten thousand events on a slow and busy machine; only what hangs takes so long.
LONG_S = 60.0


async def storyteller(run: Run) -> str:
    """Say deltas of several messages and thoughts between tools, so that every kind of seam occurs."""
    for number in range(25):
        await run.think(f"t{number} ")
        await run.say(f"w{number} ")
        await run.say("and so on ")
        if number % 5 == 0:
            async with run.tool("step", number=number) as call:
                call.results = "r" * (number * 20)
        if number % 13 == 0:
            run.end_message()
        await trio.sleep(0.001)
    return "told"


@attrs.define
class CutStream(trio.abc.Stream):
    """A client's stream that breaks when *left* more bytes have been read."""

    whole: trio.abc.Stream
    left: int
    read: int = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self.left <= self.read:
            raise trio.BrokenResourceError
        data = bytes(await self.whole.receive_some(min(max_bytes or 65536, self.left - self.read)))
        self.read += len(data)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.whole.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.whole.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.whole.aclose()


@attrs.define(repr=False)
class Reader:
    """What a client has heard over all its connections, and its position."""

    server: Server
    epoch: str
    position: int = 0
    heard: list[dict[str, Any]] = attrs.field(factory=list)
    ends: list[int] = attrs.field(factory=list)
    breaks: int = 0

    @property
    def done(self) -> bool:
        return bool(self.heard) and self.heard[-1]["type"] == "agent_completed"

    def take(self, message: dict[str, Any]) -> None:
        assert message["type"] != "stream_reset"
        if "seq" in message:
            assert message["seq"] > self.position, "doubled"
            self.position = message["seq"]
            self.heard.append(message)

    async def read(self, most: int, *, reset: bool) -> None:
        """Read on from the position, at most so many bytes behind the welcome."""
        async with resumed(self.server, self.epoch, self.position) as client:
            stream = client.stream = CutStream(client.stream, max(0, most - len(client._buffer)))
            del client._buffer[most:]
            began = stream.read + len(client._buffer)
            self.ends = []
            try:
                while not self.done:
                    self.take(await client.receive())
                    self.ends.append(stream.read + began - len(client._buffer))
            except Ended:
                self.breaks += 1
            client.stream = stream.whole
            if reset:
                client.reset()


@asynccontextmanager
async def resumed(server: Server, epoch: str, position: int) -> AsyncIterator[Client]:
    async with connect(server, path=f"/ws?resume={epoch}:{position}") as client:
        assert client.welcome["resumed"] is True
        yield client


async def stored(server: Server) -> list[dict[str, Any]]:
    """Return every durable event of the log, as the store has it."""
    (stream,) = server.streams
    rows = await server.store.events(stream.key, stream.epoch, 0, stream.visible, 10**6)
    return [json.loads(row.payload) for row in rows]


def check(heard: list[dict[str, Any]], kept: list[dict[str, Any]]) -> None:
    """Every durable event once and in order, and every text exact; of the rest, only what may stand for deltas."""
    seqs = {event["seq"] for event in kept}
    mine = [event for event in heard if event["seq"] in seqs]
    assert [event["seq"] for event in mine] == sorted(seqs)
    for one, other in zip(mine, kept, strict=True):
        assert one == other
    assert {event["type"] for event in heard if event["seq"] not in seqs} <= {"agent_message", "agent_thinking"}
    assert texts(heard) == texts(kept)


async def tell(running: Server) -> tuple[str, list[dict[str, Any]]]:
    """Have a story told and return the epoch and what an unbroken reader heard."""
    async with connect(running) as client:
        await client.send("chat", content="x", agent="storyteller", thread_id="t")
        unbroken = [e for e in await client.until("agent_completed") if "seq" in e]
        return client.welcome["stream"]["epoch"], unbroken


@pytest.mark.parametrize("ring", [8, 2000])
async def test_a_break_at_every_frame_and_inside_every_frame(server: StartServer, ring: int) -> None:
    """Wherever a replay breaks off, before, behind or within a frame, the next connection goes on without a seam."""
    running = await server(
        agents={"storyteller": storyteller}, history__ring_events=ring, limits__max_connections_per_user=1000
    )
    before = holdings(running)
    epoch, unbroken = await tell(running)
    whole = Reader(running, epoch)
    await whole.read(10**9, reset=False)
    kept = await stored(running)
    check(whole.heard, kept)
    check(unbroken, kept)
    cuts = {end + offset for end in [0, *whole.ends] for offset in (0, 1, 40)}
    for cut in sorted(cuts):
        reader = Reader(running, epoch)
        await reader.read(cut, reset=bool(cut % 2))
        await reader.read(10**9, reset=False)
        check(reader.heard, kept)
    await settles(running, before)


@pytest.mark.parametrize("url", ["memory:", "sqlite"])
@pytest.mark.parametrize("ring", [8, 2000])
async def test_breaks_at_random_bytes_while_it_is_told(
    server: StartServer, tmp_path: Path, url: str, ring: int
) -> None:
    """Readers that break at random bytes while runs publish have, in the end, what an unbroken reader has."""
    running = await server(
        agents={"storyteller": storyteller},
        history__ring_events=ring,
        limits__max_connections_per_user=1000,
        limits__connects_per_minute_per_address=1_000_000,
        store__url=url if url == "memory:" else f"sqlite:///{tmp_path / 'a.db'}",
    )
    before = holdings(running)
    readers: list[Reader] = []

    async def break_again_and_again(reader: Reader, random_: random.Random) -> None:
        while not reader.done:
            await reader.read(random_.choice([1, 2, 100, 400, 1000, 4000]) + random_.randrange(300), reset=True)

    async with connect(running) as unbroken:
        epoch = unbroken.welcome["stream"]["epoch"]
        await unbroken.send("chat", content="x", agent="storyteller", thread_id="t")
        async with trio.open_nursery() as nursery:
            for seed in range(6):
                readers.append(Reader(running, epoch))
                nursery.start_soon(break_again_and_again, readers[-1], random.Random(seed))
        await unbroken.until("agent_completed")
        kept = await stored(running)
    for reader in readers:
        assert reader.breaks > 3
        check(reader.heard, kept)
    await settles(running, before)


async def test_a_long_replay_holds_up_nobody(server: StartServer) -> None:
    """While one client replays ten thousand events others are answered; broken off in between, it leaves nothing."""

    running = await server(agents={"many": many}, history__ring_events=100)
    async with connect(running) as client:
        client.patience_s = LONG_S
        epoch = client.welcome["stream"]["epoch"]
        await client.send("chat", content="x", agent="many")
        await client.until("agent_completed")
    await trio.testing.wait_all_tasks_blocked()
    before = holdings(running)
    answered: list[int] = []
    async with resumed(running, epoch, 0) as replaying, connect(running, "bob") as bob:
        replaying.patience_s = LONG_S
        (context,) = (context for context in running.registry if context.user_id == "ada")
        (connection,) = context.connections.values()

        async def ask() -> None:
            while connection.cursor.seq < context.stream.visible:
                await bob.ask("ping")
                answered.append(connection.cursor.seq)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            heard = [e for e in await replaying.until("replay_completed") if "seq" in e]
    assert [e["seq"] for e in heard] == list(range(1, len(heard) + 1))
    assert len(heard) > 10_000
    assert len(set(answered)) > 3, "answers came in the middle of the replay"
    async with resumed(running, epoch, 0) as replaying:
        await replaying.receive()
        replaying.reset()
    await settles(running, before)
