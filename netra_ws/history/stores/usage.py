"""How much is kept of one user in the SQL store, and what of it is the oldest."""

from __future__ import annotations

import sqlalchemy as sa

from .contract import ThreadRow, Usage
from .schema import event, job, message, stream, thread, unfinished_run_of
from .trimming import PORTION, Cut

_USER = sa.bindparam("user_id", type_=thread.c.user_id.type)
_MESSAGE_BYTES = sa.func.coalesce(
    sa.func.sum(sa.func.length(message.c.content) + sa.func.length(sa.cast(message.c.attachments, sa.Text))), 0
)
_of_stream = sa.and_(event.c.stream == stream.c.key, event.c.epoch == stream.c.epoch)

_EVENTS = (
    sa.select(stream.c.epoch, sa.func.coalesce(sa.func.sum(sa.func.length(event.c.payload)), 0).label("bytes"))
    .select_from(stream.outerjoin(event, _of_stream))
    .where(stream.c.key == sa.bindparam("key"))
    .group_by(stream.c.epoch)
)
_MESSAGES = sa.select(_MESSAGE_BYTES).where(message.c.user_id == _USER)
_JOB_BYTES = sa.func.sum(sa.func.length(event.c.payload))
_JOBS = (
    sa.select(job.c.key, _JOB_BYTES.label("bytes"))
    .select_from(job.join(event, event.c.stream == job.c.key))
    .where(job.c.user_id == _USER)
    .group_by(job.c.key)
)
_ALL_JOBS = sa.select(sa.func.coalesce(sa.func.sum(_JOBS.subquery().c.bytes), 0))
_LARGEST_JOBS = _JOBS.order_by(_JOB_BYTES.desc(), job.c.key).limit(sa.bindparam("limit", type_=sa.BigInteger))
_OLDEST = (
    sa.select(
        thread,
        sa.select(_MESSAGE_BYTES)
        .where(message.c.user_id == thread.c.user_id, message.c.thread_id == thread.c.thread_id)
        .correlate(thread)
        .scalar_subquery()
        .label("bytes"),
    )
    .where(thread.c.user_id == _USER)
    .order_by(thread.c.updated_at, thread.c.thread_id)
    .limit(sa.bindparam("limit", type_=sa.BigInteger))
)
_FRONT = (
    sa.select(event.c.seq, sa.func.length(event.c.payload).label("size"), unfinished_run_of(event).label("stays"))
    .where(event.c.stream == sa.bindparam("key"), event.c.epoch == sa.bindparam("epoch"))
    .order_by(event.c.seq)
    .limit(PORTION)
)


def measure(connection: sa.Connection, user_id: str, key: str) -> Usage:
    """Do what ``Store.usage`` promises."""
    events = connection.execute(_EVENTS, {"key": key}).first()
    messages = connection.execute(_MESSAGES, {"user_id": user_id}).scalar_one()
    jobs = connection.execute(_ALL_JOBS, {"user_id": user_id}).scalar_one()
    return Usage(events=0 if events is None else int(events.bytes), messages=int(messages), jobs=int(jobs))


def largest_jobs(connection: sa.Connection, user_id: str, limit: int) -> list[tuple[str, int]]:
    """Do what ``Store.largest_jobs`` promises."""
    rows = connection.execute(_LARGEST_JOBS, {"user_id": user_id, "limit": max(0, limit)})
    return [(row.key, int(row.bytes)) for row in rows]


def oldest(connection: sa.Connection, user_id: str, limit: int) -> list[tuple[ThreadRow, int]]:
    """Do what ``Store.oldest_threads`` promises."""
    rows = connection.execute(_OLDEST, {"user_id": user_id, "limit": max(0, limit)}).mappings()
    names = [column.name for column in thread.c]
    return [(ThreadRow(**{name: row[name] for name in names}), int(row["bytes"])) for row in rows]


def find_excess(connection: sa.Connection, key: str, keep_bytes: int) -> list[Cut]:
    """Return what may go of a stream so that *keep_bytes* remain, ``PORTION`` events at most."""
    total = connection.execute(_EVENTS, {"key": key}).first()
    excess = 0 if total is None else int(total.bytes) - keep_bytes
    if total is None or excess <= 0:
        return []
    last = None
    for row in connection.execute(_FRONT, {"key": key, "epoch": total.epoch}):
        if row.stays or excess <= 0:
            break
        last = row.seq
        excess -= row.size
    return [] if last is None else [Cut(key, last)]
