"""Questions that agents ask their users, and the answers: ``run.ask``, ``input_required`` … ``input_received``.

A question belongs to its run and waits at its user's ``Inputs``, so any of the user's connections may
answer it, also one that came after it. It is answered once: what is decided here is decided without a
checkpoint. While it waits, the clocks of everything that waits for it stand still.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import attrs
import trio

from netra_ws.errors import AgentError, ClientError, ConfigError, EventTooLarge, InputDeclined, InvalidParameters
from netra_ws.protocol.events import InputReceived, InputRequired

from .request import new_id
from .shapes import Reader, read_by_schema, schema_of
from .tools import CURRENT_CALL, ToolCall

if TYPE_CHECKING:
    from .run import Run

#: Open questions of one user.
MAX_OPEN = 20
#: Questions that are remembered when they are over, so that a late answer is told from one to nothing.
MAX_CLOSED = 1000
MAX_CHOICES = 100
#: How long a question waits unless it says otherwise, and at most, in seconds.
EXPIRES_IN = 24 * 3600.0
MAX_EXPIRES_IN = 366 * 24 * 3600.0
#: Who closes a question that nobody answers.
SERVER = "server"

InputStatus = Literal["resolved", "cancelled", "expired"]


@attrs.define(eq=False)
class Input:
    """One question that waits for its answer.

    Attributes:
        required: The event that has told it.
        read: From the answer as JSON to what ``ask`` returns; raises ``InvalidParameters``.
        status: Empty while it is open.
        answer: What was read.
        closed: Set when it is over.
    """

    input_id: str
    run: Run = attrs.field(repr=False)
    required: InputRequired
    read: Callable[[Any], Any] = attrs.field(repr=False)
    status: InputStatus | None = None
    answer: Any = attrs.field(default=None, repr=False)
    closed: trio.Event = attrs.field(factory=trio.Event, repr=False)

    def close(self, status: InputStatus, value: Any, by: str) -> int:
        """Write ``input_received`` and let the agent go on; return the event's seq."""
        self.status = status
        received = InputReceived(**self.run.names(), input_id=self.input_id, status=status, value=value, by=by)
        entry = self.run.append(received)
        self.closed.set()
        return entry.seq


@attrs.define(eq=False)
class Inputs:
    """The open questions of one user, in the order in which they were asked."""

    _open: dict[str, Input] = attrs.field(factory=dict)
    _closed: dict[str, None] = attrs.field(factory=dict)

    def __len__(self) -> int:
        return len(self._open)

    def pending(self) -> list[Mapping[str, Any]]:
        """Return the open questions as a welcome tells them: the fields of ``input_required``."""
        return [
            {name: value for name, value in attrs.asdict(each.required, recurse=False).items() if value is not None}
            for each in self._open.values()
        ]

    def of(self, run: Run) -> list[Input]:
        """Return the open questions of a run."""
        return [each for each in self._open.values() if each.run is run]

    def check_room(self) -> None:
        """Raise ``AgentError`` ``QUOTA_EXCEEDED`` when too many are open."""
        if len(self._open) >= MAX_OPEN:
            raise AgentError(f"a user may have {MAX_OPEN} open questions", code="QUOTA_EXCEEDED")

    def add(self, input_: Input) -> None:
        """Let a question be answered."""
        self._open[input_.input_id] = input_

    def close(self, input_: Input, status: InputStatus, value: Any, by: str) -> int:
        """End a question; return the seq of its ``input_received``."""
        del self._open[input_.input_id]
        self._closed[input_.input_id] = None
        if len(self._closed) > MAX_CLOSED:
            del self._closed[next(iter(self._closed))]
        return input_.close(status, value, by)

    def answer(self, input_id: str, status: Literal["resolved", "cancelled"], value: Any, by: str) -> int:
        """Give a user's answer; return the seq of its ``input_received``.

        Raises:
            ClientError: ``NOT_FOUND``; ``ALREADY_ANSWERED``, also when the question was closed for another
                reason; ``INVALID_MESSAGE`` when the value does not fit, which leaves the question open.
        """
        input_ = self._open.get(input_id)
        if input_ is None:
            if input_id in self._closed:
                raise ClientError("ALREADY_ANSWERED", "this question is not open any more")
            raise ClientError("NOT_FOUND", "there is no such input")
        if status == "cancelled":
            return self.close(input_, status, None, by)
        try:
            input_.run.check_size("the value", value)
            input_.answer = input_.read(value)
        except (EventTooLarge, TypeError) as unfit:  # a program may hand in what JSON cannot say
            wrong = InvalidParameters({"$.value": getattr(unfit, "text", str(unfit))})
            raise ClientError("INVALID_MESSAGE", wrong.text, details={"fields": wrong.fields}) from None
        except InvalidParameters as wrong:
            raise ClientError("INVALID_MESSAGE", wrong.text, details={"fields": wrong.fields}) from None
        return self.close(input_, status, value, by)


