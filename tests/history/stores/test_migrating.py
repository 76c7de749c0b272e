"""How databases of older versions, newer versions and other programs are met."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from netra_ws.errors import StoreError
from netra_ws.history.opening import make_store
from netra_ws.history.stores import migrating, schema
from netra_ws.history.stores.contract import RunRow, StreamRow
from tests.contract.rows import ALICE, EPOCH, KEY, put_event, put_message, put_stream

#: What files had before there were revisions.
FIRST = """
CREATE TABLE netra_schema (version INTEGER NOT NULL);
CREATE TABLE stream (
    "key" TEXT NOT NULL, epoch TEXT NOT NULL, reserved BIGINT NOT NULL, trimmed BIGINT DEFAULT '0' NOT NULL,
    PRIMARY KEY ("key")
) WITHOUT ROWID;
CREATE TABLE event (
    stream TEXT NOT NULL, epoch TEXT NOT NULL, seq BIGINT NOT NULL, type TEXT NOT NULL, thread_id TEXT, run_id TEXT,
    created_at DOUBLE NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (stream, epoch, seq)
) WITHOUT ROWID;
CREATE INDEX event_of_run ON event (run_id, stream) WHERE run_id IS NOT NULL;
CREATE TABLE thread (
    user_id TEXT NOT NULL, thread_id TEXT NOT NULL, title TEXT NOT NULL, metadata JSON NOT NULL,
    created_at DOUBLE NOT NULL, updated_at DOUBLE NOT NULL, PRIMARY KEY (user_id, thread_id)
);
CREATE INDEX thread_by_time ON thread (user_id, updated_at, thread_id);
CREATE TABLE message (
    id INTEGER NOT NULL, user_id TEXT NOT NULL, thread_id TEXT NOT NULL, message_id TEXT NOT NULL, run_id TEXT,
    role TEXT NOT NULL, content TEXT NOT NULL, created_at DOUBLE NOT NULL, seq BIGINT NOT NULL,
    attachments JSON NOT NULL, PRIMARY KEY (id), UNIQUE (user_id, message_id)
);
CREATE INDEX message_by_place ON message (user_id, thread_id, seq, message_id);
CREATE INDEX message_of_run ON message (user_id, run_id);
CREATE TABLE run (
    user_id TEXT NOT NULL, run_id TEXT NOT NULL, thread_id TEXT NOT NULL, agent_name TEXT NOT NULL,
    message_id TEXT NOT NULL, state TEXT NOT NULL, created_at DOUBLE NOT NULL, started_seq BIGINT NOT NULL,
    "trigger" TEXT NOT NULL, command_id TEXT, command_digest TEXT, parent_run_id TEXT, changed_at DOUBLE NOT NULL,
    PRIMARY KEY (user_id, run_id)
);
CREATE INDEX run_unfinished ON run (created_at, user_id, run_id) WHERE state IN ('queued', 'running');
CREATE UNIQUE INDEX run_of_command ON run (user_id, command_id) WHERE command_id IS NOT NULL;
CREATE VIRTUAL TABLE message_words USING fts5(words, tokenize = 'ascii');
"""
#: One row of each kind, as they stood in such a file.
FIRST_ROWS = """
INSERT INTO netra_schema VALUES (1);
INSERT INTO stream VALUES ('user:alice', 'epoch-1', 1000, 0);
INSERT INTO event VALUES ('user:alice', 'epoch-1', 1, 'agent_event', 't', 'r', 1.0, x'7b7d');
INSERT INTO thread VALUES ('alice', 't', 'A title', '{}', 1.0, 1.0);
INSERT INTO message VALUES (1, 'alice', 't', 'm', 'r', 'user', 'hello', 1.0, 1, '[]');
INSERT INTO message_words (rowid, words) VALUES (1, 'tyodsg4whello');
INSERT INTO run VALUES ('alice','r','t','echo','m','running',1.0,1,'message','c',NULL,NULL,1.0);
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "netra_ws.db"


