"""The fields of classes that are records: attrs classes, dataclasses, typed dictionaries."""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any, get_args, get_origin

import attrs

from netra_ws.errors import ConfigError


@attrs.frozen
class Field:
    """One named value of an object.

    Attributes:
        default: What it is when it is left out; ``attrs.NOTHING`` when it has to be there.
        argument: What the class calls it when one is made, if not by its name.
    """

    name: str
    type: Any
    default: Any = attrs.NOTHING
    description: str = ""
    argument: str = ""


def fields_of(class_: Any) -> list[Field] | None:
    """Return the fields of a class that is a record, None for any other.

    Raises:
        ConfigError: The type of a field is a name that is not to be found.
    """
    if not isinstance(class_, type):
        return None
    if attrs.has(class_):
        hints = _hints(class_)
        return [
            Field(
                each.name,
                # Its validators are its bounds, too, so that a model and a form are told of them.
                _bounded(hints.get(each.name, each.type or Any), each),
                each.default,
                each.metadata.get("description", ""),
                each.alias or "",
            )
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


def _bounded(type_: Any, field: Any) -> Any:
    if field.validator is None or field.converter is not None:
        return type_  # what a converter makes of a value is another one
    return Annotated[type_, field.validator]


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


def own_doc(class_: Any) -> str:
    """Return the first line of a docstring that somebody wrote; dataclasses make one of their own."""
    text = (class_.__dict__.get("__doc__") or "").strip().partition("\n")[0]
    return "" if text.startswith(f"{class_.__name__}(") else text


def name_of(type_: Any) -> str:
    """Return what to call a type in a sentence."""
    return getattr(type_, "__name__", None) or str(type_)
