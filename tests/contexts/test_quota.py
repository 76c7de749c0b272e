"""What is kept of one user is bounded: the oldest goes first, and nothing that is going on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import trio

from netra_ws import Run
from netra_ws.contexts import quota as quota_module
from netra_ws.contexts.quota import Quota
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


# Jobs.


async def speak(server: Server, job_id: str, *, kilobytes: int, owner: str = "ada") -> None:
    """Say so much into a job, and wait until it is kept."""
    for _ in range(kilobytes // 4):
        await server.job(owner, job_id).emit("n", "x" * 4000)
    await server.recorder.flush()


async def size_of(server: Server, job_id: str, owner: str = "ada") -> int:
    """How many bytes are kept of a job."""
    row = await server.store.job(job_id)
    assert row is not None
    return dict(await server.store.largest_jobs(owner, 10_000)).get(row.key, 0)


@pytest.mark.parametrize("url", ["memory:", "sqlite"])
async def test_the_largest_job_is_cut(server: StartServer, tmp_path: Path, url: str) -> None:
    """What a user's jobs hold counts for the user; the largest is cut, and a member behind the cut is told of it."""
    running = await server(
        limits__max_stored_bytes_per_user=QUOTA,
        store__url=url if url == "memory:" else f"sqlite:///{tmp_path / 'a.db'}",
    )
    await speak(running, "small", kilobytes=40)
    await speak(running, "foreign", kilobytes=300, owner="bob")
    await running.job("ada", "large").open()
    position = await running.job("ada", "large").position()
    async with connect(running, "cyd", permissions=("job:large",)) as member:
        await member.ask("connect_job", job_id="large")
        await speak(running, "large", kilobytes=800)
        await comes_down(running)
        assert 0 < await size_of(running, "large") < QUOTA
        assert await size_of(running, "small") > 40_000
        assert await size_of(running, "foreign", "bob") > 300_000
        heard = [e["seq"] for e in await member.until("agent_event", seq=200) if e["type"] == "agent_event"]
        assert heard == list(range(1, 201)), "who is there hears all of it"
    async with connect(running, "cyd", permissions=("job:large",)) as member:
        answer = await member.ask("connect_job", job_id="large", resume=f"{position.epoch}:1")
        assert answer["type"] == "job_connected"
        reset = (await member.until("stream_reset"))[-1]
        assert (reset["job_id"], reset["reason"]) == ("large", "trimmed")
        assert (reset["epoch"], reset["seq"]) == (position.epoch, 200)
        await member.ask("resume", job_id="large", epoch=position.epoch, seq=195)
        heard = [e["seq"] for e in await member.until("replay_completed") if "event_id" in e]
        assert heard == [196, 197, 198, 199, 200]


async def test_a_cut_overtakes_a_reader_of_a_job(server: StartServer) -> None:
    """A member who is still reading what is cut is told so, once, and goes on with what comes then."""
    running = await server(limits__max_stored_bytes_per_user=QUOTA, history__ring_events=5)
    async with connect(running, "cyd", permissions=("job:large",), receive_buffer=4096) as member:
        job = running.job("ada", "large")
        await job.open()
        await member.ask("connect_job", job_id="large")
        for _ in range(4):  # beyond what the sockets hold
            for _ in range(20):
                await job.emit("n", "x" * 200_000)
            await running.recorder.flush()
        await comes_down(running)
        events: list[int] = []
        heard = await member.until("stream_reset")
        events = [e["seq"] for e in heard if "event_id" in e]
        assert events == list(range(1, len(events) + 1))
        reset = heard[-1]
        assert (reset["job_id"], reset["reason"]) == ("large", "trimmed")
        assert reset["seq"] == 80 > len(events)
        await job.emit("n", "more")
        assert (await member.until("agent_event"))[-1]["seq"] == 81


async def test_many_jobs_are_cut_before_any_thread(server: StartServer) -> None:
    """However many jobs hold too much, their logs are cut, all of them where it must be, before a thread goes."""
    running = await server(agents={"essayist": essayist}, limits__max_stored_bytes_per_user=QUOTA)
    async with connect(running) as client:
        await client.send("chat", content="x", agent="essayist", thread_id="t0")
        await client.until("agent_completed")
        with trio.fail_after(30):
            for number in range(90):
                await speak(running, f"j{number}", kilobytes=8)
        await comes_down(running)
        assert [each["thread_id"] for each in (await client.ask("list_threads"))["threads"]] == ["t0"]


async def test_all_jobs_are_looked_at(server: StartServer) -> None:
    """Jobs are cut until there is room, also where more than one page of them has to go; then threads, if need be."""
    running = await server(limits__max_stored_bytes_per_user=10**9)
    for number in range(quota_module.PAGE * 2 + 20):
        await speak(running, f"j{number}", kilobytes=4)
    quota = Quota(10**9, running.registry, running.store)
    before = (await running.store.usage("ada", "user:ada")).jobs
    assert await quota._shorten_jobs("ada", before - 10_000) <= 0
    assert 0 < (await running.store.usage("ada", "user:ada")).jobs <= 10_000
    assert await quota._shorten_jobs("ada", 10**6) > 0  # an end, also where nothing more can go
    assert (await running.store.usage("ada", "user:ada")).jobs == 0
