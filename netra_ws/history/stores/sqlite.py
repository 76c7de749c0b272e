"""A SQLite file beneath the SQL store: its lease, its connections, its errors. All of it blocks."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import filelock
import sqlalchemy as sa

from netra_ws.errors import StoreError

from .contract import Durability
from .lease import take_lease
from .migrating import prepare

#: Reads at the same time; in WAL mode none of them waits for the writer.
READERS = 4
# Nobody else should write here, but a backup or an operator's shell may hold the file for a moment.
_BUSY_TIMEOUT_MS = 5_000
# The log is cut back to this after a burst; without it, it keeps its largest size.
_WAL_BYTES = 64 * 1024 * 1024
_SYNCHRONOUS = {"process": "NORMAL", "power": "FULL"}


class SqliteFile:
    """One file with one writing connection and a few reading ones.

    Used from worker threads: up to ``READERS`` in ``reading``, one at a time in everything else.
    """

    name = dialect = "sqlite"
    readers = READERS

    def __init__(self, path: Path, durability: Durability) -> None:
        self._path = path.absolute()  # a program may change its folder
        self._file: tuple[int, int] | None = None  # device and inode of what was opened
        self._durability = durability
        self._lease: filelock.FileLock | None = None
        # Each keeps what it opened until close; a broken connection is replaced at its next use.
        self._writer = self._engine(1, query_only=False)
        self._reader = self._engine(READERS, query_only=True)

    def __repr__(self) -> str:
        return f"<SqliteFile {str(self._path)!r}>"

    def open(self) -> None:
        """Take the lease and make the schema.

        Raises:
            StoreLeased: Another process has the file.
            StoreError: It cannot be opened; nothing is left held.
        """
        with self._errors():
            # Not by filelock, which would make a missing folder, nor by SQLite, which would let others read.
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            opened = os.fstat(descriptor)
            os.close(descriptor)
            self._file = opened.st_dev, opened.st_ino
            self._lease = take_lease(self._path)
            try:
                with self._transaction() as connection:
                    prepare(connection)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close all connections, then give the lease back; no other thread may be in here."""
        if self._lease is None:
            return
        with contextlib.suppress(sa.exc.SQLAlchemyError), self._writer.connect() as connection:
            # What cannot be moved out of the log now is found there by the next open.
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        self._reader.dispose()
        self._writer.dispose()
        self._lease.release()
        self._lease = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Lend a connection that only reads. Errors come out as ``StoreError``."""
        with self._errors():
            self._check_file()
            with self._connection(self._reader) as connection:
                yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Lend the writing connection for one transaction. Errors come out as ``StoreError``."""
        with self._errors():
            self._check_file()
            with self._transaction() as connection:
                yield connection

    def _check_file(self) -> None:
        """Raise when the file is not the opened one any more: what is written then is gone at the next start."""
        try:
            there = self._path.stat()
        except FileNotFoundError:
            raise StoreError("the file was removed while it was open") from None
        if self._file is not None and self._file != (there.st_dev, there.st_ino):
            raise StoreError("the file was replaced while it was open")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._connection(self._writer) as connection, connection.begin():
            # The driver itself would begin later, and only before some statements.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    @contextlib.contextmanager
    def _connection(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        with engine.connect() as connection:
            try:
                yield connection
            except sa.exc.DBAPIError as exc:
                # Full, busy, unreadable: a new connection is cheaper than knowing the state of this one.
                connection.invalidate(exc)
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError, OverflowError, StoreError) as exc:
            raise StoreError(f"store {self._path}: {_reason(exc)}") from exc

    def _engine(self, size: int, *, query_only: bool) -> sa.Engine:
        def connect() -> sqlite3.Connection:
            # Transactions are ours (isolation_level), and so is keeping threads apart.
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            try:
                self._configure(connection, query_only)
            except BaseException:
                connection.close()
                raise
            return connection

        return sa.create_engine(
            "sqlite://",
            creator=connect,
            poolclass=sa.QueuePool,
            pool_size=size,
            max_overflow=0,
            hide_parameters=True,  # they are what users said, and errors are logged
        )

    def _configure(self, connection: sqlite3.Connection, query_only: bool) -> None:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise sqlite3.OperationalError(f"the file cannot have a write-ahead log (journal mode {mode})")
        connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[self._durability]}")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        connection.execute(f"PRAGMA query_only = {int(query_only)}")


def _reason(exc: BaseException) -> str:
    """Return the engine's own words in one line, without the statement and what was bound to it."""
    if isinstance(exc, sa.exc.DBAPIError | sa.exc.StatementError) and exc.orig is not None:
        exc = exc.orig
    text = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    return " ".join(text.split()) or type(exc).__name__
