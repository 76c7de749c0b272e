"""How one bridged run crosses between its Trio task and its asyncio tasks.

What the asyncio side wants done are orders, which the run's Trio task does in their order. Text that is
said waits for nothing: it is handed over in batches, so that a token does not cost a turn of both loops;
what goes wrong with it is raised by the next call, or at the end. Everything else waits for its answer.
What may take long (a tool, a question to the user) has a Trio task of its own.

When the run is cancelled, the asyncio side is, too, and the Trio task stays until it has ended, shielded:
it is the keeper of the run (``agents/execution.py``) that bounds this wait, by sealing the run. Until then
each call raises ``CancelledError``, as often as it is made, and after the end ``RunClosed``.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from netra_ws.errors import NetraError, RunClosed, WrongThread

from ..failures import leaves, split
from ..states import CLOSED
from .belongings import Belongings
from .orders import Order, Orders

if TYPE_CHECKING:
    from ..run import Run
    from .loop import Loop

Work = Callable[[], Awaitable[Any]]


@attrs.define(eq=False, repr=False)
class Crossing:
    """The two sides of one run.

    Attributes:
        at_end: Called on Trio's side when the asyncio side has ended.
    """

    run: Run
    loop: Loop
    at_end: list[Callable[[], None]] = attrs.field(factory=list)
    _orders: Orders = attrs.field(init=False)
    _belongings: Belongings = attrs.field(init=False)
    _thread: int | None = None
    #: Taken out of the queue and not done yet.
    _taken: deque[Order | str] = attrs.field(factory=deque)
    _failure: BaseException | None = None
    _stopping: bool = False
    _over: bool = False
    _response: Any = None
    _error: BaseException | None = None

    def __attrs_post_init__(self) -> None:
        self._orders = Orders(self.loop)
        self._belongings = Belongings(self.run, self.submit, lambda: self.loop.to_trio.send(self._end))

    # The asyncio side.

    def _begin(self, work: Work, context: contextvars.Context) -> None:
        self._thread = threading.get_ident()
        self._belongings.start(self._live(work), context)

    async def _live(self, work: Work) -> None:
        try:
            self._response = await work()
        except BaseException as exc:  # the run's outcome, whatever it is: Trio's side raises it
            self._error = exc

    def check(self) -> None:
        """Raise what went wrong with what was said before, or why nothing more can be done.

        Raises:
            WrongThread: Called outside the loop's thread.
            RunClosed: The run has ended.
            asyncio.CancelledError: It is being cancelled.
        """
        if threading.get_ident() != self._thread:
            raise WrongThread(
                "this run belongs to the asyncio loop that its agent runs in; "
                "from another thread use asyncio.run_coroutine_threadsafe(run.say(…), loop)"
            )
        if self._over or self.run.state in CLOSED:
            raise RunClosed(f"{self.run.run_id} has ended")
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if self._stopping:
            raise asyncio.CancelledError(f"{self.run.run_id} is being cancelled")

    async def say(self, piece: str) -> None:
        """Hand a piece of text over; waits only while there is no room."""
        await self._orders.room()
        self.check()
        self._orders.put(piece)

    async def call(self, work: Work, *, apart: bool = False) -> Any:
        """Have *work* done on Trio's side behind everything that was ordered before; return what it returns.

        *Cancellation:* work that is done *apart* is cancelled and waited for; other work is done all the same.
        """
        return await self._order(self._orders.order(work, apart=apart))

    async def open(self, hold: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        """Have something held open on Trio's side; returns when *hold* has called what it is given."""

        def work() -> Awaitable[None]:
            return hold(partial(order.answer, None))

        order = self._orders.order(work, apart=True)
        await self._order(order)

    async def close(self, work: Work) -> Any:
        """Do what ends something that was opened: at once, and also while the run is being cancelled."""
        order = self._orders.order(work, urgent=True)
        self._orders.put(order)
        return await self._answer_to(order)

    def submit(self, fn: Callable[[], Any]) -> Future[Any]:
        """Have blocking code run in a worker thread of the run, which waits for it before it ends."""
        future: Future[Any] = Future()

        async def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(await self.run.thread(fn))
            except BaseException as exc:
                future.set_exception(asyncio.CancelledError() if isinstance(exc, trio.Cancelled) else exc)
                raise

        order = self._orders.order(work, apart=True)
        order.reply.add_done_callback(lambda _: future.cancel())  # when it was refused
        self._orders.put(order)
        return future

    async def _order(self, order: Order) -> Any:
        await self._orders.room()
        self.check()
        self._orders.put(order)
        return await self._answer_to(order)

    async def _answer_to(self, order: Order) -> Any:
        try:
            await asyncio.wait([order.reply])  # unlike the future itself, it may be cancelled alone
        except asyncio.CancelledError:
            if order.apart:
                self.loop.to_trio.send(order.scope.cancel)
                await asyncio.wait([order.reply])
            raise
        value, error = order.reply.result()
        if error is not None:
            raise error
        return value

    # Trio's side.

    async def carry(self, work: Work) -> Any:
        """Have *work* done in asyncio, and what it orders here, until nothing of it is left; return its result.

        *Cancellation:* the asyncio side is cancelled and waited for, without a bound of its own.
        """
        try:
            async with trio.open_nursery() as nursery:
                self.loop.to_asyncio.send(partial(self._begin, work, contextvars.copy_context()))
                try:
                    await self._serve(partial(self._do, nursery))
                except BaseException:
                    self._stop()
                    with trio.CancelScope(shield=True):
                        await self._serve(self._refuse)
                    raise
                finally:
                    nursery.cancel_scope.cancel()
        except BaseException as exc:
            unwound = self._stopping and isinstance(self._error, asyncio.CancelledError)
            if self._error is None or unwound or split(exc, cancelled=True) != (None, None):
                self._error = None
                raise
        return self._result()

    def _result(self) -> Any:
        error, self._error = self._error or self._failure, None
        try:
            if error is None:
                return self._response
            if any(isinstance(each, KeyboardInterrupt) for each in leaves(error)):
                # Signals come to the main thread alone: nobody has pressed Ctrl-C.
                raise RuntimeError("the agent raised KeyboardInterrupt") from error
            raise error
        finally:
            del error  # its traceback holds this frame

    async def _serve(self, do: Callable[[Order | str], Awaitable[None]]) -> None:
        """Give every order to *do* until the asyncio side has ended."""
        while True:
            while self._taken:
                await do(self._taken.popleft())
            self._taken = self._orders.take()
            if not self._taken:
                # No checkpoint since the look: whatever comes from now on ends the wait.
                if self._over:
                    return
                await self._orders.news()

    async def _do(self, nursery: trio.Nursery, order: Order | str) -> None:
        if isinstance(order, str):
            try:
                if self._failure is None:  # otherwise, code that waits for each piece would not have come so far
                    await self.run.say(order)
            except Exception as exc:  # the asyncio side's, which hears of it when it calls again
                self._failure = exc
        elif self._failure is not None and not order.urgent:
            failure, self._failure = self._failure, None
            order.answer(None, failure)
        elif order.apart:
            order.context.run(nursery.start_soon, self._do_apart, order)
        else:
            await self._do_now(order)

    async def _do_apart(self, order: Order) -> None:
        with order.scope:
            await self._do_now(order)

    async def _do_now(self, order: Order) -> None:
        try:
            value = await order.work()
        except BaseException as exc:  # the asyncio side's to hear of, except for what ends this task
            ctrl_c, own = split(exc, cancelled=True)
            if own is None:
                order.refuse()
                raise
            order.answer(None, own)
            if ctrl_c is not None:
                raise ctrl_c from None
        else:
            order.answer(value)

    async def _refuse(self, order: Order | str) -> None:
        if isinstance(order, str):
            # Said before the cancel, so it is told; without giving way, which a cancelled run cannot.
            try:
                for _ in self.run.speech.say(order) if self._failure is None else ():
                    pass
            except NetraError as exc:
                self._failure = exc
        elif order.urgent:
            await self._do_now(order)
        else:
            order.refuse()

    def _stop(self) -> None:
        self._stopping = True
        self.loop.to_asyncio.send(self._cancel)

    def _cancel(self) -> None:
        self._belongings.cancel()
        self._orders.make_room()

    def _end(self) -> None:
        self._over = True
        for call_back in self.at_end:
            call_back()
        self._orders.close()
        self._orders.look_again()
