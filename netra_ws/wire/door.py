"""The listener: accepts, reads the head, and shows each client to a page or to its user's context.

Three life spans, each inside the one before: the door, which has an accept loop per listener; one
handshake task per client, under a deadline; and the connection itself, which is no child of the
door: its task lives in the user's nursery.

Accepting goes on when the process has no descriptors left (EMFILE, ENFILE, ENOMEM, ENOBUFS): who comes is
told so with the spare one (``crowd.py``); without it the loop waits a moment, since the listener stays
readable. Either is counted. Any other error of ``accept`` is ours.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Protocol

import attrs
import trio

from netra_ws.access import AddressTable, Proxies, choose_subprotocol, is_older_client, offered_subprotocols
from netra_ws.contexts.registry import Owner
from netra_ws.errors import Refused, StoreError
from netra_ws.identity import Identity
from netra_ws.protocol.values import read_id, read_position, split_position

from .arrival import Arrival
from .certificates import Certificates
from .crowd import Crowd, Spare
from .head import Head, Reply, Request, check_upgrade, json_reply, method_refused, refusal
from .paths import ECHO_PATH, POSTED, READ, SHARED, SOCKET_PATHS, meant_by
from .pump import Admitted, Wiring, serve_socket
from .refusals import Refusals
from .tls import end_and_drain

logger = logging.getLogger(__name__)

#: Seconds of waiting when no descriptor is left, and between two lines of the log about it.
BACKOFF_S = 0.1
TELL_EVERY_S = 10.0
#: Seconds for a client that is turned away to send its head, and again to go: others wait behind it.
TURNED_AWAY_S = 0.25
#: Seconds for a client to take its HTTP answer and go.
GOODBYE_S = 1.0
_OUT_OF_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

#: The address of a client that has reset its connection already.
_GONE = "?"
#: A position in an address; its seq may be larger than any that JSON can say, then it is the largest.

Page = Callable[[Head, bytes], Awaitable[Reply]]
#: Who sent a head; leaving the block without an error says that they have their seat.
Admit = Callable[[Head], AbstractAsyncContextManager[Identity]]


class Identify(Protocol):
    """Finds out who sent a head, under the budgets of its address."""

    async def __call__(self, head: Head, *, tickets: bool = True) -> Identity:
        """Return who it is; a ticket, where it is a carrier at all, stays as it is.

        Raises:
            Refused: 401, 403 or 429, or what a program's own rule says.
        """
        ...


@attrs.define(repr=False)
class Door:
    """Who may come in, and what else is shown.

    Attributes:
        pages: Path → page; the page gets the head and the body of a POST.
        addresses: How many connections an address may open.
        echo: Whether ``/ws/echo`` exists.
        proxies: Whose word about a client is believed.
        certificates: Makes the port speak TLS.
        strict_s: Seconds for which clients that came by TLS are told to come so only; 0: not told.
        outcomes: How attempts to open a socket ended: ``accepted``, the code of the
            refusal, ``tls_failed``, ``proxy_failed``, ``handshake_timeout`` or, where places were few,
            ``handshake_hurried``; or ``accept_error`` where the system had no room for one. Heads and bodies
            that could not be read count as such attempts, and what was refused unread because its address had asked
            too often: nobody knows what they were meant to be.
    """

    wiring: Wiring
    owner: Owner
    admit: Admit
    pages: Mapping[str, Page]
    handshake_s: float
    addresses: AddressTable
    echo: bool = False
    proxies: Proxies = attrs.field(factory=Proxies)
    certificates: Certificates | None = None
    strict_s: int = 0
    outcomes: Counter[str] = attrs.field(factory=Counter)
    crowd: Crowd = attrs.field(factory=Crowd)
    refusals: Refusals = attrs.field(init=False)
    _arrival: Arrival = attrs.field(init=False)
    _own_way: Arrival = attrs.field(init=False)
    _told_at: float = float("-inf")

    def __attrs_post_init__(self) -> None:
        self.refusals = Refusals(self.outcomes)
        self._arrival = Arrival(self.proxies, self.certificates, self.outcomes, self._count_for)
        self._own_way = Arrival(Proxies(), None, self.outcomes, self._count_for)

    async def run(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept until cancelled; handshakes that are under way are cancelled with it."""
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(self._accept, listener, nursery)
            task_status.started()

    async def _accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        spare = Spare()
        try:
            while True:
                token = object()
                await self.crowd.places.acquire_on_behalf_of(token)
                try:
                    stream = await listener.accept()
                except BaseException as exc:
                    self.crowd.places.release_on_behalf_of(token)
                    if not isinstance(exc, OSError) or exc.errno not in _OUT_OF_ROOM:
                        raise
                    self._out_of_room(exc)
                    if not await self._turn_away(listener, spare):
                        await trio.sleep(BACKOFF_S)
                else:
                    nursery.start_soon(self._greet, stream, token)
        finally:
            spare.close()

    def _out_of_room(self, exc: OSError) -> None:
        self.outcomes["accept_error"] += 1
        now = trio.current_time()
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            count = self.outcomes["accept_error"]
            logger.error("cannot accept connections: %s; %d so far, trying again", exc.strerror or exc, count)

    async def _turn_away(self, listener: trio.SocketListener, spare: Spare) -> bool:
        """Answer one client with 503 on the spare descriptor; return whether that was possible."""
        if not spare.give_up():
            spare.keep()
            return False
        try:
            with trio.move_on_after(BACKOFF_S):
                try:
                    stream = await listener.accept()
                except OSError:
                    return False  # somebody else was quicker
                await self._refuse(stream)
                return True
            return False  # the client has gone
        finally:
            spare.keep()

    async def _refuse(self, stream: trio.SocketStream) -> None:
        with trio.CancelScope(shield=True):
            request = Request(stream, _peer(stream))
            try:
                with contextlib.suppress(Refused), trio.move_on_after(TURNED_AWAY_S):
                    if not await self._arrival.prepare(request):
                        return
                    await request.head()
                if not self._arrival.can_answer(request):
                    return
                full = Refused(503, "OVERLOADED", "The server has no room for more connections.", retry_after_s=5)
                with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(TURNED_AWAY_S):
                    await request.answer(refusal(full))
            except trio.BrokenResourceError:
                pass
            finally:
                await _see_off(request.stream, TURNED_AWAY_S)

    async def _greet(self, stream: trio.SocketStream, token: object) -> None:
        try:
            await self._meet(Request(stream, _peer(stream), strict_s=self.strict_s), self._arrival)
        finally:
            self.crowd.places.release_on_behalf_of(token)

    async def greet(self, stream: trio.abc.Stream, peer: str) -> None:
        """Serve one client that came another way than by the port; as ``_meet``."""
        await self._meet(Request(stream, peer, isinstance(stream, trio.SSLStream), self.strict_s), self._own_way)

    def _count_for(self, address: str) -> Refused | None:
        if address == _GONE:
            return None
        try:
            self.addresses.meet(address, self.wiring.clock())
        except Refused as refused:
            return refused.with_traceback(None)
        return None

    async def _meet(self, request: Request, arrival: Arrival) -> None:
        """Serve one client up to its answer or its seat; whatever it does, nothing is raised."""
        head: Head | None = None
        handed_over = hurried = unheard = False
        began = trio.current_time()
        self.crowd.under_way += 1
        try:
            with trio.move_on_after(self.handshake_s) as scope:
                try:
                    head = await self._hear(request, arrival, scope)
                    handed_over = head is not None and await self._show(request, head, scope)
                except Refused as refused:
                    self._tell(refused, request, head)
                    if arrival.can_answer(request):
                        await request.answer(refusal(refused))
                    else:
                        unheard = True
            if scope.cancelled_caught:
                hurried = scope.deadline < began + self.handshake_s
                self.outcomes["handshake_hurried" if hurried else "handshake_timeout"] += 1
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except Exception:  # a bug of ours must not close the door
            correlation_id = secrets.token_hex(4)
            logger.exception("request failed [%s]", correlation_id)
            with trio.move_on_after(GOODBYE_S):
                await _try_answer(request, correlation_id)
        finally:
            if not handed_over:
                # Who gets no answer has none to wait for in a place that others need.
                await _see_off(request.stream, 0.0 if hurried or unheard else GOODBYE_S)
            self.crowd.under_way -= 1

    async def _hear(self, request: Request, arrival: Arrival, scope: trio.CancelScope) -> Head | None:
        """Return the head of a client that may go on; None of one that has gone."""
        try:
            with self.crowd.waiting(scope):
                if not await arrival.prepare(request):
                    return None
                head = await request.head()
            return None if head is None else arrival.believe(request, head)
        except Refused as refused:
            self.refusals.count(refused)  # whatever it was meant to be
            raise

    def _tell(self, refused: Refused, request: Request, head: Head | None) -> None:
        if refused.status in (404, 405):
            return  # who looks for what is not here was not kept from anything
        if head is None:
            self.refusals.tell(refused, request.peer, "…")
            return
        path = meant_by(head.path)
        ours = path in self.pages or path in SOCKET_PATHS or path == ECHO_PATH
        origins = [value for name, value in head.headers if name == b"origin"]
        about_origin = refused.code in ("ORIGIN_REFUSED", "ORIGIN_BLOCKED")
        self.refusals.tell(refused, head.peer, head.path if ours else "…", origins if about_origin else None)

    async def _show(self, request: Request, head: Head, scope: trio.CancelScope) -> bool:
        """Answer a page, or seat a socket; return whether the stream belongs to somebody else now."""
        if meant_by(head.path) in SOCKET_PATHS or (self.echo and head.path == ECHO_PATH):
            try:
                await self._seat(request, head)
            except Refused as refused:
                self.refusals.count(refused)
                raise
            self.outcomes["accepted"] += 1
            return True
        await request.answer(await self._page(request, head, scope))
        return False

    async def _page(self, request: Request, head: Head, scope: trio.CancelScope) -> Reply:
        path = meant_by(head.path)
        page = self.pages.get(path)
        if page is None:
            raise Refused(404, "NOT_FOUND", "There is nothing at this address.")
        allowed = POSTED.get(path, READ)
        if head.method not in allowed:
            raise method_refused(*allowed)
        if head.method == "OPTIONS" and path not in SHARED:
            return Reply(200, headers=(("Allow", ", ".join(allowed)),))
        body = b""
        if head.method == "POST":
            try:
                with self.crowd.waiting(scope):
                    body = await request.body()
            except Refused as refused:
                self.refusals.count(refused)
                raise
        return await page(head, body)

    async def _seat(self, request: Request, head: Head) -> None:
        check_upgrade(head)
        head = attrs.evolve(head, rest=request.rest())
        at = self.wiring.clock()
        async with self.admit(head) as identity:
            offered = offered_subprotocols(head.headers)
            admitted = Admitted(
                identity=identity,
                head=head,
                subprotocol=choose_subprotocol(offered),
                resume=_read_resume(head.query.get("resume")),
                thread_id=_read_thread(head.query.get("thread_id")),
                older=is_older_client(offered),
                echo=head.path == ECHO_PATH,
                at=at,
            )
            try:
                await self.owner.seat(identity, partial(serve_socket, self.wiring, admitted, request.stream))
            except StoreError as exc:
                logger.error("no seat for a client: %s", exc)
                raise Refused(503, "UNAVAILABLE", "The store does not answer.", retry_after_s=2) from None


def _read_resume(value: str | None) -> tuple[str, int] | None:
    if value is None:
        return None
    try:
        return split_position(read_position(value))
    except (TypeError, ValueError):
        raise Refused(400, "BAD_REQUEST", "resume is not <epoch>:<seq>.") from None


def _read_thread(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return read_id(value)
    except (TypeError, ValueError):
        raise Refused(400, "BAD_REQUEST", "thread_id is not the id of a thread.") from None


def _peer(stream: trio.SocketStream) -> str:
    try:
        address = stream.socket.getpeername()
    except OSError:
        return _GONE  # the next read will say so
    return str(address[0]) if isinstance(address, tuple) else "local"


async def _try_answer(request: Request, correlation_id: str) -> None:
    text = f"The server failed; its log has it under {correlation_id}."
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await request.answer(json_reply(500, {"code": "INTERNAL", "error": text}))


async def _see_off(stream: trio.abc.Stream, patience_s: float = GOODBYE_S) -> None:
    """Close so that the answer arrives."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + patience_s):
        await end_and_drain(stream)
    with trio.CancelScope(shield=True):
        await trio.aclose_forcefully(stream)
