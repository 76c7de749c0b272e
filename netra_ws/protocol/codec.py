"""JSON text to commands, events and replies to frames: the only place where both sides meet.

``read_command`` never raises: what a client got wrong is recorded as a ``ClientError`` beside the
``id`` that the answer needs. Encoding happens once per event; the result is a finished, unmasked
WebSocket frame (RFC 6455 §5.2) that can be written to any number of sockets.

Rules of the one converter: scalars are exact (cattrs alone would turn 5 into "5"), null for a field
with a default means absent, unknown fields are ignored, optional fields that are None are left out.
"""

from __future__ import annotations

import difflib
import re
import struct
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

import attrs
import cattrs
import orjson
from cattrs import IterableValidationError, IterableValidationNote
from cattrs.gen import make_dict_unstructure_fn, override

from netra_ws.errors import ClientError
from netra_ws.protocol.commands import COMMANDS, FIELD_NAMES, TYPES, Attachment, Command, Text, UserTyping
from netra_ws.protocol.events import EVENTS, Event, Stamp
from netra_ws.protocol.replies import REPLIES, Error, Reply
from netra_ws.protocol.values import MAX_METADATA_BYTES, READERS, exactly, json_name, number, read_object

#: Containers inside each other; orjson itself can read 1,024 levels but write only 254.
MAX_DEPTH = 64
#: Items of a list that one answer calls bad: a message of a megabyte has room for half a million.
MAX_BAD_ITEMS = 20

#: JSON-RPC 2.0 §5.1 codes for the errors that have one; all others are -32000.
_RPC_CODES = {"INVALID_JSON": -32700, "MISSING_TYPE": -32600, "UNKNOWN_TYPE": -32601, "INVALID_MESSAGE": -32602}


@attrs.frozen(kw_only=True)
class Incoming:
    """One message of a client: a command or what is wrong with it, and how to answer.

    Attributes:
        command: The command, or None when there is an error.
        error: What is wrong, or None.
        type_name: The type as a metric label: a known name, or ``"?"``.
        reply_to: ``id`` for the answer: text, or any JSON-RPC id; None when the client gave none.
        rpc: Whether it came as JSON-RPC 2.0.
        silent: A JSON-RPC notification: it is carried out but never answered.
        body: The fields as read, for comparing a repeated command with the first one.
    """

    command: Command | None = None
    error: ClientError | None = None
    type_name: str = "?"
    reply_to: str | int | float | None = None
    rpc: bool = False
    silent: bool = False
    body: Mapping[str, Any] = attrs.field(factory=dict, repr=False)


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


def make_converter() -> cattrs.Converter:
    """Build a converter with the rules named at the top of this module; never the global one."""
    converter = cattrs.Converter()
    for scalar in (str, int, bool):
        converter.register_structure_hook(scalar, exactly(scalar))
    converter.register_structure_hook(float, lambda value, _: number(value))
    converter.register_structure_hook_func(lambda t: t is Text, exactly(str))
    for value_type, reader in READERS.items():
        converter.register_structure_hook_func(_is(value_type), _hook(reader))
    converter.register_structure_hook_func(_is_literal, _one_of)
    converter.register_structure_hook_func(lambda t: t == Mapping[str, Any], _hook(read_object))
    converter.register_structure_hook_func(lambda t: t == str | int | None, _step)
    converter.register_structure_hook_func(lambda t: t == list[Attachment], _attachments(converter))
    for class_ in (*COMMANDS, *EVENTS, *REPLIES, Attachment):
        _leave_out_none(converter, class_)
    return converter


def _is(value_type: Any) -> Callable[[Any], bool]:
    return lambda type_: type_ is value_type


def _is_literal(type_: Any) -> bool:
    origin: Any = get_origin(type_)
    return origin is Literal


def _hook(reader: Callable[[object], Any]) -> Callable[[object, object], Any]:
    return lambda value, _: reader(value)


def _one_of(value: object, type_: Any) -> object:
    if type(value) is not str or value not in get_args(type_):
        raise ValueError(f"expected one of {', '.join(get_args(type_))}")
    return value


def _step(value: object, _: object) -> object:
    if value is not None and type(value) is not str and type(value) is not int:
        raise TypeError(f"expected string or integer, got {json_name(value)}")
    return value


def _attachments(converter: cattrs.Converter) -> Callable[[object, object], list[Attachment]]:
    """Return a hook for a client's list; cattrs alone would name every bad item, however many there are."""

    def hook(value: object, _: object) -> list[Attachment]:
        if type(value) is not list:
            raise TypeError(f"expected list, got {json_name(value)}")
        read: list[Attachment] = []
        wrong: list[Exception] = []
        for position, item in enumerate(value):
            try:
                read.append(converter.structure(read_object(item), Attachment))
            except Exception as exc:  # cattrs raises groups of whatever a hook raised
                exc.add_note(IterableValidationNote(f"in attachment {position}", position, Attachment))
                wrong.append(exc)
                if len(wrong) == MAX_BAD_ITEMS:
                    break
        if wrong:
            raise IterableValidationError("bad attachments", wrong, Attachment)
        return read

    return hook


