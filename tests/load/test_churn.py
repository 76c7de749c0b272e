"""Clients that come, do every kind of thing, and go: afterwards the server is what it was."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from netra_ws.history.stores.sqlite import READERS
from netra_ws.wire.heartbeat import ENDED
from tests.kit import CLOSE, Client, Ended, connect, exchange, frame, http, operator, raw, request, token, upgrade

from .process import AGENTS, Process, eventually, serving

USERS = 100
#: Clients at the same time.
CROWD = 24
#: Operations before the first look: as many as fill what is meant to be kept (rings, remembered users, caches).
WARM_UP = 1.0 / 10
#: What memory may differ by: in a long campaign less than 100 bytes per operation, in a short one, whose warm-up
#: does not even touch every page once, what an allocator takes.
LEAK_BYTES = 100
SHORT, SHORT_BYTES = 30_000, 24 * 2**20
#: Descriptors of the store: a writer, and readers that are opened when they are needed first, each with the file and
#: its log; the lock, and the memory that they share.
MOST_OF_STORE = 2 * (1 + READERS) + 2

#: Answers are remembered for five minutes, which is longer than the campaign: here for a second.
FORGETFUL = """
import netra_ws.contexts.memory

netra_ws.contexts.memory.KEEP_S = 1.0
"""

#: Small, so that what is meant to be kept is full early; and no budget in the way.
SETTINGS = {
    "LIMITS_CONNECTS_PER_MINUTE_PER_ADDRESS": 10_000_000,
    "LIMITS_FAILED_CONNECTS_PER_MINUTE_PER_ADDRESS": 10_000_000,
    "LIMITS_MESSAGES_PER_MINUTE": 1_000_000,
    "LIMITS_MAX_CONNECTIONS_PER_USER": 100,
    "LIMITS_MAX_THREADS_PER_USER": 1_000_000,
    "HISTORY_RING_EVENTS": 50,
    "HISTORY_RING_BYTES": 65536,
    "TIMING_RESUME_WINDOW_S": 0.2,
    "TIMING_HANDSHAKE_S": 10.0,
    "ORIGINS_ALLOWED": "https://app.example.org",
    "LOG_LEVEL": "error",
}


#: What is not kept for anybody who has gone.
GONE = (
    *("tasks", "seats", "users", "connections_of_user", "dirty"),
    *("parsers", "run_threads", "threads_of_user_runs", "recorder", "uncommitted", "waiting_answers"),
)


@attrs.define
class Visitor:
    """One client after the other, each doing something that the dice say."""

    server: Process
    dice: random.Random
    done: Counter[str] = attrs.field(factory=Counter)

    async def visit(self) -> None:
        kinds = {
            self.run: 20,
            self.cancel: 20,
            self.disconnect_in_a_run: 10,
            self.come_back: 10,
            self.ask_for_what_is_not_there: 10,
            self.refused_token: 10,
            self.bad_origin: 8,
            self.page: 4,
            self.half_a_head: 4,
            self.garbage: 4,
        }
        (kind,) = self.dice.choices(list(kinds), weights=list(kinds.values()))
        await kind()
        self.done[kind.__name__] += 1

    def seat(self, **more: Any) -> Any:
        return connect(self.server, f"user-{self.dice.randrange(USERS)}", **more)  # type: ignore[arg-type]

    async def run(self) -> None:
        async with self.seat() as client:
            ack = await client.ask("chat", content="2", agent="counter", id=self.fresh())
            await client.until("agent_completed", run_id=ack["run_id"], status="success")
            await client.finish()

    async def cancel(self) -> None:
        async with self.seat() as client:
            ack = await client.ask("chat", content="x", agent="forever", id=self.fresh())
            if "run_id" in ack:  # this user may have too many
                await client.ask("stop_agent", run_id=ack["run_id"], id=self.fresh())
            await client.send("disconnect")
            await client.receive_close()

    async def disconnect_in_a_run(self) -> None:
        async with self.seat() as client:
            await client.ask("chat", content="50", agent="counter", id=self.fresh())
            if self.dice.random() < 0.5:
                client.reset()

    async def come_back(self) -> None:
        user = f"user-{self.dice.randrange(USERS)}"
        async with connect(self.server, user) as client:  # type: ignore[arg-type]
            stream = client.welcome["stream"]
        seq = max(0, stream["seq"] - self.dice.randrange(200))
        path = f"/ws?resume={stream['epoch']}:{seq}"
        async with connect(self.server, user, path=path) as client:  # type: ignore[arg-type]
            await client.until("replay_completed")

    async def ask_for_what_is_not_there(self) -> None:
        async with self.seat() as client:
            for type_name, fields in (
                ("get_thread_history", {"thread_id": "nobody"}),
                ("stop_agent", {"run_id": self.fresh()}),
                ("delete_thread", {"thread_id": self.fresh()}),
                ("resume", {"epoch": self.fresh(), "seq": 3}),
                ("chat", {"content": "x", "agent": self.fresh()}),
                (self.fresh(), {}),
            ):
                await client.send(type_name, id=self.fresh(), **fields)
            assert (await client.ask("ping"))["type"] == "pong"
            await client.finish(self.dice.randrange(3000, 5000))

    async def refused_token(self) -> None:
        answer = await exchange(self.server, upgrade(bearer=token(self.fresh(), expires_s=-100)))  # type: ignore[arg-type]
        assert answer.status == 401

    async def bad_origin(self) -> None:
        head = upgrade(bearer=token("ada"), headers=[("origin", f"https://{self.fresh()}.example")])
        assert (await exchange(self.server, head)).status == 403  # type: ignore[arg-type]

    async def page(self) -> None:
        path = self.dice.choice(["/health", "/ready", "/metrics", "/ws/stats", "/ws/bounds", f"/{self.fresh()}"])
        assert (await http(self.server, path)).status in (200, 404)  # type: ignore[arg-type]

    async def half_a_head(self) -> None:
        data = upgrade(bearer=token("ada"))
        async with raw(self.server) as client:  # type: ignore[arg-type]
            await client.send_bytes(data[: self.dice.randrange(1, len(data))])
            if self.dice.random() < 0.5:
                client.reset()

    async def garbage(self) -> None:
        async with self.seat() as client:
            await client.send_bytes(self.dice.choice([self.dice.randbytes(100), frame(1, "{"), frame(2, b"x")]))
            await client.send_bytes(request("/health"))
            await until_closed(client)

    def fresh(self) -> str:
        return f"x{self.dice.getrandbits(64):x}"


async def until_closed(client: Client) -> None:
    """Read up to the Close frame; what looks like the beginning of a frame is waited for, so not for long."""
    try:
        while (await client.receive_frame(0.2)).opcode != CLOSE:
            pass
    except (Ended, trio.TooSlowError):
        pass


async def churn(server: Process, count: int, seed: int) -> Counter[str]:
    """Do so many operations, a crowd of them at a time."""
    done: Counter[str] = Counter()
    left = iter(range(count))

    async def visitor(number: int) -> None:
        mine = Visitor(server, random.Random(seed * 1000 + number), done)
        for _ in left:
            await mine.visit()

    async with trio.open_nursery() as nursery:
        for number in range(CROWD):
            nursery.start_soon(visitor, number)
    return done


async def at_rest(server: Process) -> dict[str, int]:
    """Wait until nobody is there any more; return how full everything is, and how many tasks there are."""
    with trio.fail_after(20):
        while True:
            stats = (await http(server, "/ws/stats")).json()  # type: ignore[arg-type]
            if stats["users"] == stats["connections"] == stats["runs"] == stats["handshakes"] - 1 == 0:
                break
            await trio.sleep(0.1)
    table = (await http(server, "/ws/bounds", bearer=operator())).json()  # type: ignore[arg-type]
    sizes = {row["what"]: row["size"] for row in table["containers"] if "size" in row}
    return {**sizes, "tasks": stats["tasks"]}


@pytest.mark.heavy
async def test_after_any_churn_the_server_is_what_it_was(tmp_path: Path) -> None:
    """After tens of thousands of visits of every kind, tasks, maps, descriptors and memory are what they were.

    The warm-up has the same shape and fills what is meant to be kept. What remains differs by an allocator's
    pages, and by less than 100 bytes per operation.
    """
    count = int(os.environ.get("NETRA_WS_TEST_CHURN", "200"))
    async with serving(tmp_path, SETTINGS, agents=AGENTS + FORGETFUL) as server:
        await churn(server, max(100, round(count * WARM_UP)), 1)
        before, rss_before = await at_rest(server), server.rss_bytes()
        _, descriptors = server.open_descriptors()
        began = time.perf_counter()
        done = await churn(server, count, 2)
        took_s = time.perf_counter() - began
        after, rss_after = await at_rest(server), server.rss_bytes()
        print(f"{count} operations in {took_s:.1f} s: {dict(done)}")
        print(f"tasks {before['tasks']} -> {after['tasks']}, memory {rss_before:,} -> {rss_after:,} bytes")
        print(f"before {before}\nafter  {after}")
        for what in GONE:
            assert after[what] <= before[what], what
        # These keep something on purpose: of so many users, or for so many minutes, and never more than their bound.
        assert after["remembered_users"] <= USERS + 1
        assert after["streams"] <= USERS + 1
        assert after["heartbeats"] <= 2 * ENDED, "ended ones go together, when they are half of it"
        assert after["addresses"] == before["addresses"] == 1
        await eventually(lambda: server.open_descriptors()[1] <= descriptors)
        assert server.open_descriptors()[0] <= MOST_OF_STORE
        assert rss_after - rss_before < (count * LEAK_BYTES if count >= SHORT else SHORT_BYTES)
        assert "Traceback" not in server.log()
