"""How one value is read: what is wrong so far, and the plans of plain types."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from netra_ws.errors import MAX_FIELDS
from netra_ws.protocol.values import json_name, number

from .schema import FORMATS

#: How well a value looks to fit, from outside: another type of JSON, other fields, as far as can be seen, exactly.
OTHER, SIMILAR, FITTING, EXACT = range(4)
#: What a reading returns for a value that is wrong; what is wrong has been noted.
WRONG: Any = object()

#: Where a value is: the place of what it is in, and its own name or number there.
Place = tuple[Any, ...]


def path_of(place: Place) -> str:
    path = ""
    while place:
        place, name = place
        path = (f".{name}" if isinstance(name, str) else f"[{name[0] if isinstance(name, tuple) else name!r}]") + path
    return path


class Enough(Exception):
    """More wrong places need not be looked for."""


@attrs.define(eq=False)
class Reading:
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
            raise Enough
        return WRONG

    def attempt(self, plan: Plan, value: Any) -> Any:
        """Read a value that may well be something else."""
        key = (id(value), id(plan))
        if key in self.tried:
            return self.tried[key]
        try:
            read = plan.read(value, Reading(at_most=1, tried=self.tried), ())
        except Enough:
            read = WRONG
        if isinstance(value, dict | list):
            self.tried[key] = read
        return read


@attrs.define(eq=False)
class Plan:
    """How values of one type are read.

    Attributes:
        read: From a value to what it is in Python, or ``WRONG``.
        rank: How well a value fits from outside; when that is less than ``FITTING``, it is surely wrong.
    """

    read: Callable[[Any, Reading, Place], Any]
    rank: Callable[[Any], int]


def words_of(exc: Exception) -> str:
    # A validator's words: attrs gives the text first, then what it was about.
    return str(exc.args[0]) if exc.args else type(exc).__name__


def scalar(read: Callable[[Any], Any], exact: tuple[type, ...], fitting: tuple[type, ...] = ()) -> Plan:
    def plan(value: Any, reading: Reading, place: Place) -> Any:
        try:
            return read(value)
        except (TypeError, ValueError) as exc:
            return reading.refuse(place, str(exc))

    def rank(value: Any) -> int:
        return EXACT if type(value) in exact else FITTING if type(value) in fitting else OTHER

    return Plan(plan, rank)


def nothing(value: Any) -> None:
    if value is not None:
        raise TypeError(f"expected null, got {json_name(value)}")


def finite(value: Any) -> float:
    try:
        return number(value)
    except OverflowError:
        raise ValueError("expected a finite number") from None


def text_reader(class_: Any) -> Callable[[Any], Any]:
    read = uuid.UUID if class_ is uuid.UUID else class_.fromisoformat

    def text(value: Any) -> Any:
        if type(value) is not str:
            raise TypeError(f"expected string, got {json_name(value)}")
        try:
            return read(value)
        except ValueError:
            raise ValueError(f"expected a {FORMATS[class_]}") from None

    return text


def choice_of(choices: Sequence[tuple[Any, Any]]) -> Plan:
    expected = f"expected one of {', '.join(repr(choice) for choice, _ in choices)}"

    def find(value: Any) -> Any:
        for choice, meaning in choices:
            if type(choice) is type(value) and choice == value:  # True is not 1 here
                return meaning
        for choice, meaning in choices:
            if type(choice) is float and type(value) is int and choice == value:
                return meaning
        return WRONG

    def read(value: Any, reading: Reading, place: Place) -> Any:
        found = find(value)
        return reading.refuse(place, expected) if found is WRONG else found

    return Plan(read, lambda value: SIMILAR if find(value) is WRONG else EXACT)
