"""Tests of ``netra_ws.compat.serialising``."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections import OrderedDict, UserDict, UserString, deque, namedtuple
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import attrs
import orjson
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.compat.serialising import (
    MAX_DEPTH,
    MAX_VALUES,
    _serialize_message_safely,
    serialize_message_safely,
    strict_json,
    to_json,
)
from netra_ws.errors import InvalidArgument
from netra_ws.protocol.commands import Ping
from netra_ws.protocol.events import AgentThinking


class Colour(enum.Enum):
    RED = "red as text"
    PAIR = ("a", 1)


class Level(enum.IntEnum):
    HIGH = 3


class Word(enum.StrEnum):
    YES = "yes"


class WebSocketState(enum.Enum):
    CONNECTING = 0
    CONNECTED = 1
    DISCONNECTED = 2


class BuildState(enum.Enum):
    CONNECTED = 1
    COMPILED = 2


@attrs.frozen
class Point:
    x: int
    _secret: str = "hidden"


@dataclasses.dataclass
class Line:
    ends: list[Point]


class Model(pydantic.BaseModel):
    at: datetime
    many: set[int]


class Told:
    def to_dict(self) -> dict[str, Any]:
        return {"told": {1, 2}}


class Plain:
    pass


class Pendulum:
    """A time of somebody else's library."""

    def isoformat(self) -> str:
        return "2025-09-05T12:00"


