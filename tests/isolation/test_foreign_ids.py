"""Another's ids are like ids that never were: the same bytes, and the same questions to the store."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from netra_ws import Run
from netra_ws.testing import FaultyStore, MemoryServer, RawClient, open_test_server
from netra_ws.testing.frames import TEXT

#: Everything that the recorder does not do.
READS = (
    "stream", "events", "run_events", "thread", "threads", "count_threads", "oldest_threads", "usage", "messages",
    "search", "run", "run_of_command", "job", "count_jobs", "largest_jobs", "empty_jobs",
)  # fmt: skip
#: What differs between two answers to the same question.
TIMES = re.compile(rb'"(?:timestamp|created_at|updated_at|server_time)":[0-9.e+]+')
MADE = re.compile(rb"\b(?:run|msg|thread|call|conn|input)_[0-9a-f]{8,}|\"event_id\":\"[0-9a-f.]+\"")


class Counting(FaultyStore):
    """A store that notes which of its reads were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []


def _noting(name: str) -> Callable[..., Any]:
    async def read(self: Counting, *args: Any, **more: Any) -> Any:
        self.asked.append(name)
        return await getattr(FaultyStore, name)(self, *args, **more)

    return read


for _name in READS:
    setattr(Counting, _name, _noting(_name))


async def forever(run: Run) -> None:
    await run.say(f"words {run.text}")
    await trio.sleep_forever()


async def quick(run: Run) -> str:
    return f"words {run.text}"


@attrs.define
class Stage:
    """Ada with a thread and a run in some state, and Bob, who has heard of them."""

    server: MemoryServer
    store: Counting
    ada: RawClient
    bob: RawClient

    async def heard(self, message: Mapping[str, Any], *wanted: tuple[str, str]) -> tuple[bytes, list[str]]:
        """Let Bob say *message*; return all he hears up to his answer, and what the store was asked meanwhile."""
        await trio.testing.wait_all_tasks_blocked()
        self.store.asked.clear()
        await self.bob.say(json.dumps({"id": "same", **message}))
        said: list[bytes] = []
        await trio.sleep(1)  # what is told behind the answer, such as a reset
        await self.bob.say(json.dumps({"type": "ping", "id": "end"}))
        while not said or json.loads(said[-1]).get("reply_to") != "end":
            frame = await self.bob.receive_data()
            assert frame.opcode == TEXT, frame
            said.append(frame.payload)
        return b"\n".join(said), list(self.store.asked)


#: In which state Ada's thread ``theirs-1`` and run ``theirs-2`` may be.
STATES = ("idle", "active", "queued", "deleted", "stopped", "after a restart")


@asynccontextmanager
async def staged(state: str) -> AsyncIterator[Stage]:
    store = Counting()
    agents = {"quick": quick, "forever": forever}
    agent = "forever" if state in ("active", "queued", "stopped") else "quick"
    ask = {"user_request": "of ada", "agent": agent, "thread_id": "theirs-1"}
    if state == "after a restart":
        async with open_test_server(agents, store=store) as server, server.connect_raw("ada") as ada:
            await ada.send("start_agent", run_id="theirs-2", **ask)
            await ada.until("agent_completed")
    async with (
        open_test_server(agents, store=store) as server,
        server.connect_raw("ada") as ada,
        server.connect_raw("bob") as bob,
    ):
        if state == "queued":
            await ada.ask("start_agent", run_id="theirs-0", **ask)
        if state != "after a restart":
            await ada.ask("start_agent", run_id="theirs-2", **ask)
        if state in ("idle", "deleted"):
            await ada.until("agent_completed")
        if state == "stopped":
            await ada.ask("stop_agent", run_id="theirs-2")
        if state == "deleted":
            await ada.ask("delete_thread", thread_id="theirs-1")
        yield Stage(server, store, ada, bob)


