"""The PROXY protocol: its bytes, and who may say them."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.wire.proxies import (
    MAX_BLOCK_BYTES,
    MAX_LINE_BYTES,
    SIGNATURE_2,
    BrokenPreface,
    Preface,
    may_be_preface,
    read_preface,
)
from tests.conftest import StartServer
from tests.kit import Client, connect, dial, exchange, holdings, http, raw, request, settles, token, upgrade
from tests.tls import Authority

TRUSTED = {"server.behind_proxy": True, "server.trusted_proxies": ["127.0.0.1", "10.0.0.0/8"]}


def block(source: str = "8.8.8.8", *, command: int = 0x21, family: int | None = None, extra: bytes = b"") -> bytes:
    """Return a block of version 2."""
    address = ipaddress.ip_address(source)
    payload = address.packed * 2 + b"\x10\x00\x00\x50" + extra
    family = (0x11 if address.version == 4 else 0x21) if family is None else family
    return SIGNATURE_2 + bytes([command, family]) + len(payload).to_bytes(2, "big") + payload


def line(text: str) -> bytes:
    return text.encode() + b"\r\n"


GOOD: dict[str, tuple[bytes, str | None]] = {
    "1, IPv4": (line("PROXY TCP4 8.8.8.8 10.0.0.1 4711 443"), "8.8.8.8"),
    "1, IPv6": (line("PROXY TCP6 2001:db8::1 ::1 4711 443"), "2001:db8::1"),
    "1, unknown": (line("PROXY UNKNOWN"), None),
    "1, unknown with more": (line("PROXY UNKNOWN ffff::1 what ever"), None),
    "1, the longest": (line("PROXY UNKNOWN " + "x" * (MAX_LINE_BYTES - 16)), None),
    "2, IPv4": (block(), "8.8.8.8"),
    "2, IPv6": (block("2001:db8::1"), "2001:db8::1"),
    "1, IPv4 inside IPv6": (line("PROXY TCP6 ::ffff:8.8.8.8 ::1 4711 443"), "8.8.8.8"),
    "2, IPv4 inside IPv6": (block("::ffff:8.8.8.8"), "8.8.8.8"),
    "2, with extras": (block(extra=b"\x03\x00\x04abcd"), "8.8.8.8"),
    "2, the longest": (block(extra=bytes(MAX_BLOCK_BYTES - 28)), "8.8.8.8"),
    "2, local": (block(command=0x20), None),
    "2, local without addresses": (SIGNATURE_2 + b"\x20\x00\x00\x00", None),
    "2, unspecified": (SIGNATURE_2 + b"\x21\x00\x00\x00", None),
    "2, Unix": (SIGNATURE_2 + b"\x21\x31\x00\xd8" + bytes(216), None),
}
BAD: dict[str, bytes] = {
    "1, no family": line("PROXY "),
    "1, another family": line("PROXY TCP5 8.8.8.8 10.0.0.1 4711 443"),
    "1, IPv6 as IPv4": line("PROXY TCP4 ::1 ::1 4711 443"),
    "1, no address": line("PROXY TCP4 8.8.8 10.0.0.1 4711 443"),
    "1, too few words": line("PROXY TCP4 8.8.8.8 10.0.0.1 4711"),
    "1, too many words": line("PROXY TCP4 8.8.8.8 10.0.0.1 4711 443 5"),
    "1, a port that is none": line("PROXY TCP4 8.8.8.8 10.0.0.1 65536 443"),
    "1, a port with a zero": line("PROXY TCP4 8.8.8.8 10.0.0.1 0443 443"),
    "1, no end": b"PROXY TCP4 8.8.8.8 " + b" " * MAX_LINE_BYTES,
    "1, too long": line("PROXY UNKNOWN " + "x" * (MAX_LINE_BYTES - 15)),
    "2, version 1": block(command=0x11),
    "2, a command that is none": block(command=0x22),
    "2, UDP": block(family=0x12),
    "2, a family that is none": block(family=0x41),
    "2, too short for its family": SIGNATURE_2 + b"\x21\x11\x00\x0b" + bytes(11),
    "2, too long": block(extra=bytes(MAX_BLOCK_BYTES - 27)),
    "2, a length beyond all": SIGNATURE_2 + b"\x21\x11\xff\xff",
}


@pytest.mark.parametrize(("said", "source"), GOOD.values(), ids=GOOD)
def test_what_is_understood(said: bytes, source: str | None) -> None:
    """Both versions give the client's address, or say that the proxy speaks for itself; the rest is left."""
    assert read_preface(said + b"GET") == Preface(len(said), source)
    for cut in range(len(said)):
        assert may_be_preface(said[:cut])
        assert read_preface(said[:cut]) is None


