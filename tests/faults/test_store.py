"""A store that fails or hangs: nothing is told before it is kept, nothing is lost, nobody is cut off."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import trio

from netra_ws import Run
from netra_ws.history.recorder import AWAY_S
from netra_ws.history.stores.contract import Usage, Write
from netra_ws.history.stores.memory import MemoryStore

from ..conftest import StartServer
from ..faulty import FaultyStore, Health
from ..kit import connect, http


@pytest.fixture
def soon_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store counts as away after a moment."""
    monkeypatch.setattr("netra_ws.history.recorder.AWAY_S", 0.1)
    monkeypatch.setattr("netra_ws.contexts.registry.AWAY_S", 0.1)
    monkeypatch.setattr("netra_ws.contexts.registry.WATCH_EVERY_S", 0.02)
    monkeypatch.setattr("netra_ws.contexts.dispatch.READ_S", 0.3)


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


async def test_a_blocked_loop_is_no_outage(server: StartServer) -> None:
    """An agent that blocks everything for longer than an outage is not told to clients as one of the store."""

    async def blocks(run: Run) -> str:
        await run.emit("before", 1)
        time.sleep(AWAY_S + 0.8)  # what nobody should do
        return "done"

    running = await server(agents={"blocks": blocks})
    async with connect(running) as client:
        await client.send("chat", content="x", agent="blocks")
        heard = await client.until("agent_completed")
        with trio.move_on_after(1):
            while True:
                heard.append(await client.receive())
    assert "connection_warning" not in [frame["type"] for frame in heard]


async def test_clients_hear_of_an_outage(server: StartServer, soon_away: None) -> None:
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
        answer = await client.ask("chat", id="second", content="x", agent="echo", thread_id="t")
        assert answer["type"] == "ack", answer
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


@pytest.mark.parametrize("mood", [Health.AWAY, Health.HANGING, Health.FULL])
async def test_nothing_new_is_begun_while_the_store_is_away(server: StartServer, soon_away: None, mood: Health) -> None:
    """New runs, threads and changes of them answer UNAVAILABLE during an outage and leave nothing behind."""
    begun: list[str] = []

    async def agent(run: Run) -> None:
        begun.append(run.text)

    store = FaultyStore()
    running = await server(agents={"agent": agent}, store=store, timing__finalise_s=0.3)
    async with connect(running) as client:
        await client.ask("create_thread", thread_id="t")
        store.turn(mood)
        await client.send("chat", content="first", agent="agent", thread_id="t")
        await client.until("connection_warning")
        for type_, fields in (
            ("chat", {"content": "x", "agent": "agent", "thread_id": "t"}),
            ("chat", {"content": "x", "agent": "agent"}),
            ("start_agent", {"user_request": "x", "agent": "agent", "thread_id": "t"}),
            ("rename_thread", {"thread_id": "t", "title": "other"}),
            ("delete_thread", {"thread_id": "t"}),
        ):
            refused = await client.ask(type_, id=f"{type_} {sorted(fields)}", **fields)
            assert (refused["code"], refused["retryable"]) == ("UNAVAILABLE", True)
        store.turn(Health.WELL)
        await client.until("agent_completed")
        assert begun == ["first"]
        history = await client.ask("get_thread_history", thread_id="t", id="h")
        assert [message["content"] for message in history["messages"]] == ["first"]
        assert len((await client.ask("list_threads", id="l"))["threads"]) == 1


async def test_an_answer_does_not_wait_for_the_store_without_end(server: StartServer, soon_away: None) -> None:
    """A command that was taken before the outage answers UNAVAILABLE; repeated, it gets the true answer, done once."""
    store = FaultyStore()
    running = await server(store=store, timing__finalise_s=0.3)
    async with connect(running) as client:
        await client.ask("create_thread", thread_id="t")
        store.turn(Health.HANGING)
        refused = await client.ask("rename_thread", thread_id="t", title="new", id="c")
        assert (refused["code"], refused["retryable"]) == ("UNAVAILABLE", True)
        again = await client.ask("rename_thread", thread_id="t", title="new", id="c")
        assert again["code"] == "UNAVAILABLE"
        store.turn(Health.WELL)
        event = (await client.until("thread_renamed"))[-1]
        assert event["title"] == "new"
        assert "seq" in event
        done = await client.ask("rename_thread", thread_id="t", title="new", id="c")
        assert (done["type"], done["reply_to"]) == ("thread_renamed", "c")
        await client.send("ping", id="p")
        assert [e["type"] for e in await client.until("pong")] == ["pong"]  # no second event


