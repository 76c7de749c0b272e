"""Frames that no client should send: each ends with the right Close frame, and nobody else notices."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from netra_ws.server import Server
from netra_ws.wire.frames import FRAMES_AT_ONCE
from tests.conftest import StartServer
from tests.faulty import FaultyStore, Health
from tests.kit import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Client,
    Ended,
    close_payload,
    connect,
    frame,
    raw,
    token,
    upgrade,
)
from tests.wire.agents import talker

from .conftest import Unharmed

WELL = frame(TEXT, '{"type":"ping"}')

FRAMES: dict[str, tuple[bytes, int]] = {
    "unmasked text": (frame(TEXT, "x", mask=None), 1002),
    "unmasked ping": (frame(PING, "x", mask=None), 1002),
    "unmasked close": (frame(CLOSE, close_payload(1000), mask=None), 1002),
    "unmasked, empty": (frame(TEXT, "", mask=None), 1002),
    **{f"reserved bits {rsv}": (frame(TEXT, "x", rsv=rsv), 1002) for rsv in range(1, 8)},
    "reserved bit on a ping": (frame(PING, "x", rsv=4), 1002),
    "reserved bit on a close": (frame(CLOSE, close_payload(1000), rsv=2), 1002),
    **{f"opcode {opcode:#x}": (frame(opcode, "x"), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    **{f"fragmented {opcode:#x}": (frame(opcode, b"\x03\xe8", fin=False), 1002) for opcode in (CLOSE, PING, PONG)},
    **{f"oversized {opcode:#x}": (frame(opcode, b"\x03\xe8" * 63), 1002) for opcode in (CLOSE, PING, PONG)},
    "a ping of a gigabyte": (frame(PING, b"x", size=2**30), 1002),
    "a continuation of nothing": (frame(CONTINUATION, "x"), 1002),
    "an open continuation of nothing": (frame(CONTINUATION, "x", fin=False), 1002),
    "a second message in an open one": (frame(TEXT, "x", fin=False) + frame(TEXT, "y"), 1002),
    "binary in an open text": (frame(TEXT, "x", fin=False) + frame(BINARY, b"y"), 1002),
    "a continuation behind the end": (
        frame(TEXT, '{"type":"pi', fin=False) + frame(CONTINUATION, 'ng"}') + frame(CONTINUATION, "x"),
        1002,
    ),
    "a length in 16 bits that needs 7": (frame(TEXT, "x" * 5, wide=16), 1002),
    "a length in 64 bits that needs 7": (frame(TEXT, "x" * 5, wide=64), 1002),
    "a length in 64 bits that needs 16": (frame(TEXT, "x" * 200, wide=64), 1002),
    "a length with its highest bit set": (frame(TEXT, "x", size=2**63), 1002),
    "a close of one byte": (frame(CLOSE, b"\x03"), 1002),
    **{
        f"close with {code}": (frame(CLOSE, close_payload(code)), 1002)
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "bad UTF-8": (frame(TEXT, b"\xff"), 1007),
    "bad UTF-8 in the middle": (frame(TEXT, b'{"type":"\xc0\xaf"}'), 1007),
    "an overlong character": (frame(TEXT, b"\xe0\x80\x80"), 1007),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "a character above the last": (frame(TEXT, b"\xf4\x90\x80\x80"), 1007),
    "a character that is cut off": (frame(TEXT, b"x\xf0\x9f\x98"), 1007),
    "bad UTF-8 across fragments": (
        frame(TEXT, b"\xf0\x9f", fin=False) + frame(CONTINUATION, b"x", fin=False) + frame(CONTINUATION, b"y"),
        1007,
    ),
    "a character cut off in the last fragment": (
        frame(TEXT, b"\xf0\x9f", fin=False) + frame(PING, "between") + frame(CONTINUATION, b"\x98"),
        1007,
    ),
    "bad UTF-8 in a close reason": (frame(CLOSE, b"\x03\xe8\xff\xfe"), 1007),
    "binary": (frame(BINARY, b"\x00"), 1003),
    "binary in fragments": (frame(BINARY, b"\x00", fin=False) + frame(CONTINUATION, b"\x01"), 1003),
    "too large": (frame(TEXT, "x" * 5000), 1009),
    "too large in characters of four bytes": (frame(TEXT, "😀" * 1100), 1009),
    "too large, then a ping": (frame(TEXT, "x" * 5000) + frame(PING, "x"), 1009),
    "too large, then too large": (frame(TEXT, "x" * 5000) * 2, 1009),
    "too large, then garbage": (frame(TEXT, "x" * 5000) + b"\xff" * 100, 1009),
    "too large in fragments": (frame(TEXT, "x" * 3000, fin=False) + frame(CONTINUATION, "x" * 3000, fin=False), 1009),
    "an exabyte that is only claimed": (frame(TEXT, "x" * 5000, size=2**60), 1009),
    "an exabyte of which nothing comes": (frame(TEXT, "", size=2**60), 1009),
    "an exabyte in the second fragment": (frame(TEXT, "x", fin=False) + frame(CONTINUATION, "", size=2**60), 1009),
    "an exabyte of binary": (frame(BINARY, b"", size=2**60), 1009),
    "sixteen exabytes": (frame(TEXT, "x", size=2**64 - 1), 1002),
    "an unmasked exabyte": (frame(TEXT, "", size=2**60, mask=None), 1002),
    "one byte above the limit": (frame(TEXT, "x" * 4097), 1009),
    "one byte above the limit, announced": (frame(TEXT, "", size=4097), 1009),
    "a length in 64 bits at the edge": (frame(TEXT, "", size=2**16 - 1, wide=64), 1002),
    "a length in 16 bits at the edge": (frame(TEXT, "x" * 125, wide=16), 1002),
    "bad UTF-8 behind a good message": (WELL + frame(TEXT, b"\xff"), 1007),
    "bad UTF-8 in a message that is not over": (frame(TEXT, b"\xff", fin=False), 1007),
    "an overlong slash": (frame(TEXT, b"\xc0\xaf"), 1007),
    "a pair of surrogates": (frame(TEXT, b"\xed\xa0\xbd\xed\xb8\x80"), 1007),
    "a lone continuation byte": (frame(TEXT, b"\x80"), 1007),
    "a cut character before a close": (frame(TEXT, b"\xc3") + frame(CLOSE, close_payload(1000)), 1007),
    "compressed": (frame(TEXT, b"\xaaV*\xa9,HU\xb2R*\xc8\xccKW\xaa\x05\x00", rsv=4), 1002),
    "compressed in fragments": (frame(TEXT, b"\xaaV", rsv=4, fin=False) + frame(CONTINUATION, b"*"), 1002),
    "a broken frame behind good ones": (WELL * 3 + frame(TEXT, "x", mask=None), 1002),
    "a broken frame, then good ones": (frame(3, "x") + WELL * 3, 1002),
    "a broken frame, then a close": (frame(3, "x") + frame(CLOSE, close_payload(1000)), 1002),
    "an HTTP request": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1002),
    "bytes without sense": (b"\xff" * 1000, 1002),
    "zeroes": (bytes(1000), 1002),
}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        (name, how)
        for name, (data, _) in FRAMES.items()
        for how in ("at once", "with the upgrade", "byte by byte")
        if how != "byte by byte" or len(data) <= 300
    ],
)
async def test_a_hostile_frame_gets_its_close(name: str, how: str, server: StartServer, unharmed: Unharmed) -> None:
    """The client reads the code that tells what it did, then the end of the stream, never a bare end."""
    data, code = FRAMES[name]
    running = await server(limits__max_message_bytes=4096)
    async with unharmed(running), raw(running) as client:
        head = upgrade(bearer=token())
        await client.open(head + data if how == "with the upgrade" else head, welcome=False)
        if how == "at once":
            await client.send_bytes(data)
        elif how == "byte by byte":
            for byte in data:
                await client.send_bytes(bytes([byte]))
                await trio.lowlevel.checkpoint()
        closed = await client.receive_close()
        assert closed.code == code
        assert len(closed.payload) <= 125
        await client.stream.send_eof()  # type: ignore[attr-defined]
        assert await client.receive_end() == b""
    assert running.wiring.counts.closes[code] == 1


@pytest.mark.parametrize("name", ["unmasked text", "bad UTF-8", "too large", "bytes without sense"])
async def test_the_echo_endpoint_closes_the_same_way(name: str, server: StartServer, unharmed: Unharmed) -> None:
    """Conformance suites see the same codes."""
    data, code = FRAMES[name]
    running = await server(limits__max_message_bytes=4096)
    async with unharmed(running), raw(running) as client:
        await client.open(upgrade("/ws/echo", bearer=token()), welcome=False)
        await client.send_bytes(data)
        assert (await client.receive_close()).code == code
        await client.stream.send_eof()  # type: ignore[attr-defined]
        assert await client.receive_end() == b""


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 4999])
async def test_every_valid_close_is_answered(code: int, server: StartServer, unharmed: Unharmed) -> None:
    """A Close with a code that clients may use comes back with the same code."""
    running = await server()
    async with unharmed(running), connect(running) as client:
        await client.send_frame(CLOSE, close_payload(code, "ünï" * 20))
        assert (await client.receive_close()).code == code
        assert await client.receive_end() == b""


async def test_nothing_behind_a_close_is_read(server: StartServer, unharmed: Unharmed) -> None:
    """Commands, pings and garbage behind the client's Close have no effect and no answer."""
    running = await server()
    async with unharmed(running):
        said = frame(TEXT, json.dumps({"type": "create_thread", "thread_id": "late"}))
        for behind in (said, frame(PING, "late"), b"\xff" * 50, frame(CLOSE, close_payload(1001)), said * 500):
            async with connect(running) as client:
                await client.send_bytes(frame(CLOSE, close_payload(1000)) + behind)
                assert (await client.receive_close()).code == 1000
                assert await client.receive_end() == b""
        async with connect(running) as client:
            assert (await client.ask("list_threads"))["threads"] == []


