"""What refusals leave behind, and the budget that comes before every head."""

from __future__ import annotations

import logging
import ssl
from collections import Counter
from pathlib import Path

import pytest
import trio
import trio.testing

from netra_ws.access import limits
from netra_ws.errors import Refused
from netra_ws.identity import Identity
from netra_ws.wire.head import Head
from netra_ws.wire.refusals import LINES_PER_MINUTE, MAX_OUTCOMES, OTHER, Refusals
from tests.conftest import StartServer
from tests.kit import Client, Ended, connect, exchange, http, raw, request, token, upgrade
from tests.tls import Authority, over_tls

LOGGER = "netra_ws.wire.refusals"
NO = Refused(401, "TOKEN_INVALID", "No.")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


def test_words_are_bounded() -> None:
    """However many words a rule refuses with, no more than so many are counted by themselves; what is none never."""
    refusals = Refusals(Counter(accepted=1))
    for number in range(1000):
        refusals.count(Refused(403, f"NO_{number}", "No."))
    for odd in ("", "x" * 65, "two words", 'a"b', "line\nbreak", "ä"):
        refusals.count(Refused(403, odd, "No."))
    assert len(refusals.outcomes) == MAX_OUTCOMES + 1
    assert refusals.outcomes[OTHER] == 1000 + 6 - (MAX_OUTCOMES - 1)
    assert refusals.outcomes["NO_0"] == refusals.outcomes["accepted"] == 1


async def test_the_words_of_a_rule(server: StartServer) -> None:
    """What a program's own rule makes up does not grow what a server holds."""
    numbers = iter(range(1000))

    async def refuse(head: Head) -> Identity:
        raise Refused(403, f"NO_{next(numbers)}", "No.")

    running = await server(authenticate=refuse)
    for number in range(MAX_OUTCOMES + 5):
        assert (await exchange(running, upgrade())).json()["code"] == f"NO_{number}"
    assert running.door.outcomes[OTHER] == 5


