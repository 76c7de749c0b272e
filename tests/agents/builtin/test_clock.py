"""``clock`` knows the time in zones, cities and offsets, and says what it does not know."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.agents.builtin import clock as module
from netra_ws.agents.builtin.clock import clock, index
from netra_ws.errors import AgentError

NOW = datetime(2025, 9, 5, 12, 3, 4, 567, tzinfo=UTC)

needs_zones = pytest.mark.skipif(not zoneinfo.available_timezones(), reason="no time zone database here")


def test_utc() -> None:
    """Without a zone it is UTC, which needs no database."""
    assert clock(now=NOW) == {
        "zone": "UTC",
        "iso": "2025-09-05T12:03:04+00:00",
        "date": "2025-09-05",
        "time": "12:03:04",
        "weekday": "Friday",
        "utc_offset": "+00:00",
        "unix": 1757073784,
    }


@needs_zones
@pytest.mark.parametrize(
    ("asked", "zone", "iso"),
    [
        ("Europe/Berlin", "Europe/Berlin", "2025-09-05T14:03:04+02:00"),
        ("europe/berlin", "Europe/Berlin", "2025-09-05T14:03:04+02:00"),
        ("Berlin", "Europe/Berlin", "2025-09-05T14:03:04+02:00"),
        (" new  york ", "America/New_York", "2025-09-05T08:03:04-04:00"),
        ("New-York", "America/New_York", "2025-09-05T08:03:04-04:00"),
        ("Tokyo", "Asia/Tokyo", "2025-09-05T21:03:04+09:00"),
        ("São Paulo", "America/Sao_Paulo", "2025-09-05T09:03:04-03:00"),
        ("Paris, France", "Europe/Paris", "2025-09-05T14:03:04+02:00"),
        ("port-au-prince", "America/Port-au-Prince", "2025-09-05T08:03:04-04:00"),
        ("Kathmandu", "Asia/Kathmandu", "2025-09-05T17:48:04+05:45"),
        ("Japan", "Japan", "2025-09-05T21:03:04+09:00"),
        ("San Francisco", "America/Los_Angeles", "2025-09-05T05:03:04-07:00"),
        ("Etc/GMT+5", "Etc/GMT+5", "2025-09-05T07:03:04-05:00"),
        ("knox", "America/Indiana/Knox", "2025-09-05T07:03:04-05:00"),
    ],
)
def test_places(asked: str, zone: str, iso: str) -> None:
    """A zone, the last part of one, or a large city is found, however it is spelt."""
    result = clock(asked, now=NOW)
    assert (result["zone"], result["iso"], result["utc_offset"]) == (zone, iso, iso[-6:])


@pytest.mark.parametrize(
    ("asked", "zone", "time"),
    [
        ("UTC+5:30", "UTC+05:30", "17:33:04"),
        ("+02:00", "UTC+02:00", "14:03:04"),
        ("gmt-3", "UTC-03:00", "09:03:04"),
        ("UTC −4", "UTC-04:00", "08:03:04"),
        ("-0330", "UTC-03:30", "08:33:04"),
        ("GMT", "UTC", "12:03:04"),
        ("", "UTC", "12:03:04"),
        ("z", "UTC", "12:03:04"),
    ],
)
def test_distances_from_utc(asked: str, zone: str, time: str) -> None:
    """A distance from UTC is a zone, too."""
    result = clock(asked, now=NOW)
    assert (result["zone"], result["time"]) == (zone, time)


@needs_zones
def test_the_day_is_the_one_there() -> None:
    """Date and weekday are those of the place."""
    late = datetime(2025, 12, 31, 23, 30, tzinfo=UTC)
    result = clock("Auckland", now=late)
    assert (result["date"], result["weekday"], result["unix"]) == ("2026-01-01", "Thursday", int(late.timestamp()))


@needs_zones
@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("Brelin", "Did you mean Europe/Berlin?"),
        ("Europe/Berlinn", "Did you mean Europe/Berlin?"),
        ("Narnia of old", "such as Europe/Berlin"),
        ("../../etc/passwd", "such as Europe/Berlin"),
        ("\0", "such as Europe/Berlin"),
        ("x" * 100_000, "such as Europe/Berlin"),
    ],
)
def test_unknown_zones(asked: str, hint: str) -> None:
    """An unknown zone is an error that helps and is short."""
    with pytest.raises(AgentError) as caught:
        clock(asked, now=NOW)
    assert caught.value.code == "UNKNOWN_TIME_ZONE"
    assert hint in caught.value.text
    assert len(caught.value.text) < 250


def test_no_place_is_that_far() -> None:
    """More than 14 hours from UTC is refused."""
    with pytest.raises(AgentError, match="14 hours"):
        clock("UTC+20", now=NOW)


def test_a_naive_now_is_refused() -> None:
    """A time without a zone would be read as the server's."""
    with pytest.raises(ValueError, match="aware"):
        clock(now=datetime(2025, 9, 5))  # noqa: DTZ001


def test_where_names_end_alike_the_city_wins() -> None:
    """A shorter name in a real region is preferred, and cities are known only with their zone."""
    names = index({"US/Pacific", "Brazil/West", "Australia/West", "America/Kentucky/Louisville", "America/Louisville"})
    assert names["west"] == "Australia/West"
    assert names["louisville"] == "America/Louisville"
    assert names["us/pacific"] == names["pacific"] == "US/Pacific"
    assert "osaka" not in names
    assert index(["Asia/Tokyo"])["osaka"] == "Asia/Tokyo"
    assert index([]) == {}


@pytest.fixture
def zones_from() -> Iterator[None]:
    """Put the search path of time zones, and what is cached from it, back afterwards."""
    before = zoneinfo.TZPATH
    yield
    zoneinfo.reset_tzpath(before)
    zoneinfo.ZoneInfo.clear_cache()
    module._names.cache_clear()


@pytest.mark.usefixtures("zones_from")
def test_without_a_database(tmp_path: object) -> None:
    """Without a time zone database UTC still works, and the rest says why it does not."""
    zoneinfo.reset_tzpath([str(tmp_path)])
    module._names.cache_clear()
    if zoneinfo.available_timezones():
        pytest.skip("the package tzdata is installed")
    assert clock("UTC", now=NOW)["zone"] == "UTC"
    assert clock("+1", now=NOW)["time"] == "13:03:04"
    with pytest.raises(AgentError, match="no time zone database") as caught:
        clock("Berlin", now=NOW)
    assert caught.value.code == "NO_TIME_ZONES"


@needs_zones
@pytest.mark.usefixtures("zones_from")
def test_a_database_that_goes_away(tmp_path: object) -> None:
    """A zone that was listed but cannot be read any more is an error for the user, not a crash."""
    clock("Berlin", now=NOW)
    zoneinfo.reset_tzpath([str(tmp_path)])
    zoneinfo.ZoneInfo.clear_cache()
    with pytest.raises(AgentError, match="Africa/Djibouti cannot be read"):
        clock("Djibouti", now=NOW)


@given(st.text(max_size=30))
def test_any_text(zone: str) -> None:
    """Any text is a zone or an AgentError."""
    try:
        result = clock(zone, now=NOW)
    except AgentError:
        return
    assert datetime.fromisoformat(result["iso"]) == NOW.replace(microsecond=0)