#: Commands that name something; ``{1}`` stands for the id of a thread, ``{2}`` for that of a run, and so on.
QUESTIONS: Sequence[Mapping[str, Any]] = (
    {"type": "get_thread_history", "thread_id": "{1}"},
    {"type": "get_thread_history", "thread_id": "{1}", "before": "3", "limit": 1},
    {"type": "rename_thread", "thread_id": "{1}", "title": "mine now"},
    {"type": "delete_thread", "thread_id": "{1}"},
    {"type": "user_typing", "thread_id": "{1}"},
    {"type": "typing_stopped", "thread_id": "{1}"},
    {"type": "stop_agent", "run_id": "{2}"},
    {"type": "stop_agent", "run_id": "{2}", "mode": "after_step"},
    {"type": "input_response", "input_id": "{2}", "status": "resolved", "value": 1},
    {"type": "connect_job", "job_id": "{1}"},
    {"type": "connect_job", "job_id": "{1}", "resume": "{epoch}:0"},
    {"type": "disconnect_job", "job_id": "{1}"},
    {"type": "publish_job", "job_id": "{1}", "name": "n", "value": 1},
    {"type": "resume", "epoch": "{epoch}", "seq": 0},
    {"type": "resume", "epoch": "{epoch}", "seq": 3},
    {"type": "resume", "epoch": "{epoch}", "seq": 0, "job_id": "{1}"},
    {"type": "list_threads", "before": "1893456000.5/{1}"},
    {"type": "handshake_acknowledged", "thread_id": "{1}"},
    {"type": "kick", "user_id": "{ada}"},
    # These make what they name, for Bob.
    {"type": "start_agent", "user_request": "of bob", "agent": "quick", "run_id": "{2}"},
    {"type": "chat", "content": "of bob", "agent": "quick", "thread_id": "{1}"},
    {"type": "chat", "content": "of bob", "agent": "quick", "thread_id": "{1}", "on_busy": "steer"},
    {"type": "chat", "content": "of bob", "agent": "quick", "thread_id": "{1}", "on_busy": "reject"},
    {"type": "create_thread", "thread_id": "{1}", "title": "of bob"},
    {"type": "switch_thread", "thread_id": "{1}"},
)


