"""Messages in the older envelope: ``{type, payload or data, timestamp, …}``.

A message is JSON from the moment it is made: a copy, so what a program does to its own objects later changes
nothing, and there is no message that cannot be sent. Text is not searched for markup: what people write is
theirs, and whoever shows it escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import attrs

from netra_ws.errors import InvalidArgument
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.commands import Command
from netra_ws.protocol.events import Event, Stamp
from netra_ws.protocol.replies import Reply

from . import fields
from .message_types import MessageType, native_command_type, normalize_message_type
from .translation import command_of, fields_of

Shape = Literal["data", "payload", "flat"]
Priority = Literal["low", "normal", "high", "critical"]


def _known_type(value: Any) -> MessageType:
    return normalize_message_type(value, "type")


@attrs.frozen(kw_only=True)
class WebSocketMessage:
    """What a client says.

    Attributes:
        type: Older names become today's; see ``normalize_message_type``.
        payload: A JSON object.
        timestamp: Unix seconds; any form of a time is taken.
        message_id: The ``id`` of the command on our wire, where it keeps a repeat from having two effects.
        user_id: As the program says; our wire never believes it.

    Raises:
        InvalidArgument: A field is not what it should be; it is named.
    """

    type: MessageType = attrs.field(converter=_known_type)
    payload: Mapping[str, Any] = attrs.field(factory=dict, converter=fields.payload)
    timestamp: float | None = attrs.field(default=None, converter=fields.timestamp)
    message_id: str | None = attrs.field(default=None, converter=fields.message_id)
    user_id: str | None = attrs.field(default=None, converter=fields.user_id)
    thread_id: str | None = attrs.field(default=None, converter=fields.thread_id)

    @classmethod
    def from_dict(cls, message: object) -> Self:
        """Read ``{type, payload?, …}``; without a payload the object itself is the payload.

        Fields beside the payload belong to it where it does not say otherwise, as on our wire.

        Raises:
            InvalidArgument: It is no such object; the field is named.
        """
        said = _object(message)
        envelope = {name: said.pop(name, None) for name in ("timestamp", "message_id", "user_id", "thread_id")}
        named = said.pop("id", None)
        envelope["message_id"] = envelope["message_id"] if named is None else named
        return cls(type=_type_of(said), payload=_body(said, "payload"), **envelope)

    def to_dict(self) -> dict[str, Any]:
        """Return the envelope with ``payload``; fields that are not there are left out."""
        named = {"timestamp": self.timestamp, "message_id": self.message_id, "user_id": self.user_id}
        named |= {"thread_id": self.thread_id}
        more = {name: value for name, value in named.items() if value is not None}
        return {"type": self.type.value, "payload": dict(self.payload), **more}

    def to_command(self) -> Command:
        """Return the command of our wire that says the same.

        Raises:
            InvalidArgument: It has none, or its fields are wrong; the text names them by JSON path.
        """
        native, body = native_command_type(self.type), dict(self.payload)
        if self.type in (MessageType.JSONRPC_REQUEST, MessageType.JSONRPC_NOTIFICATION):
            native, body = _called(body)
        if native is None:
            raise InvalidArgument("type", f"our wire has no command for {self.type.value!r}")
        envelope = {"id": self.message_id, "thread_id": self.thread_id, "timestamp": self.timestamp}
        if body.get("message_id") is not None:
            envelope["id"] = body["message_id"]
        if native == "kick":  # the only command that is about somebody else
            envelope["user_id"] = self.user_id
        # Null means absent, so it hides nothing.
        inner = {name: value for name, value in body.items() if value is not None or name not in envelope}
        return command_of(native, {**envelope, **inner})


@attrs.frozen(kw_only=True)
class ServerMessage:
    """What a server says.

    Attributes:
        type: Any text: a ``MessageType``, or the name of an event of the program's own.
        data: A JSON object.
        timestamp: Unix seconds; now, where none is given.
        correlation_id: The id of the command that is answered.

    Raises:
        InvalidArgument: A field is not what it should be; it is named.
    """

    type: str = attrs.field(converter=fields.type_name)
    data: Mapping[str, Any] = attrs.field(factory=dict, converter=fields.data)
    timestamp: float = attrs.field(default=None, converter=fields.timestamp_or_now)
    server_id: str | None = attrs.field(default=None, converter=fields.server_id)
    correlation_id: str | None = attrs.field(default=None, converter=fields.correlation_id)

    @classmethod
    def from_dict(cls, message: object) -> Self:
        """Read any of the three older shapes: ``data``, ``payload``, or all fields beside ``type``.

        Raises:
            InvalidArgument: It is no such object; the field is named.
        """
        said = _object(message)
        envelope = {name: said.pop(name, None) for name in ("timestamp", "server_id", "correlation_id")}
        body = "data" if said.get("data") is not None else "payload"
        if said.get("payload") == said.get("data"):  # some send both, for readers of either
            said.pop("payload", None)
        return cls(type=_type_of(said), data=_body(said, body), **envelope)

    @classmethod
    def from_event(cls, said: Mapping[str, Any] | Heard | Event | Reply, stamp: Stamp | None = None) -> Self:
        """Show an event or answer of our wire in the older envelope; its fields also have their older names.

        Args:
            said: As it came over the wire, JSON-RPC too, or an object of ``netra_ws.protocol``.
            stamp: Where an event stands, if *said* does not tell.

        Raises:
            InvalidArgument: It is nothing that a server says.
        """
        frame = fields_of(said, stamp)
        name, answered, at = frame.pop("type"), frame.pop("reply_to", None), frame.pop("timestamp", None)
        correlation = None if answered is None else str(answered)  # a number is a JSON-RPC id
        return cls(type=name, data=frame, timestamp=at, correlation_id=correlation)

    def to_dict(self, shape: Shape = "data") -> dict[str, Any]:
        """Return one of the older shapes: the body under ``data``, under ``payload``, or flat beside ``type``.

        Raises:
            InvalidArgument: There is no such shape.
        """
        if shape not in get_args(Shape):
            raise InvalidArgument("shape", f"expected one of {', '.join(get_args(Shape))}")
        body: dict[str, Any] = dict(self.data) if shape == "flat" else {shape: dict(self.data)}
        named = {"server_id": self.server_id, "correlation_id": self.correlation_id}
        more = {name: value for name, value in named.items() if value is not None}
        # The data of an error may have a correlation id of its own.
        return {**more, **body, "type": self.type, "timestamp": self.timestamp}


@attrs.frozen(kw_only=True)
class ErrorMessage:
    """What went wrong, for a client.

    Attributes:
        error_code: A stable word for programs.
        error_message: A sentence for people.
        details: A JSON object.
        timestamp: Unix seconds; now, where none is given.
        recovery_suggestions: Sentences, or None.

    Raises:
        InvalidArgument: A field is not what it should be; it is named.
    """

    error_code: str = attrs.field(converter=fields.error_code)
    error_message: str = attrs.field(converter=fields.error_message)
    details: Mapping[str, Any] = attrs.field(factory=dict, converter=fields.details)
    timestamp: float = attrs.field(default=None, converter=fields.timestamp_or_now)
    recovery_suggestions: tuple[str, ...] | None = attrs.field(default=None, converter=fields.recovery_suggestions)

    @property
    def type(self) -> MessageType:
        return MessageType.ERROR_MESSAGE

    @classmethod
    def from_dict(cls, message: object) -> Self:
        """Read ``{type, error_code, error_message, …}``, or an ``error`` frame of our wire.

        Raises:
            InvalidArgument: It is no such object; the field is named.
        """
        said = _object(message)
        code, text = said.get("error_code", said.get("code")), said.get("error_message", said.get("error"))
        details, suggestions = said.get("details"), said.get("recovery_suggestions")
        return cls(
            error_code=code,
            error_message=text,
            details={} if details is None else details,
            timestamp=said.get("timestamp"),
            recovery_suggestions=suggestions,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the older fields, and those of our ``error`` frame, so that every client finds its own."""
        suggestions = self.recovery_suggestions
        return {
            "type": self.type.value,
            "error_code": self.error_code,
            "error_message": self.error_message,
            "code": self.error_code,
            "error": self.error_message,
            "message": self.error_message,
            "details": dict(self.details),
            "timestamp": self.timestamp,
            **({} if suggestions is None else {"recovery_suggestions": list(suggestions)}),
        }


