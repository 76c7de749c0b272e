"""Tests of ``netra_ws.compat.cors``, ``headers`` and ``middleware``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.access.strikes import EVERY_ORIGIN
from netra_ws.compat.cors import (
    MAX_ORIGIN_LENGTH,
    WebSocketCORSHandler,
    get_websocket_cors_handler,
    validate_websocket_origin,
)
from netra_ws.compat.headers import extract_origin, header_pairs
from netra_ws.compat.middleware import WebSocketCORSMiddleware
from netra_ws.errors import InvalidArgument, Refused
from netra_ws.identity import Identity
from netra_ws.wire.head import Head

from ..conftest import StartServer
from ..kit import connect, exchange, upgrade

GOOD = "https://app.example.com"
EVIL = "https://evil.example"


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def production(*allowed: str, clock: Clock | None = None) -> WebSocketCORSHandler:
    return WebSocketCORSHandler("production", allowed or (GOOD,), clock=clock or Clock())


def reasons(handler: WebSocketCORSHandler) -> dict[str, int]:
    found: dict[str, int] = handler.get_security_stats()["violations_by_reason"]
    return found


# The handler.


@pytest.mark.parametrize("environment", ["development", "testing"])
def test_development_asks_for_little(environment: str) -> None:
    """In development and testing nothing is suspicious, and neither https nor an Origin is needed."""
    config = WebSocketCORSHandler(environment).get_security_stats()["security_config"]
    assert not config["block_suspicious_patterns"]
    assert not config["require_https"]
    assert not config["require_origin"]


def test_production_asks_for_everything() -> None:
    """In production https and an Origin are needed, suspicious origins are refused, five violations block."""
    stats = production().get_security_stats()
    assert stats["environment"] == "production"
    assert stats["security_config"] == {
        "max_origin_length": 253,
        "require_https": True,
        "require_origin": True,
        "block_suspicious_patterns": True,
        "violations_before_block": 5,
        "block_s": 600.0,
        "max_tracked": 1000,
    }


@pytest.mark.parametrize("origin", [GOOD, f"{GOOD}/", "HTTPS://App.Example.com", f"{GOOD}:443", f" {GOOD} "])
@pytest.mark.parametrize("listed", [GOOD, f"{GOOD}/"])
def test_what_is_listed_passes_in_any_spelling(origin: str, listed: str) -> None:
    """A listed origin passes however it is written, with a slash behind it too."""
    assert production(listed).is_origin_allowed(origin)


@pytest.mark.parametrize(
    "origin",
    [
        EVIL,
        "https://app.example.com.evil.example",
        "https://evilapp.example.com",
        "https://app.example.com:8443",
        f"{GOOD}//",
        f"{GOOD}/path",
        f"{GOOD}?x",
        "https://user@app.example.com",
        "null",
        "",
        "https://äpp.example.com",
        "\ud800",
        f"{GOOD}, {GOOD}",
    ],
)
def test_what_is_not_listed_does_not_pass(origin: str) -> None:
    """Another origin is another one, whatever it resembles."""
    handler = production()
    assert not handler.is_origin_allowed(origin)
    assert handler.get_security_stats()["total_violations"] == 1


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://app.netra.ai", True),
        ("https://staging.netra.ai", True),
        ("https://app.evil.com", False),
        ("https://netra.ai.evil.com", False),
        ("https://netra.ai", False),
        ("https://a.b.netra.ai", False),
        ("https://evilXnetra.ai", False),
        ("https://evil.com/.netra.ai", False),
        ("https://a@evil.com?.netra.ai", False),
        ("https://*.netra.ai", False),
        ("https://.netra.ai", False),
        ("http://app.netra.ai", False),
    ],
)
def test_the_wildcard_is_exactly_one_label(origin: str, allowed: bool) -> None:
    """A star stands for one label of a name, and for nothing else in an origin."""
    assert production("https://*.netra.ai").is_origin_allowed(origin) is allowed


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "http://localhost:49152",
        "http://127.0.0.1:8000",
        "http://0.0.0.0:3000",
        "http://[::1]:8000",
        "http://172.17.0.1:3000",
        "http://192.168.1.5",
        "http://frontend:3000",
        "http://netra-backend",
        "https://listed.example",
    ],
)
def test_development_lets_local_pages_in(origin: str) -> None:
    """In development pages of this machine, of its network and of containers pass beside those that are listed."""
    handler = WebSocketCORSHandler("development", ["https://listed.example"])
    assert handler.is_origin_allowed(origin)
    assert not production().is_origin_allowed(origin)


@pytest.mark.parametrize("origin", [EVIL, "https://8.8.8.8", "null", "chrome-extension://abc", "file://x"])
def test_development_is_no_open_door(origin: str) -> None:
    """Not even in development may a page from elsewhere connect: it would act for whoever looks at it."""
    assert not WebSocketCORSHandler("development").is_origin_allowed(origin)


@pytest.mark.parametrize(
    ("origin", "reason"),
    [
        ("http://app.example.com", "https_required"),
        (EVIL, "not_allowed"),
        ("https://192.0.2.7", "suspicious"),
        ("https://abc.ngrok.io", "suspicious"),
        ("chrome-extension://abc", "https_required"),
        ("https://localhost:9999", "suspicious"),
        ("null", "opaque"),
        (None, "missing"),
        ("nonsense", "malformed"),
        ("https://" + "a" * 250, "too_long"),
    ],
)
def test_production_refuses_even_what_is_listed(origin: str | None, reason: str) -> None:
    """Plain http, addresses, tunnels and odd ports are refused in production, listed or not; statistics say why."""
    listed = ["http://app.example.com", "https://192.0.2.7", "https://abc.ngrok.io", "https://localhost:9999", GOOD]
    handler = production(*listed)
    assert not handler.is_origin_allowed(origin)
    assert reasons(handler) == {reason: 1}
    assert handler.is_origin_allowed(GOOD)


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:9999",
        "http://203.0.113.5",
        "https://abc.ngrok.io",
        "https://abc.localtunnel.me",
        "https://abc.herokuapp.com",
        "chrome-extension://abcdef",
        "moz-extension://abcdef",
        "https://[2001:db8::1]",
        "https://abc.ngrok-free.app",
    ],
)
def test_suspicious_patterns(origin: str) -> None:
    """What no service is served from is suspicious in staging, though listed; this machine is spared there."""
    handler = WebSocketCORSHandler("staging", [origin])
    if "localhost" in origin:
        assert handler.is_origin_allowed(origin)
        assert not production(origin.replace("http:", "https:")).is_origin_allowed(origin.replace("http:", "https:"))
    else:
        assert not handler.is_origin_allowed(origin)
        assert reasons(handler) == {"suspicious": 1}
    assert WebSocketCORSHandler("development", [origin]).is_origin_allowed(origin)


@pytest.mark.parametrize("origin", ["https://ngrok.io.example.com", "https://myherokuapp.com", "https://localhost"])
def test_what_only_resembles_a_suspicious_origin(origin: str) -> None:
    """A name that merely has the letters of a pattern is not suspicious."""
    assert production(origin).is_origin_allowed(origin)


@pytest.mark.parametrize("name", ["frontend", "backend", "auth", "netra-frontend"])
def test_names_of_containers_are_not_suspicious(name: str) -> None:
    """In development pages that are served under a container's name pass."""
    assert WebSocketCORSHandler("development").is_origin_allowed(f"http://{name}:3000")


