"""What only PostgreSQL can do: be leased by a session, restarted, frozen, cut, set otherwise."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
import trio

from netra_ws.errors import ConfigError, StoreError, StoreLeased
from netra_ws.history.opening import make_store
from netra_ws.history.stores import postgres_session
from netra_ws.history.stores.contract import Durability, Store, Write
from netra_ws.history.stores.postgres import PostgresSchema
from netra_ws.history.stores.postgres_session import Session
from netra_ws.history.stores.sql import SqlStore
from tests.contract.rows import ALICE, EPOCH, KEY, put_event, put_message, put_stream, put_thread
from tests.postgres import PASSWORD, Postgres
from tests.proxy import Fate, Proxy, proxy

from .test_lease import HOLDER, WRITER, line, running

pytestmark = pytest.mark.postgres


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    store = make_store(postgres_url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def before(postgres: Postgres) -> AsyncIterator[Proxy]:
    """A proxy before the server of all tests."""
    async with proxy(postgres) as made:
        yield made


@pytest.fixture
async def through(before: Proxy, postgres: Postgres, postgres_url: str) -> AsyncIterator[Store]:
    """A store that is reached through the proxy."""
    store = make_store(postgres_url.replace(f":{postgres.port}/", f":{before.port}/"))
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An open that is refused the lease does not wait for it: whoever has it does not die."""
    monkeypatch.setattr(postgres_session, "LEASE_WAIT_MS", 100)


def is_clean(text: str) -> bool:
    """Whether a text has one line and nothing of the password."""
    return "\n" not in text and not any(piece in text for piece in (PASSWORD, "hunter2", "%40"))


async def fails(store: Store) -> str:
    """Return in which one line a write fails."""
    with pytest.raises(StoreError) as caught:
        await store.write([put_stream()])
    told = "".join(traceback.format_exception(caught.value))
    assert is_clean(str(caught.value)), str(caught.value)
    assert "hunter2" not in told
    return str(caught.value)


async def refused(url: str) -> str:
    """Return in which one line an open is refused."""
    store = make_store(url)
    with pytest.raises(StoreError) as caught:
        await store.open()
    assert is_clean(str(caught.value)), str(caught.value)
    return re.sub(r"//ada@127\.0\.0\.1:\d+/", "//ada@…/", str(caught.value))


async def seqs(store: Store) -> list[int]:
    return [event.seq for event in await store.events(KEY, EPOCH, -1, 10**9, 10**9)]


# What cannot be a store.


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:hunter2@:/?#%@127.0.0.1/netra",
        "postgresql://ada:hunter2@h:port/netra?nonsense=hunter2",
        "postgresql+psycopg://ada:%zzhunter2@h/netra",
        "postgresql:ada:hunter2",
        "postgresql://ada:hunt@er2/x@h/db",
        "postgresql://ada:hunt@er2@h/db",
        "postgresql://ada:hun/ter2@h/db",
        "postgresql://ada:hunter2",
        "postgresql://ada:hun?t@er2@h/db",
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url: str) -> None:
    """A URL that libpq does not take is refused in one line that says why, and has nothing of the URL in it."""
    with pytest.raises(ConfigError, match=r"^store\.url: [^\n]*percent-encoded$") as caught:
        make_store(url)
    told = str(caught.value).partition(", as in ")[0]
    assert not any(piece in told for piece in ("ada", "hun", "er2"))
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


async def test_what_cannot_be_reached_is_told(postgres: Postgres) -> None:
    """Nobody there, a wrong password, database or schema: each is one line without the password."""
    url = postgres.url()
    assert "Connection refused" in await refused(url.replace(f":{postgres.port}/", ":1/"))
    assert "password authentication failed" in await refused(url.replace("hunter2", "hunter3"))
    assert 'database "other" does not exist' in await refused(url.replace("/netra?", "/other?"))
    text = await refused(postgres.url("missing"))
    assert text == "store postgresql://ada@…/netra: its search_path names no schema that is there"


