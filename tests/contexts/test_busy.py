"""A thread has one run at a time: what happens to a message that comes while one is active."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from netra_ws import Run
from netra_ws.protocol.codec import read_server
from netra_ws.testing import check_run

from ..conftest import StartServer
from ..faulty import FaultyStore, Health
from ..kit import Client, connect


class Stage:
    """An agent that waits on the stage until it is let go; it remembers who was there."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.steered: list[str] = []
        self._doors: dict[str, trio.Event] = {}
        self._changed = trio.Event()

    async def __call__(self, run: Run) -> str:
        self.entered.append(run.text)
        self._changed.set()
        self._changed = trio.Event()
        await run.say(f"on stage: {run.text}")
        await self._door(run.text).wait()
        self.steered += run.steered()
        return f"done {run.text}"

    def _door(self, text: str) -> trio.Event:
        return self._doors.setdefault(text, trio.Event())

    def let_go(self, text: str) -> None:
        self._door(text).set()

    async def wait_for(self, text: str) -> None:
        with trio.fail_after(5):
            while text not in self.entered:
                await self._changed.wait()


async def say(client: Client, text: str, **fields: Any) -> dict[str, Any]:
    """Send a message to the stage and return its answer."""
    return await client.ask("chat", content=text, agent="stage", thread_id="t", **fields)


async def hear_ends(client: Client, count: int) -> list[dict[str, Any]]:
    """Read frames until so many runs have ended."""
    heard: list[dict[str, Any]] = []
    while sum(event["type"] == "agent_completed" for event in heard) < count:
        heard.append(await client.receive())
    return heard


async def test_enqueue_keeps_the_order(server: StartServer) -> None:
    """Messages to a busy thread wait their turn; each of them is told where it stands, and all are served in order."""
    stage = Stage()
    running = await server(agents={"stage": stage})
    async with connect(running) as client, connect(running) as tab:
        assert (await say(client, "one"))["disposition"] == "started"
        second = await say(client, "two")
        third = await say(client, "three")
        assert (second["disposition"], third["disposition"]) == ("queued", "queued")
        for text in ("one", "two", "three"):
            await stage.wait_for(text)
            stage.let_go(text)
        heard = await hear_ends(tab, 3)
        assert stage.entered == ["one", "two", "three"]
        positions = [(e["run_id"], e["position"]) for e in heard if e["type"] == "run_queued"]
        assert positions == [(second["run_id"], 1), (third["run_id"], 2)]
        started = [e for e in heard if e["type"] == "agent_started"]
        assert [e["trigger"] for e in started] == ["message", "queue", "queue"]
        ends = [e["final_response"] for e in heard if e["type"] == "agent_completed"]
        assert ends == ["done one", "done two", "done three"]


async def test_the_queue_has_a_bound(server: StartServer) -> None:
    """A full queue answers BUSY, which may be tried again."""
    stage = Stage()
    running = await server(agents={"stage": stage}, limits__max_queued_per_thread=2)
    async with connect(running) as client:
        for text in ("one", "two", "three"):
            assert (await say(client, text))["type"] == "ack"
        refused = await say(client, "four")
        assert (refused["code"], refused["retryable"]) == ("BUSY", True)


async def test_reject(server: StartServer) -> None:
    """on_busy reject answers BUSY and stores nothing."""
    stage = Stage()
    running = await server(agents={"stage": stage})
    async with connect(running) as client:
        await say(client, "one")
        assert (await say(client, "two", on_busy="reject"))["code"] == "BUSY"
        history = await client.ask("get_thread_history", thread_id="t")
        assert [message["content"] for message in history["messages"]] == ["one"]


async def test_interrupt_goes_first_and_keeps_what_was_said(server: StartServer) -> None:
    """on_busy interrupt cancels the active run, goes before the queue, and keeps the messages."""
    stage = Stage()
    running = await server(agents={"stage": stage})
    async with connect(running) as client, connect(running) as tab:
        await say(client, "one")
        await stage.wait_for("one")
        await say(client, "waiting")
        await say(client, "urgent", on_busy="interrupt")
        for text in ("urgent", "waiting"):
            await stage.wait_for(text)
            stage.let_go(text)
        heard = await hear_ends(tab, 3)
        ends = [e for e in heard if e["type"] == "agent_completed"]
        assert (ends[0]["status"], ends[0]["cancelled_by"]) == ("cancelled", "interrupt")
        assert stage.entered == ["one", "urgent", "waiting"]
        history = await client.ask("get_thread_history", thread_id="t")
        assert "on stage: one" in [message["content"] for message in history["messages"]]


