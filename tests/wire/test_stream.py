from __future__ import annotations

import contextlib
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

import netra_ws.wire.stream as module
from netra_ws.access.limits import RateLimit
from netra_ws.errors import StoreError, Trimmed
from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.codec import close_frame, ping_frame, text_frame
from netra_ws.wire.flusher import Flusher
from netra_ws.wire.frames import Inbound
from netra_ws.wire.stream import OWN_HIGH, SLICE, Duplex, Pace
from tests.conftest import StartServer
from tests.kit import (
    CLOSE,
    PATIENCE_S,
    PING,
    PONG,
    TEXT,
    Client,
    Ended,
    Frame,
    connect,
    frame,
    holdings,
    settles,
    token,
    upgrade,
)

from .agents import talker, text_of, waiter, worker

ANSWER_101 = b"HTTP/1.1 101 \r\n\r\n"


@attrs.define(eq=False)
class Frames:
    """A source of ready frames that a test fills; it may fall off its ring, and its store may fail."""

    ready: list[bytes] = attrs.field(factory=list)
    stored: list[bytes] = attrs.field(factory=list)
    fails: int = 0
    broken: bool = False
    slow: int = 0

    def too_slow(self) -> None:
        self.slow += 1

    @property
    def pending(self) -> bool:
        return bool(self.ready or self.stored or self.broken)

    def take(self, room: int) -> list[bytes]:
        if self.broken:
            raise ValueError("a bug")
        if self.stored:
            raise Trimmed("in the store")
        taken = []
        while self.ready and room > 0:
            taken.append(self.ready.pop(0))
            room -= len(taken[-1])
        return taken

    async def refill(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails:
            self.fails -= 1
            raise StoreError("away")
        self.ready, self.stored = self.stored + self.ready, []


def pace(budget: RateLimit) -> Pace:
    return Pace(budget, lambda: None)


@attrs.define(eq=False)
class Bench:
    """A Duplex on a real socket, its flusher, and the client's end."""

    nursery: trio.Nursery
    flusher: Flusher = attrs.field(factory=Flusher)
    opened: list[trio.abc.AsyncResource] = attrs.field(factory=list)

    def put(self, transport: trio.abc.Stream, source: Frames, rest: bytes = b"") -> Duplex:
        return Duplex(
            transport,
            b"GET",
            rest,
            self.flusher,
            pace(RateLimit(6000)),
            Inbound.of(2**20),
            nursery=self.nursery,
            source=source,
        )

    def on_socket(self, source: Frames, *, send_buffer: int | None = None) -> tuple[Duplex, Client]:
        ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        if send_buffer is not None:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        ends = trio.SocketStream(ours), trio.SocketStream(theirs)
        self.opened += ends
        return self.put(ends[0], source), Client(ends[1])


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery)
        nursery.start_soon(bench.flusher.run)
        yield bench
        for end in bench.opened:
            await trio.aclose_forcefully(end)
        nursery.cancel_scope.cancel()


def numbered(count: int, size: int = 100) -> list[bytes]:
    return [text_frame(str(number).ljust(size).encode()) for number in range(count)]


async def read_exactly(client: Client, data: bytes) -> None:
    with trio.fail_after(5):
        assert await client._take(len(data)) == data


# One Duplex.


async def test_the_101_goes_before_every_frame(bench: Bench) -> None:
    """Frames that are ready before the upgrade is answered wait for the 101."""
    frames = numbered(3)
    stream, client = bench.on_socket(Frames())
    await stream.send_all(ANSWER_101)
    stream.source = Frames(list(frames))
    stream.wake()
    await read_exactly(client, ANSWER_101 + b"".join(frames))
    await stream.abort()


