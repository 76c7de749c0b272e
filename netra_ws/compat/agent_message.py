"""What a message for an agent is in the older system: its shape, its text, who says it, and what its run is told.

What the protocol knows is read by the protocol's own reader; here stand only the older forms around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeGuard

import attrs
import orjson

from netra_ws.errors import ClientError, InvalidArgument
from netra_ws.identity import Identity
from netra_ws.protocol.codec import read_command
from netra_ws.protocol.commands import FIELD_NAMES, Start, StartAgent
from netra_ws.protocol.values import read_id

from .context import UserExecutionContext

if TYPE_CHECKING:
    from netra_ws.agents.run import Run

#: The types that an agent handler takes.
SUPPORTED = ("start_agent", "user_message", "chat")
#: Fields that say nothing here: who speaks is decided by the caller, and ids of messages are of the older client's own.
_IGNORED = frozenset({"id", "message_id", "user_id", "timestamp", "jsonrpc"})
#: Where older clients put the text of a ``start_agent`` when it has none of its own.
_INNER_TEXTS = ("query", "user_request")
#: What else older payloads carry; the run finds it in the metadata of its context.
_CARRIED = ("settings", "references", "metadata")


@attrs.frozen
class AgentMessage:
    """An older message, in its outer form only.

    Attributes:
        type: As it was said; a word of ``SUPPORTED``, or anything else.
        body: Its fields as the protocol's reader takes them.
    """

    type: object
    body: Mapping[str, Any] = attrs.field(repr=False)

    @property
    def name(self) -> str:
        """How the message is called when its user is told about it."""
        return self.type if isinstance(self.type, str) and self.type in SUPPORTED else "the message"


def type_of(value: object) -> object:
    """Return a type by its name on the wire; one of an enum is that of its value."""
    return value.value if isinstance(value, Enum) else value


def read_shape(message: object) -> AgentMessage:
    """Return the outer form of *message*: a mapping, flat or with ``payload``, or an object with both attributes.

    Raises:
        InvalidArgument: It is neither.
    """
    if isinstance(message, Mapping):
        fields = dict(message)
    elif hasattr(message, "type") and hasattr(message, "payload"):
        fields = {name: getattr(message, name, None) for name in ("type", "payload", "thread_id")}
    else:
        text = f"expected a mapping, or an object with type and payload, got {type(message).__name__}"
        raise InvalidArgument("message", text)
    kind, payload = type_of(fields.get("type")), fields.get("payload")
    body = {name: value for name, value in fields.items() if name not in _IGNORED and name != "payload"}
    body["type"] = kind
    if isinstance(payload, Mapping):
        payload = {name: value for name, value in payload.items() if name not in _IGNORED}
    if payload is not None:
        body["payload"] = payload
    return AgentMessage(kind, body)


def read_fields(message: AgentMessage, most_bytes: int) -> tuple[Start, Mapping[str, Any]]:
    """Return the command that *message* is, and what else it carries for the run.

    Raises:
        ClientError: ``UNKNOWN_TYPE``, ``EMPTY_MESSAGE``, or ``INVALID_MESSAGE`` with the bad fields: what its client
            got wrong.
    """
    if not (isinstance(message.type, str) and message.type in SUPPORTED):
        raise ClientError("UNKNOWN_TYPE", f"expected one of the types {', '.join(SUPPORTED)}")
    body = _with_inner_text(message.body) if message.type == StartAgent.type else message.body
    try:
        text = orjson.dumps(body)
    except TypeError as exc:  # what other parsers let pass: half a surrogate pair, huge integers, towers
        raise ClientError("INVALID_MESSAGE", f"JSON cannot say this: {exc}") from None
    if len(text) > most_bytes:
        raise ClientError("INVALID_MESSAGE", f"more than {most_bytes} bytes")
    incoming = read_command(text)
    if incoming.error is not None:
        raise incoming.error
    assert isinstance(incoming.command, Start)
    return incoming.command, {name: incoming.body[name] for name in _CARRIED if incoming.body.get(name) is not None}


def _with_inner_text(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return *body* with the text of its ``request``, a text or an object, where it has no other one."""
    payload = body.get("payload")
    fields = {**body, **payload} if isinstance(payload, Mapping) else body
    names = FIELD_NAMES[StartAgent]["user_request"]
    if any(_says(fields.get(name)) for name in names):
        return body
    request = fields.get("request")
    texts = [request.get(name) for name in _INNER_TEXTS] if isinstance(request, Mapping) else [request]
    found = next((text for text in texts if _says(text)), None)
    if found is None:
        return body
    # The other names say nothing, or what is no text; nobody may say two things at once.
    cleared = {name: value for name, value in fields.items() if name not in (*names, "payload")}
    return {**cleared, "user_request": found}


def _says(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def identity_of(user: object) -> Identity:
    """Return who *user* is: a user's id, an ``Identity``, or a context or session that names one of them.

    Raises:
        InvalidArgument: Nobody; or the context has a thread whose id is none.
    """
    named = user
    if not isinstance(named, str | Identity):
        named = getattr(user, "identity", None)
        named = named if isinstance(named, Identity) else getattr(user, "user_id", None)
        thread_id = getattr(user, "thread_id", None)
        if thread_id is not None and not is_id(thread_id):
            raise InvalidArgument("user", "its thread_id: expected 1 to 128 of the characters A-Z a-z 0-9 _ . : -")
    if isinstance(named, Identity):
        return named
    if not isinstance(named, str):
        raise InvalidArgument("user", f"expected a user's id or context, got {type(user).__name__}")
    try:
        return Identity(named)
    except ValueError as exc:
        raise InvalidArgument("user", str(exc)) from None


def is_id(value: object) -> TypeGuard[str]:
    """Whether *value* can name a thread."""
    try:
        read_id(value)
    except (TypeError, ValueError):
        return False
    return True


@attrs.frozen(kw_only=True, repr=False)
class RequestContext(UserExecutionContext):
    """What one message's run belongs to; made for this message alone, and never changed.

    Its ids are those that the server knows: a thread may be called ``test``, which stands for a forgotten id elsewhere.

    Attributes:
        request_id: Of this message only; that of a context which the caller gave is ``parent_request_id``.
        websocket_connection_id: The connection that said it, or None when it was not found.
        db_session: The message's own session, or None; closed when the run has ended.
        metadata: ``message_type``, and ``settings``, ``references`` and ``metadata`` as the payload had them.
    """

    user_id: str
    thread_id: str
    run_id: str

    @staticmethod
    def of(run: Run) -> RequestContext:
        """Return the context of the message that a run is carried out for.

        Raises:
            LookupError: The run was not started by an agent handler; nor was one that begins with what was steered
                into another and not read there.
        """
        if isinstance(run.context, SaidContext):
            return run.context.request
        raise LookupError(f"{run.run_id} was not started by an agent handler")


class SaidContext(dict[str, Any]):
    """The ``context`` object of a message, with the request behind it: no name in it is reserved, nor can be forged."""

    def __init__(self, said: Mapping[str, Any], request: RequestContext) -> None:
        super().__init__(said)
        self.request = request
