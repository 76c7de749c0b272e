"""Each fault, against the real server and the real client."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from netra_ws import ConnectionLost, Run
from netra_ws.client import ClientPolicy
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import AgentMessage
from netra_ws.session import SessionState, StateChange
from netra_ws.testing import check_no_gap_no_double, check_run, open_test_server, texts
from netra_ws.testing.lines import Towards

from .agents import talker

CUTS = [1, 2, 3, 10, 100, 10_000]


def waits(changes: Sequence[StateChange]) -> list[str]:
    """Why the client waited for another connection."""
    return [change.reason for change in changes if change.state is SessionState.WAITING]


async def test_a_drop_is_survived(autojump_clock: MockClock) -> None:
    """After a reset the client is back at once, and its run goes on where it was."""
    changes: list[StateChange] = []
    async with open_test_server({"talker": talker}) as server:
        async with server.connect("alice", on_state=changes.append) as alice:
            events = alice.events()
            run = await alice.start("go")
            await trio.sleep(2)
            server.link("alice").drop()
            assert (await run.result()).status == "success"
        check_no_gap_no_double([one async for one in events], await server.recorded("alice"))
        assert len(waits(changes)) == 1
        assert server.link("alice").opened == 2
        await server.settled()


@pytest.mark.parametrize("towards", ["client", "server", "both"])
async def test_half_open_is_found_by_heartbeats(autojump_clock: MockClock, towards: Towards) -> None:
    """A line on which nothing arrives is found by silence, on either side, and the client resumes on another."""
    async with open_test_server({"talker": talker}) as server:
        async with server.connect("alice") as alice:
            events = alice.events()
            run = await alice.start("go", on_disconnect="continue")
            await trio.sleep(2)
            server.link("alice").half_open(towards)
            while server.link("alice").opened < 2 or alice.state is not SessionState.OPEN:
                await trio.sleep(1)
            welcome, counts = alice.welcome, server.server.wiring.counts
            assert trio.current_time() < 2 + 2 * (welcome.heartbeat_interval_s + welcome.pong_timeout_s) + 5
            await trio.sleep(60)
            assert counts.closes[4001] == (1 if towards != "client" else counts.closes[4001])
            await run.result()
        check_no_gap_no_double([one async for one in events], await server.recorded("alice"))
        await server.settled()


async def test_a_peer_that_answers_no_ping_is_closed_with_4001(autojump_clock: MockClock) -> None:
    """Where the client's pongs do not arrive, the server says 4001, and a client that still hears is told so."""
    changes: list[StateChange] = []
    async with open_test_server() as server:
        async with server.connect("alice", on_state=changes.append):
            server.link("alice").half_open("server")
            await trio.sleep(60)
        assert server.server.wiring.counts.closes[4001] == 1
        assert waits(changes) == ["no pong"]


async def test_a_stall_is_sat_out(autojump_clock: MockClock) -> None:
    """A stall shorter than a heartbeat costs no connection, and nothing."""
    async with open_test_server({"talker": talker}) as server:
        async with server.connect("alice") as alice:
            events = alice.events()
            run = await alice.start("go")
            await trio.sleep(1)
            server.link("alice").stall(10)
            await run.result()
        check_no_gap_no_double([one async for one in events], await server.recorded("alice"))
        assert server.link("alice").opened == 1


@pytest.mark.parametrize("towards", ["client", "server"])
@pytest.mark.parametrize("after", CUTS)
async def test_a_frame_that_is_cut_doubles_nothing(autojump_clock: MockClock, after: int, towards: Towards) -> None:
    """A frame of which only a piece arrives is not heard, and comes whole after the return."""
    async with open_test_server({"talker": talker}) as server:
        async with server.connect("alice") as alice:
            events = alice.events()
            server.link("alice").cut_mid_frame(after, towards)
            run = await alice.start("go")
            server.link("alice").cut_mid_frame(after, "client")
            completed = await run.result()
        heard = [one async for one in events]
        check_no_gap_no_double(heard, await server.recorded("alice"))
        assert [one.type for one in heard].count("user_message") == 1
        assert list(texts(heard).values()) == [completed.final_response]
        assert server.link("alice").opened == 3
        await server.settled()


