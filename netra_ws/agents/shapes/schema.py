"""Python's types as JSON Schema (draft 2020-12); ``reading.py`` takes exactly what is said here.

Known are text, numbers, booleans, None, ``Any``, ``Literal``, enums, unions, lists, tuples, sets,
dictionaries with text as keys, attrs classes, dataclasses, typed dictionaries, and ``datetime``, ``date``,
``time`` and ``UUID`` as text. ``Annotated`` adds a description and bounds (``bounds.py``).

Two things JSON Schema cannot say, and the reader is stricter: 1.0 is no integer, and a set does not take two
items that Python holds for equal, such as 1 and true.
"""

from __future__ import annotations

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

from .bounds import bounds_schema, constraints_of, description_of
from .fields import Field, fields_of, name_of, own_doc

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
        self._recursive: dict[Any, None] = {}
        self._written: dict[Any, dict[str, Any]] = {}
        self._names: dict[Any, str] = {}

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
            return self._annotated(type_)
        if origin in (Union, types.UnionType):
            return {"anyOf": [self.write(each) for each in inner]}
        if origin is Literal:
            return _choice(inner)
        if isinstance(type_, type) and issubclass(type_, enum.Enum):
            return _choice([member.value for member in type_])
        if (origin or type_) in (*LISTS, *SETS, *TABLES, tuple):
            return self._container(origin or type_, inner)
        if fields_of(type_) is not None:
            return self._object(type_)
        raise ConfigError(f"{name_of(type_)}: JSON has no word for this type")

    def _annotated(self, type_: Any) -> dict[str, Any]:
        schema = self.write(get_args(type_)[0])
        if text := description_of(type_):
            schema["description"] = text
        return bounds_schema(schema, constraints_of(type_))

    def _container(self, kind: Any, inner: tuple[Any, ...]) -> dict[str, Any]:
        if kind in TABLES:
            key, value = inner or (str, Any)
            if key is not str:
                raise ConfigError(f"{name_of(kind)} with keys of {name_of(key)}: JSON has text as keys only")
            return {"type": "object", "additionalProperties": self.write(value)}
        if kind is tuple and inner and inner[-1] is not Ellipsis:
            items = [self.write(each) for each in inner]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        if kind in SETS:
            return {"type": "array", "items": self._in_set(inner[0] if inner else Any), "uniqueItems": True}
        return {"type": "array", "items": self.write(inner[0] if inner else Any)}

    def _in_set(self, type_: Any) -> dict[str, Any]:
        if type_ is Any or type_ is object:
            return {"type": ["string", "number", "boolean", "null"]}
        origin = get_origin(type_) or type_
        if origin in (*LISTS, *TABLES, set, Set) or typing.is_typeddict(origin) or origin.__hash__ is None:
            raise ConfigError(f"a set of {name_of(type_)}: JSON has such lists, but Python needs a hash of each item")
        return self.write(type_)

    def _object(self, class_: Any) -> dict[str, Any]:
        """Write each class once; one that contains itself, by whatever way, becomes a definition."""
        if class_ in self._open:
            self._recursive.update(dict.fromkeys(self._open[self._open.index(class_) :]))
        elif class_ not in self._written:
            self._open.append(class_)
            schema = object_schema(fields_of(class_) or (), self.write)
            self._open.pop()
            if text := own_doc(class_):
                schema["description"] = text
            self._written[class_] = schema
            if class_ in self._recursive:
                self.defs[self._name(class_)] = schema
        if class_ in self._recursive:
            return {"$ref": f"#/$defs/{self._name(class_)}"}
        return dict(self._written[class_])

    def _name(self, class_: Any) -> str:
        """Return the name of a definition: the class's, with a number when another one has it."""
        if class_ not in self._names:
            name, number = class_.__name__, 1
            while name in self._names.values():
                number += 1
                name = f"{class_.__name__}{number}"
            self._names[class_] = name
        return self._names[class_]


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


def _choice(values: Sequence[Any]) -> dict[str, Any]:
    kinds = {json_name(value) for value in values}
    if not kinds <= {"string", "integer", "boolean", "null", "number"}:
        raise ConfigError(f"a choice among {', '.join(sorted(kinds))}: JSON has no word for all of them")
    return {"enum": list(values)} | ({"type": kinds.pop()} if len(kinds) == 1 else {})
