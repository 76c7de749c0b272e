"""What a client has seen is not lost: replay and live are one, across reconnects and restarts."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from netra_ws import Run

from ..conftest import StartServer
from ..kit import connect


async def storyteller(run: Run) -> str:
    """Says a few words with tools and thoughts in between."""
    await run.think("once upon a time")
    for number in range(4):
        async with run.tool("look", number=number) as call:
            call.results = number
        for word in range(5):
            await run.say(f"{number}.{word} ")
    return run.said


async def many(run: Run) -> None:
    """Make ten thousand durable events."""
    for number in range(5000):
        async with run.tool("n", number=number):
            pass


def texts(events: list[dict[str, Any]]) -> dict[str, str]:
    """Rebuild the messages as a client does: append on delta, replace on full."""
    said: dict[str, str] = {}
    for event in events:
        if event["type"] == "agent_message":
            old = said.get(event["message_id"], "") if event["phase"] == "delta" else ""
            said[event["message_id"]] = old + event["content"]
    return said


def durable(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events that must never be missing."""
    return [e for e in events if "seq" in e and e.get("phase") != "delta" and e["type"] != "tool_progress"]


async def test_resume_at_every_position(server: StartServer) -> None:
    """Whatever position a client comes back with, it hears what an unbroken reader heard behind it."""
    running = await server(agents={"storyteller": storyteller})
    async with connect(running) as client:
        await client.send("chat", content="tell", agent="storyteller")
        unbroken = [e for e in await client.until("agent_completed") if "seq" in e]
        epoch = client.welcome["stream"]["epoch"]
    last = unbroken[-1]["seq"]
    for event in [{"seq": 0}, *unbroken]:
        async with connect(running, path=f"/ws?resume={epoch}:{event['seq']}") as client:
            assert client.welcome["resumed"] is True
            replayed = await client.until("replay_completed")
            done = replayed.pop()
            assert (done["from_seq"], done["to_seq"], done["complete"]) == (event["seq"], last, True)
            assert done["count"] == len(replayed)
            assert replayed == [e for e in unbroken if e["seq"] > event["seq"]]


@pytest.mark.parametrize("ring", [8, 2000])
async def test_readers_that_come_and_go(server: StartServer, ring: int) -> None:
    """A reader that breaks off again and again, also in the middle of a frame, ends with the same text and events."""

    async def slow(run: Run) -> str:
        for number in range(150):
            await run.say(f"w{number} ")
            if number % 7 == 0:
                async with run.tool("step", number=number):
                    await trio.sleep(0.001)
            await trio.sleep(0.002)
        return run.said

    running = await server(agents={"slow": slow}, limits__max_connections_per_user=1000, history__ring_events=ring)
    heard: list[dict[str, Any]] = []
    async with connect(running) as unbroken:
        await unbroken.send("chat", content="go", agent="slow")
        epoch, position, breaks = unbroken.welcome["stream"]["epoch"], 0, 0
        while not heard or heard[-1]["type"] != "agent_completed":
            async with connect(running, path=f"/ws?resume={epoch}:{position}") as client:
                assert client.welcome["resumed"] is True
                for _ in range(1 + breaks % 9):
                    message = await client.receive()
                    if "seq" in message:
                        assert message["seq"] > position, "doubled"
                        position = message["seq"]
                        heard.append(message)
                        if message["type"] == "agent_completed":
                            break
                breaks += 1
                if breaks % 3 == 0:
                    client.reset()
        whole = [e for e in await unbroken.until("agent_completed") if "seq" in e]
    assert breaks > 10
    assert durable(heard) == durable(whole)
    assert texts(heard) == texts(whole)


@pytest.mark.parametrize(
    ("position", "reason"),
    [("other:0", "epoch_changed"), ("{epoch}:999999999", "ahead")],
)
async def test_positions_that_cannot_be_continued(server: StartServer, position: str, reason: str) -> None:
    """A foreign epoch or a position ahead of the log gives stream_reset and nothing partial."""
    running = await server()
    async with connect(running) as client:
        await client.send("chat", content="x", agent="echo")
        last = (await client.until("agent_completed"))[-1]["seq"]
        epoch = client.welcome["stream"]["epoch"]
    async with connect(running, path=f"/ws?resume={position.format(epoch=epoch)}") as client:
        assert client.welcome["resumed"] is False
        reset = await client.receive()
        assert (reset["type"], reset["epoch"], reset["seq"], reset["reason"]) == ("stream_reset", epoch, last, reason)
        await client.send("ping")
        assert (await client.receive())["type"] == "pong"