async def test_a_slow_reader_gets_merged_deltas(autojump_clock: MockClock) -> None:
    """Who reads slowly gets fewer, larger pieces and exactly the same text; another reader is not held up."""

    async def flood(run: Run) -> None:
        for number in range(3000):
            await run.say(f"{number} ")
            if not number % 100:
                await trio.sleep(0.1)

    async with open_test_server({"flood": flood}, {"history.ring_events": 10_000}) as server:
        async with server.connect("alice") as slow, server.connect("alice") as quick:
            of_slow, of_quick = slow.events(limit=10_000), quick.events(limit=10_000)
            server.link("alice").slow_reader(20_000)
            run = await quick.start("go")
            await run.result()
            assert slow.position != quick.position
            while slow.position != quick.position:
                await trio.sleep(1)
        heard: list[list[Heard]] = [[one async for one in queue] for queue in (of_slow, of_quick)]
        for events in heard:
            check_no_gap_no_double(events, await server.recorded("alice"))
        assert len(heard[0]) < len(heard[1]) / 2
        assert texts(heard[0]) == texts(heard[1])


async def test_a_link_that_refuses_is_tried_again(autojump_clock: MockClock) -> None:
    """While nobody listens the client tries again, and is there when somebody does."""
    async with open_test_server() as server:
        server.link("alice").refuse(20)
        async with server.connect("alice") as alice:
            assert trio.current_time() > 20
            assert alice.state is SessionState.OPEN
        server.link("bob").refuse()
        with pytest.raises(ConnectionLost):
            async with server.connect("bob", policy=ClientPolicy(connect_s=60)):
                pass


async def test_a_store_that_hangs_is_told_and_survived(autojump_clock: MockClock) -> None:
    """While the store hangs clients are warned and no durable event is told; afterwards all of them come."""
    async with open_test_server({"talker": talker}) as server:
        async with server.connect_raw("alice") as raw:
            await raw.ask("chat", content="go")
            await raw.until("agent_started")
            server.store.hang()
            *meanwhile, warning = await raw.until("connection_warning")
            assert warning["code"] == "UNAVAILABLE"
            assert trio.current_time() > 2  # the agent has called a tool
            assert {one.get("phase") for one in meanwhile} <= {"delta"}
            server.store.recover()
            after = await raw.until("agent_completed")
            assert [one["type"] for one in after].count("tool_executing") == 4
        await server.settled()


async def test_lost_answers_double_nothing(autojump_clock: MockClock) -> None:
    """A store whose writes take effect and fail nevertheless has every event and message once."""
    async with open_test_server({"talker": talker}) as server:
        async with server.connect("alice") as alice:
            events = alice.events()
            run = await alice.start("go")
            for _ in range(4):
                server.store.lose_answers()
                await trio.sleep(2)
                server.store.recover()
                await trio.sleep(1)
            await run.result()
            history = await alice.history(run.thread_id)
            assert [message.role for message in history.messages] == ["user", "assistant"]
        heard = [one async for one in events]
        check_no_gap_no_double(heard, await server.recorded("alice"))
        check_run(heard)
        assert any(isinstance(one.message, AgentMessage) for one in heard)


async def test_a_fault_without_a_line_does_nothing(autojump_clock: MockClock) -> None:
    """Faults may strike before anybody is connected; they stand in the log."""
    async with open_test_server() as server:
        link = server.link("nobody")
        link.drop()
        link.half_open()
        link.stall(1)
        link.cut_mid_frame()
        link.heal()
        assert not link.connected
        assert [struck.where for struck in server.faults.log] == ["nobody/0"] * 5


@pytest.mark.parametrize("bad", [0, -1])
async def test_what_is_no_fault_is_an_error(bad: int) -> None:
    """A cut before the first byte and a reader that takes nothing are other faults, and refused."""
    async with open_test_server() as server:
        with pytest.raises(ValueError):
            server.link().cut_mid_frame(bad)
        with pytest.raises(ValueError):
            server.link().slow_reader(bad)
