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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin

import attrs

from netra_ws.errors import InvalidParameters
from netra_ws.protocol.reading import MAX_DEPTH, deeper_than
from netra_ws.protocol.values import exactly, json_name

from .bounds import broken_bound, constraints_of
from .fields import Field, fields_of, name_of
from .plans import (
    EXACT,
    FITTING,
    OTHER,
    SIMILAR,
    WRONG,
    Enough,
    Place,
    Plan,
    Reading,
    choice_of,
    finite,
    nothing,
    path_of,
    scalar,
    text_reader,
    words_of,
)
from .schema import FORMATS, LISTS, SETS, TABLES, schema_of


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
    _plan: Plan = attrs.field(init=False, eq=False, repr=False)

    @_plan.default
    def _make_plan(self) -> Plan:
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


def _read(plan: Plan, value: object, root: str) -> Any:
    if deeper_than(value, MAX_DEPTH):
        raise InvalidParameters({root: f"nested more than {MAX_DEPTH} levels deep"})
    reading = Reading()
    try:
        read = plan.read(value, reading, ())
    except Enough:
        read = WRONG
    if read is WRONG:
        raise InvalidParameters({f"{root}{path_of(place)}": text for place, text in reading.wrong.items()})
    return read


class _Planner:
    """Makes the plans of a type and of all in it; each record class has one."""

    def __init__(self) -> None:
        self._records: dict[Any, Plan] = {}

    def plan(self, type_: Any) -> Plan:
        """Return the plan of *type_*, for which there is a schema."""
        if type_ is Any or type_ is object:
            return Plan(lambda value, _, __: value, lambda _: FITTING)
        if isinstance(type_, NewType):
            return self.plan(type_.__supertype__)
        if type_ is None or type_ is type(None):
            return scalar(nothing, (type(None),))
        if type_ in (str, int, bool):
            hook = exactly(type_)
            return scalar(lambda value: hook(value, None), (type_,))
        if type_ is float:
            return scalar(finite, (float,), (int,))
        if type_ in FORMATS:
            return scalar(text_reader(type_), (), (str,))
        origin, inner = get_origin(type_), get_args(type_)
        if origin is Annotated:
            return self._bounded(type_)
        if origin in (Union, types.UnionType):
            return self._union(inner)
        if origin is Literal:
            return choice_of([(choice, choice) for choice in inner])
        if isinstance(type_, type) and issubclass(type_, enum.Enum):
            return choice_of([(member.value, member) for member in type_])
        kind = origin or type_
        if kind in TABLES:
            return self._table(inner[1] if inner else Any)
        if kind in (*LISTS, *SETS, tuple):
            return self._list(kind, inner)
        return self._class(type_)

    def _bounded(self, type_: Any) -> Plan:
        constraints = constraints_of(type_)
        plan = self.plan(get_args(type_)[0])

        def read(value: Any, reading: Reading, place: Place) -> Any:
            result = plan.read(value, reading, place)
            if result is not WRONG and (broken := broken_bound(value, constraints)):
                return reading.refuse(place, broken)
            return result

        return Plan(read, plan.rank)

    def _union(self, members: Sequence[Any]) -> Plan:
        plans = [self.plan(member) for member in members]
        main = [plan for plan, member in zip(plans, members, strict=True) if member is not type(None)]
        expected = f"expected one of {', '.join(name_of(member) for member in members)}"

        def rank(value: Any) -> int:
            return max(plan.rank(value) for plan in plans)

        def read(value: Any, reading: Reading, place: Place) -> Any:
            ranks = [(plan.rank(value), plan) for plan in plans]
            likely = [plan for level in (EXACT, FITTING) for rank, plan in ranks if rank == level]
            # When there is no choice, the one that may be meant says what is wrong, and where.
            likely = likely or [plan for rank, plan in ranks if rank == SIMILAR] or main
            if len(likely) == 1:
                return likely[0].read(value, reading, place)
            for plan in likely:
                if (result := reading.attempt(plan, value)) is not WRONG:
                    return result
            return reading.refuse(place, expected)

        return Plan(read, rank)

    def _table(self, inner: Any) -> Plan:
        plan = self.plan(inner)

        def read(value: Any, reading: Reading, place: Place) -> Any:
            if type(value) is not dict:
                return reading.refuse(place, f"expected object, got {json_name(value)}")
            result = {name: plan.read(item, reading, (place, (repr(name),))) for name, item in value.items()}
            return WRONG if any(item is WRONG for item in result.values()) else result

        return Plan(read, lambda value: FITTING if type(value) is dict else OTHER)

    def _list(self, kind: Any, inner: tuple[Any, ...]) -> Plan:
        fixed = [self.plan(each) for each in inner] if kind is tuple and inner and inner[-1] is not Ellipsis else None
        each = self.plan(inner[0] if inner else Any)
        make: Callable[[Iterable[Any]], Any] = kind if kind in (set, tuple) else frozenset if kind in SETS else list

        def read(value: Any, reading: Reading, place: Place) -> Any:
            if type(value) is not list:
                return reading.refuse(place, f"expected list, got {json_name(value)}")
            if fixed is not None and len(value) != len(fixed):
                return reading.refuse(place, f"expected {len(fixed)} items, got {len(value)}")
            plans = fixed if fixed is not None else [each] * len(value)
            items = [
                plan.read(item, reading, (place, at)) for at, (plan, item) in enumerate(zip(plans, value, strict=True))
            ]
            if any(item is WRONG for item in items):
                return WRONG
            try:
                made = make(items)
            except Exception as exc:  # whatever the hash of somebody's class raises
                return reading.refuse(place, f"its items cannot be in a set: {words_of(exc)}")
            return made if len(made) == len(items) else reading.refuse(place, "expected each item once")

        def rank(value: Any) -> int:
            if type(value) is not list:
                return OTHER
            return FITTING if fixed is None or len(fixed) == len(value) else SIMILAR

        return Plan(read, rank)

    def _class(self, class_: Any) -> Plan:
        if class_ in self._records:
            return self._records[class_]
        # Known before its fields are: they may be of the same class.
        self._records[class_] = plan = Plan(lambda *_: WRONG, lambda _: OTHER)
        fields = fields_of(class_) or []
        make = class_
        if not typing.is_typeddict(class_):
            names = {field.name: field.argument or field.name for field in fields}
            make = lambda values: class_(**{names[name]: value for name, value in values.items()})  # noqa: E731
        made = self.record(fields, make)
        plan.read, plan.rank = made.read, made.rank
        return plan

    def record(self, fields: Sequence[Field], make: Callable[[Any], Any], *, with_defaults: bool = False) -> Plan:
        """Return the plan of an object with these fields, of whose values *make* makes something."""
        plans = {field.name: self.plan(field.type) for field in fields}
        required = {field.name for field in fields if field.default is attrs.NOTHING}
        defaults = {field.name: field.default for field in fields if with_defaults and field.name not in required}
        choices = [field.name for field in fields if _is_choice(field.type)]

        def read(value: Any, reading: Reading, place: Place) -> Any:
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
                    whole = whole and values[name] is not WRONG
                elif name in required:
                    reading.refuse((place, name), "required, but missing")
                    whole = False
            if not whole:
                return WRONG
            try:
                return make(values)
            except Exception as exc:  # whatever a validator or a converter of somebody's class raises
                return reading.refuse(place, words_of(exc))

        def rank(value: Any) -> int:
            if type(value) is not dict:
                return OTHER
            if not (required <= value.keys() <= plans.keys()):
                return SIMILAR
            fits = all(plans[name].rank(value[name]) >= FITTING for name in choices if name in value)
            return FITTING if fits else SIMILAR

        return Plan(read, rank)


def _is_choice(type_: Any) -> bool:
    return get_origin(type_) is Literal or (isinstance(type_, type) and issubclass(type_, enum.Enum))
