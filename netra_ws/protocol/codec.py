"""Both sides of the wire meet here: what is said is encoded once, what is heard is read.

``read_command`` and ``Incoming`` stand in ``reading``, frames in ``frames``, the rules of encoding in
``converter``; this module is the face of them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import orjson

from netra_ws.errors import ClientError

from .commands import Command, UserTyping
from .converter import WRITERS, converter
from .converter import make_converter as make_converter
from .events import EVENTS, AgentEvent, Announcement, Event, Stamp
from .frames import close_frame as close_frame
from .frames import frame_payload as frame_payload
from .frames import ping_frame as ping_frame
from .frames import text_frame as text_frame
from .reading import Incoming as Incoming
from .reading import read_command as read_command
from .replies import REPLIES, Error, Reply

#: JSON-RPC 2.0 §5.1 codes for the errors that have one; all others are -32000.
_RPC_CODES = {"INVALID_JSON": -32700, "MISSING_TYPE": -32600, "UNKNOWN_TYPE": -32601, "INVALID_MESSAGE": -32602}

_EVENT_TYPES = {event.type: event for event in EVENTS if event is not Announcement}
_REPLY_TYPES = {reply.type: reply for reply in REPLIES}


@attrs.frozen(kw_only=True)
class Heard:
    """One frame of the server as a client reads it.

    Attributes:
        type: The type on the wire.
        fields: The whole object.
        message: The event or reply, or None for a type that this version does not know.
        stamp: Where an event stands; None for replies.
        reply_to: Which command it answers, or None.
    """

    type: str
    fields: Mapping[str, Any]
    message: Event | Reply | None
    stamp: Stamp | None
    reply_to: str | None


# What the server says.


def encode_event(event: Event, stamp: Stamp) -> bytes:
    """Return *event* with its stamp as a ready frame.

    Raises:
        TypeError: The event carries a value that JSON cannot say.
    """
    return text_frame(
        orjson.dumps(
            {
                "type": event.type,
                "event_id": stamp.event_id,
                "seq": stamp.seq,
                "timestamp": stamp.timestamp,
                "user_id": stamp.user_id,
                **WRITERS[type(event)](event),
            }
        )
    )


def encode_reply(reply: Reply, now: float, incoming: Incoming | None = None) -> bytes | None:
    """Return a control frame; as JSON-RPC where the command came so.

    Args:
        reply: What to say.
        now: Unix seconds for ``timestamp``.
        incoming: The message that is answered; None for a notice.

    Returns:
        The frame, or None where a JSON-RPC notification wants no answer.
    """
    fields: dict[str, Any] = {"type": reply.type}
    if incoming is not None and incoming.rpc:
        if incoming.silent:
            return None
        fields |= WRITERS[type(reply)](reply)
        fields["timestamp"] = now
        return text_frame(orjson.dumps(_rpc_answer(reply, fields, incoming)))
    if incoming is not None and incoming.reply_to is not None:
        fields["reply_to"] = incoming.reply_to
    fields |= WRITERS[type(reply)](reply)
    fields["timestamp"] = now
    return text_frame(orjson.dumps(fields))


def _rpc_answer(reply: Reply, fields: dict[str, Any], incoming: Incoming) -> dict[str, Any]:
    answer: dict[str, Any] = {"jsonrpc": "2.0", "id": incoming.reply_to}
    if isinstance(reply, Error):
        code = _RPC_CODES.get(reply.code, -32000)
        if reply.code == "INVALID_MESSAGE" and incoming.type_name == "?":
            code = -32600  # not its params are wrong, but the request itself
        answer["error"] = {"code": code, "message": reply.error, "data": fields}
    else:
        answer["result"] = fields
    return answer


def error_reply(error: ClientError, correlation_id: str | None = None) -> Error:
    """Return the ``error`` frame that tells a client what it got wrong."""
    return Error(
        code=error.code,
        error=error.text,
        message=error.text,
        retryable=error.retryable,
        retry_after_s=error.retry_after_s,
        details=error.details,
        correlation_id=correlation_id,
    )


# What a client says and hears.


def encode_command(command: Command) -> str:
    """Return *command* as the JSON text that a client sends."""
    fields = {"type": command.type, **WRITERS[type(command)](command)}
    if isinstance(command, UserTyping) and not fields.pop("is_typing"):
        fields["type"] = "typing_stopped"  # on the wire the type alone says it
    return orjson.dumps(fields).decode()


def read_server(text: str | bytes) -> Heard:
    """Read one frame of the server; fields and types that are not known are kept, never an error.

    Raises:
        ValueError: It is not a JSON object with a type, so not of this protocol.
    """
    fields = orjson.loads(text)
    if type(fields) is not dict or type(fields.get("type")) is not str:
        raise ValueError("not a message of this protocol")
    name: str = fields["type"]
    reply_to = fields.get("reply_to")
    if type(reply_to) is not str:
        reply_to = None
    event_class = _EVENT_TYPES.get(name)
    if event_class is AgentEvent and "thread_id" not in fields:
        event_class = Announcement
    if event_class is not None and reply_to is None and type(fields.get("seq")) is int:
        stamp = _lenient({"user_id": "", **fields}, Stamp)
        message = _lenient(fields, event_class) if stamp is not None else None
        return Heard(type=name, fields=fields, message=message, stamp=stamp, reply_to=None)
    reply_class = _REPLY_TYPES.get(name)
    message = _lenient(fields, reply_class) if reply_class is not None else None
    return Heard(type=name, fields=fields, message=message, stamp=None, reply_to=reply_to)


def _lenient(fields: Mapping[str, Any], class_: type[Any]) -> Any:
    """Build *class_*, or return None for a frame of a newer server that it does not fit."""
    try:
        return converter.structure(fields, class_)
    except Exception:  # cattrs raises groups of whatever a hook raised
        return None
