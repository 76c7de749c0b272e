"""Tests of ``netra_ws.history.recovery``: what the next start writes about runs that were lost."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock as Clock

from netra_ws.errors import StoreError
from netra_ws.history import recorder, recovery
from netra_ws.history.ledger import Ledger
from netra_ws.history.recovery import close_lost_runs
from netra_ws.history.stores.contract import (
    MessageRow,
    PutEvent,
    PutMessage,
    PutRun,
    PutStream,
    PutThread,
    RunRow,
    SetRunState,
)
from netra_ws.history.stream import Stream
from netra_ws.protocol.codec import Heard, read_server
from netra_ws.protocol.events import (
    AgentCompleted,
    AgentStarted,
    InputReceived,
    InputRequired,
    MessageReceived,
    RunEvent,
    RunQueued,
    ToolCompleted,
    ToolExecuting,
)
from netra_ws.testing import check_run

from .kit import ALICE, NOW, House, TroubledStore, completed, delta, full, open_house, said, started


def row(run_id: str, user_id: str = ALICE, **fields: Any) -> RunRow:
    values: dict[str, Any] = {
        "thread_id": "t",
        "agent_name": "echo",
        "message_id": "q",
        "state": "running",
        "created_at": NOW,
        "started_seq": 1,
        "trigger": "message",
    }
    return RunRow(user_id=user_id, run_id=run_id, **values | fields)


def names(run_id: str, parent: str | None = None) -> dict[str, Any]:
    return {"thread_id": "t", "run_id": run_id, "agent_name": "echo", "parent_run_id": parent}


def tool(call_id: str, run_id: str = "r", parent: str | None = None) -> ToolExecuting:
    return ToolExecuting(**names(run_id, parent), tool_call_id=call_id, tool_name=f"tool {call_id}", parameters={})


def tool_done(call_id: str, run_id: str = "r") -> ToolCompleted:
    return ToolCompleted(
        **names(run_id),
        tool_call_id=call_id,
        tool_name="t",
        status="ok",
        success=True,
        results=None,
        duration_ms=1,
    )


def begin(stream: Stream, run_id: str = "r", parent: str | None = None) -> None:
    """Start a run as the server does: its row, then its first event."""
    with stream.step() as step:
        step.write(PutRun(row=row(run_id, stream.user_id, parent_run_id=parent, started_seq=stream.last + 1)))
        step.append(started(run_id, parent_run_id=parent))


async def crash(live: Callable[[House], Awaitable[None]], store: TroubledStore | None = None) -> TroubledStore:
    """Let a server live, and kill it when everything that was said is committed."""
    store = store or TroubledStore()
    async with open_house(store) as house:
        await live(house)
        await house.recorder.flush()
    return store


async def recover(store: TroubledStore) -> tuple[int, dict[str, list[Heard]], list[Heard]]:
    """Start again; return how many runs were closed, all events by run, and all of Alice's in order."""
    async with open_house(store) as house:
        count = await close_lost_runs(store, house.streams, house.recorder)
        assert all(stream.pins == 0 for stream in house.streams)
    everything = await events_of(store)
    runs: dict[str, list[Heard]] = {}
    for heard in everything:
        runs.setdefault(heard.fields["run_id"], []).append(heard)
    return count, runs, everything


async def events_of(store: TroubledStore, user_id: str = ALICE) -> list[Heard]:
    kept = await store.stream(f"user:{user_id}")
    assert kept is not None
    rows = await store.events(kept.key, kept.epoch, 0, 10**9, 10**6)
    return [read_server(event.payload) for event in rows]


def last(heard: list[Heard]) -> AgentCompleted:
    event = heard[-1].message
    assert isinstance(event, AgentCompleted)
    return event


async def test_a_lost_run_ends_as_lost(autojump_clock: Clock) -> None:
    """A run that was going on gets its ``agent_completed``, which says what happened and counts its events."""

    async def live(house: House) -> None:
        stream = await house.streams.open(ALICE)
        stream.append(MessageReceived(**names("r"), message_id="q", content="hi", disposition="started"))
        begin(stream)
        stream.append(said())

    store = await crash(live)
    count, runs, _ = await recover(store)
    event = check_run(runs["r"])
    assert count == 1
    assert (event.status, event.success, event.final_response, event.events) == ("lost", False, None, 3)
    assert event.error is not None
    assert (event.error.code, event.error.retryable) == ("LOST", True)
    found = await store.run(ALICE, "r")
    assert found.state == "lost"