async def test_rollback_drops_the_messages(server: StartServer) -> None:
    """on_busy rollback cancels the active run and drops all its messages from history and search."""
    stage = Stage()
    running = await server(agents={"stage": stage})
    async with connect(running) as client, connect(running) as tab:
        await say(client, "regretted")
        await stage.wait_for("regretted")
        await say(client, "better", on_busy="rollback")
        await stage.wait_for("better")
        stage.let_go("better")
        heard = await hear_ends(tab, 2)
        first = next(e for e in heard if e["type"] == "agent_completed")
        assert (first["status"], first["cancelled_by"]) == ("cancelled", "rollback")
        history = await client.ask("get_thread_history", thread_id="t")
        assert [message["content"] for message in history["messages"]] == ["better", "on stage: better"]
        assert not await running.registry.ledger.search("ada", "regretted", 5)


async def test_steer_reaches_the_running_agent(server: StartServer) -> None:
    """on_busy steer hands the text to the running agent, under that run's id."""
    stage = Stage()
    running = await server(agents={"stage": stage})
    async with connect(running) as client:
        first = await say(client, "one")
        await stage.wait_for("one")
        steered = await say(client, "and this", on_busy="steer")
        assert (steered["disposition"], steered["run_id"]) == ("steered", first["run_id"])
        stage.let_go("one")
        await hear_ends(client, 1)
        assert stage.steered == ["and this"]
        history = await client.ask("get_thread_history", thread_id="t")
        assert "and this" in [message["content"] for message in history["messages"]]


async def test_steered_texts_that_nobody_read_start_the_next_run(server: StartServer) -> None:
    """A steered text that the agent did not read is not lost: it starts the next run."""
    entered = trio.Event()
    release = trio.Event()
    texts: list[str] = []

    async def deaf(run: Run) -> None:
        texts.append(run.text)
        entered.set()
        await release.wait()

    running = await server(agents={"deaf": deaf})
    async with connect(running) as client:
        await client.ask("chat", content="one", agent="deaf", thread_id="t")
        with trio.fail_after(5):
            await entered.wait()
        await client.ask("chat", content="unread", agent="deaf", thread_id="t", on_busy="steer")
        release.set()
        await hear_ends(client, 2)
        assert texts == ["one", "unread"]


async def test_what_was_steered_runs_as_who_steered_it(server: StartServer) -> None:
    """The run that a steered text starts has the permissions of the token it came with, not those of the ended run."""
    release = trio.Event()
    allowed: list[frozenset[str]] = []

    async def deaf(run: Run) -> None:
        allowed.append(run.identity.permissions)
        await release.wait()

    running = await server(agents={"deaf": deaf})
    async with connect(running, permissions=["chat", "read", "operator"]) as boss, connect(running) as client:
        await boss.ask("chat", content="one", agent="deaf", thread_id="t")
        await client.ask("chat", id="s", content="unread", agent="deaf", thread_id="t", on_busy="steer")
        release.set()
        await hear_ends(client, 2)
        assert [sorted(each) for each in allowed] == [["chat", "operator", "read"], ["chat", "read"]]


async def test_stopping_a_queued_run(server: StartServer) -> None:
    """A queued run that is stopped gets agent_started and agent_completed at once, and never runs."""
    stage = Stage()
    running = await server(agents={"stage": stage})
    async with connect(running) as client, connect(running) as tab:
        await say(client, "one")
        second = await say(client, "two")
        stopped = await client.ask("stop_agent", run_id=second["run_id"])
        assert stopped["status"] == "cancelled"
        stage.let_go("one")
        heard = await hear_ends(tab, 2)
        assert stage.entered == ["one"]
        events = [e for e in heard if e.get("run_id") == second["run_id"]]
        assert [e["type"] for e in events] == ["user_message", "run_queued", "agent_started", "agent_completed"]


async def test_a_stop_never_hits_the_next_run(server: StartServer) -> None:
    """Stopping a run that has ended tells how it ended, and leaves the run behind it alone."""
    stage = Stage()
    running = await server(agents={"stage": stage})
    async with connect(running) as client:
        first = await say(client, "one")
        await say(client, "two")
        stage.let_go("one")
        await stage.wait_for("two")
        stopped = await client.ask("stop_agent", run_id=first["run_id"])
        assert stopped["status"] == "success"
        stage.let_go("two")
        ended = (await client.until("agent_completed"))[-1]
        assert (ended["status"], ended["final_response"]) == ("success", "done two")


