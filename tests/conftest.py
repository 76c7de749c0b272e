"""Fixtures of all tests that need a running server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Protocol

import pytest
import trio

from netra_ws.agents.agent import Agent
from netra_ws.history.stores.contract import Store
from netra_ws.server import Authenticate, Server, Surroundings, serve
from netra_ws.settings import Settings

from .kit import settings as make_settings


class StartServer(Protocol):
    """Starts a server that ends with the test: ``await server(limits__max_runs_per_user=1)``."""

    async def __call__(
        self,
        settings: Settings | None = None,
        *,
        agents: Mapping[str, Agent] | None = None,
        authenticate: Authenticate | None = None,
        store: Store | None = None,
        **overrides: object,
    ) -> Server: ...


@pytest.fixture
async def server() -> AsyncIterator[StartServer]:
    """Starts servers on free ports of the loopback; each is ended in order when the test is over.

    The factory takes settings, or overrides for ``kit.settings``; *agents* by name; and *store*, a
    store object to be used in place of the one of ``store.url``.
    """
    async with trio.open_nursery() as nursery:

        async def start(
            settings: Settings | None = None,
            *,
            agents: Mapping[str, Agent] | None = None,
            authenticate: Authenticate | None = None,
            store: Store | None = None,
            **overrides: object,
        ) -> Server:
            settings = settings or make_settings(**overrides)
            world = Surroundings(store=store)
            with trio.fail_after(10.0):
                started: Server = await nursery.start(
                    partial(serve, settings, agents=agents, authenticate=authenticate, surroundings=world)
                )
            return started

        yield start
        nursery.cancel_scope.cancel()
