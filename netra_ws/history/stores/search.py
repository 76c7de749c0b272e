"""Full-text search over words that already carry their user, by the index that the engine has.

Each word is indexed behind a tag of its user (``k3vq2m7ahello``), so a search meets the
messages of this user only, however many others use the same word. Two users may share a tag: that
costs time; the query still asks for the user.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
import sqlalchemy as sa

from .contract import MessageRow
from .schema import message
from .texts import AnyText
from .words import query_words, words

_USER = sa.bindparam("user_id", type_=AnyText)
_INDEX = sa.table("message_words")


@attrs.frozen
class Index:
    """The statements of one engine.

    Attributes:
        search: Finds messages; binds ``user_id``, ``query`` and ``limit``.
        sought: Words → what is bound as ``query``; no words find nothing.
        put: Makes a message findable by its words, and by none that it had before; binds ``id`` too.
        kept: Words of a message, at least one → the other values that ``put`` binds.
        forget: Removes a message that has no word; binds ``id``.
        forget_run: Removes the messages of a run; binds ``user_id`` and ``run_id``.
        forget_thread: Removes the messages of a thread; binds ``user_id`` and ``thread_id``.
    """

    search: sa.Executable
    sought: Callable[[list[str]], object]
    put: sa.Executable
    kept: Callable[[list[str]], dict[str, Any]]
    forget: sa.Executable
    forget_run: sa.Executable
    forget_thread: sa.Executable


def put(connection: sa.Connection, id_: int, row: MessageRow) -> None:
    """Make a message findable by its words, and by none that it had before."""
    index, tag = INDEX_OF[connection.dialect.name], _tag(row.user_id)
    if found := [tag + word for word in words(row.content)]:
        connection.execute(index.put, {"id": id_, **index.kept(found)})
    else:
        connection.execute(index.forget, {"id": id_})


def sought(engine: str, user_id: str, query: str) -> object:
    """Return what ``Index.search`` binds to find all words of *query* in the user's messages."""
    tag = _tag(user_id)
    return INDEX_OF[engine].sought([tag + word for word in query_words(query)])


def _tag(user_id: str) -> str:
    digest = hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=5).digest()
    return base64.b32encode(digest).decode().lower()


def _search(text: str, *typed: sa.BindParameter[Any]) -> sa.Executable:
    columns = [column for column in message.c if column.name != "id"]
    text = text.format(", ".join(f"m.{column.name}" for column in columns))
    return sa.text(text).bindparams(_USER, *typed).columns(*columns)


def _forget(key: str, name: str) -> sa.Executable:
    which = sa.select(message.c.id).where(message.c.user_id == _USER, message.c[name] == sa.bindparam(name))
    return sa.delete(_INDEX).where(sa.column(key).in_(which))


# SQLite: FTS5, which ranks by bm25 over the words of this user alone. CROSS JOIN keeps the order: the
# planner must not ask the index once for each message of the user.
_FTS5 = Index(
    search=_search(
        """
        SELECT {} FROM message_words CROSS JOIN message AS m ON m.id = message_words.rowid
        WHERE message_words MATCH :query AND m.user_id = :user_id
        ORDER BY bm25(message_words), m.seq DESC, m.message_id DESC
        LIMIT :limit
        """
    ),
    # A word has no quote in it, see words.py; within quotes FTS5 has no operators.
    sought=lambda found: " ".join(f'"{word}"' for word in found) or '""',
    put=sa.text("INSERT OR REPLACE INTO message_words (rowid, words) VALUES (:id, :words)"),
    kept=lambda found: {"words": " ".join(found)},
    forget=sa.text("DELETE FROM message_words WHERE rowid = :id"),
    forget_run=_forget("rowid", "run_id"),
    forget_thread=_forget("rowid", "thread_id"),
)


# PostgreSQL: an array of words under GIN. A tsvector, its own type for this, holds one megabyte: the
# batch with a longer message would be refused for ever. Better is what is more of the message, as in memory.
def _counted(found: list[str]) -> dict[str, Any]:
    counts = Counter(found)
    return {"words": list(counts), "counts": list(counts.values()), "size": len(found)}


_WORDS = sa.ARRAY(sa.Text(collation="C"))
_GIN = Index(
    search=_search(
        """
        SELECT {} FROM message_words AS w JOIN message AS m ON m.id = w.id
        WHERE w.words @> :query AND cardinality(:query) > 0 AND m.user_id = :user_id
        ORDER BY
            (SELECT sum(w.counts[array_position(w.words, word)]) FROM unnest(:query) AS word)::float8 / w.size DESC,
            m.seq DESC, m.message_id DESC
        LIMIT :limit
        """,
        sa.bindparam("query", type_=_WORDS),
    ),
    sought=lambda found: found,
    put=sa.text(
        """
        INSERT INTO message_words (id, words, counts, size) VALUES (:id, :words, :counts, :size)
        ON CONFLICT (id) DO UPDATE SET words = excluded.words, counts = excluded.counts, size = excluded.size
        """
    ).bindparams(sa.bindparam("words", type_=_WORDS), sa.bindparam("counts", type_=sa.ARRAY(sa.Integer))),
    kept=_counted,
    forget=sa.text("DELETE FROM message_words WHERE id = :id"),
    forget_run=_forget("id", "run_id"),
    forget_thread=_forget("id", "thread_id"),
)

INDEX_OF = {"sqlite": _FTS5, "postgresql": _GIN}
