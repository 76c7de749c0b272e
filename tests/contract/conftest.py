"""The drivers over which the contract suites run; another one is one more entry of ``STORES``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from netra_ws.history.opening import make_store
from netra_ws.history.stores.contract import Store

#: Name → from an empty folder to something that makes stores which keep their rows at one place.
STORES: dict[str, Callable[[Path], Callable[[], Store]]] = {}


def _driver(make: Callable[[Path], Callable[[], Store]]) -> None:
    STORES[make.__name__.strip("_")] = make


@_driver
def _memory(folder: Path) -> Callable[[], Store]:
    store = make_store("memory:")
    return lambda: store


@_driver
def _sqlite(folder: Path) -> Callable[[], Store]:
    return lambda: make_store(f"sqlite:///{folder / 'netra_ws.db'}")


@pytest.fixture(params=STORES)
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Makes a store at the test's own place, each time another one where the driver has such."""
    return STORES[request.param](tmp_path)


@pytest.fixture
async def store(new_store: Callable[[], Store]) -> AsyncIterator[Store]:
    """An open and empty store of the driver under test."""
    store = new_store()
    await store.open()
    yield store
    await store.close()
