"""A schema of a PostgreSQL database beneath the SQL store: its lease, its sessions, its errors. All of it blocks.

Nothing blocks for ever: connecting takes 5 s at most for each address of the host, a statement 10 s,
and a server that says nothing for 15 s is given up, see ``postgres_session``. Only looking up the
host's name is bounded by the system's resolver.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import psycopg
import psycopg.conninfo
import sqlalchemy as sa

from netra_ws.errors import ConfigError, StoreError, StoreLeased

from .contract import Durability
from .migrating import prepare
from .postgres_session import MIGRATION_S, Lease, Session, check_alive, connect

#: Sessions that only read; each read is one statement.
READERS = 4

_LONGEST_REASON = 500
# Where the server is told not to wait for its disk, ``power`` tells it to. Any stricter setting stays.
_WAIT_FOR_DISK = (
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)


class PostgresSchema:
    """One schema, the first of the URL's search path that is there, with one writing session and a few reading ones.

    The writing session holds the lock that is the lease: when it is lost, so is the lock, and the next
    one writes only when it has the lock again and nobody else had it. Used from worker threads: up to
    ``READERS`` in ``reading``, one at a time in everything else.
    """

    name = "postgres"
    dialect = "postgresql"
    readers = READERS

    def __init__(self, url: str, durability: Durability) -> None:
        self._where = _parameters(url)
        self._place = _place(self._where)
        self._durability = durability
        self._lease = Lease(self._where)
        self._writer = self._engine(1, self._connect_writer)
        self._reader = self._engine(READERS, self._connect_reader, isolation_level="AUTOCOMMIT")

    def __repr__(self) -> str:
        return f"<PostgresSchema {self._place!r}>"

    def open(self) -> None:
        """Take the lease and make the schema.

        Raises:
            StoreLeased: Another process has it.
            StoreError: It cannot be opened; nothing is left held.
        """
        try:
            with self._errors(), self._transaction() as connection:
                with _patience(connection):
                    prepare(connection)
                self._lease.begin(connection)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all sessions, and with them give the lease back; no other thread may be in here."""
        self._lease.give_back()
        self._reader.dispose()
        self._writer.dispose()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Lend a session that only reads. Errors come out as ``StoreError``."""
        with self._errors():
            self._lease.check()
            with self._reader.connect() as connection:
                yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Lend the writing session for one transaction. Errors come out as ``StoreError``."""
        with self._errors(), self._transaction() as connection:
            yield connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._writer.connect() as connection, connection.begin():
            yield connection

    def _connect_writer(self) -> Session:
        session = self._lease.take()
        if self._durability == "power":
            session.execute(_WAIT_FOR_DISK)
        session.autocommit = False
        return session

    def _connect_reader(self) -> Session:
        session = connect(self._where, self._lease.schema)
        session.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        return session

    def _engine(self, size: int, connect: Callable[[], Session], **options: str) -> sa.Engine:
        engine = sa.create_engine(
            "postgresql+psycopg://",
            creator=connect,
            poolclass=sa.QueuePool,
            pool_size=size,
            max_overflow=0,
            hide_parameters=True,  # they are what users said, and errors are logged
            use_native_hstore=False,  # a question less at each connect
            **options,
        )
        sa.event.listen(engine, "checkout", check_alive)
        return engine

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        # Not ``from exc``: what PostgreSQL adds in DETAIL and CONTEXT may be what users said.
        try:
            yield
        except StoreLeased as exc:
            raise StoreLeased(f"store {self._place}: {exc}") from None
        except (sa.exc.SQLAlchemyError, psycopg.Error, OSError, OverflowError, UnicodeError, StoreError) as exc:
            raise StoreError(f"store {self._place}: {_reason(exc)}") from None


@contextlib.contextmanager
def _patience(connection: sa.Connection) -> Iterator[None]:
    """Let statements take long within the block, and locks in the rest of the transaction."""
    session = _session(connection)
    for name in ("statement_timeout", "lock_timeout"):
        connection.exec_driver_sql(f"SET LOCAL {name} = 0")
    session.patience_s = MIGRATION_S
    try:
        yield
    finally:
        del session.patience_s


def _session(connection: sa.Connection) -> Session:
    session: Any = connection.connection.dbapi_connection
    return cast(Session, session)


def _parameters(url: str) -> Mapping[str, Any]:
    """Return what libpq understands of *url*, for its functions only: the password is in it."""
    _, _, rest = url.partition("://")
    # A sign of the password that was not encoded makes libpq take a piece of it for a host, port or name,
    # which errors show.
    authority, _, path = rest.partition("/")
    try:
        if authority.count("@") > 1 or "@" in path.partition("?")[0] or not rest:
            raise psycopg.ProgrammingError
        where = psycopg.conninfo.conninfo_to_dict(f"postgresql://{rest}")
        if not re.fullmatch(r"[\d,]*", str(where.get("port", ""))):
            raise psycopg.ProgrammingError
    except psycopg.Error:
        # Nor libpq's own words, which may repeat any piece of the URL.
        raise ConfigError(
            "store.url: not a connection URI of PostgreSQL, as in postgresql+psycopg://user:password@host:5432/database;"
            " signs like @ : / ? # % in a name or password have to be percent-encoded"
        ) from None
    return where


def _place(where: Mapping[str, Any]) -> str:
    """Return for log lines what is meant, without any password."""
    user = f"{where['user']}@" if "user" in where else ""
    port = f":{where['port']}" if "port" in where else ""
    return f"postgresql://{user}{where.get('host', '')}{port}/{where.get('dbname', '')}"


def _reason(exc: BaseException) -> str:
    """Return the engine's own words in one line, without statement, hints and what was bound."""
    if isinstance(exc, sa.exc.DBAPIError | sa.exc.StatementError) and exc.orig is not None:
        exc = exc.orig
    text = (exc.diag.message_primary if isinstance(exc, psycopg.Error) else None) or str(exc)
    # libpq indents what it guesses about the cause.
    told = " ".join(line.strip() for line in text.splitlines() if line[:1] != "\t")
    return told[:_LONGEST_REASON] or type(exc).__name__