async def test_a_stop_of_a_run_whose_end_is_not_kept_yet(server: StartServer) -> None:
    """A stop that comes between a run's end and its commit is answered with how it ended, not with running."""
    ended = trio.Event()

    async def quick(run: Run) -> None:
        ended.set()

    store = FaultyStore()
    running = await server(agents={"quick": quick}, store=store)
    async with connect(running) as client:
        await client.ask("create_thread", thread_id="t")
        store.turn(Health.FULL)
        await client.send("start_agent", user_request="x", agent="quick", thread_id="t", run_id="mine", id="start")
        with trio.fail_after(5):
            await ended.wait()
        for number in range(2):
            await client.send("stop_agent", run_id="mine", id=f"stop {number}")
        await client.send("stop_agent", run_id="nobody", id="other")
        await client.send("ping", id="p")
        assert [each["type"] for each in await client.until("pong")] == ["pong"]
        store.turn(Health.WELL)
        heard: list[dict[str, Any]] = []
        while sum("reply_to" in each for each in heard) < 4:
            heard.append(await client.receive())
        told = {each["reply_to"]: each.get("status") or each.get("code") for each in heard if "reply_to" in each}
        assert told == {"start": None, "stop 0": "success", "stop 1": "success", "other": "NOT_FOUND"}


async def test_a_sealed_run_gives_up_its_thread(server: StartServer) -> None:
    """A run that cannot be stopped does not block its conversation: the next message is served."""
    release = trio.Event()

    async def unstoppable(run: Run) -> None:
        with trio.CancelScope(shield=True):
            await release.wait()

    running = await server(agents={"unstoppable": unstoppable}, timing__finalise_s=0.1)
    try:
        async with connect(running) as client:
            first = await client.ask("chat", content="x", agent="unstoppable", thread_id="t")
            await client.ask("chat", content="waiting", agent="echo", thread_id="t")
            assert (await client.ask("stop_agent", run_id=first["run_id"]))["code"] == "CANCEL_TIMEOUT"
            last = await client.ask("chat", content="later", agent="echo", thread_id="t")
            ended = (await client.until("agent_completed", run_id=last["run_id"]))[-1]
            assert ended["final_response"] == "later"
            history = await client.ask("get_thread_history", thread_id="t")
            assert sorted(m["content"] for m in history["messages"]) == ["later", "later", "waiting", "waiting", "x"]
    finally:
        release.set()


async def test_quota_of_runs(server: StartServer) -> None:
    """More runs at once than limits.max_runs_per_user answer QUOTA_EXCEEDED; another user is not concerned."""
    stage = Stage()
    running = await server(agents={"stage": stage}, limits__max_runs_per_user=2)
    async with connect(running) as client, connect(running, "bob") as bob:
        for thread in ("a", "b"):
            assert (await client.ask("chat", content=thread, agent="stage", thread_id=thread))["type"] == "ack"
        refused = await client.ask("chat", content="c", agent="stage", thread_id="c")
        assert refused["code"] == "QUOTA_EXCEEDED"
        assert (await bob.ask("chat", content="d", agent="stage", thread_id="d"))["type"] == "ack"


@pytest.mark.parametrize("on_busy", ["enqueue", "interrupt", "rollback", "steer"])
async def test_two_tabs_at_once(server: StartServer, on_busy: str) -> None:
    """Two tabs that talk into one thread at the same time hear the same events in the same order, each run whole."""

    async def quick(run: Run) -> str:
        async with run.tool("work"):
            await trio.sleep(0.002)
        return f"{run.text} {run.steered()}"

    running = await server(agents={"quick": quick})
    async with connect(running) as left, connect(running) as right:
        heard: dict[Client, list[dict[str, Any]]] = {left: [], right: []}
        acks: list[dict[str, Any]] = []

        async def talk(client: Client, name: str) -> None:
            for number in range(6):
                await client.send("chat", content=f"{name}{number}", agent="quick", thread_id="t", on_busy=on_busy)
            waiting = 6
            while waiting:
                message = await client.receive()
                if message["type"] == "ack":
                    waiting -= 1
                    acks.append(message)
                elif "seq" in message:
                    heard[client].append(message)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk, left, "left")
                nursery.start_soon(talk, right, "right")
        wanted = {ack["run_id"] for ack in acks}
        for client, events in heard.items():
            while not {e["run_id"] for e in events if e["type"] == "agent_completed"} >= wanted or _open(events):
                message = await client.receive()
                if "seq" in message:
                    events.append(message)
        shortest = min(len(events) for events in heard.values())
        assert heard[left][:shortest] == heard[right][:shortest]
        for run_id in {e["run_id"] for e in heard[left] if e["type"] == "agent_started"}:
            events = [e for e in heard[left] if e.get("run_id") == run_id and e["type"] != "user_message"]
            check_run([read_server(__import__("json").dumps(e)) for e in events])


