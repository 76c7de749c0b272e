"""Rolling restarts: servers come and go beneath clients that resume, and nothing durable is lost or told twice."""

from __future__ import annotations

import contextlib
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import netra_ws
from netra_ws.client import ClientPolicy
from netra_ws.errors import NetraError
from netra_ws.protocol.events import Event
from tests.kit import CLOSE, Client, Ended, connect, token

from .process import Process, eventually, serving

#: What the log keeps of an event, told apart by its number.
Kept = tuple[int, str]
CLIENTS = 6


@attrs.define
class Hearing:
    """What one client has heard of its user's log.

    Attributes:
        kept: Durable events in the order in which they came.
        runs: Runs that were acknowledged.
    """

    user: str
    first: int = -1
    epoch: str = ""
    last: int = 0
    kept: list[Kept] = attrs.field(factory=list)
    runs: set[str] = attrs.field(factory=set)
    connects: int = 0

    def note(self, seq: int, type_name: str, durable: bool) -> None:
        assert seq > self.last, f"{self.user} heard {seq} behind {self.last}"
        self.last = seq
        if durable:
            self.kept.append((seq, type_name))


def is_durable(event: dict[str, Any]) -> bool:
    return event.get("phase") != "delta" and event["type"] != "tool_progress"


async def product(server: Process, hearing: Hearing, stop: trio.Event) -> None:
    """A session of the product's own client, which reconnects and resumes by itself."""

    async def hear(session: netra_ws.Session) -> None:
        async for heard in session.events():
            message = heard.message
            assert isinstance(message, Event), message
            assert heard.stamp is not None
            hearing.note(heard.stamp.seq, heard.type, message.durable)

    policy = ClientPolicy(backoff_base_s=0.02, backoff_cap_s=0.2)
    async with netra_ws.connect(f"http://127.0.0.1:{server.port}", token(hearing.user), policy=policy) as session:
        assert session.position is not None
        hearing.epoch, hearing.first = session.position.epoch, session.position.seq
        hearing.last = hearing.first
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear, session)
            while not stop.is_set():
                with contextlib.suppress(NetraError):  # it was told so: draining, or the answer was lost on the way
                    hearing.runs.add((await session.start("20", agent="counter")).run_id)
                await trio.sleep(0.1)
            await until_quiet(hearing)
            nursery.cancel_scope.cancel()


async def by_hand(server: Process, hearing: Hearing, stop: trio.Event) -> None:
    """A client of a few lines: it comes back at once, with the number of the last event that it heard."""
    done = False
    while not done:
        path = "/ws" if hearing.first < 0 else f"/ws?resume={hearing.epoch}:{hearing.last}"
        try:
            async with connect(server, hearing.user, path=path) as client:  # type: ignore[arg-type]
                stream = client.welcome["stream"]
                if hearing.first < 0:
                    hearing.epoch, hearing.first = stream["epoch"], stream["seq"]
                    hearing.last = hearing.first
                else:
                    assert client.welcome["resumed"] is True
                assert stream["epoch"] == hearing.epoch
                hearing.connects += 1
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(listen, client, hearing)
                    await talk(client, hearing, stop)
                    await until_quiet(hearing)
                    nursery.cancel_scope.cancel()
                    done = True
        except* (OSError, Ended, trio.BrokenResourceError):
            pass
        except* AssertionError as group:
            if "status=503" not in str(group.exceptions[0]):  # else it was refused by a server that drains
                raise
        await trio.sleep(0.02)


async def talk(client: Client, hearing: Hearing, stop: trio.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        await client.send("chat", content="20", agent="counter", id=f"{hearing.connects}.{number}")
        await trio.sleep(0.2)


async def listen(client: Client, hearing: Hearing) -> None:
    while (frame := await client.receive_data()).opcode != CLOSE:
        message = frame.json()
        if "seq" in message:
            hearing.note(message["seq"], message["type"], is_durable(message))
        elif message["type"] == "ack":
            hearing.runs.add(message["run_id"])
    raise Ended


async def until_quiet(hearing: Hearing) -> None:
    last = -1
    while last != hearing.last:
        last = hearing.last
        await trio.sleep(0.6)


@pytest.mark.heavy
async def test_rolling_restarts(tmp_path: Path) -> None:
    """Across restarts in a row every client hears exactly the log, and every run has exactly one end."""
    rounds = int(os.environ.get("NETRA_WS_TEST_ROLLS", "1"))
    settings = {"TIMING_DRAIN_S": 0.1, "LIMITS_CONNECTS_PER_MINUTE_PER_ADDRESS": 100_000}
    hearings = [Hearing(f"user-{number}") for number in range(CLIENTS)]
    pick = random.Random(7)
    async with serving(tmp_path, settings) as server:
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            for number, hearing in enumerate(hearings):
                nursery.start_soon(product if number % 2 else by_hand, server, hearing, stop)
            for _ in range(rounds):
                before = [len(hearing.kept) for hearing in hearings]
                # Everybody is back and hears something before the next one goes.
                await eventually(
                    lambda before=before: all(
                        len(hearing.kept) > least for hearing, least in zip(hearings, before, strict=True)
                    ),
                    30.0,
                )
                await trio.sleep(pick.uniform(0.0, 0.3))
                server.signal()
                assert await server.ended() == 0, server.log()
                await server.start()
            await trio.sleep(0.5)
            stop.set()
        for hearing in hearings:
            await compare_with_the_log(server, hearing)
        assert sum(len(hearing.runs) for hearing in hearings) > CLIENTS * rounds
        assert "Traceback" not in server.log()


async def compare_with_the_log(server: Process, hearing: Hearing) -> None:
    path = f"/ws?resume={hearing.epoch}:{hearing.first}"
    async with connect(server, hearing.user, path=path) as client:  # type: ignore[arg-type]
        log = [e for e in await client.until("replay_completed") if "seq" in e]
    upto = hearing.kept[-1][0]
    stored = [(e["seq"], e["type"]) for e in log if is_durable(e) and e["seq"] <= upto]
    assert hearing.kept == stored, f"{hearing.user} heard something else than the log has"
    began = Counter(e["run_id"] for e in log if e["type"] == "agent_started")
    ended = Counter(e["run_id"] for e in log if e["type"] == "agent_completed")
    assert began == ended
    assert set(began.values()) == {1}
    assert hearing.runs <= ended.keys(), "a run that was acknowledged is gone"
