"""Tests of ``netra_ws.chat.fields``: what a terminal asks for a schema, and what lines become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from netra_ws.chat.fields import LEFT_OUT, assemble, fields_of

TEXT = {"type": "string"}


def _object(needed: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(needed)}


def _answer(schema: dict[str, Any], *lines: str) -> Any:
    """Answer each field that is asked with the next line."""
    given, answers = list(lines), []
    for field in fields_of(schema):
        if any(gate.shuts(field) for gate, wanted in answers if wanted is False):
            continue
        answers.append((field, field.read(given.pop(0))))
    assert given == []
    return assemble(answers)


@pytest.mark.parametrize(
    ("schema", "line", "value"),
    [
        (TEXT, "two words ", "two words"),
        ({"type": "integer"}, " 7", 7),
        ({"type": "number"}, "1.5", 1.5),
        ({"type": "boolean"}, "Yes", True),
        ({"type": "boolean"}, "n", False),
        ({"enum": ["a", "b"]}, "2", "b"),
        ({"enum": ["a", "b"]}, "a", "a"),
        ({"enum": ["2", "1"]}, "1", "1"),
        ({"oneOf": [{"const": 5}, {"const": 6}]}, "2", 6),
        ({"type": "array", "items": {"enum": ["a", "b", "c"]}}, "3, 1", ["c", "a"]),
        ({"type": "array", "items": TEXT}, "a, b,", ["a", "b"]),
        ({"type": "array", "items": {"type": "integer"}}, "1,2", [1, 2]),
        ({"type": "object", "additionalProperties": TEXT}, '{"a": "b"}', {"a": "b"}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "", None),
        ({"type": ["integer", "null"]}, "3", 3),
        ({"type": "integer", "default": 4}, "", 4),
        ({"$ref": "#/$defs/Size", "$defs": {"Size": {"enum": [1, 2]}}}, "2", 2),
        ({"$ref": "#/nowhere"}, "[1]", [1]),
        (True, "1", 1),
    ],
)
def test_lines_become_values(schema: Any, line: str, value: Any) -> None:
    """A line becomes a value of the kind that its schema has; what has no kind is written as JSON."""
    assert _answer(schema, line) == value


@pytest.mark.parametrize(
    ("schema", "line", "why"),
    [
        (TEXT, "", "an answer is needed here"),
        ({"type": "integer"}, "1.5", "this is no whole number"),
        ({"type": "number"}, "x", "this is no number"),
        ({"type": "number"}, "inf", "this is no number"),
        ({"type": "integer", "minimum": 1, "maximum": 3}, "4", "expected 1 to 3"),
        ({"type": "string", "minLength": 3}, "ab", "expected at least 3 characters, these are 2"),
        ({"type": "boolean"}, "perhaps", "expected y or n"),
        ({"enum": ["a", "b"]}, "0", "expected a number from 1 to 2"),
        ({"enum": ["a", "b"]}, "²", "expected a number from 1 to 2"),
        ({"type": "array", "items": {"type": "integer"}}, "1,x", "this is no whole number"),
        ({}, "{", "this is no JSON"),
    ],
)
def test_lines_that_are_no_values(schema: Any, line: str, why: str) -> None:
    """A line that does not fit is refused with a reason."""
    with pytest.raises(ValueError, match=why):
        _answer(schema, line)


def test_objects_are_asked_field_by_field() -> None:
    """Nested fields are asked by their path; what is left out is not in the value."""
    place = _object(["city"], city=TEXT, code=TEXT)
    schema = _object(["name", "place"], name=TEXT, place=place, note=TEXT)
    assert [field.prompt() for field in fields_of(schema)] == [
        "Name: ",
        "Place / City: ",
        "Place / Code (may be left out): ",
        "Note (may be left out): ",
    ]
    assert _answer(schema, "Ada", "Oslo", "", "") == {"name": "Ada", "place": {"city": "Oslo"}}


def test_optional_objects_have_a_gate() -> None:
    """An object that may be left out is asked for only when it is wanted."""
    place = _object(["city"], city=TEXT)
    schema = _object(["must"], place=place, must={"anyOf": [place, {"type": "null"}]})
    assert _answer(schema, "n", "") == {"must": None}
    assert _answer(schema, "y", "Oslo", "y", "Rome") == {"place": {"city": "Oslo"}, "must": {"city": "Rome"}}
    empty = _object([], place=_object([], city=TEXT))
    assert _answer(empty, "y", "") == {"place": {}}


def test_a_tree_ends() -> None:
    """A schema that refers to itself is asked as JSON where it begins anew."""
    node = _object(["name"], name=TEXT, next={"$ref": "#/$defs/Node"})
    fields = fields_of({"$ref": "#/$defs/Node", "$defs": {"Node": node}})
    assert [(field.path, field.kind) for field in fields] == [(("name",), "text"), (("next",), "json")]


def test_prompts_tell_bounds_and_defaults() -> None:
    """A prompt says what kind of line is expected, and what an empty one means."""
    schema = _object([], boxes={"type": "integer", "minimum": 1, "maximum": 9, "default": 1, "title": "How many"})
    (field,) = fields_of(schema)
    assert field.prompt() == "How many (whole number, 1 to 9) [1]: "
    assert field.read("") == 1
    (field,) = fields_of(_object([], day={"type": "string", "format": "date"}))
    assert field.prompt() == "Day (date, may be left out): "
    assert field.read("") is LEFT_OUT
