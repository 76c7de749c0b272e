"""The older handshake of PROTOCOL §1, rule by rule, over real sockets."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from netra_ws.agents.run import Run
from netra_ws.server import Server
from netra_ws.testing import open_test_server
from tests.conftest import StartServer
from tests.faulty import FaultyStore, Health
from tests.kit import CLOSE, Client, connect, http, raw, token, upgrade
from tests.wire.agents import talker


def packed(bare: str) -> str:
    return base64.urlsafe_b64encode(bare.encode()).rstrip(b"=").decode()


@asynccontextmanager
async def older(server: Server, user: str = "ada", path: str = "/ws", **claims: object) -> AsyncIterator[Client]:
    """Come as an older client, and read up to the offer of a thread, which stands in ``answer_to``."""
    async with raw(server) as client:
        await client.open(upgrade(path, protocols=("jwt-auth", f"jwt.local.{token(user, **claims)}")))
        yield client


async def chatter(run: Run) -> str:
    """Say something without an end, giving way each time."""
    for number in range(1_000_000):
        await run.say(f"{number} ")
        await trio.sleep(0.0005)
    return "never"


OFFERS = [
    ("jwt.local.{raw}",),
    ("jwt.{packed}",),
    ("jwt-auth", "jwt.{packed}"),
    ("jwt-auth.{raw}", "jwt-auth"),
    ("jwt-auth.staging.{packed}",),
    ("bearer.{raw}",),
    ("bearer.production.{packed}", "jwt-auth"),
    ("staging-auth.{raw}", "jwt.{raw}"),
]


@pytest.mark.parametrize("offers", OFFERS, ids=lambda offers: "+".join(offers))
@pytest.mark.parametrize("path", ["/ws", "/websocket", "/ws/isolated"])
async def test_an_older_client_is_led_in(offers: Sequence[str], path: str, server: StartServer) -> None:
    """Welcome, offer, acknowledgement, completion: each right behind the other, whichever way the token came."""
    bare = token()
    said = [offer.format(raw=bare, packed=packed(bare)) for offer in offers]
    async with raw(await server()) as client:
        await client.open(upgrade(path, protocols=said))
        assert client.answer is not None
        assert client.answer.headers.get("sec-websocket-protocol") == ("jwt-auth" if "jwt-auth" in offers else None)
        assert client.welcome["type"] == "connection_established"
        offer = await client.receive()
        assert offer["type"] == "handshake_response"
        assert offer["run_id"] is None
        assert abs(offer["timestamp"] - time.time()) < 5
        assert all(offer[name] and isinstance(offer[name], str) for name in ("thread_id", "request_id", "message"))
        await client.send("handshake_acknowledged", thread_id=offer["thread_id"], timestamp=time.time())
        complete = await client.receive()
        assert set(complete) == {"type", "thread_id", "timestamp"}
        assert (complete["type"], complete["thread_id"]) == ("handshake_complete", offer["thread_id"])
        for secret in (bare, packed(bare), bare.rpartition(".")[2]):
            assert secret not in f"{client.answer} {client.welcome} {offer} {complete}"


@pytest.mark.parametrize("offers", [("netra.v1", "jwt.local.{raw}"), ("jwt-auth",), ()], ids=str)
async def test_nobody_else_is_led(offers: Sequence[str], server: StartServer) -> None:
    """Who speaks netra.v1, or sends the token in a header, hears of no handshake, and cannot acknowledge one."""
    async with raw(await server()) as client:
        protocols = [offer.format(raw=token()) for offer in offers]
        await client.open(upgrade(bearer=token(), protocols=protocols))
        answer = await client.ask("handshake_acknowledged", thread_id="t")
        assert (answer["code"], answer["retryable"]) == ("INVALID_MESSAGE", False)
        await client.send("ping")
        assert (await client.receive())["type"] == "pong", "nothing else was said"


async def test_each_handshake_offers_a_fresh_thread_of_that_user(server: StartServer) -> None:
    """The thread is new and the user's own; messages without a thread go there, and nobody else sees it."""
    running = await server()
    async with older(running) as first, older(running) as second, connect(running, "bob") as bob:
        offers = [await first.receive(), await second.receive()]
        ids = {offer["thread_id"] for offer in offers}
        assert len(ids) == 2
        threads = (await first.ask("list_threads"))["threads"]
        assert {thread["thread_id"] for thread in threads} == ids
        ack = await first.ask("user_message", content="hello")
        assert ack["thread_id"] == offers[0]["thread_id"]
        foreign = await bob.ask("get_thread_history", thread_id=ack["thread_id"])
        assert foreign["code"] == "NOT_FOUND"


