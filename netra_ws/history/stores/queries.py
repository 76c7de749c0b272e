"""The reads of the SQL store, each made once; parameters are named as the store binds them."""

from __future__ import annotations

import sqlalchemy as sa

from .schema import event, job, message, open_job, revocation, run, stream, thread, unfinished
from .texts import AnyText


def _is(*columns: sa.Column[str]) -> sa.ColumnElement[bool]:
    return sa.and_(*(column == sa.bindparam(column.name) for column in columns))


_LIMIT = sa.bindparam("limit", type_=sa.BigInteger)
_EVENT = sa.select(event.c.seq, event.c.type, event.c.payload).where(_is(event.c.stream, event.c.epoch))
_MESSAGE = sa.select(*(column for column in message.c if column.name != "id"))
_RUN = sa.select(*(column for column in run.c if column.name != "changed_at"))

PING: sa.Executable = sa.select(sa.literal_column("1").label("one"))

STREAM = sa.select(stream).where(_is(stream.c.key))

EVENTS = (
    _EVENT.where(event.c.seq > sa.bindparam("after"), event.c.seq <= sa.bindparam("upto"))
    .order_by(event.c.seq)
    .limit(_LIMIT)
)

EVENT_SIZES = EVENTS.with_only_columns(event.c.seq, sa.func.length(event.c.payload).label("size"))

RUN_EVENTS = _EVENT.where(_is(event.c.run_id)).order_by(event.c.seq)

THREAD = sa.select(thread).where(_is(thread.c.user_id, thread.c.thread_id))

_THREAD_PLACE = sa.tuple_(thread.c.updated_at, thread.c.thread_id)
_BEFORE = sa.tuple_(sa.bindparam("at", type_=sa.Double), sa.bindparam("thread_id", type_=AnyText))
THREADS = (
    sa.select(thread)
    .where(_is(thread.c.user_id), _THREAD_PLACE < _BEFORE)
    .order_by(thread.c.updated_at.desc(), thread.c.thread_id.desc())
    .limit(_LIMIT)
)

COUNT_THREADS = sa.select(sa.func.count().label("count")).select_from(thread).where(_is(thread.c.user_id))

# Backwards, to find the last ones by the index; the caller turns them round.
MESSAGES = (
    _MESSAGE.where(_is(message.c.user_id, message.c.thread_id), message.c.seq < sa.bindparam("end"))
    .order_by(message.c.seq.desc(), message.c.message_id.desc())
    .limit(_LIMIT)
)

RUN = _RUN.where(_is(run.c.user_id, run.c.run_id))

RUN_OF_COMMAND = _RUN.where(_is(run.c.user_id, run.c.command_id))

UNFINISHED_RUNS = _RUN.where(unfinished).order_by(run.c.created_at, run.c.user_id, run.c.run_id).limit(_LIMIT)

REVOCATIONS = (
    sa.select(revocation)
    .where(revocation.c.until > sa.bindparam("now", type_=sa.Double))
    .order_by(revocation.c.until.desc(), revocation.c.kind, revocation.c.subject)
    .limit(_LIMIT)
)

_JOB = sa.select(*(column for column in job.c if column.name != "closed"))

JOB = _JOB.where(_is(job.c.job_id), open_job)

COUNT_JOBS = sa.select(sa.func.count().label("count")).select_from(job).where(_is(job.c.user_id), open_job)

EMPTY_JOBS = (
    _JOB.where(
        sa.or_(job.c.closed, job.c.opened_at < sa.bindparam("before", type_=sa.Double)),
        ~sa.exists().where(event.c.stream == job.c.key).correlate(job),
    )
    .order_by(job.c.opened_at, job.c.key)
    .limit(_LIMIT)
)
