"""What a client says: JSON text to a command, or to the error that answers it.

``read_command`` never raises: what a client got wrong is recorded as a ``ClientError`` beside the
``id`` that the answer needs. Aliases of types and fields end here.
"""

from __future__ import annotations

import binascii
import difflib
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import cattrs
import orjson

from netra_ws.errors import ClientError

from .commands import COMMANDS, FIELD_NAMES, TYPES, Command, Kick
from .converter import converter
from .values import MAX_METADATA_BYTES, json_name

#: Containers inside each other; orjson itself can read 1,024 levels but write only 254.
MAX_DEPTH = 64
#: Lists and objects in one message. The parser keeps the whole process for itself while it works: half a million
#: lists, for which a megabyte has room, take it a sixth of a second, so many as this about twenty milliseconds.
MAX_CONTAINERS = 65_536
#: A JSON string, without going back on any character.
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
#: The field at the beginning of a JSON path.
_FIELD = re.compile(r"\$\.(\w+)")

#: Names that tell by themselves whether somebody is typing; with ``user_typing`` the field does, where it is there.
_TYPING = {"typing_started": True, "typing_stopped": False}

_DEFAULTED = {
    command: frozenset(field.name for field in attrs.fields(command) if field.default is not attrs.NOTHING)
    for command in COMMANDS
}


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


def read_command(text: str | bytes) -> Incoming:
    """Read one message of a client.

    Returns:
        The command, or the error that answers it; never raises.
    """
    if _has_more_containers_than(text, MAX_CONTAINERS):
        return Incoming(error=_invalid({"$": f"more than {MAX_CONTAINERS} lists and objects"}))
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        where = f"line {exc.lineno} column {exc.colno}"
        return Incoming(error=ClientError("INVALID_JSON", f"not valid JSON ({where})"))
    if type(message) is not dict:
        return Incoming(error=_invalid({"$": f"expected object, got {json_name(message)}"}))
    if deeper_than(message, MAX_DEPTH):
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
        if type_name in _TYPING:
            fields["is_typing"] = _TYPING[type_name]
        command = converter.structure(fields, class_)
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
    if isinstance(command, Kick) and (command.user_id is None) == (command.jti is None):
        raise _invalid({where("user_id"): "expected either user_id or jti"})
    metadata = getattr(command, "metadata", None)
    if metadata is not None and len(orjson.dumps(metadata)) > MAX_METADATA_BYTES:
        raise _invalid({where("metadata"): f"more than {MAX_METADATA_BYTES} bytes of JSON"})
    for position, attachment in enumerate(getattr(command, "attachments", ())):
        if attachment.data is not None and not _is_base64(attachment.data):
            raise _invalid({f"{where('attachments')}[{position}].data": "expected base64"})
        if (attachment.data is None) == (attachment.url is None):
            raise _invalid({f"{where('attachments')}[{position}]": "expected either data or url"})


def _is_base64(text: str) -> bool:
    try:
        binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _has_more_containers_than(text: str | bytes, limit: int) -> bool:
    if len(text) <= limit:
        return False
    if isinstance(text, bytes):
        text = text.decode("latin-1")  # only signs of ASCII are looked for
    if text.count("[") + text.count("{") <= limit:
        return False
    bare = _STRING.sub("", text)  # people write brackets, too
    return bare.count("[") + bare.count("{") > limit


def deeper_than(value: object, limit: int) -> bool:
    """Whether lists and objects of JSON stand more than *limit* levels inside each other."""
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
