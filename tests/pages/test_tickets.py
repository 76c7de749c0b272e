from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import aiohttp
import pytest
import trio
from trio_websocket import open_websocket_url
from websockets.asyncio.client import connect as connect_websockets
from websockets.exceptions import InvalidStatus

from netra_ws.errors import Refused
from netra_ws.identity import Identity
from netra_ws.server import Server
from netra_ws.settings import Settings
from netra_ws.wire.head import Head
from tests.conftest import StartServer
from tests.faulty import FaultyStore, Health
from tests.kit import Answer, connect, exchange, http, operator, raw, request, token, upgrade

APP = "https://app.example.org"


async def ask(server: Server, bearer: str | None = None, *, origin: str | None = None) -> Answer:
    headers = [] if origin is None else [("origin", origin)]
    return await http(server, "/ws/ticket", method="POST", bearer=bearer or token(), headers=headers)


async def ticket_of(server: Server, bearer: str | None = None) -> str:
    answer = await ask(server, bearer)
    assert answer.status == 200, answer
    ticket: str = answer.json()["ticket"]
    return ticket


async def come(server: Server, ticket: str, path: str = "/ws", **how: Any) -> Answer:
    """Try to open a socket with a ticket, and leave again where that works."""
    async with raw(server) as client:
        separator = "&" if "?" in path else "?"
        await client.send_bytes(upgrade(f"{path}{separator}ticket={ticket}", **how))
        head = await client.read_head()
        return head if head.status == 101 else Answer(head.status, head.headers, await client.read_rest())


def outcome(answer: Answer) -> tuple[int, str]:
    return answer.status, "" if answer.status == 101 else answer.json()["code"]


INVALID = (401, "TICKET_INVALID")


async def test_a_ticket_for_a_token(server: StartServer) -> None:
    """Who has a token gets a ticket for 30 s and one use, which nobody may cache."""
    clock = [time.time()]
    running = await server(clock=lambda: clock[0])
    answer = await ask(running)
    fields = answer.json()
    assert set(fields) == {"ticket", "expires_at", "single_use"}
    assert fields["expires_at"] == clock[0] + 30
    assert fields["single_use"] is True
    assert answer.headers["cache-control"] == "no-store"
    assert (await ticket_of(running)) != fields["ticket"]


@pytest.mark.parametrize("path", ["/ws", "/websocket", "/api/v1/websocket", "/ws/echo"])
async def test_a_ticket_opens_every_socket_once(path: str, server: StartServer) -> None:
    """The ticket's bearer is who asked for it; a second time it is good for nothing."""
    running = await server()
    ticket = await ticket_of(running, token("grace", permissions=["read"]))
    async with raw(running) as client:
        await client.open(upgrade(f"{path}?ticket={ticket}"), welcome=path != "/ws/echo")
        if path != "/ws/echo":
            assert client.welcome["user_id"] == "grace"
            assert (await client.ask("user_message", content="x"))["code"] == "FORBIDDEN"
    assert outcome(await come(running, ticket)) == INVALID


async def test_a_ticket_ends_with_its_time_and_with_its_token(server: StartServer) -> None:
    """After 30 s, or when the token that asked has expired, the answer is the same as for a guess."""
    clock = [time.time()]
    running = await server(clock=lambda: clock[0])
    long, short = await ticket_of(running), await ticket_of(running, token(expires_s=10))
    spare = await ticket_of(running)
    clock[0] += 10.1
    assert outcome(await come(running, short)) == INVALID
    assert outcome(await come(running, long)) == (101, "")
    clock[0] += 20
    late, guess = await come(running, spare), await come(running, "guess")
    assert outcome(late) == outcome(guess) == INVALID
    assert late.body == guess.body


