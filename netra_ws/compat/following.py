"""What a user's stream says, passed on to the sockets of a program's own, in the older envelope."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio

from netra_ws.errors import ClientError, StoreError
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import Announcement

from .structures import ServerMessage

if TYPE_CHECKING:  # programs that bring their own sockets need no server
    from netra_ws.contexts.embedding import UserSession

logger = logging.getLogger(__name__)

#: Seconds until the stream is read again when the store did not answer.
RETRY_S = 1.0


def older_form(heard: Heard) -> Mapping[str, Any]:
    """Return an event as it is on the wire, and once more under ``payload``, there with its older names, too."""
    return {**heard.fields, "payload": dict(ServerMessage.from_event(heard).data)}


@attrs.define(eq=False)
class Following:
    """How far a user's stream was passed on.

    Attributes:
        reached: Everything up to this seq was passed on, or was not for these sockets.
    """

    reached: int = 0
    _moved: trio.Event = attrs.field(factory=trio.Event)

    async def run(self, session: UserSession, pass_on: Callable[[Mapping[str, Any]], Awaitable[None]]) -> None:
        """Pass on what runs and threads say from now on, until cancelled.

        What programs say to the user outside any run is left out: a manager sends that to its sockets itself.
        """
        events = session.events()
        self.reached = session.position.seq
        while True:
            try:
                heard = await anext(events)
            except StoreError as exc:
                logger.warning("events of user=%s wait for the store: %s", session.identity.user_id, exc)
                await trio.sleep(RETRY_S)
                continue
            except ClientError:  # the store has removed what came next
                events = session.events()
                continue
            if not isinstance(heard.message, Announcement):
                await pass_on(older_form(heard))
            assert heard.stamp is not None
            self.reached = heard.stamp.seq
            self._moved.set()
            self._moved = trio.Event()

    async def wait(self, seq: int) -> None:
        """Wait until everything up to *seq* was passed on."""
        while self.reached < seq:
            await self._moved.wait()
