"""The one converter between JSON values and the classes of the protocol; never the global one of cattrs.

Its rules: scalars are exact (cattrs alone would turn 5 into "5"), null for a field with a default means
absent, unknown fields are ignored, optional fields that are None are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

import attrs
import cattrs
from cattrs import IterableValidationError, IterableValidationNote
from cattrs.gen import make_dict_unstructure_fn, override

from .commands import COMMANDS, Attachment, Text
from .events import EVENTS
from .replies import REPLIES
from .values import READERS, exactly, json_name, number, read_object

#: Items of a list that one answer calls bad: a message of a megabyte has room for half a million.
MAX_BAD_ITEMS = 20
#: What is said on the wire under a ``type`` of its own.
SPOKEN = frozenset((*COMMANDS, *EVENTS, *REPLIES))
#: The modules whose classes are written without what is absent.
_OURS = frozenset(class_.__module__ for class_ in SPOKEN)


def make_converter() -> cattrs.Converter:
    """Build a converter with the rules named at the top of this module; never the global one."""
    converter = cattrs.Converter()
    for scalar in (str, int, bool):
        converter.register_structure_hook(scalar, exactly(scalar))
    converter.register_structure_hook(float, lambda value, _: number(value))
    converter.register_structure_hook_func(lambda t: t is Text, exactly(str))
    for value_type, reader in READERS.items():
        converter.register_structure_hook_func(_is(value_type), _hook(reader))
    converter.register_structure_hook_func(_is_literal, _one_of)
    converter.register_structure_hook_func(lambda t: t == Mapping[str, Any], _hook(read_object))
    converter.register_structure_hook_func(lambda t: t == str | int | None, _step)
    converter.register_structure_hook_func(lambda t: t == list[Attachment], _attachments(converter))
    converter.register_unstructure_hook_factory(_is_ours, lambda class_: _leaving_out_none(converter, class_))
    return converter


def _is_ours(type_: Any) -> bool:
    return attrs.has(type_) and type_.__module__ in _OURS


def _is(value_type: Any) -> Callable[[Any], bool]:
    return lambda type_: type_ is value_type


def _is_literal(type_: Any) -> bool:
    origin: Any = get_origin(type_)
    return origin is Literal


def _hook(reader: Callable[[object], Any]) -> Callable[[object, object], Any]:
    return lambda value, _: reader(value)


def _one_of(value: object, type_: Any) -> object:
    if type(value) is not str or value not in get_args(type_):
        raise ValueError(f"expected one of {', '.join(get_args(type_))}")
    return value


def _step(value: object, _: object) -> object:
    if value is not None and type(value) is not str and type(value) is not int:
        raise TypeError(f"expected string or integer, got {json_name(value)}")
    return value


def _attachments(converter: cattrs.Converter) -> Callable[[object, object], list[Attachment]]:
    """Return a hook for a client's list; cattrs alone would name every bad item, however many there are."""

    def hook(value: object, _: object) -> list[Attachment]:
        if type(value) is not list:
            raise TypeError(f"expected list, got {json_name(value)}")
        read: list[Attachment] = []
        wrong: list[Exception] = []
        for position, item in enumerate(value):
            try:
                read.append(converter.structure(read_object(item), Attachment))
            except Exception as exc:  # cattrs raises groups of whatever a hook raised
                exc.add_note(IterableValidationNote(f"in attachment {position}", position, Attachment))
                wrong.append(exc)
                if len(wrong) == MAX_BAD_ITEMS:
                    break
        if wrong:
            raise IterableValidationError("bad attachments", wrong, Attachment)
        return read

    return hook


def _leaving_out_none(converter: cattrs.Converter, class_: type[Any]) -> Callable[[Any], dict[str, Any]]:
    """Return what writes no field of *class_* that is None by default and None now."""
    attrs.resolve_types(class_)
    overrides = {field.name: override(omit_if_default=True) for field in attrs.fields(class_) if field.default is None}
    return make_dict_unstructure_fn(class_, converter, **overrides)  # type: ignore[arg-type]


class _Writers(dict[type[Any], Callable[[Any], dict[str, Any]]]):
    """Makes each writer when it is first asked for: all of them would be a tenth of a program's start."""

    def __missing__(self, class_: type[Any]) -> Callable[[Any], dict[str, Any]]:
        writer: Callable[[Any], dict[str, Any]] = converter.get_unstructure_hook(class_)
        self[class_] = writer
        return writer


converter = make_converter()
#: Class → what turns its objects into JSON values.
WRITERS: dict[type[Any], Callable[[Any], dict[str, Any]]] = _Writers()