@pytest.mark.parametrize("behind", ["ping", "text", "garbage", "too large", "a second close", "nothing"])
async def test_whatever_comes_behind_our_close(behind: str, server: StartServer, unharmed: Unharmed) -> None:
    """A client that goes on after the server's Close harms nobody, and gets nothing more."""
    running = await server(limits__max_message_bytes=4096)
    async with unharmed(running), connect(running) as client:
        await client.send("disconnect")
        closed = await client.receive_close()
        assert closed.code == 1000
        data = {
            "ping": frame(PING, "late") * 10,
            "text": WELL * 10,
            "garbage": b"\xff" * 100,
            "too large": frame(TEXT, "x" * 5000) * 3 + frame(PING, "x"),
            "a second close": frame(CLOSE, close_payload(1000)) * 2,
            "nothing": b"",
        }[behind]
        await client.send_bytes(data)
        await client.stream.send_eof()  # type: ignore[attr-defined]
        assert await client.receive_end() == b""


async def test_fragments_without_end_close_with_1008(server: StartServer, unharmed: Unharmed) -> None:
    """Empty fragments cost the server memory and the client nothing: there is a limit."""
    running = await server(limits__max_message_bytes=4096)
    async with unharmed(running), connect(running) as client:
        await client.send_bytes(frame(TEXT, "", fin=False) + frame(CONTINUATION, "", fin=False) * 5000)
        assert (await client.receive_close()).code == 1008
        await client.stream.send_eof()  # type: ignore[attr-defined]
        assert await client.receive_end() == b""


