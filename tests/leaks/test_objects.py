"""No secret and no token in what a program sees that runs a server or a client in its own process."""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections.abc import Iterator

import pytest
import trio

import netra_ws
from netra_ws import ConnectionLost, Identity, Rejected
from netra_ws.access import Verifier, mint
from netra_ws.client import Address, ClientPolicy
from netra_ws.errors import Refused
from netra_ws.protocol.commands import RefreshAuth
from netra_ws.settings import Settings
from netra_ws.testing.frames import upgrade
from netra_ws.wire.head import Head
from tests.conftest import StartServer
from tests.kit import SECRET, exchange

from .marks import Marks

PASSWORD = "the password/of everything"
ONCE = ClientPolicy(connect_s=1.0, patience_s=1.0)


@pytest.fixture
def marks() -> Marks:
    made = Marks()
    made.secret("auth.secret", SECRET)
    made.secret("password", PASSWORD)
    return made


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Everything that is logged, by the libraries, too."""
    library = logging.getLogger("trio-websocket")
    before = library.level
    caplog.set_level(logging.DEBUG)
    library.setLevel(logging.DEBUG)  # as a program may that looks for a fault
    yield caplog
    library.setLevel(before)


def token(marks: Marks, what: str, *, secret: str = SECRET, expires_s: float = 600.0) -> str:
    return marks.token(what, mint(secret, "ada", None, expires_s, time.time(), jti=what))


def alive() -> str:
    """Return the ``repr`` of every object of ours in this process."""
    gc.collect()
    shown = []
    for thing in gc.get_objects():
        home = type(thing).__module__
        if isinstance(home, str) and home.startswith("netra_ws"):
            try:
                shown.append(repr(thing))
            except Exception as exc:
                shown.append(repr(exc))
    return "\n".join(shown)


def test_values_hide_their_secrets(marks: Marks) -> None:
    """Settings, rules, heads, commands and addresses show no secret when somebody prints them."""
    good = token(marks, "good")
    overrides = {"auth.secret": SECRET, "store.url": f"postgresql://netra:{PASSWORD}@db/netra", "llm.api_key": PASSWORD}
    verifier = Verifier(SECRET)
    shown = {
        "settings": Settings.make(overrides, environment="testing"),
        "verifier": verifier,
        "identity": verifier.verify(good, time.time()),
        "head": Head(
            method="GET",
            path=f"/ws/{good}",
            query={"token": good},
            headers=[(b"authorization", f"Bearer {good}".encode())],
            peer="127.0.0.1",
            rest=good.encode(),
        ),
        "command": RefreshAuth(token=good),
        "address": Address.parse(f"http://ada:{good}@localhost/?token={good}#token={good}"),
    }
    assert not (found := marks.leaks({what: repr(value) for what, value in shown.items()})), found


def test_a_wrong_address_is_not_repeated(marks: Marks) -> None:
    """A URL that is none is refused without being quoted: it may hold a token."""
    good = token(marks, "in a URL")
    for url in (
        f"ftp://host/#token={good}",
        f"//{good}",
        f"http://host:{good}/",
        f"http://[{good}]/?token={good}",
        good,
    ):
        with pytest.raises(ValueError, match="expected http") as caught:
            Address.parse(url)
        text = "".join(traceback.format_exception(caught.value))
        assert not (found := marks.found(text)), found


async def test_a_client_shows_no_token(server: StartServer, marks: Marks, log: pytest.LogCaptureFixture) -> None:
    """A session, its errors and all logs of both sides show no token: open, renewed, refused or lost."""
    started = await server()
    shown: dict[str, bytes | str] = {}
    first, second = token(marks, "first"), token(marks, "second")
    async with netra_ws.connect(f"{started.url}/ws?token={first}", first, policy=ONCE) as session:
        run = await session.start("hello", agent="echo")
        await run.result()
        with pytest.raises(netra_ws.SessionError) as caught:
            await session.command(RefreshAuth(token=second))
            raise netra_ws.SessionError("it is renewed here")  # where the server can do that
        shown["renewal"] = "".join(traceback.format_exception(caught.value))
        shown["everything alive"] = alive()
    for what, secret, expires_s in (("foreign", SECRET[::-1], 600.0), ("expired", SECRET, -600.0)):
        wrong = token(marks, what, secret=secret, expires_s=expires_s)
        with pytest.raises(Rejected) as refused:
            async with netra_ws.connect(started.url, wrong, policy=ONCE):
                pass
        shown[what] = "".join(traceback.format_exception(refused.value)) + repr(refused.value)
    lonely = token(marks, "lonely")
    with pytest.raises(ConnectionLost) as lost:
        async with netra_ws.connect("http://127.0.0.1:1", lambda: lonely, policy=ONCE):
            pass
    shown["lost"] = "".join(traceback.format_exception(lost.value))
    with pytest.raises(Rejected) as malformed:
        async with netra_ws.connect(started.url, f"{token(marks, 'two words')} {lonely}", policy=ONCE):
            pass
    shown["malformed"] = "".join(traceback.format_exception(malformed.value))
    assert "everything alive" in shown
    assert "netra_ws" in log.text
    shown["log"] = log.text
    assert not (found := marks.leaks(shown)), found


async def test_a_rule_of_ones_own_that_fails_shows_no_token(
    server: StartServer, marks: Marks, log: pytest.LogCaptureFixture
) -> None:
    """A rule that raises with the head in its words is logged by its kind and place only."""

    async def rule(head: Head) -> Identity:
        if b"refuse" in dict(head.headers):
            raise Refused(401, "TOKEN_INVALID", "no")
        try:
            raise KeyError("no such session")
        except KeyError as exc:
            raise RuntimeError(f"cannot tell who sent {head!r}") from exc

    started = await server(authenticate=rule)
    answers: dict[str, bytes | str] = {}
    for number, more in enumerate([(), (("refuse", "1"),)]):
        cookie = ("cookie", f"session={token(marks, f'cookie {number}')}")
        head = upgrade(f"/ws?token={token(marks, f'query {number}')}", bearer=token(marks, f"bearer {number}"))
        head = head[:-2] + "\r\n".join(f"{name}: {value}" for name, value in (cookie, *more)).encode() + b"\r\n\r\n"
        answer = await exchange(started, head)
        answers[f"answer {number}"] = repr(answer)
    assert "authenticate failed with RuntimeError" in log.text
    assert "cannot tell who sent" not in log.text, "its words might quote anything of the head"
    assert not (found := marks.leaks({**answers, "log": log.text})), found


async def test_a_server_that_cannot_start_shows_no_secret(marks: Marks) -> None:
    """Errors of a start, with their whole tracebacks, show no password."""
    url = f"postgresql://netra:{PASSWORD.replace(' ', '%20').replace('/', '%2F')}@127.0.0.1:1/netra"
    marks.secret("password in the URL", url.partition("netra:")[2].partition("@")[0])
    settings = Settings.make({"auth.secret": SECRET, "server.port": 0, "store.url": url}, environment="testing")
    with pytest.raises(netra_ws.StoreError) as caught, trio.fail_after(20.0):
        async with netra_ws.open_server(settings):
            pass
    text = "".join(traceback.format_exception(caught.value))
    assert not (found := marks.found(text)), found
