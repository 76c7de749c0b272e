from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator

import attrs
import jwt
import pytest
import trio
from trio.testing import MockClock

from netra_ws.identity import Identity
from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.replies import AuthExpiring, Reply
from netra_ws.wire.heartbeat import Heartbeat
from tests.conftest import StartServer
from tests.kit import PATIENCE_S, PING, PONG, TEXT, Client, connect, http, operator, raw, token, upgrade

START = 1_763_000_000.0


@attrs.define(eq=False)
class Wire:
    """A wire whose client answers pings or does not."""

    answers: bool = True
    closed: bool = False
    heard_at: float = -math.inf
    ping_sent_at: float | None = None
    rtt_s: float | None = None
    pinged: list[float] = attrs.field(factory=list)

    def ping(self) -> None:
        now = trio.current_time()
        self.pinged.append(now)
        if self.answers:
            self.heard_at, self.rtt_s, self.ping_sent_at = now, 0.001, None
        else:
            self.ping_sent_at = now


@attrs.define
class Traffic:
    rtt_s: float | None = None


@attrs.define(eq=False)
class Seat:
    """A connection that remembers what it was told, and when; its clock goes with Trio's."""

    identity: Identity
    closing: bool = False
    told: list[tuple[float, Reply]] = attrs.field(factory=list)
    shut_with: list[tuple[float, CloseCode]] = attrs.field(factory=list)
    traffic: Traffic = attrs.field(factory=Traffic)

    def clock(self) -> float:
        return START + trio.current_time()

    def tell(self, reply: Reply) -> None:
        self.told.append((trio.current_time(), reply))

    def shut(self, code: CloseCode, reason: str) -> None:
        self.closing = True
        self.shut_with.append((trio.current_time(), code))


@pytest.fixture
async def heartbeat() -> AsyncIterator[Heartbeat]:
    async with trio.open_nursery() as nursery:
        heartbeat = Heartbeat(interval_s=25.0, timeout_s=8.0, expiry_grace_s=25.0)
        nursery.start_soon(heartbeat.run)
        yield heartbeat
        nursery.cancel_scope.cancel()


def until(seconds: float | None) -> Identity:
    return Identity("ada", expires_at=None if seconds is None else START + seconds)


async def test_a_client_that_answers_is_pinged_each_interval(heartbeat: Heartbeat, autojump_clock: MockClock) -> None:
    """Pings come every interval, and their round trip is kept."""
    seat, wire = Seat(until(None)), Wire()
    began = trio.current_time()
    heartbeat.watch(seat, wire)  # type: ignore[arg-type]
    await trio.sleep(110)
    assert [at - began for at in wire.pinged] == pytest.approx([25, 50, 75, 100])
    assert seat.traffic.rtt_s == 0.001
    assert sum(heartbeat.rtt.counts) == 4
    assert not seat.shut_with


async def test_a_client_that_says_nothing_is_closed_with_4001(heartbeat: Heartbeat, autojump_clock: MockClock) -> None:
    """Silence for the timeout after a ping ends the connection, and its entry."""
    seat, wire = Seat(until(None)), Wire(answers=False)
    began = trio.current_time()
    heartbeat.watch(seat, wire)  # type: ignore[arg-type]
    await trio.sleep(100)
    assert [(at - began, code) for at, code in seat.shut_with] == [(pytest.approx(33), CloseCode.NO_PONG)]
    assert len(heartbeat) == 0


async def test_anything_said_is_a_sign_of_life(heartbeat: Heartbeat, autojump_clock: MockClock) -> None:
    """A client that talks but sends no pong stays."""
    seat, wire = Seat(until(None)), Wire(answers=False)
    heartbeat.watch(seat, wire)  # type: ignore[arg-type]
    for _ in range(100):
        await trio.sleep(2)
        wire.heard_at = trio.current_time()
    assert not seat.shut_with


async def test_the_end_of_a_token_is_announced_and_then_enforced(
    heartbeat: Heartbeat, autojump_clock: MockClock
) -> None:
    """The warning comes 60 s before the end, the close after the grace."""
    seat, wire = Seat(until(trio.current_time() + 100)), Wire()
    began = trio.current_time()
    heartbeat.watch(seat, wire)  # type: ignore[arg-type]
    await trio.sleep(200)
    ((warned_at, warning),) = seat.told
    assert isinstance(warning, AuthExpiring)
    assert warned_at - began == pytest.approx(40)
    assert warning.expires_in_s == pytest.approx(60)
    assert [(at - began, code) for at, code in seat.shut_with] == [(pytest.approx(125), CloseCode.TOKEN_EXPIRED)]
    assert len(heartbeat) == 0


async def test_a_token_that_ends_soon_is_announced_at_once(heartbeat: Heartbeat, autojump_clock: MockClock) -> None:
    """A client that comes with less than 60 s left is told right away, once."""
    seat, wire = Seat(until(trio.current_time() + 10)), Wire()
    heartbeat.watch(seat, wire)  # type: ignore[arg-type]
    await trio.testing.wait_all_tasks_blocked()
    assert len(seat.told) == 1
    await trio.sleep(30)
    assert len(seat.told) == 1
    assert not seat.shut_with


async def test_a_renewed_token_moves_the_end(heartbeat: Heartbeat, autojump_clock: MockClock) -> None:
    """A client that brings a new token in time is neither closed nor warned of the old one, but of the new one."""
    began = trio.current_time()
    seat, wire = Seat(until(began + 100)), Wire()
    heartbeat.watch(seat, wire)  # type: ignore[arg-type]
    await trio.sleep(50)
    seat.identity = until(began + 500)
    await trio.sleep(400)
    assert [at - began for at, _ in seat.told] == [pytest.approx(40), pytest.approx(440)]
    assert not seat.shut_with


