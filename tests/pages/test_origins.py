from __future__ import annotations

import time
from typing import Any

import pytest

from netra_ws.access.origins import OriginFault
from netra_ws.server import Server
from tests.conftest import StartServer
from tests.kit import Answer, Headers, exchange, http, operator, raw, request, token, upgrade

from .test_metrics import metrics_of, value

APP, EVIL = "https://app.example.org", "https://evil.example"


async def knock(server: Server, *origins: str, path: str = "/ws", bearer: str | None = None) -> tuple[int, str]:
    """Try to open a socket as a page of an origin."""
    headers: Headers = [("origin", origin) for origin in origins]
    async with raw(server) as client:
        await client.send_bytes(upgrade(path, bearer=bearer or token(), headers=headers))
        answer = await client.read_head()
        if answer.status == 101:
            return 101, ""
        return answer.status, Answer(answer.status, answer.headers, await client.read_rest()).json()["code"]


async def unblock(server: Server, body: bytes, bearer: str | None = None) -> Answer:
    return await http(server, "/ws/unblock", method="POST", body=body, bearer=bearer or operator())


async def stats_of(server: Server) -> dict[str, Any]:
    fields: dict[str, Any] = (await http(server, "/ws/stats", bearer=operator())).json()
    return fields


REFUSED, BLOCKED = (403, "ORIGIN_REFUSED"), (403, "ORIGIN_BLOCKED")


async def test_strikes_then_a_block_that_ends(server: StartServer) -> None:
    """A foreign origin is refused so many times, then blocked with Retry-After until the window has passed."""
    clock = [time.time()]
    running = await server(
        origins__allowed=[APP], origins__strikes=3, origins__strike_window_s=120.0, clock=lambda: clock[0]
    )
    assert [await knock(running, EVIL) for _ in range(4)] == [REFUSED, REFUSED, REFUSED, BLOCKED]
    clock[0] += 20
    answer = await exchange(running, upgrade(bearer=token(), headers=[("origin", EVIL)]))
    assert answer.headers["retry-after"] == "100"
    assert set(answer.json()) == {"code", "error"}
    clock[0] += 100
    bearer = token(expires_s=7200)
    assert await knock(running, EVIL, bearer=bearer) == REFUSED


async def test_nobody_locks_a_victims_origin(server: StartServer) -> None:
    """Whatever foreign pages do at an address, also in the victim's name: an allowed page of it gets in."""
    running = await server(
        origins__allowed=[APP],
        origins__strikes=2,
        limits__connects_per_minute_per_address=11,  # so many sockets, and ten times as many connections
        limits__failed_connects_per_minute_per_address=1,
    )
    for number in range(50):
        assert (await knock(running, APP, f"https://{number}.example"))[0] == 403
        assert (await knock(running, f"https://{number}.example"))[0] == 403
    assert await knock(running, "https://new.example") == BLOCKED
    assert await knock(running, APP) == await knock(running, f"{APP}:443") == (101, "")
    assert (await exchange(running, request("/ws/stats", [("authorization", f"Bearer {operator()}")]))).status == 200
    assert (await http(running, "/health")).status == 200


async def test_what_is_remembered_is_bounded(server: StartServer) -> None:
    """However many pairs there are, no more than ``origins.max_tracked`` are remembered; long origins neither."""
    running = await server(origins__allowed=[APP], origins__max_tracked=3, origins__strikes=100)
    for number in range(20):
        assert await knock(running, f"https://{'a' * 8000}{number}.example") == REFUSED
    stats = await stats_of(running)
    assert stats["origins_tracked"] == 3
    _, samples = await metrics_of(running)
    assert value(samples, "bounded_size", what="origin_strikes") == value(
        samples, "bounded_limit", what="origin_strikes"
    )


