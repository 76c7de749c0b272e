"""The server over memory: every room of the real one, on Trio's clock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from netra_ws import Rejected, Run
from netra_ws.protocol.codec import Heard
from netra_ws.session import EventQueue, SessionState, StateChange
from netra_ws.testing import FaultyStore, MemoryServer, check_run, open_test_server
from netra_ws.testing.frames import CLOSE, TEXT
from netra_ws.testing.serving import EPOCH, RAW_PATIENCE_S

from .agents import talker


async def test_the_first_agent_is_the_default(autojump_clock: MockClock) -> None:
    """A message that names no agent goes to the first one that was given; those of the server are there, too."""
    async with open_test_server({"talker": talker}) as server:
        async with server.connect() as session:
            assert set(session.welcome.agents) == {"talker", "assistant", "echo"}
            assert (await (await session.start("go")).result()).agent_name == "talker"
        await server.settled()


async def test_time_follows_trio(autojump_clock: MockClock) -> None:
    """Timestamps are those of a calendar that begins with Trio's clock, the same in each test."""
    async with open_test_server({"talker": talker}) as server:
        await trio.sleep(100)
        assert server.now() == EPOCH + 100
        async with server.connect() as session:
            await (await session.start("go")).result()
        (started,) = [one for one in await server.recorded() if one.type == "agent_started"]
        assert started.fields["timestamp"] == EPOCH + 100
        assert (await server.get("/health")).json()["timestamp"] == server.now()


async def test_a_token_ends_by_the_virtual_clock(autojump_clock: MockClock) -> None:
    """A token of 90 seconds is warned about after 30 and closes with 4003 after 90 and the grace."""
    async with open_test_server() as server:
        async with server.connect_raw("alice", token=server.token("alice", expires_s=90)) as raw:
            warning = (await raw.until("auth_expiring"))[-1]
            assert (trio.current_time(), warning["expires_at"]) == (30, EPOCH + 90)
            assert (await raw.receive_close()).code == 4003
            assert trio.current_time() == 90 + server.server.settings.auth.expiry_grace_s
        with pytest.raises(Rejected):
            async with server.connect("alice", token=server.token("alice", expires_s=-100)):
                pass


async def test_a_client_with_one_token_ends_with_it(autojump_clock: MockClock) -> None:
    """A session that was given no function for new tokens ends when its token does; one that was goes on."""
    changes: list[StateChange] = []
    async with open_test_server() as server:
        token = server.token("alice", expires_s=60)
        async with (
            server.connect("alice", token=token, on_state=changes.append) as ends,
            server.connect("alice", token=lambda: server.token("alice", expires_s=60)) as goes_on,
        ):
            await trio.sleep(200)
            assert isinstance(ends.error, Rejected)
            assert goes_on.error is None
        assert changes[-1].state is SessionState.CLOSED


