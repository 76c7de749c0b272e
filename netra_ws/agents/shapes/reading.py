"""JSON values as Python's: exactly what ``schema.py`` says fits, and back.

cattrs alone would turn 5 into "5" and a text into a list of letters; here every outer type is exact,
unknown fields are errors, and each wrong value is named by its JSON path. Validators of attrs fields
are asked, too.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import attrs
import cattrs
from cattrs import IterableValidationError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn
from cattrs.gen.typeddicts import make_dict_structure_fn as make_typed_dict_fn

from netra_ws.errors import MAX_FIELDS, AgentError, InvalidParameters
from netra_ws.protocol.reading import MAX_DEPTH, deeper_than
from netra_ws.protocol.values import exactly, json_name, number

from .schema import FORMATS, LISTS, SETS, TABLES, bounds_of, name_of

Hook = Callable[[Any, Any], Any]

_BOUND_WORDS = {
    "ge": "at least",
    "gt": "more than",
    "le": "at most",
    "lt": "less than",
    "min_length": "a length of at least",
    "max_length": "a length of at most",
}
_WITHIN: Mapping[str, Callable[[Any, Any], bool]] = {
    "ge": lambda value, bound: bool(value >= bound),
    "gt": lambda value, bound: bool(value > bound),
    "le": lambda value, bound: bool(value <= bound),
    "lt": lambda value, bound: bool(value < bound),
    "min_length": lambda value, bound: len(value) >= bound,
    "max_length": lambda value, bound: len(value) <= bound,
}


@attrs.frozen
class Reader:
    """Reads JSON values as *type*.

    Attributes:
        root: How paths in errors begin.
    """

    type: Any
    root: str = "$"

    def __call__(self, value: object) -> Any:
        """Return *value* as the type says.

        Raises:
            InvalidParameters: It does not fit; ``fields`` names what is wrong by JSON path.
        """
        if deeper_than(value, MAX_DEPTH):
            raise InvalidParameters({self.root: f"nested more than {MAX_DEPTH} levels deep"})
        try:
            return _converter.structure(value, type(None) if self.type is None else self.type)
        except Exception as exc:  # cattrs raises groups of whatever a hook or a validator raised
            raise InvalidParameters(_problems(exc, self.root)) from None


def to_json(value: Any, what: str) -> Any:
    """Return *value* as JSON values: records become objects, sets lists, dates text.

    Raises:
        AgentError: ``NOT_JSON``: it is too deep for that; what else JSON cannot say is found when it is encoded.
    """
    try:
        return _converter.unstructure(value)
    except RecursionError:
        raise AgentError(f"{what}: nested too deep", code="NOT_JSON") from None


def _problems(exc: Exception, root: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in cattrs.transform_error(exc, path=root, format_exception=_describe):
        text, _, path = line.rpartition(" @ ")
        found[path or root] = text or line
        if len(found) == MAX_FIELDS:
            break
    return found


def _describe(exc: BaseException, _: object) -> str:
    if isinstance(exc, KeyError):
        return "required, but missing"
    if isinstance(exc, cattrs.ForbiddenExtraKeysError):
        return f"unknown: {', '.join(sorted(map(str, exc.extra_fields)))}"
    # A validator's words: attrs gives the text first, then what it was about.
    return str(exc.args[0]) if exc.args else type(exc).__name__


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for scalar in (str, int, bool):
        converter.register_structure_hook(scalar, exactly(scalar))
    converter.register_structure_hook(float, lambda value, _: number(value))
    for class_, read in _TEXTS.items():
        converter.register_structure_hook(class_, _text_hook(class_, read))
        converter.register_unstructure_hook(class_, str if class_ is uuid.UUID else class_.isoformat)
    for set_ in (set, frozenset):
        converter.register_unstructure_hook(set_, lambda value: [converter.unstructure(item) for item in value])
    simple: tuple[tuple[Callable[[Any], bool], Hook], ...] = (
        (lambda t: t is type(None), _nothing),
        (lambda t: t in (Any, object), _anything),
        (lambda t: get_origin(t) is Literal, _literal),
        (lambda t: isinstance(t, type) and issubclass(t, enum.Enum), _member),
    )
    for fits, hook in simple:
        converter.register_structure_hook_func(fits, hook)
    for fits, make in _FACTORIES:
        converter.register_structure_hook_factory(fits, _with(converter, make))
    return converter


def _with(converter: cattrs.Converter, make: Callable[[cattrs.Converter, Any], Hook]) -> Callable[[Any], Hook]:
    return lambda type_: make(converter, type_)


def _nothing(value: object, _: object) -> None:
    if value is not None:
        raise TypeError(f"expected null, got {json_name(value)}")


def _anything(value: object, _: object) -> object:
    return value


def _literal(value: object, type_: Any) -> object:
    return _chosen(value, {choice: choice for choice in get_args(type_)})


def _member(value: object, type_: Any) -> object:
    return _chosen(value, {member.value: member for member in type_})


def _chosen(value: object, choices: Mapping[Any, Any]) -> object:
    for choice, meaning in choices.items():
        if type(choice) is type(value) and choice == value:  # True is not 1 here
            return meaning
    raise ValueError(f"expected one of {', '.join(map(repr, choices))}")


_TEXTS: Mapping[Any, Callable[[str], Any]] = {
    dt.datetime: dt.datetime.fromisoformat,
    dt.date: dt.date.fromisoformat,
    dt.time: dt.time.fromisoformat,
    uuid.UUID: uuid.UUID,
}


def _text_hook(class_: Any, read: Callable[[str], Any]) -> Hook:
    def hook(value: object, _: object) -> Any:
        if type(value) is not str:
            raise TypeError(f"expected string, got {json_name(value)}")
        try:
            return read(value)
        except ValueError:
            raise ValueError(f"expected a {FORMATS[class_]}") from None

    return hook


def _union_hook(converter: cattrs.Converter, type_: Any) -> Hook:
    members = get_args(type_)
    candidates = [member for member in members if member is not type(None)]

    def hook(value: object, _: object) -> Any:
        if value is None and type(None) in members:
            return None
        if len(candidates) == 1:
            return converter.structure(value, candidates[0])  # its error says where
        for member in candidates:
            try:
                return converter.structure(value, member)
            except Exception:  # noqa: S112  (whatever a hook of cattrs raised: then it is another member)
                continue
        raise ValueError(f"expected one of {', '.join(name_of(member) for member in members)}")

    return hook


def _bounded_hook(converter: cattrs.Converter, type_: Any) -> Hook:
    inner, *notes = get_args(type_)
    bounds = bounds_of(notes)

    def hook(value: object, _: object) -> Any:
        read = converter.structure(value, inner)
        for name, bound in bounds.items():
            if read is not None and not _WITHIN[name](read, bound):
                raise ValueError(f"expected {_BOUND_WORDS[name]} {bound}")
        return read

    return hook


def _list_hook(converter: cattrs.Converter, type_: Any) -> Hook:
    kind: Any = get_origin(type_) or type_
    inner = get_args(type_)
    make: Callable[[Iterable[Any]], Any] = kind if kind in (set, frozenset, tuple) else list
    make = frozenset if kind in SETS and kind is not set else make
    fixed = inner if kind is tuple and inner and inner[-1] is not Ellipsis else None

    def hook(value: object, _: object) -> Any:
        _check_outer(value, list)
        items: list[Any] = value  # type: ignore[assignment]
        if fixed is not None and len(items) != len(fixed):
            raise ValueError(f"expected {len(fixed)} items, got {len(items)}")
        inner_types = fixed if fixed is not None else [inner[0] if inner else Any] * len(items)
        read = _each(converter, zip(range(len(items)), inner_types, items, strict=True), type_)
        made = make(read)
        if len(made) < len(read):
            raise ValueError("expected each item once")
        return made

    return hook


def _table_hook(converter: cattrs.Converter, type_: Any) -> Hook:
    _, inner = get_args(type_) or (str, Any)

    def hook(value: object, _: object) -> Any:
        _check_outer(value, dict)
        items: dict[str, Any] = value  # type: ignore[assignment]
        read = _each(converter, ((key, inner, item) for key, item in items.items()), type_)
        return dict(zip(items, read, strict=True))

    return hook


def _each(converter: cattrs.Converter, items: Iterable[tuple[Any, Any, Any]], type_: Any) -> list[Any]:
    """Read every item; what is wrong is named together, up to the bound of one error."""
    read, wrong = [], list[Exception]()
    for place, inner, item in items:
        try:
            read.append(converter.structure(item, inner))
        except Exception as exc:  # whatever a hook raised; told under its place
            exc.add_note(IterableValidationNote(f"at {place!r}", place, inner))
            wrong.append(exc)
            if len(wrong) == MAX_FIELDS:
                break
    if wrong:
        raise IterableValidationError("wrong items", wrong, type_)
    return read


def _record_hook(converter: cattrs.Converter, type_: Any) -> Hook:
    make: Any = make_typed_dict_fn if typing.is_typeddict(type_) else make_dict_structure_fn
    read = make(type_, converter)

    def hook(value: object, _: object) -> Any:
        _check_outer(value, dict)
        return read(value, type_)

    return hook


def _check_outer(value: object, expected: type) -> None:
    if type(value) is not expected:
        raise TypeError(f"expected {json_name(expected())}, got {json_name(value)}")


_FACTORIES: tuple[tuple[Callable[[Any], bool], Callable[[cattrs.Converter, Any], Hook]], ...] = (
    (lambda t: get_origin(t) in (Union, types.UnionType), _union_hook),
    (lambda t: (get_origin(t) or t) in (*LISTS, *SETS, tuple), _list_hook),
    (lambda t: (get_origin(t) or t) in TABLES, _table_hook),
    (lambda t: isinstance(t, type) and (attrs.has(t) or dataclasses.is_dataclass(t)), _record_hook),
    (typing.is_typeddict, _record_hook),
    (lambda t: get_origin(t) is Annotated, _bounded_hook),
)

_converter = _make_converter()