async def test_completion_is_the_next_frame_while_a_run_streams(server: StartServer) -> None:
    """Whatever the user's other connections have going on, nothing comes between the offer and the completion."""
    running = await server(agents={"chatter": chatter})
    async with connect(running) as tab:
        await tab.ask("create_thread", thread_id="busy")
        await tab.ask("user_message", content="go", agent="chatter", thread_id="busy")
        await tab.until("agent_message")
        for _ in range(5):
            async with older(running) as client:
                offer = await client.receive()
                await tab.until("agent_message")  # more of it was said, and is told to those who listen
                await tab.ask("user_typing", thread_id="busy")
                await client.send("handshake_acknowledged", thread_id=offer["thread_id"])
                assert (await client.receive())["type"] == "handshake_complete"
                await client.until("agent_message")  # and now what goes on


async def test_nothing_is_lost_by_keeping_it_back(server: StartServer) -> None:
    """What happens during the handshake is told behind it, every event once and in order."""
    running = await server()
    async with connect(running) as tab, older(running) as client:
        await client.receive()
        await tab.ask("user_message", content="hello", agent="echo")
        at_tab = await tab.until("agent_completed")
        await client.send("handshake_acknowledged")
        assert (await client.receive())["type"] == "handshake_complete"
        heard = await client.until("agent_completed")
        seqs = [event["seq"] for event in heard if "seq" in event]
        assert seqs == sorted(set(seqs))
        assert heard[-1]["seq"] == at_tab[-1]["seq"]
        assert next(e["type"] for e in heard if e["type"].startswith("agent_")) == "agent_started"


async def test_messages_before_the_acknowledgement_are_served(server: StartServer) -> None:
    """A client that does not wait gets its run and its answers, and may acknowledge later."""
    async with older(await server()) as client:
        offer = await client.receive()
        await client.send("user_message", id="c1", payload={"content": "hello", "thread_id": offer["thread_id"]})
        heard = await client.until("agent_completed")
        assert any(message.get("reply_to") == "c1" and message["type"] == "ack" for message in heard)
        answer = await client.ask("handshake_acknowledged", thread_id=offer["thread_id"])
        assert answer["type"] == "handshake_complete"


@pytest.mark.parametrize("said", [{"type": "session_restore", "payload": {"threadId": "t"}}, {"type": "ping"}])
async def test_a_page_that_knows_no_handshake_sees_everything_at_once(
    said: dict[str, object], server: StartServer
) -> None:
    """Older pages come with the same offers and never acknowledge; they are told events from their first word on."""
    running = await server()
    async with connect(running) as tab, older(running) as client:
        await client.receive()
        await tab.ask("user_message", content="hello", agent="echo")
        await tab.until("agent_completed")
        await client.say(json.dumps(said))
        assert (await client.receive())["type"] == ("pong" if said["type"] == "ping" else "error")
        await client.until("agent_completed")


async def test_a_client_that_never_acknowledges_is_told_all_the_same(autojump_clock: MockClock) -> None:
    """Events are kept back for two seconds at most: older clients that know none miss nothing."""
    async with (
        open_test_server({"talker": talker(3, 20)}) as server,
        server.connect("ada") as session,
        server.raw() as client,
    ):
        await client.open(upgrade(protocols=("jwt-auth", f"jwt.{server.token('ada')}")))
        assert (await client.receive())["type"] == "handshake_response"
        began = trio.current_time()
        run = await session.start("go")
        await run.result()
        await client.until("agent_completed")
        assert trio.current_time() - began == pytest.approx(2.0, abs=0.5)


