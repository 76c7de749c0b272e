"""A system clock that goes back or leaps: runs end, durations are durations, and the last used stands first."""

from __future__ import annotations

import json
import sqlite3
import time
from typing import Any

import pytest
import trio
import trio.testing

from netra_ws import Run
from netra_ws.protocol.codec import read_server
from netra_ws.testing import check_run

from ..conftest import StartServer
from ..kit import connect, token


class Clock:
    """The system's clock, and by how much somebody has set it."""

    def __init__(self) -> None:
        self.set_by = 0.0

    def __call__(self) -> float:
        return time.time() + self.set_by


@pytest.fixture
def clock() -> Clock:
    return Clock()


HOUR = 3600.0


@pytest.mark.parametrize("leap", [-HOUR, -400 * 24 * HOUR, 400 * 24 * HOUR])
async def test_a_run_while_the_clock_is_set(server: StartServer, clock: Clock, leap: float) -> None:
    """A run's order, clocks and durations are not the system clock's: it ends in its time, in the grammar."""
    entered, go_on = trio.Event(), trio.Event()

    async def agent(run: Run) -> str:
        async with run.tool("long"):
            entered.set()
            await go_on.wait()
        return "done"

    async def silent(run: Run) -> None:
        await trio.sleep_forever()

    running = await server(clock=clock, agents={"agent": agent, "silent": silent})
    async with connect(running, bearer=token(expires_s=500 * 24 * HOUR)) as client:
        await client.send("start_agent", user_request="x", agent="silent", idle_timeout_s=0.3, thread_id="u", id="0")
        await client.send("chat", content="x", agent="agent", thread_id="t", id="1")
        with trio.fail_after(5):
            await entered.wait()
        clock.set_by = leap
        go_on.set()
        heard: list[dict[str, Any]] = []
        while sum(each["type"] == "agent_completed" for each in heard) < 2:
            heard.append(await client.receive())
        events = [each for each in heard if "seq" in each]
        assert [each["seq"] for each in events] == list(range(1, len(events) + 1))
        ends = {}
        for run_id in {each["run_id"] for each in events if each["type"] == "agent_started"}:
            last = check_run([read_server(json.dumps(each)) for each in events if each.get("run_id") == run_id])
            ends[last.agent_name] = last.status
            assert 0 <= last.duration_ms < 5000
        assert ends == {"agent": "success", "silent": "timeout"}
        assert all(0 <= each["duration_ms"] < 5000 for each in events if each["type"] == "tool_completed")
        # Whoever comes back finds their place.
        epoch, middle = client.welcome["stream"]["epoch"], events[3]["seq"]
        async with connect(
            running, path=f"/ws?resume={epoch}:{middle}", bearer=token(expires_s=500 * 24 * HOUR, iat=0)
        ) as again:
            assert again.welcome["resumed"] is True
            assert [each for each in await again.until("replay_completed") if "seq" in each] == events[4:]


async def test_the_last_used_thread_stands_first(server: StartServer, clock: Clock) -> None:
    """Threads stand in the order of their use, and times do not go back, when the clock is set back by an hour."""
    running = await server(clock=clock)
    async with connect(running) as client:
        stamps = []
        for number, name in enumerate(("a", "b", "c", "a", "b")):
            if number == 3:
                clock.set_by = -HOUR
            await client.send("chat", content="x", agent="echo", thread_id=name, id=f"{number}")
            stamps += [each["timestamp"] for each in await client.until("agent_completed") if "seq" in each]
            first = (await client.ask("list_threads", id=f"list {number}"))["threads"][0]
            assert first["thread_id"] == name
        assert stamps == sorted(stamps)


async def test_runs_lost_under_another_clock(server: StartServer, clock: Clock, tmp_path: Any) -> None:
    """A run that was lost with its server has no negative duration when the next one's clock is an hour behind."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    running = await server(clock=clock, store__url=url)
    async with connect(running) as client:
        await client.send("chat", content="x", agent="echo", thread_id="t", id="1")
        heard = await client.until("agent_completed")
        epoch, started = client.welcome["stream"]["epoch"], next(e for e in heard if e["type"] == "agent_started")
    await running.drain(0)
    await running.store.close()
    with sqlite3.connect(tmp_path / "a.db") as connection:
        # As if it had been killed behind agent_started and an open tool.
        connection.execute("UPDATE run SET state = 'running'")
        connection.execute("DELETE FROM event WHERE type = 'agent_completed' OR type = 'tool_completed'")
    connection.close()
    clock.set_by = -HOUR
    again = await server(clock=clock, store__url=url)
    async with connect(again, path=f"/ws?resume={epoch}:{started['seq'] - 1}", iat=0) as client:
        kept = [each for each in await client.until("replay_completed") if "seq" in each]
        last = check_run([read_server(json.dumps(each)) for each in kept])
        assert (last.status, last.duration_ms) == ("lost", 0)
        assert all(each["duration_ms"] == 0 for each in kept if each["type"] == "tool_completed")


async def test_tokens_follow_the_clock_as_it_is_now(server: StartServer, clock: Clock) -> None:
    """A token expires by the system's clock of the moment: earlier when it leaps, later when it is set back."""
    running = await server(clock=clock, auth__expiry_grace_s=0, auth__leeway_s=0, timing__heartbeat_interval_s=1)
    async with connect(running, expires_s=600) as client:
        assert (await client.ask("list_threads"))["type"] == "thread_list"
        clock.set_by = -HOUR
        assert (await client.ask("list_threads", id="back"))["type"] == "thread_list"
        clock.set_by = HOUR
        assert (await client.ask("list_threads", id="leap"))["code"] == "AUTH_FAILED"
        assert (await client.receive_close()).code == 4003
