"""What a stream of the server says, passed on to the sockets of a program's own, in the older envelope."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import attrs
import trio

from netra_ws.errors import ClientError, StoreError
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import Announcement

from .failures import FailureKind
from .structures import ServerMessage

if TYPE_CHECKING:  # programs that bring their own sockets need no server
    from netra_ws.contexts.reading import Events

logger = logging.getLogger(__name__)

#: Seconds until the stream is read again when the store did not answer.
RETRY_S = 1.0

PassOn = Callable[[Mapping[str, Any]], Awaitable[None]]


def older_form(heard: Heard) -> Mapping[str, Any]:
    """Return an event as it is on the wire, and once more under ``payload``, there with its older names, too."""
    return {**heard.fields, "payload": dict(ServerMessage.from_event(heard).data)}


@attrs.define(eq=False)
class Following:
    """How far a stream was passed on.

    Attributes:
        reached: Everything up to this seq was passed on, or was not for these sockets.
        ready: Set when what comes from now on is passed on, or never will be.
        failure: Why it never will be.
    """

    reached: int = 0
    ready: trio.Event = attrs.field(factory=trio.Event)
    failure: ClientError | StoreError | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _turn: trio.Lock = attrs.field(factory=trio.Lock)
    _own: set[int] = attrs.field(factory=set)
    _moved: trio.Event = attrs.field(factory=trio.Event)

    async def run(self, events: Callable[[], AbstractAsyncContextManager[Events]], pass_on: PassOn) -> None:
        """Pass on what is said from now on, until nothing more will be said, or ``scope`` is cancelled.

        What was said by ``speak`` is left out.
        """
        try:
            with self.scope:
                while not await self._pass_all_on(events, pass_on):
                    pass
        except (ClientError, StoreError) as exc:
            self.failure = exc
        finally:
            self.ready.set()

    async def _pass_all_on(self, events: Callable[[], AbstractAsyncContextManager[Events]], pass_on: PassOn) -> bool:
        """Pass on what *events* gives; return whether that was all, and not only what the store still had."""
        async with events() as heard_by:
            self.ready.set()
            while True:
                try:
                    heard = await anext(heard_by)
                except StopAsyncIteration:
                    return True
                except StoreError as exc:
                    logger.warning("events for sockets wait for the store: %s", exc)
                    await trio.sleep(RETRY_S)
                    continue
                except ClientError:  # the store has removed what came next
                    return False
                assert heard.stamp is not None
                if not await self._is_own(heard, heard.stamp.seq):
                    await pass_on(older_form(heard))
                self.reached = heard.stamp.seq
                self._moved.set()
                self._moved = trio.Event()

    async def speak(self, say: Callable[[], Awaitable[int | FailureKind]]) -> int | FailureKind:
        """Say something on the stream that is sent to the sockets by another way."""
        async with self._turn:  # else it might be passed on before it is known whose it is
            said = await say()
            if not isinstance(said, FailureKind):
                self._own.add(said)
            return said

    async def _is_own(self, heard: Heard, seq: int) -> bool:
        if not isinstance(heard.message, Announcement):
            return False
        async with self._turn:
            own = seq in self._own
            self._own.discard(seq)
            return own

    async def wait(self, seq: int) -> None:
        """Wait until everything up to *seq* was passed on."""
        while self.reached < seq:
            await self._moved.wait()