@attrs.frozen(kw_only=True)
class BroadcastMessage:
    """A message for several connections; which ones, is decided by whoever sends it.

    Attributes:
        content: A JSON object.
        target_room: The job whose members it is for, or None.
        exclude_users: Who does not get it.

    Raises:
        InvalidArgument: A field is not what it should be; it is named.
    """

    content: Mapping[str, Any] = attrs.field(converter=fields.content)
    target_room: str | None = attrs.field(default=None, converter=fields.target_room)
    exclude_users: tuple[str, ...] = attrs.field(default=(), converter=fields.exclude_users)
    priority: Priority = attrs.field(default="normal")

    @priority.validator
    def _known(self, _: object, value: object) -> None:
        if value not in get_args(Priority):
            raise InvalidArgument("priority", f"expected one of {', '.join(get_args(Priority))}")

    @property
    def type(self) -> MessageType:
        return MessageType.BROADCAST

    def to_dict(self) -> dict[str, Any]:
        """Return all fields."""
        named: dict[str, Any] = {"content": dict(self.content), "priority": self.priority}
        if self.target_room is not None:
            named["target_room"] = self.target_room
        return {"type": self.type.value, **named, "exclude_users": list(self.exclude_users)}


def _object(message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidArgument("message", f"$: expected an object, got {type(message).__name__}")
    return {name: value for name, value in message.items() if isinstance(name, str)}


def _type_of(said: dict[str, Any]) -> Any:
    name = said.pop("type", None)
    if name is None:
        raise InvalidArgument("message", "$.type: required field missing")
    return name


def _body(beside: dict[str, Any], under: str) -> dict[str, Any]:
    """Return what stands under that name, and what stands beside it and is not said there."""
    inner = beside.pop(under, None)
    if inner is None:
        return beside
    if not isinstance(inner, Mapping):
        raise InvalidArgument("message", f"$.{under}: expected an object, got {type(inner).__name__}")
    # Null means absent, so it hides nothing.
    said = {name: value for name, value in inner.items() if value is not None or name not in beside}
    return {**beside, **said}


def _called(payload: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return command and fields of a JSON-RPC call that stands in an envelope."""
    method, params = payload.get("method"), payload.get("params", {})
    if not isinstance(params, Mapping):
        raise InvalidArgument("payload", f"$.params: expected an object, got {type(params).__name__}")
    kind = normalize_message_type(method, "payload: $.method")
    return native_command_type(kind), {
        name: value for name, value in params.items() if name not in ("id", "message_id")
    }