async def test_a_message_of_one_byte_fragments_is_read(server: StartServer, unharmed: Unharmed) -> None:
    """A client may cut its message as small as it likes."""
    running = await server()
    async with unharmed(running), connect(running) as client:
        text = json.dumps({"type": "ping", "id": "x" * 200}).encode()
        pieces = [frame(TEXT if n == 0 else CONTINUATION, bytes([byte]), fin=False) for n, byte in enumerate(text)]
        await client.send_bytes(b"".join(pieces) + frame(CONTINUATION, ""))
        assert (await client.receive())["reply_to"] == "x" * 200


@pytest.mark.parametrize("end", ["an exabyte", "fragments", "an opcode"])
async def test_what_was_said_before_the_fault_is_done(end: str, server: StartServer, unharmed: Unharmed) -> None:
    """Commands in front of what closes the connection take effect, though they came in the same read."""
    running = await server(limits__max_message_bytes=4096)
    async with unharmed(running):
        fault, code = {
            "an exabyte": (frame(TEXT, "", size=2**60), 1009),
            "fragments": (frame(TEXT, "", fin=False) + frame(CONTINUATION, "", fin=False) * 5000, 1008),
            "an opcode": (frame(3, ""), 1002),
        }[end]
        names = [f"t{number}" for number in range(20)]
        said = [frame(TEXT, json.dumps({"type": "create_thread", "thread_id": name})) for name in names]
        async with connect(running) as client:
            await client.send_bytes(b"".join(said) + fault)
            assert (await client.receive_close()).code == code
            await client.stream.send_eof()  # type: ignore[attr-defined]
            await client.receive_end()
        async with connect(running) as client:
            threads = (await client.ask("list_threads", limit=100))["threads"]
            assert sorted(thread["thread_id"] for thread in threads) == sorted(names)
            await client.finish()


async def test_a_key_of_zeroes_masks_nothing_and_is_allowed(server: StartServer, unharmed: Unharmed) -> None:
    """The mask protects proxies, not us: any key will do."""
    running = await server()
    async with unharmed(running), connect(running) as client:
        await client.send_frame(TEXT, '{"type":"ping","id":"zero"}', mask=bytes(4))
        assert (await client.receive())["reply_to"] == "zero"
        await client.finish()


