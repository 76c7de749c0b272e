"""A run as its bridged agent sees it: the words of ``Run``, for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

import attrs
import trio

from netra_ws.history.stores.contract import MessageRow
from netra_ws.identity import Identity
from netra_ws.protocol.commands import Attachment

from ..inputs import EXPIRES_IN
from .blocks import Block, BlockCancelled, variables_of, verdict_on
from .crossing import Crossing
from .message import Message

if TYPE_CHECKING:
    from ..agent import Agent
    from ..run import Run
    from ..tools import Tool, ToolCall

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: A run gives way to the others of its loop after so many pieces or so many seconds, whichever comes first.
BURST_PIECES = 16
BURST_S = 0.001


@attrs.define(repr=False)
class AsyncioRunThread:
    """The conversation of a run, ``run.thread``; called with a function, it runs blocking code."""

    _run: Run
    _crossing: Crossing

    @property
    def id(self) -> str:
        return self._run.thread_id

    async def history(self, limit: int = 50) -> list[MessageRow]:
        """Return the last messages of this conversation, oldest first, the one that started the run included."""
        rows: list[MessageRow] = await self._crossing.call(lambda: self._run.thread.history(limit), apart=True)
        return rows

    async def __call__(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run blocking code in a worker thread of the server's bounded pool; ``asyncio.to_thread`` does the same.

        *Cancellation:* waits for the thread, as ``Run.thread`` does.
        """
        value: T = await self._crossing.call(lambda: self._run.thread(fn, *args), apart=True)
        return value


@attrs.define(eq=False)
class AsyncioToolCall:
    """What a bridged agent holds between ``tool_executing`` and ``tool_completed``.

    Attributes:
        tool_call_id: The id of both events.
        name: The tool's.
        run: Whose call it is.
        results: Any JSON value; told when the block is left.
    """

    tool_call_id: str = attrs.field(on_setattr=attrs.setters.frozen)
    name: str = attrs.field(on_setattr=attrs.setters.frozen)
    run: AsyncioRun = attrs.field(repr=False)
    _call: ToolCall
    _crossing: Crossing
    results: Any = None

    async def progress(self, progress: float | None, message: str | None = None) -> None:
        """Tell how far the tool is, 0 to 1; not stored."""
        await self._crossing.call(lambda: self._call.progress(progress, message))


@attrs.frozen(repr=False)
class AsyncioJob:
    """What ``AsyncioRun.job`` gives; see ``agents.job.Job``. An id that is none is an error of each call."""

    job_id: str
    _run: Run
    _crossing: Crossing

    async def emit(self, name: str, value: Any) -> None:
        """Say something into the job: an ``agent_event`` with any JSON value."""
        await self._crossing.call(lambda: self._run.job(self.job_id).emit(name, value))

    async def close(self) -> None:
        """Make the id free for others; who reads it gets what was said, then ``job_disconnected``."""
        await self._crossing.call(lambda: self._run.job(self.job_id).close(), apart=True)


