"""TLS on the port: what clients get, and what they cannot do to it."""

from __future__ import annotations

import _ssl
import asyncio
import ctypes
import errno
import json
import logging
import random
import ssl
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import netra_ws
from netra_ws import Run
from netra_ws.client import ClientPolicy
from netra_ws.errors import ConnectionLost
from netra_ws.wire.tls import TlsStream
from tests.conftest import StartServer
from tests.kit import (
    CLOSE,
    PING,
    TEXT,
    Client,
    Ended,
    close_payload,
    dial,
    exchange,
    frame,
    holdings,
    raw,
    request,
    settings,
    settles,
    token,
    upgrade,
)
from tests.tls import Authority, over_tls, socket_over_tls

from .test_door import Listener


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def only(version: ssl.TLSVersion) -> Callable[[ssl.SSLContext], None]:
    def change(context: ssl.SSLContext) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            context.minimum_version = context.maximum_version = version
        if version < ssl.TLSVersion.TLSv1_2:
            context.set_ciphers("ALL:@SECLEVEL=0")

    return change


async def clean_end(client: Client) -> None:
    """Expect the end of the connection with its close_notify."""
    assert isinstance(client.stream, trio.SSLStream)
    with trio.fail_after(8):
        assert await client.stream.receive_some() == b""


def client_hello() -> bytes:
    """Return the first bytes that a client says."""
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def descriptors_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
async def test_a_page_and_a_socket(server: StartServer, authority: Authority, version: ssl.TLSVersion) -> None:
    """Either version serves pages and sockets, and says its end in TLS, too."""
    running = await server(None, **authority.issue())
    assert running.url == f"https://127.0.0.1:{running.port}"
    context = authority.trusting(change=only(version))
    async with over_tls(running, context) as client:
        await client.send_bytes(request("/health"))
        answer = await client.read_head()
        assert answer.status == 200
        body = await client._take(int(answer.headers["content-length"]))
        assert json.loads(body)["status"] == "healthy"
        await clean_end(client)
    async with socket_over_tls(running, context) as client:
        await client.send_frame(PING, b"x")
        assert (await client.receive_frame()).payload == b"x"
        await client.send("chat", content="over TLS", agent="echo")
        (*_, done) = await client.until("agent_completed")
        assert done["final_response"] == "over TLS"
        assert (await client.finish()).code == 1000
        await clean_end(client)
    assert running.door.outcomes == {"accepted": 1}


@pytest.mark.parametrize("offered", [["http/1.1"], ["h2", "http/1.1"], ["h2"], []])
async def test_the_protocol_is_agreed_on(server: StartServer, authority: Authority, offered: list[str]) -> None:
    """Who offers HTTP/1.1 gets it; who does not is served nevertheless, if it speaks it."""
    running = await server(None, **authority.issue())
    context = authority.trusting(change=lambda context: context.set_alpn_protocols(offered) if offered else None)
    async with over_tls(running, context) as client:
        stream: Any = client.stream
        assert stream.selected_alpn_protocol() == ("http/1.1" if "http/1.1" in offered else None)
        await client.send_bytes(request("/health"))
        assert (await client.read_head()).status == 200


async def test_a_name_that_is_not_ours(server: StartServer, authority: Authority) -> None:
    """The name that a client asks for is its own business: it checks the certificate itself."""
    running = await server(None, **authority.issue())

    def careless(context: ssl.SSLContext) -> None:
        context.check_hostname = False

    async with over_tls(running, authority.trusting(change=careless), name="nobody.example") as client:
        await client.send_bytes(request("/health"))
        assert (await client.read_head()).status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1], ids=lambda version: version.name)
