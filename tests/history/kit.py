"""What the tests of ``history`` share: short events, a store that can fail, a sink worked by hand, a reader."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import orjson
import sqlalchemy as sa
import trio

from netra_ws.errors import StoreError, Trimmed
from netra_ws.history.cursor import Cursor
from netra_ws.history.recorder import Recorder
from netra_ws.history.stores.contract import NO_BOUND, EventRow, Write
from netra_ws.history.stores.memory import MemoryStore
from netra_ws.history.stores.sqlite import SqliteFile
from netra_ws.history.stream import Step, Stream
from netra_ws.history.streams import Streams
from netra_ws.protocol.codec import frame_payload
from netra_ws.protocol.events import (
    AgentCompleted,
    AgentEvent,
    AgentMessage,
    AgentStarted,
    AgentThinking,
    ToolProgress,
)

ALICE = "alice"
KEY = "user:alice"
NOW = 1_700_000_000.0


# Events.


def _names(run_id: str) -> dict[str, Any]:
    return {"thread_id": "t", "run_id": run_id, "agent_name": "echo"}


def said(value: Any = None, run_id: str = "r") -> AgentEvent:
    """A durable event that stands for any other."""
    return AgentEvent(**_names(run_id), name="said", value=value)


def delta(piece: str, message_id: str = "m", run_id: str = "r") -> AgentMessage:
    return AgentMessage(**_names(run_id), message_id=message_id, phase="delta", content=piece)


def full(text: str, message_id: str = "m", run_id: str = "r") -> AgentMessage:
    return AgentMessage(**_names(run_id), message_id=message_id, phase="full", content=text)


def thought(text: str, phase: Any = "delta", run_id: str = "r") -> AgentThinking:
    return AgentThinking(**_names(run_id), reasoning=text, phase=phase)


def progress(run_id: str = "r") -> ToolProgress:
    return ToolProgress(**_names(run_id), tool_call_id="c", progress=0.5)


def started(run_id: str = "r", **fields: Any) -> AgentStarted:
    return AgentStarted(**_names(run_id), message_id="q", trigger="message", **fields)


def completed(run_id: str = "r", **fields: Any) -> AgentCompleted:
    values = {"status": "success", "success": True, "final_response": None, "duration_ms": 1, "events": 2}
    return AgentCompleted(**_names(run_id), **values | fields)


# Stores and sinks.


class TroubledStore:
    """A memory store that can be told to fail, to wait, and to let something happen while it reads.

    Attributes:
        failures: So many writes and reads fail from now on.
        after: Whether a failing write happens all the same, so that its fate is unknown.
        gate: Writes wait until it is set.
        meanwhile: Awaited in the middle of the next read of events, then forgotten.
        batches: Every batch that was handed over, also those that failed.
    """

    def __init__(self) -> None:
        self.kept = MemoryStore()
        self.failures = 0
        self.after = False
        self.gate = trio.Event()
        self.gate.set()
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        self.batches: list[list[Write]] = []
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kept, name)

    def _fails(self) -> bool:
        failing, self.failures = self.failures > 0, max(0, self.failures - 1)
        return failing

    async def write(self, batch: Sequence[Write]) -> Mapping[str, int]:
        self.batches.append(list(batch))
        await self.gate.wait()
        failing = self._fails()
        trimmed = await self.kept.write(batch) if not failing or self.after else {}
        if failing:
            raise StoreError("the disk is on fire")
        return trimmed

    async def events(
        self, key: str, epoch: str, after: int, upto: int, limit: int, max_bytes: int = NO_BOUND
    ) -> Sequence[EventRow]:
        self.reads += 1
        rows = await self.kept.events(key, epoch, after, upto, limit, max_bytes)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        if self._fails():
            raise StoreError("the disk is on fire")
        return rows


class WatchedFile(SqliteFile):
    """A SQLite file that can be told to fail, and to let something happen at the end of its transactions.

    Attributes:
        failures: So many transactions fail from now on.
        meanwhile: Awaited after each transaction, before the store hears that it is over.
        amid: Awaited after the next read, before the store hears that it is over; then forgotten.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "process")
        self.failures = 0
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        self.amid: Callable[[], Awaitable[None]] | None = None

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        with super().reading() as connection:
            yield connection
        amid, self.amid = self.amid, None
        if amid is not None:
            trio.from_thread.run(amid)

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        if self.failures:
            self.failures -= 1
            raise StoreError("the disk is on fire")
        with super().writing() as connection:
            yield connection
        if self.meanwhile is not None:
            trio.from_thread.run(self.meanwhile)