def make(path: Path, script: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


def tables(path: Path) -> set[str]:
    """Return the definitions of all that is in a file but the revision, without spaces and quotes."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql NOT LIKE '%netra_%'")
        return {re.sub(r'[\s"]+', "", sql) for (sql,) in rows}


async def test_a_file_of_the_first_schema_is_adopted(path: Path) -> None:
    """A file made before there were revisions opens with all it has, and is written to as any other."""
    make(path, FIRST + FIRST_ROWS)
    for round_ in range(2):
        store = make_store(f"sqlite:///{path}")
        await store.open()
        assert await store.stream(KEY) == StreamRow(key=KEY, epoch=EPOCH, reserved=1_000)
        assert [event.seq for event in await store.events(KEY, EPOCH, 0, 9, 9)] == list(range(1, 2 + round_))
        assert [row.message_id for row in await store.search(ALICE, "hello", 9)] == ["m"]
        run = await store.run_of_command(ALICE, "c")
        assert isinstance(run, RunRow)
        await store.write([put_stream(), put_event(1, payload=b"other"), put_event(2), put_message("m", "hello again")])
        await store.close()


async def test_an_adopted_file_is_like_a_new_one(path: Path) -> None:
    """After the adoption nothing tells the file from one that was made today."""
    new = path.with_name("new.db")
    make(path, FIRST + "INSERT INTO netra_schema VALUES (1);")
    for file in (path, new):
        store = make_store(f"sqlite:///{file}")
        await store.open()
        await store.close()
    assert tables(path) == tables(new)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (FIRST + "INSERT INTO netra_schema VALUES (4);", "it has schema 0004"),
        (FIRST, "it has schema None"),
        ("CREATE TABLE netra_revision (version_num VARCHAR(32))", "it has schema None"),
        ("CREATE TABLE netra_revision (version_num); INSERT INTO netra_revision VALUES ('9999')", "it has schema 9999"),
    ],
)
async def test_a_newer_file_is_left_alone(path: Path, script: str, reason: str) -> None:
    """A file of a newer version, also of one before there were revisions, is refused with both numbers."""
    make(path, script)
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        await make_store(f"sqlite:///{path}").open()
    assert str(caught.value) == f"store {path}: {reason}, this version of netra_ws knows 0003; use a newer netra_ws"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    assert len(path.read_bytes()) == len(before)


async def test_a_step_that_fails_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a revision cannot be carried out the database is as it was, and can be opened by who made it."""
    make(path, FIRST + FIRST_ROWS)
    before = tables(path)
    monkeypatch.setattr(migrating, "HEAD", "9998")
    with pytest.raises(Exception, match="9998"):
        await make_store(f"sqlite:///{path}").open()
    assert tables(path) == before
    monkeypatch.undo()
    store = make_store(f"sqlite:///{path}")
    await store.open()
    await store.close()


def test_the_head_is_the_newest_revision() -> None:
    """There is one line of revisions, named by ascending numbers, and HEAD is its end."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrating.__file__).with_name("migrations")))
    revisions = [each.revision for each in ScriptDirectory.from_config(config).walk_revisions()]
    assert revisions[0] == migrating.HEAD
    assert revisions == [f"{number:04}" for number in range(len(revisions), 0, -1)]


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def test_the_steps_lead_to_the_schema(engine: str, request: pytest.FixtureRequest, path: Path) -> None:
    """On each engine the revisions make what schema.py says: no column, type, index or key is another one."""
    url = request.getfixturevalue("postgres_url") if engine == "postgres" else f"sqlite:///{path}"
    store = make_store(url)
    await store.open()
    await store.close()
    database = sa.create_engine(url)
    ours = schema.metadata.tables

    def spelled(type_: sa.types.TypeEngine[object]) -> str:
        # What is reflected says its precision, which PostgreSQL cannot be told.
        return type_.dialect_impl(database.dialect).compile(database.dialect).removesuffix("(53)")

    try:
        with database.connect() as connection:
            options = {
                "compare_type": lambda context, column, ours, found, made: spelled(found) != spelled(made),
                "compare_server_default": True,
                "include_name": lambda name, kind, parents: kind != "table" or name in ours,
            }
            assert compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata) == []
    finally:
        database.dispose()


def test_an_up_to_date_file_is_opened_without_alembic(path: Path) -> None:
    """Only what has to be changed costs the time to import Alembic."""
    program = (
        "import sys, trio; from netra_ws.history.opening import make_store\n"
        f"async def main():\n s = make_store('sqlite:///{path}'); await s.open(); await s.close()\n"
        "trio.run(main); print('alembic' in sys.modules)"
    )
    told = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in range(2)
    ]
    assert [done.stdout.split() for done in told] == [["True"], ["False"]]
    assert [done.stderr for done in told] == ["", ""]
