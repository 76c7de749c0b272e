"""Schemas that other servers give, applied without giving them any power."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from netra_ws.agents.mcp.schemas import Parameters, UnfitSchema


def of(**properties: Any) -> Parameters:
    return Parameters.read({"type": "object", "properties": properties})


def test_each_violation_has_its_path() -> None:
    """Everything that is wrong is named by its path, in one answer."""
    schema = {
        "type": "object",
        "properties": {"limit": {"minimum": 1}, "tags": {"items": {"enum": ["a", "b"]}}, "name": {}},
        "required": ["name"],
        "additionalProperties": False,
    }
    assert Parameters.read(schema).violations({"limit": 0, "tags": ["a", "c"], "more": 1}) == {
        "$": "'name' is a required property; Additional properties are not allowed ('more' was unexpected)",
        "$.limit": "0 is less than the minimum of 1",
        "$.tags[1]": "'c' is not one of ['a', 'b']",
    }
    assert Parameters.read(schema).violations({"name": "x", "limit": 1}) == {}


def test_what_is_said_is_bounded() -> None:
    """However much is wrong, and however large it is, what is said of it is short."""
    wrong = of(rows={"items": {"type": "integer"}}).violations({"rows": ["x" * 10_000] * 1000})
    assert len(wrong) == 20
    assert all(len(text) <= 300 for text in wrong.values())


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "array"}, "not one of objects"),
        ({"properties": 5}, r"no JSON Schema: \$.properties: 5 is not of type 'object'"),
        ({"properties": {"a": {"type": "objekt"}}}, "no JSON Schema"),
        ({"properties": {"a": {"$ref": "https://example.com/a.json"}}}, "refers to https://example.com/a.json"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "refers to file:///etc/passwd"),
        ({"$ref": "#/$defs/nowhere"}, "refers to #/\\$defs/nowhere"),
        ({"description": "x" * 70_000}, "more than 65536"),
        ({"const": 10**30}, "larger numbers"),
    ],
)
def test_schemas_that_cannot_be_offered(schema: dict[str, Any], why: str) -> None:
    """What is no schema of objects, or is not all there, or is too large, is refused with the reason."""
    with pytest.raises(UnfitSchema, match=why):
        Parameters.read(schema)


def test_a_schema_that_is_too_deep() -> None:
    """A schema of thousands of levels is refused and not followed."""
    schema: dict[str, Any] = {}
    for _ in range(sys.getrecursionlimit()):
        schema = {"not": schema}
    with pytest.raises(UnfitSchema):
        Parameters.read(schema)


def test_what_is_missing_is_filled_in() -> None:
    """A schema without type and properties is one of any object, as models want to read it."""
    assert Parameters.read({}).schema == {"type": "object", "properties": {}}


def test_an_older_draft() -> None:
    """A schema of draft 7 is read as one."""
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "properties": {"pair": {"items": [{"type": "integer"}, {"$ref": "#/definitions/text"}]}},
        "definitions": {"text": {"type": "string"}},
    }
    assert Parameters.read(schema).violations({"pair": [1, 2]}) == {"$.pair[1]": "2 is not of type 'string'"}


def test_regular_expressions_are_not_run() -> None:
    """Expressions that would take for ever, in whatever keyword, are left to the server."""
    evil = "^(a|a|aa)+$"
    text = "a" * 50_000 + "!"
    parameters = Parameters.read(
        {
            "properties": {"a": {"type": "string", "pattern": evil}, "b": {"propertyNames": {"pattern": evil}}},
            "patternProperties": {evil: {"type": "integer"}},
            "additionalProperties": False,
            "unevaluatedProperties": False,
        }
    )
    assert parameters.violations({"a": text, "b": {text: 1}, text: "x"}) == {}


def test_expressions_of_other_languages() -> None:
    """An expression that Python does not know does not make a schema unfit."""
    assert of(a={"pattern": r"^\p{Lu}\w*$"}).violations({"a": "x"}) == {}


def test_a_schema_that_unfolds() -> None:
    """A small schema that refers to itself a million times is left to the server after a bounded number of steps."""
    levels = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}
    schema = {"properties": {"a": {"$ref": "#/$defs/a0"}}, "$defs": {**levels, "a40": {"type": "string"}}}
    assert Parameters.read(schema).violations({"a": "x"}) == {}


def test_a_schema_that_is_its_own_part() -> None:
    """A reference in a circle is left to the server."""
    assert Parameters.read({"$ref": "#"}).violations({"a": 1}) == {}


def test_recursive_schemas_work() -> None:
    """A schema of trees, which refers to itself, is applied."""
    node = {"type": "object", "properties": {"left": {"$ref": "#/$defs/node"}, "value": {"type": "integer"}}}
    parameters = Parameters.read({"properties": {"tree": {"$ref": "#/$defs/node"}}, "$defs": {"node": node}})
    assert parameters.violations({"tree": {"left": {"left": {"value": "x"}}}}) == {
        "$.tree.left.left.value": "'x' is not of type 'integer'"
    }


def test_data_is_no_schema() -> None:
    """What looks like a reference in an example or a constant is none."""
    assert of(a={"default": {"$ref": "http://elsewhere/"}}).violations({"a": 1}) == {}


def test_long_lists_of_unlike_items() -> None:
    """Among many items none is looked for twice; among few it is."""
    parameters = of(a={"uniqueItems": True})
    assert parameters.violations({"a": [{"n": n} for n in range(20_000)]}) == {}
    assert "$.a" in parameters.violations({"a": [{"n": 1}, {"n": 1}]})
