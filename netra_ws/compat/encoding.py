"""A message as it goes to sockets: made JSON once, whoever gets it."""

from __future__ import annotations

from typing import Any

import attrs
import orjson

from netra_ws.errors import InvalidArgument

from .arguments import checked_text
from .failures import FailureKind
from .serialising import strict_json


@attrs.frozen
class Encoded:
    """A message as bytes of JSON; whoever wants an object gets one of its own, so nobody changes another's."""

    data: bytes

    @property
    def size(self) -> int:
        """Bytes of JSON."""
        return len(self.data)

    @property
    def text(self) -> str:
        """The JSON text."""
        return self.data.decode()

    @property
    def fields(self) -> dict[str, Any]:
        """The message as a new object."""
        fields: dict[str, Any] = orjson.loads(self.data)
        return fields

    def with_fields(self, **more: object) -> Encoded:
        """Return the message with more fields."""
        return Encoded(orjson.dumps(self.fields | more))


def encode(message: object, most_bytes: int) -> Encoded | FailureKind:
    """Return *message* as JSON, or why it cannot be said: ``NOT_SERIALISABLE`` or ``TOO_LARGE``.

    Raises:
        InvalidArgument: It is no object at all, or its ``type`` is no text.
    """
    try:
        fields = strict_json(message, "message")
    except InvalidArgument:
        return FailureKind.NOT_SERIALISABLE
    if not isinstance(fields, dict):
        raise InvalidArgument("message", f"expected an object, got {type(message).__name__}")
    if "type" in fields:
        checked_text(fields["type"], "message.type")
    encoded = Encoded(orjson.dumps(fields))
    return encoded if encoded.size <= most_bytes else FailureKind.TOO_LARGE
