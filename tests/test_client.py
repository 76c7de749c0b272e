"""The Trio client: rules by a scripted server in memory, the whole by a real server behind a proxy that fails."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from netra_ws.agents.run import Run as AgentRun
from netra_ws.client import Address, ClientPolicy, Session, connect
from netra_ws.errors import (
    AlreadyAnswered,
    CommandFailed,
    ConnectionLost,
    Rejected,
    SessionError,
    UnfitAnswer,
    UnknownInput,
)
from netra_ws.pending import PendingInput
from netra_ws.protocol.closing import FINAL_CODES, CloseCode
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.commands import Heartbeat
from netra_ws.protocol.events import AgentCompleted, AgentEvent, AgentMessage, AgentThinking
from netra_ws.protocol.replies import HeartbeatAck, Position, StreamReset
from netra_ws.server import Server, open_server
from netra_ws.session import (
    TRANSITIONS,
    Ended,
    EventQueue,
    SessionState,
    StateChange,
    backoff_delay,
    message_text,
    refusal,
)
from tests.kit import settings, token
from tests.scripted import ENDED, JWT, Refuse, ScriptedServer, Visit, idle

PATIENCE_S = 20.0


# Rules without a socket


def test_backoff_has_full_jitter() -> None:
    """The delay is anywhere between nothing and a span that doubles up to 30 seconds."""
    assert [backoff_delay(attempt, lambda: 1.0) for attempt in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff_delay(3, lambda: 0.0) == 0.0
    assert backoff_delay(10**6, lambda: 0.5) == 15.0


@pytest.mark.parametrize("code", list(CloseCode))
def test_close_codes_decide(code: CloseCode) -> None:
    """Exactly the final codes end a session, and an expired token where there is no other."""
    ended = Ended(reason="why", code=code)
    assert (refusal(ended, renewable=True) is not None) == (code in FINAL_CODES)
    assert (refusal(ended, renewable=False) is not None) == (code in FINAL_CODES or code == CloseCode.TOKEN_EXPIRED)


@pytest.mark.parametrize(
    ("status", "final"),
    [(status, True) for status in (301, 400, 401, 403, 404, 413, 426)]
    + [(n, False) for n in (408, 429, 500, 502, 503)],
)
def test_http_refusals_decide(status: int, final: bool) -> None:
    """A refusal of the range 400 ends a session unless it says that later may be better."""
    no = refusal(Ended(reason="why", status=status, word="WORD"), renewable=True)
    assert (no is not None) is final
    assert no is None or (no.status, no.code, no.text) == (status, "WORD", "why")


@pytest.mark.parametrize(
    ("url", "tls", "host", "port", "authority", "target"),
    [
        ("http://h", False, "h", 80, "h", "/ws?resume=e%3A7&thread_id=t"),
        ("https://h/", True, "h", 443, "h", "/ws?resume=e%3A7&thread_id=t"),
        ("ws://h:8000/other?a=1", False, "h", 8000, "h:8000", "/other?a=1&resume=e%3A7&thread_id=t"),
        ("wss://u:p@h:1/#token=x", True, "h", 1, "h:1", "/ws?resume=e%3A7&thread_id=t"),
        ("http://[::1]:8000", False, "::1", 8000, "[::1]:8000", "/ws?resume=e%3A7&thread_id=t"),
    ],
)
def test_addresses(url: str, tls: bool, host: str, port: int, authority: str, target: str) -> None:
    """Web and socket addresses mean the same, no path means /ws, and what is asked for is kept."""
    address = Address.parse(url)
    assert (address.tls, address.host, address.port, address.authority) == (tls, host, port, authority)
    assert address.target(Position(epoch="e", seq=7), "t") == target


@pytest.mark.parametrize("url", ["", "h:8000", "ftp://h", "http://", "ws:///ws", "http://h:port"])
def test_bad_addresses(url: str) -> None:
    """What is no address of a server is a ValueError at once."""
    with pytest.raises(ValueError):
        Address.parse(url)


def test_text_of_a_message() -> None:
    """A delta is appended and a full text replaces, for messages and thoughts."""
    names: dict[str, Any] = {"thread_id": "t", "run_id": "r", "agent_name": "a"}
    assert message_text("ab", AgentMessage(**names, message_id="m", phase="delta", content="c")) == "abc"
    assert message_text("ab", AgentMessage(**names, message_id="m", phase="full", content="c")) == "c"
    assert message_text("ab", AgentThinking(**names, reasoning="c", phase="delta")) == "abc"


def test_every_state_has_a_row() -> None:
    """A new state cannot be added without saying what may follow it, and nothing follows the end."""
    assert TRANSITIONS.keys() == set(SessionState)
    assert not TRANSITIONS[SessionState.CLOSED]
    assert all(SessionState.CLOSED in following for state, following in TRANSITIONS.items() if following)


def _heard(number: int) -> Heard:
    return Heard(type="x", fields={"n": number}, message=None, stamp=None, reply_to=None)


async def test_queue_resets() -> None:
    """A full queue with the policy reset drops what waits and says so in its place."""
    queue = EventQueue(limit=2)
    for number in range(3):
        queue.push(_heard(number))
    queue.end()
    queue.push(_heard(9))
    found = [heard async for heard in queue]
    assert [heard.type for heard in found] == ["stream_reset", "x"]
    assert isinstance(found[0].message, StreamReset)
    assert found[1].fields == {"n": 2}


async def test_queue_fails() -> None:
    """A full queue with the policy fail ends its reader with an error."""
    queue = EventQueue(limit=1, policy="fail")
    queue.push(_heard(0))
    queue.push(_heard(1))
    queue.end()
    assert len(queue) == 0
    with pytest.raises(SessionError, match="more than 1"):
        await anext(queue)


# A scripted server in memory; time is virtual


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_a_refusal_is_final(autojump_clock: MockClock, scripted: ScriptedServer, status: int) -> None:
    """An HTTP refusal is raised as Rejected with its status and word, and nobody tries again."""
    with pytest.raises(Rejected) as caught:
        async with connect("http://h", JWT, policy=scripted.policy(Refuse(status), idle)):
            pytest.fail("it is not open")
    assert (caught.value.status, caught.value.code, caught.value.text) == (status, "WORD", "no")
    assert len(scripted.times) == 1


async def test_a_refusal_without_words(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A refusal by something else on the way is told by its status."""
    with pytest.raises(Rejected, match="HTTP_403: refused with HTTP 403"):
        async with connect("http://h", JWT, policy=scripted.policy(Refuse(403, body=b"<html>"))):
            pytest.fail("it is not open")


