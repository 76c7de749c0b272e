"""Who asks: a program's own rule in place of tokens, for sockets and pages alike."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
import trio

from netra_ws.access import Revocations
from netra_ws.asking import make_identify
from netra_ws.errors import ConfigError, Refused
from netra_ws.identity import Identity
from netra_ws.policies import make_admission
from netra_ws.server import open_server
from netra_ws.settings import Settings, problems
from netra_ws.wire.head import Head
from tests.conftest import StartServer
from tests.kit import exchange, http, operator, raw, request, settings, token, upgrade

MARK = "marked-and-secret"
ROOT = ("cookie", "who=root")


async def by_cookie(head: Head) -> Identity:
    """Believe the cookie."""
    cookie = (head.get(b"cookie") or b"").decode()
    name = cookie.removeprefix("who=")
    if name not in ("root", "ada"):
        raise Refused(401, "NO_SESSION", "Sign in first.")
    return Identity(name, {"operator"} if name == "root" else {"chat"})


PAGES = [
    ("GET", "/ws/stats", b""),
    ("GET", "/ws/bounds", b""),
    ("POST", "/ws/unblock", b'{"address": "::1"}'),
]


@pytest.mark.parametrize(("method", "path", "body"), PAGES)
async def test_the_rule_decides_for_pages(method: str, path: str, body: bytes, server: StartServer) -> None:
    """An operator is whoever the rule says is one; tokens are worth nothing beside it."""
    running = await server(authenticate=by_cookie)
    for headers, status in [
        ([ROOT], 200),
        ([("cookie", "who=ada")], 200 if method == "GET" else 403),  # these show everybody something
        ([("cookie", "who=eve")], 401),
        ([("authorization", f"Bearer {operator()}")], 401),
    ]:
        answer = await http(running, path, method=method, headers=headers, body=body)
        assert answer.status == status, headers
        assert (b"by_user" in answer.body) == (path == "/ws/stats" and headers == [ROOT])
    unnamed = await http(running, path, method=method, body=body)
    assert unnamed.status == (200 if method == "GET" else 401)
    assert b"by_user" not in unnamed.body
    stats = (await http(running, "/ws/stats", headers=[ROOT])).json()
    assert "by_user" in stats
    assert stats["auth"]["refused"] == (2 if method == "GET" else 3)


@pytest.mark.parametrize(("method", "path", "body"), PAGES)
async def test_pages_are_no_cheaper_to_guess_at(method: str, path: str, body: bytes, server: StartServer) -> None:
    """A guess at a page counts like one at the socket, for tokens and for a program's own rule."""
    for rule, guess in ((by_cookie, ("cookie", "who=guess")), (None, ("authorization", "Bearer guess"))):
        running = await server(authenticate=rule, limits__failed_connects_per_minute_per_address=2)
        for _ in range(2):
            assert (await http(running, path, method=method, headers=[guess], body=body)).status == 401
        assert (await http(running, path, method=method, headers=[guess], body=body)).status == 429
        assert (await exchange(running, upgrade(headers=[guess]))).status == 429
        stats = (await http(running, "/ws/stats")).json()
        assert stats["rate_limited"]["failed_connects"] == 2


async def test_origin_and_budgets_come_before_the_rule(server: StartServer) -> None:
    """The rule is asked about nobody who is refused anyway."""
    asked = 0

    async def count(head: Head) -> Identity:
        nonlocal asked
        asked += 1
        return Identity("ada", {"operator"})

    running = await server(authenticate=count, limits__connects_per_minute_per_address=1)
    evil = ("origin", "https://evil.example")
    assert (await exchange(running, upgrade(headers=[evil]))).status == 403
    assert (await http(running, "/ws/stats", headers=[ROOT, evil])).status == 403
    assert asked == 0
    assert (await http(running, "/ws/stats", headers=[ROOT])).status == 200
    assert (await http(running, "/ws/stats", headers=[ROOT])).status == 429
    assert asked == 1


class Leaky(Exception):
    """An error that quotes what it was given."""


async def leaks(head: Head) -> Identity:
    """Fail with the secret in the text."""
    raise Leaky(f"cannot read {head.get(b'cookie')!r} of {head!r}")


async def leaks_in_a_group(head: Head) -> Identity:
    """Fail in a nursery."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leaks, head)
    raise AssertionError


async def answers_nonsense(head: Head) -> Any:
    """Return no identity."""
    return head.get(b"cookie")


class Odd(BaseException):
    """What is no Exception."""


async def exits(head: Head) -> Identity:
    """Mean the program, as a script does."""
    sys.exit(f"cannot read {head.get(b'cookie')!r}")


async def exits_in_a_group(head: Head) -> Identity:
    """End in a nursery."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exits, head)
    raise AssertionError


async def is_odd(head: Head) -> Identity:
    """Fail beside everything."""
    raise Odd(head.get(b"cookie"))


FAULTS = {answers_nonsense: "TypeError", exits: "SystemExit", exits_in_a_group: "SystemExit", is_odd: "Odd"}


