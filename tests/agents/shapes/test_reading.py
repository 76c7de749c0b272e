"""Reading ends soon and keeps nothing, whatever the classes."""

# Without ``from __future__ import annotations``: classes that name themselves as text do without it.

import dataclasses
import gc
import linecache
import sys
import weakref
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import annotated_types
import attrs
import jsonschema
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netra_ws import ConfigError, Run, tool
from netra_ws.agents.shapes import Reader, schema_of, to_json
from netra_ws.errors import InvalidParameters
from netra_ws.testing import open_session


@attrs.frozen
class Node:
    name: str
    children: list["Node"] = attrs.field(factory=list)


@dataclasses.dataclass
class Branch:
    name: str
    children: "list[Branch]" = dataclasses.field(default_factory=list)


class Twig(TypedDict):
    name: str
    children: NotRequired[list["Twig"]]


#: What the leaves of a value were asked by a validator.
ASKED: list[Any] = []


def _ask(_: Any, __: Any, value: Any) -> None:
    ASKED.append(value)
    if value == "bad":
        raise ValueError("bad")


@attrs.frozen
class And:
    of: list["And | Or | Word"]
    n: int = 0


@attrs.frozen
class Or:
    of: list["And | Or | Word"]
    n: str = ""


@attrs.frozen
class Word:
    word: str = attrs.field(validator=_ask)


@attrs.frozen
class Cat:
    kind: Literal["cat"]
    age: int


@attrs.frozen
class Dog:
    kind: Literal["dog"]
    age: int


TYPES: list[Any] = [
    Node,
    Branch,
    Twig,
    And,
    Node | Branch | None,
    Cat | Dog,
    set[Any],
    float | int,
    Literal[1.5, "a"],
    Annotated[dict[str, int], annotated_types.Len(1, 2)],
    Annotated[Node, annotated_types.MinLen(2)],
    Annotated[str | list[int] | int | None, annotated_types.MinLen(1), annotated_types.Ge(2)],
    Annotated[int, annotated_types.MultipleOf(3)],
    Annotated[float, annotated_types.MultipleOf(0.5)],
    Annotated[int, pydantic.Field(ge=0, lt=4, description="a share")],
    Annotated[tuple[int, int], annotated_types.MinLen(1)],
]

