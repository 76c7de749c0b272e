"""JSON values as Python's: exactly what ``schema.py`` says fits, and back.

Every type is exact: 5 is no text, true is no number, 1.0 is no integer (JSON Schema would call it one),
unknown fields are errors, and each wrong value is named by its JSON path. Validators and converters of attrs
classes have their say, too. A value is read in time that grows with its size, also by unions of classes that
contain each other: a member is chosen by its outer shape, and no part is read twice as the same member.

Nothing is kept of a type when its reader is gone, so that agents can declare classes while they run.
"""

from __future__ import annotations

import enum
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin

import attrs

from netra_ws.errors import MAX_FIELDS, InvalidParameters
from netra_ws.protocol.reading import MAX_DEPTH, deeper_than
from netra_ws.protocol.values import exactly, json_name, number

from .bounds import broken_bound, constraints_of
from .fields import Field, fields_of, name_of
from .schema import FORMATS, LISTS, SETS, TABLES, schema_of

#: How well a value looks to fit, from outside: another type of JSON, other fields, as far as can be seen, exactly.
_OTHER, _SIMILAR, _FITTING, _EXACT = range(4)
#: What a reading returns for a value that is wrong; what is wrong has been noted.
_WRONG: Any = object()

#: Where a value is: the place of what it is in, and its own name or number there.
Place = tuple[Any, ...]


@attrs.frozen
class Reader:
    """Reads JSON values as *type*.

    Attributes:
        root: How paths in errors begin.

    Raises:
        ConfigError: JSON has nothing for this type.
    """

    type: Any
    root: str = "$"
    _plan: _Plan = attrs.field(init=False, eq=False, repr=False)

    @_plan.default
    def _make_plan(self) -> _Plan:
        schema_of(self.type)  # so that nothing else is planned
        return _Planner().plan(self.type)

    def __call__(self, value: object) -> Any:
        """Return *value* as the type says.

        Raises:
            InvalidParameters: It does not fit; ``fields`` names what is wrong by JSON path.
        """
        return _read(self._plan, value, self.root)


