"""Too much of everything: descriptors, threads, memory, processor time, handshakes. Others go on, and it is seen."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from netra_ws import Run
from netra_ws.contexts.memory import USER_THREADS
from netra_ws.measures import memory_bytes
from netra_ws.policies import RUN_THREADS
from tests.conftest import StartServer
from tests.kit import Answer, connect, exchange, http, operator, raw, token, upgrade

from .process import eventually, serving


def value(text: str, name: str) -> float:
    """Return one figure of the page of metrics, 0 when it is not there."""
    lines = [line for line in text.splitlines() if line.startswith(f"netra_ws_{name} ")]
    return float(lines[0].split()[-1]) if lines else 0.0


async def metrics(server: Any) -> str:
    return (await http(server, "/metrics")).body.decode()


def is_overloaded(answer: Answer) -> None:
    assert (answer.status, answer.json()["code"]) == (503, "OVERLOADED")
    assert int(answer.headers["retry-after"]) >= 1


async def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Without descriptors newcomers hear 503, the others go on, nothing spins, and it recovers when some are freed."""
    settings = {"LIMITS_MAX_CONNECTIONS_PER_USER": 1000}
    async with serving(tmp_path, settings, descriptors=64) as server, trio.open_nursery() as nursery:
        held: list[trio.CancelScope] = []

        async def hold(*, task_status: Any) -> None:
            with trio.CancelScope() as scope:
                async with connect(server) as client:  # type: ignore[arg-type]
                    held.append(scope)
                    task_status.started()
                    while True:
                        await client.receive_data(60.0)

        async with connect(server, "ada") as ada:  # type: ignore[arg-type]
            with pytest.raises((AssertionError, ExceptionGroup), match=r"status=503|sub-exception"):
                while True:
                    await nursery.start(hold)
            assert len(held) > 20
            is_overloaded(await exchange(server, upgrade(bearer=token("eve"))))  # type: ignore[arg-type]
            # Silent newcomers, who are more than the spare descriptor can be given to at once.
            silent = [await trio.open_tcp_stream("127.0.0.1", server.port) for _ in range(20)]
            began, cpu_s = time.perf_counter(), server.cpu_s()
            assert (await ada.ask("chat", content="30", agent="counter"))["type"] == "ack"
            await ada.until("agent_completed", status="success")
            await trio.sleep(1.0)
            share = (server.cpu_s() - cpu_s) / (time.perf_counter() - began)
            print(f"processor time without descriptors: {share:.0%}")
            assert share < 0.5, "the accept loop spins"
            for stream in silent:
                await stream.aclose()
            for scope in held[:5]:
                scope.cancel()
            with trio.fail_after(10):
                while (await exchange(server, upgrade())).status == 503:  # type: ignore[arg-type]
                    await trio.sleep(0.05)
            async with connect(server, "eve") as eve:  # type: ignore[arg-type]
                await eve.ask("ping")
            assert value(await metrics(server), 'connections_total{outcome="accept_error"}') >= 1
        nursery.cancel_scope.cancel()
    assert server.log().count("cannot accept connections") == 1, "one line for one shortage"


