"""``POST /ws/kick``: what the command ``kick`` does, for programs that hold no socket."""

from __future__ import annotations

import attrs
import orjson
import trio

from netra_ws.contexts.kicking import Whom
from netra_ws.errors import ClientError, Refused
from netra_ws.protocol.codec import read_command
from netra_ws.protocol.commands import Kick
from netra_ws.wire.head import Head, Reply, json_reply

from .sources import FRESH, Sources

#: HTTP status of what may be wrong with a kick that was understood.
_STATUS = {"QUOTA_EXCEEDED": 507, "CANCEL_TIMEOUT": 504, "UNAVAILABLE": 503}
#: How much of the time that a request has left may go by before it is answered without the proof.
_PROOF_SHARE = 0.75


@attrs.frozen
class KickPage:
    """Signs users out for operators."""

    sources: Sources

    async def page(self, head: Head, body: bytes) -> Reply:
        """Answer with what was ended, when it has ended.

        Raises:
            Refused: 400 for a body that is no kick; 401, 403 or 429 for who asks; 503, 504 or 507 where something
                of it could not be done, or could not be proven while a request may last.
        """
        operator = await self.sources.operator(head)
        kick = _read(body)
        proof = self.sources.registry.kick(Whom(kick.user_id, kick.jti, kick.reason, operator.user_id))
        left_s = max(0.0, trio.current_effective_deadline() - trio.current_time())  # none, when it is cancelled already
        kicked = None
        try:
            with trio.move_on_after(_PROOF_SHARE * left_s):
                kicked = await proof()
        except ClientError as error:
            raise Refused(_STATUS.get(error.code, 500), error.code, error.text) from None
        if kicked is None:
            raise Refused(503, "UNAVAILABLE", "It was begun, but the proof takes longer than a request may.")
        fields = {"type": "ack", **attrs.asdict(kicked), "timestamp": self.sources.clock()}
        return json_reply(200, fields, FRESH)


def _read(body: bytes) -> Kick:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Refused(400, "INVALID_JSON", "The body is not JSON.") from None
    if not isinstance(fields, dict):
        raise Refused(400, "INVALID_MESSAGE", "The body is not a JSON object.")
    try:
        text = orjson.dumps({**fields, "type": "kick"}).decode()
    except orjson.JSONEncodeError:  # it reads deeper than it writes
        raise Refused(400, "INVALID_MESSAGE", "The body is nested too deep.") from None
    incoming = read_command(text)
    if incoming.error is not None:
        raise Refused(400, incoming.error.code, incoming.error.text)
    if not isinstance(incoming.command, Kick):  # JSON-RPC names its method itself
        raise Refused(400, "INVALID_MESSAGE", "The body is no kick.")
    return incoming.command