class Hostile:
    """Fails whenever it is asked for anything."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no")


class Liar(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("no")


class Endless:
    def to_dict(self) -> dict[str, Any]:
        return {"next": Endless()}


Pair = namedtuple("Pair", "left right")
NOON = datetime(2025, 9, 5, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (-(2**63), -(2**63)),
        (2**64, "18446744073709551616"),
        (10**5000, f"<integer of {(10**5000).bit_length()} bits>"),
        (1.5, 1.5),
        (math.nan, None),
        (-math.inf, None),
        ("grüße 😀", "grüße 😀"),
        ("\ud83d\ude00", "😀"),
        ("half \ud83d", "half \ufffd"),
        (UserString("text"), "text"),
        (Colour.RED, "red as text"),
        (Colour.PAIR, ["a", 1]),
        (Level.HIGH, 3),
        (Word.YES, "yes"),
        (WebSocketState.CONNECTED, "connected"),
        (BuildState.CONNECTED, 1),
        (NOON, "2025-09-05T12:00:00+00:00"),
        (NOON.replace(tzinfo=None), "2025-09-05T12:00:00+00:00"),
        (date(2025, 9, 5), "2025-09-05"),
        (time(12), "12:00:00"),
        (timedelta(minutes=1.5), 90.0),
        (Decimal("1.10"), "1.10"),
        (Fraction(1, 4), 0.25),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (b"\x00\xff", "AP8="),
        (bytearray(b"a"), "YQ=="),
        (memoryview(b"a"), "YQ=="),
        ((1, [2]), [1, [2]]),
        (Pair(1, 2), [1, 2]),
        (deque([1]), [1]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", 1}), ["b", 1]),
        ({"b": 1}.values(), [1]),
        (range(3), [0, 1, 2]),
        (OrderedDict(a=1), {"a": 1}),
        (UserDict({"a": {1}}), {"a": [1]}),
        (Point(1), {"x": 1}),
        (Line([Point(1), Point(2)]), {"ends": [{"x": 1}, {"x": 2}]}),
        (Told(), {"told": [1, 2]}),
        (Model(at=NOON, many={2}), {"at": "2025-09-05T12:00:00Z", "many": [2]}),
        (ValueError("wrong"), {"error": "ValueError", "message": "wrong"}),
        (PurePosixPath("/a/b"), "/a/b"),
        (Pendulum(), "2025-09-05T12:00"),
        (int, "<class 'int'>"),
        (Plain, f"<class '{__name__}.Plain'>"),
        (Plain(), f"<{__name__}.Plain object>"),
        (Hostile(), "<Hostile>"),
        ([Liar(a=1)], ["{'a': 1}"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_becomes_of_each_kind_of_value(value: object, said: object) -> None:
    """Every kind of value has one form in JSON, and no address of memory is ever told."""
    found = to_json(value)
    assert found == said
    assert type(found) is type(said)
    assert orjson.loads(orjson.dumps(found)) == found


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("a", "a"),
        (1, "1"),
        (1.5, "1.5"),
        (None, "null"),
        (True, "true"),
        (Level.HIGH, "3"),
        (WebSocketState.CONNECTED, "1"),
        (Colour.RED, "red"),
        (Word.YES, "yes"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (NOON, "2025-09-05T12:00:00+00:00"),
        ((1, 2), "(1, 2)"),
        ("\ud83d", "\ufffd"),
    ],
)
def test_what_becomes_of_each_kind_of_key(key: object, said: str) -> None:
    """Keys are text: enums of numbers give the number, others their name in lower case."""
    assert to_json({key: 1}) == {said: 1}


def test_two_keys_of_one_text_are_both_kept() -> None:
    """No value is lost when two keys have the same text."""
    assert to_json({"1": "a", 1: "b", "1#1": "c"}) == {"1": "a", "1#1": "b", "1#1#2": "c"}


@pytest.mark.parametrize("message", [None, NOON, Level.HIGH, "😀", [1], 5, Plain(), {"a": 1}, Told(), Point(1)])
def test_a_message_is_always_an_object(message: object) -> None:
    """Whatever is given as a message, a JSON object can be sent; what is none stands under data."""
    found = serialize_message_safely(message)
    assert type(found) is dict
    value = to_json(message)
    assert found == (value if type(value) is dict else {"data": value})
    assert _serialize_message_safely is serialize_message_safely


def test_what_is_json_already_stays_as_it_is() -> None:
    """A JSON object comes back equal, as a copy that shares nothing with it."""
    message = {"type": "chat", "payload": {"list": [1, {"deep": "ä"}], "none": None, "flag": False, "n": 1.5}}
    found = serialize_message_safely(message)
    assert found == message
    assert found["payload"]["list"] is not message["payload"]["list"]  # type: ignore[index]


def test_our_own_messages_have_their_type() -> None:
    """A command or an event of ours is said as our wire says it."""
    assert serialize_message_safely(Ping()) == {"type": "ping"}
    thinking = AgentThinking(thread_id="t", run_id="r", agent_name="a", reasoning="so")
    assert serialize_message_safely({"event": thinking})["event"] == {
        "type": "agent_thinking",
        "thread_id": "t",
        "run_id": "r",
        "agent_name": "a",
        "reasoning": "so",
        "phase": "full",
    }


def test_circles_are_marked() -> None:
    """A structure that holds itself ends in a mark; what is only shared is said twice."""
    shared = {"a": 1}
    circle: dict[str, Any] = {"one": shared, "two": shared}
    circle["self"] = circle
    circle["list"] = [circle]
    assert serialize_message_safely(circle) == {
        "one": {"a": 1},
        "two": {"a": 1},
        "self": "<circular>",
        "list": ["<circular>"],
    }


def test_towers_are_cut() -> None:
    """However deep a structure is, and however it is made, the result is no deeper than our wire reads."""
    tower: Any = 1
    for _ in range(100_000):
        tower = [tower]
    for value in (tower, Endless()):
        text = json.dumps(to_json(value))
        assert f"nested more than {MAX_DEPTH} levels deep" in text
        assert text.count("[") + text.count("{") <= MAX_DEPTH
    while tower != 1:  # else its end would be a tower of calls
        tower = tower[0]


def test_a_small_structure_that_unfolds_into_a_huge_one_is_cut() -> None:
    """Shared lists that hold shared lists cost a bounded number of values."""
    bomb: Any = "boom"
    for _ in range(60):
        bomb = [bomb, bomb]
    text = json.dumps(to_json(bomb))
    assert f"<more than {MAX_VALUES} values>" in text
    assert len(text) < 20 * MAX_VALUES
    assert len(to_json(range(10**9))) == MAX_VALUES
    assert len(to_json(dict.fromkeys(range(MAX_VALUES + 5)))) == MAX_VALUES


def test_a_bad_part_harms_only_itself() -> None:
    """What stands beside a value without a form is said in full."""
    found = serialize_message_safely({"good": [1, 2], "bad": Hostile(), "more": {"x": Liar()}, "end": "e"})
    assert found == {"good": [1, 2], "bad": "<Hostile>", "more": {"x": "{}"}, "end": "e"}


def test_a_model_that_cannot_dump_is_asked_for_its_next_form() -> None:
    """An object whose model_dump fails is said by to_dict instead."""

    class Both:
        def model_dump(self, mode: str) -> Any:
            raise RuntimeError("no")

        def to_dict(self) -> dict[str, int]:
            return {"a": 1}

    assert to_json(Both()) == {"a": 1}


def test_an_iterator_is_not_used_up() -> None:
    """Serialising does not consume what belongs to the program."""

    def numbers() -> Iterator[int]:
        yield 1

    given_ = numbers()
    assert "generator" in to_json(given_)
    assert list(given_) == [1]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"a": {"b": [1, math.nan]}}, r"\$\.a\.b\[1\]: nan is no number of JSON"),
        ({"a": object()}, r"\$\.a: JSON cannot say object"),
        ({(1, 2): 1}, r"\$: a key is of type tuple"),
        ({"1": 1, 1: 1}, r"\$\.1: two keys have this text"),
        ({"a": 2**64}, r"\$\.a: an integer of more than 64 bits"),
        ({"a": "\ud83d"}, r"\$\.a: half of a character"),
        ({"x" * 1000: math.inf}, r"\$\.x{64}: inf is no number"),
    ],
)
def test_strict_json_names_what_cannot_be_said(value: object, fault: str) -> None:
    """Where nothing may be replaced, the error names argument and path."""
    with pytest.raises(InvalidArgument, match=rf"^payload: {fault}") as caught:
        strict_json(value, "payload")
    assert len(str(caught.value)) < 1100


def test_strict_json_names_a_few_of_many() -> None:
    """An error names the first twenty bad places, and is no longer for more."""
    with pytest.raises(InvalidArgument) as caught:
        strict_json([math.nan] * 5000, "payload")
    assert str(caught.value).count("nan") == 20


def test_strict_json_refuses_circles_and_towers() -> None:
    """A circle or a tower is an error with its path, never endless."""
    circle: dict[str, Any] = {}
    circle["me"] = [circle]
    with pytest.raises(InvalidArgument, match=r"\$\.me\[0\]: circular"):
        strict_json(circle, "payload")
    tower: Any = []
    for _ in range(MAX_DEPTH):
        tower = [tower]
    with pytest.raises(InvalidArgument, match="levels deep"):
        strict_json(tower, "payload")


def test_strict_json_takes_what_has_one_obvious_form() -> None:
    """Times, enums, ids and models are no faults."""
    assert strict_json({"at": NOON, "e": Word.YES, "p": Point(1)}, "x") == {
        "at": "2025-09-05T12:00:00+00:00",
        "e": "yes",
        "p": {"x": 1},
    }


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary(max_size=20)
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals()
    | st.fractions()
    | st.uuids()
    | st.complex_numbers()
    | st.sampled_from([*Colour, *Level, *Word, *WebSocketState, Plain(), Endless(), Liar(a=1), Told(), int])
    | st.builds(Hostile)
    | st.builds(ValueError, st.text())
)
HASHABLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.uuids() | st.dates()
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(HASHABLE, max_size=4)
        | st.dictionaries(HASHABLE | st.tuples(HASHABLE) | st.sampled_from([*Colour, *Level]), inner, max_size=4)
        | st.builds(Line, st.lists(inner, max_size=2))
        | st.builds(deque, st.lists(inner, max_size=2))
    ),
    max_leaves=20,
)


@given(ANYTHING)
def test_the_result_is_always_json(value: object) -> None:
    """Whatever a program gives, nothing is raised, orjson writes the result, and reads the same from it."""
    found = serialize_message_safely(value)
    assert orjson.loads(orjson.dumps(found)) == found
    assert json.loads(json.dumps(found)) == found


JSON_ONLY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON_ONLY)
def test_json_goes_through_unchanged(value: object) -> None:
    """What is JSON already is no fault and comes back equal."""
    assert to_json(value) == value
    assert strict_json(value, "value") == value


@given(ANYTHING)
def test_what_was_said_is_said_again_the_same_way(value: object) -> None:
    """The result is a fixed point: serialising it changes nothing."""
    found = serialize_message_safely(value)
    assert serialize_message_safely(found) == found
