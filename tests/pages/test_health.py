from __future__ import annotations

import time
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from netra_ws.agents.run import Run
from netra_ws.pages import health as module
from netra_ws.server import Server
from netra_ws.version import __version__
from netra_ws.wire.head import Head
from netra_ws.wire.paths import POSTED
from tests.conftest import StartServer
from tests.faulty import SECRET_TEXT, FaultyStore, Health
from tests.kit import PATIENCE_S, connect, http, operator

CHECKS = {"store", "recorder", "flusher", "memory", "errors", "runs", "accepting"}


async def health_of(server: Server) -> dict[str, Any]:
    answer = await http(server, "/health")
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    fields: dict[str, Any] = answer.json()
    assert set(fields) == {"status", "service", "version", "timestamp", "checks", "metrics", "errors", "config"}
    failing = {name for name, check in fields["checks"].items() if check["status"] != "ok"}
    assert bool(failing) == bool(fields["errors"]) == (fields["status"] != "healthy")
    return {**fields, "failing": failing}


async def ready_of(server: Server) -> tuple[int, dict[str, bool]]:
    answer = await http(server, "/ready")
    fields = answer.json()
    assert fields["ready"] is all(fields["checks"].values()) is (answer.status == 200)
    return answer.status, fields["checks"]


async def test_a_well_server_is_healthy_and_ready(server: StartServer) -> None:
    """Both addresses of the health page say the same; all checks are there."""
    running = await server()
    health = await health_of(running)
    assert (health["status"], health["service"], health["version"]) == ("healthy", "websocket", __version__)
    assert abs(health["timestamp"] - time.time()) < 5
    assert set(health["checks"]) == CHECKS
    assert health["metrics"]["connections"] == 0
    assert health["metrics"]["memory_bytes"] > 1_000_000
    assert (await http(running, "/ws/health")).json()["status"] == "healthy"
    assert await ready_of(running) == (200, dict.fromkeys(("accepting", "store", "backplane", "memory"), True))


async def test_a_store_that_went_away_and_came_back(server: StartServer) -> None:
    """While writes fail the server is degraded and not ready; afterwards it is well again, and nothing was lost."""
    store = FaultyStore()
    running = await server(store=store)
    async with connect(running) as client:
        await client.ask("create_thread", thread_id="t")
        store.turn(Health.AWAY)
        assert (await ready_of(running)) == (
            503,
            {"accepting": True, "store": False, "backplane": True, "memory": True},
        )
        await client.send("rename_thread", id="r", thread_id="t", title="kept")
        with trio.fail_after(5):
            while not running.recorder.statistics().failing:
                await trio.sleep(0.01)
        health = await health_of(running)
        assert (health["status"], health["failing"]) == ("degraded", {"store"})
        assert SECRET_TEXT not in str(health)
        store.turn(Health.WELL)
        assert (await client.until("thread_renamed", reply_to="r"))[-1]["title"] == "kept"
        assert (await health_of(running))["status"] == "healthy"
        assert (await ready_of(running))[0] == 200


async def test_a_store_that_only_reads_makes_the_server_not_ready(server: StartServer) -> None:
    """A full disk still answers reads; traffic goes elsewhere until writes work again."""
    store = FaultyStore()
    running = await server(store=store)
    async with connect(running) as client:
        await client.ask("create_thread", thread_id="t")
        store.turn(Health.FULL)
        await client.send("rename_thread", id="r", thread_id="t", title="kept")
        with trio.fail_after(5):
            while not running.recorder.statistics().failing:
                await trio.sleep(0.01)
        status, checks = await ready_of(running)
        assert (status, checks["store"]) == (503, False)
        store.turn(Health.WELL)
        assert (await client.until("thread_renamed", reply_to="r"))[-1]["title"] == "kept"
        assert (await ready_of(running))[0] == 200


async def test_a_store_that_hangs_makes_the_server_unhealthy(server: StartServer, mock_clock: MockClock) -> None:
    """A recorder that has not moved for five seconds is told; the page itself still answers."""
    mock_clock.rate = 1.0
    store = FaultyStore()
    running = await server(store=store)
    async with connect(running) as client:
        await client.ask("create_thread", thread_id="t")
        store.turn(Health.HANGING)
        await client.send("rename_thread", id="r", thread_id="t", title="x")
        with trio.fail_after(5):
            while not running.recorder.statistics().waiting:
                await trio.sleep(0.01)
        mock_clock.jump(4.0)
        health = await health_of(running)
        assert (health["status"], health["failing"]) == ("degraded", {"store"})
        mock_clock.jump(1.5)
        health = await health_of(running)
        assert (health["status"], health["failing"]) == ("unhealthy", {"recorder", "store"})
        store.turn(Health.WELL)
        await client.until("thread_renamed")  # its event; the answer was given up meanwhile
        assert (await health_of(running))["status"] == "healthy"


