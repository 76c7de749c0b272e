"""What a user or an agent could make grow without end does not: each bound that has no test beside its module."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from netra_ws import Run
from netra_ws.access.limits import Budgets
from netra_ws.agents.processes import MAX_PROCESSES, Processes
from netra_ws.contexts import memory as memory_module
from netra_ws.contexts.connection import HELD_HIGH
from netra_ws.contexts.dispatch import MAX_WAITING
from netra_ws.contexts.memory import KEEP_S, Memories
from netra_ws.contexts.registry import USERS_PER_SEAT
from netra_ws.errors import AgentError
from netra_ws.protocol.replies import Ack
from netra_ws.wire.heartbeat import ENDED
from tests.conftest import StartServer
from tests.contexts.test_connection import take_seat
from tests.history.kit import said
from tests.kit import connect, exchange, holdings, settles, token, upgrade


@asynccontextmanager
async def leaving(event: trio.Event) -> AsyncIterator[None]:
    """Set *event* when the block is left, so that a failing test does not wait for it for ever."""
    try:
        yield
    finally:
        event.set()


async def test_repeats_of_a_command_that_hangs(server: StartServer) -> None:
    """A command repeated while it is carried out waits for one answer; so many wait, the others hear BUSY."""
    let_go = trio.Event()

    async def stubborn(run: Run) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await let_go.wait()

    running = await server(agents={"stubborn": stubborn}, timing__finalise_s=60.0)
    async with connect(running) as client, leaving(let_go):
        run_id = (await client.ask("chat", content="x", agent="stubborn", id="start"))["run_id"]
        before = holdings(running).tasks
        count = MAX_WAITING + 100
        for _ in range(count):
            await client.send("stop_agent", run_id=run_id, id="stop")
        refused = [await client.until("error", code="BUSY", reply_to="stop") for _ in range(count - MAX_WAITING)]
        assert all(answer[-1]["retryable"] for answer in refused)
        assert holdings(running).tasks <= before + MAX_WAITING + 5
        let_go.set()
        for _ in range(MAX_WAITING):
            await client.until("ack", reply_to="stop", status="cancelled")
        assert (await client.ask("ping"))["type"] == "pong"
    (context,) = running.registry
    assert context.waiting == 0


async def test_an_agent_that_reads_nothing(server: StartServer) -> None:
    """Texts steered into an agent that does not read them are refused beyond the length of a queue."""

    async def deaf(run: Run) -> None:
        await trio.sleep_forever()

    running = await server(agents={"deaf": deaf}, limits__max_queued_per_thread=3)
    async with connect(running) as client:
        await client.ask("chat", content="x", agent="deaf", thread_id="t")
        answers = [
            await client.ask("chat", content="go on", agent="deaf", thread_id="t", on_busy="steer") for _ in range(4)
        ]
        assert [answer.get("disposition") for answer in answers] == ["steered"] * 3 + [None]
        assert answers[-1]["code"] == "BUSY"


async def test_answers_that_wait_for_their_event() -> None:
    """A client whose answers wait behind events that it does not read is not read itself."""
    seat = await take_seat()
    seat.stream.append(said())
    for _ in range(HELD_HIGH + 1):
        seat.connection.tell(Ack(message_id="m"), barrier=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(seat.connection.wait_for_room)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        await seat.sink.commit()
        assert len(await seat.read()) == HELD_HIGH + 2
    await seat.connection.wait_for_room()


async def test_connections_that_come_and_go(server: StartServer) -> None:
    """Connections that have ended are forgotten long before the heartbeat would look at them."""
    running = await server()
    before = holdings(running)
    async with connect(running, "stays") as stays:
        for number in range(3 * ENDED):
            async with connect(running, f"u{number % 7}") as client:
                client.reset()
        with trio.fail_after(5):
            while running.registry.seats > 1:
                await trio.sleep(0.01)
        assert len(running.wiring.heartbeat) <= 2 * ENDED
        await stays.ask("ping")
    await settles(running, before)


async def test_answers_of_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remembered answers have a bound over all users, and go after their time whether their user comes or not."""
    monkeypatch.setattr(memory_module, "MAX_ALL_ANSWERS", 10)
    memories = Memories(60)
    for number in range(30):
        memory = memories.of(f"u{number}")
        memory.settle("c", memory.begin("c", b""), Ack(), 0, 0.0, keep=True)
    assert len(memories.shelf) == 10
    assert [bool(memories.of(f"u{number}").find("c", 1.0)) for number in (0, 19, 20, 29)] == [False, False, True, True]
    late = memories.of("late")
    late.settle("c", late.begin("c", b""), Ack(), 0, KEEP_S + 1.0, keep=True)
    assert len(memories.shelf) == 1
    assert late.find("c", KEEP_S + 1.0) is not None
    assert isinstance(late.budgets, Budgets)


async def test_users_without_a_seat(server: StartServer) -> None:
    """Users whose runs go on without them are bounded, too: beyond it new users hear 503, known ones come back."""

    async def forever(run: Run) -> None:
        await trio.sleep_forever()

    running = await server(agents={"forever": forever}, limits__max_connections=2)
    for number in range(2 * USERS_PER_SEAT):
        async with connect(running, f"u{number}") as client:
            await client.ask("chat", content="x", agent="forever", on_disconnect="continue")
        with trio.fail_after(5):
            while running.registry.seats:
                await trio.sleep(0.01)
    answer = await exchange(running, upgrade(bearer=token("new")))
    assert (answer.status, answer.json()["code"]) == (503, "OVERLOADED")
    assert int(answer.headers["retry-after"]) >= 1
    async with connect(running, "u0") as client:
        assert len(client.welcome["active_runs"]) == 1


async def test_an_agent_that_only_starts_processes() -> None:
    """A run may start so many processes and no more."""
    processes = Processes("run")
    try:
        with pytest.raises(AgentError, match=str(MAX_PROCESSES)):
            for _ in range(MAX_PROCESSES + 1):
                await processes.start(["/bin/true"] if sys.platform != "darwin" else ["/usr/bin/true"])
    finally:
        await processes.end()
    assert not processes.any