@attrs.define
class HandSink:
    """Takes steps as the recorder does; each is committed when the test says so."""

    store: TroubledStore
    steps: deque[Step] = attrs.field(factory=deque)
    crowded: bool = False

    def submit(self, step: Step) -> None:
        self.steps.append(step)

    async def settle(self) -> None:
        await self.commit(1)

    async def commit(self, count: int | None = None) -> None:
        """Commit the next *count* steps, or all."""
        while self.steps and count != 0:
            step = self.steps.popleft()
            await self.store.kept.write(step.writes)
            step.stream.committed(step.last_seq, step.reserved)
            count = None if count is None else count - 1


def clock() -> float:
    return NOW


async def open_by_hand(
    ring_events: int = 2000, ring_bytes: int = 4 * 1024 * 1024, store: TroubledStore | None = None
) -> tuple[Stream, HandSink, TroubledStore]:
    """Return Alice's stream over a sink that is worked by hand."""
    store = store or TroubledStore()
    await store.open()
    sink = HandSink(store)
    streams = Streams(store, sink, clock, ring_events=ring_events, ring_bytes=ring_bytes)
    return await streams.open(ALICE), sink, store


@attrs.frozen
class House:
    """A store with its recorder at work."""

    store: TroubledStore
    recorder: Recorder
    streams: Streams
    nursery: trio.Nursery


@asynccontextmanager
async def open_house(store: TroubledStore | None = None, **options: Any) -> AsyncIterator[House]:
    """Run a recorder over *store*; leaving the block kills it, as a crash would."""
    store = store or TroubledStore()
    await store.open()
    recorder = Recorder(store, clock=clock)
    streams = Streams(store, recorder, clock, **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run, streams)
        yield House(store, recorder, streams, nursery)
        nursery.cancel_scope.cancel()


# Readers.


@attrs.define(eq=False)
class Woken:
    """A reader that counts how often it was woken."""

    count: int = 0

    def wake(self) -> None:
        self.count += 1


def fields_of(frame: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = orjson.loads(frame_payload(frame))
    return fields


@attrs.define
class Client:
    """What a client makes of frames: what it heard, and the texts by the rule of PROTOCOL §3."""

    seq: int = 0
    heard: list[dict[str, Any]] = attrs.field(factory=list)
    texts: dict[str, str] = attrs.field(factory=dict)

    def hear(self, frame: bytes) -> None:
        fields = fields_of(frame)
        assert fields["seq"] > self.seq, f"{fields['seq']} comes after {self.seq}"
        self.seq = fields["seq"]
        if fields["type"] == "agent_message":
            before = self.texts.get(fields["message_id"], "") if fields["phase"] == "delta" else ""
            self.texts[fields["message_id"]] = before + fields["content"]
        self.heard.append(fields)

    def kept(self, wanted: set[int]) -> list[dict[str, Any]]:
        """Return what it has of the events with these numbers, in the order in which they came."""
        return [fields for fields in self.heard if fields["seq"] in wanted]


async def drain(cursor: Cursor, client: Client, room: int = 65536) -> None:
    """Read everything that is visible, from wherever it has to come."""
    while cursor.pending:
        try:
            for frame in cursor.take(room):
                client.hear(frame)
        except Trimmed:
            await cursor.refill()
