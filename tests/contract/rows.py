"""Short ways to make what is handed to a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netra_ws.history.stores.contract import (
    JobRow,
    MessageRow,
    PutEvent,
    PutJob,
    PutMessage,
    PutRun,
    PutStream,
    PutThread,
    RunRow,
    Store,
)

KEY = "user:alice"
EPOCH = "epoch-1"
ALICE = "alice"
BOB = "bob"


def put_stream(key: str = KEY, reserved: int = 1_000, epoch: str = EPOCH) -> PutStream:
    return PutStream(key=key, epoch=epoch, reserved=reserved)


def put_event(
    seq: int, *, at: float = 1.0, run_id: str | None = None, key: str = KEY, payload: bytes = b"{}"
) -> PutEvent:
    return PutEvent(
        key=key,
        epoch=EPOCH,
        seq=seq,
        type="agent_event",
        thread_id="t",
        run_id=run_id,
        created_at=at,
        payload=payload,
    )


def put_thread(user_id: str = ALICE, thread_id: str = "t", *, at: float = 1.0, **fields: Any) -> PutThread:
    values = {"title": "A title", "metadata": {}} | fields
    return PutThread(user_id=user_id, thread_id=thread_id, created_at=at, **values)


def message(message_id: str = "m", content: str = "hello", **fields: Any) -> MessageRow:
    values: dict[str, Any] = {
        "user_id": ALICE,
        "thread_id": "t",
        "run_id": "r",
        "role": "user",
        "created_at": 1.0,
        "seq": 1,
    }
    return MessageRow(message_id=message_id, content=content, **values | fields)


def put_message(message_id: str = "m", content: str = "hello", **fields: Any) -> PutMessage:
    return PutMessage(row=message(message_id, content, **fields))


def run(run_id: str = "r", **fields: Any) -> RunRow:
    values: dict[str, Any] = {
        "user_id": ALICE,
        "thread_id": "t",
        "agent_name": "echo",
        "message_id": "m",
        "state": "running",
        "created_at": 1.0,
        "started_seq": 1,
        "trigger": "message",
    }
    return RunRow(run_id=run_id, **values | fields)


def put_run(run_id: str = "r", **fields: Any) -> PutRun:
    return PutRun(row=run(run_id, **fields))


async def trim(store: Store, before: float) -> Mapping[str, int]:
    """Have a portion of what is older removed, as the recorder does."""
    ends = await store.trim(before)
    await store.remove(ends)
    return ends


async def shorten(store: Store, keep_bytes: int, key: str = KEY) -> Mapping[str, int]:
    """Have a portion of what a stream has too much removed, as the recorder does."""
    ends = await store.shorten(key, keep_bytes)
    await store.remove(ends)
    return ends


def job(key: str = "job:build/1", job_id: str = "build", user_id: str = ALICE, *, at: float = 1.0) -> JobRow:
    return JobRow(key=key, job_id=job_id, user_id=user_id, opened_at=at)


def put_job(key: str = "job:build/1", job_id: str = "build", user_id: str = ALICE, *, at: float = 1.0) -> PutJob:
    return PutJob(row=job(key, job_id, user_id, at=at))