async def test_the_tables_of_another_program_are_left_alone(postgres: Postgres, postgres_url: str) -> None:
    """A schema that holds something else gets no tables of ours."""
    schema = postgres_url.rpartition("%3D")[2]
    with postgres.connect() as connection:
        connection.execute(f"CREATE TABLE {schema}.invoices (id integer)")
        assert "it holds tables of another program, such as 'invoices'" in await refused(postgres_url)
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [schema]).fetchall()
    assert found == [("invoices",)]


async def test_a_newer_schema_is_left_alone(postgres: Postgres, postgres_url: str, store: Store) -> None:
    """A schema of a newer version is refused with both numbers."""
    await store.close()
    with postgres.connect() as connection:
        connection.execute(f"UPDATE {postgres_url.rpartition('%3D')[2]}.netra_revision SET version_num = '0099'")
    assert "it has schema 0099, this version of netra_ws knows 0001; use a newer" in await refused(postgres_url)


async def test_another_encoding_is_refused(postgres: Postgres) -> None:
    """A database that cannot hold every text is refused before anything is made in it."""
    with postgres.connect("postgres") as connection:
        connection.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING LATIN1 LOCALE 'C'")
    text = await refused(postgres.url().replace("/netra?", "/latin?"))
    assert text.endswith("the encoding of the database has to be UTF8, not LATIN1")


def test_nothing_shows_the_password(postgres: Postgres) -> None:
    """The repr of a store, made for a log line, says where it is and not how one gets in."""
    store = make_store(postgres.url())
    assert repr(store) == f"<SqlStore on <PostgresSchema 'postgresql://ada@127.0.0.1:{postgres.port}/netra'>>"


# What is kept.


async def test_everything_is_in_the_schema_of_the_url(postgres: Postgres, store: Store, postgres_url: str) -> None:
    """Nothing is made outside the first schema of the search path."""
    await store.write([put_stream(), put_thread(), put_message()])
    with postgres.connect() as connection:
        made = connection.execute(
            "SELECT DISTINCT nspname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE relname IN ('event', 'message_words', 'netra_lease', 'netra_revision', 'message_id_seq')"
        ).fetchall()
    assert made == [(postgres_url.rpartition("%3D")[2],)]


async def test_every_text_is_compared_by_code_points(postgres: Postgres, store: Store, postgres_url: str) -> None:
    """No column follows the language of the database, which would order threads otherwise than a cursor does."""
    schema = postgres_url.rpartition("%3D")[2]
    with postgres.connect() as connection:
        others = connection.execute(
            "SELECT relname, attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid"
            " JOIN pg_collation l ON l.oid = attcollation"
            " WHERE relnamespace = %s::regnamespace AND relkind = 'r' AND attnum > 0 AND collname <> 'C'",
            [schema],
        ).fetchall()
    assert others == [("netra_revision", "version_num")]


async def test_threads_are_in_the_order_of_python(store: Store) -> None:
    """Threads of the same time come by their ids as Python orders them, also with letters of any script and case."""
    ids = ["a", "B", "ä", "Z", "_", "-", "a b", "A", "ab", "z\0", "z", "東", "\ud7ff", "\ue000", "\U0001f600"]
    await store.write([put_thread(thread_id=each) for each in ids])
    seen: list[str] = []
    while rows := await store.threads(ALICE, 4, (1.0, seen[-1]) if seen else None):
        seen += [row.thread_id for row in rows]
    assert seen == sorted(ids, reverse=True)


async def test_a_long_message_of_many_words_is_found(store: Store) -> None:
    """A message with more different words than a tsvector holds is kept, and found by each."""
    text = " ".join(f"w{number:x}" for number in range(200_000))
    await store.write([put_thread(), put_message("m", text)])
    assert [row.message_id for row in await store.search(ALICE, "w0 w30d3f", 9)] == ["m"]


async def test_metadata_need_not_be_what_postgresql_calls_json(store: Store) -> None:
    """NUL, lone surrogates and NaN in metadata come back."""
    metadata = {"nul\0": "\0", "half": "\ud83d", "n": float("inf"), "big": 2**70}
    await store.write([put_thread(metadata=metadata)])
    row = await store.thread(ALICE, "t")
    assert row is not None
    assert row.metadata == metadata