_NAMES = st.sampled_from(["name", "children", "of", "word", "n", "kind", "age"])
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-1, 7)
    | st.sampled_from([0.25, 1.5, "", "a", "cat", "dog", "good"])
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=2), max_leaves=6
)
_TREES = st.recursive(
    st.fixed_dictionaries({"name": _SCALARS})
    | st.fixed_dictionaries({"word": _SCALARS})
    | st.fixed_dictionaries({"kind": _SCALARS, "age": _SCALARS}),
    lambda inner: (
        st.fixed_dictionaries({"name": st.just("a"), "children": st.lists(inner, max_size=2)})
        | st.fixed_dictionaries({"of": st.lists(inner, max_size=2)}, optional={"n": st.sampled_from([1, "x", None])})
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("type_", TYPES, ids=str)
@settings(max_examples=60)
@given(value=_VALUES | _TREES)
def test_schema_and_reader_agree(type_: Any, value: Any) -> None:
    """A value is read exactly when the schema takes it, and what was read says the same as JSON again."""
    fits = jsonschema.Draft202012Validator(schema_of(type_)).is_valid(value)
    if type_ == set[Any] and fits and len(set(value)) < len(value):
        fits = False  # 1 and true: a set of Python cannot have both
    try:
        read = Reader(type_)(value)
    except InvalidParameters:
        assert not fits
    else:
        assert fits
        assert Reader(type_)(to_json(read, "it")) == read


@pytest.mark.parametrize("type_", [Node, Branch])
def test_a_class_that_names_itself(type_: Any) -> None:
    """A class with a field of its own kind, named as text, is read down to its leaves."""
    assert Reader(type_)({"name": "a", "children": [{"name": "b"}]}) == type_("a", [type_("b")])
    with pytest.raises(InvalidParameters, match=r"^\$\.children\[0\]\.name: expected string, got integer$"):
        Reader(type_)({"name": "a", "children": [{"name": 5}]})


@pytest.mark.parametrize(("word", "n"), [("bad", None), ("good", "x"), ("good", None), ("good", 3)])
def test_unions_that_contain_each_other(word: str, n: Any) -> None:
    """A leaf deep in a value is read once for each class that may be around it, not for each way down to it."""
    value: Any = {"word": word}
    for _ in range(25):
        value = {"of": [value]} if n is None else {"of": [value], "n": n}
    ASKED.clear()
    try:
        Reader(And | Or)(value)
    except InvalidParameters:
        assert word == "bad"
    assert ASKED in ([word], [word] * 2)


def test_the_member_that_is_meant_says_what_is_wrong() -> None:
    """Of classes that a word tells apart, the one that is meant names the wrong place."""
    assert Reader(Cat | Dog)({"kind": "dog", "age": 3}) == Dog("dog", 3)
    with pytest.raises(InvalidParameters) as error:
        Reader(list[Cat | Dog])([{"kind": "dog", "age": "x"}, {"kind": "cow", "age": 1}])
    assert error.value.fields == {"$[0].age": "expected integer, got string", "$[1]": "expected one of Cat, Dog"}


def test_numbers_stay_what_they_are() -> None:
    """A whole number that may be whole is not rounded, and one that stands for itself as 1.0 may be written 1."""
    assert Reader(float | int)(2**53 + 1) == 2**53 + 1
    assert isinstance(Reader(float | int)(1.5), float)
    assert Reader(Literal[1.0])(1) == 1.0  # type: ignore[valid-type]
    for value in (1.0, True):
        with pytest.raises(InvalidParameters):
            Reader(int)(value)


@pytest.mark.parametrize(("type_", "value"), [(set[Any], [[1]]), (set[Any], [{}]), (set[int | bool], [1, True])])
def test_what_no_set_can_have(type_: Any, value: Any) -> None:
    """Items without a hash, and items that Python holds for equal, are wrong values and no crash."""
    with pytest.raises(InvalidParameters):
        Reader(type_)(value)


@pytest.mark.parametrize(
    "type_",
    [
        set[list[int]],
        set[Twig],
        Annotated[str, pydantic.Field(pattern="a+")],
        Annotated[str, pydantic.StringConstraints(pattern="a+")],
        Annotated[int, pydantic.Field(default=3, ge=0)],
        Annotated[int, annotated_types.Predicate(bool)],
        Annotated[str, annotated_types.Ge("a")],
        Annotated[str, annotated_types.Ge(3)],
        Annotated[int, annotated_types.MinLen(3)],
        Annotated[int, annotated_types.MultipleOf(0)],
    ],
    ids=str,
)
def test_bounds_that_nobody_would_keep_to(type_: Any) -> None:
    """A bound that is not understood, or makes no sense for its type, is an error when it is declared."""
    with pytest.raises(ConfigError):
        schema_of(type_)


def test_bounds_in_a_schema() -> None:
    """Bounds and descriptions have the words that JSON Schema has for them."""
    share = Annotated[int, pydantic.Field(ge=0, le=100, description="percent")]
    assert schema_of(share) == {"type": "integer", "minimum": 0, "maximum": 100, "description": "percent"}
    assert schema_of(Annotated[dict[str, int], annotated_types.MinLen(1)])["minProperties"] == 1
    assert schema_of(Annotated[tuple[int, int], annotated_types.MinLen(1)])["minItems"] == 2
    assert schema_of(Annotated[int, annotated_types.MultipleOf(5)])["multipleOf"] == 5


def _classes(count: int) -> Any:
    """Return the first of classes of which each has all others."""
    names = [f"N{n}" for n in range(count)]
    space: dict[str, Any] = {"attrs": attrs, "__name__": __name__}
    for name in names:
        space[name] = type(name, (), {"__annotations__": {"v": f"list[{' | '.join(names)}]"}, "__module__": __name__})
        space[name] = attrs.frozen(space[name], slots=False)
        setattr(sys.modules[__name__], name, space[name])
    return space["N0"]


def test_classes_that_contain_each_other_are_written_once() -> None:
    """Thirty classes of which each has all others are thirty definitions."""
    schema = schema_of(_classes(30))
    assert schema["$ref"] == "#/$defs/N0"
    assert len(schema["$defs"]) == 30
    assert len(str(schema)) < 60_000


def test_classes_of_one_name() -> None:
    """Two classes that have the same name and contain themselves have a definition each."""

    def make(field: str) -> Any:
        made = attrs.make_class("Same", {field: attrs.field(type=int), "next": attrs.field(type=Any)})
        made.__annotations__["next"] = made | None
        return made

    schema = schema_of(tuple[make("a"), make("b")])  # type: ignore[misc]
    assert [each["$ref"] for each in schema["prefixItems"]] == ["#/$defs/Same", "#/$defs/Same2"]
    assert [list(each["properties"]) for each in schema["$defs"].values()] == [["a", "next"], ["b", "next"]]


async def test_nothing_is_kept_of_classes_and_tools_of_a_run() -> None:
    """Classes and tools that each run declares for itself are gone with it."""
    kept: list[Any] = []

    async def agent(run: Run) -> int:
        @attrs.frozen
        class Answer:
            n: int

        @tool
        async def double(n: int, answer: Answer | None = None) -> Answer:
            """Double it."""
            return Answer(2 * n)

        kept.extend(weakref.ref(each) for each in (Answer, double))
        answer = await run.ask("How many?", schema=Answer)
        return int((await double(run, n=answer.n)).n)

    async with open_session({"agent": agent}) as (_, session):
        for n in range(200):
            if n == 20:
                lines = len(linecache.cache)
            run = await session.start("go", agent="agent")
            async for event in run:
                if event.type == "input_required":
                    await session.answer(session.pending_inputs[0]["input_id"], {"n": n})
            assert (await run.result()).final_response == 2 * n
        gc.collect()
        assert len(kept) == 400
        alive = [each for each in kept if each() is not None]
        assert alive == []
        assert len(linecache.cache) < lines + 90  # not one for each of 180 runs; others may load something meanwhile
