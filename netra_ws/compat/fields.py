"""Converters for the fields of older structures: each gives what may be stored, or names its field.

One named function for each field: the type checker reads their parameters, and of no other kind of converter.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from netra_ws.errors import InvalidArgument

from .serialising import strict_json
from .timestamps import to_timestamp

#: Characters of ids and of other words for programs.
MAX_WORD = 256


def some_text(value: object, argument: str, longest: int | None = MAX_WORD) -> str:
    """Return text that is not blank."""
    if not isinstance(value, str):
        raise InvalidArgument(argument, f"expected text, got {type(value).__name__}")
    if not value.strip():
        raise InvalidArgument(argument, "must not be empty")
    if longest is not None and len(value) > longest:
        raise InvalidArgument(argument, f"longer than {longest} characters")
    text: str = strict_json(value, argument)
    return text


def optional_text(value: object, argument: str) -> str | None:
    """Return text that is not blank, or None."""
    return None if value is None else some_text(value, argument)


def texts(value: object, argument: str) -> tuple[str, ...]:
    """Return several texts that are not blank; one text is not several."""
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise InvalidArgument(argument, f"expected a list of texts, got {type(value).__name__}")
    return tuple(some_text(text, f"{argument}[{position}]", None) for position, text in enumerate(value))


def json_object(value: object, argument: str) -> dict[str, Any]:
    """Return a copy of a mapping that is JSON all through."""
    if not isinstance(value, Mapping):
        raise InvalidArgument(argument, f"expected an object, got {type(value).__name__}")
    found: dict[str, Any] = strict_json(value, argument)
    return found


def payload(value: Any) -> dict[str, Any]:
    return json_object(value, "payload")


def data(value: Any) -> dict[str, Any]:
    return json_object(value, "data")


def details(value: Any) -> dict[str, Any]:
    return json_object(value, "details")


def content(value: Any) -> dict[str, Any]:
    return json_object(value, "content")


def timestamp(value: Any) -> float | None:
    return to_timestamp(value)


def timestamp_or_now(value: Any) -> float:
    seconds = to_timestamp(value)
    return time.time() if seconds is None else seconds


def type_name(value: Any) -> str:
    return some_text(value, "type")


def message_id(value: Any) -> str | None:
    return optional_text(value, "message_id")


def user_id(value: Any) -> str | None:
    return optional_text(value, "user_id")


def thread_id(value: Any) -> str | None:
    return optional_text(value, "thread_id")


def server_id(value: Any) -> str | None:
    return optional_text(value, "server_id")


def correlation_id(value: Any) -> str | None:
    # Any text may be an id of JSON-RPC.
    if value is not None and not isinstance(value, str):
        raise InvalidArgument("correlation_id", f"expected text, got {type(value).__name__}")
    return value and str(strict_json(value, "correlation_id"))


def error_code(value: Any) -> str:
    return some_text(value, "error_code")


def error_message(value: Any) -> str:
    return some_text(value, "error_message", None)


def recovery_suggestions(value: Any) -> tuple[str, ...] | None:
    return None if value is None else texts(value, "recovery_suggestions")


def target_room(value: Any) -> str | None:
    return optional_text(value, "target_room")


def exclude_users(value: Any) -> tuple[str, ...]:
    return () if value is None else texts(value, "exclude_users")