async def test_what_the_library_reads_first_is_the_upgrade_then_what_came_with_it(bench: Bench) -> None:
    """The canonical head is read at once; glued frames only after the 101 was sent."""
    ours, theirs = memory_stream_pair()
    stream = bench.put(ours, Frames(), rest=b"glued")
    assert await stream.receive_some() == b"GET"
    read: list[bytes] = []

    async def read_on() -> None:
        read.append(await stream.receive_some())

    bench.nursery.start_soon(read_on)
    await wait_all_tasks_blocked()
    assert not read
    await stream.send_all(ANSWER_101)
    await wait_all_tasks_blocked()
    assert read == [b"glued"]
    await theirs.send_all(b"more")
    assert await stream.receive_some() == b"more"
    assert stream.bytes_in == len(b"glued" + b"more")
    await stream.abort()


@pytest.mark.parametrize("size", [10, 1000, 70_000])
async def test_a_full_socket_loses_and_doubles_nothing(size: int, bench: Bench) -> None:
    """What a socket does not take at once follows later, byte for byte, and the flusher gets the socket back."""
    frames = numbered(min(20_000, 2_000_000 // size), size)
    expected = b"".join(frames)
    stream, client = bench.on_socket(Frames(list(frames)), send_buffer=4096)
    await stream.send_all(ANSWER_101)
    await wait_all_tasks_blocked()
    assert stream._writing, "the writer has taken over"
    passes = bench.flusher.passes
    await wait_all_tasks_blocked()
    assert bench.flusher.passes == passes, "nobody spins on a full socket"
    await read_exactly(client, ANSWER_101 + expected)
    await wait_all_tasks_blocked()
    assert not stream._writing
    assert stream.bytes_out == len(ANSWER_101 + expected)
    stream.source = Frames(numbered(1))
    stream.wake()
    await read_exactly(client, numbered(1)[0])
    await stream.abort()


async def test_one_full_socket_does_not_hold_up_another(bench: Bench) -> None:
    """While one client reads nothing, the next one gets everything."""
    full, _slow = bench.on_socket(Frames(numbered(20_000)), send_buffer=4096)
    quick, client = bench.on_socket(Frames())
    await full.send_all(ANSWER_101)
    await quick.send_all(ANSWER_101)
    await read_exactly(client, ANSWER_101)
    for frames in ([one] for one in numbered(50)):
        quick.source = Frames(list(frames))
        quick.wake()
        await read_exactly(client, frames[0])
    await full.abort()
    await quick.abort()


async def test_pongs_keep_their_place_among_whole_frames(bench: Bench) -> None:
    """The library's frames and ours are never mixed within one another."""
    source = Frames()
    stream, client = bench.on_socket(source, send_buffer=4096)
    await stream.send_all(ANSWER_101)
    await read_exactly(client, ANSWER_101)
    sent = 0

    async def push() -> None:
        nonlocal sent
        for number in range(300):
            source.ready.append(text_frame(str(number).ljust(3000).encode()))
            stream.wake()
            await stream.send_all(b"\x8a\x03" + b"%03d" % number)
            sent += 1

    bench.nursery.start_soon(push)
    texts, pongs = [], []
    while len(texts) < 300 or len(pongs) < 300:
        received = await client.receive_frame()
        (texts if received.opcode == TEXT else pongs).append(int(received.payload))
    assert texts == pongs == list(range(300))
    await stream.abort()


async def test_too_many_own_frames_stop_the_reading(bench: Bench) -> None:
    """A library that wants to send more than the bound waits; cancelled there, nothing of it is sent."""
    stream, client = bench.on_socket(Frames(), send_buffer=4096)
    pong = b"\x8a\x7d" + bytes(125)
    queued = 0

    async def push() -> None:
        nonlocal queued
        while True:
            await stream.send_all(pong)
            queued += 1

    stream._control = pace(RateLimit(10**9))
    await stream.send_all(ANSWER_101)
    with trio.move_on_after(5) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(push)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught
    assert 0 < stream._own_bytes <= OWN_HIGH + len(pong)
    await read_exactly(client, ANSWER_101 + pong * queued)
    await stream.abort()


async def test_nothing_follows_a_close(bench: Bench) -> None:
    """After a Close frame neither frames nor pongs nor pings nor another Close are written."""
    frames = numbered(2)
    source = Frames(list(frames))
    stream, client = bench.on_socket(source)
    await stream.send_all(ANSWER_101)
    await stream.send_all(close_frame(1000))
    await stream.send_all(b"\x8a\x00")
    stream.ping()
    stream.say_close(CloseCode.INTERNAL)
    await wait_all_tasks_blocked()
    source.ready.append(frames[1])
    stream.wake()
    await wait_all_tasks_blocked()
    with trio.fail_after(5):
        client.stream.socket.shutdown(socket.SHUT_WR)  # type: ignore[attr-defined]
        await stream.see_off()
        rest = await client.read_rest()
    assert rest == ANSWER_101 + b"".join(frames) + close_frame(1000)


async def test_an_upgrade_and_its_close_in_one_pass_enclose_the_frames(bench: Bench) -> None:
    """Where all is written in one system call the 101 is first, the Close last, also for glued garbage."""
    bench.flusher = Flusher()  # one that runs when it is told
    frames = numbered(2)
    stream, client = bench.on_socket(Frames(list(frames)))
    await stream.send_all(ANSWER_101)
    await stream.send_all(b"\x8a\x00")
    await stream.send_all(close_frame(1002))
    bench.flusher._pass()
    await read_exactly(client, ANSWER_101 + b"\x8a\x00" + b"".join(frames) + close_frame(1002))
    await stream.abort()


async def test_a_pong_that_waits_for_its_budget_does_not_follow_a_close(bench: Bench) -> None:
    """A Close that is said while a pong is held back is the last frame."""
    stream, client = bench.on_socket(Frames())
    stream._control = pace(RateLimit(600, burst=1))
    await stream.send_all(ANSWER_101)
    await stream.send_all(b"\x8a\x01a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, b"\x8a\x01b")
        await wait_all_tasks_blocked()
        stream.say_close(CloseCode.POLICY)
    client.stream.socket.shutdown(socket.SHUT_WR)  # type: ignore[attr-defined]
    await stream.see_off()
    assert await client.read_rest() == ANSWER_101 + b"\x8a\x01a" + close_frame(1008)


async def test_pongs_are_sent_no_faster_than_their_budget(bench: Bench, autojump_clock: trio.testing.MockClock) -> None:
    """Above the budget a pong waits its turn: sixty a minute are one a second, not two."""
    ours, _ = memory_stream_pair()
    stream = bench.put(ours, Frames())
    stream._control = pace(RateLimit(60, burst=1))
    await stream.send_all(ANSWER_101)
    started = trio.current_time()
    for _ in range(11):
        await stream.send_all(b"\x8a\x00")
    assert trio.current_time() - started == pytest.approx(10, abs=0.1)
    await stream.abort()


async def test_a_reader_that_fell_off_is_filled_up_from_the_store(bench: Bench) -> None:
    """What is not in memory any more comes from the store, also after the store was away."""
    frames = numbered(5)
    stream, client = bench.on_socket(Frames(ready=frames[3:], stored=frames[:3], fails=1))
    await stream.send_all(ANSWER_101)
    await read_exactly(client, ANSWER_101 + b"".join(frames))
    assert not stream._writing
    await stream.abort()


@pytest.mark.parametrize("make_pair", [memory_stream_pair, lockstep_stream_pair])
async def test_a_transport_without_descriptor_is_written_by_a_task(make_pair: Callable[[], Any], bench: Bench) -> None:
    """TLS and memory streams get the same bytes in the same order."""
    frames = numbered(100, 2000)
    ours, theirs = make_pair()
    client = Client(theirs)
    source = Frames(ready=frames[50:], stored=frames[:50])
    stream = bench.put(ours, source)
    await stream.send_all(ANSWER_101)
    await read_exactly(client, ANSWER_101 + b"".join(frames))
    source.ready.append(frames[0])
    stream.wake()
    await read_exactly(client, frames[0])
    stream.say_close(CloseCode.NORMAL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.see_off)
        assert (await client.receive_close()).code == 1000
        await client.stream.aclose()
    assert stream.closed


async def test_a_client_that_is_gone_ends_only_its_own_writing(bench: Bench) -> None:
    """A reset while frames are on the way closes this connection and disturbs no other."""
    for _ in range(20):
        stream, client = bench.on_socket(Frames(numbered(5000)), send_buffer=4096)
        await stream.send_all(ANSWER_101)
        await wait_all_tasks_blocked()
        await client.stream.aclose()
        with trio.fail_after(5):
            while not stream.closed:
                await trio.lowlevel.checkpoint()
            await stream.see_off()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"\x8a\x00")
    other, client = bench.on_socket(Frames(numbered(1)))
    await other.send_all(ANSWER_101)
    await read_exactly(client, ANSWER_101 + numbered(1)[0])
    await other.abort()


async def test_a_source_that_fails_ends_only_its_own_connection(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A bug behind one connection is logged, and the flusher goes on with the others."""
    stream, _ = bench.on_socket(Frames(broken=True))
    await stream.send_all(ANSWER_101)
    await wait_all_tasks_blocked()
    assert stream.closed
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    other, client = bench.on_socket(Frames(numbered(1)))
    await other.send_all(ANSWER_101)
    await read_exactly(client, ANSWER_101 + numbered(1)[0])
    await other.abort()


@pytest.mark.parametrize("taken", [0, 1000])
async def test_a_client_that_takes_too_little_is_too_slow(
    taken: int, bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    """A full socket that takes less than a slice a minute has used up its age, however it trickles."""
    source = Frames(numbered(50_000))
    stream, client = bench.on_socket(source, send_buffer=4096)
    await stream.send_all(ANSWER_101)
    await wait_all_tasks_blocked()
    began = trio.current_time()
    while not source.slow and trio.current_time() < began + 300:
        await trio.sleep(5)
        if taken:
            await client._take(taken)
    assert source.slow == 1
    assert trio.current_time() == pytest.approx(began + module.STALL_S, abs=5)
    await stream.abort()


async def test_a_client_that_reads_slowly_but_reads_is_not_too_slow(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    """A client on a link of two kilobytes a second keeps its connection for as long as it takes."""
    source = Frames(numbered(50_000))
    stream, client = bench.on_socket(source, send_buffer=4096)
    await stream.send_all(ANSWER_101)
    for _ in range(200):
        await trio.sleep(5)
        await client._take(10_000)
    assert not source.slow
    await stream.abort()


async def test_an_outage_of_the_store_is_not_the_clients_slowness(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    """A reader that waits for the store longer than its own budget of age gets everything when the store is back."""
    ours, theirs = memory_stream_pair()
    source = Frames(stored=numbered(5), fails=round(2 * module.STALL_S / module.STORE_RETRY_S))
    stream = bench.put(ours, source)
    await stream.send_all(ANSWER_101)
    expected = ANSWER_101 + b"".join(numbered(5))
    assert await Client(theirs, patience_s=1000)._take(len(expected)) == expected
    assert not source.slow
    await stream.abort()


async def test_a_transport_without_descriptor_that_takes_nothing_is_too_slow(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    """Over TLS or memory, too, the wait for a client ends; the frame is torn, so nothing is written behind it."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    source = Frames(numbered(10))
    stream = bench.put(ours, source)
    await stream.send_all(ANSWER_101)
    await trio.sleep(module.STALL_S + 1)
    assert source.slow == 1
    assert stream.closed
    await trio.aclose_forcefully(theirs)


async def test_seeing_off_lets_the_last_bytes_leave_a_full_socket(bench: Bench) -> None:
    """A Close behind a full socket still reaches a client that reads within the linger time."""
    frames = numbered(3000)
    source = Frames(list(frames))
    stream, client = bench.on_socket(source, send_buffer=4096)
    await stream.send_all(ANSWER_101)
    await wait_all_tasks_blocked()
    async with trio.open_nursery() as nursery:
        stream.nursery = None  # as when the connection's own nursery has ended, its writer with it
        stream.say_close(CloseCode.RESTART)
        nursery.start_soon(stream.see_off)
        data = await client._take(len(ANSWER_101))
        assert data == ANSWER_101
        received: list[Frame] = []
        while not received or received[-1].opcode != CLOSE:
            received.append(await client.receive_frame())
        await client.stream.aclose()
    assert received[-1].code == 1012
    assert stream.closed


async def test_seeing_off_a_client_that_reads_nothing_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a client that reads nothing nor one that never closes its side is waited for longer than the linger."""
    monkeypatch.setattr(module, "LINGER_S", 0.1)
    for count in (0, 5000):
        stream, _client = bench.on_socket(Frames(numbered(count)), send_buffer=4096)
        await stream.send_all(ANSWER_101)
        stream.say_close(CloseCode.GOING_AWAY)
        with trio.fail_after(PATIENCE_S):
            await stream.see_off()
        assert stream.closed


def test_no_system_call_is_larger_than_its_slice() -> None:
    """The figure that ARCHITECTURE promises."""
    assert SLICE == 64 * 1024


# In a server.


async def test_events_pongs_and_answers_arrive_as_whole_frames(server: StartServer) -> None:
    """While a run talks, every ping gets its pong and every command its answer, in order, and no frame is torn."""
    running = await server(agents={"talker": talker(500, 200)})
    async with connect(running) as client:
        await client.send("user_message", content="go", agent="talker", thread_id="t")
        for number in range(50):
            await client.send_frame(PING, str(number))
            await client.send("ping", id=f"p{number}")
        pongs: list[int] = []
        answers: list[str] = []
        seqs: list[int] = []
        text = ""
        completed = False
        while not completed or len(pongs) < 50 or len(answers) < 50:
            received = await client.receive_frame()
            if received.opcode == PONG:
                pongs.append(int(received.payload))
                continue
            message = received.json()
            if message["type"] == "pong":
                answers.append(message["reply_to"])
            elif "seq" in message:
                seqs.append(message["seq"])
            if message["type"] == "agent_message":
                text = text + message["content"] if message["phase"] == "delta" else message["content"]
            completed = completed or message["type"] == "agent_completed"
        assert pongs == list(range(50))
        assert answers == [f"p{number}" for number in range(50)]
        assert seqs == sorted(set(seqs))
        assert text == "".join(text_of(500, 200))


async def said(client: Client) -> dict[str, str]:
    """Read a run to its end; return the text of each message, as a client puts it together."""
    return texts_in(await client.until("agent_completed"))


def texts_in(messages: list[dict[str, Any]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for message in messages:
        if message["type"] == "agent_message":
            before = texts.get(message["message_id"], "") if message["phase"] == "delta" else ""
            texts[message["message_id"]] = before + message["content"]
    return texts


async def run_over(server: Any) -> None:
    with trio.fail_after(10):
        while not server.registry.runs.ended:
            await trio.sleep(0.005)


async def test_a_slow_reader_gets_every_byte_and_holds_up_nobody(server: StartServer) -> None:
    """A client that stops reading with a small buffer reads on later and misses nothing; others never notice."""
    pieces, size = 1500, 4000
    ring = {"history__ring_events": 10_000, "history__ring_bytes": 2**26}
    running = await server(agents={"talker": talker(pieces, size)}, **ring)
    before = holdings(running)
    async with connect(running, receive_buffer=4096) as slow, connect(running) as quick:
        await slow.send("user_message", content="go", agent="talker", thread_id="t")
        whole = await said(quick)
        await run_over(running)
        context = next(iter(running.registry))
        behind = [connection.cursor.seq for connection in context.connections.values()]
        assert min(behind) < context.stream.visible, "the slow one is behind"
        async with connect(running, "bob") as other:
            with trio.fail_after(PATIENCE_S):
                await other.ask("ping")
        texts = await said(slow)
        assert texts == whole
        assert "".join(texts.values()) == "".join(text_of(pieces, size))
        assert (await slow.ask("ping"))["type"] == "pong", "the flusher has its socket again"
    await settles(running, before)


async def closed_as_slow(server: Any) -> None:
    with trio.fail_after(10):
        while not server.wiring.counts.closes[CloseCode.SLOW_CONSUMER]:
            await trio.sleep(0.01)


@pytest.mark.parametrize("budget", ["age", "bytes"])
async def test_a_client_past_its_budget_is_closed_with_4000_and_resumes(
    budget: str, server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads nothing for too long, or falls back too far, is closed with 4000; by its position it misses nothing."""
    if budget == "age":
        monkeypatch.setattr(module, "STALL_S", 0.2)
    else:
        monkeypatch.setattr("netra_ws.contexts.lane.LAG_BYTES", 1_000_000)
    running = await server(agents={"worker": worker(700, 4000)}, history__ring_bytes=500_000)
    async with connect(running, receive_buffer=4096) as slow, connect(running) as quick:
        await slow.send("user_message", content="go", agent="worker", thread_id="t")
        whole = [message for message in await quick.until("agent_completed") if "seq" in message]
        await closed_as_slow(running)
        assert (await quick.ask("ping"))["type"] == "pong", "the user's other connection goes on"
        heard: list[dict[str, Any]] = []
        with contextlib.suppress(Ended):
            while (received := await slow.receive_frame()).opcode != CLOSE:
                heard.append(received.json())
        heard = [message for message in heard if "seq" in message]
    position = f"{running_epoch(running)}:{heard[-1]['seq'] if heard else whole[0]['seq'] - 1}"
    async with connect(running, path=f"/ws?resume={position}") as again:
        heard += [message for message in await again.until("replay_completed") if "seq" in message]
    assert heard == whole


def running_epoch(server: Any) -> str:
    return str(next(iter(server.streams)).epoch)


async def test_what_is_not_read_is_not_made(server: StartServer) -> None:
    """A client that asks for page after page and reads none of them costs one answer above the bound, not all."""
    running = await server()
    async with connect(running, receive_buffer=4096) as client, connect(running, "bob") as bob:
        await client.ask("chat", content="x" * 500_000, agent="echo", thread_id="t")
        await client.until("agent_completed")
        for number in range(20):
            await client.send("get_thread_history", thread_id="t", id=str(number))
        await trio.sleep(0.3)
        (context,) = (context for context in running.registry if context.user_id != "bob")
        (connection,) = context.connections.values()
        assert 0 < connection._control_bytes < 3 * 2**20
        assert (await bob.ask("ping"))["type"] == "pong"
        for number in range(20):
            assert (await client.until("thread_history"))[-1]["reply_to"] == str(number)


@pytest.mark.parametrize("url", ["memory:", "sqlite"])
async def test_a_reader_that_fell_off_the_ring_misses_nothing_durable(
    url: str, server: StartServer, tmp_path: Any
) -> None:
    """With a tiny ring a slow reader goes on from the store: every durable event in order, once."""
    url = url if url == "memory:" else f"sqlite:///{tmp_path / 'netra.db'}"
    running = await server(
        agents={"worker": worker(700, 4000)},
        store__url=url,
        history__ring_events=20,
        history__ring_bytes=100_000,
    )
    async with connect(running, receive_buffer=4096) as slow, connect(running) as quick:
        await slow.send("user_message", content="go", agent="worker", thread_id="t")
        fast = [message for message in await quick.until("agent_completed") if "seq" in message]
        late = [message for message in await slow.until("agent_completed") if "seq" in message]
        assert [message["seq"] for message in late] == [message["seq"] for message in fast]
        assert late == fast
        assert (await slow.ask("ping"))["type"] == "pong"


async def test_a_reader_that_fell_off_the_ring_is_told_and_gets_the_whole_text(server: StartServer) -> None:
    """Deltas that were dropped are announced by ``lagging``, and the text is whole in the end."""
    pieces, size = 1500, 4000
    running = await server(
        agents={"talker": talker(pieces, size)}, history__ring_events=20, history__ring_bytes=100_000
    )
    async with connect(running, receive_buffer=4096) as slow, connect(running) as quick:
        await slow.send("user_message", content="go", agent="talker", thread_id="t")
        await quick.until("agent_completed")
        seen = await slow.until("agent_completed")
        seqs = [message["seq"] for message in seen if "seq" in message]
        assert seqs == sorted(set(seqs))
        assert "".join(texts_in(seen).values()) == "".join(text_of(pieces, size))
        gaps = [message for message in seen if message["type"] == "lagging"]
        if not gaps:
            gaps = [(await slow.until("lagging"))[-1]]
        assert all(gap["skipped"] > 0 and gap["from_seq"] < gap["to_seq"] for gap in gaps)


async def test_a_server_speaks_websocket_over_a_stream_without_socket(server: StartServer) -> None:
    """The door greets any stream, such as TLS or memory, and serves it like a socket."""
    running = await server()
    before = holdings(running)
    async with trio.open_nursery() as nursery:
        ours, theirs = memory_stream_pair()
        nursery.start_soon(running.door.greet, ours, "memory")
        client = Client(theirs)
        await client.open(upgrade(bearer=token()))
        await client.send_frame(PING, "x")
        assert (await client.receive_frame()) == Frame(PONG, b"x")
        await client.ask("user_message", content="hi", agent="echo", thread_id="t")
        assert (await client.until("agent_completed"))[-1]["status"] == "success"
        assert (await client.finish()).code == 1000
        theirs.send_stream.close()
    await settles(running, before)


async def test_a_page_over_a_stream_without_socket(server: StartServer) -> None:
    """Pages are served over any stream, too."""
    running = await server()
    async with trio.open_nursery() as nursery:
        ours, theirs = memory_stream_pair()
        nursery.start_soon(running.door.greet, ours, "memory")
        client = Client(theirs)
        await client.send_bytes(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await client.read_answer()
        assert (answer.status, json.loads(answer.body)["status"]) == (200, "healthy")
        theirs.send_stream.close()


async def test_events_that_go_on_after_a_close_are_not_sent(server: StartServer) -> None:
    """While a run talks on, a client that says Close gets Close as the last frame, then the end."""
    running = await server(agents={"talker": talker(3000, 500)})
    async with connect(running) as client, connect(running) as other:
        await client.send("user_message", content="go", agent="talker", thread_id="t")
        await client.until("agent_started")
        await client.send_bytes(frame(CLOSE, struct.pack("!H", 1000)) + frame(PING, "late"))
        assert (await client.receive_close()).code == 1000
        assert await client.receive_end() == b""
        await other.until("agent_completed")


async def test_the_bytes_of_a_connection_are_counted(server: StartServer) -> None:
    """What a connection read and wrote is known while it lives and added up when it ends."""
    running = await server()
    before = holdings(running)
    async with connect(running) as client:
        await client.ask("ping")
        (wire,) = [c.wire for context in running.registry for c in context.connections.values()]
        assert wire.bytes_in == len(frame(TEXT, json.dumps({"type": "ping", "id": "c1"})))
        bytes_out = wire.bytes_out
        assert bytes_out > 300
        await client.finish()
    await settles(running, before)
    assert running.wiring.counts.bytes_out == bytes_out + 4
    assert running.wiring.counts.messages_in == 1


def test_the_ping_is_a_control_frame() -> None:
    """Our ping is final, unmasked and empty."""
    assert ping_frame() == b"\x89\x00"


async def test_a_disconnected_waiting_run_leaves_nothing(server: StartServer) -> None:
    """When the last connection leaves and nothing is granted, the run, its context and all tasks are gone."""
    running = await server(agents={"waiter": waiter}, timing__resume_window_s=0)
    before = holdings(running)
    async with connect(running) as client:
        await client.ask("user_message", content="go", agent="waiter", thread_id="t")
        client.reset()
    await settles(running, before)
