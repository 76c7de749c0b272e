"""Python's values as JSON: the way back from ``reading.py``, for whatever an agent or a tool gives."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import uuid
from collections import deque
from collections.abc import Mapping, Set
from typing import Any

import attrs

from netra_ws.errors import AgentError


def to_json(value: Any, what: str) -> Any:
    """Return *value* as JSON values: records become objects, sets lists, dates text.

    Raises:
        AgentError: ``NOT_JSON``: it is too deep for that; what else JSON cannot say is found when it is encoded.
    """
    try:
        return _plain(value)
    except RecursionError:
        raise AgentError(f"{what}: nested too deep", code="NOT_JSON") from None


def _plain(value: Any) -> Any:
    class_ = type(value)
    if value is None or class_ in (str, int, float, bool):
        return value
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | deque | Set):
        return [_plain(item) for item in value]
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if attrs.has(class_):
        return {each.name: _plain(getattr(value, each.name)) for each in attrs.fields(class_) if each.init}
    if dataclasses.is_dataclass(class_):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(class_) if each.init}
    return value
