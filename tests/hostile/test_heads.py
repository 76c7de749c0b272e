"""Heads that no client should send."""

from __future__ import annotations

import os
import random

import pytest
import trio

from tests.conftest import StartServer
from tests.kit import connect, exchange, raw, request, token, upgrade, upgrade_headers

from .conftest import Unharmed

GOOD = upgrade(bearer=token())


def edited(old: bytes, new: bytes) -> bytes:
    """The good upgrade with one piece replaced."""
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def key() -> bytes:
    return GOOD.partition(b"sec-websocket-key: ")[2].partition(b"\r\n")[0]


HEADS: dict[str, tuple[bytes, int | None]] = {
    "non-ASCII in Connection": (edited(b"connection: Upgrade", b"connection: Upgrade, \xff\xfe"), 101),
    "only non-ASCII in Connection": (edited(b"connection: Upgrade", b"connection: \xff\xfe"), 426),
    "non-ASCII in Upgrade": (edited(b"upgrade: websocket", b"upgrade: websocket, \xe9"), 101),
    "non-ASCII in Sec-WebSocket-Protocol": (edited(b"netra.v1", b"netra.v1, \xff"), 401),
    "non-ASCII in Sec-WebSocket-Version": (edited(b"version: 13", b"version: \xb3"), 426),
    "non-ASCII in the key": (edited(key(), b"\xff" * 24), 400),
    "non-ASCII in Authorization": (edited(b"Bearer ", b"Bearer \xff"), 401),
    "non-ASCII in Origin": (edited(b"\r\n\r\n", b"\r\nOrigin: http://\xff\r\n\r\n"), 403),
    "non-ASCII in Host": (edited(b"Host: localhost", b"Host: \xff"), 101),
    "non-ASCII in the target": (edited(b"GET /ws", b"GET /ws\xff"), 400),
    "non-ASCII in a strange header": (edited(b"\r\n\r\n", b"\r\nX-A: \xff\x80\r\n\r\n"), 101),
    "a control character in a header": (edited(b"\r\n\r\n", b"\r\nX-A: a\x01\r\n\r\n"), 101),
    "bad escapes in the query": (edited(b"GET /ws", b"GET /ws?a=%ff%zz%&%00=%00"), 101),
    "a hundred and one fields": (edited(b"GET /ws", b"GET /ws?" + b"&".join([b"a=1"] * 101)), 400),
    "a broken host in the target": (edited(b"GET /ws", b"GET http://[::1/ws"), 400),
    "absolute target": (edited(b"GET /ws", b"GET http://example.org/ws"), 101),
    "absolute target of another scheme": (edited(b"GET /ws", b"GET gopher://x/ws"), 101),
    "two slashes": (edited(b"GET /ws", b"GET //ws"), 404),
    "asterisk target": (edited(b"GET /ws", b"OPTIONS *"), 404),
    "no path": (edited(b"GET /ws", b"GET ?x"), 404),
    "CONNECT": (edited(b"GET /ws", b"CONNECT localhost:80"), 405),
    "HTTP/1.0": (edited(b"HTTP/1.1", b"HTTP/1.0"), 426),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405),
    "HTTP/0.9": (b"GET /ws\r\n\r\n", 400),
    "TLS": (bytes.fromhex("16030100c8010000c40303") + b"\x0a" * 200, 400),
    "no Host": (edited(b"Host: localhost\r\n", b""), 400),
    "two Hosts": (edited(b"Host: localhost", b"Host: a\r\nHost: b"), 400),
    "two keys": (edited(b"\r\n\r\n", b"\r\nSec-WebSocket-Key: " + key() + b"\r\n\r\n"), 400),
    "two versions": (edited(b"version: 13", b"version: 13\r\nSec-WebSocket-Version: 8"), 426),
    "two Authorizations": (edited(b"\r\n\r\n", b"\r\nAuthorization: Bearer x\r\n\r\n"), 401),
    "two Origins": (edited(b"\r\n\r\n", b"\r\nOrigin: http://localhost\r\nOrigin: http://a\r\n\r\n"), 403),
    "two Upgrades": (edited(b"upgrade: websocket", b"upgrade: h2c\r\nUpgrade: websocket"), 101),
    "two lengths": (edited(b"\r\n\r\n", b"\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n"), 400),
    "a length of no number": (edited(b"\r\n\r\n", b"\r\nContent-Length: +0\r\n\r\n"), 400),
    "a body": (edited(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nhello"), 400),
    "a body that never comes": (edited(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"), 400),
    "chunks": (edited(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
    "a length and chunks": (
        edited(b"\r\n\r\n", b"\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        400,
    ),
    "a length of nothing and chunks": (
        edited(b"\r\n\r\n", b"\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        400,
    ),
    "a post with a length and chunks": (
        b"POST /ws/beacon HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two encodings": (edited(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked, identity\r\n\r\n"), 400),
    "two headers of encoding": (
        edited(b"\r\n\r\n", b"\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n"),
        400,
    ),
    "the same length twice in one": (edited(b"\r\n\r\n", b"\r\nContent-Length: 0, 0\r\n\r\n"), 101),
    "two lengths in one": (edited(b"\r\n\r\n", b"\r\nContent-Length: 0, 5\r\n\r\n"), 400),
    "a negative length": (edited(b"\r\n\r\n", b"\r\nContent-Length: -1\r\n\r\n"), 400),
    "a length of thousands of digits": (edited(b"\r\n\r\n", b"\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"), 400),
    "a NUL in a header": (edited(b"\r\n\r\n", b"\r\nX-A: a\x00b\r\n\r\n"), 400),
    "a NUL in a name": (edited(b"\r\n\r\n", b"\r\nX\x00A: a\r\n\r\n"), 400),
    "a NUL in the target": (edited(b"GET /ws", b"GET /ws\x00"), 400),
    "a bare carriage return": (edited(b"\r\n\r\n", b"\r\nX-A: a\rUpgrade: b\r\n\r\n"), 400),
    "a fold in front of all headers": (edited(b"HTTP/1.1\r\n", b"HTTP/1.1\r\n x: y\r\n"), 400),
    "a tab before the colon": (edited(b"upgrade: ", b"upgrade\t: "), 400),
    "an empty Host": (edited(b"Host: localhost", b"Host:"), 101),
    "HTTP/1.2": (edited(b"HTTP/1.1", b"HTTP/1.2"), 426),
    "HTTP/3.0": (edited(b"HTTP/1.1", b"HTTP/3.0"), 426),
    "a version without sense": (edited(b"HTTP/1.1", b"HTTP/1.1.1"), 400),
    "a small method": (edited(b"GET /ws", b"get /ws"), 405),
    "a method without end": (b"G" * 200_000, 413),
    "a target of the form of an authority": (edited(b"GET /ws", b"GET localhost:80"), 404),
    "an escaped path": (edited(b"GET /ws", b"GET /%77s"), 404),
    "an escaped slash": (edited(b"GET /ws", b"GET %2fws"), 404),
    "a dotted path": (edited(b"GET /ws", b"GET /./ws"), 404),
    "a path that climbs": (edited(b"GET /ws", b"GET /../../etc/passwd"), 404),
    "a path that climbs, escaped": (edited(b"GET /ws", b"GET /%2e%2e/ws"), 404),
    "a path that comes back": (edited(b"GET /ws", b"GET /ws/../ws"), 404),
    "a path with parameters": (edited(b"GET /ws", b"GET /ws;x=y"), 404),
    "a slash at the end": (edited(b"GET /ws", b"GET /ws/"), 404),
    "an unknown encoding": (edited(b"\r\n\r\n", b"\r\nTransfer-Encoding: gzip\r\n\r\n"), 400),
    "a header without a name": (edited(b"\r\n\r\n", b"\r\n: x\r\n\r\n"), 400),
    "space before the colon": (edited(b"upgrade: ", b"upgrade : "), 400),
    "a folded header": (edited(b"\r\n\r\n", b"\r\nX: a\r\n b\r\n\r\n"), 101),
    "bare line feeds": (GOOD.replace(b"\r\n", b"\n"), 101),
    "empty lines in front": (b"\r\n\r\n" + GOOD, 400),
    "many headers": (edited(b"\r\n\r\n", b"\r\n" + b"a:b\r\n" * 90 + b"\r\n"), 101),
    "too many headers": (edited(b"\r\n\r\n", b"\r\n" + b"a:b\r\n" * 100 + b"\r\n"), 413),
    "headers without end": (edited(b"\r\n\r\n", b"\r\n" + b"a:b\r\n" * 20_000 + b"\r\n"), 413),
    "a head without end": (GOOD[:-2] + b"X: " + b"a" * 200_000, 413),
    "a target without end": (b"GET /" + b"a" * 200_000, 413),
    "compression": (
        edited(
            b"\r\n\r\n",
            b"\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-webkit-deflate-frame\r\n\r\n",
        ),
        101,
    ),
    "a broken offer of compression": (
        edited(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: ;;=,permessage-deflate;\xff\r\n\r\n"),
        101,
    ),
    "a subprotocol of odd characters": (edited(b"netra.v1", b'netra.v1, a"b, (x), ,,'), 101),
}


@pytest.mark.parametrize("name", HEADS)
async def test_a_hostile_head_gets_its_answer(name: str, server: StartServer, unharmed: Unharmed) -> None:
    """Each head is answered by its status, or accepted where it is only odd; nobody else notices."""
    data, status = HEADS[name]
    running = await server()
    async with unharmed(running), raw(running) as client:
        await client.send_bytes(data)
        answer = await client.read_head()
        assert answer.status == status
        if status == 101:
            assert "sec-websocket-extensions" not in answer.headers
            assert (await client.receive())["type"] == "connection_established"
            assert (await client.ask("ping"))["type"] == "pong"
            await client.finish()
        else:
            assert await client.read_rest()


# The last size in words: a token differs in length from second to second, and workers must collect the same tests.
@pytest.mark.parametrize("size", [0, 1, 10, 60, pytest.param(len(GOOD) - 1, id="all but one")])
@pytest.mark.parametrize("ending", ["end", "reset"])
async def test_half_a_head(size: int, ending: str, server: StartServer, unharmed: Unharmed) -> None:
    """A client that breaks off in its head is forgotten at once, however it goes."""
    running = await server()
    async with unharmed(running), raw(running) as client:
        await client.send_bytes(GOOD[:size] or b"")
        if ending == "end":
            await client.stream.send_eof()  # type: ignore[attr-defined]
            rest = await client.read_rest()
            assert rest == b"" or rest.startswith(b"HTTP/1.1 400")
        else:
            client.reset()


async def test_random_garbage(server: StartServer, unharmed: Unharmed) -> None:
    """Two hundred heads of random bytes, and random changes of a good one: an answer or the end, never a hang."""
    running = await server(timing__handshake_s=0.5)
    chance = random.Random(1)
    async with unharmed(running):
        for _ in range(200):
            if chance.random() < 0.3:
                data = chance.randbytes(chance.randrange(1, 400)) + b"\r\n\r\n"
            else:
                changed = bytearray(GOOD)
                for _ in range(chance.randrange(1, 4)):
                    changed[chance.randrange(len(changed))] = chance.randrange(256)
                data = bytes(changed)
            async with raw(running) as client:
                await client.send_bytes(data)
                await client.stream.send_eof()  # type: ignore[attr-defined]
                with trio.fail_after(3):
                    rest = await client.read_rest()
                assert rest == b"" or rest.startswith(b"HTTP/1.1 ")


async def test_what_follows_a_refused_head_is_dropped(server: StartServer, unharmed: Unharmed) -> None:
    """A client that sends on behind its refusal still gets the answer, not a reset."""
    running = await server()
    async with unharmed(running), raw(running) as client:
        await client.send_bytes(request("/nothing") + os.urandom(300_000))
        answer = await client.read_answer()
        assert answer.status == 404
        assert answer.json()["code"] == "NOT_FOUND"


async def test_smuggled_requests_are_not_read(server: StartServer, unharmed: Unharmed) -> None:
    """Behind an upgrade that was refused, a second request gets no answer."""
    running = await server()
    async with unharmed(running):
        answer = await exchange(running, request("/ws", upgrade_headers()) + GOOD)
        assert answer.status == 401
        assert answer.body.count(b"HTTP/1.1") == 0


async def test_hundreds_of_attempts_leave_nothing(server: StartServer, unharmed: Unharmed) -> None:
    """After hundreds of refusals, resets and short visits the server holds what it held before."""
    running = await server()
    async with unharmed(running):
        limit = trio.CapacityLimiter(50)

        async def visit(number: int) -> None:
            async with limit:
                if number % 4 == 0:
                    await exchange(running, request("/ws", upgrade_headers()))
                elif number % 4 == 1:
                    async with raw(running) as client:
                        await client.send_bytes(GOOD[: number % len(GOOD)] or b"G")
                        client.reset()
                elif number % 4 == 2:
                    async with connect(running, f"user{number % 40}") as client:
                        await client.send("connect")
                else:
                    async with connect(running, f"user{number % 40}") as client:
                        await client.finish()

        async with trio.open_nursery() as nursery:
            for number in range(400):
                nursery.start_soon(visit, number)
