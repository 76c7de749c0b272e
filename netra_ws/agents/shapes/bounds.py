"""What ``Annotated`` says of a type: a description, and bounds, in JSON Schema and when a value is read.

A description is a plain text. Bounds are any objects with ``ge``, ``gt``, ``le``, ``lt``, ``multiple_of``,
``min_length`` or ``max_length``: those of ``annotated-types``, and ``pydantic.Field``, whose description is
taken, too; and the numeric and length validators of attrs, also those of an attrs class's field. A note that
wants to bound in another way is an error, for nobody would keep to it; notes of other kinds are none of our
business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, get_args

from netra_ws.errors import ConfigError

#: Libraries whose notes are bounds.
_LIBRARIES = ("annotated_types", "pydantic", "pydantic_core", "msgspec")
#: Bound → word of JSON Schema for numbers.
_NUMBERS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
}
#: Bound → words for text, for lists and for objects.
_LENGTHS = {
    "min_length": {"string": "minLength", "array": "minItems", "object": "minProperties"},
    "max_length": {"string": "maxLength", "array": "maxItems", "object": "maxProperties"},
}
_WORDS = {
    "ge": "at least",
    "gt": "more than",
    "le": "at most",
    "lt": "less than",
    "multiple_of": "a multiple of",
    "min_length": "a length of at least",
    "max_length": "a length of at most",
}
_WITHIN: Mapping[str, Callable[[Any, Any], bool]] = {
    "ge": lambda value, bound: bool(value >= bound),
    "gt": lambda value, bound: bool(value > bound),
    "le": lambda value, bound: bool(value <= bound),
    "lt": lambda value, bound: bool(value < bound),
    "multiple_of": lambda value, bound: _is_multiple(value, bound),
    "min_length": lambda value, bound: len(value) >= bound,
    "max_length": lambda value, bound: len(value) <= bound,
}


#: How a validator of attrs writes a bound.
_COMPARED = {">=": "ge", ">": "gt", "<=": "le", "<": "lt"}


class _Bound(SimpleNamespace):
    """One bound, by its name in ``annotated-types``."""


def constraints_of(type_: Any) -> dict[str, Any]:
    """Return the bounds of an ``Annotated`` type, by their names in ``annotated-types``.

    Raises:
        ConfigError: A note wants something that is not known here.
    """
    found: dict[str, Any] = {}
    for note in _notes(get_args(type_)[1:]):
        if isinstance(note, str):
            continue
        bounds = {name: bound for name in _WORDS if (bound := getattr(note, name, None)) is not None}
        is_bound = type(note).__module__.partition(".")[0] in _LIBRARIES and type(note).__name__ != "Unit"
        if getattr(note, "pattern", None) is not None or (is_bound and not bounds):
            raise ConfigError(f"{note!r}: JSON Schema has no word for this bound that is checked here")
        found |= {name: _checked(name, bound) for name, bound in bounds.items()}
    return {name: bound for name, bound in found.items() if (name, bound) != ("min_length", 0)}


def description_of(type_: Any) -> str:
    """Return the last description among the notes of an ``Annotated`` type."""
    texts = [note for note in _notes(get_args(type_)[1:]) if isinstance(note, str)]
    return texts[-1] if texts else ""


def _notes(notes: Iterable[Any]) -> Iterator[Any]:
    """Yield texts and single bounds: notes that hold others are taken apart."""
    for note in notes:
        library = type(note).__module__.partition(".")[0]
        if library == "pydantic" and type(note).__name__ == "FieldInfo":
            if note.alias is not None or not note.is_required():
                raise ConfigError(f"{note!r}: defaults and aliases are not taken from here")
            yield from _notes(note.metadata)
            if note.description:
                yield note.description
        elif type(note).__name__ in ("DocInfo", "Doc"):
            yield str(note.documentation)
        elif getattr(note, "__is_annotated_types_grouped_metadata__", False):
            yield from _notes(note)
        elif library == "attr":  # its validators; those that are no bounds have their say when the object is made
            yield from _notes(getattr(note, "_validators", ()))
            if (name := _COMPARED.get(getattr(note, "compare_op", ""))) and type(note.bound) in (int, float):
                yield _Bound(**{name: note.bound})
            for name in _LENGTHS:
                if type(length := getattr(note, name, None)) is int:
                    yield _Bound(**{name: length})
        else:
            yield note


def _checked(name: str, bound: Any) -> Any:
    is_length = name in _LENGTHS
    fits = type(bound) is int or (type(bound) is float and math.isfinite(bound) and not is_length)
    if not fits or (is_length and bound < 0) or (name == "multiple_of" and bound <= 0):
        raise ConfigError(f"{name} {bound!r}: JSON Schema takes numbers as bounds")
    return bound


def bounds_schema(schema: dict[str, Any], constraints: Mapping[str, Any]) -> dict[str, Any]:
    """Return *schema* with the bounds; each is about values of the types of JSON that it can be about.

    Raises:
        ConfigError: The schema has no such values.
    """
    kind = schema.get("type")
    result = dict(schema)
    for name, bound in constraints.items():
        if name in _NUMBERS:
            words = [_NUMBERS[name]] if kind in ("integer", "number", None) else []
        else:
            words = [word for type_, word in _LENGTHS[name].items() if kind in (type_, None)]
        if not words:
            raise ConfigError(f"{name} {bound}: JSON has no such bound for a type that is {kind}")
        for word in words:
            result[word] = _stricter(word, bound, schema.get(word, bound))
    return result


def _stricter(word: str, bound: Any, other: Any) -> Any:
    if word == "multipleOf" and bound != other:
        raise ConfigError(f"multiple_of {bound} and {other}: JSON Schema takes one of them")
    return max(bound, other) if word.startswith(("min", "exclusiveMin")) else min(bound, other)


def broken_bound(value: Any, constraints: Mapping[str, Any]) -> str:
    """Return what is wrong with a JSON value, or nothing; as in a schema, a bound is only about its own types."""
    for name, bound in constraints.items():
        concerned = (int, float) if name in _NUMBERS else (str, list, dict)
        if type(value) in concerned and not _WITHIN[name](value, bound):
            return f"expected {_WORDS[name]} {bound}"
    return ""


def _is_multiple(value: Any, step: Any) -> bool:
    if isinstance(step, float):
        times = value / step
        return math.isfinite(times) and int(times) == times
    return bool(value % step == 0)
