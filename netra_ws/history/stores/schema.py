"""The tables, the same for every SQL engine.

A database gets them by the steps in ``migrations``: whoever changes something here adds one, and a test
compares the two.
"""

from __future__ import annotations

import sqlalchemy as sa

from .contract import UNFINISHED
from .texts import AnyJson, AnyText, plain_text

metadata = sa.MetaData()


def _text(name: str, *, key: bool = False, empty: bool = False) -> sa.Column[str]:
    return sa.Column(name, AnyText, primary_key=key, nullable=empty)


def _time(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=False)


stream = sa.Table(
    "stream",
    metadata,
    _text("key", key=True),
    _text("epoch"),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    sa.Column("trimmed", sa.BigInteger, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)

# Clustered by position: appending, replay and trimming each walk one piece of the tree.
event = sa.Table(
    "event",
    metadata,
    _text("stream", key=True),
    _text("epoch", key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("type", plain_text(), nullable=False),
    _text("thread_id", empty=True),
    _text("run_id", empty=True),
    _time("created_at"),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
# The run first: SQLite takes the cluster for any index that begins as it does.
_has_run = event.c.run_id.is_not(None)
sa.Index("event_of_run", event.c.run_id, event.c.stream, sqlite_where=_has_run, postgresql_where=_has_run)

thread = sa.Table(
    "thread",
    metadata,
    _text("user_id", key=True),
    _text("thread_id", key=True),
    _text("title"),
    sa.Column("metadata", AnyJson, nullable=False),
    _time("created_at"),
    _time("updated_at"),
)
sa.Index("thread_by_time", thread.c.user_id, thread.c.updated_at, thread.c.thread_id)

message = sa.Table(
    "message",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    _text("user_id"),
    _text("thread_id"),
    _text("message_id"),
    _text("run_id", empty=True),
    sa.Column("role", plain_text(), nullable=False),
    _text("content"),
    _time("created_at"),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("attachments", AnyJson, nullable=False),
    sa.UniqueConstraint("user_id", "message_id"),
)
sa.Index("message_by_place", message.c.user_id, message.c.thread_id, message.c.seq, message.c.message_id)
sa.Index("message_of_run", message.c.user_id, message.c.run_id)

run = sa.Table(
    "run",
    metadata,
    _text("user_id", key=True),
    _text("run_id", key=True),
    _text("thread_id"),
    _text("agent_name"),
    _text("message_id"),
    sa.Column("state", plain_text(), nullable=False),
    _time("created_at"),
    sa.Column("started_seq", sa.BigInteger, nullable=False),
    sa.Column("trigger", plain_text(), nullable=False),
    _text("command_id", empty=True),
    _text("command_digest", empty=True),
    _text("parent_run_id", empty=True),
    _time("changed_at"),
)
#: Written out, not bound: SQLite uses a partial index only where the query repeats its condition.
unfinished = run.c.state.in_([sa.literal_column(f"'{state}'") for state in UNFINISHED])


def unfinished_run_of(events: sa.Table) -> sa.ColumnElement[bool]:
    """Return the condition that an event belongs to a run that has not ended, whose ever."""
    return sa.and_(events.c.run_id.is_not(None), events.c.run_id.in_(sa.select(run.c.run_id).where(unfinished)))


revocation = sa.Table(
    "revocation",
    metadata,
    sa.Column("kind", plain_text(), primary_key=True),
    _text("subject", key=True),
    _time("revoked_at"),
    _time("until"),
)

job = sa.Table(
    "job",
    metadata,
    _text("key", key=True),
    _text("job_id"),
    _text("user_id"),
    _time("opened_at"),
    sa.Column("closed", sa.Boolean, nullable=False),
)
#: Written out, as above.
open_job = job.c.closed == sa.false()
sa.Index("job_open", job.c.job_id, unique=True, sqlite_where=open_job, postgresql_where=open_job)
sa.Index("job_of_user", job.c.user_id)

_has_command = run.c.command_id.is_not(None)
sa.Index(
    "run_of_command",
    run.c.user_id,
    run.c.command_id,
    unique=True,
    sqlite_where=_has_command,
    postgresql_where=_has_command,
)
sa.Index(
    "run_unfinished",
    run.c.created_at,
    run.c.user_id,
    run.c.run_id,
    sqlite_where=unfinished,
    postgresql_where=unfinished,
)
