"""Between the older envelope and our wire: a message becomes a command, what the server says becomes fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from netra_ws.errors import InvalidArgument
from netra_ws.protocol.codec import Heard, read_command
from netra_ws.protocol.commands import FIELD_NAMES, TYPES, Command, Start, StartAgent
from netra_ws.protocol.converter import WRITERS
from netra_ws.protocol.events import Event, Stamp
from netra_ws.protocol.replies import Reply

#: Fields of a start that our wire has no place for; an agent finds them in its ``context``.
_INTO_CONTEXT = ("references", "metadata", "settings")
#: Would change how the message is read; no command has a field of that name.
_NOT_FIELDS = ("payload", "jsonrpc", "type", "message_id")
#: Type → older name → the name of the same field today.
_OLDER_FIELDS: Mapping[str, Mapping[str, str]] = {
    "agent_started": {"agent": "agent_name"},
    "agent_thinking": {"thought": "reasoning"},
    "tool_executing": {"tool": "tool_name"},
    "tool_completed": {"tool": "tool_name", "result": "results"},
    "agent_completed": {"result": "final_response"},
    "error": {"error_code": "code", "error_message": "error"},
    "thread_created": {"name": "title"},
    "thread_renamed": {"name": "title"},
}


def command_of(native: str, body: Mapping[str, Any]) -> Command:
    """Return the command of our wire.

    Args:
        native: Its type on the wire.
        body: Its fields as JSON values, also under their older names; null means absent.

    Raises:
        InvalidArgument: Our wire does not take it; the text names bad fields by JSON path.
    """
    fields = {name: value for name, value in body.items() if name not in _NOT_FIELDS}
    class_ = TYPES[native]
    if issubclass(class_, Start):
        _adapt_start(class_, fields)
    if fields.get("title") is None and "name" in fields and native in ("create_thread", "rename_thread"):
        fields["title"] = fields["name"]
    if native == "user_typing" and fields.get("is_typing") is False:
        native = "typing_stopped"
    incoming = read_command(orjson.dumps({**fields, "type": native}))
    if incoming.command is None:
        raise InvalidArgument("message", incoming.error.text if incoming.error else "no command")
    return incoming.command


def _adapt_start(class_: type[Start], fields: dict[str, Any]) -> None:
    """Find text and context where older programs put them."""
    (names,) = FIELD_NAMES[class_].values()
    asked = fields.get("request")
    if isinstance(asked, Mapping):
        asked = asked.get("query") or asked.get("user_request")
    if class_ is StartAgent and asked is not None and all(fields.get(name) is None for name in names):
        fields["user_request"] = asked
    context = fields.get("context")
    more = {name: fields[name] for name in _INTO_CONTEXT if fields.get(name) is not None}
    if more and (context is None or isinstance(context, Mapping)):
        fields["context"] = {**more, **(context or {})}


def fields_of(said: object, stamp: Stamp | None) -> dict[str, Any]:
    """Return what the server said as the fields of its frame, older names beside today's.

    Args:
        said: An object of the wire, also a JSON-RPC response; what ``netra_ws.client`` heard; or an event or
            reply.
        stamp: Where an event stands.

    Raises:
        InvalidArgument: It is nothing that a server says.
    """
    fields = _frame_of(said)
    if stamp is not None:
        where = {"event_id": stamp.event_id, "seq": stamp.seq, "timestamp": stamp.timestamp}
        fields = {"user_id": stamp.user_id, **fields, **where}  # what a user says into a job is not the stream's
    type_name = fields.get("type")
    if not isinstance(type_name, str) or not type_name:
        raise InvalidArgument("event", "$.type: expected the type of what a server says")
    for older, name in _OLDER_FIELDS.get(type_name, {}).items():
        if name in fields:
            fields.setdefault(older, fields[name])
    return fields


def _frame_of(said: object) -> dict[str, Any]:
    if isinstance(said, Event | Reply):
        return {"type": said.type, **WRITERS[type(said)](said)}
    if isinstance(said, Heard):
        said = said.fields
    if not isinstance(said, Mapping):
        raise InvalidArgument("event", f"expected an event, a reply or an object, got {type(said).__name__}")
    if said.get("jsonrpc") == "2.0" and "type" not in said:
        error = said.get("error")
        inner = error.get("data") if isinstance(error, Mapping) else said.get("result")
        if not isinstance(inner, Mapping):
            raise InvalidArgument("event", "expected a JSON-RPC response of our server")
        return {**inner, "reply_to": said.get("id")}
    return dict(said)
