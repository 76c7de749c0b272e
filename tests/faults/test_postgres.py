"""A PostgreSQL server that is stopped, hangs or is cut off under a working server: nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from netra_ws import Run
from netra_ws.history.stores.postgres_session import Session

from ..conftest import StartServer
from ..kit import connect, http
from ..postgres import PASSWORD, Postgres
from ..proxy import Fate, Proxy, proxy

pytestmark = pytest.mark.postgres


@contextlib.asynccontextmanager
async def outage(postgres: Postgres, how: str) -> AsyncIterator[None]:
    """Let the server be away within the block."""
    if how == "stopped":
        postgres.stop()
        yield
        postgres.start()
    else:
        with postgres.frozen():
            yield


@pytest.mark.parametrize("how", ["stopped", "hanging"])
async def test_an_outage_in_the_middle_of_a_run(
    server: StartServer,
    fragile_postgres: Postgres,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Events that come while the database is away are told when it is back, once and in order; nobody is cut off."""
    monkeypatch.setattr(Session, "patience_s", 0.3)
    go_on = trio.Event()

    async def agent(run: Run) -> str:
        await run.think("before")
        await go_on.wait()
        for number in range(20):
            async with run.tool("step", number=number) as call:
                call.results = number
        return "done"

    with fragile_postgres.schema(f"outage_{how}") as url:
        running = await server(agents={"agent": agent}, store__url=url)
        async with connect(running) as client, connect(running, "bob") as bob:
            await client.send("chat", content="x", agent="agent", id="1")
            before = await client.until("agent_thinking")
            async with outage(fragile_postgres, how):
                go_on.set()
                assert (await client.ask("list_threads"))["code"] == "UNAVAILABLE"
                assert (await http(running, "/ready")).status == 503
                assert (await bob.ask("ping"))["type"] == "pong"
            after = await client.until("agent_completed")
            events = [e for e in [*before, *after] if "seq" in e]
            assert [e["seq"] for e in events] == list(range(events[0]["seq"], events[0]["seq"] + len(events)))
            assert [e["parameters"]["number"] for e in events if e["type"] == "tool_executing"] == list(range(20))
            assert events[-1]["status"] == "success"
            assert (await http(running, "/ready")).status == 200
        await running.drain(0)
        await running.store.close()
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert any(line.startswith("store failed") for line in told)
    assert "store works again" in told
    assert PASSWORD not in caplog.text
    assert "hunter2" not in caplog.text


async def what_is_kept(server: StartServer, url: str, before: Proxy | None) -> list[Any]:
    """Let a server on *url* work, its database cut at every third COMMIT; return what it has in the end."""

    async def spoil() -> None:
        for number, fate in enumerate([Fate.COMMIT_LOST, Fate.ANSWER_LOST] * 100):
            while before is not None and (before.fate is not Fate.PASS or before.commits < 3 * number + 3):
                await trio.sleep(0.001)
            assert before is not None
            before.fate = fate

    async def agent(run: Run) -> str:
        for number in range(12):
            await run.think(f"thought {number}")
            async with run.tool("step", number=number) as call:
                call.results = number
            await run.say(f"{number} ")
            await trio.sleep(0.02)  # more groups than one
        return run.said

    running = await server(agents={"agent": agent}, store__url=url)
    async with connect(running) as client, trio.open_nursery() as nursery:
        if before is not None:
            before.commits = 0
            nursery.start_soon(spoil)
        heard: list[dict[str, Any]] = []
        for turn in range(2):
            await client.send("chat", content=f"turn {turn}", agent="agent", thread_id="t", id=f"c{turn}")
            heard += [e for e in await client.until("agent_completed") if "seq" in e]
        nursery.cancel_scope.cancel()
    stream = await running.store.stream("user:ada")
    assert stream is not None
    events = await running.store.events("user:ada", stream.epoch, 0, 10**9, 10**9)
    assert [e.seq for e in events] == [e["seq"] for e in heard if e.get("phase") != "delta"]
    messages = await running.store.messages("ada", "t", 99, None, 10**9)
    found = await running.store.search("ada", "turn", 99)
    unfinished = await running.store.unfinished_runs(99)
    await running.drain(0)
    await running.store.close()
    return [[e.type for e in events], [(m.role, m.content) for m in messages], [m.content for m in found], unfinished]


async def test_commits_of_unknown_fate(server: StartServer, postgres: Postgres) -> None:
    """Cut again and again before or after a COMMIT reached it, the database ends with what an uncut one has."""
    async with proxy(postgres) as before:
        with postgres.schema("uncut") as url:
            expected = await what_is_kept(server, url, None)
        with postgres.schema("cut"):
            assert await what_is_kept(server, postgres.url("cut", before.port), before) == expected
        assert before.commits > 10
