"""Tests of ``netra_ws.protocol.values``."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.protocol.values import (
    MAX_SEQ,
    READERS,
    ClientTime,
    CommandId,
    Id,
    JobId,
    JsonlLogs,
    JsonObject,
    Page100,
    Page200,
    PositionText,
    Seconds,
    Seq,
    Title,
    TokenId,
    UserId,
    exactly,
    json_name,
    number,
)

from .strategies import JSON, NUMBERS, TIMES, of_type

WRONG: dict[Any, list[Any]] = {
    Id: ["", "a" * 129, "a b", "ä", "a\n", "a/b", 5, None, True, ["a"]],
    JobId: ["", "j" * 129, "j*", 5],
    CommandId: ["", "c" * 257, 7, None, {}],
    Title: ["t" * 513, 5, None],
    UserId: ["", "u" * 257, "a\nb", "\ud800", 5, None],
    TokenId: ["", "j" * 8193, 5, None],
    Seconds: [0, -1, -0.5, float("nan"), float("inf"), True, "5", None],
    Page100: [0, 101, -1, 5.0, True, "5"],
    Page200: [0, 201, 5.0, "5"],
    Seq: [-1, MAX_SEQ + 1, 1.0, True, "1"],
    PositionText: ["", ":", "e:", ":1", "e:-1", "e:1.0", "e:x", "e:1:2", "e" * 65 + ":1", "e:" + "1" * 20, 5, None],
    ClientTime: ["", "yesterday", "nan", "inf", "-Infinity", True, [], {}, float("inf")],
    JsonObject: [None, [], "{}", 5],
    JsonlLogs: [None, 5, {}, [1], [{}, "x"], [None]],
}


@pytest.mark.parametrize(("type_", "value"), [(type_, value) for type_, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_with_a_sentence(type_: Any, value: Any) -> None:
    """Every reader refuses what is not exactly of its kind, and says why in words for a client."""
    with pytest.raises((TypeError, ValueError)) as caught:
        READERS[type_](value)
    assert 8 < len(str(caught.value)) < 200
    assert repr(type(value)) not in str(caught.value)


def test_every_value_type_has_wrong_values_here() -> None:
    """A new value type cannot be added without saying what it refuses."""
    assert WRONG.keys() == READERS.keys()


@given(st.one_of([st.tuples(st.just(type_), of_type(type_)) for type_ in READERS]))
def test_a_right_value_is_taken_unchanged(case: tuple[Any, Any]) -> None:
    """A value of the right kind comes out as it went in."""
    type_, value = case
    assert READERS[type_](value) == value


@given(st.sampled_from(list(READERS)), JSON)
def test_a_reader_raises_nothing_else(type_: Any, value: Any) -> None:
    """Whatever JSON value a reader is given, it returns or raises TypeError or ValueError."""
    with contextlib.suppress(TypeError, ValueError):
        READERS[type_](value)


@pytest.mark.parametrize("end", [1, 128])
def test_ids_have_1_to_128_characters(end: int) -> None:
    """Both ends of the allowed length are allowed."""
    assert READERS[Id]("a" * end) == "a" * end


def test_a_title_is_stripped() -> None:
    """Blanks around a title are not kept."""
    assert READERS[Title]("  a title \n") == "a title"


@given(TIMES)
def test_times_may_be_numbers_numeric_strings_or_iso_8601(value: object) -> None:
    """Every form of timestamp that clients use is taken and kept as it is."""
    assert READERS[ClientTime](value) == value


@given(NUMBERS | st.integers(-(10**300), 10**300))
def test_integers_are_numbers(value: float) -> None:
    """JSON writes 1.0 as 1, so a number may come as either, and is a float behind the door."""
    assert type(number(value)) is float
    assert number(value) == float(value)


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("-inf")])
def test_what_is_no_finite_number(value: object) -> None:
    """Booleans, strings and infinite values are no numbers."""
    with pytest.raises((TypeError, ValueError)):
        number(value)


@pytest.mark.parametrize(("type_", "value"), [(str, 5), (int, True), (int, 5.0), (bool, 1), (bool, None), (str, b"x")])
def test_scalars_are_exact(type_: type, value: object) -> None:
    """No scalar is turned into another one: 5 is not "5", true is not 1."""
    with pytest.raises(TypeError, match="expected "):
        exactly(type_)(value, type_)
    assert exactly(type_)(type_(), type_) == type_()


def test_json_types_have_the_names_that_clients_know() -> None:
    """Errors speak of null, object and list, not of NoneType and dict."""
    names = [json_name(value) for value in (None, True, 1, 1.5, "", {}, [])]
    assert names == ["null", "boolean", "integer", "number", "string", "object", "list"]
