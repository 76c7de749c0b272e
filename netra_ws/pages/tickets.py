"""``/ws/ticket``: a one-use ticket for whoever has a token, also for scripts of allowed origins (CORS).

At its older address, ``/websocket/ticket``, a body may name fewer permissions, and the answer has the older names, too.
"""

from __future__ import annotations

import json
from typing import Any

import attrs

from netra_ws.access.tickets import Issued
from netra_ws.errors import Refused
from netra_ws.identity import Identity
from netra_ws.wire.head import Head, Reply, json_reply, refusal
from netra_ws.wire.paths import meant_by

from .sources import FRESH, Sources

#: Seconds for which a browser need not ask again whether it may; short, since the list of origins may change.
PREFLIGHT_S = 600
_MAY = (
    ("Access-Control-Allow-Methods", "POST"),
    ("Access-Control-Allow-Headers", "Authorization, Content-Type"),
    ("Access-Control-Max-Age", str(PREFLIGHT_S)),
)


@attrs.frozen
class TicketDesk:
    """Gives tickets."""

    sources: Sources

    async def page(self, head: Head, body: bytes) -> Reply:
        """Answer a POST with a ticket, and OPTIONS with what a browser wants to know before it.

        A refusal is readable for the page as well, unless it is its origin that is refused.

        Raises:
            Refused: 403 ``ORIGIN_…``; every other refusal is an answer.
        """
        sources = self.sources
        if head.method == "OPTIONS":
            # A preflight carries no token, so it counts against no budget but that of its origin.
            sources.admission.check_origin(head, sources.clock(), head.peer)
            return Reply(200, headers=(("Allow", "OPTIONS, POST"), *FRESH, *_MAY, *self._cors(head)))
        try:
            # Not for a ticket: half a minute would last for ever.
            identity = await sources.identify(head, tickets=False)
            older = head.path != meant_by(head.path)
            if older:
                identity = _narrowed(identity, body)
            issued = sources.admission.issue_ticket(identity, sources.clock())
        except Refused as refused:
            if refused.code.startswith("ORIGIN_"):
                raise
            answer = refusal(refused)  # a copy: a program's own rule may raise the same object every time
            return attrs.evolve(answer, headers=(*answer.headers, *FRESH, *self._cors(head)))
        fields = {"ticket": issued.ticket, "expires_at": issued.expires_at, "single_use": True}
        if older:
            fields |= _older_words(issued, sources.clock())
        return json_reply(200, fields, (*FRESH, *self._cors(head)))

    def _cors(self, head: Head) -> tuple[tuple[str, str], ...]:
        """Return what lets a page read the answer; only for origins that passed."""
        if head.origin is None:
            return (("Vary", "Origin"),)
        allowed = (("Access-Control-Allow-Origin", head.origin), ("Vary", "Origin"))
        if self.sources.admission.verifier is None:  # a program's own rule may know its users by cookies
            return (*allowed, ("Access-Control-Allow-Credentials", "true"))
        return allowed


def _narrowed(identity: Identity, body: bytes) -> Identity:
    """Return who the ticket shall stand for: with ``permissions`` in the body, with those of them that they have.

    What else the older system let a client choose is decided here: ``ttl_seconds`` changes nothing.

    Raises:
        Refused: 400 for what is no such wish, and for a ticket of more than one use, which there is not.
    """
    try:
        wish = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        raise Refused(400, "INVALID_JSON", "The body is not JSON.") from None
    if not isinstance(wish, dict):
        raise Refused(400, "INVALID_MESSAGE", "The body is not a JSON object.")
    if wish.get("single_use") not in (None, True):
        raise Refused(400, "INVALID_MESSAGE", "single_use: tickets are good for one use.")
    permissions = wish.get("permissions")
    if permissions is None:
        return identity
    if not isinstance(permissions, list) or not all(isinstance(word, str) for word in permissions):
        raise Refused(400, "INVALID_MESSAGE", "permissions: expected a list of text.")
    return attrs.evolve(identity, permissions=identity.permissions.intersection(permissions))


def _older_words(issued: Issued, now: float) -> dict[str, Any]:
    return {
        "ticket_id": issued.ticket,
        "created_at": now,
        "ttl_seconds": max(0, round(issued.expires_at - now)),
        "websocket_url": f"/ws?ticket={issued.ticket}",
    }