def test_the_fifth_violation_blocks() -> None:
    """Four violations do not block an origin, the fifth does, and what is blocked goes on being refused."""
    handler = production()
    for _ in range(4):
        assert not handler.is_origin_allowed(EVIL, "192.0.2.1")
    assert handler.get_security_stats()["blocked_origins"] == []
    handler.is_origin_allowed(EVIL, "192.0.2.1")
    stats = handler.get_security_stats()
    assert (stats["blocked_origins"], stats["blocked_origin_count"]) == ([EVIL], 1)
    assert not handler.is_origin_allowed(EVIL, "192.0.2.1")
    assert reasons(handler) == {"not_allowed": 5, "blocked": 1}


def test_a_block_ends() -> None:
    """After ten minutes a blocked origin is looked at anew, and nothing is remembered of it."""
    clock = Clock()
    handler = production(clock=clock)
    for _ in range(9):
        handler.is_origin_allowed(EVIL)
    clock.now += 599
    assert handler.get_security_stats()["blocked_origin_count"] == 1
    clock.now += 2
    stats = handler.get_security_stats()
    assert (stats["blocked_origin_count"], stats["violation_counts"], stats["tracked_origin_count"]) == (0, {}, 0)
    assert stats["total_violations"] == 9


def test_nobody_can_have_somebody_elses_page_blocked() -> None:
    """Whoever sends an allowed origin from elsewhere, or is blocked at an address, harms no allowed page there."""
    handler = production()
    for number in range(20):
        handler.is_origin_allowed(f"https://{number}.example", "192.0.2.1")
    assert handler.get_security_stats()["blocked_origins"] == [EVERY_ORIGIN]
    assert handler.is_origin_allowed(GOOD, "192.0.2.1")
    assert not handler.is_origin_allowed(EVIL, "192.0.2.2")
    assert handler.get_security_stats()["blocked_origins"] == [EVERY_ORIGIN]