async def test_what_cannot_be_bound_is_an_error_of_the_store(store: Store) -> None:
    """A number beyond the engine's integers raises StoreError, and the next write works."""
    with pytest.raises(StoreError, match="out of range"):
        await store.write([put_stream(), put_event(2**80)])
    await store.write([put_stream(), put_event(2**62)])


async def test_errors_do_not_tell_what_users_said(store: Store, postgres_url: str, postgres: Postgres) -> None:
    """An error of the engine, and what is shown behind it, has neither the rows nor what was bound in it."""
    schema = postgres_url.rpartition("%3D")[2]
    with postgres.connect() as connection:
        connection.execute(f"ALTER TABLE {schema}.message ADD CHECK (content <> 'my secret')")
    with pytest.raises(StoreError, match=r"^store [^\n]*check constraint[^\n]*$") as caught:
        await store.write([put_thread(), put_message("m", "my secret")])
    assert "my secret'" not in "".join(traceback.format_exception(caught.value))


async def test_reading_sessions_cannot_write(postgres_url: str) -> None:
    """A statement that changes rows fails where only reads belong."""
    database = PostgresSchema(postgres_url, "process")
    database.open()
    with pytest.raises(StoreError, match="read-only transaction"), database.reading() as connection:
        connection.exec_driver_sql("DELETE FROM stream")
    database.close()


@pytest.mark.parametrize(("durability", "told"), [("process", "off"), ("power", "on")])
async def test_durability_is_a_setting_of_the_session(postgres: Postgres, durability: Durability, told: str) -> None:
    """Where the server is told not to wait for its disk, ``power`` waits all the same."""
    with postgres.schema("durable"):
        database = PostgresSchema(postgres.url("durable", options="-csynchronous_commit=off"), durability)
        database.open()
        with database.writing() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == told
        database.close()


# The lease.


@pytest.mark.usefixtures("in_no_time")
async def test_a_schema_serves_one_store(store: Store, postgres: Postgres, postgres_url: str) -> None:
    """A second open of a schema fails with one line, the first goes on; another schema is another store."""
    with pytest.raises(StoreLeased, match=r"^store postgresql://ada@[^\n]*netra: schema test_\d+ is in use by another"):
        await make_store(postgres_url).open()
    await store.write([put_stream()])
    with postgres.schema("another") as url:
        other = make_store(url)
        await other.open()
        assert await other.stream(KEY) is None
        await other.close()


async def test_a_killed_process_frees_the_schema(postgres_url: str) -> None:
    """While another process has the store it is refused; as soon as that is killed, it opens."""
    with running(HOLDER, postgres_url) as process:
        assert line(process) == "open"
        store = make_store(postgres_url)
        with pytest.raises(StoreLeased):
            await store.open()
        process.kill()
        process.wait()
        await store.open()
        await store.close()


async def test_a_killed_writer_loses_nothing_it_told_of(postgres_url: str) -> None:
    """After kill -9 amid writes every batch that was acknowledged is there, and no batch in part."""
    with running(WRITER, postgres_url) as process:
        while (told := int(line(process))) < 20:
            pass
        process.kill()
        process.wait()
    store = make_store(postgres_url)
    await store.open()
    found = await seqs(store)
    await store.close()
    assert found == list(range(len(found)))
    assert len(found) % 50 == 0
    assert len(found) >= (told + 1) * 50


async def test_who_lost_the_lock_takes_it_again(through: Store, before: Proxy) -> None:
    """A store whose sessions were all cut while it was idle goes on, without a single call that fails."""
    await through.write([put_stream(), put_event(1)])
    assert await seqs(through) == [1]
    before.cut()
    await through.write([put_event(2)])
    assert await seqs(through) == [1, 2]


