"""The first tables: streams, events, threads, messages, runs, and the index of words."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_HAS_RUN = sa.text("run_id IS NOT NULL")
_HAS_COMMAND = sa.text("command_id IS NOT NULL")
_UNFINISHED = sa.text("state IN ('queued', 'running')")


def upgrade() -> None:
    """Make everything."""
    _log()
    _threads()
    _messages()
    _runs()
    if op.get_context().dialect.name == "postgresql":
        _words_of_postgresql()
    else:
        # To this tokenizer every byte above 127 is part of a word, so what the index takes for one is
        # decided by words.py alone.
        op.execute("CREATE VIRTUAL TABLE message_words USING fts5(words, tokenize = 'ascii')")


def _text(name: str, *, empty: bool = False) -> sa.Column[str]:
    # Compared and ordered by code points: PostgreSQL would follow the language of the database.
    return sa.Column(name, sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=empty)


def _json(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False)


def _time(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=False)


def _number(name: str, **options: object) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, **options)  # type: ignore[arg-type]


def _index(name: str, table: str, columns: list[str], where: sa.TextClause, *, unique: bool = False) -> None:
    op.create_index(name, table, columns, unique=unique, sqlite_where=where, postgresql_where=where)


def _log() -> None:
    op.create_table(
        "stream",
        _text("key"),
        _text("epoch"),
        _number("reserved"),
        _number("trimmed", server_default="0"),
        sa.PrimaryKeyConstraint("key"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "event",
        _text("stream"),
        _text("epoch"),
        _number("seq"),
        _text("type"),
        _text("thread_id", empty=True),
        _text("run_id", empty=True),
        _time("created_at"),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("stream", "epoch", "seq"),
        sqlite_with_rowid=False,
    )
    _index("event_of_run", "event", ["run_id", "stream"], _HAS_RUN)


def _threads() -> None:
    op.create_table(
        "thread",
        _text("user_id"),
        _text("thread_id"),
        _text("title"),
        _json("metadata"),
        _time("created_at"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("user_id", "thread_id"),
    )
    op.create_index("thread_by_time", "thread", ["user_id", "updated_at", "thread_id"])


def _messages() -> None:
    op.create_table(
        "message",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        _text("user_id"),
        _text("thread_id"),
        _text("message_id"),
        _text("run_id", empty=True),
        _text("role"),
        _text("content"),
        _time("created_at"),
        _number("seq"),
        _json("attachments"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("user_id", "message_id"),
    )
    op.create_index("message_by_place", "message", ["user_id", "thread_id", "seq", "message_id"])
    op.create_index("message_of_run", "message", ["user_id", "run_id"])


def _runs() -> None:
    op.create_table(
        "run",
        *(_text(name) for name in ("user_id", "run_id", "thread_id", "agent_name", "message_id", "state")),
        _time("created_at"),
        _number("started_seq"),
        _text("trigger"),
        *(_text(name, empty=True) for name in ("command_id", "command_digest", "parent_run_id")),
        _time("changed_at"),
        sa.PrimaryKeyConstraint("user_id", "run_id"),
    )
    _index("run_of_command", "run", ["user_id", "command_id"], _HAS_COMMAND, unique=True)
    _index("run_unfinished", "run", ["created_at", "user_id", "run_id"], _UNFINISHED)


def _words_of_postgresql() -> None:
    words = sa.ARRAY(sa.Text(collation="C"))
    op.create_table(
        "message_words",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("words", words, nullable=False),
        sa.Column("counts", sa.ARRAY(sa.Integer), nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
    )
    op.create_index("message_words_by_word", "message_words", ["words"], postgresql_using="gin")
    # How often the store was opened: by it an owner that was cut off knows that another one came.
    op.create_table("netra_lease", sa.Column("generation", sa.BigInteger, nullable=False))
    op.execute("INSERT INTO netra_lease (generation) VALUES (0)")
