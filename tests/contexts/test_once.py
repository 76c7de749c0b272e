"""A command under an id happens once: on two tabs, across reconnects, over long waits, after an outage."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from netra_ws import Run
from netra_ws.history.stores.memory import MemoryStore

from ..conftest import StartServer
from ..kit import TEXT, Client, connect, frame


class SlowStore(MemoryStore):
    """A memory store whose reads take a while, so that commands of different tabs meet."""

    async def _ready(self) -> None:
        await super()._ready()
        for _ in range(20):
            await trio.lowlevel.checkpoint()


def burst(*commands: dict[str, Any]) -> bytes:
    """Return commands as one piece of bytes."""
    return b"".join(frame(TEXT, json.dumps(command)) for command in commands)


async def answers_to(client: Client, command_id: str, count: int = 1) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while len(found) < count:
        message = await client.receive()
        if message.get("reply_to") == command_id:
            found.append(message)
    return found


@pytest.mark.parametrize(
    "command",
    [
        {"type": "chat", "content": "once", "agent": "count", "thread_id": "t"},
        {"type": "chat", "content": "once", "agent": "count"},
        {"type": "start_agent", "user_request": "once", "agent": "count", "run_id": "mine"},
        {"type": "create_thread", "title": "once"},
    ],
)
async def test_the_same_command_on_many_tabs_at_once(server: StartServer, command: dict[str, Any]) -> None:
    """Tabs that send the same command at the same moment get one answer, and it has one effect."""
    entered: list[str] = []

    async def count(run: Run) -> None:
        entered.append(run.run_id)

    running = await server(agents={"count": count}, store=SlowStore())
    async with connect(running) as one, connect(running) as two, connect(running) as three:
        tabs = (one, two, three)
        for tab in tabs:
            await tab.send_bytes(burst(*[{**command, "id": "same"}] * 2))
        answers = [answer for tab in tabs for answer in await answers_to(tab, "same", 2)]
        assert len({json.dumps({k: v for k, v in a.items() if k != "timestamp"}) for a in answers}) == 1
        threads = (await one.ask("list_threads"))["threads"]
        assert len(threads) == 1
        if "run_id" in answers[0]:
            assert entered == [answers[0]["run_id"]]
            history = await one.ask("get_thread_history", thread_id=answers[0]["thread_id"])
            assert [m["content"] for m in history["messages"]] == ["once"]


async def test_a_repeated_start_is_this_connections_thread(server: StartServer) -> None:
    """Who repeats a start on another connection goes on in the thread that it opened."""
    running = await server()
    async with connect(running) as client:
        first = await client.ask("chat", content="once", agent="echo", id="same")
    async with connect(running) as client:
        again = await client.ask("chat", content="once", agent="echo", id="same")
        assert again["thread_id"] == first["thread_id"]
        behind = await client.ask("chat", content="and then", agent="echo", id="next")
        assert behind["thread_id"] == first["thread_id"]


async def test_a_repeat_after_a_reconnect_joins_what_still_runs(server: StartServer) -> None:
    """A stop that is repeated on a new connection while the first one is still waited for gets the same proof."""
    release = trio.Event()

    async def slow_to_leave(run: Run) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await release.wait()

    running = await server(agents={"slow": slow_to_leave})
    async with connect(running) as stays:
        async with connect(running) as client:
            ack = await client.ask("chat", content="x", agent="slow")
            await client.until("agent_started")
            await client.send("stop_agent", run_id=ack["run_id"], id="stop")
            assert (await client.ask("ping"))["type"] == "pong"
        async with connect(running) as client:
            await client.send("stop_agent", run_id=ack["run_id"], id="stop")
            assert (await client.ask("ping"))["type"] == "pong"
            release.set()
            (answer,) = await answers_to(client, "stop")
            assert answer["status"] == "cancelled"
            other = await client.ask("stop_agent", run_id="another", id="stop")
            assert other["code"] == "CONFLICT"
        await stays.until("agent_completed")


@pytest.mark.parametrize("command", ["stop_agent", "delete_thread"])
async def test_what_a_closing_context_did_not_answer(server: StartServer, command: str) -> None:
    """A command that was waiting when its user's context closed does not make its repeat wait for ever."""
    release, leaving = trio.Event(), trio.Event()

    async def slow_to_leave(run: Run) -> None:
        try:
            await trio.sleep_forever()
        finally:
            leaving.set()
            with trio.CancelScope(shield=True):
                await release.wait()

    running = await server(agents={"slow": slow_to_leave}, timing__resume_window_s=0)
    async with connect(running) as client:
        ack = await client.ask("chat", content="x", agent="slow", thread_id="t")
        await client.until("agent_started")
        fields = {"run_id": ack["run_id"]} if command == "stop_agent" else {"thread_id": "t"}
        await client.send(command, **fields, id="same")
        with trio.fail_after(5):
            await leaving.wait()
        await client.ask("disconnect")
    with trio.fail_after(4):
        while running.registry.statistics().users:
            await trio.sleep(0.01)
    async with connect(running) as client:
        await client.send(command, **fields, id="same")
        assert (await client.ask("ping"))["type"] == "pong"
        release.set()
        (answer,) = await answers_to(client, "same")
        if command == "stop_agent":
            assert answer["status"] == "cancelled"
        else:
            assert answer["type"] == "thread_deleted"
            assert (await client.ask("list_threads"))["threads"] == []