async def test_a_token_that_lives_by_the_leeway_gives_no_ticket(server: StartServer) -> None:
    """A ticket would have ended before it was made."""
    answer = await ask(await server(), token(expires_s=-2))
    assert outcome(answer) == (401, "TOKEN_EXPIRED")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (lambda t: request(f"/ws?ticket={t}"), 426),
        (lambda t: request(f"/ws?ticket={t}", method="POST"), 426),
        (lambda t: upgrade(f"/ws?ticket={t}").replace(b"HTTP/1.1", b"HTTP/1.0"), 426),
        (lambda t: upgrade(f"/ws?ticket={t}", headers=[("origin", "https://evil.example")]), 403),
        (lambda t: upgrade(f"/ws?ticket={t}&resume=nonsense"), 400),
        (lambda t: upgrade(f"/ws?ticket={t}&thread_id=a%20b"), 400),
        (lambda t: upgrade(f"/ws?ticket={t}", headers=[("content-length", "1")]), 400),
        (lambda t: upgrade(f"/nothing?ticket={t}"), 404),
        (lambda t: request(f"/ws/stats?ticket={t}"), 200),
        (lambda t: request(f"/ws/bounds?ticket={t}"), 200),
        (lambda t: request(f"/ws/ticket?ticket={t}", method="POST"), 401),
        (lambda t: request(f"/ws/unblock?ticket={t}", method="POST", body=b'{"address": "::1"}'), 401),
        (lambda t: upgrade(f"/ws?ticket={t}", bearer=token("bob")), 101),
        (lambda t: upgrade(f"/ws?ticket={t}", bearer="nonsense"), 401),
    ],
    ids=[
        *("no upgrade", "a post", "old http", "a foreign origin", "a bad position", "a bad thread", "a body"),
        *("another path", "stats", "bounds", "another ticket", "unblock", "beside a token", "beside a bad token"),
    ],
)
async def test_what_opens_no_socket_uses_nothing_up(data: Any, status: int, server: StartServer) -> None:
    """Whatever ends without a connection by the ticket leaves it as it was."""
    running = await server()
    ticket = await ticket_of(running, operator("root"))
    async with raw(running) as client:
        await client.send_bytes(data(ticket))
        assert (await client.read_head()).status == status
    async with raw(running) as client:
        await client.open(upgrade(f"/ws?ticket={ticket}"))
        assert client.welcome["user_id"] == "root"


async def test_a_full_server_uses_nothing_up(server: StartServer) -> None:
    """A ticket of a client that found no seat, of its own or at all, is good when there is one."""
    running = await server(limits__max_connections=2, limits__max_connections_per_user=1)
    ada, bob = await ticket_of(running, token("ada")), await ticket_of(running, token("bob"))
    async with connect(running, "ada") as first:
        assert outcome(await come(running, ada)) == (429, "TOO_MANY_CONNECTIONS")
        async with connect(running, "eve"):
            assert outcome(await come(running, bob)) == (503, "OVERLOADED")
        await first.finish()
    with trio.fail_after(5):
        while running.registry.seats:
            await trio.sleep(0.01)
    assert outcome(await come(running, ada)) == outcome(await come(running, bob)) == (101, "")


async def test_a_store_that_is_away_uses_nothing_up(server: StartServer) -> None:
    """The client comes back with the same ticket when the store answers."""
    store = FaultyStore()
    running = await server(store=store)
    ticket = await ticket_of(running)
    store.turn(Health.AWAY)
    assert outcome(await come(running, ticket)) == (503, "UNAVAILABLE")
    store.turn(Health.WELL)
    assert outcome(await come(running, ticket)) == (101, "")


async def test_a_drain_and_a_budget_use_nothing_up(server: StartServer) -> None:
    """Neither a server about to stop nor the budget of an address takes a ticket."""
    running = await server(limits__connects_per_minute_per_address=2)
    ticket = await ticket_of(running)
    await running.drain(0.0)
    assert outcome(await come(running, ticket)) == (503, "DRAINING")
    assert outcome(await come(running, ticket)) == (429, "RATE_LIMITED")
    stats = (await http(running, "/ws/stats")).json()
    assert stats["tickets"] == 1


async def test_of_two_at_the_same_time_one_gets_in(server: StartServer) -> None:
    """While one client is being seated with a ticket nobody else is; if it leaves unseated, the ticket is free."""
    store = FaultyStore()
    running = await server(store=store, timing__handshake_s=1.0)
    ticket = await ticket_of(running)
    store.turn(Health.HANGING)
    async with raw(running) as first:
        await first.send_bytes(upgrade(f"/ws?ticket={ticket}"))
        crowd = running.door.crowd
        with trio.fail_after(5):
            while crowd.under_way == 0 or crowd.silent:
                await trio.sleep(0.01)
        assert outcome(await come(running, ticket)) == INVALID
        assert await first.read_rest() == b"", "cut by timing.handshake_s"
    store.turn(Health.WELL)
    results: list[tuple[int, str]] = []

    async def try_it() -> None:
        results.append(outcome(await come(running, ticket)))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(try_it)
    assert sorted(results) == [(101, ""), *7 * [INVALID]]