async def test_ended_connections_are_forgotten_within_an_interval(
    heartbeat: Heartbeat, autojump_clock: MockClock
) -> None:
    """However long their tokens are good for, connections that ended leave nothing behind."""
    for number in range(1000):
        wire = Wire()
        heartbeat.watch(Seat(until(1e6)), wire)  # type: ignore[arg-type]
        wire.closed = number % 10 != 0
    assert len(heartbeat) == 1000
    await trio.sleep(26)
    assert len(heartbeat) == 100


# Over sockets, with short times.

SHORT = {"timing__heartbeat_interval_s": 0.2, "timing__pong_timeout_s": 0.1}
#: For clients that are to stay, on a machine that has other things to do: how long a pong may take, and for how long
#: they have to stay, which is longer than one that gave no sign of life would.
KEPT = {"timing__heartbeat_interval_s": 0.1, "timing__pong_timeout_s": 1.0}
STAY_S = 1.5


async def test_a_silent_client_hears_4001(server: StartServer) -> None:
    """A client that answers no ping gets a Close frame with 4001, and its seat is free afterwards."""
    running = await server(**SHORT)
    started = trio.current_time()
    async with connect(running) as client:
        assert (await client.receive_frame()).opcode == PING
        assert (await client.receive_close()).code == 4001
        assert trio.current_time() - started > 0.25
    with trio.fail_after(PATIENCE_S):
        while running.registry.seats or len(running.wiring.heartbeat):
            await trio.sleep(0.01)
    assert running.wiring.counts.closes[4001] == 1


async def pongs(client: Client, for_s: float) -> None:
    until = trio.current_time() + for_s
    while trio.current_time() < until:
        received = await client.receive_frame()
        assert received.opcode == PING
        await client.send_frame(PONG, received.payload)


async def test_a_client_that_answers_stays_and_its_round_trip_is_known(server: StartServer) -> None:
    """Pongs keep a connection, and operators see how long they took."""
    running = await server(**KEPT)
    async with connect(running) as client:
        await pongs(client, STAY_S)
        stats = (await http(running, "/ws/stats", bearer=operator())).json()
        (connection,) = stats["by_user"]["ada"]["connections"]
        assert 0 <= connection["rtt_ms"] < 1000
        assert (await client.ask("ping"))["type"] == "pong"


async def test_a_client_that_only_talks_stays(server: StartServer) -> None:
    """Commands count as signs of life."""
    running = await server(**KEPT)
    async with connect(running) as client:
        client.answers_pings = False
        deadline = trio.current_time() + STAY_S
        while trio.current_time() < deadline:
            assert (await client.ask("ping"))["type"] == "pong"
            await trio.sleep(0.03)


async def test_an_expiring_token(server: StartServer) -> None:
    """The client is warned, then only a few commands work, then it is closed with 4003."""
    running = await server(auth__expiry_grace_s=1.5)  # in which all that follows is asked
    bearer = token(expires_s=0.8)
    async with connect(running, bearer=bearer) as client:
        warning = (await client.until("auth_expiring"))[-1]
        assert warning["expires_at"] == pytest.approx(
            jwt.decode(bearer, options={"verify_signature": False})["exp"], abs=0.002
        )
        assert 0 <= warning["expires_in_s"] <= 0.8
        while time.time() < warning["expires_at"]:
            await trio.sleep(0.01)
        for command in ("list_threads", "create_thread", "connect"):
            assert (await client.ask(command))["code"] == "AUTH_FAILED"
        assert (await client.ask("user_message", content="hi"))["code"] == "AUTH_FAILED"
        assert (await client.ask("ping"))["type"] == "pong"
        assert (await client.ask("heartbeat"))["type"] == "heartbeat_ack"
        assert (await client.ask("stop_agent", run_id="none"))["code"] == "NOT_FOUND"
        closed = await client.receive_close()
        assert closed.code == 4003
        assert time.time() >= warning["expires_at"] + 1.45


async def test_pings_above_their_budget_are_answered_later_not_lost(server: StartServer) -> None:
    """A client that pings too fast is read no faster; every ping keeps its pong, in order."""
    running = await server(limits__pings_per_minute_per_connection=600)
    async with connect(running) as client:
        started = trio.current_time()
        for number in range(605):
            await client.send_frame(PING, str(number))
        received = [int((await client.receive_frame()).payload) for _ in range(605)]
        assert received == list(range(605))
        assert trio.current_time() - started > 0.4


async def test_ping_commands_above_their_budget_are_answered_later_not_lost(server: StartServer) -> None:
    """The same holds for pings as commands, and they do not use up the budget for messages."""
    running = await server(limits__pings_per_minute_per_connection=600, limits__messages_per_minute=1)
    async with connect(running) as client:
        started = trio.current_time()
        for number in range(605):
            await client.send("ping", id=f"p{number}")
        answers = [(await client.receive())["reply_to"] for _ in range(605)]
        assert answers == [f"p{number}" for number in range(605)]
        assert trio.current_time() - started > 0.4
        assert (await client.ask("user_message", content="hi", agent="echo"))["type"] == "ack"


async def test_the_echo_endpoint_needs_no_heartbeat(server: StartServer) -> None:
    """Conformance suites are not disturbed by pings of ours."""
    running = await server(**SHORT)
    async with raw(running) as client:
        await client.open(upgrade("/ws/echo", bearer=token()), welcome=False)
        with trio.move_on_after(0.5) as scope:
            await client.receive_frame()
        assert scope.cancelled_caught
        await client.say("still here")
        assert (await client.receive_frame()).opcode == TEXT
