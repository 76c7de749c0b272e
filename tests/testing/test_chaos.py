"""Whatever goes wrong: who keeps coming back ends with all of it, once, and the server ends empty."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from netra_ws.client import ClientPolicy, Session
from netra_ws.errors import CommandFailed, SessionError
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import AgentStarted, RunEvent
from netra_ws.testing import MemoryServer, check_no_gap_no_double, check_run, open_test_server, texts

from .agents import gusher, talker, thrower

#: A client that does not give up while the test lasts.
PATIENT = ClientPolicy(connect_s=3600.0, patience_s=3600.0, command_s=600.0)
AGENTS = {"talker": talker, "gusher": gusher, "thrower": thrower}
#: Seconds of the virtual clock after which something hangs.
TOO_LONG_S = 1800.0


async def talk(session: Session, asked: Sequence[str]) -> None:
    """Ask the agents one after the other; a command may fail, a run may be lost sight of."""
    for agent in asked:
        try:
            run = await session.start("go", agent=agent)
            await run.result()
        except (CommandFailed, SessionError):
            await trio.sleep(1.0)


async def caught_up(server: MemoryServer, user: str, *sessions: Session) -> None:
    """Wait until no run goes on and each session has heard the last event."""
    while any(context.runs for context in server.server.registry):
        await trio.sleep(0.5)
    await server.server.recorder.flush()
    last = (await server.recorded(user))[-1].stamp
    assert last is not None
    while any(session.position is None or session.position.seq < last.seq for session in sessions):
        await trio.sleep(0.5)


def check_all_runs(recorded: Sequence[Heard]) -> int:
    """Check the grammar of every run; return how many there were."""
    runs: defaultdict[str, list[Heard]] = defaultdict(list)
    for heard in recorded:
        if isinstance(heard.message, RunEvent):
            runs[heard.message.run_id].append(heard)
    for events in runs.values():
        assert any(isinstance(heard.message, AgentStarted) for heard in events)
        check_run(events)
    return len(runs)


@pytest.mark.parametrize("ring", [2000, 60], ids=["ring", "store"])
@pytest.mark.parametrize("seed", range(8))
async def test_nothing_is_missing_or_doubled(autojump_clock: MockClock, seed: int, ring: int) -> None:
    """Under any plan of faults, a client that comes back has all durable events and texts, and nothing is left over."""
    asked = sorted(AGENTS, key=lambda agent: hash((seed, len(agent))))
    rate = (0.1, 0.2, 0.5)[seed % 3]
    async with open_test_server(AGENTS, {"history.ring_events": ring}, seed=seed) as server:
        async with (
            server.connect("alice", policy=PATIENT) as alice,
            server.connect("alice", link="calm", policy=PATIENT) as calm,
            server.connect("bob", policy=PATIENT) as bob,
        ):
            heard = {session: session.events(limit=100_000) for session in (alice, calm, bob)}
            with trio.fail_after(TOO_LONG_S):
                async with server.faults.chaos(rate, links=["alice", "bob"]), trio.open_nursery() as nursery:
                    nursery.start_soon(talk, alice, asked)
                    nursery.start_soon(talk, bob, asked[::-1])
                await caught_up(server, "alice", alice, calm)
                await caught_up(server, "bob", bob)
        of_alice, of_calm, of_bob = [[one async for one in queue] for queue in heard.values()]
        for user, events in (("alice", of_alice), ("alice", of_calm), ("bob", of_bob)):
            check_no_gap_no_double(events, await server.recorded(user), skipping=ring < 2000)
        assert texts(of_alice, skipping=True) == texts(of_calm, skipping=True)
        check_all_runs(await server.recorded("alice"))
        check_all_runs(await server.recorded("bob"))
        await server.settled()
