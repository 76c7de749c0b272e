"""The known faults of the WebSocket library, and the tests that none of them is ours; what was missing is here.

trio-websocket 0.12 on wsproto 1.3, by the numbers of the list of traps:

1.  A byte that is not ASCII in ``Connection`` or ``Sec-WebSocket-Protocol`` raises in its reader
    -> test_heads.py test_a_hostile_head_gets_its_answer, "non-ASCII …"
    A ping or another message behind one that is too large raises
    -> test_frames.py test_a_hostile_frame_gets_its_close, "too large, then …"
    A ping behind our Close raises (#184)
    -> test_frames.py test_whatever_comes_behind_our_close
2.  ``wrap_server_stream`` hangs on what is no upgrade, on garbage, and at the end of half a head
    -> test_heads.py test_half_a_head
    -> test_heads.py test_random_garbage
    and for ever, without a deadline
    -> test_limits_table.py test_a_limit_answers_counts_and_spares_others, "a slow head"
    It does not check the key
    -> test_heads.py test_a_hostile_head_gets_its_answer, "two keys", "non-ASCII in the key"
    Frames in the segment of the upgrade are lost
    -> test_frames.py test_a_hostile_frame_gets_its_close, "with the upgrade"
    -> test_traps.py test_a_frame_that_is_glued_in_part_is_whole
3.  A queue of one message silences pings and Close
    -> test_frames.py test_a_slow_store_silences_no_pings
    Its request lacks headers, and its ``reject`` closes nothing
    -> test_heads.py test_smuggled_requests_are_not_read
    -> test_heads.py test_what_follows_a_refused_head_is_dropped
4.  A protocol error closes without a Close frame; behind 1009 the socket stays open
    -> test_frames.py test_a_hostile_frame_gets_its_close
    Its closing waits for the client without limit
    -> test_traps.py test_who_never_answers_our_close_is_left
    It says 1000 whatever code was sent
    -> test_frames.py test_every_valid_close_is_answered
5.  A send that is cancelled leaves a torn frame
    -> test_frames.py test_a_reset_while_the_socket_is_full
    -> test_traps.py test_a_conversation_may_break_off_behind_any_byte
6.  Compression is never agreed on, so a compressed frame is an error
    -> test_traps.py test_compression_is_offered_in_vain
7.  It works through all that one read brings without a break (found here)
    -> test_frames.py test_a_read_full_of_tiny_frames_lets_others_have_their_turn
    and looks at the size of a message when it has come
    -> test_frames.py test_a_hostile_frame_gets_its_close, "an exabyte …"
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import trio
import trio.testing

from netra_ws.testing import open_test_server
from tests.conftest import StartServer
from tests.kit import (
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    Ended,
    close_payload,
    connect,
    frame,
    raw,
    token,
    upgrade,
)

from .conftest import Unharmed


def conversation(bearer: str) -> bytes:
    """Return all that a client says in a visit in which everything happens once."""
    said = [
        {"type": "ping", "id": "p"},
        {"type": "create_thread", "id": "c", "thread_id": "t"},
        {"type": "user_message", "id": "m", "thread_id": "t", "content": "hi", "agent": "echo"},
        {"type": "list_threads", "id": "l"},
    ]
    frames = [frame(TEXT, json.dumps(message)) for message in said]
    pieces = frame(TEXT, '{"type":', fin=False) + frame(PING, "x") + frame(CONTINUATION, '"ping"}')
    return b"".join([upgrade(bearer=bearer), *frames, pieces, frame(CLOSE, close_payload(1000))])


async def test_a_conversation_may_break_off_behind_any_byte(autojump_clock: trio.testing.MockClock) -> None:
    """Whichever byte of a visit was the last, by reset or by end, the server is left as it was."""

    async def echo(run: object) -> str:
        return "said"

    async with open_test_server({"echo": echo}, {"timing.resume_window_s": 1.0}) as server:  # type: ignore[dict-item]
        said = conversation(server.token("ada"))
        for size in range(len(said)):
            for resets in (True, False):
                async with server.raw("ada") as client:
                    await client.send_bytes(said[:size])
                    if size % 3 == 0:
                        await trio.testing.wait_all_tasks_blocked()
                    if resets:
                        client.reset()
                        continue
                    await client.stream.send_eof()  # type: ignore[attr-defined]
                    await client.read_rest()
        async with server.connect_raw("bob") as client:
            assert (await client.ask("ping"))["type"] == "pong"
        await server.settled()


async def test_a_conversation_may_break_off_on_a_socket(server: StartServer, unharmed: Unharmed) -> None:
    """The same with the system's sockets and resets, at every ninth byte."""
    running = await server(agents__default="echo", timing__resume_window_s=0)
    said = conversation(token())
    async with unharmed(running):
        for size in range(0, len(said), 9):
            async with raw(running) as client:
                await client.send_bytes(said[:size])
                client.reset()


async def test_who_never_answers_our_close_is_left(server: StartServer, unharmed: Unharmed) -> None:
    """A client that was told Close and neither answers nor leaves has its socket closed all the same."""
    running = await server(timing__resume_window_s=0)
    async with unharmed(running), connect(running) as client:
        await client.send("disconnect")
        assert (await client.receive_close()).code == 1000
        assert await client.receive_end() == b""


@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 20])
async def test_a_frame_that_is_glued_in_part_is_whole(size: int, server: StartServer, unharmed: Unharmed) -> None:
    """The first bytes of a frame in the upgrade's segment, the others later: one command."""
    running = await server()
    data = frame(TEXT, '{"type":"ping","id":"glued"}')
    async with unharmed(running), raw(running) as client:
        await client.open(upgrade(bearer=token()) + data[:size])
        await client.send_bytes(data[size:])
        assert (await client.receive())["reply_to"] == "glued"
        await client.finish()


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits, permessage-deflate",
        "permessage-bzip2",
        "x-webkit-deflate-frame",
    ],
)
async def test_compression_is_offered_in_vain(offer: str, server: StartServer, unharmed: Unharmed) -> None:
    """No extension is chosen; who compresses all the same breaks the protocol."""
    running = await server()
    async with unharmed(running), connect(running, headers=[("Sec-WebSocket-Extensions", offer)]) as client:
        assert client.answer is not None
        assert "sec-websocket-extensions" not in client.answer.headers
        assert (await client.ask("ping"))["type"] == "pong"
        await client.send_frame(TEXT, b"\xaaV*\xa9,HU\xb2R*\xc8\xccKW\xaa\x05\x00", rsv=4)
        assert (await client.receive_close()).code == 1002
        await client.stream.send_eof()  # type: ignore[attr-defined]
        with pytest.raises(Ended):
            await client.receive_frame()


def test_the_tests_that_are_named_exist() -> None:
    """The list above points to what is there."""
    named = re.findall(r"-> (\S+) (\w+)", __doc__ or "")
    assert len(named) >= 15
    for file, name in named:
        assert re.search(rf"^(async )?def {name}\(", (Path(__file__).parent / file).read_text(), re.MULTILINE), name