async def test_lines_are_bounded(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """In a minute only so many lines are written; the next one says how many were left out."""
    caplog.set_level(logging.INFO, LOGGER)
    refusals = Refusals(Counter())
    for _ in range(LINES_PER_MINUTE + 412):
        refusals.tell(NO, "192.0.2.1", "/ws")
        await trio.sleep(0.1)
    assert lines(caplog) == ["refused 401 TOKEN_INVALID peer='192.0.2.1' path='/ws'"] * LINES_PER_MINUTE
    await trio.sleep(60)
    refusals.tell(NO, "192.0.2.1", "/ws")
    refusals.tell(NO, "192.0.2.1", "/ws")
    assert [line.partition(" … ")[2] for line in lines(caplog)[LINES_PER_MINUTE:]] == ["and 412 more", ""]


JWT = token("ada")


@pytest.mark.parametrize(
    ("origins", "shown"),
    [
        ([], "(none)"),
        ([b"https://Evil.example:443"], "https://evil.example"),
        ([b"null"], "null"),
        ([b"https://a.example", b"https://b.example"], "several"),
        ([b"https://" + JWT.encode()], "malformed"),
        ([JWT.encode()], "malformed"),
        ([b"https://evil.example/" + JWT.encode()], "malformed"),
        ([b"https://evil.example\r\nrefused 200"], "malformed"),
        ([b"https://*.example"], "malformed"),
        ([b"\xff\xfe"], "malformed"),
        ([b"https://" + b".".join([b"a" * 60] * 4)], "https://" + ".".join(["a" * 60] * 4)[:192]),
    ],
    ids=["none", "origin", "null", "several", "host", "token", "path", "lines", "pattern", "bytes", "long"],
)
async def test_what_of_an_origin_is_shown(origins: list[bytes], shown: str, caplog: pytest.LogCaptureFixture) -> None:
    """A line shows an origin where it is one, cut; anything else could be a token or another line."""
    caplog.set_level(logging.INFO, LOGGER)
    Refusals(Counter()).tell(Refused(403, "ORIGIN_REFUSED", "No."), "x\ny", "/ws", origins)
    assert lines(caplog) == [f"refused 403 ORIGIN_REFUSED peer='x\\ny' path='/ws' origin={shown!r}"]


async def test_every_refused_attempt_has_a_line(server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    """Sockets, pages and what cannot be read: who was refused for what, and nothing else of what they sent."""
    caplog.set_level(logging.INFO, LOGGER)
    running = await server(origins__allowed=["https://app.example"])
    evil = ("origin", "https://evil.example")
    bad = token("ada", iss="x")[:-5]
    await exchange(running, upgrade(bearer=bad))
    await exchange(running, upgrade("/ws?token=" + bad, headers=[evil], bearer=bad))
    await exchange(running, request("/ws/stats", [("authorization", f"Bearer {bad}")]))
    await exchange(running, upgrade("/" + bad))
    await exchange(running, request("/" + bad, method="BREW"))
    await exchange(running, b"nonsense " + bad.encode() + b"\r\n\r\n")
    await exchange(running, request("/ws"))
    who = "peer='127.0.0.1' path="
    assert lines(caplog) == [
        f"refused 401 TOKEN_INVALID {who}'/ws'",
        f"refused 403 ORIGIN_REFUSED {who}'/ws' origin='https://evil.example'",
        f"refused 401 TOKEN_INVALID {who}'/ws/stats'",
        f"refused 400 BAD_REQUEST {who}'…'",
        f"refused 426 UPGRADE_REQUIRED {who}'/ws'",
    ]


# The budget of connections.

FEW = {"limits__connects_per_minute_per_address": 1}


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address may open ten connections a minute, so that tests need not open hundreds."""
    monkeypatch.setattr(limits, "LEAST_REQUESTS", 1)


@pytest.mark.usefixtures("little_room")
async def test_pages_have_a_budget(server: StartServer) -> None:
    """Who asks for too many pages is told when to come back, and sockets that are open stay as they are."""
    running = await server(**FEW)
    async with connect(running) as client:
        for _ in range(9):
            assert (await http(running, "/health")).status == 200
        for data in (request("/health"), upgrade(bearer=token()), request("/nothing")):
            answer = await exchange(running, data)
            assert (answer.status, answer.json()["code"]) == (429, "RATE_LIMITED")
            assert 1 <= int(answer.headers["retry-after"]) <= 6
        assert (await client.ask("list_threads"))["type"] == "thread_list"
    assert running.door.outcomes["RATE_LIMITED"] == 3
    assert running.door.addresses.refused == {"requests": 3}


@pytest.mark.usefixtures("little_room")
async def test_who_says_nothing_pays_as_well(server: StartServer) -> None:
    """Connections on which nothing is said count like any other."""
    running = await server(**FEW)
    for _ in range(10):
        async with raw(running):
            pass
    with trio.fail_after(5):
        while (await http(running, "/health")).status != 429:
            await trio.sleep(0.01)


@pytest.mark.usefixtures("little_room")
async def test_handshakes_have_a_budget(server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Over TLS whoever comes too often is closed before anything is computed for them, and counted."""
    caplog.set_level(logging.INFO, LOGGER)
    authority = Authority(tmp_path)
    running = await server(**FEW, **{name.replace(".", "__"): v for name, v in authority.issue().items()})
    trusting = authority.trusting()
    for _ in range(10):
        async with over_tls(running, trusting) as client:
            await client.send_bytes(request("/health"))
            assert (await client.read_answer()).status == 200
    for _ in range(3):
        with pytest.raises((trio.BrokenResourceError, ssl.SSLError)):
            async with over_tls(running, trusting):
                pass
    async with raw(running) as client:
        assert await client.stream.receive_some() == b"", "it is not even listened to, nor told anything"
    assert running.door.outcomes == {"RATE_LIMITED": 4}
    assert lines(caplog) == ["refused 429 RATE_LIMITED peer='127.0.0.1' path='…'"] * 4


@pytest.mark.parametrize("way", ["line", "header"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.usefixtures("little_room")
async def test_a_proxy_does_not_pay_for_others(way: str, tls: bool, server: StartServer, tmp_path: Path) -> None:
    """Connections from a named proxy count for the address that it names; the proxy itself may look at any time."""
    authority = Authority(tmp_path)
    more = {name.replace(".", "__"): v for name, v in authority.issue().items()} if tls else {}
    running = await server(**FEW, **more, server__behind_proxy=True, server__trusted_proxies=["127.0.0.1"])

    async def ask(address: str | None) -> int | None:
        said = b"" if address is None or way == "header" else f"PROXY TCP4 {address} 10.0.0.1 1 2\r\n".encode()
        headers = [("x-forwarded-for", address)] if address is not None and way == "header" else []
        async with raw(running) as client:
            if said:
                await client.send_bytes(said)
            if tls:
                stream = trio.SSLStream(client.stream, authority.trusting(), server_hostname="localhost")
                client = Client(stream)
            try:
                await client.send_bytes(request("/health", headers))
                return (await client.read_answer()).status
            except (trio.BrokenResourceError, Ended):
                return None

    for _ in range(10):
        assert await ask("192.0.2.1") == 200
    assert await ask("192.0.2.1") == (None if tls and way == "line" else 429)
    assert await ask("192.0.2.2") == 200
    for _ in range(15):
        assert await ask(None) == 200
    assert running.door.outcomes == {"RATE_LIMITED": 1}


@pytest.mark.usefixtures("little_room")
async def test_streams_of_a_program_count(server: StartServer) -> None:
    """Clients that a program brings count for the address that it names."""
    running = await server(**FEW)

    async def ask(peer: str) -> int:
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.serve_stream, theirs, peer)
            client = Client(ours)
            await client.send_bytes(request("/health"))
            answer = await client.read_answer()
            await ours.aclose()
        return answer.status

    for _ in range(10):
        assert await ask("here") == 200
    assert await ask("here") == 429
    assert await ask("there") == 200