async def test_an_operator_sees_blocks_and_lifts_them(server: StartServer) -> None:
    """Blocked pairs are listed for operators, and go by origin, by address, or by both."""
    running = await server(origins__allowed=[APP], origins__strikes=1)
    assert "blocked_origins" not in (await http(running, "/ws/stats")).json()
    for body, count in [
        (b'{"origin": "HTTPS://EVIL.example:443"}', 1),
        (b'{"address": "127.0.0.1"}', 1),
        (b'{"origin": "https://evil.example", "address": "127.0.0.1"}', 1),
        (b'{"origin": "https://evil.example", "address": "127.0.0.2"}', 0),
        (b'{"address": "\\ud800"}', 0),
    ]:
        await knock(running, EVIL)
        assert await knock(running, EVIL) == BLOCKED
        (block,) = (await stats_of(running))["blocked_origins"]
        assert (block["origin"], block["address"]) == (EVIL, "127.0.0.1")
        assert 0 < block["until"] - time.time() <= 600
        answer = await unblock(running, body)
        assert (answer.status, answer.json()) == (200, {"unblocked": count})
        assert answer.headers["cache-control"] == "no-store"
        assert (await knock(running, EVIL)) == (REFUSED if count else BLOCKED)
        await unblock(running, b'{"address": "127.0.0.1"}')


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"nonsense",
        b"\xff",
        b'{"origin": ""}',
        b'{"origin": null}',
        b'{"address": 7}',
        b'{"origin": "https://evil.example", "user": "x"}',
        b'{"origin": "' + b"a" * 1025 + b'"}',
        b"[" * 60_000,
    ],
    ids=["empty", "nothing", "a list", "no json", "no text", "blank", "null", "a number", "more", "long", "deep"],
)
async def test_what_names_nothing_is_400(body: bytes, server: StartServer) -> None:
    """A body that cannot be meant changes nothing."""
    answer = await unblock(await server(), body)
    assert answer.status == 400
    assert answer.json()["code"] in ("INVALID_JSON", "INVALID_MESSAGE")


async def test_only_operators_unblock(server: StartServer) -> None:
    """Without the permission, without a token and by GET nothing is unblocked."""
    running = await server(origins__allowed=[APP], origins__strikes=1)
    await knock(running, EVIL)
    body = b'{"address": "127.0.0.1"}'
    assert (await unblock(running, body, token())).json()["code"] == "FORBIDDEN"
    assert (await http(running, "/ws/unblock", method="POST", body=body)).json()["code"] == "TOKEN_MISSING"
    answer = await http(running, "/ws/unblock", bearer=operator())
    assert (answer.status, answer.headers["allow"]) == (405, "OPTIONS, POST")
    assert (await http(running, "/ws/unblock", method="OPTIONS")).headers["allow"] == "OPTIONS, POST"
    assert await knock(running, EVIL) == BLOCKED


async def test_refusals_are_counted_by_reason(server: StartServer) -> None:
    """Statistics and metrics tell why origins were refused."""
    running = await server(origins__allowed=[APP], origins__required=True, origins__strikes=6)
    for origins in ([], [APP, EVIL], ["null"], [f"{APP}/"]):
        assert await knock(running, *origins) == REFUSED
    assert [await knock(running, EVIL) for _ in range(9)] == 6 * [REFUSED] + 3 * [BLOCKED]
    assert await knock(running, APP) == (101, "")
    stats = (await http(running, "/ws/stats")).json()
    want = {"missing": 1, "several": 1, "opaque": 1, "malformed": 1, "not_allowed": 6, "blocked": 3}
    assert set(want) == {*OriginFault, "blocked"}
    assert stats["origins_refused"] == want
    _, samples = await metrics_of(running)
    for reason, count in want.items():
        assert value(samples, "origins_refused_total", reason=reason) == count
    assert value(samples, "origins_blocked") == stats["origins_blocked"] == 1


@pytest.mark.parametrize(
    ("origins", "allowed"),
    [
        ([APP], True),
        ([f"{APP}:443"], True),
        (["HTTPS://APP.Example.ORG"], True),
        ([f"{APP}."], True),
        ([APP, f"{APP}:443"], True),
        (["https://a.example.net"], True),
        (["https://xn--mnchen-3ya.example"], True),
        (["http://[2001:DB8:0::1]:8080"], True),
        ([], True),
        (["http://app.example.org"], False),
        ([f"{APP}:8443"], False),
        (["https://example.net"], False),
        (["https://a.b.example.net"], False),
        (["https://*.example.net"], False),
        (["https://app.example.org.evil.example"], False),
        (["https://user@app.example.org"], False),
        ([f"{EVIL}#@app.example.org"], False),
        (["https://m\xfcnchen.example"], False),
        (["http://[2001:db8::2]:8080"], False),
        (["null"], False),
        ([""], False),
        ([f"{APP}/"], False),
        ([APP, EVIL], False),
        ([APP, "null"], False),
        ([f"{APP}, {APP}"], False),
    ],
)
async def test_origins_over_a_socket(origins: list[str], allowed: bool, server: StartServer) -> None:
    """The rules hold for what really arrives: scheme, host, port, one label, spelling, and several headers."""
    running = await server(
        origins__allowed=[APP, "https://*.example.net", "https://München.example", "http://[2001:db8::1]:8080"]
    )
    assert await knock(running, *origins) == ((101, "") if allowed else REFUSED)