async def test_resume_by_command(server: StartServer) -> None:
    """resume is acknowledged, then everything behind the position comes again, then live events."""
    running = await server()
    async with connect(running) as client:
        await client.send("chat", content="x", agent="echo")
        first = [e for e in await client.until("agent_completed") if "seq" in e]
        epoch = client.welcome["stream"]["epoch"]
        await client.send("resume", epoch=epoch, seq=first[2]["seq"], id="r")
        again = await client.until("replay_completed")
        assert (again[0]["type"], again[0]["reply_to"]) == ("ack", "r")
        assert again[1:-1] == first[3:]
        await client.send("resume", epoch="wrong", seq=0, id="w")
        assert (await client.receive())["type"] == "ack"
        assert (await client.receive())["reason"] == "epoch_changed"
        await client.send("chat", content="y", agent="echo")
        live = await client.until("agent_completed")
        assert min(e["seq"] for e in live if "seq" in e) == first[-1]["seq"] + 1


async def test_history_names_the_position_it_stands_for(server: StartServer) -> None:
    """History and partial text at a position, plus the events behind it, are the whole conversation once."""
    half = trio.Event()
    release = trio.Event()

    async def halves(run: Run) -> None:
        await run.say("first half ")
        half.set()
        await release.wait()
        await run.say("second half")

    running = await server(agents={"halves": halves})
    async with connect(running) as client:
        ack = await client.ask("chat", content="x", agent="halves")
        with trio.fail_after(5):
            await half.wait()
        await client.until("agent_message")
        async with connect(running) as late:
            history = await late.ask("get_thread_history", thread_id=ack["thread_id"])
            assert [m["content"] for m in history["messages"]] == ["x"]
            (partial,) = history["partial"]
            assert (partial["run_id"], partial["content"]) == (ack["run_id"], "first half ")
            release.set()
            heard = await late.until("agent_completed")
            behind = [e for e in heard if e["type"] == "agent_message" and e["seq"] > history["stream"]["seq"]]
            assert behind[0]["content"] == "second half"
            assert behind[-1]["content"] == "first half second half"


async def test_far_behind(server: StartServer) -> None:
    """A client 10,000 events behind, of which few are in memory, gets every durable event, in order."""

    running = await server(agents={"many": many}, history__ring_events=100)
    async with connect(running) as client:
        epoch = client.welcome["stream"]["epoch"]
        await client.ask("chat", content="x", agent="many")
    async with connect(running, path=f"/ws?resume={epoch}:0") as client, connect(running, "bob") as bob:
        heard = await client.until("agent_completed")
        events = [e for e in heard if "seq" in e]
        assert len(events) > 10_000
        assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
        assert (await bob.ask("ping"))["type"] == "pong"


async def test_a_position_that_the_store_has_left_behind(server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the store has removed events behind a position, nothing partial is replayed: stream_reset, trimmed."""
    monkeypatch.setattr("netra_ws.history.stores.memory.MOST_EVENTS_PER_STREAM", 200)
    monkeypatch.setattr("netra_ws.history.stores.memory._SLACK", 50)

    async def many(run: Run) -> None:
        for number in range(300):
            await run.emit("n", number)

    running = await server(agents={"many": many}, history__ring_events=20)
    async with connect(running) as client:
        epoch = client.welcome["stream"]["epoch"]
        await client.send("chat", content="x", agent="many")
        seen = [e for e in await client.until("agent_completed") if "seq" in e]
    async with connect(running, path=f"/ws?resume={epoch}:{seen[0]['seq']}") as client:
        assert client.welcome["resumed"] is False
        reset = await client.receive()
        assert (reset["type"], reset["reason"]) == ("stream_reset", "trimmed")
    recent = seen[-30]["seq"]
    async with connect(running, path=f"/ws?resume={epoch}:{recent}") as client:
        replayed = [e for e in await client.until("replay_completed") if "seq" in e]
        assert replayed == seen[-29:]


async def test_a_restart_keeps_threads_and_messages(server: StartServer, store_url: str) -> None:
    """After a restart on the same store threads, messages, search and the log's epoch are there."""
    running = await server(store__url=store_url)
    async with connect(running) as client:
        ack = await client.ask("chat", content="remember the purple elephant", agent="echo", thread_id="t")
        seen = [e for e in await client.until("agent_completed") if "seq" in e]
        epoch = client.welcome["stream"]["epoch"]
    await running.drain(0)
    await running.store.close()
    again = await server(store__url=store_url)
    async with connect(again, path=f"/ws?resume={epoch}:{seen[0]['seq']}") as client:
        assert client.welcome["resumed"] is True
        replayed = [e for e in await client.until("replay_completed") if "seq" in e]
        assert [e["seq"] for e in replayed] == [e["seq"] for e in durable(seen) if e["seq"] > seen[0]["seq"]]
        threads = (await client.ask("list_threads"))["threads"]
        assert [t["thread_id"] for t in threads] == ["t"]
        await client.send("chat", content="search my messages for elephant", thread_id="u")
        found = (await client.until("tool_completed"))[-1]
        assert [r["thread_id"] for r in found["results"]] == ["t", "t"]
        live = await client.until("agent_completed")
        assert live[-1]["seq"] > seen[-1]["seq"]
        assert ack["run_id"] not in [run["run_id"] for run in client.welcome["active_runs"]]
