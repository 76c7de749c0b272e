"""Lines: streams as sockets are, and each of their faults by itself."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, check_half_closeable_stream, wait_all_tasks_blocked

from netra_ws.testing.frames import TEXT, frame
from netra_ws.testing.lines import CAPACITY, Line, LineEnd

HEAD = b"GET / HTTP/1.1\r\n\r\n"


async def test_a_line_is_a_stream() -> None:
    """Both ends keep Trio's contract of a stream that can be closed by halves, also when it is full."""

    async def make() -> tuple[LineEnd, LineEnd]:
        line = Line("a/1")
        return line.client, line.server

    async def make_clogged() -> tuple[LineEnd, LineEnd]:
        client, server = await make()
        await client.send_all(bytes(CAPACITY))
        await server.send_all(bytes(CAPACITY))
        return client, server

    await check_half_closeable_stream(make, make_clogged)


async def test_a_sender_waits_for_a_reader_that_does_not_read(autojump_clock: MockClock) -> None:
    """A lane holds what a system's buffer holds; then its sender waits until there is room."""
    line = Line("a/1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.server.send_all, bytes(CAPACITY + 10))
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        assert len(await line.client.receive_some(10)) == 10
    assert len(await line.client.receive_some()) == CAPACITY


async def test_silence_is_told_to_nobody(autojump_clock: MockClock) -> None:
    """In a silent lane neither bytes nor the end arrive, and its sender notices nothing; the other one works."""
    line = Line("a/1")
    line.to_client.silent = True
    await line.server.send_all(b"lost")
    await line.client.send_all(b"heard")
    assert await line.server.receive_some() == b"heard"
    await line.server.aclose()
    with trio.move_on_after(1000) as scope:
        await line.client.receive_some()
    assert scope.cancelled_caught


async def test_a_stall_ends(autojump_clock: MockClock) -> None:
    """What is sent during a stall arrives when it is over."""
    line = Line("a/1")
    line.to_client.ready_at = trio.current_time() + 7
    await line.server.send_all(b"late")
    assert await line.client.receive_some() == b"late"
    assert trio.current_time() == 7


async def test_a_slow_reader_takes_its_time(autojump_clock: MockClock) -> None:
    """A pace of 100 bytes a second lets 1,000 bytes through in ten seconds, and all of them unchanged."""
    line = Line("a/1")
    line.to_client.pace, line.to_client.slow_until = 100, float("inf")
    sent = bytes(range(250)) * 4
    await line.server.send_all(sent)
    got = b""
    while len(got) < len(sent):
        got += await line.client.receive_some()
    assert got == sent
    assert 9 < trio.current_time() < 11


@pytest.mark.parametrize("after", [1, 3, 1000])
async def test_a_cut_is_in_the_middle_of_the_next_frame(autojump_clock: MockClock, after: int) -> None:
    """So many bytes of the next frame arrive, of a shorter one all but the last; then both ends get an error."""
    line = Line("a/1")
    first, second = frame(TEXT, b"x" * 50), frame(TEXT, b"y" * 50)
    await line.client.send_all(HEAD + first[:20])
    line.to_server.cut_after(after)
    with pytest.raises(trio.BrokenResourceError):
        await line.client.send_all(first[20:] + second + first)
    assert await line.server.receive_some() == HEAD + first + second[: min(after, len(second) - 1)]
    for end in (line.client, line.server):
        with pytest.raises(trio.BrokenResourceError):
            await end.receive_some()


async def test_two_tasks_on_one_end_are_caught() -> None:
    """As with a socket, two tasks must not read, nor write, on one end at the same time."""
    line = Line("a/1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.client.receive_some)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await line.client.receive_some()
        nursery.cancel_scope.cancel()