def fields_reader(fields: Sequence[Field], root: str = "$") -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return what reads an object with these fields as a dictionary of their values, those by default included."""
    plan = _Planner().record(fields, lambda values: values, with_defaults=True)
    return lambda value: _read(plan, dict(value), root)


def _read(plan: _Plan, value: object, root: str) -> Any:
    if deeper_than(value, MAX_DEPTH):
        raise InvalidParameters({root: f"nested more than {MAX_DEPTH} levels deep"})
    reading = _Reading()
    try:
        read = plan.read(value, reading, ())
    except _Enough:
        read = _WRONG
    if read is _WRONG:
        raise InvalidParameters({f"{root}{_path(place)}": text for place, text in reading.wrong.items()})
    return read


def _path(place: Place) -> str:
    path = ""
    while place:
        place, name = place
        path = (f".{name}" if isinstance(name, str) else f"[{name[0] if isinstance(name, tuple) else name!r}]") + path
    return path


class _Enough(Exception):
    """More wrong places need not be looked for."""


@attrs.define(eq=False)
class _Reading:
    """One reading of one value.

    Attributes:
        wrong: What is wrong, by place.
        at_most: So many wrong places are looked for.
        tried: What lists and objects were read as which members of unions, by both their identities.
    """

    wrong: dict[Place, str] = attrs.field(factory=dict)
    at_most: int = MAX_FIELDS
    tried: dict[tuple[int, int], Any] = attrs.field(factory=dict)

    def refuse(self, place: Place, text: str) -> Any:
        """Note what is wrong and return the sign for it."""
        self.wrong.setdefault(place, text)
        if len(self.wrong) >= self.at_most:
            raise _Enough
        return _WRONG

    def attempt(self, plan: _Plan, value: Any) -> Any:
        """Read a value that may well be something else."""
        key = (id(value), id(plan))
        if key in self.tried:
            return self.tried[key]
        try:
            read = plan.read(value, _Reading(at_most=1, tried=self.tried), ())
        except _Enough:
            read = _WRONG
        if isinstance(value, dict | list):
            self.tried[key] = read
        return read


@attrs.define(eq=False)
class _Plan:
    """How values of one type are read.

    Attributes:
        read: From a value to what it is in Python, or ``_WRONG``.
        rank: How well a value fits from outside; when that is less than ``_FITTING``, it is surely wrong.
    """

    read: Callable[[Any, _Reading, Place], Any]
    rank: Callable[[Any], int]


class _Planner:
    """Makes the plans of a type and of all in it; each record class has one."""

    def __init__(self) -> None:
        self._records: dict[Any, _Plan] = {}

    def plan(self, type_: Any) -> _Plan:
        """Return the plan of *type_*, for which there is a schema."""
        if type_ is Any or type_ is object:
            return _Plan(lambda value, _, __: value, lambda _: _FITTING)
        if isinstance(type_, NewType):
            return self.plan(type_.__supertype__)
        if type_ is None or type_ is type(None):
            return _scalar(_nothing, (type(None),))
        if type_ in (str, int, bool):
            hook = exactly(type_)
            return _scalar(lambda value: hook(value, None), (type_,))
        if type_ is float:
            return _scalar(_float, (float,), (int,))
        if type_ in FORMATS:
            return _scalar(_text_reader(type_), (), (str,))
        origin, inner = get_origin(type_), get_args(type_)
        if origin is Annotated:
            return self._bounded(type_)
        if origin in (Union, types.UnionType):
            return self._union(inner)
        if origin is Literal:
            return _choice([(choice, choice) for choice in inner])
        if isinstance(type_, type) and issubclass(type_, enum.Enum):
            return _choice([(member.value, member) for member in type_])
        kind = origin or type_
        if kind in TABLES:
            return self._table(inner[1] if inner else Any)
        if kind in (*LISTS, *SETS, tuple):
            return self._list(kind, inner)
        return self._class(type_)

    def _bounded(self, type_: Any) -> _Plan:
        constraints = constraints_of(type_)
        plan = self.plan(get_args(type_)[0])

        def read(value: Any, reading: _Reading, place: Place) -> Any:
            result = plan.read(value, reading, place)
            if result is not _WRONG and (broken := broken_bound(value, constraints)):
                return reading.refuse(place, broken)
            return result

        return _Plan(read, plan.rank)

    def _union(self, members: Sequence[Any]) -> _Plan:
        plans = [self.plan(member) for member in members]
        main = [plan for plan, member in zip(plans, members, strict=True) if member is not type(None)]
        expected = f"expected one of {', '.join(name_of(member) for member in members)}"

        def rank(value: Any) -> int:
            return max(plan.rank(value) for plan in plans)

        def read(value: Any, reading: _Reading, place: Place) -> Any:
            ranks = [(plan.rank(value), plan) for plan in plans]
            likely = [plan for level in (_EXACT, _FITTING) for rank, plan in ranks if rank == level]
            # When there is no choice, the one that may be meant says what is wrong, and where.
            likely = likely or [plan for rank, plan in ranks if rank == _SIMILAR] or main
            if len(likely) == 1:
                return likely[0].read(value, reading, place)
            for plan in likely:
                if (result := reading.attempt(plan, value)) is not _WRONG:
                    return result
            return reading.refuse(place, expected)

        return _Plan(read, rank)

    def _table(self, inner: Any) -> _Plan:
        plan = self.plan(inner)

        def read(value: Any, reading: _Reading, place: Place) -> Any:
            if type(value) is not dict:
                return reading.refuse(place, f"expected object, got {json_name(value)}")
            result = {name: plan.read(item, reading, (place, (repr(name),))) for name, item in value.items()}
            return _WRONG if any(item is _WRONG for item in result.values()) else result

        return _Plan(read, lambda value: _FITTING if type(value) is dict else _OTHER)

    def _list(self, kind: Any, inner: tuple[Any, ...]) -> _Plan:
        fixed = [self.plan(each) for each in inner] if kind is tuple and inner and inner[-1] is not Ellipsis else None
        each = self.plan(inner[0] if inner else Any)
        make: Callable[[Iterable[Any]], Any] = kind if kind in (set, tuple) else frozenset if kind in SETS else list

        def read(value: Any, reading: _Reading, place: Place) -> Any:
            if type(value) is not list:
                return reading.refuse(place, f"expected list, got {json_name(value)}")
            if fixed is not None and len(value) != len(fixed):
                return reading.refuse(place, f"expected {len(fixed)} items, got {len(value)}")
            plans = fixed if fixed is not None else [each] * len(value)
            items = [
                plan.read(item, reading, (place, at)) for at, (plan, item) in enumerate(zip(plans, value, strict=True))
            ]
            if any(item is _WRONG for item in items):
                return _WRONG
            try:
                made = make(items)
            except Exception as exc:  # whatever the hash of somebody's class raises
                return reading.refuse(place, f"its items cannot be in a set: {_words(exc)}")
            return made if len(made) == len(items) else reading.refuse(place, "expected each item once")

        def rank(value: Any) -> int:
            if type(value) is not list:
                return _OTHER
            return _FITTING if fixed is None or len(fixed) == len(value) else _SIMILAR

        return _Plan(read, rank)

    def _class(self, class_: Any) -> _Plan:
        if class_ in self._records:
            return self._records[class_]
        # Known before its fields are: they may be of the same class.
        self._records[class_] = plan = _Plan(lambda *_: _WRONG, lambda _: _OTHER)
        fields = fields_of(class_) or []
        make = class_
        if not typing.is_typeddict(class_):
            names = {field.name: field.argument or field.name for field in fields}
            make = lambda values: class_(**{names[name]: value for name, value in values.items()})  # noqa: E731
        made = self.record(fields, make)
        plan.read, plan.rank = made.read, made.rank
        return plan

    def record(self, fields: Sequence[Field], make: Callable[[Any], Any], *, with_defaults: bool = False) -> _Plan:
        """Return the plan of an object with these fields, of whose values *make* makes something."""
        plans = {field.name: self.plan(field.type) for field in fields}
        required = {field.name for field in fields if field.default is attrs.NOTHING}
        defaults = {field.name: field.default for field in fields if with_defaults and field.name not in required}
        choices = [field.name for field in fields if _is_choice(field.type)]

        def read(value: Any, reading: _Reading, place: Place) -> Any:
            if type(value) is not dict:
                return reading.refuse(place, f"expected object, got {json_name(value)}")
            whole = True
            if unknown := value.keys() - plans.keys():
                reading.refuse(place, f"unknown: {', '.join(sorted(map(str, unknown)))}"[:1000])
                whole = False
            values = dict(defaults)
            for name, plan in plans.items():
                if name in value:
                    values[name] = plan.read(value[name], reading, (place, name))
                    whole = whole and values[name] is not _WRONG
                elif name in required:
                    reading.refuse((place, name), "required, but missing")
                    whole = False
            if not whole:
                return _WRONG
            try:
                return make(values)
            except Exception as exc:  # whatever a validator or a converter of somebody's class raises
                return reading.refuse(place, _words(exc))

        def rank(value: Any) -> int:
            if type(value) is not dict:
                return _OTHER
            if not (required <= value.keys() <= plans.keys()):
                return _SIMILAR
            fits = all(plans[name].rank(value[name]) >= _FITTING for name in choices if name in value)
            return _FITTING if fits else _SIMILAR

        return _Plan(read, rank)


def _is_choice(type_: Any) -> bool:
    return get_origin(type_) is Literal or (isinstance(type_, type) and issubclass(type_, enum.Enum))


def _words(exc: Exception) -> str:
    # A validator's words: attrs gives the text first, then what it was about.
    return str(exc.args[0]) if exc.args else type(exc).__name__


def _scalar(read: Callable[[Any], Any], exact: tuple[type, ...], fitting: tuple[type, ...] = ()) -> _Plan:
    def plan(value: Any, reading: _Reading, place: Place) -> Any:
        try:
            return read(value)
        except (TypeError, ValueError) as exc:
            return reading.refuse(place, str(exc))

    def rank(value: Any) -> int:
        return _EXACT if type(value) in exact else _FITTING if type(value) in fitting else _OTHER

    return _Plan(plan, rank)


def _nothing(value: Any) -> None:
    if value is not None:
        raise TypeError(f"expected null, got {json_name(value)}")


def _float(value: Any) -> float:
    try:
        return number(value)
    except OverflowError:
        raise ValueError("expected a finite number") from None


def _text_reader(class_: Any) -> Callable[[Any], Any]:
    read = uuid.UUID if class_ is uuid.UUID else class_.fromisoformat

    def text(value: Any) -> Any:
        if type(value) is not str:
            raise TypeError(f"expected string, got {json_name(value)}")
        try:
            return read(value)
        except ValueError:
            raise ValueError(f"expected a {FORMATS[class_]}") from None

    return text


def _choice(choices: Sequence[tuple[Any, Any]]) -> _Plan:
    expected = f"expected one of {', '.join(repr(choice) for choice, _ in choices)}"

    def find(value: Any) -> Any:
        for choice, meaning in choices:
            if type(choice) is type(value) and choice == value:  # True is not 1 here
                return meaning
        for choice, meaning in choices:
            if type(choice) is float and type(value) is int and choice == value:
                return meaning
        return _WRONG

    def read(value: Any, reading: _Reading, place: Place) -> Any:
        found = find(value)
        return reading.refuse(place, expected) if found is _WRONG else found

    return _Plan(read, lambda value: _SIMILAR if find(value) is _WRONG else _EXACT)
