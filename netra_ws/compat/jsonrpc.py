"""JSON-RPC 2.0 (https://www.jsonrpc.org/specification) as our wire speaks it: methods are types of commands.

::

    call = make_request("get_thread_history", {"thread_id": "t"}, 7)
    await socket.send(call.to_json())
    answer = read_jsonrpc(await socket.receive())            # the same id
    answer.outcome()                                         # the reply, or JsonRpcFailed
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Any, Self, TypeAlias

import attrs
import orjson

from netra_ws.errors import CommandFailed, InvalidArgument
from netra_ws.protocol.commands import Command

from .message_types import MessageType, native_command_type, normalize_message_type
from .messages import MAX_MESSAGE_BYTES
from .serialising import strict_json
from .structures import WebSocketMessage

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
#: Any other error of our wire; its own code stands in ``data``.
SERVER_ERROR = -32000


class Absent(enum.Enum):
    """What is not there, where null is something."""

    ABSENT = enum.auto()


ABSENT = Absent.ABSENT
RpcId: TypeAlias = "str | int | float | None"


def _read_id(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (value is None or isinstance(value, str | Absent) or number):
        raise InvalidArgument("id", "expected text, a number or null")
    return value if value is ABSENT else strict_json(value, "id")


def _read_params(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping | list | tuple):
        raise InvalidArgument("params", f"expected an object or a list, got {type(value).__name__}")
    return strict_json(value, "params")


def _read_result(value: Any) -> Any:
    return value if value is ABSENT else strict_json(value, "result")


def _read_error(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidArgument("error", f"expected an object, got {type(value).__name__}")
    code, message = value.get("code"), value.get("message")
    if not isinstance(code, int) or isinstance(code, bool):
        raise InvalidArgument("error", "$.code: expected an integer")
    if not isinstance(message, str):
        raise InvalidArgument("error", "$.message: expected text")
    return strict_json({**value, "code": int(code)}, "error")


@attrs.frozen(kw_only=True)
class JsonRpcMessage:
    """A request, a notification or a response.

    Attributes:
        method: What is called, or None in a response.
        params: Object or list, or None.
        id: Of a request and its response; a request without one is a notification.
        result: What came of it; null is a result, too.
        error: ``{code, message, data?}``, or None.

    Raises:
        InvalidArgument: A field is not what it should be, or it is not exactly one of the three.
    """

    method: str | None = None
    params: Mapping[str, Any] | list[Any] | None = attrs.field(default=None, converter=_read_params)
    id: RpcId | Absent = attrs.field(default=ABSENT, converter=_read_id)
    result: Any = attrs.field(default=ABSENT, converter=_read_result)
    error: Mapping[str, Any] | None = attrs.field(default=None, converter=_read_error)

    def __attrs_post_init__(self) -> None:
        if (self.method is not None) + (self.result is not ABSENT) + (self.error is not None) != 1:
            raise InvalidArgument("message", "expected exactly one of method, result and error")
        if self.method is None and (self.id is ABSENT or self.params is not None):
            raise InvalidArgument("id" if self.id is ABSENT else "params", "a response has an id and no params")
        if self.method is not None and (not isinstance(self.method, str) or not self.method):
            raise InvalidArgument("method", "expected the name of a method")

    @property
    def kind(self) -> MessageType:
        """Whether it is a request, a notification or a response."""
        if self.method is None:
            return MessageType.JSONRPC_RESPONSE
        return MessageType.JSONRPC_NOTIFICATION if self.id is ABSENT else MessageType.JSONRPC_REQUEST

    @classmethod
    def from_dict(cls, message: object) -> Self:
        """Read an object with ``jsonrpc: "2.0"``; what JSON-RPC does not know is left out.

        Raises:
            InvalidArgument: It is none; the field is named.
        """
        if not isinstance(message, Mapping):
            raise InvalidArgument("message", f"expected an object, got {type(message).__name__}")
        if message.get("jsonrpc") != "2.0":
            raise InvalidArgument("jsonrpc", 'expected "2.0"')
        if "params" in message and message["params"] is None:
            raise InvalidArgument("params", "expected an object or a list, got null")
        names = [field.name for field in attrs.fields(cls)]
        return cls(**{name: message[name] for name in names if name in message})

    @classmethod
    def from_message(cls, message: WebSocketMessage, id: RpcId | Absent = ABSENT) -> Self:  # noqa: A002
        """Return the call that says the same as a message which our wire has a command for.

        Raises:
            InvalidArgument: It has none.
        """
        native = native_command_type(message.type)
        if native is None:
            raise InvalidArgument("message", f"our wire has no command for {message.type.value!r}")
        thread = {} if message.thread_id is None else {"thread_id": message.thread_id}
        return cls(method=native, params={**thread, **message.payload}, id=id)

    def to_dict(self) -> dict[str, Any]:
        """Return the object as it goes over the wire."""
        fields: dict[str, Any] = {"jsonrpc": "2.0"}
        fields |= {name: value for name in ("method", "params", "error") if (value := getattr(self, name)) is not None}
        fields |= {name: value for name in ("result", "id") if (value := getattr(self, name)) is not ABSENT}
        return fields

    def to_json(self) -> str:
        """Return the text of one frame."""
        return orjson.dumps(self.to_dict()).decode()

    def to_command(self) -> Command:
        """Return the command that is called.

        Raises:
            InvalidArgument: It is a response, or our wire does not take it.
        """
        if self.method is None:
            raise InvalidArgument("message", "a response is no command")
        return WebSocketMessage(type=self.kind, payload=self.to_dict()).to_command()

    def outcome(self) -> Any:
        """Return the result of a response.

        Raises:
            CommandFailed: The response is an error; ``code`` is ours where our server said it.
            InvalidArgument: It is a call.
        """
        if self.error is None:
            if self.result is ABSENT:
                raise InvalidArgument("message", "a call has no outcome")
            return self.result
        data = self.error.get("data")
        ours: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
        details = ours.get("details")
        raise CommandFailed(
            str(ours.get("code", self.error["code"])),
            self.error["message"],
            retryable=ours.get("retryable") is True,
            details=details if isinstance(details, Mapping) else None,
        )


def is_jsonrpc(message: object) -> bool:
    """Whether an object claims to be JSON-RPC 2.0, right or wrong: it is to be answered as such."""
    claims = isinstance(message, Mapping) and message.get("jsonrpc") == "2.0"
    return claims and any(name in message for name in ("method", "result", "error"))  # type: ignore[operator]


def read_jsonrpc(text: str | bytes) -> JsonRpcMessage:
    """Read one frame.

    Raises:
        InvalidArgument: It is no JSON-RPC 2.0.
    """
    if not isinstance(text, str | bytes) or len(text) > MAX_MESSAGE_BYTES:
        raise InvalidArgument("text", f"expected text of at most {MAX_MESSAGE_BYTES} bytes")
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise InvalidArgument("text", f"not valid JSON (line {exc.lineno} column {exc.colno})") from None
    return JsonRpcMessage.from_dict(message)


def make_request(method: str, params: Mapping[str, Any] | None = None, id: RpcId = None) -> JsonRpcMessage:  # noqa: A002
    """Return a call that is answered under *id*; older names of methods become today's.

    Raises:
        InvalidArgument: An argument is not what it should be, or our wire has no such command.
    """
    return JsonRpcMessage(method=_method(method), params=params, id=id)


def make_notification(method: str, params: Mapping[str, Any] | None = None) -> JsonRpcMessage:
    """Return a call that is carried out but never answered.

    Raises:
        InvalidArgument: An argument is not what it should be, or our wire has no such command.
    """
    return JsonRpcMessage(method=_method(method), params=params)


def make_result(id: RpcId, result: Any) -> JsonRpcMessage:  # noqa: A002
    """Return the answer to a call that went well.

    Raises:
        InvalidArgument: JSON cannot say the result, or the id is none.
    """
    return JsonRpcMessage(id=id, result=result)


def make_error(id: RpcId, code: int, message: str, data: Any = None) -> JsonRpcMessage:  # noqa: A002
    """Return the answer to a call that failed; the id is null where it could not be read.

    Raises:
        InvalidArgument: An argument is not what it should be.
    """
    error = {"code": code, "message": message}
    return JsonRpcMessage(id=id, error=error if data is None else {**error, "data": data})


def _method(method: object) -> str:
    native = native_command_type(normalize_message_type(method, "method"))
    if native is None:
        raise InvalidArgument("method", f"our wire has no command {method!r}")
    return native