async def test_a_start_whose_id_cannot_be_looked_up_is_not_begun(server: StartServer, soon_away: None) -> None:
    """A start whose id might have been used before a restart is refused while the store cannot tell."""
    begun: list[str] = []

    async def agent(run: Run) -> None:
        begun.append(run.text)

    store = FaultyStore()
    running = await server(agents={"agent": agent}, store=store)
    async with connect(running) as client:
        await client.ask("create_thread", thread_id="t")
        store.turn(Health.HANGING)
        refused = await client.ask("chat", content="x", agent="agent", thread_id="t", id="c")
        assert (refused["code"], begun) == ("UNAVAILABLE", [])
        store.turn(Health.WELL)
        await client.ask("chat", content="x", agent="agent", thread_id="t", id="c")
        await client.until("agent_completed")
        assert begun == ["x"]


async def test_a_stop_whose_end_cannot_be_stored_says_that_the_run_has_stopped(server: StartServer) -> None:
    """A stop during an outage ends the agent and answers UNAVAILABLE with stopped: true; its end is told later."""
    ended = trio.Event()

    async def agent(run: Run) -> None:
        try:
            await run.say("on it")
            await trio.sleep_forever()
        finally:
            ended.set()

    store = FaultyStore()
    running = await server(agents={"agent": agent}, store=store, timing__finalise_s=0.3)
    async with connect(running) as client:
        run_id = (await client.ask("chat", content="x", agent="agent"))["run_id"]
        await client.until("agent_message")
        store.turn(Health.AWAY)
        refused = await client.ask("stop_agent", run_id=run_id, id="s")
        assert ended.is_set()
        assert (refused["code"], refused["details"]["stopped"]) == ("UNAVAILABLE", True)
        store.turn(Health.WELL)
        completed = (await client.until("agent_completed"))[-1]
        assert (completed["status"], completed["cancelled_by"]) == ("cancelled", "user")
        stopped = await client.ask("stop_agent", run_id=run_id, id="s")
        assert (stopped["type"], stopped["status"]) == ("ack", "cancelled")


async def test_an_agent_that_waits_for_the_store_is_not_idle(server: StartServer) -> None:
    """An outage that is longer than the idle timeout does not end the runs that wait for the store."""

    async def agent(run: Run) -> None:
        for number in range(3000):
            await run.emit("n", number)

    store = FaultyStore()
    running = await server(
        agents={"agent": agent}, store=store, limits__max_events_per_run=10_000, timing__idle_timeout_s=0.4
    )
    async with connect(running) as client:
        await client.ask("chat", content="x", agent="agent")
        store.turn(Health.HANGING)
        await trio.sleep(1.2)
        store.turn(Health.WELL)
        assert (await client.until("agent_completed"))[-1]["status"] == "success"


async def test_health_sees_an_outage_that_nobody_writes_into(server: StartServer) -> None:
    """A store that went away is told by /health also while nothing is written."""
    store = FaultyStore()
    running = await server(store=store)
    for mood in (Health.AWAY, Health.HANGING):
        store.turn(mood)
        health = (await http(running, "/health")).json()
        assert (health["status"], health["checks"]["store"]["status"]) == ("degraded", "failing")
        store.turn(Health.WELL)
        assert (await http(running, "/health")).json()["status"] == "healthy"


