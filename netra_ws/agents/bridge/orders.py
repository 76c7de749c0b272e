"""What the asyncio side of a run wants done on the Trio side, in a bounded queue between the two threads."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from netra_ws.errors import RunClosed

from ..asyncio_thread import MAX_CHARS, MAX_ORDERS
from .post import Post

if TYPE_CHECKING:
    from .loop import Loop


@attrs.define(eq=False)
class Order:
    """Something to be done on the Trio side.

    Attributes:
        work: Does it.
        reply: Where the asyncio side waits: gets what *work* returned and what it raised.
        apart: Whether it has a task of its own, so that others need not wait for it.
        urgent: Whether it is done also when the run is being cancelled.
        context: Of whoever ordered it.
        scope: Cancels work that is done apart.
    """

    work: Callable[[], Awaitable[Any]]
    reply: asyncio.Future[tuple[Any, BaseException | None]]
    _to_asyncio: Post
    apart: bool = False
    urgent: bool = False
    context: contextvars.Context = attrs.field(factory=contextvars.copy_context)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def answer(self, value: Any, error: BaseException | None = None) -> None:
        """Tell the asyncio side, from Trio's thread; the first answer counts."""
        self._to_asyncio.send(partial(self._set, value, error))

    def refuse(self) -> None:
        """Tell the asyncio side that it will not be done, since the run is being cancelled."""
        self.answer(None, asyncio.CancelledError("the run is being cancelled"))

    def _set(self, value: Any, error: BaseException | None) -> None:
        if not self.reply.done():
            self.reply.set_result((value, error))


@attrs.define(eq=False)
class Orders:
    """The queue: orders, and text to be said as plain ``str``.

    ``put``, ``room`` and ``make_room`` are for the loop's thread, ``take``, ``news`` and ``close`` for Trio's.
    """

    _loop: Loop
    _lock: threading.Lock = attrs.field(factory=threading.Lock)
    _waiting: deque[Order | str] = attrs.field(factory=deque)
    _chars: int = 0
    _closed: bool = False
    _asleep: bool = False
    _wake: trio.Event = attrs.field(factory=trio.Event)
    _crowded: bool = False
    _speakers: list[asyncio.Future[None]] = attrs.field(factory=list)

    def put(self, order: Order | str) -> None:
        """Append an order; the caller has waited for room, unless it cannot wait.

        Raises:
            RunClosed: Nobody takes orders any more.
        """
        with self._lock:
            if self._closed:
                raise RunClosed("the run has ended")
            self._waiting.append(order)
            if isinstance(order, str):
                self._chars += len(order)
            asleep, self._asleep = self._asleep, False
        if asleep:
            self._loop.to_trio.send(self.look_again)

    async def room(self) -> None:
        """Wait until there is room; a schedule point only if there is none.

        Several who wait are woken together, in the order in which they came; some may have to wait again.
        """
        while not self._has_room():
            speaker: asyncio.Future[None] = self._loop.events.create_future()
            self._speakers.append(speaker)
            await speaker

    def _has_room(self) -> bool:
        with self._lock:
            free = len(self._waiting) < MAX_ORDERS and self._chars < MAX_CHARS
            self._crowded = self._crowded or not free
            return free

    def take(self) -> deque[Order | str]:
        """Return what there is, in its order; where there is nothing, ``news`` tells when to look again."""
        with self._lock:
            taken, self._waiting, self._chars = self._waiting, deque(), 0
            crowded, self._crowded = self._crowded, False
            if not taken:
                self._asleep, self._wake = True, trio.Event()
        if crowded:
            self._loop.to_asyncio.send(self.make_room)
        return taken

    def make_room(self) -> None:
        """Let those who wait for room look again. The loop's side."""
        speakers, self._speakers = self._speakers, []
        for speaker in speakers:
            if not speaker.done():
                speaker.set_result(None)

    def close(self) -> None:
        """Let nobody put more; what is there can still be taken."""
        with self._lock:
            self._closed = True

    async def news(self) -> None:
        """Wait for an order behind a ``take`` that found none, or for ``look_again``."""
        await self._wake.wait()

    def look_again(self) -> None:
        """End the wait for ``news``; in Trio's thread."""
        self._wake.set()

    def order(self, work: Callable[[], Awaitable[Any]], *, apart: bool = False, urgent: bool = False) -> Order:
        """Return a new order, which is not in the queue yet."""
        return Order(work, self._loop.events.create_future(), self._loop.to_asyncio, apart, urgent)
