"""What only a file can do: be leased, full, foreign, read-only, or survive a killed process."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from netra_ws.errors import StoreError, StoreLeased
from netra_ws.history.opening import make_store
from netra_ws.history.stores.contract import DeleteThread, Durability, Store, Write
from netra_ws.history.stores.sql import SqlStore
from netra_ws.history.stores.sqlite import SqliteFile
from tests.contract.rows import ALICE, BOB, EPOCH, KEY, put_event, put_message, put_stream, put_thread

HOLDER = """
import sys, trio
from netra_ws.history.opening import make_store

async def main():
    store = make_store(sys.argv[1])
    await store.open()
    print("open", flush=True)
    await trio.to_thread.run_sync(sys.stdin.read)

trio.run(main)
"""

WRITER = """
import itertools, sys, trio
from netra_ws.history.opening import make_store
from tests.contract.rows import put_event, put_stream

async def main():
    store = make_store(sys.argv[1])
    await store.open()
    await store.write([put_stream()])
    for number in itertools.count():
        await store.write([put_event(number * 50 + place) for place in range(50)])
        print(number, flush=True)

trio.run(main)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "netra_ws.db"


@pytest.fixture
def database(path: Path) -> SqliteFile:
    return SqliteFile(path, "process")


@pytest.fixture
async def store(database: SqliteFile) -> AsyncIterator[Store]:
    store = SqlStore(database)
    await store.open()
    yield store
    await store.close()


@contextlib.contextmanager
def running(program: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run *program* on the store at *path* in another process, killed on the way out."""
    command = [sys.executable, "-c", program, f"sqlite:///{path}"]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def refused(store: Store) -> str:
    """Return in which one line an open is refused."""
    with pytest.raises(StoreError) as caught:
        await store.open()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The lease.


async def test_a_file_serves_one_store(store: Store, path: Path) -> None:
    """A second open of a file, also by another name of it, fails at once and names it; the first goes on."""
    link = path.with_name("link.db")
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(StoreLeased, match=rf"^store {name} is in use by another server[^\n]*$"):
            await make_store(f"sqlite:///{name}").open()
    await store.write([put_stream()])
    assert await store.stream(KEY) is not None


async def test_an_open_store_cannot_be_opened_again(store: Store) -> None:
    """Opening the same store twice is an error that does it no harm."""
    assert await refused(store) == "the store is open already"
    await store.ping()


async def test_a_killed_process_frees_the_file(path: Path) -> None:
    """While another process has the store it is refused; as soon as that is killed, it opens."""
    with running(HOLDER, path) as process:
        assert line(process) == "open"
        store = make_store(f"sqlite:///{path}")
        with pytest.raises(StoreLeased):
            await store.open()
        process.kill()
        process.wait()
        await store.open()
        await store.close()


async def test_a_killed_writer_loses_nothing_it_told_of(path: Path) -> None:
    """After kill -9 amid writes every batch that was acknowledged is there, and no batch in part."""
    with running(WRITER, path) as process:
        while (told := int(line(process))) < 20:
            pass
        process.kill()
        process.wait()
    store = make_store(f"sqlite:///{path}")
    await store.open()
    seqs = [event.seq for event in await store.events(KEY, EPOCH, -1, 10**9, 10**9)]
    await store.close()
    assert seqs == list(range(len(seqs)))
    assert len(seqs) % 50 == 0
    assert len(seqs) >= (told + 1) * 50


# Files that cannot be a store.


async def test_a_missing_folder_is_not_made(tmp_path: Path) -> None:
    """A file in a folder that is not there is refused, and the folder still is not there."""
    path = tmp_path / "missing" / "netra_ws.db"
    assert await refused(make_store(f"sqlite:///{path}")) == f"store {path}: No such file or directory"
    assert not path.parent.exists()


async def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """A folder in the place of the file is refused."""
    assert await refused(make_store(f"sqlite:///{tmp_path}")) == f"store {tmp_path}: Is a directory"


async def test_another_file_is_left_alone(path: Path) -> None:
    """A file that is no database is refused, not changed, and not held afterwards."""
    content = b"This is no database.\n" * 1_000
    path.write_bytes(content)
    for _ in range(2):
        assert await refused(make_store(f"sqlite:///{path}")) == f"store {path}: file is not a database"
    assert path.read_bytes() == content


async def test_the_tables_of_another_program_are_left_alone(path: Path) -> None:
    """A database that holds something else gets no tables of ours."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE invoices (id INTEGER)")
    text = await refused(make_store(f"sqlite:///{path}"))
    assert text == f"store {path}: it holds tables of another program, such as 'invoices'"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("invoices",)]


async def test_a_newer_schema_is_left_alone(path: Path) -> None:
    """A database written by a newer version is refused with both numbers."""
    store = make_store(f"sqlite:///{path}")
    await store.open()
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE netra_schema SET version = 99")
    text = await refused(store)
    assert text == f"store {path}: it has schema 99, this version of netra_ws knows 1; use a newer netra_ws"


