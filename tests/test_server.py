"""The composition: what can be wrong at a start, one's own rule for who comes in, and a second server."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import trio
import trio.testing

from netra_ws import ConfigError, Identity, Refused, Run, StoreError, Surroundings, open_server
from netra_ws.access import mint
from netra_ws.contexts.returning import return_delays_ms
from netra_ws.errors import StoreLeased
from netra_ws.history.stores.memory import MemoryStore
from netra_ws.settings import Settings
from netra_ws.wire.head import Head

from .conftest import StartServer
from .kit import SECRET, Client, connect, http, operator, raw, request, settings, token, upgrade


async def test_settings_that_cannot_be_served() -> None:
    """Everything that is wrong with the settings is one ConfigError, before anything is opened."""
    bad = Settings.make({"server.workers": 2, "backplane.url": "redis://localhost"}, environment="production")
    with pytest.raises(ConfigError) as error:
        async with open_server(bad):
            pass
    lines = str(error.value).splitlines()
    for name in ("server.workers", "backplane.url", "auth.secret", "origins"):
        assert any(name in line for line in lines), name


async def test_an_unknown_default_agent() -> None:
    """A default agent that is not there stops the start."""
    with pytest.raises(ConfigError, match=r"agents\.default"):
        async with open_server(settings(agents__default="nobody")):
            pass


async def test_a_second_server_on_one_store(tmp_path: Path) -> None:
    """A second server on the same SQLite file fails with one clear line; the first is not disturbed."""
    mine = settings(store__url=f"sqlite:///{tmp_path / 'a.db'}")
    async with open_server(mine) as first:
        with pytest.raises(StoreLeased) as error:
            async with open_server(mine):
                pass
        assert "\n" not in str(error.value)
        async with connect(first) as client:
            assert (await client.ask("chat", content="x", agent="echo"))["type"] == "ack"
    async with open_server(mine) as again:  # given back at the end
        assert again.port


async def test_a_store_that_cannot_be_opened(tmp_path: Path) -> None:
    """A store that cannot be opened is a StoreError, and the port is free again."""
    file = tmp_path / "not.db"
    file.write_text("this is no database " * 100)
    with pytest.raises(StoreError):
        async with open_server(settings(store__url=f"sqlite:///{file}")):
            pass


async def test_a_port_in_use() -> None:
    """A port in use is an OSError that is not wrapped."""
    async with open_server(settings()) as first:
        with pytest.raises(OSError, match="in use"):
            async with open_server(settings(server__port=first.port)):
                pass


async def test_an_error_of_the_program_is_its_own() -> None:
    """An exception in the program's block comes out as it is, after the server has ended."""
    with pytest.raises(ZeroDivisionError):
        async with open_server(settings()) as server:
            _ = 1 / 0
    with pytest.raises(OSError, match=r"could not connect|all attempts"):
        await trio.open_tcp_stream("127.0.0.1", server.port)


async def test_ones_own_rule(server: StartServer) -> None:
    """authenticate replaces tokens; it may refuse with any HTTP answer, and failed attempts count."""

    async def by_cookie(head: Head) -> Identity:
        cookie = head.get(b"cookie")
        if cookie != b"session=good":
            raise Refused(401, "NO_SESSION", "Sign in first.")
        return Identity("from-cookie")

    running = await server(authenticate=by_cookie)
    async with raw(running) as client:
        await client.open(upgrade(headers=[("cookie", "session=good")]))
        assert client.welcome["user_id"] == "from-cookie"
    async with raw(running) as client:
        await client.send_bytes(upgrade(headers=[("cookie", "session=bad")]))
        answer = await client.read_answer()
        assert (answer.status, answer.json()["code"]) == (401, "NO_SESSION")


async def test_above_the_memory_mark(server: StartServer) -> None:
    """Above limits.memory_high_mb new connections and /ready get 503; pages still answer."""
    running = await server(limits__memory_high_mb=1)
    async with raw(running) as client:
        await client.send_bytes(upgrade(bearer=token()))
        answer = await client.read_answer()
        assert (answer.status, answer.json()["code"]) == (503, "OVERLOADED")
    assert (await http(running, "/ready")).status == 503
    assert (await http(running, "/health")).json()["status"] == "degraded"


async def test_tasks_and_maps_return(server: StartServer) -> None:
    """After connects, runs and cancels of many users every task of the tree and every map is what it was."""
    running = await server()

    async def visit(user: str) -> None:
        async with connect(running, user) as client:
            ack = await client.ask("chat", content="x", agent="echo")
            await client.ask("stop_agent", run_id=ack["run_id"])
            if user.endswith("3"):
                client.reset()
            else:
                await client.finish()

    async def sizes() -> dict[str, int]:
        table = (await http(running, "/ws/bounds", bearer=operator())).json()
        return {row["what"]: row["size"] for row in table["containers"] if "size" in row}

    await visit("warm-up")
    await _quiet(running)
    before, held = tasks(), await sizes()
    async with trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(visit, f"user-{number}")
    await _quiet(running)
    kept = {"remembered_users", "remembered_answers", "streams", "ring", "heartbeats", "counters", "stalls"}
    with trio.move_on_after(10):  # the last ones are seen off for a moment behind the end of their seats
        while tasks() != before:
            await trio.sleep(0.01)
    assert tasks() == before
    assert all(not stream.statistics().readers for stream in running.streams)
    after = await sizes()
    assert {what: (held[what], size) for what, size in after.items() if what not in kept and size != held[what]} == {}