def _leave_out_none(converter: cattrs.Converter, class_: type[Any]) -> None:
    """Make *class_* write no field that is None by default and None now."""
    attrs.resolve_types(class_)
    for field in attrs.fields(class_):
        for inner in (field.type, *get_args(field.type), *(a for g in get_args(field.type) for a in get_args(g))):
            if get_origin(inner) is None and attrs.has(inner):
                _leave_out_none(converter, inner)
    overrides = {field.name: override(omit_if_default=True) for field in attrs.fields(class_) if field.default is None}
    converter.register_unstructure_hook(
        class_,
        make_dict_unstructure_fn(class_, converter, **overrides),  # type: ignore[arg-type]
    )


_converter = make_converter()
_WRITERS: dict[type[Any], Callable[[Any], dict[str, Any]]] = {
    class_: _converter.get_unstructure_hook(class_) for class_ in (*COMMANDS, *EVENTS, *REPLIES)
}
_EVENT_TYPES = {event.type: event for event in EVENTS}
_REPLY_TYPES = {reply.type: reply for reply in REPLIES}
_DEFAULTED = {
    command: frozenset(field.name for field in attrs.fields(command) if field.default is not attrs.NOTHING)
    for command in COMMANDS
}


#: The field at the beginning of a JSON path.
_FIELD = re.compile(r"\$\.(\w+)")


# Frames.


def text_frame(payload: bytes) -> bytes:
    """Return *payload* as one complete, unmasked text frame."""
    size = len(payload)
    if size < 126:
        return b"\x81" + size.to_bytes(1, "big") + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


