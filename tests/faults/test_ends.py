"""Every way in which a run can end, with every mood of the store: the grammar holds, nothing is lost or told twice."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from netra_ws import Identity, InputDeclined, Position, Run
from netra_ws.contexts.embedding import UserSession
from netra_ws.protocol.codec import Heard
from netra_ws.server import Server
from netra_ws.testing import check_family

from ..conftest import StartServer
from ..faulty import FaultyStore, Health
from ..kit import connect, http, operator

ADA = Identity("ada")


async def works(run: Run) -> str:
    """Talks and uses tools for four seconds."""

    async def tool(name: str) -> None:
        async with run.tool(name) as call:
            await trio.sleep(0.3)
            call.results = name

    for step in range(10):
        await run.think(f"step {step}", delta=True)
        async with trio.open_nursery() as nursery:
            for name in ("left", "right"):
                nursery.start_soon(tool, name)
        await run.say(f"{step} ")
        await trio.sleep(0.1)
    return run.said


async def fails(run: Run) -> None:
    """Raises in the middle, with tools and texts open."""
    async with run.tool("open"), trio.open_nursery() as nursery:
        nursery.start_soon(works, run)
        await trio.sleep(3)
        raise ValueError("as planned")


async def silent(run: Run) -> None:
    """Says nothing any more."""
    async with run.tool("open"):
        await run.say("one word")
        await trio.sleep_forever()


async def endless(run: Run) -> None:
    while True:
        await works(run)


async def asks(run: Run) -> None:
    """Asks, and nobody answers."""
    async with run.tool("careful"):
        await run.say("before ")
        await run.ask("Sure?", expires_in=4)


async def asks_on(run: Run) -> None:
    """Does not take the end of its question for an end of its own."""
    with contextlib.suppress(InputDeclined):
        await asks(run)
    await trio.sleep_forever()


async def family(run: Run) -> str:
    """Has two sub-runs work at the same time."""
    async with run.tool("family"), trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(run.delegate, works, "x")
    return "done"


async def endless_family(run: Run) -> None:
    """Has sub-runs of sub-runs work without end."""

    async def middle(run: Run) -> None:
        await run.delegate(endless, "x")

    async with run.tool("family"), trio.open_nursery() as nursery:
        for agent in (middle, endless, asks):
            nursery.start_soon(run.delegate, agent, "x")


End = Callable[[Server, UserSession, str], Awaitable[None]]


async def _wait(server: Server, session: UserSession, run_id: str) -> None:
    await trio.sleep(4)


async def _stop(server: Server, session: UserSession, run_id: str) -> None:
    await trio.sleep(2)
    assert await session.stop(run_id) == "cancelled"


async def _stop_late(server: Server, session: UserSession, run_id: str) -> None:
    await trio.sleep(3)  # a run that asks ends at once; that has to be committed in time for the answer
    assert await session.stop(run_id) == "cancelled"


async def _delete(server: Server, session: UserSession, run_id: str) -> None:
    async with connect(server) as client:
        await client.send("delete_thread", thread_id="t", id="d")
        assert (await client.ask("ping"))["type"] == "pong"
        await trio.sleep(6)
        await client.until("thread_deleted", reply_to="d")


async def _drain(server: Server, session: UserSession, run_id: str) -> None:
    await trio.sleep(2)
    assert await server.drain(1.0)


#: By name: the agent, on_disconnect, what is done, and the status and cancelled_by that come of it.
ENDS: dict[str, tuple[Any, Any, End | None, str, str | None]] = {
    "by itself": (works, "continue", _wait, "success", None),
    "with an error": (fails, "continue", _wait, "error", None),
    "stopped": (endless, "continue", _stop, "cancelled", "user"),
    "timeout": (endless, "continue", _wait, "timeout", "timeout"),
    "idle timeout": (silent, "continue", _wait, "timeout", "idle_timeout"),
    "left, cancel": (endless, "cancel", None, "cancelled", "disconnect"),
    "left, grace": (endless, "grace", None, "cancelled", "disconnect"),
    "left, continue": (works, "continue", None, "success", None),
    "thread deleted": (endless, "continue", _delete, "cancelled", "user"),
    "shutdown": (endless, "continue", _drain, "cancelled", "shutdown"),
    "question expired": (asks, "continue", _wait, "error", None),
    "question stopped": (asks, "continue", _stop_late, "cancelled", "user"),
    "question left, cancel": (asks, "cancel", None, "cancelled", "disconnect"),
    "question left, grace": (asks_on, "grace", None, "cancelled", "disconnect"),
    "question, shutdown": (asks, "continue", _drain, "cancelled", "shutdown"),
    "family by itself": (family, "continue", _wait, "success", None),
    "family stopped": (endless_family, "continue", _stop, "cancelled", "user"),
    "family left": (family, "grace", None, "cancelled", "disconnect"),
    "family, thread deleted": (family, "continue", _delete, "cancelled", "user"),
    "family, shutdown": (family, "continue", _drain, "cancelled", "shutdown"),
}


@pytest.mark.parametrize("mood", [Health.WELL, Health.AWAY, Health.FULL, Health.HANGING])
@pytest.mark.parametrize("end", ENDS)
async def test_every_end_in_every_mood(
    server: StartServer, autojump_clock: trio.testing.MockClock, end: str, mood: Health
) -> None:
    """However a run ends while the store does not answer for 5 s, its log is whole when the store does."""
    agent, on_disconnect, act, status, cancelled_by = ENDS[end]
    store = FaultyStore()
    running = await server(
        agents={"agent": agent},
        store=store,
        timing__run_timeout_s=20 if end != "timeout" else 3,
        timing__idle_timeout_s=10 if end != "idle timeout" else 2.5,
        timing__resume_window_s=2,
    )

    async def outage() -> None:
        await trio.sleep(1)
        store.turn(mood)
        await trio.sleep(5)
        store.turn(Health.WELL)

    async with trio.open_nursery() as nursery:
        async with running.context_for(ADA) as session:
            run = await session.start("x", agent="agent", thread_id="t", on_disconnect=on_disconnect)
            context = session.context
            nursery.start_soon(outage)
            await trio.sleep(0.5)
            if act is not None:
                await act(running, session, run.run_id)
        with trio.fail_after(30):
            while run.run_id in context.runs:
                await trio.sleep(0.1)
        await trio.sleep(10)
        with trio.fail_after(5):
            await running.recorder.flush()
        events = await _log(running)
    assert [each.stamp.seq for each in events] == list(range(1, len(events) + 1))
    ended = check_family(events)
    last = ended[run.run_id]
    if status == "cancelled":
        assert {each.cancelled_by for each in ended.values() if each is not last} <= {"parent"}
    assert (last.status, last.cancelled_by) == (status, cancelled_by)
    for run_id, end_of_run in ended.items():
        kept = await store.run("ada", run_id)
        assert kept is not None
        assert kept.state == end_of_run.status
    assert not context.runs


async def _log(server: Server) -> list[Any]:
    """Return everything that was ever said to Ada, as a client gets it."""
    events: list[Heard] = []
    server.registry.draining = False
    async with server.context_for(ADA) as session:
        end = session.position
        async for heard in session.events(after=Position(epoch=end.epoch, seq=0)):
            events.append(heard)
            assert heard.stamp is not None
            if heard.stamp.seq >= end.seq:
                return events
    raise AssertionError


async def test_who_cannot_be_stopped_is_named_and_holds_nobody_up(
    server: StartServer, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A sealed run stands in the log, in /ws/stats and in /metrics; runs, newcomers and a drain go on past it."""
    caplog.set_level(logging.INFO, "netra_ws")
    release = trio.Event()
    late: list[str] = []

    async def swallows(run: Run) -> None:
        async with run.tool("never ends"):
            while not release.is_set():
                try:
                    await trio.sleep(1)
                except BaseException as exc:
                    late.append(type(exc).__name__)
                    with trio.CancelScope(shield=True):
                        await trio.sleep(1)

    running = await server(agents={"swallows": swallows, "works": works})
    try:
        async with connect(running) as client:
            stuck = await client.ask("chat", content="x", agent="swallows", thread_id="t", id="0")
            await client.send("chat", content="y", agent="works", thread_id="u", id="other")
            await client.send("stop_agent", run_id=stuck["run_id"], id="stop")
            heard = await client.until("error", reply_to="stop")
            assert heard[-1]["code"] == "CANCEL_TIMEOUT"
            if not any(e["type"] == "agent_completed" and e["run_id"] == stuck["run_id"] for e in heard):
                heard += await client.until("agent_completed", run_id=stuck["run_id"])
            sealed = [each for each in heard if each.get("run_id") == stuck["run_id"] and "seq" in each]
            assert sealed[-1]["type"] == "agent_completed"
            assert sealed[-1]["error"]["code"] == "CANCEL_TIMEOUT"
            assert [e["status"] for e in sealed if e["type"] == "tool_completed"] == ["cancelled"]
            if not any(e["type"] == "agent_completed" and e.get("run_id") != stuck["run_id"] for e in heard):
                assert (await client.until("agent_completed"))[-1]["status"] == "success"
            again = await client.ask("stop_agent", run_id=stuck["run_id"], id="stop again")
            assert again["code"] == "CANCEL_TIMEOUT"
            assert any(
                stuck["run_id"] in record.getMessage() for record in caplog.records if record.levelname == "ERROR"
            )
            stats = (await http(running, "/ws/stats", bearer=operator())).json()
            assert (stats["stuck"], stats["stuck_runs"]) == (1, [stuck["run_id"]])
            told_to_all = (await http(running, "/ws/stats")).json()
            assert (told_to_all["stuck"], "stuck_runs" in told_to_all) == (1, False), "run ids are their user's words"
            assert b"\nnetra_ws_runs_stuck 1.0\n" in (await http(running, "/metrics")).body
            async with connect(running) as tab, connect(running, "bob") as bob:
                assert [run["state"] for run in tab.welcome["active_runs"]] == ["stuck"]
                for someone in (tab, bob):
                    ack = await someone.ask(
                        "chat", content="z", agent="echo", thread_id="t", id=someone.welcome["user_id"]
                    )
                    assert ack["disposition"] == "started"
                    assert (await someone.until("agent_completed", run_id=ack["run_id"]))[-1]["status"] == "success"
        with trio.fail_after(60):
            assert await running.drain(1.0) is False
        assert len(late) > 3
        release.set()
        with trio.fail_after(20):
            while running.registry.statistics().runs:
                await trio.sleep(0.1)
        assert await running.drain() is True
    finally:
        release.set()


def test_the_table_has_every_reason() -> None:
    """Each reason that this file can bring about is in the table; a new one cannot be added without a thought here."""
    from typing import get_args

    from netra_ws.protocol.events import CancelledBy

    elsewhere = {"interrupt", "rollback", "quota", "parent", "admin"}
    assert {by for *_, by in ENDS.values() if by} | elsewhere == set(get_args(CancelledBy))
