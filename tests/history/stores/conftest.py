"""Stores in PostgreSQL, reached directly and through a proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from netra_ws.history.opening import make_store
from netra_ws.history.stores.contract import Store
from tests.postgres import Postgres
from tests.proxy import Proxy, proxy


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