async def test_what_is_open_is_closed(autojump_clock: Clock) -> None:
    """Open tool calls and inputs of a lost run are cancelled; those that had ended are left as they were."""

    async def live(house: House) -> None:
        stream = await house.streams.open(ALICE)
        begin(stream)
        for event in (tool("a"), tool("b"), tool("c"), tool_done("b")):
            stream.append(event)
        stream.append(InputRequired(**names("r"), input_id="i", prompt="sure?"))
        stream.append(InputRequired(**names("r"), input_id="j", prompt="really?"))
        stream.append(InputReceived(**names("r"), input_id="j", status="resolved", value=1, by="user"))

    _, runs, _ = await recover(await crash(live))
    event = check_run(runs["r"])
    assert event.events == len(runs["r"]) == 8 + 4
    closing = [heard.message for heard in runs["r"][8:-1]]
    tools = {e.tool_call_id: e for e in closing if isinstance(e, ToolCompleted)}
    assert {call: (e.status, e.success, e.tool_name) for call, e in tools.items()} == {
        "a": ("cancelled", False, "tool a"),
        "c": ("cancelled", False, "tool c"),
    }
    assert [(e.input_id, e.status, e.by) for e in closing if isinstance(e, InputReceived)] == [
        ("i", "cancelled", "server")
    ]


async def test_a_run_that_had_not_begun_begins_and_ends(autojump_clock: Clock) -> None:
    """A queued run that was lost gets ``agent_started`` and ``agent_completed`` at once."""

    async def live(house: House) -> None:
        stream = await house.streams.open(ALICE)
        with stream.step() as step:
            step.append(MessageReceived(**names("r"), message_id="q", content="hi", disposition="queued"))
            step.write(PutRun(row=row("r", state="queued", trigger="queue")))
            step.append(RunQueued(**names("r"), position=1))

    _, runs, _ = await recover(await crash(live))
    event = check_run(runs["r"])
    assert (event.status, event.events, event.duration_ms) == ("lost", 2, 0)
    first = runs["r"][2].message
    assert isinstance(first, AgentStarted)
    assert (first.message_id, first.trigger) == ("q", "queue")


async def test_ended_runs_are_left_alone(autojump_clock: Clock) -> None:
    """A run that had ended gets no other end."""

    async def live(house: House) -> None:
        stream = await house.streams.open(ALICE)
        begin(stream)
        stream.append(completed(), SetRunState(user_id=ALICE, run_id="r", state="success", at=NOW))

    store = await crash(live)
    before = await events_of(store)
    count, _, after = await recover(store)
    assert (count, after) == (0, before)


