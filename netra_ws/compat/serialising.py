"""Complex data of programs as JSON: whatever is given, the result can be sent.

One walk serves two callers. ``serialize_message_safely`` puts a readable mark where JSON has no word for
something; ``strict_json`` refuses it and names its path. Depth and number of values are bounded, so neither a
circle nor a small structure that unfolds into a huge one can hold up the loop.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import itertools
import json
import math
import numbers
import re
from collections import UserString, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

import attrs

from netra_ws.errors import InvalidArgument
from netra_ws.protocol.converter import SPOKEN, WRITERS

#: Objects and lists inside each other, as deep as our wire reads them.
MAX_DEPTH = 64
#: Values of one message; a megabyte of JSON has room for about so many.
MAX_VALUES = 500_000
#: Faults that one error names.
_MAX_FAULTS = 20
_INTEGERS = range(-(2**63), 2**64)  # what orjson writes
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
#: Names of the members of enums that tell how a socket is; their numbers would tell a reader nothing.
_SOCKET_STATES = frozenset({"CONNECTING", "CONNECTED", "OPEN", "DISCONNECTING", "CLOSING", "DISCONNECTED", "CLOSED"})
_MORE_STATES = _SOCKET_STATES | {"RESPONSE", "ERROR", "FAILED"}


def serialize_message_safely(message: object) -> dict[str, Any]:
    """Return any message as a JSON object that orjson writes; what is no object stands under ``data``.

    Enums give their value (those of a socket's state their name in lower case), times ISO 8601 with an offset
    (naive ones are UTC), bytes base64, decimals and UUIDs text, sets lists in a fixed order, exceptions
    ``{"error", "message"}``. Objects are asked for ``model_dump(mode="json")``, then ``to_dict()``, then for
    their public fields (attrs, dataclasses), then ``isoformat()``; what is left becomes its text. NaN and
    infinities become null; a circle, too great a depth and too many values become a mark such as
    ``"<circular>"``. Nothing is raised, and *message* stays as it is.
    """
    value = to_json(message)
    return value if isinstance(value, dict) else {"data": value}


def to_json(value: object) -> Any:
    """Return any value as a JSON value, by the rules of ``serialize_message_safely``."""
    return _Walk().json(value, None, 0)


def strict_json(value: object, argument: str) -> Any:
    """Return *value* as JSON, a copy in which nothing had to be replaced by a mark.

    Raises:
        InvalidArgument: JSON cannot say something in it; the text names each by its path, ``$`` being *value*.
    """
    walk = _Walk()
    found = walk.json(value, None, 0)
    if walk.faults:
        text = "; ".join(f"{path}: {fault}" for path, fault in walk.faults.items())
        raise InvalidArgument(argument, text[:1000])
    return found


#: Where a value stands: what it is in, and its key or position there; None is the top. Written out only for a fault.
_Path: TypeAlias = "tuple[_Path, str | int] | None"


def _shown(path: _Path) -> str:
    steps: list[str] = []
    while path is not None:
        path, step = path
        steps.append(f"[{step}]" if isinstance(step, int) else f".{step[:64]}")
    return "$" + "".join(reversed(steps))


@attrs.define
class _Walk:
    """One walk through one value. ``faults`` are the first places where a mark was put, by JSON path."""

    faults: dict[str, str] = attrs.field(factory=dict)
    _open: set[int] = attrs.field(factory=set)
    _left: int = MAX_VALUES

    def json(self, value: object, path: _Path, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            return self._mark(path, f"more than {MAX_VALUES} values")
        if value is None or value is True or value is False:
            return value
        if id(value) in self._open:
            return self._mark(path, "circular")
        try:
            say = None if type(value) in (dict, list) else _scalar(value)
            if say is not None:
                return say(self, value, path)
            if depth >= MAX_DEPTH:
                return self._mark(path, f"nested more than {MAX_DEPTH} levels deep")
            self._open.add(id(value))
            try:
                return self._structure(value, path, depth)
            finally:
                self._open.discard(id(value))
        except Exception:  # foreign code: an iterator, a property, a subclass of a scalar
            return self._text(value, path)

    def _structure(self, value: object, path: _Path, depth: int) -> Any:
        if isinstance(value, enum.Enum):
            return value.name.lower() if _is_socket_state(type(value)) else self.json(value.value, path, depth + 1)
        if isinstance(value, Mapping):
            return self._object(value.items(), path, depth)
        if isinstance(value, Sequence | deque | ValuesView):
            return self._list(value, path, depth)
        if isinstance(value, Set):
            # Sets have no order; a fixed one lets equal messages be equal.
            return sorted(self._list(value, path, depth), key=lambda item: json.dumps(item, sort_keys=True))
        if isinstance(value, type):
            return self._text(value, path)
        for form in (_written, _dumped, _as_dict):
            try:
                told = form(value)
            except Exception:  # foreign code; the next form may work
                told = None
            if told is not None:
                return self.json(told, path, depth + 1)
        if isinstance(value, BaseException):
            return {"error": type(value).__name__, "message": self._text(value, path, known=True)}
        if attrs.has(type(value)) or dataclasses.is_dataclass(value):
            return self._object(_fields(value), path, depth)
        if callable(isoformat := getattr(type(value), "isoformat", None)):
            return self._string(isoformat(value), path)
        return self._text(value, path)

    def _object(self, items: Iterable[tuple[object, object]], path: _Path, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, inner in items:
            name = self._key(key, path)
            if name in found:
                self._fault((path, name), "two keys have this text")
                name = next(new for n in itertools.count(len(found)) if (new := f"{name}#{n}") not in found)
            found[name] = self.json(inner, (path, name), depth + 1)
            if self._left < 0:
                break
        return found

    def _list(self, values: Iterable[object], path: _Path, depth: int) -> list[Any]:
        found: list[Any] = []
        for position, inner in enumerate(values):
            found.append(self.json(inner, (path, position), depth + 1))
            if self._left < 0:
                break
        return found

    def _key(self, key: object, path: _Path) -> str:
        if isinstance(key, enum.Enum) and not isinstance(key, str):
            return str(key.value) if isinstance(key.value, int) else key.name.lower()
        if isinstance(key, str):
            return self._string(key.value if isinstance(key, enum.Enum) else key, path)
        if key is None or isinstance(key, bool):
            return {None: "null", True: "true", False: "false"}[key]
        if isinstance(key, int):
            return str(self._integer(key, path))
        if isinstance(key, float):
            return float.__repr__(key)
        if isinstance(key, Decimal | UUID | date | time):
            return str(self.json(key, path, 0))
        self._fault(path, f"a key is of type {type(key).__name__}")
        return self._text(key, path, known=True)

    # Scalars. A mark is put where JSON has no word for the value.

    def _string(self, value: str, path: _Path) -> str:
        text = str.__str__(value)
        if text.isascii():
            return text
        try:
            text.encode()
        except UnicodeEncodeError:
            self._fault(path, "half of a character")
            # Halves that belong together become their character.
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return text

    def _integer(self, value: int, path: _Path) -> int | str:
        number = int.__int__(value)
        if number in _INTEGERS:
            return number
        self._fault(path, "an integer of more than 64 bits")
        try:
            return str(number)
        except ValueError:  # Python writes no more than some thousand digits
            return f"<integer of {number.bit_length()} bits>"

    def _number(self, value: float, path: _Path) -> float | None:
        number = float.__float__(value)
        if math.isfinite(number):
            return number
        self._fault(path, f"{number} is no number of JSON")
        return None

    def _text(self, value: object, path: _Path, *, known: bool = False) -> str:
        """Return the text of what has no other form, without addresses of memory."""
        if not known:
            self._fault(path, f"JSON cannot say {type(value).__name__}")
        try:
            return self._string(_ADDRESS.sub("", str(value)), path)
        except Exception:  # its __str__ may do anything
            return f"<{type(value).__name__}>"

    def _mark(self, path: _Path, text: str) -> str:
        self._fault(path, text)
        return f"<{text}>"

    def _fault(self, path: _Path, text: str) -> None:
        if len(self.faults) < _MAX_FAULTS:
            self.faults.setdefault(_shown(path), text)


#: Type → how its values are said; the first that fits.
_SCALARS: Mapping[type, Callable[[_Walk, Any, _Path], Any]] = {
    str: _Walk._string,
    int: _Walk._integer,
    float: _Walk._number,
    datetime: lambda walk, value, path: _aware(value).isoformat(),
    date: lambda walk, value, path: value.isoformat(),
    time: lambda walk, value, path: value.isoformat(),
    timedelta: lambda walk, value, path: value.total_seconds(),
    Decimal: lambda walk, value, path: str(value),
    UUID: lambda walk, value, path: str(value),
    UserString: lambda walk, value, path: walk._string(value.data, path),
    bytes: lambda walk, value, path: base64.b64encode(value).decode(),
    bytearray: lambda walk, value, path: base64.b64encode(value).decode(),
    memoryview: lambda walk, value, path: base64.b64encode(value.tobytes()).decode(),
    numbers.Integral: lambda walk, value, path: walk._integer(int(value), path),
    numbers.Real: lambda walk, value, path: walk._number(float(value), path),
}


def _scalar(value: object) -> Callable[[_Walk, Any, _Path], Any] | None:
    found = _SCALARS.get(type(value))
    if found is None and not isinstance(value, enum.Enum):  # enums are often texts or numbers, too
        found = next((say for class_, say in _SCALARS.items() if isinstance(value, class_)), None)
    return found


def _aware(moment: datetime) -> datetime:
    return moment if moment.utcoffset() is not None else moment.replace(tzinfo=UTC)


def _is_socket_state(class_: type[enum.Enum]) -> bool:
    names = set(class_.__members__)
    numbered = all(isinstance(member.value, int) for member in class_)
    return class_.__name__.endswith("State") and numbered and bool(names & _SOCKET_STATES) and names <= _MORE_STATES


def _written(value: object) -> object:
    """Return what our wire would say of a command, an event or a reply."""
    class_ = type(value)  # not WRITERS.get: a writer is made when it is first asked for
    return {"type": value.type, **WRITERS[class_](value)} if class_ in SPOKEN else None  # type: ignore[attr-defined]


def _dumped(value: object) -> object:
    dump = getattr(type(value), "model_dump", None)
    return dump(value, mode="json") if callable(dump) else None


def _as_dict(value: object) -> object:
    to_dict = getattr(type(value), "to_dict", None)
    return to_dict(value) if callable(to_dict) else None


def _fields(value: object) -> Iterator[tuple[str, object]]:
    class_: Any = type(value)
    for field in attrs.fields(class_) if attrs.has(class_) else dataclasses.fields(class_):
        if not field.name.startswith("_"):
            yield field.name, getattr(value, field.name)


#: The name that older programs import.
_serialize_message_safely = serialize_message_safely