def test_unblocking() -> None:
    """Unblocking says whether there was a block, and forgets the count in either case."""
    handler = production()
    assert handler.unblock_origin(EVIL) is False
    for _ in range(3):
        handler.is_origin_allowed(EVIL)
    assert handler.unblock_origin(EVIL) is False
    assert handler.get_security_stats()["violation_counts"] == {}
    for _ in range(5):
        handler.is_origin_allowed(EVIL)
    assert handler.unblock_origin(f"{EVIL.upper()}/") is True
    assert handler.unblock_origin(EVIL) is False
    assert handler.get_security_stats()["violation_counts"] == {}


def test_unblocking_at_an_address() -> None:
    """With an address its block as a whole goes as well; at other addresses blocks stay."""
    handler = production()
    for address in ("192.0.2.1", "192.0.2.2"):
        for number in range(5):
            handler.is_origin_allowed(f"https://{number}.example", address)
    assert handler.unblock_origin("https://0.example") is False
    assert handler.unblock_origin("https://0.example", "192.0.2.1") is True
    assert handler.get_security_stats()["blocked_origins"] == [EVERY_ORIGIN]
    assert [pair.address for pair in handler.strikes.tracked(handler.clock())] == ["192.0.2.2"]


def test_statistics_add_up() -> None:
    """Two violations of one origin and one of another are three, counted by origin, whatever the address."""
    handler = production()
    handler.is_origin_allowed(EVIL, "192.0.2.1")
    handler.is_origin_allowed(EVIL, "192.0.2.2")
    handler.is_origin_allowed("https://other.example", "192.0.2.1")
    stats = handler.get_security_stats()
    assert stats["violation_counts"] == {EVIL: 2, "https://other.example": 1}
    assert (stats["total_violations"], stats["blocked_origin_count"], stats["tracked_origin_count"]) == (3, 0, 3)
    assert handler.is_origin_allowed(GOOD)
    assert handler.get_security_stats()["total_violations"] == 3


def test_headers_of_an_answer() -> None:
    """An allowed page is named in the headers, and production adds those that protect it."""
    headers = production().get_cors_headers(f"{GOOD}/")
    assert headers["Access-Control-Allow-Origin"] == GOOD
    assert headers["Access-Control-Allow-Credentials"] == "true"
    assert headers["Access-Control-Allow-Methods"] == "GET"
    assert "Authorization" in headers["Access-Control-Allow-Headers"]
    assert "X-Request-ID" in headers["Access-Control-Expose-Headers"]
    assert headers["Vary"] == "Origin"
    assert headers["Strict-Transport-Security"] == "max-age=31536000; includeSubDomains"
    assert (headers["X-Content-Type-Options"], headers["X-Frame-Options"]) == ("nosniff", "DENY")
    assert headers["Referrer-Policy"] == "strict-origin-when-cross-origin"
    local = WebSocketCORSHandler("development").get_cors_headers("http://localhost:3000")
    assert "Strict-Transport-Security" not in local