async def test_the_threads_of_all_are_used_up(server: StartServer, tmp_path: Path) -> None:
    """One user cannot take the worker threads of all; and without any, everything that needs none goes on."""
    release = threading.Event()

    async def greedy(run: Run) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(2 * USER_THREADS):
                nursery.start_soon(run.thread, release.wait)

    async def modest(run: Run) -> str:
        return await run.thread(lambda: "done")

    running = await server(
        agents={"greedy": greedy, "modest": modest}, store__url=f"sqlite:///{tmp_path / 'threads.db'}"
    )
    threads = running.registry.policy.run.threads
    try:
        async with trio.open_nursery() as nursery:
            for number in range(RUN_THREADS // USER_THREADS):
                async with connect(running, f"greedy-{number}") as client:
                    await client.ask("chat", content="x", agent="greedy", on_disconnect="continue")
                await eventually(lambda number=number: threads.borrowed_tokens == (number + 1) * USER_THREADS)
                if number == 0:
                    async with connect(running, "bob") as bob:
                        await bob.send("chat", content="x", agent="modest")
                        await bob.until("agent_completed", status="success")
            figures = (await http(running, "/ws/stats")).json()["run_threads"]
            assert figures["busy"] == figures["total"] == RUN_THREADS
            assert figures["waiting"] == RUN_THREADS, "each of them asked for twice its share"
            assert value(await metrics(running), "run_threads") == RUN_THREADS
            assert value(await metrics(running), "run_threads_waiting") == RUN_THREADS
            async with connect(running, "bob") as bob:
                ack = await bob.ask("chat", content="x", agent="modest")
                assert (await bob.ask("ping"))["type"] == "pong"
                # A large message is parsed in a thread, and a message is stored in one.
                assert (await bob.ask("chat", content="long " * 50_000, agent="echo", thread_id="b"))["type"] == "ack"
                assert (await bob.ask("get_thread_history", thread_id="b"))["type"] == "thread_history"
                release.set()
                await bob.until("agent_completed", run_id=ack["run_id"], status="success")
            await eventually(lambda: threads.borrowed_tokens == 0)
            nursery.cancel_scope.cancel()
    finally:
        release.set()


async def test_an_agent_that_fills_the_pool_of_trio(server: StartServer, tmp_path: Path) -> None:
    """Threads that an agent takes behind the server's back are not those that others' messages and rows need."""
    release = threading.Event()

    async def careless(run: Run) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(2 * int(trio.to_thread.current_default_thread_limiter().total_tokens)):
                nursery.start_soon(trio.to_thread.run_sync, release.wait)

    limiter = trio.to_thread.current_default_thread_limiter()
    running = await server(agents={"careless": careless}, store__url=f"sqlite:///{tmp_path / 'pool.db'}")
    try:
        async with connect(running) as client, connect(running, "bob") as bob:
            await client.ask("chat", content="x", agent="careless")
            await eventually(lambda: limiter.borrowed_tokens == limiter.total_tokens)
            await bob.send("chat", content="long " * 50_000, agent="echo", thread_id="b")
            await bob.until("agent_completed", status="success")
            assert (await bob.ask("get_thread_history", thread_id="b"))["type"] == "thread_history"
    finally:
        release.set()
    await eventually(lambda: limiter.borrowed_tokens == 0)


async def test_memory_above_its_mark(server: StartServer) -> None:
    """Above its mark newcomers get 503 and /ready says no, running work goes on, and below it all is as before."""
    go_on = trio.Event()

    async def agent(run: Run) -> str:
        await go_on.wait()
        return "done"

    async with connect(await server()) as client:  # what is imported and allocated late is there from now on
        await client.ask("chat", content="x", agent="echo")
    running = await server(agents={"agent": agent}, limits__memory_high_mb=memory_bytes() // 2**20 + 40)
    async with connect(running) as client:
        await client.ask("chat", content="x", agent="agent")
        ballast = bytearray(b"x") * (80 * 2**20)
        is_overloaded(await exchange(running, upgrade(bearer=token("bob"))))
        ready = await http(running, "/ready")
        assert (ready.status, ready.json()["checks"]["memory"]) == (503, False)
        health = await http(running, "/health")
        assert (health.status, health.json()["status"]) == (200, "degraded")
        assert value(await metrics(running), "memory_bytes") > 80 * 2**20
        go_on.set()
        await client.until("agent_completed", status="success")
        assert (await client.ask("chat", content="y", agent="echo", thread_id="y"))["type"] == "ack"
        del ballast
        assert (await http(running, "/ready")).status == 200
        async with connect(running, "bob") as bob:
            await bob.ask("ping")
    assert value(await metrics(running), 'connections_total{outcome="OVERLOADED"}') == 1


async def test_every_seat_is_taken(server: StartServer) -> None:
    """With max_connections seats taken newcomers get 503, those who sit go on, and a seat that is freed is given."""
    running = await server(limits__max_connections=3)
    async with connect(running, "ada") as ada, connect(running, "bob"):
        async with connect(running, "cyd") as cyd:
            is_overloaded(await exchange(running, upgrade(bearer=token("eve"))))
            await ada.send("chat", content="x", agent="echo")
            await ada.until("agent_completed", status="success")
            await cyd.finish()
        await eventually(lambda: running.registry.seats == 2)
        async with connect(running, "eve") as eve:
            await eve.ask("ping")


async def test_an_agent_that_takes_the_processor(server: StartServer) -> None:
    """An agent that computes without a pause is named with its user and its line, in the log and to operators."""

    async def hog(run: Run) -> str:
        ends = time.monotonic() + 0.6
        while time.monotonic() < ends:
            sum(range(1000))
        return "done"

    running = await server(agents={"hog": hog})
    async with connect(running) as client:
        run_id = (await client.ask("chat", content="x", agent="hog"))["run_id"]
        await client.until("agent_completed", status="success")
        assert (await client.ask("ping"))["type"] == "pong"
    mine = (await http(running, "/ws/stats")).json()
    assert mine["stalls_total"] >= 1
    assert "stalls" not in mine
    stalls = (await http(running, "/ws/stats", bearer=operator())).json()["stalls"]
    (stall,) = [stall for stall in stalls if stall["run_id"] == run_id]
    assert (stall["agent_name"], stall["user_id"]) == ("hog", "ada")
    assert __file__ in stall["where"]
    text = await metrics(running)
    late = value(text, 'loop_stall_seconds_bucket{le="+Inf"}') - value(text, 'loop_stall_seconds_bucket{le="0.25"}')
    assert late >= 1


async def test_a_flood_of_silent_handshakes(server: StartServer) -> None:
    """Sockets that say nothing are hurried when places are few, so a client that means it comes in long before."""
    running = await server(timing__handshake_s=60.0)
    crowd = running.door.crowd
    crowd.places.total_tokens = 40  # else it takes a thousand sockets
    streams = [await trio.open_tcp_stream("127.0.0.1", running.port) for _ in range(60)]
    await eventually(lambda: crowd.under_way == 40)
    async with connect(running) as client:  # with the patience of the tests' client, 8 s
        await client.ask("ping")
        assert value(await metrics(running), "handshakes") >= 1
    assert running.door.outcomes["handshake_hurried"] >= 10
    assert running.door.outcomes["handshake_timeout"] == 0
    for stream in streams:
        await stream.aclose()
    await eventually(lambda: crowd.under_way == 0)
    assert crowd.silent == 0


async def test_nobody_is_hurried_without_need(server: StartServer) -> None:
    """While there are places, a slow client has all of ``timing.handshake_s``."""
    running = await server(timing__handshake_s=60.0)
    head = upgrade(bearer=token())
    async with raw(running) as client:
        await client.send_bytes(head[:20])
        await trio.sleep(1.2)  # longer than a hurried one has
        await client.open(head[20:])
        await client.ask("ping")
    assert running.door.crowd.hurried == 0
