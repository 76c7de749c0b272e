"""Python's types as JSON Schema (draft 2020-12); ``reading.py`` takes exactly what is said here.

Known are text, numbers, booleans, None, ``Any``, ``Literal``, enums, unions, lists, tuples, sets,
dictionaries with text as keys, attrs classes, dataclasses, typed dictionaries, and ``datetime``, ``date``,
``time`` and ``UUID`` as text. ``Annotated`` adds a description (a plain text) and bounds: any object with
``ge``, ``gt``, ``le``, ``lt``, ``min_length`` or ``max_length``, as those of ``annotated-types`` have.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import types
import typing
import uuid
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence, Set
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin

import attrs

from netra_ws.errors import ConfigError
from netra_ws.protocol.values import json_name

_SCALARS: Mapping[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    None: {"type": "null"},
}
FORMATS: Mapping[Any, str] = {dt.datetime: "date-time", dt.date: "date", dt.time: "time", uuid.UUID: "uuid"}
LISTS = (list, Sequence, MutableSequence)
SETS = (set, frozenset, Set)
TABLES = (dict, Mapping, MutableMapping)
#: Bound of ``annotated-types`` → word of JSON Schema for numbers.
_NUMBER_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
#: Bound → words for text, and for lists.
_LENGTH_BOUNDS = {"min_length": ("minLength", "minItems"), "max_length": ("maxLength", "maxItems")}
_BOUNDS = (*_NUMBER_BOUNDS, *_LENGTH_BOUNDS)


def schema_of(type_: Any) -> dict[str, Any]:
    """Return the JSON Schema of *type_*.

    Raises:
        ConfigError: JSON has nothing for this type, or this module does not know it.
    """
    writer = _SchemaWriter()
    schema = writer.write(type_)
    if writer.defs:
        schema = {**schema, "$defs": writer.defs}
    return schema


class _SchemaWriter:
    def __init__(self) -> None:
        self.defs: dict[str, Any] = {}
        self._open: list[Any] = []
        self._recursive: set[Any] = set()

    def write(self, type_: Any) -> dict[str, Any]:
        if type_ is Any or type_ is object:
            return {}
        if isinstance(type_, NewType):
            return self.write(type_.__supertype__)
        if type_ in _SCALARS:
            return dict(_SCALARS[type_])
        if type_ in FORMATS:
            return {"type": "string", "format": FORMATS[type_]}
        origin, inner = get_origin(type_), get_args(type_)
        if origin is Annotated:
            return self._annotated(inner)
        if origin in (Union, types.UnionType):
            return {"anyOf": [self.write(each) for each in inner]}
        if origin is Literal:
            return _choice(inner)
        if isinstance(type_, type) and issubclass(type_, enum.Enum):
            return _choice([member.value for member in type_])
        if (origin or type_) in (*LISTS, *SETS, *TABLES, tuple):
            return self._container(origin or type_, inner)
        if _fields_of(type_) is not None:
            return self._object(type_)
        raise ConfigError(f"{name_of(type_)}: JSON has no word for this type")

    def _annotated(self, inner: tuple[Any, ...]) -> dict[str, Any]:
        type_, *notes = inner
        schema = self.write(type_)
        for note in notes:
            if isinstance(note, str):
                schema["description"] = note
        return schema | _bounds_schema(schema, notes)

    def _container(self, kind: Any, inner: tuple[Any, ...]) -> dict[str, Any]:
        if kind in TABLES:
            key, value = inner or (str, Any)
            if key is not str:
                raise ConfigError(f"{name_of(kind)} with keys of {name_of(key)}: JSON has text as keys only")
            return {"type": "object", "additionalProperties": self.write(value)}
        if kind is tuple and inner and inner[-1] is not Ellipsis:
            items = [self.write(each) for each in inner]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        schema: dict[str, Any] = {"type": "array", "items": self.write(inner[0] if inner else Any)}
        return schema | ({"uniqueItems": True} if kind in SETS else {})

    def _object(self, class_: Any) -> dict[str, Any]:
        reference = {"$ref": f"#/$defs/{class_.__name__}"}
        if class_ in self._open:
            self._recursive.add(class_)
            return reference
        self._open.append(class_)
        schema = object_schema(_fields_of(class_) or (), self.write)
        self._open.pop()
        if text := _own_doc(class_):
            schema["description"] = text
        if class_ not in self._recursive:
            return schema
        self.defs[class_.__name__] = schema
        return reference


@attrs.frozen
class Field:
    """One named value of an object.

    Attributes:
        default: What it is when it is left out; ``attrs.NOTHING`` when it has to be there.
    """

    name: str
    type: Any
    default: Any = attrs.NOTHING
    description: str = ""


def object_schema(fields: Sequence[Field], write: Callable[[Any], dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return the schema of an object with these fields and no others.

    Raises:
        ConfigError: As ``schema_of``.
    """
    writer = _SchemaWriter()
    properties: dict[str, Any] = {}
    for field in fields:
        properties[field.name] = schema = (write or writer.write)(field.type)
        if field.description:
            schema.setdefault("description", field.description)
        if isinstance(field.default, str | int | float | bool):  # a plain one that JSON can say
            schema["default"] = field.default
    required = [field.name for field in fields if field.default is attrs.NOTHING]
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        schema["required"] = required
    return schema | ({"$defs": writer.defs} if writer.defs else {})