class SlowStore(MemoryStore):
    """A memory store that takes a while for each write, and for measuring as long as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.measured = trio.Event()
        self.go_on = trio.Event()

    async def write(self, batch: Sequence[Write]) -> Mapping[str, int]:
        await trio.sleep(0.2)
        return await super().write(batch)

    async def usage(self, user_id: str, key: str) -> Usage:
        self.measured.set()
        await self.go_on.wait()
        return await super().usage(user_id, key)


async def test_a_message_behind_a_deletion_makes_the_thread_anew(server: StartServer) -> None:
    """A message into a thread whose deletion is not committed yet opens a new thread of that id, and is kept."""
    running = await server(store=SlowStore())
    async with connect(running) as client:
        await client.ask("chat", content="first", agent="echo", thread_id="t")
        await client.until("agent_completed")
        await client.send("delete_thread", thread_id="t", id="d")
        await trio.sleep(0.05)
        assert (await client.ask("chat", content="second", agent="echo", thread_id="t"))["type"] == "ack"
        await client.until("agent_completed")
        history = await client.ask("get_thread_history", thread_id="t")
        assert [message["content"] for message in history["messages"] if message["role"] == "user"] == ["second"]
        assert [thread["thread_id"] for thread in (await client.ask("list_threads"))["threads"]] == ["t"]


async def test_a_run_id_is_used_up_before_its_commit(server: StartServer) -> None:
    """A second start under a run_id is a CONFLICT also while the first one is not committed."""
    running = await server(store=SlowStore())
    async with connect(running) as client:
        await client.ask("create_thread", thread_id="t")
        await client.send("start_agent", user_request="x", agent="echo", run_id="r", thread_id="t", id="1")
        await trio.sleep(0.05)
        again = await client.ask("start_agent", user_request="y", agent="echo", run_id="r", thread_id="t", id="2")
        assert again["code"] == "CONFLICT"


async def test_measuring_a_user_keeps_nobody_alive(server: StartServer) -> None:
    """A user who says goodbye while the quota measures them is gone at once, their runs with them."""

    async def agent(run: Run) -> None:
        await run.say("x" * 5000)
        run.end_message()
        await trio.sleep_forever()

    store = SlowStore()
    running = await server(agents={"agent": agent}, store=store, limits__max_stored_bytes_per_user=10_000)
    async with connect(running) as client:
        await client.ask("chat", content="x", agent="agent")
        with trio.fail_after(5):
            await store.measured.wait()
        await client.send("disconnect")
        await client.leave()
        with trio.fail_after(5):
            while list(running.registry):
                await trio.sleep(0.01)
        assert running.registry.runs.ended == {("agent", "cancelled", "disconnect"): 1}
    store.go_on.set()


async def test_a_stop_of_an_ended_run_does_not_wait_for_the_store_without_end(server: StartServer) -> None:
    """How a run ended is told when it is committed; while the store is away the answer is UNAVAILABLE, in time."""
    go_on = trio.Event()

    async def agent(run: Run) -> None:
        await go_on.wait()

    store = FaultyStore()
    running = await server(agents={"agent": agent}, store=store, timing__finalise_s=0.3)
    async with connect(running) as client:
        run_id = (await client.ask("chat", content="x", agent="agent"))["run_id"]
        store.turn(Health.FULL)
        go_on.set()
        with trio.fail_after(5):
            while run_id in next(iter(running.registry)).runs:
                await trio.sleep(0.01)
        assert (await client.ask("stop_agent", run_id=run_id, id="s"))["code"] == "UNAVAILABLE"
        store.turn(Health.WELL)
        await client.until("agent_completed")
        assert (await client.ask("stop_agent", run_id=run_id, id="s"))["status"] == "success"


async def test_who_comes_during_an_outage_hears_of_it(server: StartServer, soon_away: None) -> None:
    """A connection that is opened while the store is away is warned like those that were there; counted as failed."""
    store = FaultyStore()
    running = await server(store=store, timing__finalise_s=0.3)
    async with connect(running) as client:
        await client.ask("create_thread", thread_id="t")
        store.turn(Health.FULL)
        await client.send("rename_thread", thread_id="t", title="new")
        await client.until("connection_warning")
        async with connect(running) as late:
            assert (await late.until("connection_warning"))[-1]["code"] == "UNAVAILABLE"
        await client.until("error")
        assert running.registry.commands["rename_thread", "UNAVAILABLE"] == 1
        store.turn(Health.WELL)


async def test_a_run_that_is_still_leaving_is_no_outage(server: StartServer, soon_away: None) -> None:
    """A start behind a run of one's last visit that does not stop waits for its seal, longer than for the store."""

    async def stubborn(run: Run) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)

    running = await server(agents={"stubborn": stubborn}, timing__finalise_s=0.8)
    async with connect(running) as client:
        await client.ask("chat", content="x", agent="stubborn", thread_id="t")
        await client.send("disconnect")
        await client.leave()
    with trio.fail_after(5):
        while not running.registry.leaving("ada"):
            await trio.sleep(0.01)
    async with connect(running) as client:
        answer = await client.ask("chat", id="second", content="x", agent="echo", thread_id="t")
        assert answer["type"] == "ack", answer


async def test_notifications_that_are_given_up_make_room(server: StartServer, soon_away: None) -> None:
    """A client that sent more notifications than may wait is heard again after an outage, whatever became of them."""
    store = FaultyStore()
    running = await server(store=store, timing__finalise_s=0.3, limits__messages_per_minute=10_000)
    async with connect(running) as client:
        await client.ask("create_thread", thread_id="t")
        store.turn(Health.HANGING)
        rename = {"jsonrpc": "2.0", "method": "rename_thread", "params": {"thread_id": "t", "title": "new"}}
        for _ in range(300):
            await client.say(json.dumps(rename))
        await client.until("connection_warning")
        await trio.sleep(0.6)
        assert (await client.ask("ping"))["type"] == "pong"
        store.turn(Health.WELL)
        assert (await client.ask("ping"))["type"] == "pong"
    answered = {code: count for (name, code), count in running.registry.commands.items() if name == "rename_thread"}
    assert sum(answered.values()) == 300, answered