@pytest.mark.parametrize("origin", [EVIL, None, "null", f"{GOOD}\r\nSet-Cookie: x"])
def test_headers_name_no_origin_that_is_not_allowed(origin: str | None) -> None:
    """Who is not allowed is never named in an answer; asking for headers counts nothing."""
    handler = production()
    headers = handler.get_cors_headers(origin)
    assert not any(name.startswith("Access-Control") for name in headers)
    assert headers["Vary"] == "Origin"
    assert handler.get_security_stats()["total_violations"] == 0


def test_a_missing_origin() -> None:
    """A client without an Origin passes in development and testing, and nowhere else."""
    assert WebSocketCORSHandler("development").is_origin_allowed(None)
    assert WebSocketCORSHandler("testing").is_origin_allowed(None)
    assert not WebSocketCORSHandler("staging").is_origin_allowed(None)
    assert not production().is_origin_allowed(None)


def test_a_page_that_hides_its_origin() -> None:
    """A page of another site that has its visitor's browser ask without an Origin is refused everywhere."""
    handler = WebSocketCORSHandler("development")
    assert validate_websocket_origin({}, handler)
    assert not validate_websocket_origin({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image"}, handler)


def test_a_servers_own_pages_in_development() -> None:
    """In development a page of the host that was asked passes, under any name; in production it must be listed."""
    assert WebSocketCORSHandler("development").is_origin_allowed("https://dev.example", host="dev.example")
    assert not WebSocketCORSHandler("development").is_origin_allowed("https://dev.example", host="other.example")
    assert not production().is_origin_allowed("https://dev.example", host="dev.example")


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        (("prod",), "environment"),
        ((None,), "environment"),
        (([],), "environment"),
        (("production", "https://a.example"), "allowed_origins"),
        (("production", 5), "allowed_origins"),
        (("production", None), "allowed_origins"),
        (("production", [5]), "allowed_origins"),
        (("production", ["*"]), "allowed_origins"),
        (("production", ["https://*.*.example"]), "allowed_origins"),
        (("production", ["https://a.example/path"]), "allowed_origins"),
    ],
)
def test_rules_that_cannot_be_read(arguments: tuple[Any, ...], argument: str) -> None:
    """An unknown environment and an origin that is none are errors that name the argument."""
    for make in (WebSocketCORSHandler, get_websocket_cors_handler):
        with pytest.raises(InvalidArgument) as caught:
            make(*arguments)
        assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda handler: handler.is_origin_allowed(5), "origin"),
        (lambda handler: handler.is_origin_allowed(b"https://a"), "origin"),
        (lambda handler: handler.is_origin_allowed(EVIL, None), "address"),
        (lambda handler: handler.is_origin_allowed(EVIL, "a", host=5), "host"),
        (lambda handler: handler.unblock_origin(None), "origin"),
        (lambda handler: handler.unblock_origin(EVIL, 5), "address"),
        (lambda handler: handler.get_cors_headers(5), "origin"),
        (lambda handler: handler.check_headers(5), "headers"),
        (lambda handler: handler.check_headers("origin"), "headers"),
        (lambda handler: handler.check_headers([("origin",)]), "headers"),
        (lambda handler: handler.check_headers({"origin": 5}), "headers"),
        (lambda handler: handler.check_headers({"origin": EVIL}, None), "address"),
        (lambda handler: validate_websocket_origin(None, handler), "headers"),
        (lambda handler: validate_websocket_origin({"origin": EVIL}, "production"), "handler"),
    ],
)
def test_bad_arguments_count_nothing(call: Callable[[WebSocketCORSHandler], object], argument: str) -> None:
    """What is no text or no headers is named by the error, and leaves no trace."""
    handler = production()
    with pytest.raises(InvalidArgument) as caught:
        call(handler)
    assert caught.value.argument == argument
    assert handler.get_security_stats()["total_violations"] == 0


def test_the_rules_of_a_handler_are_fixed() -> None:
    """Environment and list of a handler cannot be changed under those who rely on it."""
    handler = production()
    with pytest.raises(attrs.exceptions.FrozenAttributeError):
        handler.environment = "development"
    with pytest.raises(attrs.exceptions.FrozenAttributeError):
        handler.allowed_origins = (EVIL,)


