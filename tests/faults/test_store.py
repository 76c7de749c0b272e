"""A store that fails or hangs: nothing is told before it is kept, nothing is lost, nobody is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from netra_ws import Run

from ..conftest import StartServer
from ..faulty import FaultyStore, Health
from ..kit import connect, http


@pytest.mark.parametrize("mood", [Health.AWAY, Health.HANGING])
async def test_an_outage_in_the_middle_of_a_run(server: StartServer, mood: Health) -> None:
    """While the store is away no durable event is told; when it is back all come, once and in order."""
    go_on = trio.Event()

    async def agent(run: Run) -> str:
        await run.think("before")
        await go_on.wait()
        for number in range(20):
            async with run.tool("step", number=number) as call:
                call.results = number
        return "done"

    store = FaultyStore()
    running = await server(agents={"agent": agent}, store=store)
    async with connect(running) as client, connect(running, "bob") as bob:
        await client.send("chat", content="x", agent="agent", id="1")
        before = await client.until("agent_thinking")
        store.turn(mood)
        go_on.set()
        await trio.sleep(0.2)
        # Pings of both are answered, and no durable event has come meanwhile.
        assert (await client.ask("ping", id="p"))["type"] == "pong"
        assert (await bob.ask("ping"))["type"] == "pong"
        store.turn(Health.WELL)
        after = await client.until("agent_completed")
        events = [e for e in [*before, *after] if "seq" in e]
        assert [e["seq"] for e in events] == list(range(events[0]["seq"], events[0]["seq"] + len(events)))
        assert [e["parameters"]["number"] for e in events if e["type"] == "tool_executing"] == list(range(20))
        assert events[-1]["status"] == "success"


async def test_a_start_while_the_store_is_away(server: StartServer) -> None:
    """A command that needs to read answers UNAVAILABLE, which may be tried again; the connection goes on."""
    store = FaultyStore()
    running = await server(store=store)
    async with connect(running) as client:
        store.turn(Health.AWAY)
        refused = await client.ask("list_threads")
        assert (refused["code"], refused["retryable"]) == ("UNAVAILABLE", True)
        assert "disk" not in refused["error"]
        store.turn(Health.WELL)
        assert (await client.ask("list_threads", id="again"))["type"] == "thread_list"


async def test_an_agent_waits_when_too_much_is_uncommitted(server: StartServer) -> None:
    """An agent that says more than the backlog holds waits for the store, and goes on where it was."""
    said: list[int] = []

    async def agent(run: Run) -> None:
        for number in range(5000):
            await run.emit("n", number)
            said.append(number)

    store = FaultyStore()
    running = await server(agents={"agent": agent}, store=store, limits__max_events_per_run=10_000)
    async with connect(running) as client:
        await client.ask("chat", content="x", agent="agent")
        store.turn(Health.HANGING)
        with trio.move_on_after(2):
            before = -1
            while before != len(said):
                before = len(said)
                await trio.sleep(0.2)
        assert len(said) < 4000
        store.turn(Health.WELL)
        heard = await client.until("agent_completed")
        numbers = [e["value"] for e in heard if e["type"] == "agent_event"]
        assert numbers == list(range(numbers[0], 5000))


async def test_clients_hear_of_an_outage(server: StartServer) -> None:
    """When commits make no progress for a while every client is told, once; when they do again, answers come."""
    store = FaultyStore()
    running = await server(store=store)
    async with connect(running) as client, connect(running, "bob") as bob:
        await client.ask("create_thread", thread_id="t")
        store.turn(Health.AWAY)
        await client.send("rename_thread", thread_id="t", title="new", id="r")
        for someone in (client, bob):
            warning = (await someone.until("connection_warning"))[-1]
            assert warning["code"] == "UNAVAILABLE"
        store.turn(Health.WELL)
        assert (await client.until("thread_renamed", reply_to="r"))[-1]["title"] == "new"


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_database_that_is_taken_away(server: StartServer, tmp_path: Path, how: str) -> None:
    """A database file that is removed or replaced while it is open is an outage, not a quiet loss."""
    path = tmp_path / "a.db"
    running = await server(store__url=f"sqlite:///{path}")
    async with connect(running) as client:
        assert (await client.ask("chat", content="x", agent="echo", thread_id="t"))["type"] == "ack"
        path.rename(tmp_path / "away.db")
        if how == "replaced":
            path.write_bytes(b"")
        assert (await http(running, "/ready")).status == 503
        assert (await client.ask("list_threads"))["code"] == "UNAVAILABLE"
        path.unlink(missing_ok=True)
        (tmp_path / "away.db").rename(path)
        assert (await client.ask("list_threads", id="again"))["type"] == "thread_list"
        with trio.fail_after(10):  # the recorder tries again within two seconds
            while (await http(running, "/ready")).status != 200:
                await trio.sleep(0.05)