async def test_the_wire_is_in_the_tests_hands(autojump_clock: MockClock) -> None:
    """A raw client says any bytes and sees each frame, the server's refusals and Close frames among them."""
    async with open_test_server() as server:
        async with server.connect_raw("alice") as raw:
            await raw.send_frame(TEXT, b"\xff")
            assert (await raw.receive_close()).code == 1007
        async with server.raw() as nobody:
            await nobody.send_bytes(b"GET /ws HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await nobody.read_answer()).status == 426
        async with server.connect_raw("alice") as raw:
            await raw.ask("chat", content="hi", agent="echo")
            await raw.send("disconnect")
            assert (await raw.receive_close()).opcode == CLOSE
        await server.settled()


async def test_pages(autojump_clock: MockClock) -> None:
    """Pages answer as on a port, with a token where one is named."""
    async with open_test_server() as server:
        assert (await server.get("/ready")).status == 200
        assert (await server.get("/nothing")).status == 404
        server.store.fail()
        assert (await server.get("/ready")).status == 503
        assert (await server.get("/ws/stats", user="alice")).json()


async def test_clients_of_one_user_have_links_of_their_own(autojump_clock: MockClock) -> None:
    """The second client of a user dials over ``alice-2``; a name becomes free with its client."""
    async with open_test_server() as server:
        async with server.connect("alice") as one, server.connect("alice") as two:
            server.link("alice-2").drop()
            await trio.sleep(10)
            assert one.state is two.state is SessionState.OPEN
            assert (server.link("alice").opened, server.link("alice-2").opened) == (1, 2)
        async with server.connect("alice"):
            assert server.link("alice").opened == 2


async def test_a_session_goes_on_behind_an_earlier_one(autojump_clock: MockClock) -> None:
    """A position of an earlier session, or the start of all, is where a later one begins to hear."""
    async with open_test_server({"talker": talker}) as server:
        async with server.connect("alice") as first:
            await (await first.start("go")).result()
            start = server.start_of(first)
        async with server.connect("alice", position=start) as second:
            heard = [one async for one in _until_completed(second.events())]
        check_run(heard)


async def _until_completed(events: EventQueue) -> AsyncIterator[Heard]:
    async for one in events:
        yield one
        if one.type == "agent_completed":
            return


async def test_a_restart_on_the_same_store(autojump_clock: MockClock) -> None:
    """A second server on the store of the first one has what that has kept, and time has gone on."""
    store = FaultyStore()
    async with open_test_server({"talker": talker}, store=store) as server, server.connect("alice") as alice:
        run = await alice.start("go")
        await run.result()
    async with open_test_server({"talker": talker}, store=store) as server, server.connect("alice") as alice:
        assert len((await alice.history(run.thread_id)).messages) == 2


async def test_a_raw_client_waits_longer_than_the_server(autojump_clock: MockClock) -> None:
    """The patience of a raw client outlasts every timeout of the server that a test may wait for."""
    async with open_test_server() as server, server.connect_raw("alice") as raw:
        timing = server.server.settings.timing
        assert timing.heartbeat_interval_s + timing.pong_timeout_s + timing.resume_window_s < RAW_PATIENCE_S
        raw.answers_pings = False
        assert (await raw.receive_close()).code == 4001


@pytest.fixture
async def served(autojump_clock: MockClock) -> AsyncIterator[MemoryServer]:
    async with open_test_server({"talker": talker}) as server:
        yield server


async def test_a_fixture_may_hold_it(served: MemoryServer, autojump_clock: MockClock) -> None:
    """The server may be a fixture, which pytest-trio runs as a task of its own.

    The test asks for the clock itself, too: pytest-trio does not see one that only a fixture asks for.
    """
    async with served.connect("alice") as alice:
        assert (await (await alice.start("go")).result()).status == "success"
    await served.settled()


async def test_a_second_session_can_be_waited_for(autojump_clock: MockClock) -> None:
    """A session on a stalled link is waited for until it has heard what the log holds, and not without end."""
    async with (
        open_test_server({"talker": talker}) as server,
        server.connect("alice") as one,
        server.connect("alice", link="slow") as other,
    ):
        server.link("slow").stall(30.0)
        await (await one.start("go")).result()
        with pytest.raises(trio.TooSlowError):
            await server.caught_up(other, within_s=1.0)
        await server.caught_up(other)
        assert other.position == one.position


# Leaks.


async def test_grace_is_waited_for(autojump_clock: MockClock) -> None:
    """A server is settled when the grace of a lost client is over and its run was ended."""
    async with open_test_server({"talker": talker}, {"timing.resume_window_s": 5.0}) as server:
        async with server.connect_raw("alice") as raw:
            await raw.ask("chat", content="go")
            raw.reset()
        assert any("run_" in line for line in server.leaks())
        await server.settled()
        (end,) = [one for one in await server.recorded("alice") if one.type == "agent_completed"]
        assert end.fields["cancelled_by"] == "disconnect"


async def test_a_task_that_is_left_is_named(autojump_clock: MockClock) -> None:
    """A task that an agent leaves behind where nobody owns it is found, by its name."""
    let_go = trio.Event()

    async def leaves(run: Run) -> str:
        trio.lowlevel.spawn_system_task(let_go.wait, name="left by the agent")
        return "done"

    async with open_test_server({"leaves": leaves}) as server:
        async with server.connect() as session:
            await (await session.start("go")).result()
        with pytest.raises(AssertionError, match="left by the agent"):
            await server.settled()
        let_go.set()
        await server.settled()


async def test_a_run_that_goes_on_is_named(autojump_clock: MockClock) -> None:
    """A run that goes on without its user is left over until it ends."""

    async def forever(run: Run) -> None:
        await trio.sleep(500)

    async with open_test_server({"forever": forever}, {"timing.idle_timeout_s": 3600.0}) as server:
        async with server.connect("alice") as session:
            run = await session.start("go", on_disconnect="continue")
        with pytest.raises(AssertionError, match=f"run {run.run_id} of agent 'forever' has not ended"):
            await server.settled()
        await server.settled(1000)


async def test_a_process_that_is_left_is_named() -> None:
    """A child process that an agent starts past its run and leaves is found, by its command."""
    left: list[subprocess.Popen[bytes]] = []

    async def leaves(run: Run) -> str:
        left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return "done"

    async def tidy(run: Run) -> str:
        await run.process([sys.executable, "-c", "import time; time.sleep(60)"])
        return "done"

    async with open_test_server({"tidy": tidy, "leaves": leaves}) as server:
        async with server.connect() as session:
            await (await session.start("go", agent="tidy")).result()
        await server.settled()
        async with server.connect() as session:
            await (await session.start("go", agent="leaves")).result()
        with pytest.raises(AssertionError, match=r"child process \d+: .*time.sleep\(60\)"):
            await server.settled()
        left[0].kill()
        left[0].wait()
        await server.settled()
