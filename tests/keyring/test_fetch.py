from __future__ import annotations

import contextlib
import logging
import ssl
from typing import Any

import hypothesis
import pytest
import trio
import trio.testing
import trustme
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.access.freshness import Unread
from netra_ws.access.jwks import MAX_SET_BYTES
from netra_ws.errors import ConfigError
from netra_ws.keyring.fetch import fetch, trust
from tests.effort import share
from tests.identity_service import identity_service

CONTEXT = trust()


async def failure(url: str) -> Unread:
    with pytest.raises(Unread) as caught:
        await fetch(url, CONTEXT)
    assert "hidden" not in str(caught.value)
    assert "localhost" not in str(caught.value)
    return caught.value


async def test_an_answer() -> None:
    """The body comes as it is, whatever its type is said to be, with the time for which it is kept."""
    async with identity_service(b"keys") as service:
        service.headers = ("Content-Type: image/png", "Cache-Control: max-age=120")
        answer = await fetch(service.url, CONTEXT)
        assert (answer.body, answer.after_s) == (b"keys", 120)
        assert service.heads[0].startswith(b"GET /jwks?tenant=hidden HTTP/1.1\r\n")
        assert b"cookie" not in service.heads[0].lower()


@pytest.mark.parametrize(
    ("status", "lasting"),
    [
        ("301 Moved", True),
        ("302 Found", True),
        ("307 Temporary Redirect", True),
        ("204 No Content", True),
        ("401 Unauthorized", True),
        ("404 Not Found", True),
        ("429 Too Many Requests", False),
        ("500 Internal Server Error", False),
        ("503 Service Unavailable", False),
    ],
)
async def test_other_statuses(status: str, lasting: bool) -> None:
    """Only a 200 counts; a redirect is not followed, and a server's own trouble is worth another try."""
    async with identity_service(b"") as service, identity_service(b"keys") as elsewhere:
        service.status, service.headers = status, (f"Location: {elsewhere.url}",)
        fault = await failure(service.url)
        assert f"answered {status[:3]}" in str(fault)
        assert fault.lasting is lasting
        assert elsewhere.heads == []


@pytest.mark.parametrize("behaviour", ["hang", "hang in body", "drip"])
async def test_no_complete_answer(behaviour: Any, mock_clock: trio.testing.MockClock) -> None:
    """An answer has its seconds in all, however it is stretched."""
    async with identity_service(b"k" * 100) as service:
        service.behaviour = behaviour
        mock_clock.rate = 50
        fault = await failure(service.url)
    assert str(fault) == "no complete answer in 10 s"
    assert not fault.lasting


@pytest.mark.parametrize("behaviour", ["cut", "silent close", "garbage"])
async def test_a_broken_answer(behaviour: Any) -> None:
    """What breaks off, or is no HTTP, is a failure that may pass."""
    async with identity_service(b"k" * 100) as service:
        service.behaviour = behaviour
        assert not (await failure(service.url)).lasting


_PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n",
        b"HTTP/0.9 999\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Cache-Control: max-age=\xff\r\n",
        b"Content-Encoding: \xe9\r\n",
        b"\r\n",
        b"5\r\nhello\r\n",
        b"fffffffffffffffff\r\n",
        b"0\r\n\r\n",
        b"X: " + b"y" * 200_000,
    ]
)


@given(st.lists(_PIECES | st.binary(max_size=20), max_size=8).map(b"".join))
@hypothesis.settings(max_examples=share(60), deadline=None)
async def test_any_answer(answer: bytes) -> None:
    """Whatever comes, it is an answer or a failure in a few words: nothing else can end the task that asks."""
    async with identity_service(answer) as service:
        service.behaviour = "raw"
        with trio.fail_after(5), contextlib.suppress(Unread):
            assert isinstance((await fetch(service.url, CONTEXT)).body, bytes)


async def test_too_large() -> None:
    """The largest body is taken; one byte more is not, and an endless one is left in the middle."""
    async with identity_service(b" " * MAX_SET_BYTES) as service:
        assert len((await fetch(service.url, CONTEXT)).body) == MAX_SET_BYTES
        service.body += b" "
        assert "more than 262144 bytes" in str(await failure(service.url))
        service.behaviour = "endless"
        with trio.fail_after(5):
            assert "more than 262144 bytes" in str(await failure(service.url))


async def test_a_bomb() -> None:
    """A compressed body was not asked for, and is not unpacked."""
    async with identity_service(b"\x1f\x8b") as service:
        service.headers = ("Content-Encoding: gzip",)
        assert "encoding" in str(await failure(service.url))
        assert b"accept-encoding: identity" in service.heads[0].lower()


async def test_nobody_there() -> None:
    """A port that nobody listens on, and a name that is none, are failures that may pass."""
    async with identity_service(b"") as service:
        url = service.url
    assert str(await failure(url)) == "no connection"
    assert not (await failure("https://hidden.invalid/")).lasting


async def test_the_environment_does_not_redirect_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment is not used, and no password of .netrc is sent."""
    async with identity_service(b"keys") as service, identity_service(b"proxied") as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert (await fetch(service.url, CONTEXT)).body == b"keys"
        assert proxy.heads == []
        assert b"authorization" not in service.heads[0].lower()


async def test_nothing_of_an_address_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A query may hold a key; no library writes it into the log, at whatever level."""
    caplog.set_level(logging.DEBUG)
    async with identity_service(b"keys") as service:
        await fetch(service.url, CONTEXT)
        service.status = "500 No"
        await failure(service.url)
    assert "hidden" not in caplog.text


async def test_cancelled_in_the_middle() -> None:
    """A fetch that is cancelled leaves nothing behind, as often as that happens."""
    async with identity_service(b"k" * 100) as service:
        service.behaviour = "hang in body"
        for _ in range(20):
            with trio.move_on_after(0.02):
                await fetch(service.url, CONTEXT)
        service.behaviour = "answer"
        assert (await fetch(service.url, CONTEXT)).body == b"k" * 100


async def test_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A certificate must be of an authority that is trusted, and for that name."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    own = trust()
    for name, told in (("localhost", None), ("other.example", "its certificate is not trusted (Hostname mismatch")):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(name).configure_cert(context)
        async with identity_service(b"keys", context) as service:
            assert "its certificate is not trusted" in str(await failure(service.url))
            if told is None:
                assert (await fetch(service.url, own)).body == b"keys"
            else:
                with pytest.raises(Unread) as caught:
                    await fetch(service.url, own)
                assert str(caught.value).startswith(told)


def test_authorities_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A wrong name of a file of authorities is one clear line."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
        trust()
