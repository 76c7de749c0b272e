"""What JSON Schema says of a type and what is read by it are the same, whatever is given."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, TypedDict

import annotated_types
import attrs
import jsonschema
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netra_ws import ConfigError
from netra_ws.agents.shapes import Reader, read_by_schema, schema_of, to_json
from netra_ws.errors import MAX_FIELDS, InvalidParameters


class Colour(enum.Enum):
    RED = "red"
    NUMBER = 7


@attrs.frozen
class Place:
    """Where it is."""

    street: str
    number: int = 1
    tags: list[str] = attrs.field(factory=list)


@attrs.frozen
class Tree:
    """A thing with children."""

    name: str
    children: list[Tree] = attrs.field(factory=list)


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Words(TypedDict):
    one: str
    two: NotRequired[int]


@attrs.frozen
class Limited:
    """Bounded by validators, as attrs has them."""

    number: int = attrs.field(validator=attrs.validators.and_(attrs.validators.ge(0), attrs.validators.lt(5)))
    name: str = attrs.field(default="", validator=attrs.validators.max_len(3))


UserName = NewType("UserName", str)

TYPES: list[Any] = [
    str,
    int,
    float,
    bool,
    None,
    Any,
    UserName,
    Colour,
    Literal["a", "b", 3],
    Literal[1, "x"],
    Limited,
    Annotated[int, attrs.validators.ge(1)],
    int | None,
    Optional[str],  # noqa: UP045  (an older way to write it)
    str | int | list[int],
    list[int],
    Sequence[str],
    set[int],
    frozenset[str],
    tuple[int, ...],
    tuple[str, int],
    dict[str, int],
    Mapping[str, Any],
    Place,
    Place | None,
    list[Place],
    Tree,
    Point,
    Words,
    Annotated[int, annotated_types.Interval(ge=0, lt=5)],
    Annotated[str, annotated_types.Len(1, 3)],
    Annotated[list[int], annotated_types.MaxLen(2), "some numbers"],
    list[Annotated[float, annotated_types.Gt(0)]],
]

# JSON Schema calls 1.0 an integer; here, as everywhere in the protocol, it is not.
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.floats(-3, 9).filter(lambda value: not value.is_integer())
    | st.sampled_from(["", "a", "b", "red", "street", "some text"])
)
_NAMES = st.sampled_from(["street", "number", "tags", "name", "children", "x", "y", "one", "two", "more"])
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3), max_leaves=6
)


def _near(schema: Mapping[str, Any], root: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Return values that mostly fit *schema*, so that both verdicts come up."""
    if "$ref" in schema:
        return _near(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return st.one_of([_near(each, root) for each in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "object" if "properties" in schema:
            # Deferred: a tree has trees inside.
            fields = {name: st.deferred(lambda s=inner: _near(s, root)) for name, inner in schema["properties"].items()}
            return st.fixed_dictionaries({}, optional=fields | {"more": st.none()})
        case "object":
            return st.dictionaries(_NAMES, _near(schema["additionalProperties"], root), max_size=2)
        case "array" if "prefixItems" in schema:
            return st.tuples(*(_near(each, root) for each in schema["prefixItems"])).map(list)
        case "array":
            return st.lists(st.deferred(lambda: _near(schema["items"], root)), max_size=3)
        case "string":
            return st.sampled_from(["", "a", "red", "some text"])
        case "integer":
            return st.integers(-3, 9)
        case "number":
            return st.floats(-3, 9).filter(lambda value: not value.is_integer()) | st.integers(0, 3)
    return _SCALARS


@pytest.mark.parametrize("type_", TYPES, ids=str)
@settings(max_examples=40)
@given(data=st.data())
def test_schema_and_reader_agree(type_: Any, data: st.DataObject) -> None:
    """A JSON value is read exactly when the schema, asked by an independent validator, takes it."""
    schema = schema_of(type_)
    value = data.draw(_VALUES | _near(schema, schema))
    fits = jsonschema.Draft202012Validator(schema).is_valid(value)
    wrong: dict[str, str] = {}
    try:
        Reader(type_)(value)
    except InvalidParameters as error:
        wrong = error.fields
    assert fits is not bool(wrong), f"{value!r}: {wrong}"
    assert all(path.startswith("$") for path in wrong)


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_schemas_are_schemas(type_: Any) -> None:
    """Every schema is one by the rules of its draft, and JSON."""
    schema = schema_of(type_)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert orjson.loads(orjson.dumps(schema)) == schema


@pytest.mark.parametrize(
    ("type_", "given_", "value"),
    [
        (Place, {"street": "Main", "number": 3}, Place("Main", 3)),
        (Tree, {"name": "a", "children": [{"name": "b"}]}, Tree("a", [Tree("b")])),
        (Point, {"x": 1}, Point(1.0)),
        (Colour, 7, Colour.NUMBER),
        (set[int], [1, 2], {1, 2}),
        (tuple[str, int], ["a", 1], ("a", 1)),
        (dt.datetime, "2025-09-05T14:03:00+00:00", dt.datetime(2025, 9, 5, 14, 3, tzinfo=dt.UTC)),
        (dt.date, "2025-09-05", dt.date(2025, 9, 5)),
        (dt.time, "14:03:00", dt.time(14, 3)),
        (uuid.UUID, "12345678-1234-5678-1234-567812345678", uuid.UUID("12345678123456781234567812345678")),
    ],
)
def test_there_and_back(type_: Any, given_: Any, value: Any) -> None:
    """What was read becomes the same JSON again, and is read again as the same value."""
    assert Reader(type_)(given_) == value
    assert Reader(type_)(orjson.loads(orjson.dumps(to_json(value, "it")))) == value


def test_everything_wrong_is_named_by_its_path() -> None:
    """One error names every bad place of a value, by JSON path, in words for whoever gave it."""
    with pytest.raises(InvalidParameters) as error:
        Reader(list[Place])([{"street": 5}, {"street": "x", "number": "3", "tags": ["a", 1]}, "x", {"zap": 1}])
    assert error.value.fields == {
        "$[0].street": "expected string, got integer",
        "$[1].number": "expected integer, got string",
        "$[1].tags[1]": "expected string, got integer",
        "$[2]": "expected object, got string",
        "$[3]": "unknown: zap",
        "$[3].street": "required, but missing",
    }


def test_errors_are_bounded() -> None:
    """A value with thousands of bad places is answered with the first of them."""
    with pytest.raises(InvalidParameters) as error:
        Reader(dict[str, list[int]])({str(n): ["x"] * 1000 for n in range(1000)})
    assert len(error.value.fields) == MAX_FIELDS
    assert len(error.value.text) <= 1000


def test_a_tower_is_an_error() -> None:
    """A value nested without end is refused, not a crash."""
    tower: dict[str, Any] = {"name": "leaf"}
    for _ in range(5000):
        tower = {"name": "x", "children": [tower]}
    with pytest.raises(InvalidParameters, match="levels deep"):
        Reader(Tree)(tower)


def _even(instance: object, attribute: object, value: int) -> None:
    if value % 2:
        raise ValueError("must be even")


@attrs.frozen
class Checked:
    name: str = attrs.field(validator=attrs.validators.max_len(3))
    number: int = attrs.field(default=0, validator=_even)


def test_validators_of_attrs_are_asked() -> None:
    """A bound of a class's field is told at its path; any other validator has its say in its own words."""
    with pytest.raises(InvalidParameters) as error:
        Reader(Checked)({"name": "too long"})
    assert error.value.fields == {"$.name": "expected a length of at most 3"}
    with pytest.raises(InvalidParameters, match="must be even"):
        Reader(Checked)({"name": "so", "number": 1})


class Plain:
    """No record."""


@pytest.mark.parametrize("type_", [Plain, complex, dict[int, str], Literal[b"x"], list[Plain], bytes, range], ids=str)
def test_what_json_cannot_say_is_refused_when_it_is_declared(type_: Any) -> None:
    """A type without a word in JSON is an error at once, not when the first model asks."""
    with pytest.raises(ConfigError, match="JSON"):
        schema_of(type_)


def test_a_schema_of_somebody_else() -> None:
    """A value is read by a JSON Schema from elsewhere; what does not fit is named by path."""
    read = read_by_schema({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}, "$.value")
    assert read({"n": 3}) == {"n": 3}
    with pytest.raises(InvalidParameters) as error:
        read({"n": "x"})
    assert error.value.fields == {"$.value.n": "'x' is not of type 'integer'"}


@pytest.mark.parametrize("reference", ["http://127.0.0.1:1/schema.json", "file:///etc/passwd", "#/$defs/nowhere"])
def test_no_schema_is_fetched(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schema that refers to what is not in it is refused at once, and nothing is looked up."""
    monkeypatch.setattr("urllib.request.urlopen", lambda *_: pytest.fail("fetched"))
    with pytest.raises(ValueError, match="refers to"):
        read_by_schema({"$ref": reference})


@pytest.mark.parametrize("schema", [{"type": "no such type"}, {"properties": 5}, {"required": "x"}])
def test_what_is_no_schema(schema: Any) -> None:
    """What is no JSON Schema is refused before anybody is asked by it."""
    with pytest.raises(ValueError, match="schema: "):
        read_by_schema(schema)
