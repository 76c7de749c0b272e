"""What each kind of write does to the tables, in statements that are made once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import attrs
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from . import schema, search
from .contract import (
    CloseJob,
    DeleteThread,
    DropMessages,
    ForgetJob,
    PutEvent,
    PutJob,
    PutMessage,
    PutRevocation,
    PutRun,
    PutStream,
    PutThread,
    RenameThread,
    SetRunState,
    Write,
)
from .texts import AnyText

# The engines have the same words for this on classes of their own.
_INSERT: Mapping[str, Callable[[sa.Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def _raise_to(column: sa.Column[float], value: sa.ColumnElement[float]) -> sa.ColumnElement[float]:
    # max() of two values has another name in each engine.
    return sa.case((column < value, value), else_=column)


def _put_stream(insert: Any) -> sa.Executable:
    new, old = insert.excluded, schema.stream.c
    put: sa.Executable = insert.on_conflict_do_update(
        index_elements=[old.key],
        set_={"reserved": new.reserved},
        where=sa.and_(old.epoch == new.epoch, old.reserved < new.reserved),
    )
    return put


def _put_message(insert: Any) -> sa.Executable:
    names = ("thread_id", "run_id", "role", "content", "created_at", "seq", "attachments")
    put: sa.Executable = insert.on_conflict_do_update(
        index_elements=[schema.message.c.user_id, schema.message.c.message_id],
        set_={name: insert.excluded[name] for name in names},
    ).returning(schema.message.c.id)
    return put


def _put_revocation(insert: Any) -> sa.Executable:
    new, old = insert.excluded, schema.revocation.c
    put: sa.Executable = insert.on_conflict_do_update(
        index_elements=[old.kind, old.subject],
        set_={name: _raise_to(old[name], new[name]) for name in ("revoked_at", "until")},
    )
    return put


@attrs.frozen
class _Puts:
    """What makes rows, in the words of one engine."""

    stream: sa.Executable
    event: sa.Executable
    thread: sa.Executable
    run: sa.Executable
    message: sa.Executable
    revocation: sa.Executable
    job: sa.Executable


@cache
def _puts(engine: str) -> _Puts:
    insert = _INSERT[engine]
    return _Puts(
        stream=_put_stream(insert(schema.stream)),
        event=insert(schema.event).on_conflict_do_nothing(),
        thread=insert(schema.thread).on_conflict_do_nothing(),
        run=insert(schema.run).on_conflict_do_nothing(),
        message=_put_message(insert(schema.message)),
        revocation=_put_revocation(insert(schema.revocation)),
        job=insert(schema.job).on_conflict_do_nothing(),
    )


def _of_thread(table: sa.Table) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.user_id == sa.bindparam("user"), table.c.thread_id == sa.bindparam("thread"))


_TOUCH_THREAD = (
    schema.thread.update()
    .where(_of_thread(schema.thread))
    .values(updated_at=_raise_to(schema.thread.c.updated_at, sa.bindparam("at", type_=sa.Double)))
)
_RENAME_THREAD = _TOUCH_THREAD.values(title=sa.bindparam("new_title", type_=AnyText))
_DELETE_MESSAGES = schema.message.delete().where(_of_thread(schema.message))
_DELETE_THREAD = schema.thread.delete().where(_of_thread(schema.thread))
_DROP_MESSAGES = schema.message.delete().where(
    schema.message.c.user_id == sa.bindparam("user_id"), schema.message.c.run_id == sa.bindparam("run_id")
)
_SET_RUN_STATE = (
    schema.run.update()
    .where(schema.run.c.user_id == sa.bindparam("user"), schema.run.c.run_id == sa.bindparam("run"), schema.unfinished)
    .values(state=sa.bindparam("new_state"), changed_at=sa.bindparam("at"))
)


_JOB = schema.job.c.key == sa.bindparam("of")
_CLOSE_JOB = schema.job.update().where(_JOB).values(closed=True)
_FORGET_JOB = schema.job.delete().where(_JOB)
_FORGET_STREAM = schema.stream.delete().where(schema.stream.c.key == sa.bindparam("of"))
_FORGET_REVOCATIONS = schema.revocation.delete().where(
    schema.revocation.c.until <= sa.bindparam("now", type_=sa.Double)
)


def carry_out(connection: sa.Connection, batch: Sequence[Write]) -> None:
    """Carry out *batch* in the transaction that *connection* is in.

    Streams and events are taken out of their order and written first: no other kind of write reads
    or changes them, and large groups are what makes a batch cheap.
    """
    log: dict[type, list[Any]] = {PutStream: [], PutEvent: []}
    ledger: list[Any] = []
    for write in batch:
        log.get(type(write), ledger).append(write)
    for kind, group in [*log.items(), *_in_groups(ledger)]:
        if group:
            _CARRY_OUT[kind](connection, group)


def _in_groups(writes: Iterable[Any]) -> Iterable[tuple[type, list[Any]]]:
    for kind, group in groupby(writes, type):
        yield kind, list(group)


def _streams(connection: sa.Connection, writes: Sequence[PutStream]) -> None:
    connection.execute(
        _puts(connection.dialect.name).stream,
        [{"key": w.key, "epoch": w.epoch, "reserved": w.reserved} for w in writes],
    )


def _events(connection: sa.Connection, writes: Sequence[PutEvent]) -> None:
    rows = [
        {
            "stream": w.key,
            "epoch": w.epoch,
            "seq": w.seq,
            "type": w.type,
            "thread_id": w.thread_id,
            "run_id": w.run_id,
            "created_at": w.created_at,
            "payload": w.payload,
        }
        for w in writes
    ]
    connection.execute(_puts(connection.dialect.name).event, rows)


def _threads(connection: sa.Connection, writes: Sequence[PutThread]) -> None:
    rows = [
        {
            "user_id": w.user_id,
            "thread_id": w.thread_id,
            "title": w.title,
            "metadata": dict(w.metadata),
            "created_at": w.created_at,
            "updated_at": w.created_at,
        }
        for w in writes
    ]
    connection.execute(_puts(connection.dialect.name).thread, rows)


def _renamed_threads(connection: sa.Connection, writes: Sequence[RenameThread]) -> None:
    rows = [{"user": w.user_id, "thread": w.thread_id, "new_title": w.title, "at": w.at} for w in writes]
    connection.execute(_RENAME_THREAD, rows)


def _deleted_threads(connection: sa.Connection, writes: Sequence[DeleteThread]) -> None:
    rows = [{"user": w.user_id, "thread": w.thread_id} for w in writes]
    forget = search.INDEX_OF[connection.dialect.name].forget_thread
    connection.execute(forget, [{"user_id": w.user_id, "thread_id": w.thread_id} for w in writes])
    connection.execute(_DELETE_MESSAGES, rows)
    connection.execute(_DELETE_THREAD, rows)


def _messages(connection: sa.Connection, writes: Sequence[PutMessage]) -> None:
    for row in (w.row for w in writes):
        place = {"user": row.user_id, "thread": row.thread_id, "at": row.created_at}
        if connection.execute(_TOUCH_THREAD, place).rowcount == 0:
            continue
        values = {
            "user_id": row.user_id,
            "thread_id": row.thread_id,
            "message_id": row.message_id,
            "run_id": row.run_id,
            "role": row.role,
            "content": row.content,
            "created_at": row.created_at,
            "seq": row.seq,
            "attachments": [dict(each) for each in row.attachments],
        }
        id_ = connection.execute(_puts(connection.dialect.name).message, values).scalar_one()
        search.put(connection, id_, row)


def _dropped_messages(connection: sa.Connection, writes: Sequence[DropMessages]) -> None:
    rows = [{"user_id": w.user_id, "run_id": w.run_id} for w in writes]
    connection.execute(search.INDEX_OF[connection.dialect.name].forget_run, rows)
    connection.execute(_DROP_MESSAGES, rows)


def _runs(connection: sa.Connection, writes: Sequence[PutRun]) -> None:
    rows = [
        {
            "user_id": row.user_id,
            "run_id": row.run_id,
            "thread_id": row.thread_id,
            "agent_name": row.agent_name,
            "message_id": row.message_id,
            "state": row.state,
            "created_at": row.created_at,
            "started_seq": row.started_seq,
            "trigger": row.trigger,
            "command_id": row.command_id,
            "command_digest": row.command_digest,
            "parent_run_id": row.parent_run_id,
            "changed_at": row.created_at,
        }
        for row in (w.row for w in writes)
    ]
    connection.execute(_puts(connection.dialect.name).run, rows)


def _run_states(connection: sa.Connection, writes: Sequence[SetRunState]) -> None:
    rows = [{"user": w.user_id, "run": w.run_id, "new_state": w.state, "at": w.at} for w in writes]
    connection.execute(_SET_RUN_STATE, rows)


def _revocations(connection: sa.Connection, writes: Sequence[PutRevocation]) -> None:
    connection.execute(_puts(connection.dialect.name).revocation, [attrs.asdict(w.row) for w in writes])
    connection.execute(_FORGET_REVOCATIONS, {"now": max(w.row.revoked_at for w in writes)})


def _jobs(connection: sa.Connection, writes: Sequence[PutJob]) -> None:
    rows = [{**attrs.asdict(w.row), "closed": False} for w in writes]
    connection.execute(_puts(connection.dialect.name).job, rows)


def _closed_jobs(connection: sa.Connection, writes: Sequence[CloseJob]) -> None:
    connection.execute(_CLOSE_JOB, [{"of": w.key} for w in writes])


def _forgotten_jobs(connection: sa.Connection, writes: Sequence[ForgetJob]) -> None:
    rows = [{"of": w.key} for w in writes]
    connection.execute(_FORGET_JOB, rows)
    connection.execute(_FORGET_STREAM, rows)


_CARRY_OUT: Mapping[type, Callable[[sa.Connection, Any], None]] = {
    PutStream: _streams,
    PutEvent: _events,
    PutThread: _threads,
    RenameThread: _renamed_threads,
    DeleteThread: _deleted_threads,
    PutMessage: _messages,
    DropMessages: _dropped_messages,
    PutRun: _runs,
    SetRunState: _run_states,
    PutRevocation: _revocations,
    PutJob: _jobs,
    CloseJob: _closed_jobs,
    ForgetJob: _forgotten_jobs,
}
