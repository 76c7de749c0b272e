"""When the last connection of a user goes: who is cancelled, who may stay, and for how long."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing

from netra_ws import ClientError, Identity, Run
from netra_ws.contexts.states import LIVING, TRANSITIONS, ContextState, ContextStep
from netra_ws.testing import check_run, make_settings, open_session

from ..conftest import StartServer
from ..kit import connect


async def patient(run: Run) -> str:
    """Works for ten seconds."""
    await run.say("working")
    await trio.sleep(10)
    return "finished"


def test_every_state_has_a_row() -> None:
    """A new state of a context cannot be added without saying what may follow it."""
    assert TRANSITIONS.keys() == set(ContextState)
    assert {step for row in TRANSITIONS.values() for step in row} == set(ContextStep)
    assert all(ContextStep.CLOSE in TRANSITIONS[state] for state in LIVING)


@pytest.mark.parametrize(
    ("policy", "status", "after_ms"),
    [("cancel", "cancelled", 0), ("grace", "cancelled", 5000), ("continue", "success", 10_000)],
)
async def test_policies(policy: Any, status: str, after_ms: int, autojump_clock: trio.testing.MockClock) -> None:
    """cancel ends at once, grace after the resume window, continue not at all."""
    async with open_session({"patient": patient}, {"timing.resume_window_s": 5.0}, user_id="other") as (server, _):
        async with server.context_for(Identity("tester")) as session:
            context = session.context
            run = await session.start("x", agent="patient", on_disconnect=policy)
            await trio.sleep(0)
        with trio.fail_after(30):
            while run.run_id in context.runs:
                await trio.sleep(0.01)
        async with server.context_for(Identity("tester")) as session:
            events = await _replay(session)
        last = check_run([e for e in events if e.fields.get("run_id") == run.run_id])
        assert last.status == status
        assert last.cancelled_by == (None if status == "success" else "disconnect")
        assert after_ms <= last.duration_ms < after_ms + 500


async def _replay(session: Any) -> list[Any]:
    from netra_ws import Position

    upto = session.position
    events = []
    async for heard in session.events(after=Position(epoch=upto.epoch, seq=0)):
        events.append(heard)
        if heard.stamp.seq >= upto.seq:
            break
    return events


async def test_a_returning_connection_lifts_the_deadline(server: StartServer) -> None:
    """Who comes back within the resume window finds the run going on, and hears how it ends."""
    release = trio.Event()

    async def waits(run: Run) -> str:
        await release.wait()
        return "still here"

    running = await server(agents={"waits": waits}, timing__resume_window_s=0.4)
    async with connect(running) as client:
        ack = await client.ask("chat", content="x", agent="waits")
        epoch = client.welcome["stream"]["epoch"]
        seq = (await client.until("agent_started"))[-1]["seq"]
    await trio.sleep(0.2)
    async with connect(running, path=f"/ws?resume={epoch}:{seq}") as client:
        assert client.welcome["resumed"] is True
        assert [run["run_id"] for run in client.welcome["active_runs"]] == [ack["run_id"]]
        await trio.sleep(0.4)  # the old deadline has passed
        release.set()
        ended = (await client.until("agent_completed"))[-1]
        assert (ended["status"], ended["final_response"]) == ("success", "still here")


async def test_goodbye_ends_without_grace(server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    """The command disconnect is acknowledged, closes with 1000, and ends what is not meant to continue."""
    caplog.set_level(logging.INFO, "netra_ws")
    gone = trio.Event()

    async def waits(run: Run) -> None:
        try:
            await trio.sleep_forever()
        finally:
            gone.set()

    running = await server(agents={"waits": waits}, timing__resume_window_s=60)
    async with connect(running) as client:
        await client.ask("chat", content="x", agent="waits")
        assert (await client.ask("disconnect"))["type"] == "ack"
        assert (await client.leave()).code == 1000
        with trio.fail_after(5):
            await gone.wait()
    with trio.fail_after(5):
        while list(running.registry):
            await trio.sleep(0.01)
    assert "context closed user=ada runs_cancelled=1" in caplog.text


async def test_one_of_two_tabs_may_go(server: StartServer) -> None:
    """A run goes on while any connection of its user is open."""
    release = trio.Event()

    async def waits(run: Run) -> None:
        await release.wait()

    running = await server(agents={"waits": waits}, timing__resume_window_s=0)
    async with connect(running) as stays:
        async with connect(running) as goes:
            await goes.ask("chat", content="x", agent="waits", on_disconnect="cancel")
            await goes.ask("disconnect")
        await trio.sleep(0.1)
        release.set()
        assert (await stays.until("agent_completed"))[-1]["status"] == "success"


async def test_a_closing_context_turns_nobody_away(server: StartServer) -> None:
    """Who comes while their context is closing gets a new one on the same stream, and hears how the old one ends."""
    release = trio.Event()

    async def slow_to_leave(run: Run) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await release.wait()

    running = await server(agents={"slow": slow_to_leave}, timing__resume_window_s=0, timing__finalise_s=5)
    try:
        async with connect(running) as client:
            await client.ask("chat", content="x", agent="slow", thread_id="t")
            await client.until("agent_started")
        with trio.fail_after(4):
            while running.registry.statistics().users:
                await trio.sleep(0.01)
        async with connect(running) as client:
            answer = await client.ask("chat", content="y", agent="echo", thread_id="other", id="new")
            assert answer["type"] == "ack"
            await client.until("agent_completed", run_id=answer["run_id"])
            release.set()
            ended = (await client.until("agent_completed"))[-1]
            assert (ended["status"], ended["cancelled_by"]) == ("cancelled", "disconnect")
    finally:
        release.set()


async def test_embedded_runs_continue(autojump_clock: trio.testing.MockClock) -> None:
    """A run that never had a socket goes on when the program lets its context go."""
    async with open_session({"patient": patient}, {"timing.resume_window_s": 0.0}, user_id="other") as (server, _):
        async with server.context_for(Identity("tester")) as session:
            run = await session.start("x", agent="patient")
            context = session.context
        with trio.fail_after(60):
            while run.run_id in context.runs:
                await trio.sleep(0.1)
        async with server.context_for(Identity("tester")) as session:
            assert await session.stop(run.run_id) == "success"
            with pytest.raises(ClientError, match="NOT_FOUND"):
                await session.stop("run_unknown")


async def test_operator_may_forbid_continue(server: StartServer) -> None:
    """on_disconnect continue is refused where the operator does not allow it."""
    running = await server(agents__allow_continue=False)
    async with connect(running) as client:
        refused = await client.ask("chat", content="x", agent="echo", on_disconnect="continue")
        assert refused["code"] == "FORBIDDEN"


async def test_shutdown_closes_everything_in_order(server: StartServer) -> None:
    """A drain tells clients, refuses new runs, cancels what is left, and closes with 1012 behind the last event."""

    async def forever(run: Run) -> None:
        await trio.sleep_forever()

    running = await server(agents={"forever": forever})
    async with connect(running) as client, trio.open_nursery() as nursery:
        await client.ask("chat", content="x", agent="forever")
        nursery.start_soon(running.drain, 0.3)
        notice = (await client.until("draining"))[-1]
        assert notice["reconnect_after_ms"] > 0
        assert (await client.ask("chat", content="y"))["code"] == "DRAINING"
        ended = (await client.until("agent_completed"))[-1]
        assert (ended["status"], ended["cancelled_by"]) == ("cancelled", "shutdown")
        assert (await client.leave()).code == 1012


async def test_a_cancelled_program_still_ends_in_order() -> None:
    """When the whole program is cancelled, runs get their last event, and it is committed."""
    from netra_ws import open_server

    async def forever(run: Run) -> None:
        await trio.sleep_forever()

    with trio.move_on_after(0.3):
        async with (
            open_server(make_settings(), agents={"forever": forever}) as server,
            server.context_for(Identity("tester")) as session,
        ):
            await session.start("x", agent="forever")
            await trio.sleep_forever()
    assert server.recorder.statistics().waiting == 0
    assert server.registry.runs.ended == {("forever", "cancelled", "shutdown"): 1}