async def ask(
    run: Run,
    prompt: str,
    choices: Sequence[str] | None,
    schema: type | Mapping[str, Any] | None,
    expires_in: float,
) -> Any:
    """Ask the user of *run* and wait for the answer (see ``Run.ask``); the caller has checked the run."""
    read, shown = _form(choices, schema)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("prompt: expected a text")
    if not (isinstance(expires_in, int | float) and 0 < expires_in <= MAX_EXPIRES_IN):
        raise ValueError(f"expires_in: expected seconds above 0, at most {MAX_EXPIRES_IN:g}")
    run.host.inputs.check_room()
    required = InputRequired(
        **run.names(),
        input_id=new_id("input"),
        prompt=prompt,
        choices=None if choices is None else list(choices),
        schema=shown,
        expires_at=run.stream.now() + expires_in,
    )
    run.check_size("the question", [prompt, required.choices, shown])
    run.tell(required)
    input_ = Input(required.input_id, run, required, read)
    run.host.inputs.add(input_)
    with _held(run):
        try:
            with trio.move_on_after(expires_in):
                await input_.closed.wait()
        finally:
            # Cancelled, the question is over at once; a run that was closed over our heads has closed it.
            if input_.status is None:
                cancelled = trio.current_effective_deadline() == -math.inf
                run.host.inputs.close(input_, "cancelled" if cancelled else "expired", None, SERVER)
    if input_.status != "resolved":
        assert input_.status is not None
        raise InputDeclined(input_.status)
    return input_.answer


@contextmanager
def _held(run: Run) -> Iterator[None]:
    """Let every clock that this wait stands behind stand still: of the runs, and of the calls that it is in."""
    calls: list[ToolCall] = []
    call = CURRENT_CALL.get()
    while call is not None:
        calls.append(call)
        call = call.outer
    held: list[Run | ToolCall] = [*run.line(), *calls]
    for each in held:
        each.hold()
    try:
        yield
    finally:
        for each in held:
            each.release()


def _form(
    choices: Sequence[str] | None, schema: type | Mapping[str, Any] | None
) -> tuple[Callable[[Any], Any], Mapping[str, Any] | None]:
    """Return what reads an answer, and the JSON Schema that clients make a form of."""
    if choices is not None:
        if schema is not None:
            raise ValueError("expected either choices or a schema")
        return _choice_reader(choices), None
    if schema is None:
        return _text, None
    if not isinstance(schema, Mapping):
        try:
            return Reader(schema, "$.value"), schema_of(schema)
        except ConfigError as exc:
            raise ValueError(f"schema: {exc}") from None
    return read_by_schema(schema, "$.value"), schema


def _choice_reader(choices: Sequence[str]) -> Callable[[Any], Any]:
    known = list(choices)
    if isinstance(choices, str) or not known or not all(isinstance(each, str) for each in known):
        raise ValueError("choices: expected a list of texts")
    if len(known) > MAX_CHOICES or len(set(known)) < len(known):
        raise ValueError(f"choices: expected at most {MAX_CHOICES}, each of them once")

    def read(value: Any) -> Any:
        if not isinstance(value, str) or value not in known:
            raise InvalidParameters({"$.value": f"expected one of {', '.join(map(repr, known))}"})
        return value

    return read


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise InvalidParameters({"$.value": "expected string"})
    return value