@pytest.mark.parametrize("wrong", ["another", ""])
async def test_a_wrong_thread_completes_nothing(wrong: str, server: StartServer) -> None:
    """An acknowledgement of another thread is an error that names the field; the right one still counts."""
    async with older(await server()) as client:
        offer = await client.receive()
        answer = await client.ask("handshake_acknowledged", thread_id=wrong)
        assert answer["code"] == "INVALID_MESSAGE"
        assert list(answer["details"]["fields"]) == ["$.thread_id"]
        await client.send("handshake_acknowledged", payload={"thread_id": offer["thread_id"]})
        assert (await client.receive())["type"] == "handshake_complete"


async def test_the_thread_of_somebody_else_completes_nothing(server: StartServer) -> None:
    """What one user was offered is no answer of another's."""
    running = await server()
    async with older(running, "bob") as bob, older(running) as client:
        foreign, own = await bob.receive(), await client.receive()
        answer = await client.ask("handshake_acknowledged", thread_id=foreign["thread_id"])
        assert answer["code"] == "INVALID_MESSAGE"
        assert (await client.ask("user_message", content="x"))["thread_id"] == own["thread_id"]


async def test_acknowledging_twice_is_answered_twice(server: StartServer) -> None:
    """A repeat gets the same answer, also after the client has gone to another thread."""
    async with older(await server()) as client:
        offer = await client.receive()
        for _ in range(2):
            answer = await client.ask("handshake_acknowledged", thread_id=offer["thread_id"])
            assert (answer["type"], answer["thread_id"]) == ("handshake_complete", offer["thread_id"])
            await client.ask("switch_thread", thread_id="other")
        assert (await client.ask("user_message", content="x"))["thread_id"] == "other"


async def test_who_may_only_read_is_led_in_as_well(server: StartServer) -> None:
    """Without the permission to chat the offered thread is a name, and nothing is made."""
    async with older(await server(), permissions=["read"]) as client:
        offer = await client.receive()
        answer = await client.ask("handshake_acknowledged", thread_id=offer["thread_id"])
        assert answer["type"] == "handshake_complete"
        assert (await client.ask("list_threads"))["threads"] == []


async def test_a_user_with_all_their_threads_still_comes_in(server: StartServer) -> None:
    """Each handshake makes a thread; who has no room for one more comes in, and hears why where they speak."""
    running = await server(limits__max_threads_per_user=2)
    for _ in range(2):
        async with older(running) as client:
            await client.receive()
    async with older(running) as client:
        offer = await client.receive()
        answer = await client.ask("handshake_acknowledged", thread_id=offer["thread_id"])
        assert answer["type"] == "handshake_complete"
        assert (await client.ask("user_message", content="x"))["code"] == "QUOTA_EXCEEDED"
        known = (await client.ask("list_threads"))["threads"][0]["thread_id"]
        assert (await client.ask("user_message", content="x", thread_id=known))["type"] == "ack"


async def test_a_resuming_older_client_is_led_in_first(server: StartServer) -> None:
    """What comes of its position stands behind the handshake, not inside it."""
    running = await server()
    async with older(running, path="/ws?resume=gone:5") as client:
        offer = await client.receive()
        assert offer["type"] == "handshake_response"
        await client.send("handshake_acknowledged", thread_id=offer["thread_id"])
        assert [(await client.receive())["type"] for _ in range(2)] == ["handshake_complete", "stream_reset"]


async def test_a_drain_does_not_wait_for_the_handshake(server: StartServer) -> None:
    """A server that restarts says so to a client in the middle of its handshake, and closes it with 1012."""
    running = await server()
    async with older(running) as client:
        await client.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.drain, 0.0)
            assert (await client.receive())["type"] == "draining"
            closed = await client.receive_close()
            assert closed.code == 1012
            await client.send_frame(CLOSE, closed.payload)


async def test_a_store_that_is_away_is_told_by_the_close(server: StartServer) -> None:
    """Where no thread can be made the client is asked to come again, and no seat is left."""
    store = FaultyStore()
    running = await server(store=store)
    async with connect(running) as tab:
        store.turn(Health.AWAY)
        await tab.send("create_thread", id="c1", thread_id="t")
        with trio.fail_after(8):
            while (await http(running, "/health")).json()["status"] == "healthy":
                await trio.sleep(0.01)
            async with raw(running) as client:
                await client.open(upgrade(protocols=("jwt-auth", f"jwt.{token()}")), welcome=False)
                assert (await client.receive_close()).code == 1011
        store.turn(Health.WELL)