def tasks() -> Counter[str]:
    """Walk the whole tree of tasks and count them by name."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found: Counter[str] = Counter()
    waiting = [root]
    while waiting:
        task = waiting.pop()
        found[task.name] += 1
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


async def _quiet(running: object) -> None:
    with trio.fail_after(10):
        while list(running.registry) or running.registry.seats:  # type: ignore[attr-defined]
            await trio.sleep(0.01)
        for _ in range(5):
            await trio.sleep(0.01)


def test_start_and_import_are_quick() -> None:
    """Importing takes none of the heavy parts; the figures are printed, and asserted nowhere."""
    code = "import time; t = time.perf_counter(); import netra_ws; print(time.perf_counter() - t)"
    took = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    print(f"import netra_ws: {float(took.stdout) * 1000:.0f} ms")
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "netra_ws", "--port", "0", "--store", "memory:"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NETRA_WS_ENVIRONMENT": "testing", "NETRA_WS_AUTH_SECRET": "x" * 32},
    )
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.readline().startswith("Listening on http://127.0.0.1:")
        print(f"start until listening: {time.perf_counter() - began:.2f} s")
        process.terminate()
        process.wait(10)
    assert process.returncode == 0


async def test_clients_of_the_kit_are_strict() -> None:
    """The kit's client fails on a frame that a server must not send, so the tests above mean something."""
    ours, theirs = trio.testing.memory_stream_pair()
    client = Client(ours)
    await theirs.send_all(b"\x81\x85....hello")
    with pytest.raises(AssertionError, match="mask"):
        await client.receive_frame()


async def test_a_client_on_a_stream_of_the_programs_own() -> None:
    """A server without a port serves clients on streams that it is handed: pages, and sockets."""
    world = Surroundings(listens=False)
    async with open_server(settings(), surroundings=world) as server, trio.open_nursery() as nursery:
        assert server.port == 0
        ours, theirs = map(trio.SocketStream, trio.socket.socketpair())
        nursery.start_soon(server.serve_stream, theirs)
        async with ours:
            await ours.send_all(request("/health"))
            assert (await Client(ours).read_answer()).status == 200
        ours, theirs = map(trio.SocketStream, trio.socket.socketpair())
        async with ours:
            await ours.send_all(upgrade(bearer=token("ada")))
            await server.serve_stream(theirs, "elsewhere")  # returns when the client has its seat
            client = Client(ours)
            assert (await client.read_head()).status == 101
            assert (await client.until("connection_established"))[-1]["user_id"] == "ada"
            assert (await client.ask("ping"))["type"] == "pong"


async def test_a_server_lives_in_the_surroundings_it_is_given() -> None:
    """Clock, dice and store that are handed in are the ones that are used."""
    store = MemoryStore()
    world = Surroundings(clock=lambda: 4_000_000_000.0, dice=random.Random(5), store=store)
    async with open_server(settings(), surroundings=world) as server:
        assert server.store is store
        assert (await http(server, "/health")).json()["timestamp"] == 4_000_000_000.0
        bearer = mint(SECRET, "ada", None, 60, 4_000_000_000.0)
        async with connect(server, bearer=bearer) as client:
            assert client.welcome["server_time"] == 4_000_000_000.0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.drain, 0)
                notice = (await client.until("draining"))[-1]
                await client.leave()
            assert notice["reconnect_after_ms"] == next(return_delays_ms(1, random.Random(5)))


async def test_what_lives_long_has_a_short_name_for_logs(server: StartServer) -> None:
    """The repr of whatever holds much is one short line: in a log it must cost nothing and tell no content."""
    seen: list[object] = []

    async def agent(run: Run) -> None:
        seen.extend([run, run.thread, run.stream])

    running = await server(agents={"agent": agent})
    async with connect(running) as client:
        await client.send("chat", content="a secret", agent="agent")
        await client.until("agent_completed")
        (context,) = running.registry
        (connection,) = context.connections.values()
        seen += [running, running.registry, running.streams, running.recorder, running.wiring, running.door]
        seen += [running.wiring.flusher, running.wiring.heartbeat, context, context.memory, connection]
        seen += [connection.cursor, connection.wire]
        for each in seen:
            assert len(repr(each)) < 120, repr(each)
            assert "\n" not in repr(each)
            assert "secret" not in repr(each)