def _open(events: list[dict[str, Any]]) -> bool:
    started = {e["run_id"] for e in events if e["type"] in ("agent_started", "run_queued")}
    return started != {e["run_id"] for e in events if e["type"] == "agent_completed"}


@pytest.mark.parametrize("ends", ["swallows", "returns", "stopped", "stuck"])
async def test_a_rollback_is_told_whatever_the_run_does(server: StartServer, ends: str) -> None:
    """When a run's messages are taken back its last event says so, however it ended."""
    entered, release = trio.Event(), trio.Event()

    async def agent(run: Run) -> str:
        await run.say("regretted, too")
        entered.set()
        with trio.CancelScope(shield=ends in ("returns", "stuck", "stopped")):
            try:
                await release.wait()
            except trio.Cancelled:
                return "finished all the same"
        return "finished in time"

    finalise_s = 0.1 if ends == "stuck" else 5.0
    running = await server(agents={"agent": agent}, timing__finalise_s=finalise_s)
    async with connect(running) as client, connect(running) as tab:
        first = await client.ask("chat", content="regretted", agent="agent", thread_id="t")
        with trio.fail_after(5):
            await entered.wait()
        if ends == "stopped":
            await client.send("stop_agent", run_id=first["run_id"], id="stop")
        await client.ask("chat", content="better", agent="echo", thread_id="t", on_busy="rollback")
        if ends != "stuck":
            release.set()
        heard = await hear_ends(tab, 2)
        ended = next(e for e in heard if e["type"] == "agent_completed")
        assert (ended["run_id"], ended["cancelled_by"], ended["status"]) == (first["run_id"], "rollback", "cancelled")
        history = await client.ask("get_thread_history", thread_id="t")
        assert [message["content"] for message in history["messages"]] == ["better", "better"]
        release.set()


async def test_stuck_runs_have_a_bound(server: StartServer) -> None:
    """Runs that could not be stopped count in limits.max_runs_per_user, also behind a reconnect; others go on."""
    release = trio.Event()

    async def unstoppable(run: Run) -> None:
        with trio.CancelScope(shield=True):
            await release.wait()

    running = await server(
        agents={"unstoppable": unstoppable},
        timing__finalise_s=0.05,
        timing__resume_window_s=0,
        limits__max_runs_per_user=2,
    )
    try:
        for thread in ("a", "b"):
            async with connect(running) as client:
                ack = await client.ask("chat", content="x", agent="unstoppable", thread_id=thread, id=thread)
                stopped = await client.ask("stop_agent", run_id=ack["run_id"], id=f"stop {thread}")
                assert stopped["code"] == "CANCEL_TIMEOUT"
                assert (await client.ask("disconnect"))["type"] == "ack"
            with trio.fail_after(5):
                while running.registry.statistics().users:
                    await trio.sleep(0.01)
        async with connect(running) as client, connect(running, "bob") as bob:
            refused = await client.ask("chat", content="x", agent="echo", thread_id="c", id="c")
            assert refused["code"] == "QUOTA_EXCEEDED"
            assert (await bob.ask("chat", content="x", agent="echo"))["type"] == "ack"
            release.set()
            with trio.fail_after(5):
                while running.registry.statistics().stuck:
                    await trio.sleep(0.01)
            assert (await client.ask("chat", content="x", agent="echo", thread_id="c", id="d"))["type"] == "ack"
    finally:
        release.set()


@pytest.mark.parametrize("command", ["chat", "delete_thread"])
async def test_a_thread_whose_run_is_still_leaving(server: StartServer, command: str) -> None:
    """Who comes back while a run of an old context still ends finds its thread busy: no second run beside it."""
    release = trio.Event()

    async def slow_to_leave(run: Run) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await release.wait()

    running = await server(agents={"slow": slow_to_leave}, timing__resume_window_s=0)
    async with connect(running) as client:
        first = await client.ask("chat", content="x", agent="slow", thread_id="t")
        await client.until("agent_started")
        await client.ask("disconnect")
    with trio.fail_after(4):
        while running.registry.statistics().users:
            await trio.sleep(0.01)
    async with connect(running) as client, connect(running) as tab:
        if command == "chat":
            await client.send("chat", content="y", agent="echo", thread_id="t", id="next")
        else:
            await client.send("delete_thread", thread_id="t", id="next")
        assert (await tab.ask("ping"))["type"] == "pong"
        release.set()
        await client.until("agent_completed", run_id=first["run_id"])
        if command == "chat":
            started = (await client.until("agent_started"))[-1]
            assert started["run_id"] != first["run_id"]
        else:
            await client.until("thread_deleted", reply_to="next")
