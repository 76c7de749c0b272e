"""The five tests that must never be broken; ``tox -e gate`` runs them first."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio

from netra_ws import Run

from .conftest import StartServer
from .kit import Client, connect

pytestmark = pytest.mark.gate

CRITICAL = ["agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_completed"]


async def hear_run(client: Client) -> list[dict[str, Any]]:
    """Read frames up to the end of a run."""
    heard = []
    while not heard or heard[-1]["type"] != "agent_completed":
        heard.append(await client.receive())
    return heard


async def test_multi_user_isolation(server: StartServer) -> None:
    """A user cannot see, stop, read, rename or delete what belongs to another: it does not exist for them."""
    waiting = trio.Event()

    async def slow(run: Run) -> None:
        await run.think("a private thought")
        waiting.set()
        await trio.sleep_forever()

    running = await server(agents={"slow": slow})
    async with connect(running, "alice") as alice, connect(running, "mallory") as mallory:
        await alice.send("chat", content="my secret", agent="slow", thread_id="diary", id="a")
        with trio.fail_after(5):
            await waiting.wait()
        ack = (await alice.until("ack"))[-1]
        run_id = ack["run_id"]
        for attempt in (
            ("stop_agent", {"run_id": run_id}),
            ("get_thread_history", {"thread_id": "diary"}),
            ("rename_thread", {"thread_id": "diary", "title": "mine now"}),
            ("delete_thread", {"thread_id": "diary"}),
            ("connect_job", {"job_id": "diary"}),
            ("input_response", {"input_id": "x", "status": "resolved"}),
        ):
            await mallory.send(attempt[0], **attempt[1])
            answer = await mallory.receive()
            assert (answer["type"], answer["code"]) == ("error", "NOT_FOUND"), attempt
        await mallory.send("list_threads")
        assert (await mallory.receive())["threads"] == []
        # The same ids are free for somebody else, and stay apart.
        await mallory.send("chat", content="hello", agent="echo", thread_id="diary")
        for heard in await hear_run(mallory):
            assert heard.get("user_id", "mallory") == "mallory"
            assert "secret" not in json.dumps(heard)
        await alice.send("stop_agent", run_id=run_id)
        assert (await alice.until("ack"))[-1]["status"] == "cancelled"


async def test_thread_association(server: StartServer) -> None:
    """Messages go to the thread they name, or to the connection's current one; every event names its thread."""
    running = await server()
    async with connect(running, "alice") as client:
        await client.send("chat", content="first", agent="echo", id="1")
        heard = await hear_run(client)
        first = next(event for event in heard if event["type"] == "ack")["thread_id"]
        assert {event["thread_id"] for event in heard} == {first}
        await client.send("chat", content="second", agent="echo")
        assert {event["thread_id"] for event in await hear_run(client)} == {first}
        await client.send("chat", content="elsewhere", agent="echo", thread_id="other")
        assert {event["thread_id"] for event in await hear_run(client)} == {"other"}
        await client.send("switch_thread", thread_id="third")
        await client.until("thread_switched")
        await client.send("chat", content="third", agent="echo")
        assert {event["thread_id"] for event in await hear_run(client)} == {"third"}
        await client.send("get_thread_history", thread_id=first)
        history = await client.receive()
        assert [message["content"] for message in history["messages"]] == ["first", "first", "second", "second"]


async def test_store_session_lifecycle(server: StartServer, tmp_path: Path) -> None:
    """Each message is one committed step; after good and bad runs no transaction is open and all is there."""

    async def failing(run: Run) -> None:
        raise ValueError("as planned")

    path = tmp_path / "gate.db"
    running = await server(agents={"failing": failing}, store__url=f"sqlite:///{path}")
    async with connect(running, "alice") as client:
        for agent in ("echo", "failing", "echo"):
            await client.send("chat", content=f"to {agent}", agent=agent, thread_id="t")
            await hear_run(client)
        await client.send("get_thread_history", thread_id="t")
        history = await client.receive()
        asked = [message["content"] for message in history["messages"] if message["role"] == "user"]
        assert asked == ["to echo", "to failing", "to echo"]
    await running.drain(0)
    with sqlite3.connect(path, timeout=0) as connection:
        connection.execute("BEGIN IMMEDIATE")  # would fail while anybody holds a transaction
        connection.rollback()
        states = connection.execute("SELECT state, count(*) FROM run GROUP BY state ORDER BY state").fetchall()
    connection.close()
    assert states == [("error", 1), ("success", 2)]


async def test_complete_agent_flow(server: StartServer) -> None:
    """The default agent's five critical events arrive in order and numbered, behind a committed message."""
    running = await server()
    async with connect(running, "alice") as client:
        await client.send("chat", content="What is 17% of 2,340?", id="c1")
        heard = await hear_run(client)
    types = [event["type"] for event in heard]
    assert [name for name in types if name in CRITICAL] == CRITICAL
    assert types.index("user_message") < types.index("ack") < types.index("agent_started")
    seqs = [event["seq"] for event in heard if "seq" in event]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    result = next(event for event in heard if event["type"] == "tool_completed")
    assert (result["tool_name"], result["results"]) == ("calculate", {"value": 397.8})
    assert heard[-1]["final_response"] == "17% of 2,340 = 397.8"


async def test_concurrent_users(server: StartServer) -> None:
    """100 users at once, 3 messages each: every run is complete, and no frame reaches another user's socket."""
    users, messages = 100, 3
    running = await server()
    foreign = 0
    completed = 0

    async def talk(number: int) -> None:
        nonlocal foreign, completed
        user = f"user-{number}"
        async with connect(running, user) as client:
            for turn in range(messages):
                await client.send("chat", content=f"{user} says {turn}", agent="echo")
                heard = await hear_run(client)
                foreign += sum(event.get("user_id", user) != user for event in heard)
                said = [event["content"] for event in heard if event["type"] == "user_message"]
                foreign += sum(f"{user} says" not in content for content in said)
                assert [event["type"] for event in heard if event["type"] in CRITICAL] == CRITICAL
                completed += heard[-1]["final_response"] == f"{user} says {turn}"

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(users):
                nursery.start_soon(talk, number)
    assert completed == users * messages
    assert foreign == 0
    with trio.fail_after(5):
        while running.registry.statistics().users:
            await trio.sleep(0.01)
