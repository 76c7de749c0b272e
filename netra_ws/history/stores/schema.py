"""The tables, the same for every SQL engine, and the version by which a later one knows them."""

from __future__ import annotations

import sqlalchemy as sa

from netra_ws.errors import StoreError

from .contract import UNFINISHED

VERSION = 1


class AnyText(sa.TypeDecorator[str]):
    """Text that comes back as it went in.

    No UTF-8 engine takes a lone surrogate, but an agent can make one, and a batch refused for it would
    be tried again for ever. Such a text is kept as bytes, which SQLite allows in a column of texts.
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | bytes | None:
        if value is None or value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogatepass")
        return value

    def process_result_value(self, value: str | bytes | None, dialect: sa.Dialect) -> str | None:
        return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


metadata = sa.MetaData()


def _text(name: str, *, key: bool = False, empty: bool = False) -> sa.Column[str]:
    return sa.Column(name, AnyText, primary_key=key, nullable=empty)


def _time(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=False)


version = sa.Table("netra_schema", metadata, sa.Column("version", sa.Integer, nullable=False))

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
    sa.Column("type", sa.Text, nullable=False),
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
    sa.Column("metadata", sa.JSON, nullable=False),
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
    sa.Column("role", sa.Text, nullable=False),
    _text("content"),
    _time("created_at"),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("attachments", sa.JSON, nullable=False),
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
    sa.Column("state", sa.Text, nullable=False),
    _time("created_at"),
    sa.Column("started_seq", sa.BigInteger, nullable=False),
    sa.Column("trigger", sa.Text, nullable=False),
    _text("command_id", empty=True),
    _text("command_digest", empty=True),
    _text("parent_run_id", empty=True),
    _time("changed_at"),
)
#: Written out, not bound: SQLite uses a partial index only where the query repeats its condition.
unfinished = run.c.state.in_([sa.literal_column(f"'{state}'") for state in UNFINISHED])
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

# Words come folded and parted (see search.py). To this tokenizer every byte above 127 is part of a
# word, so what the index takes for one is decided by words.py alone.
_WORDS = "CREATE VIRTUAL TABLE message_words USING fts5(words, tokenize = 'ascii')"


def prepare(connection: sa.Connection) -> None:
    """Make the tables in an empty database; look at the version of any other.

    Raises:
        StoreError: A newer version of this package, or another program, made what is there.
    """
    tables = sa.inspect(connection).get_table_names()
    if version.name in tables:
        found = connection.execute(sa.select(version.c.version)).scalar()
        if found != VERSION:
            raise StoreError(f"it has schema {found}, this version of netra_ws knows {VERSION}; use a newer netra_ws")
    elif tables:
        raise StoreError(f"it holds tables of another program, such as {tables[0]!r}")
    else:
        metadata.create_all(connection, checkfirst=False)
        connection.exec_driver_sql(_WORDS)
        connection.execute(version.insert(), {"version": VERSION})
