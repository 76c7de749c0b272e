"""Sessions of PostgreSQL for the SQL store: what bounds every wait, and the lock that is the lease."""

from __future__ import annotations

import contextlib
import hashlib
import select
import time
from collections.abc import Generator, Mapping
from typing import Any, LiteralString, TypeVar

import attrs
import psycopg
import sqlalchemy as sa
from psycopg.abc import PQGen

from netra_ws.errors import StoreError, StoreLeased

T = TypeVar("T")

#: Seconds without a byte from the server after which a session is given up. The kernel keeps a
#: connection to a process that hangs alive for ever; this bounds what no timeout of the system does.
SILENCE_S = 15.0
#: The same while tables are changed, which may take its time.
MIGRATION_S = 3600.0
#: The same when the store is closed.
CLOSE_S = 2.0
#: Milliseconds for the lock of a killed process to be let go of; its server notices at once, but not in no time.
LEASE_WAIT_MS = 2_000

# What libpq is told unless the URL says otherwise. A machine that vanishes is noticed after 15 s when it owes
# an acknowledgement (tcp_user_timeout), after 25 s when nothing is under way (keepalives).
_CONNECTING: Mapping[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "application_name": "netra_ws",
}
# What the server is told; the URL's own ``options`` come behind and win. The last four let a session, and
# with it the lease, end soon after the machine of its client has vanished, or its process hangs.
_OPTIONS = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "statement_timeout": "10s",
        "lock_timeout": "5s",
        "idle_session_timeout": "0",
        "idle_in_transaction_session_timeout": "60s",
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "15s",
    }.items()
)

_PIN = "SELECT set_config('search_path', coalesce(quote_ident(coalesce(%s, current_schema())), ''), false)"


class Session(psycopg.Connection[Any]):
    """A connection that is closed, instead of waited for without end, when the server says nothing."""

    patience_s = SILENCE_S

    def wait(self, gen: PQGen[T], *args: Any, **options: Any) -> T:
        return super().wait(self._bounded(gen), *args, **options)

    def _bounded(self, gen: PQGen[T]) -> Generator[Any, Any, T]:
        # The waiting loop sends a falsy value when nothing came for a fraction of a second.
        try:
            wanted = next(gen)
            heard = time.monotonic()
            while True:
                ready = yield wanted
                if ready:
                    heard = time.monotonic()
                elif time.monotonic() - heard > self.patience_s:
                    self.close()
                    raise psycopg.OperationalError(f"no answer within {self.patience_s:g} s")
                wanted = gen.send(ready)
        except StopIteration as done:
            result: T = done.value
            return result


def connect(where: Mapping[str, Any], schema: str | None = None) -> Session:
    """Open a session on what libpq's parameters *where* name, in which names mean one schema only.

    Args:
        schema: Where names are looked up; None for the first of the search path that is there. One that
            is missing makes a session that knows no names but the system's.

    Raises:
        psycopg.Error: It cannot be reached, or does not let us in.
        StoreError: It is not what the store can be kept in.
    """
    options = f"{_OPTIONS} {where.get('options') or ''}".strip()
    session = Session.connect(**{**_CONNECTING, **where, "options": options}, autocommit=True)
    encoding = session.pgconn.parameter_status(b"server_encoding")
    if encoding != b"UTF8":
        session.close()
        raise StoreError(f"the encoding of the database has to be UTF8, not {(encoding or b'').decode()}")
    try:
        # The rest of the search path may hold the tables of another store, which has a lease of its own.
        session.execute(_PIN, [schema])
    except BaseException:
        session.close()
        raise
    return session


def check_alive(session: Session, record: object = None, proxy: object = None) -> None:
    """Look whether an idle session was ended by the other side; costs a system call, not a round trip.

    Raises:
        sqlalchemy.exc.DisconnectionError: It was; SQLAlchemy opens another one.
    """
    try:
        poll = select.poll()
        poll.register(session.fileno(), select.POLLIN)
        if poll.poll(0):  # something came that nobody asked for
            session.execute("SELECT 1")
            session.rollback()
    except (psycopg.Error, OSError) as exc:
        raise sa.exc.DisconnectionError from exc


@attrs.define
class Lease:
    """The lock of one schema, held by the session that writes: who loses the one cannot use the other.

    ``take`` makes that session; a later one takes the lock again, and finds out whether another
    server had the store meanwhile, which would have used the same numbers for other events.

    Attributes:
        schema: Whose lock it is; the sessions that read look there as well. None while it is not taken.
    """

    where: Mapping[str, Any] = attrs.field(repr=False)  # the password is in it
    schema: str | None = None
    _session: Session | None = None
    _holder: tuple[Any, ...] | None = None
    _generation: int | None = None
    _deposed: bool = False

    def take(self) -> Session:
        """Open a session and take the lock in it, waiting for ``LEASE_WAIT_MS``.

        Raises:
            StoreLeased: Another server has the lock.
            StoreError: The same, where this one has had it; or another one had it since.
            psycopg.Error: As ``connect``.
        """
        self.check()
        session = connect(self.where, self.schema)
        try:
            (schema,) = _one(session, "SELECT current_schema()") or (None,)
            if schema is None:
                raise StoreError("its search_path names no schema that is there")
            self._end_former(session)
            self._lock(session, schema)
            if self._generation is not None:
                self._deposed = (self._generation,) != _one(session, "SELECT generation FROM netra_lease")
                self.check()
            self._holder = _one(session, "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
        except BaseException:
            session.close()
            raise
        self._session, self.schema = session, schema
        return session

    def begin(self, connection: sa.Connection) -> None:
        """Count this owner, in the transaction that *connection* is in."""
        count = sa.text("UPDATE netra_lease SET generation = generation + 1 RETURNING generation")
        self._generation = connection.execute(count).scalar_one()

    def check(self) -> None:
        """Raise when another server has had the store: nothing can make this one its owner again."""
        if self._deposed:
            raise StoreError("another server has had this store meanwhile; this one has to be started again")

    def give_back(self) -> None:
        """Let go of the lock and be as new: whoever opens the store next comes as another owner."""
        session, self._session = self._session, None
        self._holder = self._generation = self.schema = None
        self._deposed = False
        if session is not None and not session.closed:
            # The end of the session would do it, but a moment later.
            session.patience_s = CLOSE_S
            with contextlib.suppress(psycopg.Error):
                session.execute("SELECT pg_advisory_unlock_all()")

    def _end_former(self, session: Session) -> None:
        """End the session that had the lock before, where the server has not noticed that we lost it."""
        if self._holder is not None:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND backend_start = %s"
            session.execute(query, self._holder)

    def _lock(self, session: Session, schema: str) -> None:
        key = int.from_bytes(hashlib.blake2b(f"netra_ws {schema}".encode(), digest_size=8).digest(), signed=True)
        try:
            with session.transaction():
                session.execute(f"SET LOCAL lock_timeout = {LEASE_WAIT_MS}")
                session.execute("SELECT pg_advisory_lock(%s)", [key])
        except psycopg.errors.LockNotAvailable:
            kind = StoreLeased if self._generation is None else StoreError
            raise kind(f"schema {schema} is in use by another server; one serves one process at a time") from None


def _one(session: Session, query: LiteralString) -> tuple[Any, ...] | None:
    return session.execute(query).fetchone()