async def test_old_versions_are_refused(
    server: StartServer, authority: Authority, version: ssl.TLSVersion, caplog: pytest.LogCaptureFixture
) -> None:
    """TLS 1.0 and 1.1 are told that they are too old; it is counted, and not worth a line in the log."""
    running = await server(None, **authority.issue())
    with pytest.raises(trio.BrokenResourceError) as caught:
        async with over_tls(running, authority.trusting(change=only(version))):
            pass
    assert "PROTOCOL_VERSION" in str(caught.value.__cause__).replace(" ", "_").upper()
    assert running.door.outcomes == {"tls_failed": 1}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_nothing_is_negotiated_again(server: StartServer, authority: Authority) -> None:
    """Renegotiation and compression are off, and only ciphers with forward secrecy are on."""
    running = await server(None, **authority.issue())
    assert running.door.certificates is not None
    context = running.door.certificates.context
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    old = [cipher for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"]
    assert old
    assert all(cipher["name"].startswith("ECDHE") and cipher["aead"] for cipher in old)


@pytest.mark.parametrize("said", ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST /x HTTP/1.1\r\n", "get"])
async def test_plain_http_is_told_what_is_spoken_here(server: StartServer, authority: Authority, said: str) -> None:
    """Who forgot the s of https gets one readable line."""
    running = await server(None, **authority.issue())
    answer = await exchange(running, said.encode())
    assert (answer.status, answer.body) == (400, b"This port speaks TLS: use https:// or wss://.\n")
    assert running.door.outcomes == {"tls_failed": 1}


HELLO = client_hello()
ODD = {
    "nothing": b"",
    "half a record": HELLO[:3],
    "half a hello": HELLO[: len(HELLO) // 2],
    "all but a byte": HELLO[:-1],
    "a hello and garbage": HELLO + bytes(random.Random(1).randbytes(500)),
    "a record of garbage": b"\x16\x03\x01\x02\x00" + random.Random(2).randbytes(512),
    "an alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "SSL 2": b"\x80\x2e\x01\x00\x02" + bytes(44),
    "zeros": bytes(100),
    "a huge record": b"\x16\x03\x03\xff\xff" + bytes(70_000),
}


@pytest.mark.parametrize("said", ODD.values(), ids=ODD)
@pytest.mark.parametrize("leaves", ["ends", "resets"])
async def test_odd_handshakes(
    server: StartServer, authority: Authority, said: bytes, leaves: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever comes in place of a handshake, and however it ends: nothing is left, nothing is logged."""
    running = await server(None, **authority.issue())
    before = holdings(running)
    async with raw(running) as client:
        assert isinstance(client.stream, trio.SocketStream)
        await client.send_bytes(said)
        if leaves == "ends":
            await client.stream.send_eof()
            await client.read_rest()
        else:
            client.reset()
    await settles(running, before)
    assert running.door.outcomes == ({"tls_failed": 1} if said else {})
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    async with socket_over_tls(running, authority.trusting()) as good:
        assert (await good.finish()).code == 1000


@pytest.mark.parametrize("said", [b"", HELLO[:50], HELLO], ids=["silent", "half", "no answer to ours"])
async def test_slow_handshakes_are_cut(server: StartServer, authority: Authority, said: bytes) -> None:
    """A TLS handshake has the time of every other handshake, and no more."""
    running = await server(None, **authority.issue(), timing__handshake_s=0.2)
    before = holdings(running)
    async with raw(running) as client:
        await client.send_bytes(said)
        await client.read_rest()
    await settles(running, before)
    assert running.door.outcomes == {"handshake_timeout": 1}


async def test_silent_handshakes_are_hurried_in_a_crowd(server: StartServer, authority: Authority) -> None:
    """They take the places of the others, and are hurried as those are."""
    running = await server(None, **authority.issue())
    running.door.crowd.places.total_tokens = 8
    before = holdings(running)
    clients = [await dial(running) for _ in range(7)]
    for client in clients:
        await client.send_all(HELLO[:20])
    async with socket_over_tls(running, authority.trusting()) as good:
        assert (await good.finish()).code == 1000
    with trio.fail_after(8):
        while not running.door.outcomes["handshake_hurried"]:
            await trio.sleep(0.01)
    for client in clients:
        await client.aclose()
    await settles(running, before)


async def test_records_of_one_byte(server: StartServer, authority: Authority) -> None:
    """A client may send each byte in a record of its own."""
    running = await server(None, **authority.issue())
    async with over_tls(running, authority.trusting()) as client:
        for byte in upgrade("/ws", bearer=token(), protocols=("netra.v1",)):
            await client.send_bytes(bytes([byte]))
        assert (await client.read_head()).status == 101
        assert (await client.receive())["type"] == "connection_established"
        for byte in frame(TEXT, '{"type": "ping", "id": "p"}'):
            await client.send_bytes(bytes([byte]))
        assert (await client.receive())["reply_to"] == "p"


async def test_the_segments_of_tcp_do_not_matter(server: StartServer, authority: Authority) -> None:
    """Records may be cut anywhere, and many may come at once."""
    running = await server(None, **authority.issue())

    class Slices(trio.abc.Stream):
        """Sends three bytes at a time."""

        def __init__(self, inner: trio.SocketStream) -> None:
            inner.socket.setsockopt(6, 1, 1)  # TCP_NODELAY
            self.inner = inner

        async def send_all(self, data: Any) -> None:
            for at in range(0, len(data), 3):
                await self.inner.send_all(data[at : at + 3])

        async def receive_some(self, max_bytes: int | None = None) -> Any:
            return await self.inner.receive_some(max_bytes)

        async def wait_send_all_might_not_block(self) -> None:
            await trio.lowlevel.checkpoint()

        async def aclose(self) -> None:
            await self.inner.aclose()

    plain = await dial(running)
    stream = trio.SSLStream(Slices(plain), authority.trusting(), server_hostname="localhost")
    client = Client(stream)
    await client.open(upgrade("/ws", bearer=token(), protocols=("netra.v1",)))
    await client.send_bytes(b"".join(frame(PING, str(n)) for n in range(50)))
    for n in range(50):
        assert (await client.receive_frame()).payload == str(n).encode()
    await trio.aclose_forcefully(stream)


async def test_a_large_message_both_ways(server: StartServer, authority: Authority) -> None:
    """A message of many records goes in and comes back whole."""
    running = await server(None, **authority.issue())
    text = "".join(random.Random(3).choices("abcdefgh", k=900_000))
    async with socket_over_tls(running, authority.trusting(), path="/ws/echo") as client:
        await client.say(text)
        assert (await client.receive_data()).payload.decode() == text


async def flood(run: Run) -> None:
    """Say megabytes."""
    for number in range(200):
        async with run.tool("step", number=number) as call:
            call.results = f"{number}:" + "r" * 20_000
        await trio.sleep(0)


async def test_a_slow_reader_gets_everything(server: StartServer, authority: Authority) -> None:
    """Who reads slowly gets megabytes whole and in order, and costs one slice meanwhile."""
    running = await server(None, **authority.issue(), agents={"flood": flood}, history__ring_bytes=300_000)
    async with socket_over_tls(running, authority.trusting(), receive_buffer=4096) as slow:
        await slow.send("chat", content="x", agent="flood")
        (context,) = running.registry
        with trio.fail_after(8):
            while not context.active:
                await trio.sleep(0.01)
            while context.active:
                await trio.sleep(0.01)
        (connection,) = context.connections.values()
        wire: Any = connection.wire
        tls = wire.stream.transport
        assert isinstance(tls, TlsStream)
        assert len(tls._records) + tls._outgoing.pending < 200_000
        events = await slow.until("agent_completed")
        results = [event["results"] for event in events if event["type"] == "tool_completed"]
        assert [result.partition(":")[0] for result in results] == [str(n) for n in range(200)]
        seqs = [event["seq"] for event in events if "seq" in event]
        assert seqs == sorted(set(seqs))


async def test_a_slow_reader_sees_the_end_of_the_server(server: StartServer, authority: Authority) -> None:
    """A server that ends while a client reads slowly tears nothing: its Close comes behind what was under way."""
    running = await server(None, **authority.issue(), agents={"flood": flood})
    async with socket_over_tls(running, authority.trusting(), receive_buffer=4096) as slow:
        await slow.send("chat", content="x", agent="flood")
        (context,) = running.registry
        (connection,) = context.connections.values()
        wire: Any = connection.wire
        with trio.fail_after(8):
            while not len(wire.stream.transport._records):
                await trio.sleep(0.01)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.drain, 0.0)
            await trio.sleep(0.5)  # the writer is cancelled meanwhile
            closed = await slow.leave()
        assert closed.code == 1012
        await clean_end(slow)


async def test_a_cut_writer_tears_nothing(server: StartServer, authority: Authority) -> None:
    """Where a client's fault ends its connection in the middle of a write, whole frames and then a Close arrive."""
    running = await server(None, **authority.issue(), agents={"flood": flood})
    async with socket_over_tls(running, authority.trusting(), receive_buffer=4096) as slow:
        await slow.send("chat", content="x", agent="flood")
        (context,) = running.registry
        (connection,) = context.connections.values()
        wire: Any = connection.wire
        with trio.fail_after(8):
            while not len(wire.stream.transport._records):
                await trio.sleep(0.01)
        await slow.send_frame(TEXT, "not masked", mask=None)
        with trio.fail_after(8):
            while wire.stream.source is not None and wire.stream.close_code is None:
                await trio.sleep(0.01)
        seqs = []
        while (received := await slow.receive_data()).opcode != CLOSE:
            fields = received.json()
            if "seq" in fields:
                seqs.append(fields["seq"])
        assert received.code == 1002
        assert seqs == sorted(set(seqs))
        await clean_end(slow)


@pytest.mark.parametrize("how", ["a reset", "an end without close_notify", "a close_notify", "a Close and no end"])
async def test_ends_of_all_kinds(
    server: StartServer, authority: Authority, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However a client leaves, nothing is left and nothing is logged; its runs have their grace."""
    running = await server(None, **authority.issue(), timing__resume_window_s=0.0)
    before = holdings(running)
    plain = await dial(running)
    stream = trio.SSLStream(plain, authority.trusting(), server_hostname="localhost")
    client = Client(stream)
    await client.open(upgrade("/ws", bearer=token(), protocols=("netra.v1",)))
    match how:
        case "a reset":
            Client(plain).reset()
        case "an end without close_notify":
            await plain.aclose()
        case "a close_notify":
            await stream.aclose()
        case _:
            await client.send_frame(CLOSE, close_payload(1000))
            await client.receive_close()
            await clean_end(client)
    await settles(running, before)
    await trio.aclose_forcefully(stream)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_torn_records_end_the_connection(server: StartServer, authority: Authority) -> None:
    """A byte that was changed on the way ends the connection, and nobody else's."""
    running = await server(None, **authority.issue())
    async with socket_over_tls(running, authority.trusting(), "grace") as other:
        before = holdings(running)
        plain = await dial(running)
        stream = trio.SSLStream(plain, authority.trusting(), server_hostname="localhost")
        client = Client(stream)
        await client.open(upgrade("/ws", bearer=token(), protocols=("netra.v1",)))
        await plain.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(Ended):
            await client.receive_frame()
        await trio.aclose_forcefully(stream)
        assert (await other.ask("ping"))["type"] == "pong"
        with trio.fail_after(8):
            while holdings(running).connections != before.connections:
                await trio.sleep(0.01)


async def test_hundreds_of_handshakes_leave_nothing(server: StartServer, authority: Authority) -> None:
    """After many good and broken handshakes there are no more tasks and descriptors than before."""
    running = await server(None, **authority.issue(), timing__resume_window_s=0.0)
    context = authority.trusting()
    before, descriptors = holdings(running), descriptors_open()
    limit = trio.CapacityLimiter(20)

    async def one(number: int) -> None:
        async with limit:
            if number % 3 == 0:
                async with raw(running) as client:
                    await client.send_bytes(HELLO[: number % len(HELLO)])
            elif number % 3 == 1:
                async with over_tls(running, context) as client:
                    await client.send_bytes(request("/health"))
                    assert (await client.read_head()).status == 200
            else:
                async with socket_over_tls(running, context, f"user{number % 7}") as client:
                    await client.ask("ping")

    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(one, number)
    await settles(running, before)
    assert descriptors_open() <= descriptors
    assert running.door.outcomes["accepted"] == 100


async def test_who_is_turned_away_hears_it_over_tls(
    server: StartServer, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a free descriptor a client of the TLS port gets its 503, too."""
    running = await server(None, **authority.issue())
    ours, theirs = trio.socket.socketpair()
    listener = Listener([errno.EMFILE], trio.SocketStream(ours))
    stream = trio.SSLStream(trio.SocketStream(theirs), authority.trusting(), server_hostname="localhost")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.door.run, [listener])
        client = Client(stream)
        await client.send_bytes(request("/health"))
        assert (await client.read_head()).status == 503
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)
    assert "cannot accept connections" in caplog.text


async def test_the_server_ends_with_clients_everywhere(authority: Authority) -> None:
    """A server that is cancelled closes sockets over TLS in order, and those in their handshakes at once."""
    async with (
        netra_ws.open_server(settings(authority.issue())) as running,
        socket_over_tls(running, authority.trusting()) as client,
        raw(running) as half,
        trio.open_nursery() as nursery,
    ):
        await half.send_bytes(HELLO[:40])
        nursery.start_soon(running.drain, 0.0)
        assert (await client.leave()).code == 1012
        await clean_end(client)


# Clients of others, and ours.


async def test_websockets(server: StartServer, authority: Authority) -> None:
    """The package websockets has a conversation over TLS."""
    from websockets.asyncio.client import connect

    running = await server(None, **authority.issue())

    async def talk() -> Any:
        url = f"wss://localhost:{running.port}/ws"
        headers = {"Authorization": f"Bearer {token()}"}
        async with connect(
            url,
            ssl=authority.trusting(),
            subprotocols=["netra.v1"],
            additional_headers=headers,
        ) as socket:
            await (await socket.ping())
            await socket.send(json.dumps({"type": "chat", "content": "hi", "agent": "echo"}))
            while (message := json.loads(await socket.recv()))["type"] != "agent_completed":
                pass
        return message["final_response"], socket.close_code

    assert await trio.to_thread.run_sync(lambda: asyncio.run(asyncio.wait_for(talk(), 10))) == ("hi", 1000)


async def test_aiohttp(server: StartServer, authority: Authority) -> None:
    """The package aiohttp loads a page and has a conversation over TLS."""
    import aiohttp

    running = await server(None, **authority.issue(), server__console=True)

    async def talk() -> Any:
        base, context = f"https://localhost:{running.port}", authority.trusting()
        async with aiohttp.ClientSession() as session:
            async with session.get(base + "/", ssl=context) as page:
                assert page.status == 200
                assert "</html>" in await page.text()
            headers = {"Authorization": f"Bearer {token()}"}
            async with session.ws_connect(base + "/ws", ssl=context, protocols=["netra.v1"], headers=headers) as socket:
                await socket.send_json({"type": "chat", "content": "hi", "agent": "echo"})
                while (message := await socket.receive_json())["type"] != "agent_completed":
                    pass
        await asyncio.sleep(0.05)  # aiohttp closes its sockets behind the session's end
        return message["final_response"], socket.close_code

    assert await trio.to_thread.run_sync(lambda: asyncio.run(asyncio.wait_for(talk(), 10))) == ("hi", 1000)


@pytest.mark.parametrize("scheme", ["https", "wss"])
async def test_our_client(server: StartServer, authority: Authority, scheme: str) -> None:
    """Our client talks to it, with a context of the program's own for its authority."""
    running = await server(None, **authority.issue())
    url = f"{scheme}://localhost:{running.port}"
    async with netra_ws.connect(url, token(), ssl_context=authority.trusting()) as session:
        run = await session.start("hi", agent="echo")
        assert (await run.result()).final_response == "hi"


async def test_our_client_with_authorities_of_the_environment(
    server: StartServer, authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SSL_CERT_FILE names the authorities, as everywhere."""
    running = await server(None, **authority.issue())
    authority.ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    async with netra_ws.connect(f"https://localhost:{running.port}", token()) as session:
        assert session.welcome.user_id == "ada"


async def test_our_client_says_why_it_trusts_nobody(server: StartServer, authority: Authority) -> None:
    """A certificate of an authority that is not known is named as the reason."""
    running = await server(None, **authority.issue())
    policy = ClientPolicy(connect_s=0.01)
    with pytest.raises(ConnectionLost, match="certificate was refused: unable to get local issuer"):
        async with netra_ws.connect(f"https://localhost:{running.port}", token(), policy=policy):
            pass


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
async def test_tls_of_the_programs_own(server: StartServer, authority: Authority, version: ssl.TLSVersion) -> None:
    """A program may bring a ``trio.SSLStream``: sockets and pages work on it, and say their end."""
    running = await server()
    names = authority.issue()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(names["server.tls_cert"], names["server.tls_key"])
    before = holdings(running)
    for is_socket in (False, True):
        ours, theirs = trio.socket.socketpair()
        served = trio.SSLStream(trio.SocketStream(ours), context, server_side=True)
        trusting = authority.trusting(change=only(version))
        stream = trio.SSLStream(trio.SocketStream(theirs), trusting, server_hostname="localhost")
        client = Client(stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.serve_stream, served)
            if is_socket:
                await client.open(upgrade("/ws", bearer=token(), protocols=("netra.v1",)))
                await client.send("chat", content="hi", agent="echo")
                await client.until("agent_completed")
                assert (await client.finish()).code == 1000
            else:
                await client.send_bytes(request("/health"))
                answer = await client.read_head()
                await client._take(int(answer.headers["content-length"]))
            await clean_end(client)
            await stream.aclose()
    await trio.sleep(0)
    assert before.seats == 0
    with trio.fail_after(8):
        while holdings(running).seats:
            await trio.sleep(0.01)


# The stream itself.


@pytest.fixture
def pair(authority: Authority) -> Callable[..., Any]:
    from netra_ws.wire.certificates import Certificates

    names = authority.issue()
    certificates = Certificates(names["server.tls_cert"], names["server.tls_key"])

    async def make() -> tuple[TlsStream, trio.SSLStream[trio.SocketStream]]:
        ours, theirs = trio.socket.socketpair()
        for sock in (ours, theirs):
            sock.setsockopt(1, 7, 4096)  # SO_SNDBUF
        tls = TlsStream(trio.SocketStream(ours), certificates.context)
        client = trio.SSLStream(trio.SocketStream(theirs), authority.trusting(), server_hostname="localhost")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tls.do_handshake)
            nursery.start_soon(client.do_handshake)
        return tls, client

    return make


async def test_a_cancelled_send_tears_nothing(pair: Callable[..., Any]) -> None:
    """What was taken before a cancellation arrives once and whole, before what is sent next."""
    tls, client = await pair()
    pieces = [bytes([n]) * 100_000 for n in range(1, 6)]
    for piece in pieces[:-1]:
        with trio.move_on_after(0.01) as scope:
            await tls.send_all(piece)
        assert scope.cancelled_caught
    got = bytearray()

    async def read() -> None:
        async for data in client:
            got.extend(data)

    with trio.fail_after(8):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await tls.send_all(pieces[-1])
            await tls.send_eof()
    assert bytes(got) == b"".join(pieces)
    await tls.aclose()
    await trio.aclose_forcefully(client)
    with pytest.raises(trio.ClosedResourceError):
        await tls.send_all(b"x")


async def test_two_tasks_may_wait_for_the_socket(pair: Callable[..., Any]) -> None:
    """Records of two tasks leave in the order in which they were made: an end behind a send that is stuck."""
    tls, client = await pair()
    with trio.fail_after(8):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tls.send_all, b"x" * 1_000_000)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(tls.send_eof)
            await trio.testing.wait_all_tasks_blocked()
            got = 0
            while data := await client.receive_some():
                got += len(data)
    assert got == 1_000_000
    await tls.aclose()
    await trio.aclose_forcefully(client)


async def test_both_directions_at_once(pair: Callable[..., Any]) -> None:
    """One task reads while another one is stuck in a send."""
    tls, client = await pair()
    with trio.fail_after(8):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tls.send_all, b"x" * 1_000_000)
            await trio.testing.wait_all_tasks_blocked()
            await client.send_all(b"hello")
            assert await tls.receive_some(5) == b"hello"
            got = 0
            while got < 1_000_000:
                got += len(await client.receive_some())
    await tls.aclose()
    await trio.aclose_forcefully(client)


async def test_a_cancelled_reading_loses_nothing(pair: Callable[..., Any]) -> None:
    """Bytes that came while nobody read are there for the next one."""
    tls, client = await pair()
    with trio.move_on_after(0.01):
        await tls.receive_some()
    await client.send_all(b"hello")
    with trio.fail_after(8):
        assert await tls.receive_some(2) == b"he"
        assert await tls.receive_some() == b"llo"
        await client.transport_stream.aclose()
        assert await tls.receive_some() == b""
    await tls.aclose()


def new_keys(client: ssl.SSLObject, outgoing: ssl.MemoryBIO, times: int) -> bytes:
    """Return the records in which a client asks for new keys, so often; Python has no word for that."""
    library = ctypes.CDLL(_ssl.__file__)
    if sys.version_info[:2] not in ((3, 11), (3, 12)) or not hasattr(library, "SSL_key_update"):
        pytest.skip("the inside of this Python's ssl is not known")
    inside: Any = client
    session = ctypes.c_void_p.from_address(id(inside._sslobj) + 3 * ctypes.sizeof(ctypes.c_void_p))
    for _ in range(times):
        assert library.SSL_key_update(session, 1) == 1
        assert library.SSL_do_handshake(session) == 1
    return outgoing.read()


@pytest.mark.parametrize(("times", "served"), [(100, True), (1000, False)])
async def test_new_keys_have_an_end(server: StartServer, authority: Authority, times: int, served: bool) -> None:
    """A client may change its keys more often than any does; one that does nothing else is cut off."""
    running = await server(None, **authority.issue())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = authority.trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")
    async with raw(running) as plain:
        with trio.fail_after(8):
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await plain.send_bytes(outgoing.read())
                    incoming.write(await plain.stream.receive_some(65536))
            asked = outgoing.read() + new_keys(client, outgoing, times)
            client.write(request("/health"))
            answer = b""
            with suppress(trio.BrokenResourceError):
                await plain.send_bytes(asked + outgoing.read())
                while piece := await plain.stream.receive_some(65536):
                    incoming.write(piece)
                    with suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                        answer += client.read(65536)
    assert answer.startswith(b"HTTP/1.1 200") is served
