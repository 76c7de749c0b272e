"""A PostgreSQL server that is cut off, restarted or hangs: one line, and then it works again."""

from __future__ import annotations

import signal

import psycopg
import pytest
import sqlalchemy as sa

from netra_ws.errors import StoreError
from netra_ws.history.opening import make_store
from netra_ws.history.stores.contract import Store, Write
from netra_ws.history.stores.postgres import PostgresSchema
from netra_ws.history.stores.postgres_session import Session
from tests.contract.rows import ALICE, KEY, put_event, put_message, put_stream, put_thread, trim
from tests.postgres import Postgres
from tests.proxy import Fate, Proxy

from .postgres_kit import fails, seqs

pytestmark = pytest.mark.postgres


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
async def test_a_removal_of_unknown_fate_is_found_again(through: Store, before: Proxy, fate: Fate) -> None:
    """When a mark or a removal fails or seems to, nothing goes that is not marked, and all goes in the end."""
    await through.write([put_stream(), *(put_event(seq) for seq in range(1, 6))])
    before.fate = fate
    with pytest.raises(StoreError):
        await through.trim(5.0)
    assert await seqs(through) == [1, 2, 3, 4, 5]
    ends = await through.trim(5.0)
    assert ends == {KEY: 5}
    before.fate = fate
    with pytest.raises(StoreError):
        await through.remove(ends)
    row = await through.stream(KEY)
    assert row is not None
    assert row.trimmed == 5
    while await trim(through, 5.0):
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