async def test_bad_tickets_are_failed_attempts(server: StartServer) -> None:
    """Guessing tickets locks an address out, at the socket and at every page alike, and is counted."""
    for path in ("/ws", "/ws/stats", "/ws/bounds"):
        running = await server(limits__failed_connects_per_minute_per_address=2)
        for number in range(2):
            head = upgrade if path == "/ws" else request
            answer = await exchange(running, head(f"{path}?ticket=guess{number}"))
            assert outcome(answer) == INVALID
            assert answer.headers["www-authenticate"].startswith("Bearer")
        assert outcome(await come(running, "x")) == (429, "RATE_LIMITED")
        assert outcome(await ask(running)) == (429, "RATE_LIMITED")
        stats = (await http(running, "/ws/stats")).json()
        assert stats["auth"]["ticket_invalid"] == 2
        addresses = {"requests": 0, "connects": 0, "failed_connects": 2}
        assert stats["rate_limited"] == {**addresses, "tickets": 0, "messages": 0, "other": 0}


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ([], 401, "TOKEN_MISSING"),
        ([("authorization", "Bearer nonsense")], 401, "TOKEN_INVALID"),
        ([("authorization", f"Bearer {token(expires_s=-60)}")], 401, "TOKEN_EXPIRED"),
        ([("authorization", f"Bearer {token()}"), ("origin", "https://evil.example")], 403, "ORIGIN_REFUSED"),
    ],
    ids=["missing", "invalid", "expired", "foreign"],
)
async def test_no_ticket_without_a_good_token(
    headers: list[tuple[str, str]], status: int, code: str, server: StartServer
) -> None:
    """The page asks what a socket asks, and counts it in the same way."""
    running = await server(limits__failed_connects_per_minute_per_address=1)
    answer = await http(running, "/ws/ticket", method="POST", headers=headers)
    assert outcome(answer) == (status, code)
    assert (await ask(running)).status == (429 if status == 401 else 200)


async def test_get_is_no_way_to_ask(server: StartServer) -> None:
    """A ticket is asked for by POST only."""
    answer = await http(await server(), "/ws/ticket", bearer=token())
    assert (answer.status, answer.headers["allow"]) == (405, "OPTIONS, POST")


async def preflight(server: Server, origin: str) -> Answer:
    wanted = [("access-control-request-method", "POST"), ("access-control-request-headers", "authorization")]
    return await http(server, "/ws/ticket", method="OPTIONS", headers=[("origin", origin), *wanted])


async def test_a_page_of_an_allowed_origin_may_ask(server: StartServer) -> None:
    """The preflight allows method and header, and the answer, good or bad, is for that origin to read."""
    running = await server(origins__allowed=[APP])
    before = await preflight(running, APP)
    assert (before.status, before.body) == (200, b"")
    assert before.headers["access-control-allow-origin"] == APP
    assert before.headers["access-control-allow-methods"] == "POST"
    assert "access-control-allow-credentials" not in before.headers
    assert "authorization" in before.headers["access-control-allow-headers"].lower()
    assert before.headers["vary"] == "Origin"
    for bearer, status in ((token(), 200), ("nonsense", 401)):
        answer = await ask(running, bearer, origin=APP)
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == APP
        assert answer.headers["vary"] == "Origin"
        assert answer.headers["cache-control"] == "no-store"


async def test_a_page_of_another_origin_may_not(server: StartServer) -> None:
    """Neither the preflight nor the answer is for a foreign origin, and both are strikes."""
    running = await server(origins__allowed=[APP], origins__strikes=2)
    for answer in (await preflight(running, "https://evil.example"), await ask(running, origin="https://evil.example")):
        assert outcome(answer) == (403, "ORIGIN_REFUSED")
        assert not any(name.startswith("access-control") for name in answer.headers)
    blocked = await preflight(running, "https://evil.example")
    assert outcome(blocked) == (403, "ORIGIN_BLOCKED")
    assert not any(name.startswith("access-control") for name in blocked.headers)
    assert (await ask(running, origin=APP)).status == 200


async def test_a_user_has_sixteen_tickets_at_most(server: StartServer) -> None:
    """Of more than sixteen the oldest goes."""
    running = await server()
    tickets = [await ticket_of(running) for _ in range(17)]
    assert outcome(await come(running, tickets[0])) == INVALID
    assert outcome(await come(running, tickets[1])) == (101, "")