@pytest.mark.parametrize("kind", ["pings", "pongs", "fragments"])
async def test_a_read_full_of_tiny_frames_lets_others_have_their_turn(
    kind: str, server: StartServer, unharmed: Unharmed
) -> None:
    """Ten thousand frames in one segment are worked through a few at a time; other tasks run in between."""
    running = await server(limits__pings_per_minute_per_connection=1_000_000)
    async with unharmed(running), connect(running) as client:
        flood = {
            "pings": frame(PING) * 10_000,
            "pongs": frame(PONG) * 10_000,
            "fragments": frame(TEXT, '{"type":"ping"', fin=False) + frame(CONTINUATION, " ", fin=False) * 9_000,
        }[kind]
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            await client.send_bytes(flood)
            nursery.start_soon(take_turns)
            rest = frame(CONTINUATION, "}") if kind == "fragments" else WELL
            await client.send_bytes(rest)
            assert (await client.receive())["type"] == "pong"
            nursery.cancel_scope.cancel()
        assert turns > 9_000 / FRAMES_AT_ONCE
        await client.finish()


async def test_a_ping_flood_is_slowed_and_costs_no_memory(server: StartServer, unharmed: Unharmed) -> None:
    """A client that pings without end and reads nothing is read no further; it holds a bounded number of bytes."""
    running = await server()
    async with unharmed(running), connect(running, receive_buffer=4096) as client:
        flood = frame(PING, "x" * 125) * 500
        with trio.move_on_after(1.0) as scope:
            while True:
                await client.stream.send_all(flood)
        assert scope.cancelled_caught
        (socket,) = wires(running, "ada")
        assert socket.stream._own_bytes < 200_000
        client.reset()


def wires(server: Server, user: str) -> list[Any]:
    contexts = [context for context in server.registry if context.user_id == user]
    return [connection.wire for context in contexts for connection in context.connections.values()]


async def test_a_slow_store_silences_no_pings(server: StartServer, unharmed: Unharmed) -> None:
    """While commands wait, pings get their pongs and a Close its answer."""
    store = FaultyStore()
    running = await server(store=store)
    async with unharmed(running):
        async with connect(running) as client:
            store.turn(Health.HANGING)
            for number in range(40):
                await client.send("list_threads", id=f"l{number}")
            await client.send_frame(PING, "still there?")
            assert (await client.receive_frame()).opcode == PONG
            await client.send_frame(CLOSE, close_payload(1000))
            assert (await client.receive_close()).code == 1000
        store.turn(Health.WELL)


# Resets.


async def into(client: Client, point: str) -> None:
    """Bring a connection to a point and leave it there."""
    head = upgrade(bearer=token())
    if point == "with the upgrade":
        await client.send_bytes(head)
        return
    await client.open(head)
    if point == "in a frame":
        await client.send_bytes(WELL[:5])
    elif point == "in a fragmented message":
        await client.send_bytes(frame(TEXT, "{", fin=False))
    elif point == "in a run":
        await client.ask("user_message", content="hi", agent="talker", thread_id="t")
    elif point == "behind a ping":
        await client.send_bytes(frame(PING, "x") * 50)
    elif point == "behind a close":
        await client.send_frame(CLOSE, close_payload(1000))
    elif point == "behind our close":
        await client.send("disconnect")
        await client.receive_close()
    elif point == "behind garbage":
        await client.send_bytes(b"\xff" * 100)
    elif point == "behind a large message":
        await client.send_frame(TEXT, "x" * 2_000_000)


POINTS = (
    "with the upgrade",
    "behind the welcome",
    "in a frame",
    "in a fragmented message",
    "in a run",
    "behind a ping",
    "behind a close",
    "behind our close",
    "behind garbage",
    "behind a large message",
)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("ending", ["reset", "end", "silence"])
async def test_leaving_at_any_point(point: str, ending: str, server: StartServer, unharmed: Unharmed) -> None:
    """A client that resets, half-closes or just drops its socket at any point leaves nothing, time after time."""
    running = await server(agents={"talker": talker(200, 500)}, timing__resume_window_s=0)
    async with unharmed(running):
        for _ in range(5):
            async with raw(running) as client:
                try:
                    await into(client, point)
                    if ending == "reset":
                        client.reset()
                    elif ending == "end":
                        await client.stream.send_eof()  # type: ignore[attr-defined]
                        await client.receive_end()
                except (trio.BrokenResourceError, Ended):
                    pass  # the server was first


async def test_a_reset_while_the_socket_is_full(server: StartServer, unharmed: Unharmed) -> None:
    """A client that reads nothing, breaks the protocol or leaves, harms nobody: its writer ends with it."""
    ring = {"history__ring_events": 10_000, "history__ring_bytes": 2**26}
    running = await server(agents={"talker": talker(1500, 4000)}, timing__resume_window_s=0, **ring)
    async with unharmed(running):
        for attack in (b"", b"\xff" * 100, frame(CLOSE, close_payload(1000)), frame(TEXT, '{"type":"disconnect"}')):
            async with connect(running, receive_buffer=4096) as client:
                await client.ask("user_message", content="go", agent="talker", thread_id="t")
                await trio.testing.wait_all_tasks_blocked(0.02)
                await client.send_bytes(attack)
                await trio.testing.wait_all_tasks_blocked(0.02)
                client.reset()