@given(st.text(st.characters()) | st.none(), st.text(st.characters()), st.text(st.characters()) | st.none())
def test_any_text(origin: str | None, address: str, host: str | None) -> None:
    """Whatever text is asked about, the answer is yes or no."""
    assert production().is_origin_allowed(origin, address, host=host) is False
    assert WebSocketCORSHandler("development").is_origin_allowed(origin, address, host=host) in (True, False)


# What many ask for.


def test_thousands_of_validations() -> None:
    """Thousands of answers are right, one by one, and what is allowed leaves no trace."""
    handler = production(GOOD, "https://*.netra.ai")
    allowed = sum(handler.is_origin_allowed(f"https://{number}.netra.ai", "192.0.2.1") for number in range(2500))
    allowed += sum(handler.is_origin_allowed(GOOD, f"192.0.2.{number % 250}") for number in range(2500))
    assert allowed == 5000
    assert handler.get_security_stats()["tracked_origin_count"] == 0


def test_statistics_can_be_asked_for_often() -> None:
    """A hundred looks at full statistics give the same, and cost what they look at, not one more entry."""
    handler = production()
    for number in range(1000):
        handler.is_origin_allowed(EVIL, f"10.0.{number // 250}.{number % 250}")
    first = handler.get_security_stats()
    assert first["violation_counts"] == {EVIL: 1000}
    assert all(handler.get_security_stats() == first for _ in range(100))


def test_a_thousand_bad_origins_of_one_address() -> None:
    """A thousand invented origins are not tracked one by one: their address is blocked as a whole."""
    handler = production()
    assert not any(handler.is_origin_allowed(f"https://evil{number}.example", "192.0.2.1") for number in range(1000))
    stats = handler.get_security_stats()
    assert stats["tracked_origin_count"] <= 1000
    assert stats["blocked_origin_count"] > 0
    assert stats["total_violations"] == 1000


def test_what_is_remembered_is_bounded() -> None:
    """However many origins and addresses are refused, at most a thousand pairs are remembered."""
    handler = production()
    for number in range(5000):
        handler.is_origin_allowed(f"https://evil{number}.example" + "x" * 300, f"10.{number % 7}.0.{number % 250}")
        handler.is_origin_allowed(f"https://evil{number}.example", f"10.1.{number // 250}.{number % 250}")
    assert handler.get_security_stats()["tracked_origin_count"] == 1000
    assert all(len(origin) < 130 for origin in handler.get_security_stats()["violation_counts"])


# Headers.


@pytest.mark.parametrize(
    ("headers", "origin"),
    [
        ({"origin": GOOD}, GOOD),
        ({"Origin": GOOD}, GOOD),
        ({"ORIGIN": GOOD}, GOOD),
        ({b"Origin": GOOD.encode()}, GOOD),
        ([(b"host", b"x"), (b"oRiGiN", f" {GOOD} ".encode())], GOOD),
        ([("origin", GOOD), ("origin", GOOD)], GOOD),
        ([("origin", GOOD), ("Origin", GOOD.upper())], GOOD),
        ([("origin", GOOD), ("origin", EVIL)], None),
        ({"origin": [GOOD, EVIL]}, None),
        ({"origin": [GOOD]}, GOOD),
        ([("origin", GOOD), ("origin", "null")], None),
        ([("x-origin", GOOD)], None),
        ([("host", "x")], None),
        ({}, None),
        ([], None),
        ({"origin": ""}, ""),
    ],
)
def test_the_origin_in_headers(headers: Any, origin: str | None) -> None:
    """The name's case does not matter; twice the same is once; several different are none."""
    assert extract_origin(headers) == origin


def test_headers_of_other_peoples_objects() -> None:
    """An object with headers, and headers that keep all pairs under ``raw``, hide no second Origin."""

    class Kept(dict[str, str]):
        raw = ((b"origin", GOOD.encode()), (b"origin", EVIL.encode()))

    class Socket:
        headers = Kept(origin=GOOD)

    assert extract_origin(Socket()) is None
    assert header_pairs(Socket()) == [(b"origin", GOOD.encode()), (b"origin", EVIL.encode())]