async def test_an_id_is_remembered_for_five_minutes(
    server: StartServer, autojump_clock: trio.testing.MockClock
) -> None:
    """Within five minutes of its answer a repeat gets that answer; later the id is free for another command."""
    running = await server()
    async with connect(running) as client:
        first = await client.ask("create_thread", title="first", id="same")
    for _ in range(2):
        await trio.sleep(149)
        async with connect(running) as client:
            again = await client.ask("create_thread", title="first", id="same")
            assert again["thread_id"] == first["thread_id"]
            assert (await client.ask("create_thread", title="other", id="same"))["code"] == "CONFLICT"
    await trio.sleep(3)
    async with connect(running) as client:
        other = await client.ask("create_thread", title="other", id="same")
        assert other["title"] == "other"
        assert len((await client.ask("list_threads"))["threads"]) == 2


async def test_an_id_is_remembered_for_as_long_as_its_command_takes(
    server: StartServer, autojump_clock: trio.testing.MockClock
) -> None:
    """A repeat joins the first one also when that has been going on for longer than answers are kept."""
    stuck = trio.Event()

    async def slow_to_leave(run: Run) -> None:
        with trio.CancelScope(shield=True):
            await stuck.wait()

    running = await server(agents={"slow": slow_to_leave}, timing__finalise_s=400, timing__resume_window_s=1000)
    async with connect(running) as client:
        ack = await client.ask("chat", content="x", agent="slow", on_disconnect="continue")
        await client.send("stop_agent", run_id=ack["run_id"], id="same")
        assert (await client.ask("ping"))["type"] == "pong"
    await trio.sleep(350)
    async with connect(running) as client:
        assert (await client.ask("stop_agent", run_id="another", id="same"))["code"] == "CONFLICT"
        await client.send("stop_agent", run_id=ack["run_id"], id="same")
        stuck.set()
        (answer,) = await answers_to(client, "same")
        assert answer["type"] == "ack"


async def test_so_many_ids_are_remembered(server: StartServer) -> None:
    """The last 1,000 ids of a user are remembered; what came before is forgotten, not the newest."""
    running = await server(limits__messages_per_minute=5000)
    async with connect(running) as client:
        first = await client.ask("create_thread", thread_id="t", id="first")
        for start in range(0, 1000, 100):
            await client.send_bytes(
                burst(
                    *(
                        {"type": "rename_thread", "thread_id": "t", "title": f"{n}", "id": f"n{n}"}
                        for n in range(start, start + 100)
                    )
                )
            )
            await answers_to(client, f"n{start + 99}")
        assert first["type"] == "thread_created"
        assert (await client.ask("rename_thread", thread_id="t", title="x", id="n999"))["code"] == "CONFLICT"
        assert (await client.ask("rename_thread", thread_id="t", title="x", id="n1"))["code"] == "CONFLICT"
        assert (await client.ask("rename_thread", thread_id="t", title="x", id="first"))["title"] == "x"


async def test_a_refusal_is_told_to_who_has_joined_it(server: StartServer) -> None:
    """Two tabs that send one command at the same moment hear the same refusal, and may try again."""
    go_on = trio.Event()

    async def waits(run: Run) -> None:
        await go_on.wait()

    running = await server(agents={"waits": waits}, store=SlowStore())
    async with connect(running) as one, connect(running) as other:
        await one.ask("chat", content="x", agent="waits", thread_id="t")
        again = {"type": "chat", "content": "y", "agent": "waits", "thread_id": "t", "on_busy": "reject", "id": "same"}
        for _ in range(20):
            for tab in (one, other):
                await tab.send_bytes(burst(again))
            for tab in (one, other):
                assert [answer["code"] for answer in await answers_to(tab, "same")] == ["BUSY"]
        go_on.set()
        await one.until("agent_completed")
        assert (await one.ask(again.pop("type"), **again))["type"] == "ack"


async def test_beyond_the_budget_the_store_is_not_asked(server: StartServer) -> None:
    """A start under a new id that may not begin costs no read of the ledger: a flood reaches the budget only."""

    class CountingStore(MemoryStore):
        asked = 0

        async def run_of_command(self, user_id: str, command_id: str) -> Any:
            self.asked += 1
            return await super().run_of_command(user_id, command_id)

    store = CountingStore()
    running = await server(store=store, limits__messages_per_minute=2)
    async with connect(running) as client:
        codes = [(await client.ask("chat", content="x", agent="echo")).get("code") for _ in range(6)]
    assert codes == [None, None, *["RATE_LIMITED"] * 4]
    assert store.asked == 2
