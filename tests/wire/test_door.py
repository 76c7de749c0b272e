from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Sequence

import attrs
import pytest
import trio

from netra_ws.wire import door as module
from netra_ws.wire.head import Head, Reply
from tests.conftest import StartServer
from tests.faulty import SECRET_TEXT, FaultyStore, Health
from tests.kit import PATIENCE_S, Client, connect, exchange, holdings, http, raw, request, settles, token, upgrade


@attrs.define
class Listener:
    """A listener that fails with the given errors, then accepts one client, then nobody."""

    errors: list[int]
    stream: trio.SocketStream
    asked: int = 0

    async def accept(self) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self.errors:
            raise OSError(self.errors.pop(0), "no room")
        if self.asked > 100:
            await trio.sleep_forever()
        self.asked = 101
        return self.stream


def pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return trio.SocketStream(ours), trio.SocketStream(theirs)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
async def test_accepting_goes_on_after_the_system_ran_out(
    code: int, server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a free descriptor the door waits a moment, counts, and accepts the next client."""
    running = await server()
    ours, theirs = pair()
    listener = Listener([code] * 4, ours)  # each time again with the spare descriptor
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(running.door.run, [listener])
        async with theirs:
            client = Client(theirs)
            await client.send_bytes(request("/health"))
            assert (await client.read_answer()).status == 200
        nursery.cancel_scope.cancel()
    assert running.door.outcomes["accept_error"] == 2
    assert trio.current_time() - started >= 2 * module.BACKOFF_S
    assert "cannot accept connections" in caplog.text


async def test_another_error_of_accept_is_ours(server: StartServer) -> None:
    """A listener that is broken is not retried for ever."""
    running = await server()
    ours, theirs = pair()
    listeners: Sequence[Listener] = [Listener([errno.EBADF], ours)]
    with pytest.raises(ExceptionGroup) as caught:
        await running.door.run(listeners)  # type: ignore[arg-type]
    assert caught.group_contains(OSError, match="no room")
    await theirs.aclose()
    await ours.aclose()


@pytest.mark.parametrize("said", [b"", b"GET /ws HTTP/1.1\r\nHost: x\r\n"])
async def test_a_slow_handshake_is_cut(said: bytes, server: StartServer) -> None:
    """Who does not finish its head within ``timing.handshake_s`` is closed, and leaves nothing."""
    running = await server(timing__handshake_s=0.2)
    before = holdings(running)
    async with raw(running) as client:
        started = trio.current_time()
        await client.send_bytes(said)
        assert await client.read_rest() == b""
        assert 0.15 < trio.current_time() - started < 9, "by default it is ten seconds"
    await settles(running, before)


async def test_a_dribbling_handshake_is_cut_as_well(server: StartServer) -> None:
    """A byte now and then buys no time."""
    running = await server(timing__handshake_s=0.3)
    async with raw(running) as client:
        started = trio.current_time()
        ended = False

        async def dribble() -> None:
            while not ended:
                await client.stream.send_all(b"a")
                await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dribble)
            assert await client.read_rest() == b""
            ended = True
        assert trio.current_time() - started < 9


async def test_slow_handshakes_hold_up_nobody(server: StartServer) -> None:
    """While many heads are half sent, others are served at once."""
    running = await server(timing__handshake_s=3600.0)
    before = holdings(running)
    async with trio.open_nursery() as nursery:
        ready = trio.Event()
        count = 0

        async def half() -> None:
            nonlocal count
            async with raw(running) as client:
                await client.send_bytes(b"GET /ws HT")
                count += 1
                if count == 100:
                    ready.set()
                await trio.sleep_forever()

        for _ in range(100):
            nursery.start_soon(half)
        await ready.wait()
        with trio.fail_after(PATIENCE_S):
            async with connect(running) as client:
                await client.ask("ping")
            assert (await http(running, "/health")).status == 200
        nursery.cancel_scope.cancel()
    await settles(running, before)


async def test_head_and_options_of_a_page(server: StartServer) -> None:
    """HEAD is GET without the body; OPTIONS names the methods; a POST that a page does not take is refused."""
    running = await server()
    got = await http(running, "/netra-ws.js")  # without a time in it, so it is always as long
    head = await http(running, "/netra-ws.js", method="HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", got.headers["content-length"])
    options = await http(running, "/ws/config", method="OPTIONS")
    assert (options.status, options.body, options.headers["allow"]) == (200, b"", "GET, HEAD, OPTIONS")
    post = await http(running, "/ws/config", method="POST", body=b"{}")
    assert (post.status, post.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    missing = await http(running, "/nothing", method="HEAD")
    assert (missing.status, missing.body) == (404, b"")


async def test_an_answer_ends_the_connection(server: StartServer) -> None:
    """One request per connection: a second one behind it is not answered."""
    running = await server()
    async with raw(running) as client:
        await client.send_bytes(request("/health") + request("/ws/config"))
        answer = await client.read_head()
        rest = await client.read_rest()
    assert answer.headers["connection"] == "close"
    assert len(rest) == int(answer.headers["content-length"])


async def test_an_old_http_client_gets_its_page(server: StartServer) -> None:
    """HTTP/1.0 is enough for pages, and not for a socket."""
    running = await server()
    assert (await http(running, "/health", version="1.0")).status == 200
    old = upgrade(bearer=token()).replace(b"HTTP/1.1", b"HTTP/1.0")
    assert (await exchange(running, old)).status == 426


async def test_a_page_that_fails_is_500_and_tells_nothing(
    server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in a page is logged under a number; the client gets the number only, others get their pages."""
    running = await server()

    async def failing(head: Head, body: bytes) -> Reply:
        raise RuntimeError("the password is hunter2")

    running.door.pages["/failing"] = failing  # type: ignore[index]
    answer = await http(running, "/failing")
    assert (answer.status, answer.json()["code"]) == (500, "INTERNAL")
    assert b"hunter2" not in answer.body
    assert "Traceback" not in answer.body.decode()
    number = answer.json()["error"].split()[-1].rstrip(".")
    assert number in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert (await http(running, "/health")).status == 200


async def test_a_store_that_cannot_be_read_is_503(server: StartServer) -> None:
    """A user whose stream cannot be opened is told to come back."""
    store = FaultyStore()
    running = await server(store=store)
    store.turn(Health.AWAY)
    answer = await exchange(running, upgrade(bearer=token()))
    assert (answer.status, answer.json()["code"]) == (503, "UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1
    assert SECRET_TEXT not in answer.body.decode()


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(server: StartServer) -> None:
    """Whoever resets or leaves at any point of the handshake is forgotten."""
    running = await server()
    before = holdings(running)
    data = upgrade(bearer=token())
    for position in (0, 1, 20, len(data) - 2, len(data)):
        for reset in (False, True):
            async with raw(running) as client:
                if position:
                    await client.send_bytes(data[:position])
                if reset:
                    client.reset()
    await settles(running, before)
    async with connect(running) as client:
        await client.ask("ping")