@attrs.define(eq=False, repr=False)
class AsyncioRun:
    """One execution of a bridged agent, for the agent's hands.

    What ``Run`` does with or without waiting is awaited here, since it is done in another thread; only
    ``say`` does not wait for that. Errors come from the call that has them, those of ``say`` from the
    next call, or they are the run's. When the run is being cancelled, each call raises ``CancelledError``.

    Each call raises ``RunClosed`` when the run has ended or was sealed, and ``WrongThread`` outside the
    loop that the agent runs in.
    """

    _run: Run
    _crossing: Crossing
    thread: AsyncioRunThread = attrs.field(init=False)
    _message: Message = attrs.field(init=False)
    _burst: int = 0
    _slice_ends: float = 0.0
    #: From Trio's clock to that of the loop.
    _clock_s: float = attrs.field(factory=lambda: time.monotonic() - trio.current_time())

    def __attrs_post_init__(self) -> None:
        self.thread = AsyncioRunThread(self._run, self._crossing)
        self._message = Message(self._run.policy)

    def __repr__(self) -> str:
        return f"<Asyncio{repr(self._run)[1:]}"

    # What was asked.

    @property
    def identity(self) -> Identity:
        return self._run.identity

    @property
    def user_id(self) -> str:
        return self._run.user_id

    @property
    def run_id(self) -> str:
        return self._run.run_id

    @property
    def thread_id(self) -> str:
        return self._run.thread_id

    @property
    def agent_name(self) -> str:
        return self._run.agent_name

    @property
    def text(self) -> str:
        """What the user asked."""
        return self._run.text

    @property
    def context(self) -> Mapping[str, Any]:
        """The ``context`` object of the command; empty when there was none."""
        return self._run.context

    @property
    def attachments(self) -> Sequence[Attachment]:
        return self._run.attachments

    @property
    def jsonl_logs(self) -> str | Sequence[Mapping[str, Any]] | None:
        """Usage logs that came along: a text of JSON lines, a list of objects, or None."""
        return self._run.jsonl_logs

    @property
    def deadline(self) -> float:
        """When the run's time is over, by the clock of the loop (``loop.time()``)."""
        return self._run.deadline + self._clock_s

    # Speaking.

    @property
    def said(self) -> str:
        """Text of the current message so far, with all that was handed over."""
        return self._message.text

    async def say(self, piece: str) -> None:
        """Append *piece* to the current message; readers get it as a delta.

        Hands it over without waiting, unless so much is waiting that the server's back-pressure has
        reached it. A schedule point at least every 16 pieces or every millisecond.
        """
        self._crossing.check()
        self._message.add(piece)
        await self._crossing.say(piece)
        self._burst += 1
        if self._burst >= BURST_PIECES or time.perf_counter() >= self._slice_ends:
            await asyncio.sleep(0)
            self._burst, self._slice_ends = 0, time.perf_counter() + BURST_S

    async def end_message(self) -> None:
        """End the current message; the next ``say`` begins another one."""
        await self._crossing.call(_awaited(self._run.end_message))
        self._message.clear()

    async def think(
        self, reasoning: str, *, delta: bool = False, step: str | int | None = None, progress: float | None = None
    ) -> None:
        """Tell what the agent is thinking; see ``Run.think``."""
        await self._crossing.call(lambda: self._run.think(reasoning, delta=delta, step=step, progress=progress))

    async def emit(self, name: str, value: Any) -> None:
        """Say something of the agent's own: an ``agent_event`` with any JSON value."""
        await self._crossing.call(lambda: self._run.emit(name, value))

    def job(self, job_id: str) -> AsyncioJob:
        """Return a job, a stream of its own that several users may be granted; see ``Run.job``."""
        self._crossing.check()
        return AsyncioJob(job_id, self._run, self._crossing)

    async def usage(self, provider: str, model: str, **counts: Any) -> None:
        """Note what the run used of a model: ``input_tokens``, ``output_tokens``, ``cost_usd``; see ``Run.usage``."""
        await self._crossing.call(_awaited(partial(self._run.usage, provider, model, **counts)))

    async def steered(self) -> list[str]:
        """Return the texts that the user handed in since the last call."""
        texts: list[str] = await self._crossing.call(_awaited(self._run.steered))
        return texts

    # Working.

    @asynccontextmanager
    async def tool(
        self, name: str, parameters: Mapping[str, Any] | None = None, /, *, timeout_s: float | None = None, **more: Any
    ) -> AsyncIterator[AsyncioToolCall]:
        """Do one piece of work under a name: ``tool_executing``, the block, ``tool_completed``, always a pair.

        As ``Run.tool``.

        Raises:
            TimeoutError: The block took longer than *timeout_s*.
        """
        block = Block(self._run, name, {**(parameters or {}), **more}, timeout_s)
        self._crossing.at_end.append(block.drop)
        try:
            await self._crossing.open(block.hold)
        except asyncio.CancelledError:
            await self._leave(block, None, BlockCancelled())
            raise
        except BaseException:
            self._crossing.at_end.remove(block.drop)
            raise
        assert block.call is not None
        call = AsyncioToolCall(block.call.tool_call_id, name, self, block.call, self._crossing)
        try:
            with variables_of(block.context):
                # Trio's side has the clock, which stands still while the call waits for a person.
                async with asyncio.timeout(None) as clock:
                    block.interrupt = partial(self._crossing.loop.to_asyncio.send, partial(_end, clock))
                    yield call
        except BaseException as exc:
            await self._leave(block, None, verdict_on(exc))
            raise
        await self._leave(block, call.results, None)

    async def _leave(self, block: Block, results: Any, verdict: Exception | None) -> None:
        if block.call is None:
            return
        try:
            await self._crossing.close(lambda: block.leave(results, verdict))
        except trio.TooSlowError:
            raise TimeoutError(f"{block.name} took longer than {block.timeout_s} s") from None
        finally:
            self._crossing.at_end.remove(block.drop)

    async def use(self, tool: Tool, /, *values: Any, **parameters: Any) -> Any:
        """Carry a declared tool out and return what it returns; ``await tool(run, …)`` is the same.

        The tool itself works on Trio, with everything that its declaration says of it.

        *Cancellation:* the tool is cancelled and waited for.

        Raises:
            InvalidParameters, ToolDenied: As calling the tool; and whatever it raises itself.
            TimeoutError: It took longer than its ``timeout_s``.
        """
        try:
            return await self._crossing.call(lambda: tool(self._run, *values, **parameters), apart=True)
        except trio.TooSlowError as exc:
            raise TimeoutError(str(exc)) from exc

    async def ask(
        self,
        prompt: str,
        *,
        choices: Sequence[str] | None = None,
        schema: type | Mapping[str, Any] | None = None,
        expires_in: float = EXPIRES_IN,
    ) -> Any:
        """Ask the user, and wait for the answer; see ``Run.ask``.

        *Cancellation:* the question is closed as cancelled.
        """
        ask = partial(self._run.ask, prompt, choices=choices, schema=schema, expires_in=expires_in)
        return await self._crossing.call(ask, apart=True)

    async def delegate(
        self,
        agent: str | Agent,
        text: str,
        *,
        context: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Have another agent, bridged or not, do a part of the work, and return its response; see ``Run.delegate``.

        *Cancellation:* the sub-run is cancelled and waited for.
        """
        delegate = partial(self._run.delegate, agent, text, context=context, timeout_s=timeout_s)
        return await self._crossing.call(delegate, apart=True)

    async def search_history(self, query: str, limit: int = 10) -> list[MessageRow]:
        """Return the user's own messages, of all threads, that contain every word of *query*."""
        rows: list[MessageRow] = await self._crossing.call(lambda: self._run.search_history(query, limit), apart=True)
        return rows


def _end(clock: asyncio.Timeout) -> None:
    with suppress(RuntimeError):  # it is over already
        clock.reschedule(0)


def _awaited(fn: Callable[[], T]) -> Callable[[], Any]:
    async def work() -> T:
        return fn()

    return work
