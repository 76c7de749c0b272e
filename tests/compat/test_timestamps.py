"""Tests of ``netra_ws.compat.timestamps``."""

from __future__ import annotations

import math
import time
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.compat.timestamps import to_datetime, to_timestamp
from netra_ws.errors import InvalidArgument
from netra_ws.protocol.values import read_client_time

NOON = 1757073600.0  # 5 September 2025, 12:00 UTC


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (NOON, NOON),
        (1757073600, NOON),
        (0, 0.0),
        (-1.5, -1.5),
        ("1757073600", NOON),
        (" 1757073600.25 ", NOON + 0.25),
        ("-1.5e3", -1500.0),
        (".5", 0.5),
        ("2025-09-05T12:00:00Z", NOON),
        ("2025-09-05T12:00:00z", NOON),
        ("2025-09-05T12:00:00.250+00:00", NOON + 0.25),
        ("2025-09-05T14:00:00+02:00", NOON),
        ("2025-09-05T12:00:00", NOON),
        ("2025-09-05 12:00", NOON),
        ("2025-09-05", NOON - 12 * 3600),
        ("20250905", 20250905.0),
        (datetime(2025, 9, 5, 12, tzinfo=UTC), NOON),
        (datetime(2025, 9, 5, 12), NOON),  # noqa: DTZ001
        (datetime(2025, 9, 5, 5, tzinfo=timezone(timedelta(hours=-7))), NOON),
    ],
)
def test_every_form_of_a_time(value: object, seconds: float) -> None:
    """Numbers, numeric strings, ISO 8601 and datetimes become Unix seconds; without an offset they are UTC."""
    assert to_timestamp(value) == seconds
    assert type(to_timestamp(value)) is float


def test_the_time_zone_of_the_machine_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no offset is UTC on a machine of any time zone."""
    monkeypatch.setenv("TZ", "America/Los_Angeles")
    time.tzset()
    try:
        assert to_timestamp(datetime(2025, 9, 5, 12)) == NOON  # noqa: DTZ001
        assert to_timestamp("2025-09-05T12:00:00") == NOON
        assert to_datetime(NOON) == datetime(2025, 9, 5, 12, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_nothing_stays_nothing() -> None:
    """None means no time, and is no error."""
    assert to_timestamp(None) is None
    assert to_datetime(None) is None


@pytest.mark.parametrize(
    "value",
    [
        True,
        math.nan,
        math.inf,
        10**400,
        "",
        " ",
        "soon",
        "nan",
        "inf",
        "1_000",
        "1e400",
        "１２",
        "0x10",
        "2025-13-01",
        "2025-09-05T12:00:00zz",
        "1" * 100,
        b"1",
        [],
        {},
        1j,
        object(),
        date(2025, 9, 5),
    ],
)
def test_what_is_no_time(value: object) -> None:
    """Anything else is refused, and the error names the argument."""
    with pytest.raises(InvalidArgument, match=r"^since: ") as caught:
        to_timestamp(value, "since")
    assert caught.value.argument == "since"


@given(st.datetimes(timezones=st.none() | st.just(UTC) | st.timezones()))
def test_datetimes_and_their_text_are_the_same_time(moment: datetime) -> None:
    """A datetime and its ISO text give one timestamp, whatever the time zone of the machine or of the value."""
    assert to_timestamp(moment) == to_timestamp(moment.isoformat())


@given(st.datetimes(min_value=datetime(1900, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_there_and_back(moment: datetime) -> None:
    """A time survives the way to seconds and back, to within a microsecond."""
    back = to_datetime(to_timestamp(moment))
    assert back is not None
    assert abs(back - moment) <= timedelta(microseconds=1)


def test_a_time_without_a_calendar() -> None:
    """A number that is in no year from 1 to 9999 is a timestamp but no datetime."""
    assert to_timestamp(1e15) == 1e15
    with pytest.raises(InvalidArgument, match="years"):
        to_datetime(1e15)


@given(st.text(max_size=40) | st.floats() | st.integers())
def test_whatever_is_taken_here_may_go_over_the_wire(value: Any) -> None:
    """What this module takes, it gives back as a number that our wire takes."""
    try:
        seconds = to_timestamp(value)
    except InvalidArgument:
        return
    assert read_client_time(seconds) == seconds