async def test_an_expired_token_is_renewed_once(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A token function is asked again, at once, when the server says that the token has expired."""
    tokens = iter(["old.a.b", "new.a.b"])
    policy = scripted.policy(Refuse(401, "TOKEN_EXPIRED"), idle)
    async with connect("http://h", lambda: next(tokens), policy=policy):
        pass
    assert scripted.tokens == ["old.a.b", "new.a.b"]
    assert scripted.times == [0.0, 0.0]


async def test_an_expired_token_is_not_renewed_for_ever(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A second expired token in a row is final."""

    async def ask() -> str:
        await trio.lowlevel.checkpoint()
        return JWT

    expired = Refuse(401, "TOKEN_EXPIRED")
    with pytest.raises(Rejected, match="TOKEN_EXPIRED"):
        async with connect("http://h", ask, policy=scripted.policy(expired, expired, idle)):
            pytest.fail("it is not open")
    assert len(scripted.times) == 2


@pytest.mark.parametrize("bad", ["", "a b", "a\nb", "ü.b.c", b"a.b.c"])
async def test_what_is_no_token(autojump_clock: MockClock, scripted: ScriptedServer, bad: Any) -> None:
    """What cannot be a token is refused before anything is sent."""
    with pytest.raises(Rejected, match="TOKEN_INVALID"):
        async with connect("http://h", bad, policy=scripted.policy(idle)):
            pytest.fail("it is not open")
    assert scripted.times == []


async def test_retry_after_is_honoured(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """After 503 and 429 the client waits as long as the server says, and the jitter besides."""
    policy = scripted.policy(Refuse(503, retry_after="3"), Refuse(429, retry_after="soon"), idle)
    async with connect("http://h", JWT, policy=policy):
        pass
    assert scripted.times == [0.0, 3.25, 3.75]


async def test_draining_is_honoured(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A draining server is left alone as long as it asks for."""

    async def drains(visit: Visit) -> None:
        await visit.welcome()
        await visit.say(type="draining", reconnect_after_ms=7000, deadline_s=1)
        await visit.socket.aclose(1012)

    states: list[StateChange] = []
    async with connect("http://h", JWT, on_state=states.append, policy=scripted.policy(drains, idle)):
        await trio.sleep(10)
    assert scripted.times == [0.0, 7.25]
    assert [change.state.value for change in states] == [
        "connecting",
        "open",
        "waiting",
        "connecting",
        "open",
        "closed",
    ]
    assert states[2].delay_s == 7.25


@pytest.mark.parametrize("code", sorted(FINAL_CODES))
async def test_a_final_code_ends_everything(autojump_clock: MockClock, scripted: ScriptedServer, code: int) -> None:
    """After a final close code the run, the events and every command say why, and nobody reconnects."""

    async def ends(visit: Visit) -> None:
        await visit.welcome()
        await visit.started(1)
        await visit.socket.aclose(code, "so it is")

    states: list[StateChange] = []
    async with connect("http://h", JWT, on_state=states.append, policy=scripted.policy(ends, idle)) as session:
        events = session.events()
        run = await session.start("hi")
        assert [heard.type async for heard in _until_error(run.__aiter__())] == ["user_message"]
        for wait in (run.result, session.threads):
            with pytest.raises(Rejected, match="so it is") as caught:
                await wait()
            assert (caught.value.status, caught.value.code) == (None, str(code))
        assert (await anext(events)).type == "user_message"
        with pytest.raises(Rejected):
            await anext(events)
        assert session.state is SessionState.CLOSED
    assert states[-1].error is session.error is not None
    assert len(scripted.times) == 1


async def _until_error(events: AsyncIterator[Heard]) -> AsyncIterator[Heard]:
    try:
        async for heard in events:
            yield heard
    except Rejected:
        return


@pytest.mark.parametrize("renewable", [False, True])
async def test_an_expired_session(autojump_clock: MockClock, scripted: ScriptedServer, renewable: bool) -> None:
    """Close code 4003 means a new connection with a new token, or the end where there is none."""

    async def expires(visit: Visit) -> None:
        await visit.welcome()
        await visit.socket.aclose(4003)

    policy = scripted.policy(expires, idle)
    async with connect("http://h", (lambda: JWT) if renewable else JWT, policy=policy) as session:
        await trio.sleep(5)
        assert (session.state is SessionState.OPEN) is renewable


async def test_it_goes_on_where_it_was(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A lost connection is resumed at its position in its thread; what was heard already is dropped."""
    seen: list[dict[str, list[str]]] = []

    async def first(visit: Visit) -> None:
        await visit.welcome(seq=4)
        await visit.started(5)
        await visit.event("agent_event", 6, name="one", value=1)

    async def second(visit: Visit) -> None:
        seen.append(visit.query)
        await visit.welcome(seq=8, resumed=True)
        await visit.event("agent_event", 6, name="one", value=1)
        await visit.event("agent_event", 7, name="two", value=2)
        await visit.say(type="replay_completed", epoch="e", from_seq=6, to_seq=8, count=1, complete=True, reason=None)
        await visit.completed(9)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(first, second)) as session:
        assert session.position == Position(epoch="e", seq=4)
        run = await session.start("hi")
        assert session.thread_id == "t"
        heard = [heard async for heard in run]
        assert [event.stamp.seq for event in heard if event.stamp] == [5, 6, 7, 9]
        assert (await run.result()).status == "success"
    assert seen == [{"resume": ["e:6"], "thread_id": ["t"]}]
    assert session.position == Position(epoch="e", seq=9)


async def test_replay_moves_the_position(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """The end of a replay counts as heard, also where deltas were not kept."""

    async def replays(visit: Visit) -> None:
        await visit.welcome(seq=9, resumed=True)
        await visit.say(type="replay_completed", epoch="e", from_seq=3, to_seq=9, count=0, complete=True, reason=None)
        await visit.goodbye()

    policy = scripted.policy(replays)
    async with connect("http://h", JWT, position=Position(epoch="e", seq=3), policy=policy) as session:
        await trio.testing.wait_all_tasks_blocked()
        assert session.position == Position(epoch="e", seq=9)


async def test_unanswered_commands_are_sent_again(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A command without an answer goes out again on the next connection, word for word."""
    said: list[dict[str, Any]] = []

    async def first(visit: Visit) -> None:
        await visit.welcome()
        said.append(await visit.command("user_message"))

    async def second(visit: Visit) -> None:
        await visit.welcome()
        said.append(await visit.started(1))
        await visit.completed(2)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(first, second)) as session:
        run = await session.start("hi", context={"a": 1}, timeout_s=5)
        assert (await run.result()).success
    assert said[0] == said[1]


async def test_an_answer_may_come_before_the_replay(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """The answer to a repeated start follows its run even when its events are replayed behind it."""

    async def first(visit: Visit) -> None:
        await visit.welcome()
        await visit.command("user_message")

    async def second(visit: Visit) -> None:
        await visit.welcome(resumed=True)
        command = await visit.command("user_message")
        await visit.ack(command, run_id="r", thread_id="t", message_id="m", disposition="started")
        await visit.event("agent_started", 2, message_id="m", trigger="message")
        await visit.completed(3)
        await visit.say(type="replay_completed", epoch="e", from_seq=0, to_seq=3, count=2, complete=True, reason=None)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(first, second)) as session:
        run = await session.start("hi")
        assert [heard.type async for heard in run] == ["agent_started", "agent_completed"]


async def test_a_run_out_of_sight_is_given_up(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A start that is answered without any event of its run says that nothing can be read, instead of waiting."""

    async def blind(visit: Visit) -> None:
        await visit.welcome()
        command = await visit.command("user_message")
        await visit.ack(command, run_id="r", thread_id="t", message_id="m", disposition="started")
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(blind)) as session:
        run = await session.start("hi")
        with pytest.raises(SessionError, match="cannot be read"):
            await run.result()


@pytest.mark.parametrize("active", [False, True])
async def test_a_reset(autojump_clock: MockClock, scripted: ScriptedServer, active: bool) -> None:
    """A reset reaches every reader; a run goes on after it only when the welcome names it."""
    runs = (
        [{"run_id": "r", "thread_id": "t", "agent_name": "a", "state": "running", "started_seq": 1}] if active else []
    )

    async def first(visit: Visit) -> None:
        await visit.welcome()
        await visit.started(1)

    async def second(visit: Visit) -> None:
        await visit.welcome(active_runs=runs)
        await visit.say(type="stream_reset", epoch="e2", seq=50, reason="epoch_changed")
        await visit.completed(51)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(first, second)) as session:
        events = session.events()
        run = await session.start("hi")
        if active:
            assert [heard.type async for heard in run] == ["user_message", "stream_reset", "agent_completed"]
        else:
            with pytest.raises(SessionError, match="cannot be read"):
                await run.result()
        types = [(await anext(events)).type for _ in range(3)]
        assert types == ["user_message", "stream_reset", "agent_completed"]
        assert session.position == Position(epoch="e2", seq=51)


async def test_going_back(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """After resume, everything behind the position comes again."""

    async def repeats(visit: Visit) -> None:
        await visit.welcome(seq=5)
        await visit.event("agent_event", 6, name="n", value=0)
        command = await visit.command("resume")
        assert (command["epoch"], command["seq"]) == ("e", 4)
        await visit.ack(command)
        for seq in (5, 6):
            await visit.event("agent_event", seq, name="n", value=0)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(repeats)) as session:
        events = session.events()
        first = await anext(events)
        await session.resume(Position(epoch="e", seq=4))
        again = [await anext(events), await anext(events)]
        assert [heard.stamp.seq for heard in (first, *again) if heard.stamp] == [6, 5, 6]


async def test_silence_is_noticed(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """When nothing arrives for an interval and a pong's time, and a ping is not answered, the client comes again."""

    async def hang(*_: object) -> Any:
        await trio.sleep_forever()

    async def falls_silent(visit: Visit) -> None:
        await visit.welcome()
        stream: Any = visit.socket._stream
        stream.receive_some = stream.send_all = hang
        await trio.sleep(100)

    async with connect("http://h", JWT, policy=scripted.policy(falls_silent, idle)) as session:
        await trio.sleep(60)
        assert session.state is SessionState.OPEN
    assert scripted.times == [0.0, 25 + 8 + 8 + 0.25]


async def test_signs_of_life_count(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """Anything that arrives keeps a connection: a ping of the server, and the answer to one of ours."""

    async def quiet(visit: Visit) -> None:
        await visit.welcome()
        for _ in range(10):
            await visit.socket.ping()
            await trio.sleep(20)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(quiet)) as session:
        await trio.sleep(1000)
        assert session.state is SessionState.OPEN
    assert len(scripted.times) == 1


async def test_garbage_ends_a_connection(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A server that breaks the WebSocket protocol is left for good, with the code for that."""

    async def breaks(visit: Visit) -> None:
        await visit.welcome()
        await visit.socket._stream.send_all(b"\xff" * 20)
        await trio.sleep(100)

    async with connect("http://h", JWT, policy=scripted.policy(breaks, idle)) as session:
        with pytest.raises(Rejected, match="1002"):
            await anext(session.events())


async def test_what_was_given_up_is_not_sent(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A command that was cancelled before it left, behind a server that does not read, never leaves."""
    streams: list[trio.abc.Stream] = []
    room = trio.Event()
    real = scripted.open_stream

    async def open_stream(host: str, port: int, context: object) -> trio.abc.Stream:
        streams.append(await real(host, port, context))
        return streams[0]

    async def reads(visit: Visit) -> None:
        await visit.welcome()
        await visit.command("list_threads")
        await visit.command("heartbeat")
        await visit.goodbye()

    policy = attrs.evolve(scripted.policy(reads), open_stream=open_stream)
    async with connect("http://h", JWT, policy=policy) as session, trio.open_nursery() as nursery:
        stream: Any = streams[0]
        send = stream.send_all

        async def send_late(data: bytes) -> None:
            await room.wait()
            await send(data)

        stream.send_all = send_late
        nursery.start_soon(session.threads)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await session.create_thread("given up")
        nursery.start_soon(session.command, Heartbeat())
        room.set()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_nobody_is_there(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """Without a server the first connection fails with ConnectionLost after connect_s at the latest."""
    with pytest.raises(ConnectionLost, match="nobody is there"):
        async with connect("http://h", JWT, policy=scripted.policy(connect_s=20)):
            pytest.fail("it is not open")
    assert trio.current_time() <= 20
    assert scripted.times == [0.0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75]


async def test_nobody_is_there_any_more(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """Patience is counted from the end of the last connection, and its end is told to everybody."""

    async def goes(visit: Visit) -> None:
        await visit.welcome()
        await visit.started(1)
        await trio.sleep(50)

    async with connect("http://h", JWT, policy=scripted.policy(goes, patience_s=40)) as session:
        run = await session.start("hi")
        with pytest.raises(ConnectionLost, match="no connection for 40 s"):
            await run.result()
        assert 50 < trio.current_time() <= 90


async def test_short_connections_do_not_reset_the_backoff(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A server that accepts and dies is left alone for longer and longer; a stable one begins anew."""

    async def dies(visit: Visit) -> None:
        await visit.welcome()

    async def dies_later(visit: Visit) -> None:
        await visit.welcome()
        await trio.sleep(10)

    async with connect("http://h", JWT, policy=scripted.policy(dies, dies, dies_later, idle)) as session:
        await trio.sleep(15)
        assert session.state is SessionState.OPEN
    assert scripted.times == [0.0, 0.25, 0.75, 0.75 + 10 + 0.25]


async def test_handshakes_that_end(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A connection that ends in its handshake is noticed at once, one that says nothing after opening_s."""
    ends, raves, hangs = (trio.testing.memory_stream_pair() for _ in range(3))
    await ends[0].aclose()
    await raves[0].send_all(b"SSH-2.0 something else\r\n\r\n")
    streams = iter([ends[1], raves[1], hangs[1]])
    real = scripted.open_stream

    async def open_stream(host: str, port: int, context: object) -> trio.abc.Stream:
        stream: trio.abc.Stream | None = next(streams, None)
        if stream is None:
            return await real(host, port, context)
        scripted.times.append(trio.current_time())
        return stream

    states: list[StateChange] = []
    policy = attrs.evolve(scripted.policy(idle), open_stream=open_stream)
    async with connect("http://h", JWT, on_state=states.append, policy=policy):
        pass
    assert scripted.times == [0.0, 0.25, 0.75, 0.75 + 10 + 1]
    reasons = [change.reason for change in states if change.state is SessionState.WAITING]
    assert reasons[0] == "the connection ended in its handshake"
    assert reasons[2] == "the server did not answer within 10 s"


@pytest.mark.parametrize("first", ["nonsense", "[]", '{"type": "hello"}', '{"type": "user_message", "seq": 1}', None])
async def test_another_protocol(autojump_clock: MockClock, scripted: ScriptedServer, first: str | None) -> None:
    """A server of another protocol is nobody to talk to, and says so."""

    async def other(visit: Visit) -> None:
        if first is not None:
            await visit.socket.send_message(first)
        await visit.socket.aclose(1011, "oh no")

    with pytest.raises(ConnectionLost, match="does not speak netra" if first else "oh no"):
        async with connect("http://h", JWT, policy=scripted.policy(other, connect_s=0.1)):
            pytest.fail("it is not open")


async def test_frames_of_a_newer_server(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """What this version does not know is handed on where it is an event, and never an error."""

    async def newer(visit: Visit) -> None:
        await visit.welcome()
        await visit.socket.send_message("nonsense")
        await visit.say(type="hint", text="new")
        await visit.say(type="connection_warning", code="W", error="careful")
        await visit.say(
            type="replay_completed", epoch="e", from_seq=0, to_seq=9, count=0, complete=True, reason=None, job_id="j"
        )
        await visit.say(type="stream_reset", epoch="e9", seq=9, reason="trimmed", job_id="j")
        await visit.event("agent_event", 900, name="of a job", value=0, job_id="j")
        await visit.event("agent_dreams", 1, reply_to=None)
        await visit.say(type="ack", reply_to="somebody else's")
        command = await visit.command("heartbeat")
        await visit.say(type="heartbeat_ack", reply_to=command["id"], status="healthy", timestamp=1.0)
        command = await visit.command("list_threads")
        await visit.say(type="novel", reply_to=command["id"])
        command = await visit.command("list_threads")
        await visit.say(type="error", reply_to=command["id"], code="NEW", error="other shape")
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(newer)) as session:
        events = session.events()
        assert isinstance((await session.command(Heartbeat())).message, HeartbeatAck)
        with pytest.raises(SessionError, match="does not know"):
            await session.threads()
        with pytest.raises(CommandFailed, match="NEW: other shape"):
            await session.threads()
        assert session.position == Position(epoch="e", seq=1)
        heard = await anext(events)
        assert (heard.type, heard.message) == ("agent_dreams", None)


async def test_an_unanswered_command_fails(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A command that is not answered in time fails as TIMEOUT, and the session goes on."""

    async def deaf(visit: Visit) -> None:
        await visit.welcome()
        await visit.command("list_threads")
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(deaf, command_s=20)) as session:
        with pytest.raises(CommandFailed, match="TIMEOUT") as caught:
            await session.threads()
        assert caught.value.retryable
        assert trio.current_time() == 20


async def test_commands_wait_for_a_connection(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """What is said without a connection is sent when there is one; what was given up meanwhile is not."""

    async def dies(visit: Visit) -> None:
        await visit.welcome()

    async def answers(visit: Visit) -> None:
        await visit.welcome()
        command = await visit.command("rename_thread")
        await visit.say(type="thread_renamed", reply_to=command["id"], thread_id="t", title="x", metadata={})
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(dies, Refuse(503, retry_after="5"), answers)) as session:
        await trio.sleep(1)
        with trio.move_on_after(1):
            await session.threads()
        assert (await session.rename_thread("t", "x")).title == "x"


async def test_a_command_that_is_too_big(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A message above the server's limit is refused here, because sending it would end the session."""
    async with connect("http://h", JWT, policy=scripted.policy(idle)) as session:
        with pytest.raises(CommandFailed, match="MESSAGE_TOO_BIG"):
            await session.start("x" * 1000)


async def test_tokens_are_refreshed(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """When a token is about to expire, the server gets a new one from the function."""
    tokens = iter(["one.a.b", "two.a.b"])

    async def asks(visit: Visit) -> None:
        await visit.welcome()
        await visit.say(type="auth_expiring", expires_at=60.0, expires_in_s=60.0)
        command = await visit.command("refresh_auth")
        assert command["token"] == "two.a.b"
        await visit.say(
            type="error", reply_to=command["id"], code="UNAVAILABLE", error="x", message="x", retryable=True
        )
        await visit.goodbye()

    async with connect("http://h", lambda: next(tokens), policy=scripted.policy(asks)):
        await trio.sleep(1)


async def test_short_lived_tokens_are_not_renewed_in_a_circle(
    autojump_clock: MockClock, scripted: ScriptedServer
) -> None:
    """A token that lives shorter than the warning is replaced halfway to its end, not as fast as the wire allows."""
    renewed_at: list[float] = []

    async def asks(visit: Visit) -> None:
        await visit.welcome()
        for _ in range(4):
            await visit.say(type="auth_expiring", expires_at=20.0, expires_in_s=20.0)
            command = await visit.command("refresh_auth")
            renewed_at.append(trio.current_time())
            await visit.say(type="auth_refreshed", reply_to=command["id"], expires_at=20.0)
        await visit.goodbye()

    async with connect("http://h", lambda: "one.a.b", policy=scripted.policy(asks)):
        await trio.sleep(60)
    first, *later = renewed_at
    assert [round(at - first) for at in later] == [10, 20, 30]


async def test_a_token_function_that_fails(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """What a token function raises is raised before the first connection and tried again after it."""

    async def dies(visit: Visit) -> None:
        await visit.welcome()

    answers: list[str | None] = [JWT, None, JWT]

    def ask() -> str:
        answer = answers.pop(0)
        if answer is None:
            raise LookupError("no network")
        return answer

    async with connect("http://h", ask, policy=scripted.policy(dies, idle)) as session:
        await trio.sleep(5)
        assert session.state is SessionState.OPEN
    answers.append(None)
    with pytest.raises(LookupError, match="no network"):
        async with connect("http://h", ask, policy=scripted.policy()):
            pytest.fail("it is not open")


async def test_errors_come_as_they_are(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """An error of the block, of a callback, or a group of the block's own leaves connect unwrapped."""
    with pytest.raises(KeyError):
        async with connect("http://h", JWT, policy=scripted.policy(idle)):
            raise KeyError("mine")
    mine = ExceptionGroup("mine", [ValueError()])
    with pytest.raises(ExceptionGroup) as caught:
        async with connect("http://h", JWT, policy=scripted.policy(idle)):
            raise mine
    assert caught.value is mine

    def fail(change: StateChange) -> None:
        if change.state is SessionState.WAITING:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with connect("http://h", JWT, on_state=fail, policy=scripted.policy(Refuse(503), idle)):
            pytest.fail("it is not open")


async def test_cancellation_leaves_politely(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A cancelled block still says goodbye, and is not held up by a server that does not answer."""
    said: list[str] = []

    async def listens(visit: Visit) -> None:
        await visit.welcome()
        said.append((await visit.command("disconnect"))["type"])
        await trio.sleep(100)

    with trio.move_on_after(5) as scope:
        async with connect("http://h", JWT, policy=scripted.policy(listens)):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert said == ["disconnect"]
    assert trio.current_time() == 7


async def test_after_leaving(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """After the block, readers end, runs and commands say that the session was closed."""

    async def works(visit: Visit) -> None:
        await visit.welcome()
        await visit.started(1)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(works)) as session:
        events = session.events()
        run = await session.start("hi")
    assert [heard.type async for heard in events] == ["user_message"]
    assert [heard async for heard in session.events()] == []
    with pytest.raises(SessionError, match="closed"):
        await run.result()
    with pytest.raises(SessionError, match="closed"):
        await session.threads()


async def test_a_cancelled_start_is_not_followed(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A start that nobody waits for keeps nothing, and its events are still seen by all readers."""

    async def slow(visit: Visit) -> None:
        await visit.welcome()
        command = await visit.command("user_message")
        await visit.event(
            "user_message", 1, message_id="m", content="hi", disposition="started", command_id=command["id"]
        )
        await trio.sleep(5)
        await visit.completed(2)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(slow)) as session:
        events = session.events()
        with trio.move_on_after(2):
            await session.start("hi")
        assert [(await anext(events)).type for _ in range(2)] == ["user_message", "agent_completed"]


async def test_an_end_tells_those_who_wait(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A command that is on its way when the session ends gets the reason; so does a forgotten one's handle."""

    async def kicks(visit: Visit) -> None:
        await visit.welcome()
        await visit.command("list_threads")
        await visit.socket.aclose(4010, "signed out")

    async with connect("http://h", JWT, policy=scripted.policy(kicks)) as session:
        with pytest.raises(Rejected, match="4010: signed out"):
            await session.threads()
        with pytest.raises(Rejected):
            await session.threads()


async def test_waiting_is_told(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """An error that says when to try again says it in its details."""

    async def limits(visit: Visit) -> None:
        await visit.welcome()
        command = await visit.command("list_threads")
        more = {"error": "slow down", "message": "slow down", "retryable": True, "retry_after_s": 1.5}
        await visit.say(type="error", reply_to=command["id"], code="RATE_LIMITED", **more)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(limits)) as session:
        with pytest.raises(CommandFailed) as caught:
            await session.threads()
        assert (caught.value.retryable, caught.value.details) == (True, {"retry_after_s": 1.5})


async def test_a_reset_in_between(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A position that cannot be gone back to gives a reset, and runs that are followed go on."""

    async def resets(visit: Visit) -> None:
        await visit.welcome()
        await visit.started(1)
        await visit.ack(await visit.command("resume"))
        await visit.say(type="stream_reset", epoch="e", seq=7, reason="ahead")
        await visit.completed(8)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(resets)) as session:
        run = await session.start("hi")
        await session.resume(Position(epoch="e", seq=99))
        assert (await run.result()).success
        assert session.position == Position(epoch="e", seq=8)


async def test_one_of_two_handles_is_given_up(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A steer that nobody waits for leaves the other handle of the same run in place."""

    async def steers(visit: Visit) -> None:
        await visit.welcome()
        await visit.started(1)
        command = await visit.command("user_message")
        more = {"message_id": "n", "content": "x", "disposition": "steered", "command_id": command["id"]}
        await visit.event("user_message", 2, **more)
        await trio.sleep(5)
        await visit.completed(3)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(steers)) as session:
        run = await session.start("hi")
        with trio.move_on_after(1):
            await session.steer("t", "x")
        assert (await run.result()).success


async def test_an_end_of_a_newer_kind(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A run's end that this version cannot read ends the run all the same."""

    async def ends(visit: Visit) -> None:
        await visit.welcome()
        await visit.started(1)
        await visit.event("agent_completed", 2, status="enlightened")
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(ends)) as session:
        run = await session.start("hi")
        assert [heard.type async for heard in run] == ["user_message", "agent_completed"]
        with pytest.raises(SessionError, match="could not be read"):
            await run.result()


async def test_no_new_token_in_time(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """A token function that fails when the token is about to expire does not end the connection."""
    answers: list[str] = [JWT]

    async def asks(visit: Visit) -> None:
        await visit.welcome()
        await visit.say(type="auth_expiring", expires_at=60.0, expires_in_s=60.0)
        await visit.goodbye()

    async with connect("http://h", answers.pop, policy=scripted.policy(asks)) as session:
        await trio.sleep(1)
        assert session.state is SessionState.OPEN


async def test_two_failures_are_a_group(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """When the block and a callback both fail, neither error is lost."""

    def fail(change: StateChange) -> None:
        if change.state is SessionState.CLOSED:
            raise ZeroDivisionError

    with pytest.raises(BaseExceptionGroup) as caught:
        async with connect("http://h", JWT, on_state=fail, policy=scripted.policy(idle)):
            raise KeyError("mine")
    assert [type(exc) for exc in caught.value.exceptions] == [KeyError, ZeroDivisionError]


async def test_a_secure_address(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """Behind https and wss the transport is opened with a context that checks certificates."""
    contexts: list[Any] = []

    async def open_stream(host: str, port: int, context: ssl.SSLContext | None) -> trio.abc.Stream:
        contexts.append((host, port, context))
        raise OSError("away")

    policy = ClientPolicy(connect_s=0.6, random=lambda: 0.5, open_stream=open_stream)
    with pytest.raises(ConnectionLost):
        async with connect("https://h", JWT, policy=policy):
            pytest.fail("it is not open")
    assert [(host, port) for host, port, _ in contexts] == [("h", 443)] * 2
    assert contexts[0][2] is contexts[1][2]
    assert contexts[0][2].verify_mode is ssl.CERT_REQUIRED


async def test_inputs_are_answered(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """An answer and a refusal to answer go out under the input's id."""
    said = []

    async def asks(visit: Visit) -> None:
        await visit.welcome()
        for _ in range(2):
            command = await visit.command("input_response")
            said.append((command["input_id"], command["status"], command.get("value")))
            await visit.ack(command)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(asks)) as session:
        await session.answer("i", "yes")
        await session.decline("i")
    assert said == [("i", "resolved", "yes"), ("i", "cancelled", None)]


@pytest.mark.parametrize(
    ("code", "refusal", "waits"),
    [
        ("ALREADY_ANSWERED", AlreadyAnswered, False),
        ("NOT_FOUND", UnknownInput, False),
        ("INVALID_MESSAGE", UnfitAnswer, True),
        ("BUSY", CommandFailed, True),
    ],
)
async def test_a_refused_answer(
    autojump_clock: MockClock, scripted: ScriptedServer, code: str, refusal: type[CommandFailed], waits: bool
) -> None:
    """Each refusal of an answer has an exception of its own; only what can still be answered goes on waiting."""

    async def refuses(visit: Visit) -> None:
        await visit.welcome(pending_inputs=[{"input_id": "i", "run_id": "r", "prompt": "Age?"}])
        command = await visit.command("input_response")
        details = {"fields": {"$.value.age": "expected an integer"}}
        await visit.say(
            type="error", reply_to=command["id"], code=code, error="no", message="no", retryable=False, details=details
        )
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(refuses)) as session:
        with pytest.raises(CommandFailed) as caught:
            await session.answer("i", {"age": "x"})
        assert type(caught.value) is refusal
        assert caught.value.code == code
        if isinstance(caught.value, UnfitAnswer):
            assert caught.value.fields == {"$.value.age": "expected an integer"}
        assert [pending.input_id for pending in session.pending_inputs] == (["i"] if waits else [])


async def test_inputs_of_other_clients_are_known(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """What waits for an answer is known from each welcome and kept up to date, whoever asked and answered."""
    asked = {"input_id": "i1", "run_id": "r1", "thread_id": "t", "agent_name": "a", "prompt": "Go?", "choices": ["y"]}

    async def first(visit: Visit) -> None:
        await visit.welcome(pending_inputs=[asked, {"prompt": "no id"}])
        await visit.event("input_required", 1, input_id="i2", prompt="Name?", expires_at=9.0)
        await visit.event("input_required", 2, input_id="i3", run_id="r3", prompt="Age?", schema={"type": "integer"})
        await visit.event("input_received", 3, input_id="i1", status="resolved", value="y", by="user")
        await visit.socket.aclose(1012)

    async def second(visit: Visit) -> None:
        await visit.welcome(3, resumed=True, pending_inputs=[asked | {"input_id": "i2"}, asked | {"input_id": "i3"}])
        await visit.event("agent_completed", 4, run_id="r1", **ENDED)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(first, second)) as session:
        assert session.pending_inputs == (
            PendingInput(input_id="i1", run_id="r1", thread_id="t", agent_name="a", prompt="Go?", choices=("y",)),
        )
        events = session.events()
        seen = []
        for _ in range(4):
            await anext(events)
            seen.append([pending.input_id for pending in session.pending_inputs])
    # The last one is of r1, as the second welcome says of both.
    assert seen[-2:] == [["i2", "i3"], []]


async def test_a_run_has_its_sub_runs_among_its_events(autojump_clock: MockClock, scripted: ScriptedServer) -> None:
    """Events of sub-runs, to any depth, come with those of the run that started them; only its own end ends it."""

    async def delegates(visit: Visit) -> None:
        await visit.welcome()
        await visit.started(1)
        begun = {"message_id": "m", "trigger": "delegate"}
        await visit.event("agent_started", 2, run_id="sub", parent_run_id="r", **begun)
        await visit.event("agent_started", 3, run_id="deep", parent_run_id="sub", **begun)
        await visit.event("agent_started", 4, run_id="foreign", parent_run_id="other", **begun)
        await visit.event("agent_completed", 5, run_id="deep", parent_run_id="sub", **ENDED)
        await visit.event("agent_completed", 6, run_id="sub", parent_run_id="r", **ENDED)
        await visit.completed(7)
        await visit.goodbye()

    async with connect("http://h", JWT, policy=scripted.policy(delegates)) as session:
        run = await session.start("hi")
        assert [heard.stamp.seq async for heard in run if heard.stamp is not None] == [1, 2, 3, 5, 6, 7]
        assert (await run.result()).run_id == "r"
        assert session._book._roots == {}


# A real server


@attrs.define(eq=False)
class Proxy:
    """A TCP proxy that can cut every connection, as a network does."""

    target: int
    port: int = 0
    cuts: int = 0
    _scopes: set[trio.CancelScope] = attrs.field(factory=set)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._carry, listeners, task_status=task_status)  # type: ignore[arg-type]

    async def _carry(self, client: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            server = await trio.open_tcp_stream("127.0.0.1", self.target)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pipe, client, server, nursery)
                    nursery.start_soon(self._pipe, server, client, nursery)
            finally:
                self._scopes.discard(scope)
                await trio.aclose_forcefully(server)
                await trio.aclose_forcefully(client)

    async def _pipe(self, source: trio.SocketStream, sink: trio.SocketStream, nursery: trio.Nursery) -> None:
        try:
            async for piece in source:
                await sink.send_all(piece)
        except trio.BrokenResourceError:
            pass
        nursery.cancel_scope.cancel()

    def cut(self) -> None:
        self.cuts += len(self._scopes)
        for scope in self._scopes:
            scope.cancel()


async def counter(run: AgentRun) -> str:
    """Say and emit numbers, with time in between for a network to fail."""
    for number in range(60):
        await run.emit("number", number)
        await run.say(f"{number} ")
        await trio.sleep(0.005)
    return run.said


async def sleeper(run: AgentRun) -> str:
    """Sleep until somebody stops it."""
    await trio.sleep(3600)
    return ""


AGENTS = {"counter": counter, "sleeper": sleeper}
QUICK = ClientPolicy(backoff_base_s=0.02, backoff_cap_s=0.1)


@asynccontextmanager
async def serving(**more: object) -> AsyncIterator[Server]:
    with trio.fail_after(PATIENCE_S):
        async with open_server(settings(**more), agents=AGENTS) as server:
            yield server


async def test_a_run_from_end_to_end() -> None:
    """A question gets the whole run: thoughts, a tool, the answer, the result."""
    async with serving() as server, connect(server.url, token()) as session:
        run = await session.start("What is 17% of 2,340?")
        heard = [heard async for heard in run]
        assert {"agent_started", "agent_thinking", "tool_executing", "tool_completed"} <= {
            event.type for event in heard
        }
        assert isinstance(heard[-1].message, AgentCompleted)
        assert "397.8" in (await run.result()).final_response
        assert session.welcome.user_id == "ada"


async def test_threads() -> None:
    """Threads are created, renamed, listed, switched to, read and deleted."""
    async with serving() as server, connect(server.url, token()) as session:
        made = await session.create_thread("First", thread_id="mine", metadata={"a": 1})
        assert (made.thread_id, made.metadata) == ("mine", {"a": 1})
        await session.rename_thread("mine", "Second")
        await session.switch_thread("mine")
        run = await session.start("hello", agent="echo")
        assert run.thread_id == "mine"
        await run.result()
        assert [thread.title for thread in (await session.threads()).threads] == ["Second"]
        assert [message.role for message in (await session.history("mine")).messages] == ["user", "assistant"]
        await session.delete_thread("mine")
        assert session.thread_id is None
        with pytest.raises(CommandFailed, match="NOT_FOUND"):
            await session.history("mine")


async def test_stopping() -> None:
    """A stop returns the final status when nothing of the run is left."""
    async with serving() as server, connect(server.url, token()) as session:
        run = await session.start("rest", agent="sleeper")
        assert await run.stop() == "cancelled"
        assert (await run.result()).cancelled_by == "user"


async def test_steering() -> None:
    """A steered text belongs to the run that is going on, and both of its handles see the end."""
    async with serving() as server, connect(server.url, token()) as session:
        run = await session.start("rest", agent="sleeper")
        steered = await session.steer(run.thread_id, "hurry")
        assert (steered.run_id, steered.disposition) == (run.run_id, "steered")
        await session.stop(run.run_id)
        assert (await run.result()).status == (await steered.result()).status == "cancelled"


async def test_an_error_is_an_exception() -> None:
    """The server's error comes as CommandFailed with its code and details."""
    async with serving() as server, connect(server.url, token()) as session:
        with pytest.raises(CommandFailed) as caught:
            await session.start("hi", agent="nobody")
        assert caught.value.code == "UNKNOWN_AGENT"
        assert "echo" in (caught.value.details or {})["agents"]


async def test_a_bad_token_is_refused() -> None:
    """A token that the server does not accept is Rejected with the server's own word."""
    async with serving() as server:
        with pytest.raises(Rejected, match="TOKEN_INVALID"):
            async with connect(server.url, JWT):
                pytest.fail("it is not open")
        with pytest.raises(Rejected, match="TOKEN_EXPIRED"):
            async with connect(server.url, token(expires_s=-60)):
                pytest.fail("it is not open")


async def test_a_server_without_tls(nursery: trio.Nursery) -> None:
    """A server that does not speak TLS is no server for https, and that is told in time."""
    async with serving() as server:
        with pytest.raises(ConnectionLost):
            async with connect(server.url.replace("http", "https"), token(), policy=ClientPolicy(connect_s=0.2)):
                pytest.fail("it is not open")


async def test_cut_connections_lose_and_double_nothing() -> None:
    """Whatever the network does, every numbered event arrives once, in order, and the text is whole."""
    async with serving() as server, trio.open_nursery() as nursery:
        proxy = Proxy(server.port)
        await nursery.start(proxy.run)

        async def cut_now_and_then() -> None:
            for _ in range(6):
                await trio.sleep(0.06)
                proxy.cut()

        async with connect(f"ws://127.0.0.1:{proxy.port}/ws", token(), policy=QUICK) as session:
            run = await session.start("count", agent="counter")
            nursery.start_soon(cut_now_and_then)
            text, numbers, seqs = "", [], []
            async for heard in run:
                assert heard.stamp is not None
                seqs.append(heard.stamp.seq)
                if isinstance(heard.message, AgentEvent):
                    numbers.append(heard.message.value)
                elif isinstance(heard.message, AgentMessage):
                    text = message_text(text, heard.message)
            assert (await run.result()).status == "success"
        assert proxy.cuts >= 2
        assert numbers == list(range(60))
        assert seqs == sorted(set(seqs))
        assert text == "".join(f"{number} " for number in range(60))
        nursery.cancel_scope.cancel()


async def test_a_position_is_good_for_a_later_session() -> None:
    """A session that is given a saved position hears everything that happened behind it."""
    async with serving() as server:
        async with connect(server.url, token()) as session:
            before = session.position
            await (await session.start("hello", agent="echo")).result()
            last = session.position
        assert before is not None
        async with connect(server.url, token(), position=before) as session:
            await trio.sleep(0.1)  # long enough for the replay to be there before anybody asks for it
            found = []
            async for heard in session.events():
                found.append(heard)
                if heard.type == "agent_completed":
                    break
            assert session.position == last
            assert [heard.type for heard in found[:3]] == ["thread_created", "user_message", "agent_started"]


async def test_a_restart_is_survived(tmp_path: Path) -> None:
    """A session goes on across a drain and a new server, and hears how its run ended."""
    more: dict[str, object] = {"store__url": f"sqlite:///{tmp_path / 'store.db'}", "timing__drain_s": 0.1}
    states: list[str] = []
    async with connect_to_two_servers(more, states) as (session, restart):
        run = await session.start("rest", agent="sleeper")
        await restart()
        completed = await run.result()
        assert (completed.status, completed.cancelled_by) == ("cancelled", "shutdown")
        assert await (await session.start("again", agent="echo")).result()
    assert states == ["connecting", "open", "waiting", "connecting", "open", "closed"]


@asynccontextmanager
async def connect_to_two_servers(
    more: dict[str, object], states: list[str]
) -> AsyncIterator[tuple[Session, Callable[[], Awaitable[None]]]]:
    def note(change: StateChange) -> None:
        if not states or states[-1] != change.state.value:
            states.append(change.state.value)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            leave, left = trio.Event(), trio.Event()

            async def first(task_status: trio.TaskStatus[Server]) -> None:
                async with open_server(settings(**more), agents=AGENTS) as server:
                    task_status.started(server)
                    await leave.wait()
                    await server.drain()
                left.set()

            async def second(port: int, task_status: trio.TaskStatus[Server]) -> None:
                async with open_server(settings(server__port=port, **more), agents=AGENTS) as server:
                    task_status.started(server)
                    await trio.sleep_forever()

            server: Server = await nursery.start(first)

            async def restart() -> None:
                leave.set()
                await left.wait()
                await nursery.start(second, server.port)

            async with connect(server.url, token(), on_state=note, policy=QUICK) as session:
                yield session, restart
            nursery.cancel_scope.cancel()
