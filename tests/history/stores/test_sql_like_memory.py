"""Three drivers, one behaviour: whatever is written, SQLite and PostgreSQL answer as the plain dictionaries do."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netra_ws.history.opening import make_store
from netra_ws.history.stores.contract import (
    DeleteThread,
    DropMessages,
    MessageRow,
    PutEvent,
    PutMessage,
    PutRun,
    PutStream,
    PutThread,
    RenameThread,
    RunRow,
    RunState,
    SetRunState,
    Store,
    Write,
)
from tests.contract.rows import trim
from tests.effort import share
from tests.postgres import Postgres

USERS = ("alice", "o'%brien")
KEYS = ("user:alice", "job:1")
EPOCHS = ("e1", "e2")
IDS = ("a", "b", "ü")
RUNS = ("r", "s", "t")
STATES: tuple[RunState, ...] = ("queued", "running", "success", "lost")

user = st.sampled_from(USERS)
thread_id = st.sampled_from(IDS)
run_id = st.sampled_from(RUNS)
time = st.integers(0, 9).map(float)
seq = st.integers(1, 12)
text = st.one_of(
    st.lists(st.sampled_from(("tea", "TEA", "x", '"', "OR", "東京", "nul\0nul", "Ä")), max_size=4).map(" ".join),
    st.text(st.characters(exclude_categories=()), max_size=8),
)

run_row = st.builds(
    RunRow,
    user_id=user,
    run_id=run_id,
    thread_id=thread_id,
    agent_name=st.just("echo"),
    message_id=st.just("m"),
    state=st.sampled_from(STATES),
    created_at=time,
    started_seq=seq,
    trigger=st.just("message"),
    command_id=st.sampled_from((None, "c", "d")),
)
message_row = st.builds(
    MessageRow,
    user_id=user,
    thread_id=thread_id,
    message_id=st.sampled_from(("m", "n", "o", "p")),
    run_id=st.one_of(st.none(), run_id),
    role=st.sampled_from(("user", "assistant")),
    content=text,
    created_at=time,
    seq=seq,
    attachments=st.sampled_from(((), ({"name": "a"},))),
)
write = st.one_of(
    st.builds(PutStream, key=st.sampled_from(KEYS), epoch=st.sampled_from(EPOCHS), reserved=st.integers(0, 99)),
    st.builds(
        PutEvent,
        key=st.sampled_from(KEYS),
        epoch=st.sampled_from(EPOCHS),
        seq=seq,
        type=st.just("agent_event"),
        thread_id=st.none(),
        run_id=st.one_of(st.none(), run_id),
        created_at=time,
        payload=st.binary(max_size=4),
    ),
    st.builds(PutThread, user_id=user, thread_id=thread_id, title=text, metadata=st.just({"a": [1]}), created_at=time),
    st.builds(RenameThread, user_id=user, thread_id=thread_id, title=text, at=time),
    st.builds(DeleteThread, user_id=user, thread_id=thread_id),
    st.builds(PutMessage, row=message_row),
    st.builds(PutMessage, row=message_row),
    st.builds(DropMessages, user_id=user, run_id=run_id),
    st.builds(PutRun, row=run_row),
    st.builds(SetRunState, user_id=user, run_id=run_id, state=st.sampled_from(STATES), at=time),
)
#: A batch to write, or a time before which to trim.
steps = st.lists(st.one_of(st.lists(write, max_size=30), st.floats(0, 9)), min_size=1, max_size=6)


async def log_of(store: Store) -> list[object]:
    """Return all that *store* answers about streams and events."""
    seen: list[object] = []
    for key in KEYS:
        seen.append(await store.stream(key))
        for epoch in EPOCHS:
            seen.append(await store.events(key, epoch, 0, 99, 99))
            seen.append(await store.events(key, epoch, 3, 8, 3))
            seen += [await store.run_events(key, epoch, each) for each in RUNS]
    return seen


async def ledger_of(store: Store, user_id: str) -> list[object]:
    """Return all that *store* answers about what one user has."""
    seen: list[object] = [await store.count_threads(user_id), await store.threads(user_id, 99, None)]
    seen.append(await store.threads(user_id, 2, (5.0, "b")))
    for each in IDS:
        seen.append(await store.thread(user_id, each))
        seen.append(await store.messages(user_id, each, 99, None, 99))
        seen.append(await store.messages(user_id, each, 2, 9, 7))
    for query in ("tea", "x tea", "or", "京", "nul", "ä"):
        # Which of two is better the drivers may see differently, but not what is found.
        seen.append({row.message_id: row for row in await store.search(user_id, query, 99)})
    seen += [await store.run(user_id, each) for each in RUNS]
    seen += [await store.run_of_command(user_id, each) for each in ("c", "d")]
    return seen


async def same_answers(plan: Sequence[list[Write] | float], url: str) -> None:
    memory, sql = make_store("memory:"), make_store(url)
    stores = (memory, sql)
    for store in stores:
        await store.open()
    try:
        for step in plan:
            if isinstance(step, float):
                assert await trim(memory, step) == await trim(sql, step)
            else:
                await memory.write(step)
                await sql.write(step)
        assert await log_of(memory) == await log_of(sql)
        for user_id in USERS:
            assert await ledger_of(memory, user_id) == await ledger_of(sql, user_id)
        for limit in (2, 99):
            assert await memory.unfinished_runs(limit) == await sql.unfinished_runs(limit)
    finally:
        for store in stores:
            await store.close()


@settings(max_examples=share(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_sqlite_answers_like_memory(plan: list[list[Write] | float]) -> None:
    """After any batches and trims, every read of SQLite gives what it gives of the dictionaries."""
    with tempfile.TemporaryDirectory() as folder:
        trio.run(same_answers, plan, f"sqlite:///{folder}/netra_ws.db")


@pytest.mark.postgres
@settings(max_examples=share(20), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan=steps)
def test_postgresql_answers_like_memory(postgres: Postgres, plan: list[list[Write] | float]) -> None:
    """After any batches and trims, every read of PostgreSQL gives what it gives of the dictionaries."""
    with postgres.schema("like_memory") as url:
        trio.run(same_answers, plan, url)
