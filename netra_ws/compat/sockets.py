"""Puts messages on sockets of any kind, and closes them: foreign code, within a deadline."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import trio

from .encoding import Encoded
from .failures import FailureKind, NoSocket, kind_of
from .lines import Line

logger = logging.getLogger(__name__)


async def put(line: Line, message: Encoded, timeout_s: float) -> FailureKind | None:
    """Wait for the line's turn and put one message on its socket; return why that failed, None when it did not.

    *Cancellation:* a message that was begun leaves the line ``cut``: half of a frame may be on the socket.
    """
    try:
        with trio.fail_after(timeout_s):
            async with line.turn:
                return FailureKind.CLOSED if line.gone else await put_in_turn(line, message, timeout_s)
    except trio.TooSlowError:
        return FailureKind.TIMEOUT


async def put_in_turn(line: Line, message: Encoded, timeout_s: float) -> FailureKind | None:
    """Put one message on the socket of a line whose turn the caller holds.

    *Cancellation:* as ``put``.
    """
    try:
        with trio.fail_after(timeout_s):
            await _put(line.connection.websocket, message)
    # The third crash wall of the house: a socket's own code may raise anything, and only its line may suffer.
    except Exception as exc:
        kind = kind_of(exc)
        logger.info("a socket took no message connection=%s kind=%s: %r", line.connection.connection_id, kind, exc)
        return kind
    except BaseException:
        line.cut = True
        raise
    return None


async def _put(websocket: Any, message: Encoded) -> None:
    send = getattr(websocket, "send_json", None)
    told: object = None
    if callable(send):
        told = message.fields
    else:
        send = getattr(websocket, "send_message", None)
        if not callable(send):
            raise NoSocket(f"{type(websocket).__name__} has neither send_json nor send_message")
        told = message.text
    waiting = send(told)
    if inspect.isawaitable(waiting):
        await waiting


async def close(websocket: Any, code: int, reason: str, timeout_s: float) -> None:
    """Close a socket that can be closed: by ``aclose`` (trio-websocket) or ``close``; what it raises is logged."""
    shut = getattr(websocket, "aclose", None)
    if not callable(shut):
        shut = getattr(websocket, "close", None)
    if not callable(shut):
        return
    try:
        with trio.move_on_after(timeout_s):
            waiting = shut(code, reason) if _takes_code(shut) else shut()
            if inspect.isawaitable(waiting):
                await waiting
    except Exception as exc:  # foreign code; it is over either way
        logger.info("a socket could not be closed: %r", exc)


def _takes_code(shut: Any) -> bool:
    try:
        inspect.signature(shut).bind(1000, "")
    except (TypeError, ValueError):
        return False
    return True
