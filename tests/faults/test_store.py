"""A store that fails or hangs: nothing is told before it is kept, nothing is lost, nobody is cut off."""

from __future__ import annotations

import pytest
import trio

from netra_ws import Run

from ..conftest import StartServer
from ..faulty import FaultyStore, Health
from ..kit import connect


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
