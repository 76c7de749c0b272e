"""Reading a log without a socket, and what a program may say into one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs
import trio

from netra_ws.agents.request import MAX_NAME, check_size
from netra_ws.errors import ClientError, EventTooLarge, InvalidArgument, Lost, Trimmed
from netra_ws.history.cursor import Cursor
from netra_ws.protocol.codec import Heard, frame_payload, read_server
from netra_ws.protocol.events import AgentCompleted

#: Bytes read from the log in one go.
CHUNK = 64 * 1024


@attrs.define(eq=False, repr=False)
class Events:
    """Events of a log as an async iterator; it may be left and taken up again at any time.

    Without end, unless it is about one run, or *over* says that nothing more will be said.
    """

    _cursor: Cursor
    _run_id: str | None = None
    _over: Callable[[], bool] = lambda: False
    _family: set[str] = attrs.field(init=False)
    _ready: deque[Heard] = attrs.field(factory=deque)
    _rung: trio.Event = attrs.field(factory=trio.Event)
    _ended: bool = False

    def __attrs_post_init__(self) -> None:
        self._family = set() if self._run_id is None else {self._run_id}

    def wake(self) -> None:
        """There is more (``history.stream.Reader``)."""
        self._rung.set()

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Heard:
        """Return the next event; of one run, with those of its sub-runs, nothing behind its ``agent_completed``.

        Raises:
            StoreError: The store did not answer; the next call tries again.
            ClientError: ``CONFLICT``: the store has removed events that come next.
        """
        await trio.lowlevel.checkpoint()
        if self._ended:
            raise StopAsyncIteration
        while not self._ready:
            if not self._cursor.pending and self._over():
                raise StopAsyncIteration
            await self._read()
        heard = self._ready.popleft()
        self._ended = heard.type == AgentCompleted.type and heard.fields.get("run_id") == self._run_id
        return heard

    async def _read(self) -> None:
        cursor = self._cursor
        if not cursor.pending:
            # Attached only while waiting: an iterator that is dropped leaves nothing behind.
            self._rung = trio.Event()
            cursor.stream.attach(self)
            try:
                await self._rung.wait()
            finally:
                cursor.stream.detach(self)
        try:
            frames = cursor.take(CHUNK)
        except Trimmed:
            await self._refill()
            return
        for frame in frames:
            heard = read_server(frame_payload(frame))
            if self._run_id is None or self._is_of_family(heard):
                self._ready.append(heard)

    def _is_of_family(self, heard: Heard) -> bool:
        run_id, parent = heard.fields.get("run_id"), heard.fields.get("parent_run_id")
        if parent in self._family and run_id is not None:
            self._family.add(run_id)
        return run_id in self._family

    async def _refill(self) -> None:
        try:
            await self._cursor.refill()
        except Lost:
            details = {"reason": "trimmed"}
            raise ClientError("CONFLICT", "the position cannot be continued", details=details) from None


def check_event(name: str, value: object, most: int) -> None:
    """Check what a program wants to say.

    Raises:
        InvalidArgument: No ``agent_event`` of at most *most* bytes can say it.
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise InvalidArgument("name", f"expected text of 1 to {MAX_NAME} characters")
    try:
        check_size("value", value, most)
    except (TypeError, EventTooLarge) as exc:
        raise InvalidArgument("value", str(exc)) from None