def frame_payload(frame: bytes) -> bytes:
    """Return the payload of a frame made by ``text_frame``."""
    return frame[{126: 4, 127: 10}.get(frame[1], 2) :]


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a Close frame; the reason is cut to the 123 bytes that a control frame has room for."""
    body = struct.pack("!H", code) + reason.encode()[:123].decode(errors="ignore").encode()
    return bytes((0x88, len(body))) + body


def ping_frame(payload: bytes = b"") -> bytes:
    """Return a Ping frame with at most 125 bytes of payload."""
    return bytes((0x89, len(payload))) + payload


# What clients say.


def read_command(text: str | bytes) -> Incoming:
    """Read one message of a client.

    Returns:
        The command, or the error that answers it; never raises.
    """
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        where = f"line {exc.lineno} column {exc.colno}"
        return Incoming(error=ClientError("INVALID_JSON", f"not valid JSON ({where})"))
    if type(message) is not dict:
        return Incoming(error=_invalid({"$": f"expected object, got {json_name(message)}"}))
    if _deeper_than(message, MAX_DEPTH):
        # Answered without reading on: even the id could be a tower.
        return Incoming(error=_invalid({"$": f"nested more than {MAX_DEPTH} levels deep"}))
    if message.get("jsonrpc") == "2.0":
        return _read_rpc(message)
    return _read_flat(message)


def _read_rpc(message: dict[str, Any]) -> Incoming:
    reply_to = message.get("id")
    silent = "id" not in message
    if type(reply_to) not in (str, int, float, types.NoneType):
        return Incoming(error=_invalid({"$.id": "expected string or number"}), rpc=True)
    method = message.get("method")
    params = message.get("params", {})
    if type(params) is not dict:
        known = TYPES.get(method) if type(method) is str else None
        return Incoming(
            error=_invalid({"$.params": f"expected object, got {json_name(params)}"}),
            type_name=known.type if known is not None else "?",
            reply_to=reply_to,
            rpc=True,
            silent=silent,
        )
    # JSON-RPC ids count per connection, so they never become a command's id.
    body = {name: value for name, value in params.items() if name not in ("id", "message_id", "type")}
    command, wrong, type_name = _build(method, body, lambda name: f"$.params.{name}", "$.method")
    return Incoming(
        command=command, error=wrong, type_name=type_name, reply_to=reply_to, rpc=True, silent=silent, body=body
    )


def _read_flat(message: dict[str, Any]) -> Incoming:
    payload = message.get("payload", {})
    if payload is not None and type(payload) is not dict:
        error = _invalid({"$.payload": f"expected object, got {json_name(payload)}"})
        return Incoming(error=error, reply_to=_id_of(message))
    # Null means absent, so a null in the payload hides nothing.
    inner = {name: value for name, value in (payload or {}).items() if value is not None or name not in message}
    body = {**message, **inner, "type": message.get("type")}
    named = "id"
    if body.get("id") is None and body.get("message_id") is not None:
        named = "message_id"
        body["id"] = body["message_id"]

    def where(name: str) -> str:
        written = named if name == "id" else name
        return f"$.payload.{written}" if written in inner or (payload and written not in message) else f"$.{written}"

    command, wrong, type_name = _build(message.get("type"), body, where, "$.type")
    return Incoming(command=command, error=wrong, type_name=type_name, reply_to=_id_of(body), body=body)


def _id_of(message: Mapping[str, Any]) -> str | None:
    for name in ("id", "message_id"):
        value = message.get(name)
        if type(value) is str and 0 < len(value) <= 256:
            return value
    return None


def _build(
    type_name: object, body: Mapping[str, Any], where: Callable[[str], str], type_path: str
) -> tuple[Command | None, ClientError | None, str]:
    """Build the command of *body*; *where* tells the JSON path at which a field of it stood."""
    if type_name is None:
        return None, ClientError("MISSING_TYPE", "the message has no type"), "?"
    if type(type_name) is not str:
        return None, _invalid({type_path: f"expected string, got {json_name(type_name)}"}), "?"
    class_ = TYPES.get(type_name)
    if class_ is None:
        return None, _unknown_type(type_name), "?"
    written: dict[str, str] = {}
    try:
        fields = _fields_of(class_, body, written)
        if type_name == "typing_stopped":
            fields["is_typing"] = False
        command = _converter.structure(fields, class_)
        _check_sizes(command, where)
    except ClientError as error:
        return None, error, class_.type
    except Exception as exc:  # cattrs raises groups of whatever a hook raised
        return None, _invalid(_problems(exc, lambda name: where(written.get(name, name)))), class_.type
    return command, None, class_.type


def _fields_of(class_: type[Command], body: Mapping[str, Any], written: dict[str, str]) -> dict[str, Any]:
    """Return the fields of *class_* under their own names, absent ones left out; note aliases in *written*."""
    names = FIELD_NAMES.get(class_, {})
    defaulted = _DEFAULTED[class_]
    fields: dict[str, Any] = {}
    for field in attrs.fields(class_):
        name = field.name
        if name in names:
            written[name], said = _text_field(name, names[name], body)
            if said is not None:
                fields[name] = said
        elif name in body and (body[name] is not None or name not in defaulted):
            fields[name] = body[name]
    if class_ is UserTyping:
        fields.pop("is_typing", None)
    return fields


def _text_field(name: str, aliases: tuple[str, ...], body: Mapping[str, Any]) -> tuple[str, object]:
    """Return the name under which a text was given, and the text; or None when there is none."""
    said = [(alias, body[alias]) for alias in aliases if body.get(alias) is not None]
    for alias, value in said:
        if type(value) is not str:
            return alias, value  # the converter names the type error
        if value.strip():
            return alias, value.strip()
    if said:
        raise ClientError("EMPTY_MESSAGE", "the message has no text")
    return name, None


def _check_sizes(command: Command, where: Callable[[str], str]) -> None:
    metadata = getattr(command, "metadata", None)
    if metadata is not None and len(orjson.dumps(metadata)) > MAX_METADATA_BYTES:
        raise _invalid({where("metadata"): f"more than {MAX_METADATA_BYTES} bytes of JSON"})
    for position, attachment in enumerate(getattr(command, "attachments", ())):
        if (attachment.data is None) == (attachment.url is None):
            raise _invalid({f"{where('attachments')}[{position}]": "expected either data or url"})


def _deeper_than(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer if type(outer) is list else ())
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return False
    return True


def _problems(exc: Exception, where: Callable[[str], str]) -> dict[str, str]:
    """Turn what cattrs raised into ``{JSON path: what is wrong}``."""
    found: dict[str, str] = {}
    for line in cattrs.transform_error(exc, path="$", format_exception=_describe):
        text, _, path = line.rpartition(" @ ")
        found[_FIELD.sub(lambda field: where(field[1]), path)] = text
    return found


def _describe(exc: BaseException, _: object) -> str:
    if isinstance(exc, KeyError):
        return "required field missing"
    return str(exc)


def _invalid(problems: Mapping[str, str]) -> ClientError:
    text = "; ".join(f"{path}: {problem}" for path, problem in problems.items())
    return ClientError("INVALID_MESSAGE", text[:1000], details={"fields": dict(problems)})


def _unknown_type(type_name: str) -> ClientError:
    shown = type_name if len(type_name) <= 64 else type_name[:64] + "…"
    close = difflib.get_close_matches(type_name[:64], TYPES, n=1, cutoff=0.6)
    details = {"did_you_mean": close[0]} if close else None
    return ClientError("UNKNOWN_TYPE", f"unknown message type {shown!r}", details=details)


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
                **_WRITERS[type(event)](event),
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
        fields |= _WRITERS[type(reply)](reply)
        fields["timestamp"] = now
        return text_frame(orjson.dumps(_rpc_answer(reply, fields, incoming)))
    if incoming is not None and incoming.reply_to is not None:
        fields["reply_to"] = incoming.reply_to
    fields |= _WRITERS[type(reply)](reply)
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


# The client's side.


def encode_command(command: Command) -> str:
    """Return *command* as the JSON text that a client sends."""
    fields = {"type": command.type, **_WRITERS[type(command)](command)}
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
        return _converter.structure(fields, class_)
    except Exception:  # cattrs raises groups of whatever a hook raised
        return None
