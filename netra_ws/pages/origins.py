"""``/ws/unblock``: an operator lifts the blocks of an origin, of an address, or of both together."""

from __future__ import annotations

import json

import attrs

from netra_ws.errors import Refused
from netra_ws.wire.head import Head, Reply, json_reply

from .sources import FRESH, Sources

#: Longer than any origin a browser sends.
MAX_TEXT = 1024


@attrs.frozen
class Unblock:
    """Forgets strikes."""

    sources: Sources

    async def page(self, head: Head, body: bytes) -> Reply:
        """Answer ``{"unblocked": n}``: how many blocks there were.

        Raises:
            Refused: 400 when the body names nothing that could be blocked; 401, 403 or 429 when it is no
                operator who asks.
        """
        sources = self.sources
        await sources.operator(head)
        origin, address = _read(body)
        return json_reply(200, {"unblocked": sources.admission.unblock(origin, address, sources.clock())}, FRESH)


def _read(body: bytes) -> tuple[str | None, str | None]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "INVALID_JSON", "The body is not JSON.") from None
    if not isinstance(fields, dict) or not fields or not fields.keys() <= {"origin", "address"}:
        raise Refused(400, "INVALID_MESSAGE", "The body is a JSON object with origin, address or both.")
    for name, text in fields.items():
        if not isinstance(text, str) or not 0 < len(text) <= MAX_TEXT:
            raise Refused(400, "INVALID_MESSAGE", f"{name} is not text of 1 to {MAX_TEXT} characters.")
    return fields.get("origin"), fields.get("address")
