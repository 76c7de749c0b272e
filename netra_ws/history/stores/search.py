"""Full-text search in SQLite: FTS5 over words that already carry their user.

Each word is indexed behind a tag of its user (``k3vq2m7ahello``), so a search meets the
messages of this user only, however many others use the same word, and ranks by them alone. Two
users may share a tag: that costs time; the query still asks for the user.
"""

from __future__ import annotations

import base64
import hashlib

import sqlalchemy as sa

from .contract import MessageRow
from .schema import AnyText, message
from .words import query_words, words

_USER = sa.bindparam("user_id", type_=AnyText)

# CROSS JOIN keeps the order: the planner must not ask the index once for each message of the user.
SEARCH = (
    sa.text(
        """
        SELECT m.user_id, m.thread_id, m.message_id, m.run_id, m.role, m.content, m.created_at, m.seq, m.attachments
        FROM message_words CROSS JOIN message AS m ON m.id = message_words.rowid
        WHERE message_words MATCH :query AND m.user_id = :user_id
        ORDER BY bm25(message_words), m.seq DESC, m.message_id DESC
        LIMIT :limit
        """
    )
    .bindparams(_USER)
    .columns(*(column for column in message.c if column.name != "id"))
)

_PUT = sa.text("INSERT OR REPLACE INTO message_words (rowid, words) VALUES (:id, :words)")
_FORGET = "DELETE FROM message_words WHERE rowid IN (SELECT id FROM message WHERE user_id = :user_id AND {})"
FORGET_RUN = sa.text(_FORGET.format("run_id = :run_id")).bindparams(_USER, sa.bindparam("run_id", type_=AnyText))
FORGET_THREAD = sa.text(_FORGET.format("thread_id = :thread_id")).bindparams(
    _USER, sa.bindparam("thread_id", type_=AnyText)
)


def put(connection: sa.Connection, id_: int, row: MessageRow) -> None:
    """Make a message findable by its words, and by none that it had before."""
    tag = _tag(row.user_id)
    connection.execute(_PUT, {"id": id_, "words": " ".join([tag + word for word in words(row.content)])})


def expression(user_id: str, query: str) -> str:
    """Return the MATCH expression that finds all words of *query* in the user's messages; no word finds nothing."""
    tag = _tag(user_id)
    # A word has no quote in it, see words.py; within quotes FTS5 has no operators.
    return " ".join(f'"{tag}{word}"' for word in query_words(query)) or '""'


def _tag(user_id: str) -> str:
    digest = hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=5).digest()
    return base64.b32encode(digest).decode().lower()