@pytest.mark.parametrize("said", BAD.values(), ids=BAD)
def test_what_is_not_understood(said: bytes) -> None:
    """Anything else that begins so is refused, not guessed at."""
    with pytest.raises(BrokenPreface):
        read_preface(said)


@given(
    st.sampled_from([b"PROXY ", b"PROXY TCP4 ", SIGNATURE_2, SIGNATURE_2 + b"\x21\x11", b""]), st.binary(max_size=5000)
)
def test_any_bytes(beginning: bytes, rest: bytes) -> None:
    """Whatever comes, it is understood, refused, or waited for, and only so long as it is short."""
    said = beginning + rest
    if may_be_preface(said):
        try:
            preface = read_preface(said)
        except BrokenPreface:
            return
        assert preface is not None or len(said) < MAX_BLOCK_BYTES
        assert preface is None or preface.size <= len(said)


def peer_of(server: object) -> str:
    """Return the address that the one connection of a server counts for."""
    (context,) = server.registry  # type: ignore[attr-defined]
    (connection,) = context.connections.values()
    return str(connection.wire.admitted.head.peer)


@pytest.mark.parametrize(("said", "source"), GOOD.values(), ids=GOOD)
@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "in pieces"])
async def test_a_named_proxy_tells_who_comes(
    server: StartServer, said: bytes, source: str | None, pieces: bool
) -> None:
    """The client counts under the address that its proxy gives, however the bytes come."""
    running = await server(None, **TRUSTED)
    async with raw(running) as client:
        if pieces and len(said) < 300:
            for byte in said:
                await client.send_bytes(bytes([byte]))
            said = b""
        await client.open(said + upgrade("/ws", bearer=token(), protocols=("netra.v1",)))
        assert peer_of(running) == (source or "127.0.0.1")


async def test_it_need_not_say_anything(server: StartServer) -> None:
    """A named proxy that speaks plain HTTP is served, too; also with a method that begins like PROXY."""
    running = await server(None, **TRUSTED)
    assert (await http(running, "/health")).status == 200
    assert (await http(running, "/ws/beacon", method="POST")).status != 400
    assert (await exchange(running, b"PROPFIND / HTTP/1.1\r\nHost: x\r\n\r\n")).status == 405


@pytest.mark.parametrize("said", BAD.values(), ids=BAD)
async def test_a_broken_word_ends_the_connection(server: StartServer, said: bytes) -> None:
    """There is no client to answer to, so it is closed, and counted."""
    running = await server(None, **TRUSTED)
    before = holdings(running)
    async with raw(running) as client:
        await client.send_bytes(said + request("/health"))
        assert await client.read_rest() == b""
    await settles(running, before)
    assert running.door.outcomes == {"proxy_failed": 1}


@pytest.mark.parametrize("said", [b"PRO", SIGNATURE_2[:5], block()[:20]], ids=["a part of 1", "a part of 2", "half"])
async def test_a_word_that_is_not_finished(server: StartServer, said: bytes) -> None:
    """It has the time of a handshake."""
    running = await server(None, **TRUSTED, timing__handshake_s=0.2)
    before = holdings(running)
    async with raw(running) as client:
        await client.send_bytes(said)
        assert await client.read_rest() == b""
    async with raw(running) as client:
        assert isinstance(client.stream, trio.SocketStream)
        await client.send_bytes(said)
        await client.stream.send_eof()
        await client.read_rest()
    await settles(running, before)
    assert running.door.outcomes["handshake_timeout"] == 1


@pytest.mark.parametrize("trusted", [{}, {"server.behind_proxy": True, "server.trusted_proxies": ["10.0.0.0/8"]}])
@pytest.mark.parametrize("said", [GOOD["1, IPv4"][0], GOOD["2, IPv4"][0]], ids=["1", "2"])
async def test_from_anybody_else_it_is_no_http(server: StartServer, trusted: dict[str, object], said: bytes) -> None:
    """A stranger's PROXY line is garbage, and gets the answer to garbage."""
    running = await server(None, **trusted)
    assert (await exchange(running, said + request("/health"))).status == 400


