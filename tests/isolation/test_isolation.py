"""Whatever many users do at once and whatever breaks meanwhile: nobody hears what is another's."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .world import VERBS, Step, World

#: Steps of the walk, and how many plans hypothesis makes; a fraction is the bounded campaign of the normal suite.
SIZE = float(os.environ.get("NETRA_WS_TEST_ISOLATION", "0.5"))
WALK_STEPS = int(1500 * SIZE)
PLANS = max(1, int(15 * SIZE))
USERS = 30
#: How often each verb is chosen in a walk.
WEIGHTS = {
    "open": 12,
    "close": 6,
    "say": 50,
    "talk": 20,
    "crowd": 1,
    "embed": 3,
    "job": 6,
    "build": 20,
    "page": 8,
    "break_link": 5,
}
WEIGHTS |= {"break_store": 1, "wait": 8, "restart": 0.4}
#: What has to be heard in a walk, and what to be refused with; there are more walks until it was.
TYPES = {"agent_message", "thread_history", "replay_completed", "stream_reset", "typing", "job_connected"}
TYPES |= {"job_disconnected"}
DENIED = {"NOT_FOUND", "FORBIDDEN", "CONFLICT"}
MOST_WALKS = 5

steps = st.tuples(
    st.integers(0, USERS - 1),
    st.sampled_from(["talk", "say", "say", "say", "open", *sorted(VERBS), "restart"]),
    st.integers(0, 59),
    st.integers(0, 11),
    st.integers(0, 59),
)


def walk(seed: int, count: int) -> list[Step]:
    """Return a random plan; the same seed, the same plan."""
    dice = random.Random(seed)
    verbs = dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count)
    return [(dice.randrange(USERS), verb, dice.randrange(60), dice.randrange(12), dice.randrange(60)) for verb in verbs]


def live(users: int, plan: Sequence[Step]) -> World:
    """Live through a plan on the virtual clock."""
    world = World.of(users)
    trio.run(world.live, plan, clock=trio.testing.MockClock(autojump_threshold=0))
    return world


def report(world: World) -> str:
    watch = world.watch
    return (
        f"{len(world.users)} users, {watch.step} steps, {watch.frames} frames ({watch.job_events} events of jobs) and "
        f"{watch.pages} pages checked, "
        f"{len(watch.leaks)} leaks"
    )


@pytest.mark.heavy
def test_many_users_one_walk() -> None:
    """Thirty users, each in several tabs, do everything to everybody: every byte they hear is their own."""
    types: set[str] = set()
    denied: set[str] = set()
    job_events = 0
    for _ in range(MOST_WALKS):  # the dice may leave out in one what they bring in the next
        seed = random.SystemRandom().randrange(10**6)
        print(f"seed {seed}")
        world = live(USERS, walk(seed, WALK_STEPS))
        print(report(world), dict(world.watch.types), dict(world.watch.denied))
        assert not world.watch.leaks, "\n".join(map(str, world.watch.leaks[:5]))
        assert world.watch.frames > WALK_STEPS, "the walk has hardly looked at anything"
        types |= world.watch.types.keys()
        denied |= world.watch.denied.keys()
        job_events += world.watch.job_events
        if types >= TYPES and denied >= DENIED and job_events > WALK_STEPS / 10:
            return
    missing = f"never heard: {sorted(TYPES - types)}, never refused with: {sorted(DENIED - denied)}"
    raise AssertionError(f"{missing}; {job_events} events of jobs")


@pytest.mark.heavy
@given(st.integers(2, USERS), st.lists(steps, min_size=10, max_size=70))
@settings(max_examples=PLANS, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_plan(users: int, plan: list[Step]) -> None:
    """No plan lets one user hear of another; one that did would be made small."""
    world = live(users, plan)
    assert not world.watch.leaks, "\n".join(map(str, world.watch.leaks[:5]))
