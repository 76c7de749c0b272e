"""After a crash: the closing events of runs that nobody runs any more.

A run whose row says ``queued`` or ``running`` when a server takes the store's lease was lost with
the process that ran it. Its events are read, and what is open is closed, in the grammar of
PROTOCOL §3: open inputs, open tool calls, the message it was saying (as far as it is stored), then
``agent_completed`` with status ``lost``. A run that had not begun gets its ``agent_started`` first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import attrs
import orjson

from netra_ws.protocol.events import (
    AgentCompleted,
    AgentMessage,
    AgentStarted,
    InputReceived,
    RunError,
    ToolCompleted,
)

from .recorder import Recorder
from .stores.contract import RunRow, SetRunState, Store
from .stream import Step, Stream
from .streams import Streams

logger = logging.getLogger(__name__)

#: Lost runs that are closed before the recorder has to catch up; there may be as many as the server had users.
CHUNK = 500
#: All of them are read at once: a sub-run may be far behind its parent in a store's order.
EVERY_RUN = 2**31 - 1

LOST = RunError(code="LOST", message="the server was stopped while this run was going on", retryable=True)


@attrs.define
class _Remains:
    """What the events of a lost run say about it."""

    events: int = 0
    started_at: float | None = None
    tools: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    inputs: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    message: dict[str, Any] | None = None


async def close_lost_runs(store: Store, streams: Streams, recorder: Recorder) -> int:
    """Write the closing events of every unfinished run, before the door opens.

    The recorder must be running.

    Returns:
        How many runs were closed.

    Raises:
        StoreError: The store did not answer.
    """
    closed = 0
    while rows := await store.unfinished_runs(EVERY_RUN):
        for count, row in enumerate(_children_first(rows)):
            if count % CHUNK == 0:
                await recorder.flush()
            stream = await streams.open(row.user_id)
            try:
                _close(row, stream, await _read_remains(store, stream, row))
            finally:
                streams.release(stream)
        await recorder.flush()
        closed += len(rows)
    if closed:
        logger.warning("closed %d runs that were lost when the server last stopped", closed)
    return closed


def _children_first(rows: Sequence[RunRow]) -> list[RunRow]:
    """Order runs so that a sub-run ends before its parent, however deep they are nested."""
    known = {(row.user_id, row.run_id): row for row in rows}

    def depth(row: RunRow) -> int:
        levels = 0
        parent: RunRow | None = row
        while parent is not None and parent.parent_run_id is not None:
            parent = known.get((parent.user_id, parent.parent_run_id))
            levels += 1
        return levels

    return sorted(rows, key=depth, reverse=True)


async def _read_remains(store: Store, stream: Stream, row: RunRow) -> _Remains:
    remains = _Remains()
    for event in await store.run_events(stream.key, stream.epoch, row.run_id):
        fields = orjson.loads(event.payload)
        if event.type == "agent_started":
            remains.started_at = fields["timestamp"]
        if event.type == "tool_executing":
            remains.tools[fields["tool_call_id"]] = fields
        elif event.type == "tool_completed":
            remains.tools.pop(fields["tool_call_id"], None)
        elif event.type == "agent_message":
            remains.message = fields
        elif event.type == "input_required":
            remains.inputs[fields["input_id"]] = fields
        elif event.type == "input_received":
            remains.inputs.pop(fields["input_id"], None)
        if remains.started_at is not None:
            remains.events += 1
    return remains


def _close(row: RunRow, stream: Stream, remains: _Remains) -> None:
    run: dict[str, Any] = {
        "thread_id": row.thread_id,
        "run_id": row.run_id,
        "agent_name": row.agent_name,
        "parent_run_id": row.parent_run_id,
    }
    with stream.step() as step:
        if remains.started_at is None:
            trigger: Any = row.trigger
            step.append(AgentStarted(**run, message_id=row.message_id, trigger=trigger))
            remains.events += 1
        _close_open(step, run, remains)
        duration = 0 if remains.started_at is None else max(0.0, stream.now() - remains.started_at)
        step.append(
            AgentCompleted(
                **run,
                status="lost",
                success=False,
                final_response=None,
                error=LOST,
                duration_ms=round(duration * 1000),
                events=remains.events + 1,
            )
        )
        step.write(SetRunState(user_id=row.user_id, run_id=row.run_id, state="lost", at=stream.now()))


def _close_open(step: Step, run: dict[str, Any], remains: _Remains) -> None:
    for fields in remains.inputs.values():
        step.append(InputReceived(**run, input_id=fields["input_id"], status="cancelled", value=None, by="server"))
        remains.events += 1
    for fields in remains.tools.values():
        step.append(
            ToolCompleted(
                **run,
                tool_call_id=fields["tool_call_id"],
                tool_name=fields["tool_name"],
                status="cancelled",
                success=False,
                results=None,
                duration_ms=round(max(0.0, step.stream.now() - fields["timestamp"]) * 1000),
            )
        )
        remains.events += 1
    if remains.message is not None:
        # Clients may have heard more than was stored: they replace it by what everybody will have. Its
        # row was committed with what is stored, and keeps its place: it may have been final already.
        message_id, content = remains.message["message_id"], remains.message["content"]
        step.append(AgentMessage(**run, message_id=message_id, phase="full", content=content))
        remains.events += 1