@pytest.mark.parametrize("environment", ["development", "production"])
def test_several_different_origins_are_refused(environment: str) -> None:
    """Two origins in one request are nobody's, also where a missing one would pass."""
    handler = WebSocketCORSHandler(environment, [GOOD, "http://localhost:3000"])
    assert not validate_websocket_origin([("origin", GOOD), ("origin", "http://localhost:3000")], handler)
    assert reasons(handler) == {"several": 1}
    assert validate_websocket_origin([("origin", GOOD), ("origin", GOOD)], handler)


def test_validating_what_is_allowed() -> None:
    """Headers of an allowed page are valid, and nothing is counted."""
    handler = production()
    assert validate_websocket_origin({"Origin": GOOD}, handler, "192.0.2.1")
    assert handler.get_security_stats()["total_violations"] == 0


def test_validating_what_is_not() -> None:
    """Headers of another page are not valid, and count against its origin and address."""
    handler = production()
    assert not validate_websocket_origin({"Origin": EVIL}, handler, "192.0.2.1")
    (pair,) = handler.strikes.tracked(handler.clock())
    assert (pair.origin, pair.address, pair.strikes) == (EVIL, "192.0.2.1", 1)


def test_without_a_list_there_is_still_a_rule() -> None:
    """Where no origins are configured, development means local pages and production means none."""
    assert get_websocket_cors_handler("development").is_origin_allowed("http://localhost:5173")
    assert not get_websocket_cors_handler("development").is_origin_allowed(EVIL)
    assert not get_websocket_cors_handler("production").is_origin_allowed("https://localhost")
    assert not get_websocket_cors_handler("staging").is_origin_allowed("http://localhost:3000")


def test_handlers_share_nothing() -> None:
    """Each call gives a handler of its own, so one program's refusals never block another's clients."""
    one, two = get_websocket_cors_handler("production"), get_websocket_cors_handler("production")
    assert one is not two
    for _ in range(5):
        one.is_origin_allowed(EVIL)
    assert two.get_security_stats()["blocked_origin_count"] == 0


def test_another_environment_has_rules_of_its_own() -> None:
    """A handler for another environment follows that one's rules, not those of the first that was made."""
    assert get_websocket_cors_handler("development").is_origin_allowed(None)
    assert not get_websocket_cors_handler("production").is_origin_allowed(None)
    assert get_websocket_cors_handler("development").is_origin_allowed(None)


# In front of an app.

Message = MutableMapping[str, Any]


class App:
    """An app of somebody else's: remembers which scopes it was given."""

    def __init__(self) -> None:
        self.scopes: list[Message] = []

    async def __call__(self, scope: Message, receive: Any, send: Callable[[Message], Awaitable[None]]) -> None:
        self.scopes.append(scope)
        await send({"type": "websocket.accept"})


async def ask(middleware: WebSocketCORSMiddleware, origin: str | None = None, **more: Any) -> list[Message]:
    """Open a WebSocket through the middleware; return what it sent."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is to be read before the origin is judged")

    headers = [] if origin is None else [(b"origin", origin.encode())]
    await middleware({"type": "websocket", "headers": headers, "client": ("192.0.2.1", 5), **more}, receive, send)
    return sent


CLOSED = [{"type": "websocket.close", "code": 1008, "reason": "Origin not allowed"}]


def test_a_middleware_has_app_and_handler() -> None:
    """App and handler are the ones that were given; what is none of them is refused."""
    app, handler = App(), production()
    middleware = WebSocketCORSMiddleware(app, handler)
    assert middleware.app is app
    assert middleware.handler is handler
    with pytest.raises(InvalidArgument, match=r"^app: "):
        WebSocketCORSMiddleware(None)
    with pytest.raises(InvalidArgument, match=r"^handler: "):
        WebSocketCORSMiddleware(app, "production")  # type: ignore[arg-type]


async def test_a_middleware_without_a_handler() -> None:
    """Without a handler the rules of development hold, and each middleware remembers for itself."""
    app = App()
    middleware = WebSocketCORSMiddleware(app)
    assert middleware.handler.environment == "development"
    assert middleware.handler is not WebSocketCORSMiddleware(app).handler
    assert await ask(middleware, "http://localhost:3000") == [{"type": "websocket.accept"}]
    assert await ask(middleware, EVIL) == CLOSED


async def test_an_allowed_scope_goes_on() -> None:
    """The app gets the scope with the origin in it; the server's own scope stays as it was."""
    app = App()
    middleware = WebSocketCORSMiddleware(app, production())
    assert await ask(middleware, GOOD, path="/x") == [{"type": "websocket.accept"}]
    (scope,) = app.scopes
    assert (scope["websocket_cors_origin"], scope["path"]) == (GOOD, "/x")


