"""What only a file can do: be leased, full, foreign, read-only, or survive a killed process."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import tempfile
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from netra_ws.errors import StoreError, StoreLeased
from netra_ws.history.opening import make_store
from netra_ws.history.stores.contract import Durability, Store, Write
from netra_ws.history.stores.sql import SqlStore
from netra_ws.history.stores.sqlite import SqliteFile
from tests.contract.rows import EPOCH, KEY, put_event, put_message, put_stream, put_thread


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


async def refused(store: Store) -> str:
    """Return in which one line an open is refused."""
    with pytest.raises(StoreError) as caught:
        await store.open()
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
        connection.execute("UPDATE netra_revision SET version_num = '0099'")
    text = await refused(store)
    assert text == f"store {path}: it has schema 0099, this version of netra_ws knows 0003; use a newer netra_ws"


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
    batch: list[Write] = [
        put_thread(),
        put_message("m", "secret"),
        put_message("n", "secret", attachments=({"x": object()},)),
    ]
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


async def test_closing_an_unopened_file_makes_none(database: SqliteFile, path: Path) -> None:
    """A database that was never opened is closed without touching the disk."""
    database.close()
    assert not path.exists()


def test_a_store_shows_its_file(database: SqliteFile, path: Path) -> None:
    """The repr of a store, made for a log line, names the driver and the file."""
    assert repr(SqlStore(database)) == f"<SqlStore on <SqliteFile {str(path)!r}>>"
