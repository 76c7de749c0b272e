"""Runs one agent for real in a test, without a client."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from netra_ws.agents.agent import Agent
from netra_ws.contexts.embedding import UserSession
from netra_ws.identity import Identity
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import InputRequired, RunEvent
from netra_ws.server import Server, open_server
from netra_ws.settings import Settings

#: Signs tokens in tests; never use it anywhere else.
SECRET = "only-for-tests-" + "0" * 32
#: In place of an answer: the user does not want to answer.
DECLINE: Any = object()


def make_settings(overrides: Mapping[str, object] | None = None) -> Settings:
    """Return settings for a server in a test: any free port, a memory store, a known secret.

    Args:
        overrides: Dotted names to values, such as ``{"timing.run_timeout_s": 5.0}``.
    """
    return Settings.make(
        {"server.port": 0, "store.url": "memory:", "auth.secret": SECRET, **(overrides or {})},
        environment="testing",
    )


@asynccontextmanager
async def open_session(
    agents: Mapping[str, Agent], overrides: Mapping[str, object] | None = None, *, user_id: str = "tester"
) -> AsyncIterator[tuple[Server, UserSession]]:
    """Run a server with *agents* on a free port and hold one user's context open in it, without a client."""
    async with (
        open_server(make_settings(overrides), agents=agents) as server,
        server.context_for(Identity(user_id)) as session,
    ):
        yield server, session


async def run_agent(
    agent: Agent,
    text: str = "hello",
    *,
    context: Mapping[str, Any] | None = None,
    overrides: Mapping[str, object] | None = None,
    answers: Sequence[Any] = (),
) -> list[Heard]:
    """Run *agent* once on *text* and return its events and those of its sub-runs, its ``agent_completed`` last.

    Args:
        answers: What to answer to its questions, in their order; ``DECLINE`` declines one.
    """
    waiting = deque(answers)
    async with open_session({"agent_under_test": agent}, overrides) as (_, session):
        run = await session.start(text, agent="agent_under_test", context=context)
        events = []
        async for heard in run:
            if isinstance(heard.message, InputRequired) and waiting:
                value, input_id = waiting.popleft(), heard.message.input_id
                await (session.decline(input_id) if value is DECLINE else session.answer(input_id, value))
            if isinstance(heard.message, RunEvent):
                events.append(heard)
        return events