async def test_a_refused_scope_is_closed() -> None:
    """A page that is not allowed is closed with 1008 before it is accepted; the app never hears of it."""
    app = App()
    middleware = WebSocketCORSMiddleware(app, production())
    assert await ask(middleware, EVIL) == CLOSED
    assert await ask(middleware, None) == CLOSED
    assert app.scopes == []


async def test_other_scopes_go_through() -> None:
    """HTTP and lifespan are none of the middleware's business."""
    app = App()
    middleware = WebSocketCORSMiddleware(app, production())
    for kind in ("http", "lifespan"):
        assert await ask(middleware, EVIL, type=kind) == [{"type": "websocket.accept"}]
    assert [scope["type"] for scope in app.scopes] == ["http", "lifespan"]
    assert all("websocket_cors_origin" not in scope for scope in app.scopes)
    assert middleware.handler.get_security_stats()["total_violations"] == 0


async def test_a_middleware_remembers_between_connections() -> None:
    """Refusals of several connections count together, by the address that the server saw."""
    middleware = WebSocketCORSMiddleware(App(), production())
    for _ in range(6):
        assert await ask(middleware, EVIL) == CLOSED
    assert middleware.handler.get_security_stats()["blocked_origins"] == [EVIL]
    assert await ask(middleware, EVIL, client=None) == CLOSED
    assert reasons(middleware.handler) == {"not_allowed": 6, "blocked": 1}


# Beside our server.


def test_a_head_is_judged_by_its_address() -> None:
    """Refusals of a head say the same as our server's, and after five of an address when to come back."""
    handler = production()

    def head(origin: str, peer: str) -> Head:
        return Head("GET", "/ws", {}, [(b"origin", origin.encode())], peer)

    handler.check_origin(head(GOOD, "192.0.2.1"))
    for _ in range(5):
        with pytest.raises(Refused) as refused:
            handler.check_origin(head(EVIL, "192.0.2.1"))
        assert (refused.value.status, refused.value.code) == (403, "ORIGIN_REFUSED")
    with pytest.raises(Refused) as blocked:
        handler.check_origin(head(EVIL, "192.0.2.1"))
    assert (blocked.value.code, blocked.value.retry_after_s) == ("ORIGIN_BLOCKED", 600)
    with pytest.raises(Refused, match="ORIGIN_REFUSED"):
        handler.check_origin(head(EVIL, "192.0.2.2"))


async def test_a_rule_of_a_programs_own_beside_a_server(server: StartServer) -> None:
    """An authenticate= may ask a handler, too: who it refuses gets 403 before the 101, others are served."""
    handler = WebSocketCORSHandler("staging", ["http://localhost:3000"])

    async def authenticate(head: Head) -> Identity:
        await trio.lowlevel.checkpoint()
        handler.check_origin(head)
        return Identity("ada", frozenset({"chat", "read"}))

    running = await server(authenticate=authenticate)
    async with connect(running, headers=[("Origin", "http://localhost:3000")]) as client:
        assert (await client.ask("ping"))["type"] == "pong"
    refused = await exchange(running, upgrade("/ws", headers=[("Origin", "http://localhost:3001")]))
    assert (refused.status, refused.json()["code"]) == (403, "ORIGIN_REFUSED")


def test_the_length_of_an_origin_is_bounded() -> None:
    """An origin of 253 characters is read, a longer one is not."""
    name = "https://" + ".".join(["a" * 60] * 4)
    fits = name + ".b" * ((MAX_ORIGIN_LENGTH - len(name)) // 2)
    assert production(fits).is_origin_allowed(fits)
    longer = production(fits)
    assert not longer.is_origin_allowed(f"{fits}.b.b")
    assert reasons(longer) == {"too_long": 1}
