"""What only PostgreSQL can do: be another's, speak a language, be set otherwise."""

from __future__ import annotations

import re
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from netra_ws.errors import ConfigError, StoreError
from netra_ws.history.opening import make_store
from netra_ws.history.stores.contract import Durability, Store
from netra_ws.history.stores.postgres import PostgresSchema
from netra_ws.history.stores.postgres_session import Lease
from netra_ws.history.stores.sql import SqlStore
from tests.contract.rows import ALICE, put_event, put_message, put_stream, put_thread
from tests.postgres import PASSWORD, Postgres

from .postgres_kit import is_clean

pytestmark = pytest.mark.postgres


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    store = make_store(postgres_url)
    await store.open()
    yield store
    await store.close()


async def refused(url: str) -> str:
    """Return in which one line an open is refused."""
    store = make_store(url)
    with pytest.raises(StoreError) as caught:
        await store.open()
    assert is_clean(str(caught.value)), str(caught.value)
    return re.sub(r"//ada@127\.0\.0\.1:\d+/", "//ada@…/", str(caught.value))


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
    assert "it has schema 0099, this version of netra_ws knows 0003; use a newer" in await refused(postgres_url)


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
    assert "hunter2" not in repr(Lease({"password": PASSWORD}))


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


def test_the_store_is_told_by_its_name(postgres: Postgres) -> None:
    """Health pages and logs name the engine."""
    assert SqlStore(PostgresSchema(postgres.url(), "process")).name == "postgres"
