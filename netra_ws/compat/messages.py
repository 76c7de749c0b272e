"""Messages of older programs: made, checked, and brought to our wire and back.

::

    message = create_standard_message("chat", {"content": "hello"}, thread_id="t")
    await session.command(message.to_command())              # over our wire
    shown = ServerMessage.from_event(heard).to_dict()        # what came, in the older form

The structures stand in ``structures``, their types in ``message_types``; this module is the face of them all.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from netra_ws.errors import InvalidArgument

from .message_types import LEGACY_MESSAGE_TYPE_MAP as LEGACY_MESSAGE_TYPE_MAP
from .message_types import MessageType as MessageType
from .message_types import get_frontend_message_type as get_frontend_message_type
from .message_types import normalize_message_type as normalize_message_type
from .structures import BroadcastMessage as BroadcastMessage
from .structures import ErrorMessage as ErrorMessage
from .structures import ServerMessage as ServerMessage
from .structures import WebSocketMessage as WebSocketMessage

#: Of a message that is given as text.
MAX_MESSAGE_BYTES = 1024 * 1024

#: What asks an agent must say what for.
_ASKING = (MessageType.START_AGENT, MessageType.AGENT_REQUEST)


def create_standard_message(
    message_type: object,
    payload: object = None,
    user_id: str | None = None,
    thread_id: str | None = None,
    *,
    message_id: str | None = None,
    timestamp: object = None,
) -> WebSocketMessage:
    """Make a client's message; an id of its own and the time are added where none are given.

    Raises:
        InvalidArgument: An argument is not what it should be; it is named. NaN, circles and what JSON cannot
            say are refused with their path.
    """
    kind = normalize_message_type(message_type)
    payload = {} if payload is None else payload
    message = WebSocketMessage(
        type=kind,
        payload=payload,
        timestamp=time.time() if timestamp is None else timestamp,
        message_id=f"msg_{kind.value}_{uuid.uuid4().hex}" if message_id is None else message_id,
        user_id=user_id,
        thread_id=thread_id,
    )
    if kind in _ASKING and not message.payload:
        raise InvalidArgument("payload", f"{kind.value} needs a payload that says what is asked")
    if not isinstance(message.payload.get("request", ""), Mapping | str):
        raise InvalidArgument("payload", "$.request: expected an object or text")
    return message


def create_server_message(
    message_type: object,
    data: object = None,
    *,
    server_id: str | None = None,
    correlation_id: str | None = None,
    timestamp: object = None,
) -> ServerMessage:
    """Make a server's message from a type and its data, or from one object that has both.

    The type stays as it is given: it may be the name of an event of the program's own.

    Raises:
        InvalidArgument: An argument is not what it should be; it is named.
    """
    if isinstance(message_type, Mapping):
        if data is not None:
            raise InvalidArgument("data", "stands in the object already")
        given = ServerMessage.from_dict(message_type)
        message_type, data = given.type, given.data
        timestamp = given.timestamp if timestamp is None else timestamp
        server_id, correlation_id = server_id or given.server_id, correlation_id or given.correlation_id
    return ServerMessage(
        type=message_type,
        data={} if data is None else data,
        timestamp=timestamp,
        server_id=server_id,
        correlation_id=correlation_id,
    )


def create_error_message(
    error_code: str,
    error_message: str,
    details: Mapping[str, Any] | None = None,
    recovery_suggestions: Iterable[str] | None = None,
    *,
    timestamp: object = None,
) -> ErrorMessage:
    """Make a message about what went wrong; code and text must say something.

    Raises:
        InvalidArgument: An argument is not what it should be; it is named.
    """
    return ErrorMessage(
        error_code=error_code,
        error_message=error_message,
        details={} if details is None else details,
        timestamp=timestamp,
        recovery_suggestions=recovery_suggestions,
    )


def validate_message(message: object) -> WebSocketMessage:
    """Return a client's message, given as JSON text, as an object, or as a ``WebSocketMessage``.

    Raises:
        InvalidArgument: It is none; the field is named.
    """
    if isinstance(message, WebSocketMessage):
        return message
    if isinstance(message, str | bytes):
        if len(message) > MAX_MESSAGE_BYTES:
            raise InvalidArgument("message", f"more than {MAX_MESSAGE_BYTES} bytes")
        try:
            message = orjson.loads(message)
        except orjson.JSONDecodeError as exc:
            raise InvalidArgument("message", f"not valid JSON (line {exc.lineno} column {exc.colno})") from None
    return WebSocketMessage.from_dict(message)


def is_valid_message(message: object) -> bool:
    """Whether ``validate_message`` would take it."""
    try:
        validate_message(message)
    except InvalidArgument:
        return False
    return True
