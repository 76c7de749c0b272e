"""Tools: work that an agent does under a name, seen by its user as ``tool_executing`` … ``tool_completed``.

A ``ToolCall`` is one such piece of work. A ``Tool`` is declared once, by ``@tool`` over a function with
annotations: its parameters have a JSON Schema and are validated, it has a timeout, a number of calls
that one user may have at the same time, and a permission. An agent's code calls it like a function; a
model is offered it through a ``Toolbox``.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs
import trio

from netra_ws.errors import AgentError, InvalidParameters, ToolDenied
from netra_ws.protocol.events import ErrorText, ToolStatus

from .failures import find_agent_error, leaves, wording
from .shapes import to_json

if TYPE_CHECKING:
    from .bridge.asyncio_run import AsyncioRun
    from .run import Run

#: What a user reads when a tool failed with an exception that was not meant for them.
FAILED = ErrorText(code="TOOL_FAILED", message="the tool failed")

#: The call in which this task works; what it does then, such as a sub-run, belongs to that call.
CURRENT_CALL: contextvars.ContextVar[ToolCall | None] = contextvars.ContextVar("netra_ws_tool_call", default=None)


@attrs.define(eq=False)
class ToolCall:
    """What an agent holds between ``tool_executing`` and ``tool_completed``.

    Attributes:
        results: Any JSON value; told when the block is left.
        run: Whose call it is.
        outer: The call inside which this one was begun, also of the run that delegated to this one.
        places: Where it holds its user's place at its tool.
    """

    # Frozen: the end of the pair is written from them.
    tool_call_id: str = attrs.field(on_setattr=attrs.setters.frozen)
    name: str = attrs.field(on_setattr=attrs.setters.frozen)
    run: Run = attrs.field(repr=False)
    results: Any = None
    started_at: float = attrs.field(factory=trio.current_time, on_setattr=attrs.setters.frozen)
    outer: ToolCall | None = attrs.field(factory=CURRENT_CALL.get, repr=False)
    places: trio.CapacityLimiter | None = attrs.field(default=None, repr=False)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, repr=False)
    _holds: int = 0
    _left_s: float = 0.0

    async def progress(self, progress: float | None, message: str | None = None) -> None:
        """Tell how far the tool is, 0 to 1; not stored.

        Raises:
            EventTooLarge: The message is above ``limits.max_event_bytes``.
            RunClosed: The run has ended.
        """
        await self.run.tell_progress(self, progress, message)

    def hold(self) -> None:
        """Let the timeout stand still, while the call waits for a person; ``release`` exactly once after it."""
        self._holds += 1
        if self._holds == 1:
            self._left_s = self.scope.deadline - trio.current_time()
            self.scope.deadline = float("inf")

    def release(self) -> None:
        """Let the timeout go on."""
        self._holds -= 1
        if self._holds == 0:
            self.scope.deadline = trio.current_time() + self._left_s


@contextlib.contextmanager
def working_in(call: ToolCall) -> Iterator[None]:
    """Make *call* the one in which this task works."""
    token = CURRENT_CALL.set(call)
    try:
        yield
    finally:
        # A generator that an agent has dropped is ended elsewhere, where nothing was set.
        with contextlib.suppress(ValueError):
            CURRENT_CALL.reset(token)


@attrs.frozen(eq=False, kw_only=True)
class Tool:
    """Something that agents and models may use, declared once.

    ``await lookup(run, order_id="7")`` carries it out and returns what it returns.

    Attributes:
        name: How models and users know it.
        description: What it does, for a model.
        schema: JSON Schema of its parameters: an object.
        read: From parameters as JSON values to the keywords of ``invoke``; raises ``InvalidParameters``.
        invoke: Does the work; what it returns, as JSON, are the results.
        timeout_s: Seconds that one call may take; time in which it waits for a person does not count.
        per_user: Calls of one user, in all their runs, at the same time; others wait for their turn, while their
            timeout stands still. A call keeps its place while it waits for a person, and calls inside of it share it.
        permission: What the user needs among the permissions of their token.
    """

    name: str
    description: str = attrs.field(repr=False)
    schema: Mapping[str, Any] = attrs.field(repr=False)
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]] = attrs.field(repr=False)
    invoke: Callable[[ToolCall, Mapping[str, Any]], Awaitable[Any]] = attrs.field(repr=False)
    timeout_s: float | None = None
    per_user: int | None = None
    permission: str | None = None

    async def __call__(self, run: Run | AsyncioRun, /, *values: Any, **parameters: Any) -> Any:
        """Carry the tool out as a call of *run*, with parameters in order or by name.

        A bridged agent gives its ``AsyncioRun``; the tool itself works on Trio all the same.

        Raises:
            InvalidParameters: They do not fit; nothing was carried out.
            ToolDenied: The user has not the permission.
            TooSlowError: It took longer than ``timeout_s``.
            EventTooLarge, AgentError, RunClosed: As ``Run.tool``. And whatever the tool itself raises.
        """
        if (use := getattr(run, "use", None)) is not None:
            return await use(self, *values, **parameters)
        names = list(self.schema.get("properties", ()))
        if len(values) > len(names):
            raise InvalidParameters({"$": f"expected at most {len(names)} values, got {len(values)}"})
        named = dict(zip(names, values, strict=False))
        if twice := sorted(named.keys() & parameters.keys()):
            raise InvalidParameters({f"$.{name}": "given twice" for name in twice})
        shown = to_json(named | parameters, "the parameters")
        value, _ = await self.carry_out(cast("Run", run), shown)
        return value

    async def carry_out(self, run: Run, parameters: Mapping[str, Any]) -> tuple[Any, Any]:
        """Carry the tool out with parameters as JSON values; return what it returned, and that as JSON.

        Raises:
            As calling it.
        """
        try:
            if self.permission is not None and not run.identity.may(self.permission):
                raise ToolDenied(f"this needs the permission {self.permission}")
            keywords = self.read(parameters)
        except (InvalidParameters, ToolDenied):
            async with run.tool(self.name, parameters):
                raise
        async with run.tool(self.name, parameters, timeout_s=self.timeout_s) as call, _place(self, call):
            value = await self.invoke(call, keywords)
            if value is not None or call.results is None:
                call.results = _checked(run, to_json(value, "the results"))
        return value, call.results


@contextlib.asynccontextmanager
async def _place(tool: Tool, call: ToolCall) -> AsyncIterator[None]:
    """Hold the user's place at *tool* for *call*, when there is a number of them; wait for it, if need be."""
    shares, run = call.run.policy.user_tools, call.run
    if tool.per_user is None or shares is None:
        yield
        return
    places = shares.get(tool)
    if places is None:
        places = shares[tool] = trio.CapacityLimiter(tool.per_user)
    outer = call.outer
    while outer is not None:
        if outer.places is places:  # waiting for its own end, it would wait for ever
            yield
            return
        outer = outer.outer
    call.hold()
    run.queueing += 1
    try:
        await places.acquire_on_behalf_of(call)
    finally:
        run.queueing -= 1
        run.last_event_at = trio.current_time()
        call.release()
    call.places = places
    try:
        yield
    finally:
        call.places = None
        places.release_on_behalf_of(call)


def _checked(run: Run, results: Any) -> Any:
    """Return *results* when an event can carry them.

    Raises:
        EventTooLarge: They are too large.
        AgentError: ``NOT_JSON``.
    """
    try:
        run.check_size("the results", results)
    except TypeError as exc:
        raise AgentError(f"the tool's results are no JSON value: {exc}", code="NOT_JSON") from None
    return results


def judge(exc: BaseException, *, stopping: bool) -> tuple[ToolStatus, ErrorText | None]:
    """Turn what left a tool's block into the status and error that its user is told.

    Args:
        exc: The exception, perhaps a group.
        stopping: Whether the run is being cancelled; a group then counts as cancelled whatever else is in it.
    """
    cancelled = any(isinstance(each, trio.Cancelled) for each in leaves(exc))
    if isinstance(exc, trio.Cancelled) or (cancelled and stopping):
        return "cancelled", None
    if isinstance(exc, trio.TooSlowError):
        return "timeout", ErrorText(code="TOOL_TIMEOUT", message="the tool took too long")
    told = find_agent_error(exc)
    if told is not None:
        code, text, _ = wording(told)
        return "denied" if isinstance(told, ToolDenied) else "error", ErrorText(code=code, message=text)
    return "error", FAILED