def _fields_of(class_: Any) -> list[Field] | None:
    """Return the fields of a class that is a record, None for any other."""
    if not isinstance(class_, type):
        return None
    if attrs.has(class_):
        hints = _hints(class_)
        return [
            Field(each.name, hints.get(each.name, Any), each.default, each.metadata.get("description", ""))
            for each in attrs.fields(class_)
            if each.init
        ]
    if dataclasses.is_dataclass(class_):
        hints = _hints(class_)
        return [Field(each.name, hints[each.name], _default(each)) for each in dataclasses.fields(class_) if each.init]
    if typing.is_typeddict(class_):
        hints, needed = _hints(class_), class_.__required_keys__  # type: ignore[attr-defined]
        return [Field(name, hint, attrs.NOTHING if name in needed else None) for name, hint in hints.items()]
    return None


def _hints(class_: Any) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(class_, include_extras=True)
    except NameError as exc:
        raise ConfigError(f"{name_of(class_)}: {exc}; types have to be found in the module") from None
    return {name: _without_requirement(hint) for name, hint in hints.items()}


def _without_requirement(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) in (typing.Required, typing.NotRequired) else hint


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return attrs.NOTHING
    return None if field.default is dataclasses.MISSING else field.default


def _own_doc(class_: Any) -> str:
    """Return the first line of a docstring that somebody wrote; dataclasses make one of their own."""
    text = (class_.__dict__.get("__doc__") or "").strip().partition("\n")[0]
    return "" if text.startswith(f"{class_.__name__}(") else text


def _choice(values: Sequence[Any]) -> dict[str, Any]:
    kinds = {json_name(value) for value in values}
    if not kinds <= {"string", "integer", "boolean", "null", "number"}:
        raise ConfigError(f"a choice among {', '.join(sorted(kinds))}: JSON has no word for all of them")
    return {"enum": list(values)} | ({"type": kinds.pop()} if len(kinds) == 1 else {})


def _bounds_schema(schema: Mapping[str, Any], notes: Sequence[Any]) -> dict[str, Any]:
    found = {}
    for name, bound in bounds_of(notes).items():
        if name in _NUMBER_BOUNDS:
            found[_NUMBER_BOUNDS[name]] = bound
        else:
            found[_LENGTH_BOUNDS[name][schema.get("type") == "array"]] = bound
    return found


def bounds_of(notes: Sequence[Any]) -> dict[str, Any]:
    """Return the bounds among the notes of an ``Annotated``, by their names in ``annotated-types``."""
    values = ((name, getattr(note, name, None)) for note in notes if not isinstance(note, str) for name in _BOUNDS)
    return {name: bound for name, bound in values if bound is not None and not (name == "min_length" and bound == 0)}


def name_of(type_: Any) -> str:
    """Return what to call a type in a sentence."""
    return getattr(type_, "__name__", None) or str(type_)
