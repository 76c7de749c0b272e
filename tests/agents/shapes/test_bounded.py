"""Checking by a JSON Schema ends, whatever the schema and the value."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.agents.shapes import bounded, read_by_schema
from netra_ws.errors import InvalidParameters

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from([0.0, 1.0, 1.5, "", "a", "1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a|a)*$"},
        {"patternProperties": {"^(a|a)*$": {}}},
        {"properties": {"a": {"propertyNames": {"pattern": "x"}}}},
        {"$defs": {"a": {"allOf": [{"items": {"pattern": "x"}}]}}},
        {"unevaluatedProperties": False},
        {"unevaluatedItems": False},
    ],
    ids=str,
)
def test_what_cannot_be_bounded_is_refused(schema: Any) -> None:
    """A schema with a keyword that is not checked is refused before anybody is asked, by the keyword's name."""
    with pytest.raises(ValueError, match=r"schema: (pattern|unevaluated)\w*: not checked here"):
        read_by_schema(schema)


def test_names_and_data_are_no_keywords() -> None:
    """A property, or data, that has the name of a keyword is none."""
    schema = {
        "properties": {"pattern": {"type": "string"}, "$ref": {}, "unevaluatedItems": {"enum": [{"pattern": "x"}, 3]}},
        "examples": [{"pattern": "x", "$ref": "#/nowhere"}],
    }
    value = {"pattern": "x", "unevaluatedItems": 3}
    assert read_by_schema(schema)(value) == value


@given(st.lists(_JSON, max_size=6))
def test_items_are_unique_as_a_schema_says(items: list[Any]) -> None:
    """What is the same item twice is what an independent validator says, also of 1, 1.0 and true."""
    schema = {"uniqueItems": True}
    found = list(bounded.Check.by(schema).problems(items))
    assert bool(found) is not jsonschema.Draft202012Validator(schema).is_valid(items)


def test_many_unlike_items_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each item of a long list is looked at once, not together with each other one."""
    seen = []
    key = bounded._key
    monkeypatch.setattr(bounded, "_key", lambda *args: (seen.append(0), key(*args))[1])
    items = [{"a": n} for n in range(1500)]
    assert read_by_schema({"type": "array", "uniqueItems": True, "items": {"type": "object"}})(items) == items
    assert len(seen) == 1500 * 2


def _counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    spent: list[int] = []
    spend = bounded._Budget.spend

    def counted(self: Any, steps: int) -> None:
        spent.append(steps)
        spend(self, steps)

    monkeypatch.setattr(bounded._Budget, "spend", counted)
    return spent


TREE = {"anyOf": [{"type": "string"}, {"properties": {"of": {"$ref": "#"}}}, {"properties": {"of": {"$ref": "#"}}}]}


def _nested(depth: int) -> Any:
    value: Any = 5
    for _ in range(depth):
        value = {"of": value}
    return {"of": value, "more": [value]}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({**TREE, "not": {}}, _nested(30)),
        ({"allOf": [{"not": {"anyOf": [{"type": "string"}] * 50}}] * 50}, ["x" * 500] * 500),
        ({"anyOf": [{"type": "string"}] * 1000}, ["x" * 500] * 500),
        ({"type": "array", "items": {"enum": [f"word {n}" for n in range(5000)]}}, ["word 4999"] * 5000),
        ({"allOf": [{"uniqueItems": True}] * 100}, [[n] for n in range(2000)]),
        ({"allOf": [{"additionalProperties": {}}] * 100}, {str(n): n for n in range(2000)}),
        ({"allOf": [{"items": {}}] * 100}, list(range(2000))),
    ],
    ids=["recursion", "text in not", "text in words", "enum", "unique", "properties", "items"],
)
def test_what_takes_too_long_is_refused(schema: Any, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that takes too many steps is no answer, and the work ends there."""
    spent = _counting(monkeypatch)
    with pytest.raises(InvalidParameters, match=re.escape("$: too much to check")):
        read_by_schema(schema)(value)
    assert sum(spent[:-1]) <= bounded.MAX_STEPS < sum(spent)


def test_an_answer_of_usual_size_is_checked() -> None:
    """Two thousand records, and a text of a quarter of a megabyte, are checked to the end."""
    record = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    rows: list[Any] = [{"n": n} for n in range(1000)]
    assert read_by_schema({"type": "array", "items": record, "uniqueItems": True})(rows) == rows
    text = {"type": "object", "properties": {"text": {"type": "string", "minLength": 1}}, "required": ["text"]}
    assert read_by_schema(text)({"text": "x" * 250_000})
    rows[-1] = {"n": "x"}
    with pytest.raises(InvalidParameters, match=r"\$\[999\].n: 'x' is not of type 'integer'"):
        read_by_schema({"type": "array", "items": record, "uniqueItems": True})(rows)


def test_what_is_wrong_is_told_although_the_rest_is_too_much() -> None:
    """What was found wrong before the steps were used up is what the answer names."""
    schema = {"required": ["n"], **TREE}
    with pytest.raises(InvalidParameters) as error:
        read_by_schema(schema)(_nested(30))
    assert error.value.fields == {"$": "'n' is a required property"}


def test_a_schema_that_is_its_own_part() -> None:
    """A schema that leads in a circle takes no value, long before the stack ends."""
    with pytest.raises(InvalidParameters, match="too deep to check"):
        read_by_schema({"$ref": "#"})(5)


def test_a_deep_tree_is_checked() -> None:
    """A tree of thirty levels is checked down to its leaves."""
    node = {"properties": {"of": {"$ref": "#"}, "leaf": {"type": "integer"}}}
    value: Any = {"leaf": "x"}
    for _ in range(30):
        value = {"of": value}
    with pytest.raises(InvalidParameters, match="'x' is not of type 'integer'"):
        read_by_schema(node)(value)
