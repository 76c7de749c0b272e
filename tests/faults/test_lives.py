"""Random lives of one user: tabs come and go, commands cross and repeat, time passes; nothing breaks or is left."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netra_ws import Run, open_server
from netra_ws.protocol.codec import read_server
from netra_ws.server import Server
from netra_ws.testing import check_run

from .. import kit
from ..kit import Client, Ended, connect, holdings, settles

LIVES = int(os.environ.get("NETRA_WS_TEST_LIVES", "20"))
ON_BUSY = ("enqueue", "reject", "interrupt", "rollback", "steer")
GRACE_S = 3.0


async def quick(run: Run) -> str:
    async with run.tool("a"):
        await trio.sleep(0.2)
    await run.say(run.text)
    return " ".join(run.steered())


async def long(run: Run) -> None:
    async with run.tool("outer"):
        for _ in range(20):
            await run.say(".")
            async with run.tool("inner"):
                await trio.sleep(1)


async def stubborn(run: Run) -> None:
    """Cannot be stopped for longer than anybody waits."""
    async with run.tool("shielded"):
        with trio.CancelScope(shield=True):
            await trio.sleep(4)


async def raises(run: Run) -> None:
    try:
        await trio.sleep(2)
    finally:
        raise SystemExit(1)


AGENTS = {"quick": quick, "long": long, "stubborn": stubborn, "raises": raises}

tabs = st.integers(0, 2)
threads = st.sampled_from("ab")
actions = st.one_of(
    st.tuples(st.just("open"), tabs),
    st.tuples(st.just("close"), tabs, st.sampled_from(("disconnect", "reset", "finish"))),
    st.tuples(
        st.just("start"),
        tabs,
        st.sampled_from(sorted(AGENTS)),
        st.one_of(st.none(), threads),
        st.sampled_from(ON_BUSY),
        st.sampled_from(("grace", "cancel", "continue")),
        st.integers(0, 7),
    ),
    st.tuples(st.just("stop"), tabs, st.integers(0, 9), st.integers(0, 3)),
    st.tuples(st.just("delete"), tabs, threads, st.integers(0, 3)),
    st.tuples(st.just("sleep"), st.sampled_from((0.0, 0.05, 0.3, 1.1, GRACE_S + 0.1, 12.0))),
)


@attrs.define(eq=False)
class Tab:
    """A connection, and everything that it heard."""

    client: Client
    heard: list[dict[str, Any]] = attrs.field(factory=list)
    gone: trio.Event = attrs.field(factory=trio.Event)

    async def read(self) -> None:
        try:
            while True:
                self.heard.append(await self.client.receive())
        except (Ended, AssertionError, trio.ClosedResourceError, trio.BrokenResourceError):
            self.gone.set()


@attrs.define(eq=False)
class Life:
    """What one user does, and what came of it.

    Attributes:
        said: Bodies of commands by id, the first one said under it.
    """

    server: Server
    nursery: trio.Nursery
    tabs: dict[int, tuple[Tab, trio.CancelScope]] = attrs.field(factory=dict)
    every_tab: list[Tab] = attrs.field(factory=list)
    said: dict[str, dict[str, Any]] = attrs.field(factory=dict)

    async def do(self, action: Sequence[Any]) -> None:
        name, *rest = action
        await getattr(self, name)(*rest)
        for _ in range(5):
            await trio.lowlevel.checkpoint()

    async def open(self, number: int) -> None:
        if number in self.tabs:
            return
        opened = trio.Event()
        scope = trio.CancelScope()

        async def hold() -> None:
            with scope:
                async with connect(self.server) as client:
                    tab = Tab(client)
                    self.tabs[number] = tab, scope
                    self.every_tab.append(tab)
                    opened.set()
                    await tab.read()

        self.nursery.start_soon(hold)
        await opened.wait()

    async def close(self, number: int, how: str) -> None:
        if number not in self.tabs:
            return
        tab, scope = self.tabs.pop(number)
        if how == "reset":
            scope.cancel()
            return
        if how == "disconnect":
            await self._send(tab, {"type": "disconnect"})
        else:
            await tab.client.send_frame(kit.CLOSE, kit.close_payload(1000))
        with trio.move_on_after(20):
            await tab.gone.wait()
        scope.cancel()

    async def start(
        self, number: int, agent: str, thread: str | None, on_busy: str, on_disconnect: str, number_of_id: int
    ) -> None:
        body = {"type": "chat", "content": f"to {agent}", "agent": agent, "on_busy": on_busy}
        if thread is not None:
            body["thread_id"] = thread
        await self._command(number, f"start {number_of_id}", {**body, "on_disconnect": on_disconnect})

    async def stop(self, number: int, which: int, number_of_id: int) -> None:
        runs = list(dict.fromkeys(e["run_id"] for tab in self.every_tab for e in tab.heard if e.get("run_id")))
        if runs:
            body = {"type": "stop_agent", "run_id": runs[which % len(runs)]}
            await self._command(number, f"stop {number_of_id}", body)

    async def delete(self, number: int, thread: str, number_of_id: int) -> None:
        await self._command(number, f"delete {number_of_id}", {"type": "delete_thread", "thread_id": thread})

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def _command(self, number: int, command_id: str, body: dict[str, Any]) -> None:
        if number not in self.tabs:
            await self.open(number)
        self.said.setdefault(command_id, body)
        await self._send(self.tabs[number][0], {**body, "id": command_id})

    async def _send(self, tab: Tab, command: dict[str, Any]) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await tab.client.say(json.dumps(command))


async def live(plan: Sequence[Sequence[Any]]) -> None:
    """Live a life, and look at it afterwards."""
    overrides = {
        "timing.finalise_s": 2.0,
        "timing.resume_window_s": GRACE_S,
        "timing.run_timeout_s": 8.0,
        "timing.idle_timeout_s": 5.0,
        "limits.max_queued_per_thread": 2,
        "limits.max_runs_per_user": 4,
    }
    async with open_server(kit.settings(overrides), agents=AGENTS) as server:
        await trio.sleep(1)
        before = holdings(server)
        async with trio.open_nursery() as nursery:
            life = Life(server, nursery)
            for action in plan:
                await life.do(action)
            await trio.sleep(45)  # everything that goes on has its end by itself
            log = await read_log(server)
            for tab, _ in life.tabs.values():
                check_tab(tab, log)
            nursery.cancel_scope.cancel()
        check_log(log)
        for tab in life.every_tab:
            check_answers(tab, log)
        check_ids(life, log)
        assert server.registry.statistics().runs == 0
        await settles(server, before, within_s=60)


async def read_log(server: Server) -> list[dict[str, Any]]:
    """Return every event of the user."""
    async with connect(server) as client:
        position = client.welcome["stream"]
        if not position["seq"]:
            return []
        async with connect(server, path=f"/ws?resume={position['epoch']}:0") as again:
            return [each for each in await again.until("replay_completed") if "seq" in each]


def check_tab(tab: Tab, log: list[dict[str, Any]]) -> None:
    """A connection has heard everything from its welcome on, in order."""
    heard = [each for each in tab.heard if "seq" in each]
    assert heard == [each for each in log if each["seq"] > tab.client.welcome["stream"]["seq"]]


def check_log(log: list[dict[str, Any]]) -> None:
    """Each run keeps the grammar, each that was asked for has its end, and a thread has one at a time."""
    assert [each["seq"] for each in log] == list(range(1, len(log) + 1))
    runs: dict[str, list[dict[str, Any]]] = {}
    turn: dict[str, str] = {}
    starts = {event["run_id"]: event["seq"] for event in log if event["type"] == "agent_started"}
    # A queued run that is dropped begins and ends at once, whoever's turn it is.
    dropped = {e["run_id"] for e in log if e["type"] == "agent_completed" and starts[e["run_id"]] == e["seq"] - 1}
    for event in log:
        if event["type"] == "agent_started" and event["run_id"] not in dropped:
            assert event["thread_id"] not in turn, "two runs at once in one thread"
            turn[event["thread_id"]] = event["run_id"]
        elif event["type"] == "agent_completed" and event["run_id"] not in dropped:
            assert turn.pop(event["thread_id"]) == event["run_id"]
        elif event["type"] == "thread_deleted":
            assert event["thread_id"] not in turn, "a thread was deleted while a run of it went on"
        if "run_id" in event and not (event["type"] == "user_message" and event["disposition"] == "steered"):
            runs.setdefault(event["run_id"], []).append(event)
    for events in runs.values():
        check_run([read_server(json.dumps(event)) for event in events])
    assert not turn


def check_answers(tab: Tab, log: list[dict[str, Any]]) -> None:
    """A stop is answered behind the end of its run, with the status that this has."""
    ended: dict[str, str] = {e["run_id"]: e["status"] for e in log if e["type"] == "agent_completed"}
    told = 0
    for message in tab.heard:
        told = max(told, message.get("seq", 0))
        if str(message.get("reply_to")).startswith("stop") and message["type"] == "ack":
            assert message["status"] == ended[message["run_id"]]
            end = next(e["seq"] for e in log if e["type"] == "agent_completed" and e["run_id"] == message["run_id"])
            assert end <= max(told, tab.client.welcome["stream"]["seq"]), "a stop was answered before the end was told"


def check_ids(life: Life, log: list[dict[str, Any]]) -> None:
    """Whatever was said under one id had one effect and one answer, wherever it was said."""
    effects = [event["command_id"] for event in log if event["type"] == "user_message"]
    assert len(effects) == len(set(effects)), "a command happened twice"
    answers: dict[str, set[tuple[Any, ...]]] = {}
    for tab in life.every_tab:
        for message in tab.heard:
            remembered = message["type"] != "error" or not message["retryable"]
            if message.get("reply_to") and remembered and message.get("code") != "CONFLICT":
                told = tuple(message.get(name) for name in ("type", "code", "run_id", "thread_id", "message_id"))
                answers.setdefault(message["reply_to"], set()).add((*told, message.get("status")))
    for command_id, different in answers.items():
        assert len(different) == 1, (command_id, different)
    for command_id, (answer,) in answers.items():
        if command_id.startswith("start") and answer[0] == "ack":
            (effect,) = [e for e in log if e["type"] == "user_message" and e["command_id"] == command_id]
            assert (effect["run_id"], effect["message_id"]) == (answer[2], answer[4])


@pytest.mark.heavy
@given(st.lists(actions, min_size=1, max_size=40))
@settings(
    max_examples=LIVES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_any_life(monkeypatch: pytest.MonkeyPatch, plan: list[tuple[Any, ...]]) -> None:
    """Whatever a user does in whatever order, runs keep the grammar, commands happen once, and nothing is left."""
    monkeypatch.setattr(kit, "PATIENCE_S", math.inf)
    trio.run(live, plan, clock=trio.testing.MockClock(autojump_threshold=0))
