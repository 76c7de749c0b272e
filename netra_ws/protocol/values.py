"""The small value types of the protocol: ids, bounded text, limits, and their exact reading.

Each is a ``NewType`` with one function that turns a JSON value into it or raises ``ValueError``
with a sentence for the client. The codec registers them with its converter, so a wrong value is
reported under the path of its own field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NewType

from netra_ws.identity import is_user_id

Id = NewType("Id", str)
JobId = NewType("JobId", str)
CommandId = NewType("CommandId", str)
Title = NewType("Title", str)
UserId = NewType("UserId", str)
TokenId = NewType("TokenId", str)
Seconds = NewType("Seconds", float)
Page100 = NewType("Page100", int)
Page200 = NewType("Page200", int)
Seq = NewType("Seq", int)
PositionText = NewType("PositionText", str)
ClientTime = NewType("ClientTime", object)
JsonObject = NewType("JsonObject", dict[str, Any])
JsonlLogs = NewType("JsonlLogs", object)

MAX_COMMAND_ID = 256
MAX_TITLE = 512
#: A token has no more bytes, so neither has a part of it.
MAX_TOKEN_ID = 8192
#: Bytes of JSON that a thread's metadata may have; it travels in every thread list.
MAX_METADATA_BYTES = 16 * 1024
#: A seq is a signed 64-bit integer in every store.
MAX_SEQ = 2**63 - 1

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_POSITION = re.compile(r"[^:]{1,64}:[0-9]{1,19}")
_NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "list"}


def json_name(value: object) -> str:
    """Name the JSON type of *value* as a client knows it."""
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)


def exactly(type_: type) -> Callable[[object, object], Any]:
    """Return a hook that takes values of exactly *type_* (cattrs itself would call ``str(7)``)."""

    def hook(value: object, _: object) -> Any:
        if type(value) is not type_:
            raise TypeError(f"expected {_NAMES[type_]}, got {json_name(value)}")
        return value

    return hook


def number(value: object) -> float:
    """Return a finite number as float; JSON writes 1.0 as 1, so integers are numbers, too."""
    if type(value) is not float and type(value) is not int:
        raise TypeError(f"expected number, got {json_name(value)}")
    result = float(value)
    if not math.isfinite(result):
        raise ValueError("expected a finite number")
    return result


def _text(value: object, longest: int) -> str:
    if type(value) is not str:
        raise TypeError(f"expected string, got {json_name(value)}")
    if len(value) > longest:
        raise ValueError(f"longer than {longest} characters")
    return value


def read_id(value: object) -> str:
    """Return an id that a client may choose: 1 to 128 of ``A-Za-z0-9_.:-``."""
    text = _text(value, 128)
    if not _ID.fullmatch(text):
        raise ValueError("expected 1 to 128 of the characters A-Z a-z 0-9 _ . : -")
    return text


def read_position(value: object) -> PositionText:
    """Return a position as a client writes it, ``<epoch>:<seq>``; ``split_position`` takes it apart."""
    text = _text(value, 128)
    if not _POSITION.fullmatch(text):
        raise ValueError("expected <epoch>:<seq>")
    return PositionText(text)


def split_position(text: PositionText) -> tuple[str, int]:
    """Return the epoch and the seq of a position; a seq that no store knows is the highest that one does."""
    epoch, _, seq = text.partition(":")
    return epoch, min(int(seq), MAX_SEQ)


def read_command_id(value: object) -> str:
    """Return a command's id: any text of 1 to 256 characters."""
    text = _text(value, MAX_COMMAND_ID)
    if not text:
        raise ValueError("must not be empty")
    return text


def read_title(value: object) -> str:
    """Return a thread's title, stripped, at most 512 characters."""
    return _text(value, MAX_TITLE).strip()


def read_user_id(value: object) -> str:
    """Return a user's id, as tokens may name one."""
    if type(value) is not str:
        raise TypeError(f"expected string, got {json_name(value)}")
    if not is_user_id(value):
        raise ValueError("expected 1 to 256 characters, none of them a control character")
    return value


def read_token_id(value: object) -> str:
    """Return the id of a token (``jti``): any text that fits into one."""
    text = _text(value, MAX_TOKEN_ID)
    if not text:
        raise ValueError("must not be empty")
    return text


def read_seconds(value: object) -> float:
    """Return a duration above zero in seconds."""
    seconds = number(value)
    if seconds <= 0:
        raise ValueError("must be above 0")
    return seconds


def between(low: int, high: int) -> Callable[[object], int]:
    """Return a reader for integers from *low* to *high*, both included."""

    def read(value: object) -> int:
        if type(value) is not int:
            raise TypeError(f"expected integer, got {json_name(value)}")
        if not low <= value <= high:
            raise ValueError(f"must be from {low} to {high}")
        return value

    return read


def read_client_time(value: object) -> object:
    """Return a client's timestamp unchanged: a number, a numeric string or ISO 8601."""
    if type(value) is str:
        try:
            if math.isfinite(float(value)):
                return value
        except ValueError:
            try:
                datetime.fromisoformat(value)
            except ValueError:
                raise ValueError("expected a number, a numeric string or an ISO 8601 time") from None
            return value
        raise ValueError("expected a finite number")
    number(value)
    return value


def read_object(value: object) -> Mapping[str, Any]:
    """Return a JSON object."""
    if type(value) is not dict:
        raise TypeError(f"expected object, got {json_name(value)}")
    return value


def read_jsonl_logs(value: object) -> object:
    """Return usage logs: one string of JSON lines, or a list of objects."""
    if type(value) is str:
        return value
    if type(value) is list:
        for position, item in enumerate(value):
            if type(item) is not dict:
                raise TypeError(f"expected object at [{position}], got {json_name(item)}")
        return value
    raise TypeError(f"expected string or list of objects, got {json_name(value)}")


#: NewType → its reader.
READERS: Mapping[Any, Callable[[object], Any]] = {
    Id: read_id,
    JobId: read_id,
    CommandId: read_command_id,
    Title: read_title,
    UserId: read_user_id,
    TokenId: read_token_id,
    Seconds: read_seconds,
    Page100: between(1, 100),
    Page200: between(1, 200),
    Seq: between(0, MAX_SEQ),
    PositionText: read_position,
    ClientTime: read_client_time,
    JsonObject: read_object,
    JsonlLogs: read_jsonl_logs,
}