@pytest.mark.parametrize(
    ("preface", "forwarded", "peer"),
    [
        ("", "8.8.8.8", "8.8.8.8"),
        ("", "1.1.1.1, 8.8.8.8, 10.0.0.7", "8.8.8.8"),
        ("", "garbage", "127.0.0.1"),
        ("PROXY TCP4 10.0.0.5 10.0.0.1 1 2\r\n", "8.8.8.8", "8.8.8.8"),
        ("PROXY TCP4 9.9.9.9 10.0.0.1 1 2\r\n", "8.8.8.8", "9.9.9.9"),
    ],
    ids=["one", "a chain", "garbage", "behind another proxy", "a client that lies"],
)
async def test_forwarded_addresses(server: StartServer, preface: str, forwarded: str, peer: str) -> None:
    """X-Forwarded-For counts when it comes from a named proxy, also from one behind a balancer."""
    running = await server(None, **TRUSTED)
    async with raw(running) as client:
        head = upgrade("/ws", bearer=token(), protocols=("netra.v1",), headers=[("X-Forwarded-For", forwarded)])
        await client.open(preface.encode() + head)
        assert peer_of(running) == peer


async def test_forwarded_addresses_of_strangers(server: StartServer) -> None:
    """Where no proxy was named, the header is nobody's word."""
    running = await server()
    async with connect(running, headers=[("X-Forwarded-For", "8.8.8.8")]):
        assert peer_of(running) == "127.0.0.1"


async def test_limits_count_for_the_forwarded_address(server: StartServer) -> None:
    """One client behind a proxy uses up its own budget, and nobody else's."""
    running = await server(None, **TRUSTED, limits__failed_connects_per_minute_per_address=2)

    async def knock(address: str, bearer: str) -> int:
        headers = [("X-Forwarded-For", address)]
        head = upgrade("/ws", bearer=bearer, protocols=("netra.v1",), headers=headers)
        async with raw(running) as client:
            await client.send_bytes(head)
            return (await client.read_head()).status

    assert [await knock("8.8.8.8", "wrong") for _ in range(4)] == [401, 401, 429, 429]
    assert await knock("8.8.8.8", token()) == 429
    assert await knock("9.9.9.9", token()) == 101


@pytest.mark.parametrize(("trusted", "status"), [(TRUSTED, 101), ({}, 403)], ids=["a named proxy", "a stranger"])
async def test_the_own_origin_behind_a_proxy(server: StartServer, trusted: dict[str, object], status: int) -> None:
    """The page's own host is the one that the proxy was asked for, if it is believed."""
    running = await server(None, **trusted)
    headers = [("Origin", "https://app.example"), ("X-Forwarded-Host", "app.example"), ("X-Forwarded-Proto", "https")]
    async with raw(running) as client:
        await client.send_bytes(upgrade("/ws", bearer=token(), protocols=("netra.v1",), headers=headers))
        assert (await client.read_head()).status == status


async def test_streams_of_a_program_stay_as_given(server: StartServer) -> None:
    """What a program says of its stream counts; nobody's header changes it."""
    running = await server(None, **TRUSTED)
    for peer in ("local", "127.0.0.1"):
        ours, theirs = trio.socket.socketpair(socket.AF_UNIX)
        client = Client(trio.SocketStream(theirs))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.serve_stream, trio.SocketStream(ours), peer)
            headers = [("X-Forwarded-For", "8.8.8.8")]
            await client.open(upgrade("/ws", bearer=token(), protocols=("netra.v1",), headers=headers))
            assert peer_of(running) == peer
            await client.finish()
            await client.read_rest()
        await client.stream.aclose()
        with trio.fail_after(8):
            while any(context.connections for context in running.registry):
                await trio.sleep(0.01)


async def test_a_proxy_in_front_of_our_tls(server: StartServer, tmp_path: Path) -> None:
    """A balancer that only passes bytes on says its word before the client's handshake."""
    authority = Authority(tmp_path)
    running = await server(None, **TRUSTED, **authority.issue())
    plain = await dial(running)
    await plain.send_all(block("9.9.9.9"))
    stream = trio.SSLStream(plain, authority.trusting(), server_hostname="localhost")
    client = Client(stream)
    await client.open(upgrade("/ws", bearer=token(), protocols=("netra.v1",), headers=[("X-Forwarded-For", "8.8.8.8")]))
    assert peer_of(running) == "9.9.9.9"
    assert (await client.finish()).code == 1000
    await trio.aclose_forcefully(stream)