@pytest.mark.parametrize("still_there", [True, False])
@pytest.mark.usefixtures("in_no_time")
async def test_who_was_deposed_never_writes_again(
    through: Store, before: Proxy, postgres_url: str, still_there: bool
) -> None:
    """A store that lost the lock to another one cannot write or read any more, also when that one has ended."""
    await through.write([put_stream(), put_event(1)])
    before.cut(Fate.REFUSE)
    await fails(through)
    other = make_store(postgres_url)
    await other.open()
    await other.write([put_event(2, payload=b"of the new owner")])
    if not still_there:
        await other.close()
    before.fate = Fate.PASS
    for _ in range(2):
        assert ("is in use by" if still_there else "has had this store meanwhile") in await fails(through)
    if still_there:
        assert await seqs(other) == [1, 2]
        await other.close()
        assert "has had this store meanwhile" in await fails(through)
    with pytest.raises(StoreError, match="meanwhile"):
        await through.ping()


async def test_a_deposed_store_can_be_opened_again(through: Store, before: Proxy, postgres_url: str) -> None:
    """Closed and opened anew, a deposed store is an owner like any other."""
    before.cut(Fate.REFUSE)
    await fails(through)
    other = make_store(postgres_url)
    await other.open()
    await other.close()
    before.fate = Fate.PASS
    assert "meanwhile" in await fails(through)
    await through.close()
    await through.open()
    await through.write([put_stream()])


@pytest.mark.usefixtures("in_no_time")
async def test_a_transaction_of_a_deposed_owner_cannot_be_committed(postgres: Postgres, postgres_url: str) -> None:
    """What an owner had written when its session was ended by the server is not there, and another may come."""
    old, new = PostgresSchema(postgres_url, "process"), make_store(postgres_url)
    old.open()
    with pytest.raises(StoreError), old.writing() as connection:
        connection.execute(sa.text("INSERT INTO stream VALUES ('user:alice', 'old', 1, 0)"))
        pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        with postgres.connect() as operator:
            operator.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        await new.open()
    assert await new.stream(KEY) is None
    await new.write([put_stream()])
    with pytest.raises(StoreError, match="in use by another"), old.writing():
        pass
    old.close()
    await new.close()


# Failures while it is open.


async def test_a_commit_of_unknown_fate_can_be_repeated(through: Store, before: Proxy) -> None:
    """Cut before or after the COMMIT reached the server, a batch handed over again is there once."""
    batch: list[Write] = [put_stream(), put_event(1, run_id="r"), put_thread(), put_message("m", "hello hello")]
    for number, fate in enumerate([Fate.COMMIT_LOST, Fate.ANSWER_LOST], 1):
        before.fate = fate
        with pytest.raises(StoreError):
            await through.write([*batch, put_event(number + 1)])
        assert before.fate is Fate.PASS, "no COMMIT came through"
        assert len(await seqs(through)) == (0 if fate is Fate.COMMIT_LOST else 3)
        await through.write([*batch, put_event(number + 1)])
        assert await seqs(through) == list(range(1, number + 2))
    assert [row.message_id for row in await through.search(ALICE, "hello", 9)] == ["m"]


@pytest.mark.parametrize("fate", [Fate.COMMIT_LOST, Fate.ANSWER_LOST])
async def test_a_trim_of_unknown_fate_is_told(through: Store, before: Proxy, fate: Fate) -> None:
    """When the removal of old events fails or seems to, streams say up to where before anybody can miss one."""
    await through.write([put_stream(), *(put_event(seq) for seq in range(1, 6))])
    before.commits = 0

    async with trio.open_nursery() as nursery:

        async def spoil_the_second() -> None:
            while before.commits < 1:
                await trio.sleep(0)
            before.fate = fate

        nursery.start_soon(spoil_the_second)
        assert await through.trim(5.0) == {KEY: 5}
    row = await through.stream(KEY)
    assert row is not None
    assert row.trimmed == 5
    with pytest.raises(StoreError):
        await through.trim(5.0)
    while await through.trim(5.0):
        pass
    assert await seqs(through) == []