@pytest.mark.parametrize("rule", [leaks, leaks_in_a_group, answers_nonsense, exits, exits_in_a_group, is_odd])
async def test_a_rule_that_fails_is_500_and_tells_nothing(
    rule: Any, server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in the rule is logged with its place and a number; neither log nor answer has what the client sent."""
    running = await server(authenticate=rule, limits__failed_connects_per_minute_per_address=1)
    headers = [("cookie", f"session={MARK}")]
    sent = {
        "socket": upgrade(f"/ws?token={MARK}", headers=headers),
        "page": request("/ws/ticket", headers, method="POST"),
    }
    for data in sent.values():
        answer = await exchange(running, data)
        assert (answer.status, answer.json()["code"]) == (500, "INTERNAL")
        number = answer.json()["error"].split()[-1].rstrip(".")
        assert number in caplog.text
        assert MARK not in answer.body.decode()
    assert MARK not in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    assert FAULTS.get(rule, "Leaky") in caplog.text
    stats = (await http(running, "/ws/stats")).json()
    assert stats["auth"]["failed"] == 2, "and nobody is locked out for it"


async def test_a_rule_may_refuse_from_within_a_nursery(server: StartServer) -> None:
    """A refusal that comes in a group is the client's answer all the same."""

    async def refuse() -> None:
        raise Refused(403, "NOT_HERE", "Not from here.")

    async def in_a_nursery(head: Head) -> Identity:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
        raise AssertionError

    answer = await exchange(await server(authenticate=in_a_nursery), upgrade())
    assert (answer.status, answer.json()["code"]) == (403, "NOT_HERE")


async def test_a_rule_that_hangs_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """The rule has the seconds it was given, then the client hears 503 and nobody's budget has paid."""

    async def hang(head: Head) -> Identity:
        await trio.sleep_forever()
        raise AssertionError

    admission = make_admission(settings(limits__failed_connects_per_minute_per_address=1), Revocations(), tokens=False)
    identify = make_identify(admission, hang, lambda: 0.0, 5.0)
    for _ in range(3):
        started = trio.current_time()
        with pytest.raises(Refused) as caught:
            await identify(Head("GET", "/ws", {}, [], "192.0.2.1"))
        assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (503, "UNAVAILABLE", 2)
        assert trio.current_time() - started == pytest.approx(5)


async def test_a_rule_that_fails_while_it_is_cancelled_tells_nothing(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever leaves while the rule is at work cancels it; what it raises then is logged without its text."""

    async def fail_late(head: Head) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise Leaky(repr(head.headers))

    async def rule(head: Head) -> Identity:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_late, head)
            nursery.start_soon(trio.sleep_forever)
        raise AssertionError

    identify = make_identify(make_admission(settings(), Revocations(), tokens=False), rule, lambda: 0.0, 5.0)
    with trio.move_on_after(1) as scope:
        await identify(Head("GET", "/ws", {}, [(b"cookie", MARK.encode())], "192.0.2.1"))
    assert scope.cancelled_caught
    assert "Leaky" in caplog.text
    assert MARK not in caplog.text


async def test_ctrl_c_in_a_rule_goes_on() -> None:
    """Ctrl-C is nobody's failure, alone or beside one: it ends whoever asked."""

    async def interrupted(head: Head) -> Identity:
        raise KeyboardInterrupt

    async def both(head: Head) -> Identity:
        raise BaseExceptionGroup("", [SystemExit(), KeyboardInterrupt()])

    head = Head("GET", "/ws", {}, [], "192.0.2.1")
    admission = make_admission(settings(), Revocations(), tokens=False)
    with pytest.raises(KeyboardInterrupt):
        await make_identify(admission, interrupted, lambda: 0.0, 5.0)(head)
    with pytest.raises(BaseExceptionGroup) as caught:
        await make_identify(admission, both, lambda: 0.0, 5.0)(head)
    assert [type(cause) for cause in caught.value.exceptions] == [KeyboardInterrupt]


async def test_a_rule_that_hangs_leaves_time_for_the_answer(server: StartServer) -> None:
    """The client of a rule that hangs is answered within ``timing.handshake_s``."""

    async def hang(head: Head) -> Identity:
        await trio.sleep_forever()
        raise AssertionError

    running = await server(authenticate=hang, timing__handshake_s=1.0)
    answer = await exchange(running, upgrade())
    assert (answer.status, answer.json()["code"]) == (503, "UNAVAILABLE")
    assert (await http(running, "/health")).status == 200


@pytest.mark.parametrize("environment", ["development", "testing", "staging", "production"])
async def test_a_rule_needs_no_secret(environment: str) -> None:
    """With a program's own rule no environment asks for a secret, and without one all but development do."""
    bare = Settings.make({"server.port": 0, "store.url": "memory:", "origins.required": False}, environment=environment)
    assert problems(bare, tokens=False) == []
    if environment != "development":
        with pytest.raises(ConfigError, match=r"auth\.secret"):
            async with open_server(bare):
                pytest.fail("it must not start")
    async with open_server(bare, authenticate=by_cookie) as server:
        async with raw(server) as client:
            await client.open(upgrade(headers=[("cookie", "who=ada")]))
            assert client.welcome["user_id"] == "ada"
        assert (await exchange(server, upgrade(bearer=token()))).json()["code"] == "NO_SESSION"
