from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netra_ws.access.freshness import (
    BELIEVED_S,
    EARLY_S,
    LEAST_REFRESH_S,
    MOST_REFRESH_S,
    REFRESH_S,
    RETRY_S,
    Freshness,
    refresh_after_s,
)


@pytest.mark.parametrize(
    ("cache_control", "after_s"),
    [
        ("", REFRESH_S),
        ("public", REFRESH_S),
        ("public, max-age=3600, must-revalidate", 3600),
        ("MAX-AGE = 3600", 3600),
        ('max-age="3600"', 3600),
        ("max-age=0", LEAST_REFRESH_S),
        ("max-age=1", LEAST_REFRESH_S),
        ("max-age=999999999", MOST_REFRESH_S),
        ("max-age=9999999999", REFRESH_S),
        ("max-age=-5", REFRESH_S),
        ("max-age=many", REFRESH_S),
        ("s-maxage=5, x-max-age=7", REFRESH_S),
        ("no-store, max-age=3600", LEAST_REFRESH_S),
        ("no-cache", LEAST_REFRESH_S),
    ],
)
def test_cache_control(cache_control: str, after_s: float) -> None:
    """An answer says how long it is kept, between a minute and a day; ten minutes if it says nothing."""
    assert refresh_after_s(cache_control) == after_s


@given(st.text(max_size=60) | st.text('max-age=0123456789, "no-store', max_size=40))
@settings(deadline=None)
def test_any_cache_control(text: str) -> None:
    """Whatever a service says stays within the bounds."""
    assert LEAST_REFRESH_S <= refresh_after_s(text) <= MOST_REFRESH_S


def test_an_outage() -> None:
    """Failures back off up to the usual pace; the first and the end of an outage are told."""
    fresh = Freshness(0)
    assert not fresh.succeeded(0, 600)
    assert fresh.failed(600)
    waits = [fresh.due - 600]
    for _ in range(1200):
        assert not fresh.failed(600)
        waits.append(fresh.due - 600)
    assert waits[:7] == [RETRY_S, 30, 60, 120, 240, 480, REFRESH_S]
    assert set(waits[7:]) == {REFRESH_S}
    assert fresh.succeeded(700, 60)
    assert (fresh.due, fresh.failures) == (760, 0)


def test_keys_are_believed_for_a_day_of_failures() -> None:
    """What counts is the length of the outage, not the age of the keys."""
    fresh = Freshness(0)
    fresh.succeeded(0, MOST_REFRESH_S)
    assert fresh.believed(10 * BELIEVED_S)
    fresh.failed(MOST_REFRESH_S)
    assert fresh.believed(MOST_REFRESH_S + BELIEVED_S - 1)
    assert not fresh.believed(MOST_REFRESH_S + BELIEVED_S)
    fresh.succeeded(MOST_REFRESH_S + BELIEVED_S, 60)
    assert fresh.believed(10 * BELIEVED_S)


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from(["hurry", "attempt"])), max_size=60), st.booleans())
@settings(deadline=None)
def test_hurry_has_a_pace(steps: list[tuple[float, str]], fails: bool) -> None:
    """However often a refresh is asked for, two attempts are never closer than the pace allows."""
    fresh, now, attempts = Freshness(0), 0.0, []
    for wait, step in steps:
        now += wait
        if step == "hurry":
            fresh.hurry(now)
        elif now >= fresh.due:
            attempts.append(now)
            fresh.failed(now) if fails else fresh.succeeded(now, REFRESH_S)
    least = min(EARLY_S, RETRY_S)  # a first failure is retried sooner than anybody can ask for
    assert all(later - earlier >= least - 1e-6 for earlier, later in itertools.pairwise(attempts))
    if not fails:
        assert all(later - earlier >= EARLY_S - 1e-6 for earlier, later in itertools.pairwise(attempts))


def test_hurry_never_delays() -> None:
    """An attempt that is due earlier anyway stays where it is."""
    fresh = Freshness(0)
    fresh.failed(100)
    assert fresh.due == 115
    assert not fresh.hurry(101)
    assert fresh.due == 115
    fresh.succeeded(115, 600)
    assert fresh.hurry(120)
    assert fresh.due == 145
    assert not fresh.hurry(121)
    fresh.succeeded(145, 600)
    assert fresh.hurry(300)
    assert fresh.due == 300
