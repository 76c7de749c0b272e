"""What every answer tells a browser, so that no page of ours can be turned against its reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from netra_ws.settings import Settings
from netra_ws.wire.protection import STRICT_S
from tests.conftest import StartServer
from tests.kit import SECRET, Headers, exchange, http, raw, request, upgrade
from tests.tls import Authority, over_tls

PATHS = [
    "/",
    "/netra-ws.js",
    "/console/console.js",
    "/console/icon.svg",
    "/health",
    "/ws/config",
    "/ws/stats",
    "/ws/bounds",
    "/metrics",
    "/nothing",
    "/ws",
]


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_is_protected(server: StartServer, path: str) -> None:
    """Pages, files, numbers and refusals: nothing is sniffed, framed, referred from, or allowed to load others."""
    answer = await http(await server(server__console=True), path)
    headers = answer.headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    policy = headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} <= set(policy)
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == ("cross-origin" if path == "/netra-ws.js" else "same-origin")
    is_page = headers["content-type"].startswith("text/html")
    assert is_page is (path == "/")
    assert ("cross-origin-opener-policy" in headers) is is_page
    assert ("permissions-policy" in headers) is is_page
    assert not any(", " in headers[name] for name in ("x-frame-options", "referrer-policy", "x-content-type-options"))
    assert "strict-transport-security" not in headers


@pytest.mark.parametrize("said", [b"garbage\r\n\r\n", b"DELETE / HTTP/1.1\r\nHost: x\r\n\r\n", upgrade("/ws")])
async def test_refusals_are_protected_as_well(server: StartServer, said: bytes) -> None:
    """Also what is refused before there is a page."""
    answer = await exchange(await server(), said)
    assert answer.status in (400, 405, 401)
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("host", "sockets"),
    [
        ("app.example:8000", " ws://app.example:8000 wss://app.example:8000"),
        ("[::1]:80", " ws://[::1]:80 wss://[::1]:80"),
        ("a.example; script-src *", ""),
        ("a.example, b.example", ""),
        ("a.example *", ""),
        ("*", ""),
        ("x" * 300, ""),
        ("", ""),
    ],
)
async def test_only_own_sockets(server: StartServer, host: str, sockets: str) -> None:
    """A page may open sockets to its own host, and a client cannot write into the policy."""
    running = await server(server__console=True)
    async with raw(running) as client:
        await client.send_bytes(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        policy = (await client.read_head()).headers["content-security-policy"]
    assert policy.endswith(f"; connect-src 'self'{sockets}")


def production(**more: object) -> Settings:
    given = {"server.port": 0, "store.url": "memory:", "auth.secret": SECRET, "origins.required": False}
    return Settings.make(given | more, environment="production")


STRICT = f"max-age={STRICT_S}"


@pytest.mark.parametrize(
    ("settings", "headers", "strict"),
    [
        ({}, [], None),
        ({}, [("X-Forwarded-Proto", "https")], None),
        ({"server.behind_proxy": True}, [], None),
        ({"server.behind_proxy": True}, [("X-Forwarded-Proto", "http")], None),
        ({"server.behind_proxy": True}, [("X-Forwarded-Proto", "https")], STRICT),
        ({"server.behind_proxy": True, "server.trusted_proxies": ["10.0.0.1"]}, [("X-Forwarded-Proto", "https")], None),
    ],
    ids=["plain", "a stranger's word", "a proxy without a word", "plain to the proxy", "TLS to the proxy", "no proxy"],
)
async def test_production_asks_for_tls_from_then_on(
    server: StartServer, settings: dict[str, object], headers: Headers, strict: str | None
) -> None:
    """Who came by TLS is told to come so only; who did not cannot be told."""
    running = await server(production(**settings))
    for path in ("/health", "/nothing"):
        assert (await http(running, path, headers=headers)).headers.get("strict-transport-security") == strict


@pytest.mark.parametrize("environment", ["production", "testing"])
async def test_over_our_own_tls(server: StartServer, tmp_path: Path, environment: str) -> None:
    """The same over TLS of our own, in production only: a developer's localhost must not become TLS for ever."""
    authority = Authority(tmp_path)
    running = await server(production(**authority.issue()) if environment == "production" else None, **(
        {} if environment == "production" else authority.issue()
    ))  # fmt: skip
    async with over_tls(running, authority.trusting()) as client:
        await client.send_bytes(request("/health"))
        strict = (await client.read_head()).headers.get("strict-transport-security")
    assert strict == (STRICT if environment == "production" else None)