@pytest.mark.parametrize("chunk", [1, 2, 500])
async def test_sub_runs_end_before_their_parents(
    chunk: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """However deep runs are nested, and however many there are, each ends after all that it had started."""
    monkeypatch.setattr(recovery, "CHUNK", chunk)
    family = {"a": None, "a.a": "a", "a.b": "a", "a.a.a": "a.a", "a.a.a.a": "a.a.a", "b": None, "b.a": "b"}

    async def live(house: House) -> None:
        stream = await house.streams.open(ALICE)
        for run_id, parent in family.items():
            begin(stream, run_id, parent)
            stream.append(tool(f"call {run_id}", run_id, parent))

    count, runs, everything = await recover(await crash(live))
    assert count == len(family)
    ends = [h.fields["run_id"] for h in everything if isinstance(h.message, AgentCompleted)]
    assert sorted(ends) == sorted(family)
    for run_id, parent in family.items():
        assert check_run(runs[run_id]).status == "lost"
        assert last(runs[run_id]).parent_run_id == parent
        assert parent is None or ends.index(run_id) < ends.index(parent)


async def test_a_sub_run_of_an_ended_parent_is_closed(autojump_clock: Clock) -> None:
    """A parent that is not among the lost ones holds nothing up."""

    async def live(house: House) -> None:
        begin(await house.streams.open(ALICE), "child", "gone")

    _, runs, _ = await recover(await crash(live))
    assert check_run(runs["child"]).parent_run_id == "gone"


async def test_recovery_twice_is_harmless(autojump_clock: Clock) -> None:
    """A second start finds nothing to do and writes nothing."""

    async def live(house: House) -> None:
        begin(await house.streams.open(ALICE))

    store = await crash(live)
    count, _, first = await recover(store)
    again, _, second = await recover(store)
    assert (count, again) == (1, 0)
    assert first == second


@pytest.mark.parametrize("after", [False, True])
async def test_a_crash_in_the_middle_of_recovery(after: bool, autojump_clock: Clock) -> None:
    """When recovery itself is killed, at any write, the next start completes it and no run ends twice."""

    async def live(house: House) -> None:
        for user in (ALICE, "bob"):
            stream = await house.streams.open(user)
            for number in range(5):
                begin(stream, f"{user}{number}")
                stream.append(tool("c", f"{user}{number}"))

    store = await crash(live)
    store.failures, store.after = 10**6, after
    async with open_house(store) as house:
        with trio.move_on_after(5) as scope:
            await close_lost_runs(store, house.streams, house.recorder)
        assert scope.cancelled_caught
    store.failures = 0
    _, runs, _ = await recover(store)
    for number in range(5):
        assert check_run(runs[f"{ALICE}{number}"]).status == "lost"
    assert [last([h]).run_id for h in await events_of(store, "bob") if h.type == "agent_completed"]


async def test_recovery_waits_for_a_store_that_fails(autojump_clock: Clock) -> None:
    """Writes that fail are tried again, as the recorder does; a read that fails is told to whoever starts."""

    class Down(TroubledStore):
        async def unfinished_runs(self, limit: int) -> object:
            if self._fails():
                raise StoreError("away")
            return await self.kept.unfinished_runs(limit)

    async def live(house: House) -> None:
        begin(await house.streams.open(ALICE))

    store = Down()
    await crash(live, store)
    store.failures = 1
    async with open_house(store) as house:
        with pytest.raises(StoreError):
            await close_lost_runs(store, house.streams, house.recorder)
    _, runs, _ = await recover(store)
    assert check_run(runs["r"]).status == "lost"


async def test_every_user_has_their_own_end(autojump_clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Runs of the same id of different users are closed on the stream of each; one line tells how many."""
    caplog.set_level(logging.INFO)

    async def live(house: House) -> None:
        for user in (ALICE, "bob", "carol"):
            begin(await house.streams.open(user))

    store = await crash(live)
    count, _, _ = await recover(store)
    assert count == 3
    for user in (ALICE, "bob", "carol"):
        heard = await events_of(store, user)
        assert check_run(heard).status == "lost"
        assert {h.fields["user_id"] for h in heard} == {user}
    assert [record.getMessage() for record in caplog.records] == [
        "closed 3 runs that were lost when the server last stopped"
    ]


async def test_lost_events_are_numbered_behind_all_others(autojump_clock: Clock) -> None:
    """Closing events come behind every number that a client may have seen, in the same epoch."""
    seen = 0

    async def live(house: House) -> None:
        nonlocal seen
        stream = await house.streams.open(ALICE)
        begin(stream)
        await house.recorder.flush()
        for _ in range(100):
            stream.append(delta("x"))
        seen = stream.visible

    _, runs, _ = await recover(await crash(live))
    assert seen == 101
    closing = [h for h in runs["r"] if h.type != "agent_started"]
    assert all(h.stamp is not None and h.stamp.seq > seen for h in closing)


async def test_a_message_that_was_being_said_ends_at_what_is_stored(autojump_clock: Clock) -> None:
    """Who heard more of a message than was stored gets it as everybody has it; the thread keeps its order."""

    def said_by(entry_seq: int, message_id: str, role: Any, content: str) -> PutMessage:
        return PutMessage(
            row=MessageRow(
                user_id=ALICE,
                thread_id="t",
                message_id=message_id,
                run_id="r",
                role=role,
                content=content,
                created_at=NOW,
                seq=entry_seq,
            )
        )

    async def live(house: House) -> None:
        stream = await house.streams.open(ALICE)
        with stream.step() as step:
            step.write(PutThread(user_id=ALICE, thread_id="t", title="", metadata={}, created_at=NOW))
        begin(stream)
        stream.append(delta("so far"))
        with stream.step() as step:
            step.write(said_by(step.append(full("so far")).seq, "m", "assistant", "so far"))
        with stream.step() as step:
            event = MessageReceived(**names("r"), message_id="s", content="hurry", disposition="steered")
            step.write(said_by(step.append(event).seq, "s", "user", "hurry"))
        stream.append(delta(" and beyond"))

    store = await crash(live)
    _, runs, _ = await recover(store)
    check_run(runs["r"])
    final = runs["r"][-2]
    assert (final.type, final.fields["phase"], final.fields["content"]) == ("agent_message", "full", "so far")
    async with open_house(store) as house:
        history = await Ledger(store).thread_history(await house.streams.open(ALICE), "t", 10, None)
    assert [(m.id, m.content) for m in history.messages] == [("m", "so far"), ("s", "hurry")]
    assert history.partial == []


async def test_the_end_and_the_state_of_a_run_are_one_transaction(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """No crash can leave a run that has ended without its last event, or with two of them."""
    monkeypatch.setattr(recorder, "GROUP_WRITES", 1)

    async def live(house: House) -> None:
        stream = await house.streams.open(ALICE)
        begin(stream)
        stream.append(tool("a"))

    store = await crash(live)
    store.batches.clear()
    await recover(store)
    (batch,) = store.batches
    assert [type(write) for write in batch if not isinstance(write, PutEvent)] == [PutStream, SetRunState]
    assert [write.type for write in batch if isinstance(write, PutEvent)] == ["tool_completed", "agent_completed"]


async def test_all_events_of_a_lost_run_are_of_the_protocol(autojump_clock: Clock) -> None:
    """Everything that recovery writes is an event that clients know."""

    async def live(house: House) -> None:
        stream = await house.streams.open(ALICE)
        begin(stream)
        stream.append(tool("a"))
        stream.append(InputRequired(**names("r"), input_id="i", prompt="?"))
        stream.append(full("x"))

    _, runs, _ = await recover(await crash(live))
    assert all(isinstance(heard.message, RunEvent) for heard in runs["r"])
