"""What is kept of one user is bounded: the oldest goes first, and nothing that is going on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import trio

from netra_ws import Run
from netra_ws.server import Server

from ..conftest import StartServer
from ..kit import connect, http

QUOTA = 400_000


async def essayist(run: Run) -> str:
    """Answer with twenty kilobytes."""
    await run.say(run.text[:1] * 20_000)
    return ""


async def kept(server: Server, user: str = "ada") -> int:
    return (await server.store.usage(user, f"user:{user}")).total


async def comes_down(server: Server) -> None:
    with trio.fail_after(10):
        while await kept(server) > QUOTA * 9 // 8:  # measured after each sixteenth that was written
            await trio.sleep(0.02)


@pytest.mark.parametrize("url", ["memory:", "sqlite"])
async def test_the_oldest_threads_go_first(server: StartServer, tmp_path: Path, url: str) -> None:
    """A user who has too much loses the threads used longest ago, is told of each, and nobody else loses anything."""
    running = await server(
        agents={"essayist": essayist},
        limits__max_stored_bytes_per_user=QUOTA,
        store__url=url if url == "memory:" else f"sqlite:///{tmp_path / 'a.db'}",
    )
    async with connect(running, "bob") as bob, connect(running) as client:
        await bob.ask("chat", content="bob", agent="essayist", thread_id="of-bob")
        await bob.until("agent_completed")
        gone: list[str] = []
        for number in range(30):
            await client.send("chat", content=f"{number} question", agent="essayist", thread_id=f"t{number}")
            gone += [e["thread_id"] for e in await client.until("agent_completed") if e["type"] == "thread_deleted"]
        await comes_down(running)
        left: list[str] = []
        with trio.fail_after(10):
            while len(gone) + len(left) != 30:  # until what was told and what is there agree
                await client.send("list_threads", limit=100)
                *events, listed = await client.until("thread_list")
                gone += [e["thread_id"] for e in events if e["type"] == "thread_deleted"]
                left = [thread["thread_id"] for thread in listed["threads"]]
        assert len(left) > 5
        assert gone == [f"t{number}" for number in range(len(gone))]
        assert left == [f"t{number}" for number in reversed(range(len(gone), 30))]
        history = await client.ask("get_thread_history", thread_id="t29", id="h")
        assert [message["content"][:2] for message in history["messages"]] == ["29", "22"]
        assert (await client.ask("get_thread_history", thread_id="t0", id="h0"))["code"] == "NOT_FOUND"
        assert len((await bob.ask("list_threads"))["threads"]) == 1
        metrics = (await http(running, "/metrics")).body.decode()
        (counted,) = re.findall(r"^netra_ws_quota_threads_removed_total (\S+)$", metrics, re.MULTILINE)
        assert float(counted) >= len(gone) > 5


async def test_a_thread_that_something_goes_on_in_stays(server: StartServer) -> None:
    """A thread with a running or waiting run is not removed, however old it is; its events stay, too."""
    go_on = trio.Event()

    async def waits(run: Run) -> str:
        await run.say("working on it")
        await go_on.wait()
        return "done"

    running = await server(agents={"essayist": essayist, "waits": waits}, limits__max_stored_bytes_per_user=QUOTA)
    async with connect(running) as client:
        ack = await client.ask("chat", content="x", agent="waits", thread_id="oldest")
        for number in range(30):
            await client.send("chat", content=f"{number}", agent="essayist", thread_id=f"t{number}")
            await client.until("agent_completed")
        with trio.fail_after(10):
            while (await client.ask("get_thread_history", thread_id="t0"))["type"] != "error":
                await trio.sleep(0.02)
        listed = await client.ask("list_threads", limit=100)
        assert "oldest" in [thread["thread_id"] for thread in listed["threads"]]
        go_on.set()
        ended = (await client.until("agent_completed"))[-1]
        assert (ended["run_id"], ended["status"]) == (ack["run_id"], "success")
        stream = next(iter(running.streams))
        told = [row.type for row in await running.store.run_events(stream.key, stream.epoch, ack["run_id"])]
        assert told[0] == "user_message"
        assert told[-1] == "agent_completed"


async def test_a_long_log_goes_before_any_thread(server: StartServer) -> None:
    """A user whose log is long, not the threads, keeps the threads; an old position is answered with stream_reset."""

    async def chatty(run: Run) -> None:
        for number in range(200):
            await run.emit("n", "x" * 1000 + str(number))

    running = await server(agents={"chatty": chatty}, limits__max_stored_bytes_per_user=QUOTA, history__ring_events=10)
    heard: list[dict[str, Any]] = []
    async with connect(running) as client:
        epoch = client.welcome["stream"]["epoch"]
        for number in range(6):
            await client.send("chat", content="x", agent="chatty", thread_id=f"t{number}")
            heard += await client.until("agent_completed")
        await comes_down(running)
        assert len((await client.ask("list_threads"))["threads"]) == 6
    async with connect(running, path=f"/ws?resume={epoch}:1") as client:
        assert (await client.until("stream_reset"))[-1]["reason"] == "trimmed"
    position = heard[-20]["seq"]
    async with connect(running, path=f"/ws?resume={epoch}:{position}") as client:
        assert [e for e in await client.until("replay_completed") if "seq" in e] == heard[-19:]


async def test_a_user_who_has_gone_is_measured_all_the_same(server: StartServer) -> None:
    """What a user wrote last is counted, also when nobody of them is connected any more."""
    running = await server(agents={"essayist": essayist}, limits__max_stored_bytes_per_user=QUOTA // 10)
    async with connect(running) as client:
        for number in range(5):
            await client.send("chat", content=f"{number}", agent="essayist", thread_id=f"t{number}")
            await client.until("agent_completed")
        await client.send("disconnect")
    with trio.fail_after(10):
        while await kept(running) > QUOTA // 9 or running.registry.statistics().users:
            await trio.sleep(0.02)