async def test_a_store_that_hangs_makes_the_server_not_ready(
    server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readiness does not wait for a store longer than its time."""
    monkeypatch.setattr(module, "PING_S", 0.1)
    store = FaultyStore()
    running = await server(store=store)
    store.turn(Health.HANGING)
    with trio.fail_after(PATIENCE_S):
        status, checks = await ready_of(running)
    assert (status, checks["store"]) == (503, False)
    store.turn(Health.WELL)
    assert (await ready_of(running))[0] == 200


async def test_a_flusher_that_does_not_move_is_unhealthy(server: StartServer) -> None:
    """Frames that wait for more than five seconds are told."""
    running = await server()
    head = Head(method="GET", path="/health", query={}, headers=[], peer="x")
    async with connect(running):
        (connection,) = [c for context in running.registry for c in context.connections.values()]
        flusher = running.wiring.flusher
        connection.wire.wake()
        flusher.moved_at = trio.current_time() - 6
        reply = await running.door.pages["/health"](head, b"")
        assert b'"unhealthy"' in reply.body
        assert b"the flusher has not moved" in reply.body


async def test_many_errors_of_ours_make_the_server_degraded(server: StartServer, mock_clock: MockClock) -> None:
    """More than one in twenty commands of the last minute that fail by our fault are told, and forgotten after it."""
    mock_clock.rate = 1.0
    store = FaultyStore()
    running = await server(store=store)
    async with connect(running) as client:
        for _ in range(30):
            assert (await client.ask("get_thread_history", thread_id="x"))["code"] == "NOT_FOUND"
        assert (await health_of(running))["status"] == "healthy", "errors of clients are not ours"
        store.turn(Health.AWAY)
        for _ in range(5):
            assert (await client.ask("list_threads"))["code"] == "UNAVAILABLE"
        store.turn(Health.WELL)
        health = await health_of(running)
        assert (health["status"], health["failing"]) == ("degraded", {"errors"})
        mock_clock.jump(61)
        assert (await health_of(running))["failing"] == set()


async def test_memory_above_its_mark(server: StartServer) -> None:
    """A server above its mark is degraded and takes no traffic."""
    running = await server(limits__memory_high_mb=1)
    assert (await health_of(running))["failing"] == {"memory"}
    assert (await ready_of(running))[1] == {"accepting": True, "store": True, "backplane": True, "memory": False}


async def test_a_stuck_run(server: StartServer) -> None:
    """A run that could not be stopped is told while it lasts."""
    release = trio.Event()

    async def stubborn(run: Run) -> str:
        with trio.CancelScope(shield=True):
            await release.wait()
        return ""

    running = await server(agents={"stubborn": stubborn}, timing__finalise_s=0.1)
    async with connect(running) as client:
        ack = await client.ask("start_agent", user_request="x", agent="stubborn")
        await client.ask("stop_agent", run_id=ack["run_id"])
        health = await health_of(running)
        assert (health["status"], health["failing"], health["metrics"]["stuck"]) == ("degraded", {"runs"}, 1)
        assert ack["run_id"] not in str(health)
        release.set()
        with trio.fail_after(5):
            while running.registry.statistics().stuck:
                await trio.sleep(0.01)
        assert (await health_of(running))["status"] == "healthy"


async def test_a_draining_server(server: StartServer) -> None:
    """A server that drains is not ready, and says so."""
    running = await server()
    await running.drain(0.0)
    assert (await health_of(running))["failing"] == {"accepting"}
    status, checks = await ready_of(running)
    assert (status, checks["accepting"]) == (503, False)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
async def test_the_beacon_answers_every_method(method: str, server: StartServer) -> None:
    """Whoever looks for a WebSocket server finds it, from any page."""
    answer = await http(await server(), "/ws/beacon", method=method, body=b"{}" if method == "POST" else b"")
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    if method == "HEAD":
        assert answer.body == b""
        return
    fields = answer.json()
    assert abs(fields.pop("timestamp") - time.time()) < 5
    assert fields == {"status": "healthy", "service": "websocket_beacon"}


async def test_every_page_answers_while_the_store_hangs(server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No window goes dark because the store does."""
    monkeypatch.setattr(module, "PING_S", 0.1)
    store = FaultyStore()
    running = await server(store=store)
    store.turn(Health.HANGING)
    with trio.fail_after(5):
        for path in running.door.pages:
            if "GET" in POSTED.get(path, ("GET",)):
                assert (await http(running, path)).status in (200, 503)
        for path in ("/ws/ticket", "/ws/unblock"):
            answer = await http(running, path, method="POST", bearer=operator(), body=b'{"address": "::1"}')
            assert answer.status == 200
    store.turn(Health.WELL)
