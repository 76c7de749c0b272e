"""Times of older programs, which come in several forms, as the one form of our wire: Unix seconds."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from netra_ws.errors import InvalidArgument

#: ``float`` alone would also take ``1_000``, other scripts' digits, ``nan`` and white space.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
#: Python alone would also take signs that stand in no time.
_ISO = re.compile(r"[-0-9W]+([T ][0-9:.,]+(Z|[+-][0-9:.]+)?)?", re.ASCII)
#: Longer than any number or ISO 8601 time that somebody means.
_MAX_TEXT = 64


def to_timestamp(value: object, argument: str = "timestamp") -> float | None:
    """Return *value* in Unix seconds, UTC; None stays None.

    Args:
        value: A float or integer of Unix seconds, the same as text, ISO 8601 text (``Z`` and offsets are
            understood), or a ``datetime``. Without an offset it is UTC. Text that is a number is one, so
            ``"20250905"`` is a second of 1970 and no day, as on the wire.
        argument: Named by the error.

    Raises:
        InvalidArgument: It is something else, or not finite.
    """
    if value is None:
        return None
    if isinstance(value, datetime):
        return _seconds_of(value, argument)
    if isinstance(value, str):
        return _read(value, argument)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgument(argument, f"expected a time, got {type(value).__name__}")
    return _finite(value, argument)


def to_datetime(value: object, argument: str = "timestamp") -> datetime | None:
    """Return *value*, of any form that ``to_timestamp`` takes, as an aware ``datetime`` in UTC; None stays None.

    Raises:
        InvalidArgument: It is something else, or outside the years 1 to 9999.
    """
    seconds = to_timestamp(value, argument)
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        raise InvalidArgument(argument, "outside the years 1 to 9999") from None


def _read(text: str, argument: str) -> float:
    text = text.strip().upper() if len(text) <= _MAX_TEXT else ""  # RFC 3339 also has a small t and z
    if _NUMBER.fullmatch(text):
        return _finite(float(text), argument)
    try:
        moment = datetime.fromisoformat(text if _ISO.fullmatch(text) else "")
    except ValueError:
        raise InvalidArgument(argument, "expected a number, a numeric string or an ISO 8601 time") from None
    return _seconds_of(moment, argument)


def _seconds_of(moment: datetime, argument: str) -> float:
    # A naive one read as local time would depend on the machine.
    aware = moment if moment.utcoffset() is not None else moment.replace(tzinfo=UTC)
    return _finite(aware.timestamp(), argument)


def _finite(number: float, argument: str) -> float:
    try:
        seconds = float(number)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise InvalidArgument(argument, "expected a finite number")
    return seconds