@pytest.mark.parametrize("closed", ["file", "folder"])
async def test_a_read_only_place_is_refused(closed: str) -> None:
    """A file or folder that may not be written to is refused for that reason."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "netra_ws.db")
        store = make_store(f"sqlite:///{path}")
        await store.open()
        await store.close()
        path.with_name("netra_ws.db.lock").unlink()
        path.chmod(0o444 if closed == "file" else 0o666)
        path.parent.chmod(0o555 if closed == "folder" else 0o777)
        try:
            with unprivileged():
                assert await refused(store) == f"store {path}: Permission denied"
        finally:
            path.parent.chmod(0o755)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Let file permissions count within the block, also for the superuser."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


# Failures while it is open.


async def test_a_full_file_takes_writes_when_there_is_room(store: Store, database: SqliteFile) -> None:
    """Where no page is left, the batch fails whole with one line; with room again it is written."""
    await store.write([put_stream()])
    batch = [put_event(seq, payload=b"x" * 3_000) for seq in range(1, 101)]
    with database.writing() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(StoreError, match=r"^store [^\n]*: database or disk is full$"):
        await store.write(batch)
    assert await store.events(KEY, EPOCH, 0, 1_000, 1_000) == []
    # The limit was one of that connection, which is not used again after such an error.
    await store.write(batch)
    assert len(await store.events(KEY, EPOCH, 0, 1_000, 1_000)) == 100


async def test_a_failing_disk_is_told_and_survived(store: Store, path: Path) -> None:
    """When the system refuses to let the files grow, writes fail and reads work; then writes work, too."""
    await store.write([put_stream(), put_event(1)])
    batch = [put_event(seq, payload=b"x" * 3_000) for seq in range(2, 1_000)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    try:
        for _ in range(3):
            with pytest.raises(StoreError, match=r"^store [^\n]*$"):
                await store.write(batch)
            assert len(await store.events(KEY, EPOCH, 0, 1_000, 1_000)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    await store.write(batch)
    assert len(await store.events(KEY, EPOCH, 0, 1_000, 1_000)) == 999


async def test_what_cannot_be_bound_is_an_error_of_the_store(store: Store) -> None:
    """A number beyond the engine's integers raises StoreError, and the next write works."""
    with pytest.raises(StoreError, match="too large"):
        await store.write([put_stream(), put_event(2**80)])
    assert await store.stream(KEY) is None
    await store.write([put_stream()])


async def test_errors_do_not_tell_what_users_said(store: Store) -> None:
    """No error, and none behind it, has the text of a message in it."""
    batch: list[Write] = [put_thread(), put_message("m", "secret"), put_message("n", "secret", seq=2**80)]
    with pytest.raises(StoreError) as caught:
        await store.write(batch)
    assert "'secret'" not in "".join(traceback.format_exception(caught.value))


async def test_reads_do_not_wait_for_the_writer(store: Store, database: SqliteFile) -> None:
    """While a transaction is open, reads see the rows before it."""
    await store.write([put_stream(reserved=1)])
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE stream SET reserved = 2")
        row = await store.stream(KEY)
        assert row is not None
        assert row.reserved == 1


async def test_reading_connections_cannot_write(store: Store, database: SqliteFile) -> None:
    """A statement that changes rows fails where only reads belong."""
    with pytest.raises(StoreError, match="readonly"), database.reading() as connection:
        connection.exec_driver_sql("DELETE FROM stream")


# What is on the disk.


@pytest.mark.parametrize(("durability", "synchronous"), [("process", 1), ("power", 2)])
async def test_durability_is_a_setting_of_the_engine(path: Path, durability: Durability, synchronous: int) -> None:
    """``power`` waits for the disk at each commit (FULL), ``process`` only at checkpoints (NORMAL)."""
    database = SqliteFile(path, durability)
    store = SqlStore(database)
    await store.open()
    with database.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == synchronous
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    await store.close()


async def test_close_leaves_one_whole_file(store: Store, path: Path) -> None:
    """After close the write-ahead log is gone and the file alone has everything; only its user may read it."""
    await store.write([put_stream()])
    await store.close()
    assert {each.name for each in path.parent.iterdir()} <= {"netra_ws.db", "netra_ws.db.lock"}
    assert path.stat().st_mode & 0o777 == 0o600
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT key FROM stream").fetchall() == [(KEY,)]


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


@pytest.mark.parametrize("forget", ["delete", "replace"])
async def test_the_index_forgets(store: Store, path: Path, forget: str) -> None:
    """Words of a deleted or replaced message leave the index, they are not only hidden."""
    await store.write([put_thread(), put_message("m", "old")])
    changes: dict[str, Write] = {
        "delete": DeleteThread(user_id=ALICE, thread_id="t"),
        "replace": put_message("m", "new"),
    }
    await store.write([changes[forget]])
    assert not any(word.endswith("old") for word in await index_of(store, path))


@pytest.mark.parametrize("name", ["EVENTS", "RUN_EVENTS", "THREADS", "MESSAGES", "RUN_OF_COMMAND", "UNFINISHED_RUNS"])
async def test_reads_follow_an_index(store: Store, database: SqliteFile, name: str) -> None:
    """No read walks a whole table or sorts what it finds."""
    from sqlalchemy.dialects import sqlite

    from netra_ws.history.stores import queries

    compiled = getattr(queries, name).compile(dialect=sqlite.dialect())
    with database.reading() as connection:
        values = tuple(1 for _ in compiled.positiontup or ())
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", values).all()
    steps = [step[-1] for step in plan]
    assert len(steps) == 1
    assert " USING " in steps[0]
    assert "user_id" in steps[0] or name in ("EVENTS", "RUN_EVENTS", "UNFINISHED_RUNS")


async def test_many_opens_leave_nothing(path: Path) -> None:
    """Each open and close, also a refused one, gives back every file descriptor."""
    counts = []
    for _ in range(5):
        store = make_store(f"sqlite:///{path}")
        await store.open()
        with pytest.raises(StoreLeased):
            await make_store(f"sqlite:///{path}").open()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(store.ping)
        await store.close()
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
    # The first time, Trio starts its worker threads.
    assert len(set(counts[1:])) == 1