async def test_tickets_never_reach_a_log(server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever becomes of a ticket, no line of the log has it, and no text of the head."""
    caplog.set_level(logging.DEBUG)
    store = FaultyStore()
    running = await server(store=store)
    ticket = await ticket_of(running)
    seen: list[Head] = []

    async def failing(head: Head, body: bytes) -> Any:
        seen.append(head)
        raise RuntimeError("a bug")

    running.door.pages["/failing"] = failing  # type: ignore[index]
    assert (await http(running, f"/failing?ticket={ticket}", bearer=token())).status == 500
    store.turn(Health.AWAY)
    await come(running, ticket)
    store.turn(Health.WELL)
    await come(running, ticket)
    await come(running, ticket)
    assert caplog.records
    assert ticket not in caplog.text
    assert ticket not in repr(seen)


async def test_a_rule_of_ones_own_gives_tickets_as_well(server: StartServer) -> None:
    """Who a program knows by a cookie gets a ticket by it, outside development without any secret."""

    refusal = Refused(401, "NO_SESSION", "Sign in first.")

    async def by_cookie(head: Head) -> Identity:
        if head.get(b"cookie") != b"session=good":
            raise refusal
        return Identity("from-cookie", {"chat"})

    production = Settings.make(
        {"server.port": 0, "store.url": "memory:", "origins.allowed": [APP]}, environment="production"
    )
    running = await server(production, authenticate=by_cookie)
    good = [("cookie", "session=good"), ("origin", APP)]
    answer = await http(running, "/ws/ticket", method="POST", headers=good)
    assert answer.status == 200
    for each in (answer, await preflight(running, APP)):  # or no script of another site could send its cookie
        assert each.headers["access-control-allow-credentials"] == "true"
        assert each.headers["access-control-allow-origin"] == APP
    async with raw(running) as client:
        await client.open(upgrade(f"/ws?ticket={answer.json()['ticket']}", headers=[("origin", APP)]))
        assert client.welcome["user_id"] == "from-cookie"
    assert outcome(await come(running, answer.json()["ticket"])) == INVALID
    assert outcome(await http(running, "/ws/ticket", method="POST")) == (401, "NO_SESSION")
    assert outcome(await ask(running, origin=APP)) == (401, "NO_SESSION")
    assert refusal.headers == (), "its object is left alone"
    config = (await http(running, "/ws/config")).json()
    assert config["auth"] == {"methods": ["custom", "ticket"], "carriers": ["ticket"]}


async def test_clients_of_others_use_tickets(server: StartServer) -> None:
    """aiohttp, trio-websocket and websockets ask and come as any program would."""
    running = await server()
    asked = f"http://127.0.0.1:{running.port}/ws/ticket"

    async def in_asyncio() -> tuple[str, int, int]:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token('grace')}"}) as session:
            tickets = [(await (await session.post(asked)).json())["ticket"] for _ in range(3)]
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{asked.removesuffix('/ticket')}?ticket={tickets[0]}") as socket:
                assert (await socket.receive_json())["user_id"] == "grace"
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await session.ws_connect(f"{asked.removesuffix('/ticket')}?ticket={tickets[0]}")
        with pytest.raises(InvalidStatus) as rejected:
            await connect_websockets(f"ws://127.0.0.1:{running.port}/ws?ticket={tickets[0]}")
        return tickets[1], caught.value.status, rejected.value.response.status_code

    ticket, *statuses = await trio.to_thread.run_sync(asyncio.run, in_asyncio())
    assert statuses == [401, 401]
    url = f"ws://127.0.0.1:{running.port}/ws?ticket={ticket}"
    async with open_websocket_url(url) as socket:
        assert '"grace"' in await socket.get_message()
    assert outcome(await come(running, ticket)) == INVALID


async def test_a_ticket_of_a_user_who_was_signed_out_is_refused(server: StartServer) -> None:
    """A kick reaches tickets as well, and a ticket is no way to kick."""
    running = await server()
    ticket = await ticket_of(running)
    root = await ticket_of(running, operator())
    body = b'{"user_id": "ada"}'
    by_ticket = await http(running, f"/ws/kick?ticket={root}", method="POST", body=body)
    assert outcome(by_ticket) == (401, "TOKEN_MISSING")
    assert (await http(running, "/ws/kick", method="POST", bearer=operator(), body=body)).status == 200
    assert outcome(await come(running, ticket)) == (401, "TOKEN_REVOKED")
    assert outcome(await come(running, root)) == (101, "")
