"""The older system's addresses over real sockets: they exist and answer, and none has less of a lock than ours."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import netra_ws.wire.paths
from netra_ws.errors import NetraError, Refused
from netra_ws.identity import Identity
from netra_ws.server import Server
from netra_ws.wire.head import Head
from netra_ws.wire.paths import OLDER_PATHS, SOCKET_PATHS, meant_by
from tests.conftest import StartServer
from tests.kit import Answer, connect, exchange, http, operator, raw, token, upgrade

OLDER_SOCKETS = sorted(path for path, ours in OLDER_PATHS.items() if ours in SOCKET_PATHS)
OLDER_PAGES = sorted(OLDER_PATHS.keys() - set(OLDER_SOCKETS) - {"/websocket/ticket"})
#: What the older system answered at these addresses with GET.
PAGES = ["/ws/health", "/ws/config", "/ws/stats", "/ws/beacon", "/health", *OLDER_PAGES]


@pytest.mark.parametrize("path", PAGES)
async def test_every_page_answers(path: str, server: StartServer) -> None:
    """GET, HEAD and OPTIONS of every page are 200, with JSON that nobody may cache and no name in it."""
    running = await server()
    async with connect(running, "somebody-special"):
        got, head, options = [await http(running, path, method=method) for method in ("GET", "HEAD", "OPTIONS")]
    assert [answer.status for answer in (got, head, options)] == [200, 200, 200]
    assert got.headers["cache-control"] == "no-store"
    assert head.body == b""
    assert "special" not in str(got.json())


@pytest.mark.parametrize("path", sorted(OLDER_PATHS))
async def test_an_older_address_is_an_address_of_ours(path: str, server: StartServer) -> None:
    """Each alias leads at once to a page or a socket that is there under its own name; none is a page of its own."""
    running = await server()
    ours = meant_by(path)
    assert ours in running.door.pages or ours in SOCKET_PATHS
    assert meant_by(ours) == ours
    assert path not in running.door.pages


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_changes_nothing(path: str, server: StartServer) -> None:
    """A page that only tells something takes no POST, but for the beacon that a leaving page sends."""
    answer = await http(await server(), path, method="POST", body=b"{}")
    assert answer.status == (200 if meant_by(path) == "/ws/beacon" else 405)


@pytest.mark.parametrize("path", [*sorted(SOCKET_PATHS), *OLDER_SOCKETS])
async def test_every_socket_is_the_same_socket(path: str, server: StartServer) -> None:
    """Under each address, whatever mode is asked for, there is one isolated connection behind the same lock."""
    running = await server()
    for query in ("", "?mode=main", "?mode=legacy"):
        async with connect(running, path=path + query) as client:
            assert client.welcome["user_id"] == "ada"
            assert (await client.ask("ping"))["type"] == "pong"
    assert (await exchange(running, upgrade(path))).status == 401
    assert (await exchange(running, upgrade(path, bearer=token(expires_s=-60)))).status == 401
    evil = [("origin", "https://evil.example")]
    assert (await exchange(running, upgrade(path, bearer=token(), headers=evil))).status == 403
    assert (await http(running, path, bearer=token())).status == 426


@pytest.mark.parametrize(
    "path",
    [
        "/ws/test",
        "/ws/auth/circuit-breaker",
        "/ws/auth/permissiveness",
        "/ws/auth/health",
        "/websocket/tickets/status",
        "/websocket/ticket/abc/validate",
        "/websocket/ticket/abc",
        "/api/v1/websocket/protected",
        "/ws/isolated/",
    ],
)
async def test_what_is_left_out_is_404(path: str, server: StartServer) -> None:
    """Addresses that had no lock, closed it for everybody or carried a ticket do not exist, also with a good token."""
    running = await server()
    for answer in (
        await http(running, path, bearer=operator()),
        await exchange(running, upgrade(path, bearer=token())),
        await exchange(running, upgrade(path)),
    ):
        assert (answer.status, answer.json()["code"]) == (404, "NOT_FOUND")


async def test_health_in_the_older_words(server: StartServer) -> None:
    """The older health check finds its fields, and they tell what happened."""
    running = await server()
    async with connect(running) as client:
        await client.ask("ping")
        await client.ask("strat_agent")
        assert (await exchange(running, upgrade())).status == 401
        for path in ("/ws/health", "/health", "/ws/isolated/health", "/ws/factory/health"):
            health = (await http(running, path)).json()
            assert health["status"] == "healthy"
            assert "websocket" in health["service"]
            assert abs(health["timestamp"] - time.time()) < 5
            metrics = health["metrics"]
            counts = {"active_connections": 1, "total_connections": 1, "messages_processed": 2, "error_rate": 0}
            assert metrics["websocket"] == counts, "a client's mistake is no error of ours"
            assert metrics["authentication"] == {"success_rate": 0.5, "rate_limited_requests": 0}
            assert metrics["monitoring"] == {"monitored_connections": 1, "healthy_connections": 1}
            assert health["config"] == {"max_connections_per_user": 10, "heartbeat_interval": 25}


async def test_config_in_the_older_words(server: StartServer) -> None:
    """The older configuration says the limits that hold, not others."""
    running = await server(limits__max_connections_per_user=3, limits__messages_per_minute=77)
    async with connect(running):
        for path in ("/ws/config", "/ws/isolated/config"):
            config = (await http(running, path)).json()
            websocket = config["websocket"]
            assert websocket["endpoint"] == "/ws"
            assert websocket["version"] == config["version"]
            assert websocket["authentication"] == "jwt_required"
            assert {"header", "subprotocol"} <= set(websocket["supported_auth_methods"])
            assert websocket["features"] == dict.fromkeys(
                ["heartbeat", "message_routing", "json_rpc_support", "rate_limiting", "error_recovery"], True
            )
            assert websocket["limits"] == {
                "max_connections_per_user": 3,
                "max_message_rate_per_minute": 77,
                "max_message_size_bytes": 1_048_576,
                "heartbeat_interval_seconds": 25,
            }
            assert config["server"]["active_connections"] == 1
            assert config["server"]["uptime_seconds"] >= 0
            assert abs(config["server"]["server_time"] - time.time()) < 5


async def test_stats_in_the_older_words(server: StartServer) -> None:
    """The older statistics have their sections; names are told to operators only, as at our own address."""
    running = await server()
    async with connect(running) as client:
        await client.ask("ping")
        await client.ask("strat_agent")
        for path in ("/ws/stats", "/ws/isolated/stats", "/ws/factory/status"):
            stats = (await http(running, path)).json()
            assert abs(stats["timestamp"] - time.time()) < 5
            manager = stats["websocket_manager"]
            assert (manager["active_connections"], manager["total_connections"], manager["unique_users"]) == (1, 1, 1)
            router = {"messages_routed": 2, "unhandled_messages": 1, "handler_errors": 0}
            assert stats["message_router"] == {**router, "message_types": {"ping": 1, "?": 1}}
            assert stats["authentication"]["successful_auths"] == 1
            assert stats["security"] == {"total_violations": 0, "blocked_origin_count": 0}
            assert stats["connection_monitoring"]["monitored_connections"] == 1
            assert stats["system"]["endpoint_info"]["endpoint"] == "/ws"
            assert "by_user" not in stats
        assert "ada" in (await http(running, "/ws/isolated/stats", bearer=operator())).json()["by_user"]
        assert (await http(running, "/ws/isolated/stats", bearer="nonsense")).status == 401


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
@pytest.mark.parametrize("path", ["/ws/beacon", "/websocket/beacon"])
async def test_a_page_that_leaves_says_so(path: str, method: str, server: StartServer) -> None:
    """Below each address of its socket a page may leave its beacon, from any origin and by any method."""
    headers = [("origin", "https://app.example"), ("content-type", "text/plain")]
    body = b"bye" if method == "POST" else b""
    answer = await http(await server(), path, method=method, headers=headers, body=body)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "*")


# Tickets.


async def ask_ticket(server: Server, wish: object = None, bearer: str | None = None) -> Answer:
    body = b"" if wish is None else wish if isinstance(wish, bytes) else json.dumps(wish).encode()
    bearer = bearer or token(permissions=["chat", "read", "operator"])
    return await http(server, "/websocket/ticket", method="POST", bearer=bearer, body=body)


async def come(server: Server, ticket: dict[str, Any]) -> int:
    async with raw(server) as client:
        await client.send_bytes(upgrade(ticket["websocket_url"]))
        return (await client.read_head()).status


async def test_a_ticket_in_the_older_words(server: StartServer) -> None:
    """The older body is understood and answered by its names; what it cannot choose is told as it is."""
    clock = [time.time()]
    running = await server(clock=lambda: clock[0])
    wish = {"ttl_seconds": 300, "single_use": True, "metadata": {"page": "chat"}}
    answer = await ask_ticket(running, wish)
    ticket = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    assert ticket["ticket_id"] == ticket["ticket"]
    assert (ticket["created_at"], ticket["ttl_seconds"], ticket["single_use"]) == (clock[0], 30, True)
    assert ticket["expires_at"] == clock[0] + 30, "half a minute, whatever was asked for"
    assert [await come(running, ticket), await come(running, ticket)] == [101, 401]
    clock[0] += 1
    late = (await ask_ticket(running)).json()
    clock[0] += 31
    assert await come(running, late) == 401


async def test_a_ticket_may_be_worth_less_than_its_token(server: StartServer) -> None:
    """Permissions in the body narrow what the ticket may do, and never widen it."""
    running = await server()
    everything = ["chat", "read", "operator"]
    for has, asked in ((everything, ["read", "websocket", "job:*"]), (["read"], everything), (["read"], None)):
        ticket = (await ask_ticket(running, {"permissions": asked}, token(permissions=has))).json()
        async with raw(running) as client:
            await client.open(upgrade(ticket["websocket_url"]))
            assert (await client.ask("list_threads"))["type"] == "thread_list"
            for needs_more in ("user_message", "kick"):
                answer = await client.ask(needs_more, content="x", user_id="ada")
                assert answer["code"] == "FORBIDDEN"


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        (b"{", "INVALID_JSON"),
        (b"[" * 60_000, "INVALID_JSON"),
        ([], "INVALID_MESSAGE"),
        ({"single_use": False}, "INVALID_MESSAGE"),
        ({"permissions": "read"}, "INVALID_MESSAGE"),
        ({"permissions": [1]}, "INVALID_MESSAGE"),
    ],
    ids=["broken", "deep", "list", "many uses", "text", "number"],
)
async def test_no_ticket_for_a_wish_that_cannot_be_met(wish: object, code: str, server: StartServer) -> None:
    """A ticket of many uses, or of permissions that are none, is refused by name, and nothing is issued."""
    running = await server()
    answer = await ask_ticket(running, wish)
    assert (answer.status, answer.json()["code"]) == (400, code)
    assert (await http(running, "/ws/stats")).json()["tickets_issued"] == 0
    assert (await http(running, "/websocket/ticket")).status == 405
    assert (await http(running, "/websocket/ticket", method="POST", body=b"{")).status == 401, "who asks comes first"


async def test_scripts_ask_for_tickets_at_the_older_address_too(server: StartServer) -> None:
    """What a browser asks first is answered as at our own address: allowed origins may, others may not."""
    running = await server(origins__allowed=["https://app.example"])
    statuses = {}
    for origin in ("https://app.example", "https://evil.example"):
        for path in ("/ws/ticket", "/websocket/ticket"):
            asked = await http(running, path, method="OPTIONS", headers=[("origin", origin)])
            given = await http(running, path, method="POST", headers=[("origin", origin)], bearer=token())
            allowed = given.headers.get("access-control-allow-origin")
            statuses[origin, path] = (asked.status, given.status, allowed)
    assert statuses["https://app.example", "/websocket/ticket"] == (200, 200, "https://app.example")
    assert statuses["https://evil.example", "/websocket/ticket"] == (403, 403, None)
    assert len(set(statuses.values())) == 2, "the same at both addresses"


async def test_a_program_with_a_rule_of_its_own(server: StartServer) -> None:
    """Where no tokens are looked at the older words do not ask for one, and older sockets ask the rule, too."""

    async def rule(head: Head) -> Identity:
        if head.get(b"cookie") != b"session=ada":
            raise Refused(401, "WHO", "Nobody knows you.")
        return Identity("ada")

    running = await server(authenticate=rule)
    assert (await http(running, "/ws/isolated/config")).json()["websocket"]["authentication"] == "required"
    assert (await exchange(running, upgrade("/ws/isolated"))).json()["code"] == "WHO"
    async with raw(running) as client:
        await client.open(upgrade("/ws/isolated", headers=[("cookie", "session=ada")]))
        assert client.welcome["user_id"] == "ada"


# What the older tests looked at instead of the addresses.


async def test_every_page_can_be_called(server: StartServer) -> None:
    """Pages are asynchronous functions of a head and a body, and can be looked at as such."""
    for page in (await server()).door.pages.values():
        assert inspect.iscoroutinefunction(page)
        assert list(inspect.signature(page).parameters) == ["head", "body"]


def test_the_addresses_come_alone() -> None:
    """Each module of them can be the first that is imported, without a circle and without a warning."""
    modules = ["netra_ws.wire.paths", "netra_ws.pages.older", "netra_ws.pages.tickets", "netra_ws.compat"]
    text = "; ".join(f"import {module}" for module in modules)
    subprocess.run([sys.executable, "-W", "error", "-c", text], check=True, timeout=60)


def test_the_addresses_are_few() -> None:
    """The table of addresses is a page of text and no package of its own."""
    text = Path(netra_ws.wire.paths.__file__).read_text()
    assert len(text) < 20_000
    assert "import netra_ws" not in text
    assert len(OLDER_PATHS) < 20


@pytest.mark.parametrize("said", ["text", None, "", {"a": 1}], ids=repr)
def test_an_error_can_always_be_shown(said: object) -> None:
    """An error of ours is an Exception that shows whatever it was made with."""
    assert str(NetraError(said)) == str(said)
    assert issubclass(Refused, NetraError)
    assert issubclass(NetraError, Exception)


@pytest.mark.parametrize("path", ["/nothing", "/ws", "/ws/isolated", "/ws/test"])
async def test_every_refusal_has_the_same_shape(path: str, server: StartServer) -> None:
    """What is refused says why by a code and a text, and keeps saying so."""
    running = await server()
    answers = [(await http(running, path)) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert set(answers[0].json()) == {"code", "error"}
    assert all(answers[0].json().values())
