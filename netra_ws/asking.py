"""Who is it? The one way to find out, for sockets, pages and renewals alike: by token, by ticket, or by a
program's own rule."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import trio

from netra_ws.access import Admission
from netra_ws.agents.failures import leaves
from netra_ws.errors import Refused
from netra_ws.identity import Identity
from netra_ws.measures import memory_bytes
from netra_ws.wire.door import Admit, Identify
from netra_ws.wire.head import Head
from netra_ws.wire.pump import Renew

logger = logging.getLogger(__name__)

Authenticate = Callable[[Head], Awaitable[Identity]]
#: Returns when the public keys that are on their way have come, or did not in time.
News = Callable[[], Awaitable[None]]

#: What can stand in an ``Authorization`` header.
_TOKEN = re.compile(r"[\x21-\x7e]+")


async def _no_news() -> None:
    """Stand for a server without public keys."""


def make_identify(
    admission: Admission,
    authenticate: Authenticate | None,
    clock: Callable[[], float],
    patience_s: float,
    news: News = _no_news,
) -> Identify:
    """Return the one way to find out who sent a head, for sockets and pages alike.

    Args:
        authenticate: The program's own rule, which says who it is instead of a token; tickets stay.
        patience_s: Seconds that the rule has.
        news: Waits, within bounds, for public keys that may be on their way.
    """

    async def identify(head: Head, *, tickets: bool = True) -> Identity:
        admission.screen(head, clock(), head.peer)
        if authenticate is None or (tickets and head.query.get("ticket")):
            if admission.lacks_key(head, tickets=tickets):
                await news()
            return admission.identify(head, clock(), head.peer, tickets=tickets)
        return await _ask_and_note(admission, authenticate, head, clock, patience_s)

    return identify


async def _ask_and_note(
    admission: Admission, authenticate: Authenticate, head: Head, clock: Callable[[], float], patience_s: float
) -> Identity:
    asked_at = clock()
    try:
        identity = await _ask(authenticate, head, patience_s)
    except Refused as refused:
        admission.note_failure(refused, clock(), head.peer)
        raise
    admission.note_success(identity, clock(), head.peer, asked_at)
    return identity


async def _ask(authenticate: Authenticate, head: Head, patience_s: float) -> Identity:
    """Ask a program's own rule.

    Raises:
        Refused: What the rule raised, also inside groups; 503 ``UNAVAILABLE`` when it takes too long,
            500 ``INTERNAL`` when it fails.
    """
    try:
        with trio.move_on_after(patience_s):
            identity = await authenticate(head)
            if not isinstance(identity, Identity):
                raise TypeError("authenticate must return an Identity")
            return identity
    except (trio.Cancelled, KeyboardInterrupt):
        raise
    except BaseException as exc:  # the program's code, which may fail in any way: sys.exit() is no reason to end us
        causes = leaves(exc)
        faults = [cause for cause in causes if not isinstance(cause, trio.Cancelled | KeyboardInterrupt)]
        # Told here also when it failed while it was cancelled: else it would be logged with its text.
        refused = _refusal_of(faults)
        if len(faults) < len(causes):
            raise _stops(exc) from None
        # One object raised again and again would collect the frames of all who were refused.
        raise refused.with_traceback(None) from None
    logger.error("authenticate did not answer within %g s", patience_s)
    raise Refused(503, "UNAVAILABLE", "The server cannot tell now who you are.", retry_after_s=2)


def _stops(exc: BaseException) -> BaseException:
    """Return what of a group is no failure but has to go on: being cancelled, Ctrl-C."""
    assert isinstance(exc, BaseExceptionGroup)
    stops = exc.subgroup((trio.Cancelled, KeyboardInterrupt))
    return exc if stops is None else stops


def _refusal_of(causes: list[BaseException]) -> Refused:
    refused = next((cause for cause in causes if isinstance(cause, Refused)), None)
    if refused is not None:
        return refused
    correlation_id = secrets.token_hex(4)
    # Neither text nor lines of the traceback: they may quote the head, and with it a cookie or a token.
    for cause in causes[:3]:
        frames = traceback.extract_tb(cause.__traceback__)
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
        logger.error("authenticate failed with %s at %s [%s]", type(cause).__qualname__, where, correlation_id)
    return Refused(500, "INTERNAL", f"The server failed; its log has it under {correlation_id}.")


def make_admit(admission: Admission, identify: Identify, clock: Callable[[], float], high: int | None) -> Admit:
    """Return what decides who comes in; a ticket is used up when its bearer has got a seat.

    Args:
        high: Bytes of memory above which nobody comes in, or None.
    """

    @asynccontextmanager
    async def admit(head: Head) -> AsyncIterator[Identity]:
        if high is not None and memory_bytes() > high:
            raise Refused(503, "OVERLOADED", "The server has no memory for more connections.", retry_after_s=5)
        identity = await identify(head)
        ticket = admission.ticket_of(head)
        # From the look at the ticket to here nobody else had a turn.
        with contextlib.nullcontext() if ticket is None else admission.tickets.use(ticket, clock()):
            yield identity

    return admit


def make_renew(
    admission: Admission,
    authenticate: Authenticate | None,
    clock: Callable[[], float],
    patience_s: float,
    news: News = _no_news,
) -> Renew:
    """Return what says who a new token of a connected client stands for.

    It is judged as if it had come in the ``Authorization`` header of the client's upgrade; so is it by a program
    that authenticates in its own way.
    """

    async def renew(head: Head, token: str) -> Identity:
        if not _TOKEN.fullmatch(token):  # else the next carrier would be looked at: that of the old token
            raise Refused(401, "TOKEN_INVALID", "The token is not valid: it has characters that no token has.")
        admission.addresses.check_failures(head.peer, clock())  # nobody guesses here what they may not at the door
        others = [(name, value) for name, value in head.headers if name != b"authorization"]
        head = attrs.evolve(head, headers=[(b"authorization", b"Bearer " + token.encode()), *others], query={})
        if authenticate is None:
            if admission.lacks_key(head):
                await news()
            return admission.identify(head, clock(), head.peer)
        return await _ask_and_note(admission, authenticate, head, clock, patience_s)

    return renew
