"""What the full-text index of SQLite holds."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netra_ws.history.opening import make_store
from netra_ws.history.stores.contract import DeleteThread, DropMessages, Store, Write
from tests.contract.rows import ALICE, BOB, put_message, put_thread


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "netra_ws.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    store = make_store(f"sqlite:///{path}")
    await store.open()
    yield store
    await store.close()


async def index_of(store: Store, path: Path) -> dict[str, int]:
    """Close *store*; return each word of its search index with the number of messages that have it."""
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE VIRTUAL TABLE temp.words USING fts5vocab(main, message_words, row)")
        return dict(connection.execute("SELECT term, doc FROM temp.words"))


async def test_the_index_parts_users(store: Store, path: Path) -> None:
    """No word of the index leads to messages of two users, so a search costs nothing for those of others."""
    for user_id in (ALICE, BOB, "ALICE"):
        await store.write([put_thread(user_id), put_message(user_id=user_id)])
    index = await index_of(store, path)
    assert len(index) == 3
    assert set(index.values()) == {1}


@pytest.mark.parametrize("forget", ["delete", "drop", "replace"])
async def test_the_index_forgets(store: Store, path: Path, forget: str) -> None:
    """Words of a deleted, dropped or replaced message leave the index, they are not only hidden."""
    await store.write([put_thread(), put_message("m", "old")])
    changes: dict[str, Write] = {
        "delete": DeleteThread(user_id=ALICE, thread_id="t"),
        "drop": DropMessages(user_id=ALICE, run_id="r"),
        "replace": put_message("m", "new"),
    }
    await store.write([changes[forget]])
    assert not any(word.endswith("old") for word in await index_of(store, path))
