"""One process at a time has a schema, and who lost it cannot write to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from netra_ws.errors import StoreError, StoreLeased
from netra_ws.history.opening import make_store
from netra_ws.history.stores import postgres_session
from netra_ws.history.stores.contract import Store
from netra_ws.history.stores.postgres import PostgresSchema
from tests.contract.rows import KEY, put_event, put_stream
from tests.postgres import USER, Postgres
from tests.proxy import Fate, Proxy

from .postgres_kit import fails, seqs
from .test_lease import HOLDER, WRITER, line, running

pytestmark = pytest.mark.postgres


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    store = make_store(postgres_url)
    await store.open()
    yield store
    await store.close()


def schema_of(url: str) -> str:
    return url.rpartition("%3D")[2]


@pytest.fixture
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An open that is refused the lease does not wait for it: whoever has it does not die."""
    monkeypatch.setattr(postgres_session, "LEASE_WAIT_MS", 100)


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


@pytest.mark.parametrize(("front", "path"), [("front", "front"), (USER, '"$user"')])
async def test_a_schema_further_back_in_the_search_path_is_not_used(
    store: Store, postgres: Postgres, postgres_url: str, front: str, path: str
) -> None:
    """A store has the first schema of its search path to itself, and nothing of another store's further back."""
    await store.write([put_stream(), put_event(1)])
    with postgres.schema(front):
        other = make_store(postgres.url(f"{path},{schema_of(postgres_url)}"))
        await other.open()
        assert await other.stream(KEY) is None
        await other.write([put_stream(), put_event(2)])
        assert await seqs(other) == [2]
        assert await seqs(store) == [1]
        await other.close()


async def test_a_store_stays_in_the_schema_that_it_opened(postgres: Postgres, postgres_url: str, before: Proxy) -> None:
    """A schema that appears further in front later is not taken for the store's, neither to read nor to write."""
    store = make_store(postgres.url(f"later,{schema_of(postgres_url)}", before.port))
    await store.open()
    await store.write([put_stream(), put_event(1)])
    with postgres.schema("later"):
        before.cut()
        await store.write([put_event(2)])
        assert await seqs(store) == [1, 2]
        await store.close()


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
