"""For whom something is done: user, thread and run of one request, checked and fixed.

What the older system hung onto it besides has other homes here: what is to be cleaned up belongs to an
``async with`` of whoever made it, and the request-scoped supervisor is the scope of the run.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import attrs

from netra_ws.errors import ContextIsolationError, InvalidArgument, InvalidContextError

from .arguments import checked_text

#: Contexts inside each other.
MAX_DEPTH = 10
#: Words that stand where somebody has forgotten to put an id; whole ids, in any case.
PLACEHOLDERS = frozenset(
    {"registry", "placeholder", "default", "temp", "none", "null", "undefined", "0", "1", "xxx", "yyy", "example"}
    | {"test", "demo", "sample", "template", "mock", "fake", "dummy"}
)
#: Beginnings of such ids, and the length from which on an id may begin so.
PREFIXES = ("placeholder_", "registry_", "default_", "temp_")
PREFIX_LENGTH = 20
RESERVED = frozenset({"user_id", "thread_id", "run_id", "request_id", "created_at"})


def _checked(value: object, name: str) -> str:
    try:
        text = checked_text(value, name)
    except InvalidArgument as exc:
        raise InvalidContextError(name, str(exc).removeprefix(f"{name}: ")) from None
    return text


def _id(_instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    word = _checked(value, attribute.name).strip().lower()
    if word in PLACEHOLDERS or (word.startswith(PREFIXES) and len(word) < PREFIX_LENGTH):
        raise InvalidContextError(attribute.name, f"{word!r} stands for an id that somebody has forgotten to put")


def _plain_id(_instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    if value is not None:
        _checked(value, attribute.name)


def _frozen_metadata(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InvalidContextError("metadata", f"expected an object with names of text, got {type(value).__name__}")
    if taken := sorted(RESERVED & value.keys()):
        raise InvalidContextError("metadata", f"these names are the context's own: {', '.join(taken)}")
    contexts = {name: inner for name, inner in value.items() if isinstance(inner, UserExecutionContext)}
    others = {name: inner for name, inner in value.items() if name not in contexts}
    # Copied in depth: whoever made it may go on changing theirs, and a child's must not change its parent's.
    return MappingProxyType(copy.deepcopy(others) | contexts)


def _depth(_instance: object, _attribute: object, value: object) -> None:
    if type(value) is not int or not 0 <= value <= MAX_DEPTH:
        raise InvalidContextError("operation_depth", f"expected a whole number from 0 to {MAX_DEPTH}")


@attrs.frozen(kw_only=False, repr=False)
class UserExecutionContext:
    """One user's request: who, in which conversation, in which run. Nothing in it can be changed.

    Attributes:
        user_id, thread_id, run_id: Not blank, and no placeholder such as ``default`` or ``temp_1``.
        db_session: Whatever the program uses for its database; never part of ``to_dict`` or of comparisons.
        request_id: Of this request; made up when not given.
        websocket_connection_id: The connection it came by, or None.
        created_at: With an offset.
        metadata: More about it, read only, a copy.
        operation_depth: How many contexts this one is inside of, at most ``MAX_DEPTH``.
        parent_request_id: The request that it is a part of, or None.
    """

    user_id: str = attrs.field(validator=_id)
    thread_id: str = attrs.field(validator=_id)
    run_id: str = attrs.field(validator=_id)
    db_session: Any = attrs.field(default=None, eq=False)
    request_id: str = attrs.field(factory=lambda: str(uuid.uuid4()), validator=_plain_id)
    websocket_connection_id: str | None = attrs.field(default=None, validator=_plain_id)
    created_at: datetime = attrs.field(factory=lambda: datetime.now(UTC))
    metadata: Mapping[str, Any] = attrs.field(factory=dict, converter=_frozen_metadata, hash=False)
    operation_depth: int = attrs.field(default=0, validator=_depth)
    parent_request_id: str | None = attrs.field(default=None, validator=_plain_id)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.created_at, datetime) or self.created_at.utcoffset() is None:
            raise InvalidContextError("created_at", "expected a datetime with an offset")
        if self.request_id is None:
            raise InvalidContextError("request_id", "expected a text")
        for inner in self.metadata.values():
            if isinstance(inner, UserExecutionContext) and inner.user_id != self.user_id:
                raise ContextIsolationError("metadata", "a context of another user cannot be a part of this one")

    def __repr__(self) -> str:
        return f"<UserExecutionContext {self.request_id} of {self.user_id!r}>"

    @property
    def websocket_client_id(self) -> str | None:
        """The connection it came by, under its later name."""
        return self.websocket_connection_id

    @property
    def isolation_key(self) -> tuple[str, str]:
        """What one manager belongs to: the user, and the connection or else the request."""
        return self.user_id, self.websocket_connection_id or self.request_id

    def create_child_context(
        self, operation_name: str, additional_metadata: Mapping[str, Any] | None = None
    ) -> UserExecutionContext:
        """Return a context for a part of this request: same user, thread and run, a request id of its own.

        Raises:
            InvalidContextError: It would be more than ``MAX_DEPTH`` deep, or an argument is not good.
        """
        name = _checked(operation_name, "operation_name")
        if additional_metadata is not None and not isinstance(additional_metadata, Mapping):
            raise InvalidContextError("additional_metadata", "expected an object or None")
        depth = self.operation_depth + 1
        told = {"operation_name": name, "operation_depth": depth, "parent_request_id": self.request_id}
        return attrs.evolve(
            self,
            request_id=str(uuid.uuid4()),
            created_at=datetime.now(UTC),
            metadata={**self.metadata, **(additional_metadata or {}), **told},
            operation_depth=depth,
            parent_request_id=self.request_id,
        )

    def with_db_session(self, db_session: Any) -> UserExecutionContext:
        """Return the same context with a session of the program's database."""
        return attrs.evolve(self, db_session=db_session)

    def with_websocket_connection(self, connection_id: str) -> UserExecutionContext:
        """Return the same context with the connection it came by.

        Raises:
            InvalidContextError: That is no id.
        """
        return attrs.evolve(self, websocket_connection_id=_checked(connection_id, "websocket_connection_id"))

    def get_correlation_id(self) -> str:
        """Return the first eight characters of the four ids, with colons: enough to find lines of a log."""
        return ":".join(part[:8] for part in (self.user_id, self.thread_id, self.run_id, self.request_id))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for a log, without the session; whether there is one is said."""
        return {
            "user_id": self.user_id,
            "thread_id": self.thread_id,
            "run_id": self.run_id,
            "request_id": self.request_id,
            "websocket_connection_id": self.websocket_connection_id,
            "created_at": self.created_at.isoformat(),
            "metadata": dict(self.metadata),
            "operation_depth": self.operation_depth,
            "parent_request_id": self.parent_request_id,
            "has_db_session": self.db_session is not None,
        }


def checked_context(value: object) -> UserExecutionContext:
    """Return a user's context.

    Raises:
        InvalidContextError: It is something else.
    """
    if not isinstance(value, UserExecutionContext):
        raise InvalidContextError("user_context", f"expected a UserExecutionContext, got {type(value).__name__}")
    return value
