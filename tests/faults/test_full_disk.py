"""A disk without room, under a whole server: runs end, numbers are right, nothing is lost when there is room again."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from netra_ws import Run
from netra_ws.protocol.codec import read_server
from netra_ws.testing import check_run

from ..conftest import StartServer
from ..kit import connect, http

LONG = "a thought that needs room " * 400


@contextmanager
def no_room(folder: Path) -> Iterator[None]:
    """Let no file of this process grow any more: writes beyond the size they have fail with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = max(path.stat().st_size for path in folder.iterdir())
    # Python ignores SIGXFSZ, so that a write fails instead of ending the process.
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(size, 4096), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("end", ["by itself", "stopped", "timeout"])
async def test_a_run_on_a_full_disk(
    server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    """A run ends in its time while the disk is full; with room again all of it comes, once, in order, and is kept."""
    caplog.set_level(logging.INFO, "netra_ws")
    full, thought, ended = trio.Event(), trio.Event(), trio.Event()

    async def agent(run: Run) -> str:
        try:
            await full.wait()
            for number in range(20):
                async with run.tool("step", number=number, text=LONG):
                    pass
            thought.set()
            if end != "by itself":
                await trio.sleep_forever()
            return "done"
        finally:
            ended.set()

    timeout_s = 1.0 if end == "timeout" else 60.0
    running = await server(agents={"agent": agent}, store__url=f"sqlite:///{tmp_path / 'a.db'}")
    async with connect(running) as client:
        await client.send("chat", content="x", agent="agent", id="1", thread_id="t", timeout_s=timeout_s)
        heard = await client.until("agent_started")
        run_id = heard[-1]["run_id"]
        with no_room(tmp_path):
            full.set()
            with trio.fail_after(5):
                await thought.wait()
                while (await http(running, "/ready")).status == 200:
                    await trio.sleep(0.02)
            if end == "stopped":
                await client.send("stop_agent", run_id=run_id, id="stop")
            with trio.fail_after(5):
                await ended.wait()
            assert (await client.ask("ping", id="p"))["type"] == "pong"
            assert (await http(running, "/health")).json()["checks"]["store"]["status"] == "failing"
            assert "database or disk is full" in caplog.text or "disk I/O error" in caplog.text
        if end == "stopped":
            heard += await client.until("ack", reply_to="stop")
        else:
            heard += await client.until("agent_completed")
        events = [each for each in heard if "seq" in each]
        assert [each["seq"] for each in events] == list(range(1, len(events) + 1))
        mine = [each for each in events if each.get("run_id") == run_id]
        last = check_run([read_server(json.dumps(each)) for each in mine])
        assert last.status == {"by itself": "success", "stopped": "cancelled", "timeout": "timeout"}[end]
        epoch = client.welcome["stream"]["epoch"]
    failures = [r.getMessage() for r in caplog.records if r.getMessage().startswith("store failed")]
    assert len(failures) == 1
    assert "\n" not in failures[0]
    assert caplog.text.count("store works again") == 1
    # What was heard is what was kept, also for the next server.
    await running.drain(0)
    await running.store.close()
    again = await server(store__url=f"sqlite:///{tmp_path / 'a.db'}")
    async with connect(again, path=f"/ws?resume={epoch}:0") as client:
        kept = [each for each in await client.until("replay_completed") if "seq" in each]
        assert kept == [each for each in events if each.get("phase") != "delta"]


async def test_a_start_on_a_full_disk(server: StartServer, tmp_path: Path) -> None:
    """A message that cannot be stored is not acknowledged and no agent's word is heard before; then all comes."""
    running = await server(store__url=f"sqlite:///{tmp_path / 'a.db'}")
    async with connect(running) as client:
        await client.ask("create_thread", thread_id="t", id="0")
        with no_room(tmp_path):
            await client.send("chat", content=LONG, agent="echo", thread_id="t", id="1")
            await client.send("ping", id="p")
            assert (await client.receive())["reply_to"] == "p"
            with trio.fail_after(5):
                while (await http(running, "/ready")).status == 200:
                    await trio.sleep(0.02)
        heard = await client.until("agent_completed")
        types = [each["type"] for each in heard]
        assert types[:2] == ["user_message", "ack"]
        assert heard[-1]["status"] == "success"
        history = await client.ask("get_thread_history", thread_id="t", id="2")
        assert len(history["messages"]) == 2


async def test_a_server_that_ends_on_a_full_disk(
    server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drain on a full disk ends; the next start, with room, finds every run that was told of and ends it."""
    monkeypatch.setattr("netra_ws.server.FLUSH_S", 0.3)
    first, more = trio.Event(), trio.Event()

    async def agent(run: Run) -> None:
        await run.think("in time")
        first.set()
        await more.wait()
        async with run.tool("late", text=LONG):
            await trio.sleep_forever()

    url = f"sqlite:///{tmp_path / 'a.db'}"
    running = await server(agents={"agent": agent}, store__url=url)
    async with connect(running) as client:
        await client.send("chat", content="x", agent="agent", thread_id="t", id="1")
        heard = await client.until("agent_thinking")
        epoch = client.welcome["stream"]["epoch"]
        with no_room(tmp_path):
            more.set()
            for _ in range(30):
                await client.send("chat", content=LONG, agent="echo", thread_id="u")
            with trio.fail_after(5):
                while (await http(running, "/ready")).status == 200:
                    await trio.sleep(0.02)
            client.reset()
            with trio.fail_after(60):
                await running.drain(0)
            await running.store.close()
    again = await server(store__url=url)
    async with connect(again, path=f"/ws?resume={epoch}:0") as client:
        assert client.welcome["active_runs"] == []
        kept = [each for each in await client.until("replay_completed") if "seq" in each]
        durable = [each for each in heard if "seq" in each]
        assert kept[: len(durable)] == durable
        runs = {each["run_id"] for each in kept if each["type"] == "agent_started"}
        for run_id in runs:
            mine = [each for each in kept if each.get("run_id") == run_id]
            check_run([read_server(json.dumps(each)) for each in mine])
        assert durable[-1]["run_id"] in runs
