"""What the functions of the older surface take: one check per kind of argument, each names the argument."""

from __future__ import annotations

import re

from netra_ws.errors import InvalidArgument
from netra_ws.identity import is_user_id

#: Ids of jobs (PROTOCOL §2).
JOB_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def checked_text(value: object, argument: str) -> str:
    """Return an id or a name: 1 to 256 characters, not blank, none of them a control character.

    Raises:
        InvalidArgument: It is something else.
    """
    if not is_user_id(value) or not value.strip():
        raise InvalidArgument(argument, "expected a text of 1 to 256 characters, not blank, no control characters")
    return value


def checked_user(value: object) -> str:
    """Return a user's id.

    Raises:
        InvalidArgument: It cannot name a user.
    """
    return checked_text(value, "user_id")


def checked_seconds(value: object, argument: str) -> float:
    """Return a number of seconds, 0 or more.

    Raises:
        InvalidArgument: It is something else.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise InvalidArgument(argument, "expected seconds, 0 or more")
    return float(value)


def can_send(websocket: object) -> bool:
    """Whether messages can be put on *websocket*: it has ``send_json`` or ``send_message``."""
    return any(callable(getattr(websocket, name, None)) for name in ("send_json", "send_message"))


def checked_socket(value: object) -> object:
    """Return an object that messages can be put on.

    Raises:
        InvalidArgument: It has neither ``send_json`` nor ``send_message``.
    """
    if not can_send(value):
        raise InvalidArgument("websocket", f"{type(value).__name__} has neither send_json nor send_message")
    return value
