from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import trio

from netra_ws.identity import Identity
from netra_ws.protocol.closing import CloseCode
from netra_ws.wire import pump as module
from netra_ws.wire.head import Head
from netra_ws.wire.pump import PARSE_IN_THREAD
from tests.conftest import StartServer
from tests.faulty import FaultyStore, Health
from tests.kit import CLOSE, PATIENCE_S, TEXT, close_payload, connect, frame, holdings, raw, settles, upgrade


async def test_a_close_is_answered_with_its_code(server: StartServer) -> None:
    """The closing handshake: the client's code comes back, then the end of the stream."""
    running = await server()
    before = holdings(running)
    for code in (1000, 1001, 1011, 3000, 4321):
        async with connect(running) as client:
            assert (await client.finish(code)).code == code
            assert await client.receive_end() == b""
    async with connect(running) as client:
        await client.send_frame(CLOSE)
        assert (await client.receive_close()).payload == b""
        assert await client.receive_end() == b""
    await settles(running, before)
    # Codes of a client's own are counted as one: it does not choose how many labels the metric has.
    assert running.wiring.counts.closes == {1000: 1, 1001: 1, 1011: 1, 3000: 2, 1005: 1}


async def test_a_client_that_answers_our_close_and_waits_is_closed_by_us(
    server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the handshake that the server began, the server ends the TCP connection, as RFC 6455 §7.1.1 asks."""
    monkeypatch.setattr(module, "CLOSE_S", 3600.0)  # it is the answer that ends it, no patience
    running = await server()
    before = holdings(running)
    async with connect(running) as client:
        assert (await client.ask("disconnect"))["type"] == "ack"
        closed = await client.receive_close()
        assert closed.code == 1000
        await client.send_frame(CLOSE, closed.payload)
        with trio.fail_after(PATIENCE_S):
            assert await client.receive_end() == b""
    await settles(running, before)
    async with connect(running) as client:
        await client.ask("ping")


async def test_a_client_that_never_answers_our_close_is_not_waited_for(
    server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closing handshake that the client leaves open ends after its time."""
    monkeypatch.setattr(module, "CLOSE_S", 0.2)
    running = await server()
    before = holdings(running)
    async with connect(running) as client:
        await client.send("disconnect")
        assert (await client.receive_close()).code == 1000
        await settles(running, before)


async def test_what_was_said_before_leaving_takes_effect(server: StartServer) -> None:
    """Commands that arrived in front of the Close, or of the end, are carried out."""
    running = await server()
    for number, ending in enumerate((frame(CLOSE, close_payload(1000)), b"")):
        async with connect(running) as client:
            said = json.dumps({"type": "create_thread", "thread_id": f"t{number}", "title": "kept"})
            await client.send_bytes(frame(TEXT, said) + ending)
            await client.stream.send_eof()  # type: ignore[attr-defined]
            await client.receive_end()
    async with connect(running) as client:
        threads = (await client.ask("list_threads"))["threads"]
        assert {thread["thread_id"] for thread in threads} == {"t0", "t1"}


async def test_a_full_inbox_does_not_keep_a_closed_connection(server: StartServer) -> None:
    """Much more than the inbox holds, behind the message that closes, and still nothing is left."""
    running = await server()
    before = holdings(running)
    async with connect(running) as client:
        await client.send_bytes(frame(TEXT, '{"type":"disconnect"}') + frame(TEXT, '{"type":"connect"}') * 500)
        assert (await client.receive_close()).code == 1000
        await client.send_frame(CLOSE, close_payload(1000))
        await client.receive_end()
    await settles(running, before)


@pytest.mark.parametrize("recovers", [True, False])
async def test_a_close_while_the_pump_waits_for_room_in_the_inbox(
    recovers: bool, server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is closed while its commands wait behind a slow one ends, also if that one never does."""
    monkeypatch.setattr(module, "CLOSE_S", 0.2)
    store = FaultyStore()
    running = await server(store=store)
    before = holdings(running)
    async with connect(running) as client:
        store.turn(Health.HANGING)
        await client.send_bytes(frame(TEXT, '{"type":"list_threads"}') + frame(TEXT, '{"type":"connect"}') * 300)
        (connection,) = [c for context in running.registry for c in context.connections.values()]
        with trio.fail_after(5):
            while not connection.inbox_in.statistics().tasks_waiting_send:
                await trio.sleep(0.005)
        connection.shut(CloseCode.SIGNED_OUT, "signed out")
        if recovers:
            store.turn(Health.WELL)
        closed = await client.receive_close()
        assert closed.code == 4010
        await client.send_frame(CLOSE, closed.payload)
        assert await client.receive_end() == b""
    await settles(running, before)
    store.turn(Health.WELL)


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("text", ["x", "é", "😀"])
async def test_the_limit_of_a_message_counts_bytes(text: str, more: int, server: StartServer) -> None:
    """A message of exactly ``max_message_bytes`` is read, one byte more closes with 1009."""
    limit = 2000
    running = await server(limits__max_message_bytes=limit)
    async with connect(running) as client:
        empty = json.dumps({"type": "ping", "id": "p", "x": ""})
        room = limit - len(empty)
        filling = text * (room // len(text.encode()))
        filling += "y" * (room - len(filling.encode()) + more)
        await client.say(json.dumps({"type": "ping", "id": "p", "x": filling}, ensure_ascii=False))
        if more:
            assert (await client.receive_close()).code == 1009
        else:
            assert (await client.receive())["reply_to"] == "p"


async def test_a_large_message_keeps_its_place(server: StartServer) -> None:
    """A message that is parsed in a thread is answered before those that follow it."""
    running = await server()
    async with connect(running) as client:
        large = json.dumps({"type": "ping", "id": "large", "x": "y" * (2 * PARSE_IN_THREAD)})
        small = json.dumps({"type": "ping", "id": "small"})
        await client.send_bytes(frame(TEXT, large) + frame(TEXT, small))
        assert [(await client.receive())["reply_to"] for _ in range(2)] == ["large", "small"]


async def test_a_fragmented_message_is_one_message(server: StartServer) -> None:
    """Fragments with control frames between them make one command."""
    running = await server()
    async with connect(running) as client:
        text = json.dumps({"type": "ping", "id": "é😀"}, ensure_ascii=False).encode()
        for number, byte in enumerate(text):
            last = number == len(text) - 1
            await client.send_frame(0x1 if number == 0 else 0x0, bytes([byte]), fin=last)
            if number == 5:
                await client.send_frame(0x9, "between")
                assert (await client.receive_frame()).payload == b"between"
        assert (await client.receive())["reply_to"] == "é😀"


async def test_a_client_that_reads_no_answers_is_read_no_further(server: StartServer) -> None:
    """Answers that nobody reads stop the reading; when they are read, everything goes on."""
    running = await server(limits__messages_per_minute=10**6)
    async with connect(running, receive_buffer=4096) as client:
        pair = frame(TEXT, json.dumps({"type": "x" * 60, "id": "c"})) + frame(TEXT, '{"type":"connect"}')
        for _ in range(600):
            # The client's own sends stop, since the server does not read: how far it comes is bounded.
            with trio.move_on_after(0.7) as scope:
                await client.stream.send_all(pair * 100)
            if scope.cancelled_caught:
                break
        else:
            raise AssertionError("the server reads on without end")
        (connection,) = [c for context in running.registry for c in context.connections.values()]
        assert connection._control_bytes < 1_000_000
        with trio.fail_after(PATIENCE_S):
            async with connect(running, "bob") as other:
                await other.ask("ping")


async def test_a_bug_behind_one_connection_ends_only_that_one(
    server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails in a connection's task is logged, its client hears 1011, and everybody else goes on."""

    async def anybody(head: Head) -> Identity:
        identity = Identity("ada")
        if head.get(b"x-user") is None:
            # A lone surrogate, past the check: no frame can say this name, so the welcome fails.
            object.__setattr__(identity, "user_id", "\ud800")
        return identity

    running = await server(authenticate=anybody)
    async with raw(running) as other:
        await other.open(upgrade(headers=[("x-user", "ada")]))
        before = holdings(running)
        async with raw(running) as client:
            await client.open(upgrade(), welcome=False)
            assert (await client.receive_close()).code == 1011
            assert await client.receive_end() == b""
        await settles(running, before)
        assert (await other.ask("ping"))["type"] == "pong"
    assert logging.ERROR in [record.levelno for record in caplog.records]


async def test_a_server_that_stops_says_so_to_everybody(server: StartServer) -> None:
    """A drain tells each client when to come back, and closes with 1012."""
    running = await server()
    async with connect(running) as one, connect(running, "bob") as two:

        async def leave(client: Any) -> None:
            notice = (await client.until("draining"))[-1]
            assert notice["reconnect_after_ms"] > 0
            closed = await client.receive_close()
            assert closed.code == 1012
            await client.send_frame(CLOSE, closed.payload)
            assert await client.receive_end() == b""
            await client.stream.aclose()

        with trio.fail_after(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(leave, one)
                nursery.start_soon(leave, two)
                assert await running.drain(0.0)


async def test_a_context_that_is_closed_tells_its_clients(server: StartServer) -> None:
    """A connection that ends with its user's context hears 1001, not a bare end."""
    running = await server()
    async with connect(running) as client:
        (context,) = running.registry
        context.close("admin")
        assert (await client.receive_close()).code == 1001
        assert await client.receive_end() == b""