def filled(question: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    text = json.dumps(question)
    for name, value in names.items():
        text = text.replace("{" + name + "}", value)
    fields: dict[str, Any] = json.loads(text)
    return fields


def plain(data: bytes, names: Mapping[str, str]) -> bytes:
    """Return what was heard without what the question itself said, without times and fresh ids."""
    data = MADE.sub(b"MADE", TIMES.sub(b"TIME", data))
    for name, value in names.items():
        data = data.replace(value.encode(), name.encode())
    return data


@pytest.mark.parametrize("state", STATES)
async def test_foreign_is_like_missing(autojump_clock: MockClock, state: str) -> None:
    """Whatever state another's thread and run are in, each command about them is answered as about nothing."""
    async with staged(state) as stage:
        for number, question in enumerate(QUESTIONS):
            results = []
            for whose in ("theirs", "absent"):
                user = f"bob-{whose}-{number}"
                async with stage.server.connect_raw(user) as stage.bob:
                    epoch = stage.ada.welcome["stream"]["epoch"] if whose == "theirs" else "0123456789ab"
                    ada = "ada" if whose == "theirs" else "zoe"
                    names = {"1": f"{whose}-1", "2": f"{whose}-2", "epoch": epoch, "ada": ada}
                    own = stage.bob.welcome["stream"]["epoch"]
                    heard, asked = await stage.heard(filled(question, names))
                    assert b"of ada" not in heard
                    results.append((plain(heard, {"bob": user, "own": own, **names}), asked))
            for one, other in zip(*(heard.split(b"\n") for heard, _ in results), strict=True):
                assert one == other, question
            assert results[0] == results[1], question


@pytest.mark.parametrize("query", ["resume={epoch}:0", "resume={epoch}:3", "thread_id={1}"])
async def test_foreign_positions_in_the_url_are_like_missing_ones(autojump_clock: MockClock, query: str) -> None:
    """A connection that goes on from another's position hears what one from an invented position hears."""
    results = []
    for whose in ("theirs", "absent"):
        async with staged("active") as stage:
            epoch = stage.ada.welcome["stream"]["epoch"] if whose == "theirs" else "0123456789ab"
            names = {"1": f"{whose}-1", "epoch": epoch}
            path = "/ws?" + query.replace("{epoch}", epoch).replace("{1}", names["1"])
            async with stage.server.connect_raw("bob", link="again", path=path) as again:
                assert again.welcome["resumed"] is False
                stage.bob = again
                heard, asked = await stage.heard({"type": "connect"})
                own = again.welcome["stream"]["epoch"].encode()
                welcome = json.dumps(again.welcome).replace('": ', '":').encode()
                results.append((plain((welcome + heard).replace(own, b"OWN"), names), asked))
    assert results[0] == results[1]


async def test_what_bob_makes_under_adas_ids_is_bobs(autojump_clock: MockClock) -> None:
    """One's own thread and run under another's ids change nothing of the other's, and see nothing of it."""
    async with staged("active") as stage:
        bob, ada = stage.bob, stage.ada
        before = (await ada.ask("get_thread_history", thread_id="theirs-1"))["messages"]
        ack = await bob.ask("start_agent", user_request="mine", agent="quick", run_id="theirs-2", thread_id="theirs-1")
        assert (ack["run_id"], ack["thread_id"], ack["disposition"]) == ("theirs-2", "theirs-1", "started")
        assert (await bob.ask("stop_agent", run_id="theirs-2"))["status"] in ("success", "cancelled")
        history = await bob.ask("get_thread_history", thread_id="theirs-1")
        assert "of ada" not in json.dumps(history["messages"])
        assert (await bob.ask("rename_thread", thread_id="theirs-1", title="bob's"))["type"] == "thread_renamed"
        assert (await bob.ask("delete_thread", thread_id="theirs-1"))["type"] == "thread_deleted"
        assert (await ada.ask("get_thread_history", thread_id="theirs-1"))["messages"] == before
        assert [each["title"] for each in (await ada.ask("list_threads"))["threads"]] == ["of ada"]
        assert (await ada.ask("stop_agent", run_id="theirs-2"))["status"] == "cancelled"


@pytest.mark.parametrize("answered", [False, True])
async def test_foreign_questions_are_like_missing_ones(autojump_clock: MockClock, answered: bool) -> None:
    """Another's question, open or over, is answered like none: same bytes, same reads; its owner's is untouched."""

    async def asks(run: Run) -> str:
        return str(await run.ask("sure?"))

    store = Counting()
    async with (
        open_test_server({"asks": asks}, store=store) as server,
        server.connect_raw("ada") as ada,
        server.connect_raw("bob") as bob,
    ):
        await ada.ask("chat", content="x", agent="asks")
        theirs = (await ada.until("input_required"))[-1]["input_id"]
        if answered:
            assert (await ada.ask("input_response", input_id=theirs, status="resolved", value="a"))["type"] == "ack"
        stage = Stage(server, store, ada, bob)
        for status, value in (("resolved", "x"), ("resolved", None), ("cancelled", None)):
            results = []
            for input_id in (theirs, "input_" + "0" * 32):
                question = {"type": "input_response", "input_id": input_id, "status": status, "value": value}
                question["id"] = f"{input_id}-{status}-{value}"
                heard, asked = await stage.heard(question)
                results.append((plain(heard, {"INPUT": input_id}), asked))
            assert results[0] == results[1]
            assert b"NOT_FOUND" in results[0][0]
        if not answered:
            assert (await ada.ask("input_response", input_id=theirs, status="resolved", value="a"))["type"] == "ack"


async def test_only_ones_own_use_of_an_id_is_a_conflict(autojump_clock: MockClock) -> None:
    """A run id or command id that another has used is free; one's own is taken, also after the other's use."""
    async with staged("idle") as stage:
        bob = stage.bob
        ask = {"user_request": "x", "agent": "quick", "run_id": "theirs-2"}
        assert (await bob.ask("start_agent", id="c1", **ask))["type"] == "ack"
        assert (await bob.ask("start_agent", id="c9", **ask))["code"] == "CONFLICT"
        assert (await stage.ada.ask("start_agent", id="c9", **ask))["code"] == "CONFLICT"