async def test_silence_is_given_up(through: Store, before: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nothing comes any more on open connections, calls fail after their time; then the store goes on."""
    await through.write([put_stream()])
    await seqs(through)
    monkeypatch.setattr(Session, "patience_s", 0.5)
    before.fate = Fate.SILENCE
    assert "no answer within 0.5 s" in await fails(through)
    with pytest.raises(StoreError, match=r"no answer within 0\.5 s"):
        await through.ping()
    # The server still has the sessions, and the lock with them: they are not those of another owner.
    before.fate = Fate.PASS
    await through.write([put_event(1)])
    assert await seqs(through) == [1]


async def test_a_statement_that_takes_too_long_is_ended(postgres: Postgres) -> None:
    """The server ends a statement after its time, and the lease is not lost by it."""
    with postgres.schema("slow"):
        database = PostgresSchema(postgres.url("slow", options="-cstatement_timeout=100"), "process")
        database.open()
        with database.writing() as connection:
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        with pytest.raises(StoreError, match="statement timeout"), database.writing() as connection:
            connection.exec_driver_sql("SELECT pg_sleep(60)")
        with database.writing() as connection:
            assert connection.exec_driver_sql("SELECT pg_backend_pid()").scalar() == pid
        database.close()


async def test_a_lock_of_somebody_else_is_not_waited_for_long(postgres: Postgres) -> None:
    """A table that an operator has locked makes writes fail, not hang; then they work."""
    with postgres.schema("locked"):
        store = make_store(postgres.url("locked", options="-clock_timeout=100"))
        await store.open()
        with postgres.connect() as operator, operator.transaction():
            operator.execute("LOCK TABLE locked.stream")
            with pytest.raises(StoreError, match="lock timeout"):
                await store.write([put_stream()])
        await store.write([put_stream()])
        await store.close()


async def test_a_restarted_server_is_used_again(fragile_postgres: Postgres) -> None:
    """While the server is down calls fail with one line; when it is back, in order or after a crash, they work."""
    with fragile_postgres.schema("restarted") as url:
        await _restart_twice(fragile_postgres, make_store(url))


async def _restart_twice(fragile_postgres: Postgres, store: Store) -> None:
    await store.open()
    for number, how in enumerate([signal.SIGINT, signal.SIGQUIT], 1):
        await store.write([put_stream(), put_event(number)])
        fragile_postgres.stop(how)
        assert "onnection refused" in await fails(store)
        with pytest.raises(StoreError, match=r"^store [^\n]*refused[^\n]*$"):
            await store.ping()
        fragile_postgres.start()
        await store.write([put_event(number + 10)])
        assert len(await seqs(store)) == 2 * number
    fragile_postgres.stop()
    await store.close()
    fragile_postgres.start()


async def test_a_server_that_hangs_holds_nobody(fragile_postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """While all processes of the server stand still calls fail after their time; when they go on, so does the store."""
    monkeypatch.setattr(Session, "patience_s", 0.5)
    with fragile_postgres.schema("frozen") as url:
        store = make_store(f"{url}&connect_timeout=2")
        await store.open()
        await store.write([put_stream(), put_event(1)])
        with fragile_postgres.frozen():
            assert "no answer" in await fails(store)
            with pytest.raises(StoreError):
                await store.ping()
        await store.write([put_event(2)])
        assert await seqs(store) == [1, 2]
        await store.close()


async def test_many_opens_leave_nothing(postgres_url: str) -> None:
    """Each open and close, also a refused one, gives back every file descriptor."""
    counts = []
    store = make_store(postgres_url)
    for _ in range(3):
        await store.open()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(store.ping)
        await store.close()
        with pytest.raises(StoreError):
            await make_store(postgres_url.replace("/netra?", "/other?")).open()
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
    assert len(set(counts[1:])) == 1


def test_a_session_that_ended_while_idle_is_noticed(postgres: Postgres) -> None:
    """An idle session that the server has ended is told from one that is alive without a round trip."""
    from netra_ws.history.stores.postgres import _parameters
    from netra_ws.history.stores.postgres_session import check_alive, connect

    session = connect(_parameters(postgres.url()))
    check_alive(session)
    with postgres.connect() as operator:
        operator.execute("SELECT pg_terminate_backend(%s, 5000)", [session.info.backend_pid])
    with pytest.raises(sa.exc.DisconnectionError):
        check_alive(session)
    with pytest.raises(psycopg.Error):
        session.execute("SELECT 1")
    session.close()


def test_the_store_is_told_by_its_name(postgres: Postgres) -> None:
    """Health pages and logs name the engine."""
    assert SqlStore(PostgresSchema(postgres.url(), "process")).name == "postgres"
