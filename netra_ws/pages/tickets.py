"""``/ws/ticket``: a one-use ticket for whoever has a token, also for scripts of allowed origins (CORS)."""

from __future__ import annotations

import attrs

from netra_ws.errors import Refused
from netra_ws.wire.head import Head, Reply, json_reply

from .sources import Sources

#: Seconds for which a browser need not ask again whether it may; short, since the list of origins may change.
PREFLIGHT_S = 600
_FRESH = (("Cache-Control", "no-store"),)


@attrs.frozen
class TicketDesk:
    """Gives tickets."""

    sources: Sources

    async def page(self, head: Head, body: bytes) -> Reply:
        """Answer a POST with a ticket, and OPTIONS with what a browser wants to know before it.

        A refusal is readable for the page as well, unless it is its origin that is refused.

        Raises:
            Refused: 401 or what the program's own rule says, 403 ``ORIGIN_…``, 429, or 503 where
                nobody gets a ticket.
        """
        sources = self.sources
        if head.method == "OPTIONS":
            # A preflight carries no token, so it counts against no budget but that of its origin.
            sources.admission.check_origin(head, sources.clock(), head.peer)
            return Reply(200, headers=(("Allow", "OPTIONS, POST"), *_FRESH, *_preflight(head)))
        try:
            # Not for a ticket: half a minute would last for ever.
            identity = await sources.identify(head, tickets=False)
            issued = sources.admission.issue_ticket(identity, sources.clock())
        except Refused as refused:
            if not refused.code.startswith("ORIGIN_"):
                refused.headers = (*refused.headers, *_FRESH, *_cors(head))
            raise
        fields = {"ticket": issued.ticket, "expires_at": issued.expires_at, "single_use": True}
        return json_reply(200, fields, (*_FRESH, *_cors(head)))


def _cors(head: Head) -> tuple[tuple[str, str], ...]:
    """Return what lets a page read the answer; only for origins that passed."""
    origin = head.origin
    if origin is None:
        return (("Vary", "Origin"),)
    return (("Access-Control-Allow-Origin", origin), ("Vary", "Origin"))


def _preflight(head: Head) -> tuple[tuple[str, str], ...]:
    return (
        *_cors(head),
        ("Access-Control-Allow-Methods", "POST"),
        ("Access-Control-Allow-Headers", "Authorization, Content-Type"),
        ("Access-Control-Max-Age", str(PREFLIGHT_S)),
    )
