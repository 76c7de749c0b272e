"""The fault injector: what a seed says happens, again and again."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import trio
from trio.testing import MockClock

from netra_ws import CommandFailed
from netra_ws.testing import KINDS, open_test_server
from netra_ws.testing.faults import Kind, plan

from .agents import talker


def run_once(seed: int) -> list[str]:
    """Run two clients under chaos for a minute, on a clock of its own; return the log of faults."""

    async def main() -> list[str]:
        async with open_test_server({"talker": talker}, seed=seed) as server:
            async with (
                server.connect("alice") as alice,
                server.connect("bob") as bob,
                server.faults.chaos(0.5, kinds=[kind for kind in KINDS if kind != "refuse"]),
            ):
                for session in (alice, bob):
                    with trio.move_on_after(30), contextlib.suppress(CommandFailed):  # the store may be away
                        await (await session.start("go")).result()
                    await trio.sleep(trio.current_time() % 1)
            return server.faults.report().splitlines()

    return trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_seed_replays(seed: int) -> None:
    """The same seed injects the same faults at the same moments, to the byte."""
    first = run_once(seed)
    assert len(first) > 10
    assert all(run_once(seed) == first for _ in range(3))


def test_seeds_differ() -> None:
    """Another seed is another game."""
    assert run_once(4)[1:] != run_once(5)[1:]


def test_a_plan_depends_on_its_arguments_alone() -> None:
    """Plans of two links are independent of each other, and have every kind of fault in them."""
    plans = {name: list(itertools.islice(plan(7, name, 1.0, KINDS), 500)) for name in ("alice", "bob", "store")}
    assert plans["alice"] != plans["bob"]
    assert plans["alice"] == list(itertools.islice(plan(7, "alice", 1.0, KINDS), 500))
    assert {each.kind for each in plans["alice"]} == set(KINDS)
    assert 0.8 < sum(each.delay_s for each in plans["bob"]) / 500 < 1.2


async def test_a_failing_test_tells_its_seed(autojump_clock: MockClock) -> None:
    """An exception that leaves the server's block, alone and as it is, notes the seed and what was injected."""
    with pytest.raises(AssertionError) as raised:
        async with open_test_server(seed=42) as server, server.connect("alice"):
            server.link("alice").drop()
            raise AssertionError("no")
    (note,) = raised.value.__notes__
    assert note.startswith("seed 42, 1 faults:")
    assert "alice/1: drop" in note


async def test_what_pytest_raises_comes_as_it_is(autojump_clock: MockClock) -> None:
    """Skips and failures of pytest, which are no exceptions like others, leave the block as they are."""
    with pytest.raises(pytest.fail.Exception):
        async with open_test_server():
            pytest.fail("no")


async def test_chaos_ends_with_its_block(autojump_clock: MockClock) -> None:
    """When the block of a chaos is left nothing more is injected, and what can heal is healed."""
    kinds: list[Kind] = ["refuse", "store.hang", "stall"]
    async with open_test_server() as server:
        with pytest.raises(ValueError, match="mine"):
            async with server.faults.chaos(5.0, kinds=kinds), server.connect("alice"):
                await trio.sleep(20)
                raise ValueError("mine")
        count = len(server.faults.log)
        async with server.connect("alice") as alice:
            await trio.sleep(20)
            assert (await alice.threads()).threads == []
        assert len(server.faults.log) == count


async def test_chaos_leaves_other_links_alone(autojump_clock: MockClock) -> None:
    """Only the links that are named are struck, also those that come later."""
    async with open_test_server({"talker": talker}) as server:
        async with (
            server.connect("calm"),
            server.faults.chaos(1.0, links=["alice"]),
            server.connect("alice"),
            server.connect("bob"),
        ):
            await trio.sleep(20)
        struck = {one.where.partition("/")[0] for one in server.faults.log if one.what != "heal"}
        assert struck == {"alice", "store"}
        assert server.link("calm").opened == server.link("bob").opened == 1
