"""The drivers over which the contract suites run; another one is one more entry of ``STORES``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from netra_ws.history.opening import make_store
from netra_ws.history.stores.contract import Store

#: Name → from the test that asks to something that makes stores which keep their rows at one place.
STORES: dict[str, Callable[[pytest.FixtureRequest], Callable[[], Store]]] = {}


def _driver(make: Callable[[pytest.FixtureRequest], Callable[[], Store]]) -> None:
    STORES[make.__name__.strip("_")] = make


@_driver
def _memory(request: pytest.FixtureRequest) -> Callable[[], Store]:
    store = make_store("memory:")
    return lambda: store


@_driver
def _sqlite(request: pytest.FixtureRequest) -> Callable[[], Store]:
    folder: Path = request.getfixturevalue("tmp_path")
    return lambda: make_store(f"sqlite:///{folder / 'netra_ws.db'}")


@_driver
def _postgres(request: pytest.FixtureRequest) -> Callable[[], Store]:
    url: str = request.getfixturevalue("postgres_url")
    return lambda: make_store(url)


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.postgres] * (name == "postgres")) for name in STORES])
def new_store(request: pytest.FixtureRequest) -> Callable[[], Store]:
    """Makes a store at the test's own place, each time another one where the driver has such."""
    return STORES[request.param](request)


@pytest.fixture
async def store(new_store: Callable[[], Store]) -> AsyncIterator[Store]:
    """An open and empty store of the driver under test."""
    store = new_store()
    await store.open()
    yield store
    await store.close()
