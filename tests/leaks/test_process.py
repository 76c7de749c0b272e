"""No secret and no token in anything that a real server writes, sends or keeps, whatever is done to it."""

from __future__ import annotations

import base64
import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import attrs
import pytest

from netra_ws.access import mint
from netra_ws.testing.frames import BINARY, CLOSE, PING, TEXT, Ended, close_payload, frame, request, upgrade
from tests.load.process import Process, eventually, serving

from .ear import Ear
from .marks import Marks

SECRET = 'the "signing" secret\'s own text, with 100 % of \\ everything/in+it'
OTHER_SECRET = "somebody else's secret that signs nothing here at all"
AGENTS = "from tests.leaks.accidents import *"
NAMES = ("claims", "quoting", "reprs", "break_door", "break_commands")
PAGES = (
    "/",
    "/netra-ws.js",
    "/health",
    "/ws/health",
    "/ready",
    "/metrics",
    "/ws/config",
    "/ws/stats",
    "/ws/bounds",
    "/ws/tree",
    "/ws/beacon",
    "/ws/nothing",
)


@attrs.define
class Wallet:
    """Makes tokens, each of them marked."""

    marks: Marks
    count: int = 0

    def token(self, what: str, *, secret: str = SECRET, user: str = "ada", expires_s: float = 600.0) -> str:
        """Return a token of its own for what it is used for."""
        self.count += 1
        made = mint(secret, user, ("chat", "read", "operator"), expires_s, time.time(), jti=f"{what} {self.count}")
        return self.marks.token(what, made)


def good_carriers(wallet: Wallet) -> Iterator[tuple[str, bytes]]:
    """Yield opening handshakes that let somebody in, one for each way to carry a token."""
    yield "authorization", upgrade(bearer=wallet.token("authorization"))
    for prefix in ("jwt.", "jwt-auth.", "bearer.", "jwt.local.", "jwt-auth.local.", "bearer.local."):
        for coded in (False, True):
            what = f"{prefix}{'base64url' if coded else 'raw'}"
            token = wallet.token(what)
            said = base64.urlsafe_b64encode(token.encode()).rstrip(b"=").decode() if coded else token
            yield what, upgrade(protocols=("netra.v1", prefix + said))
            yield f"older {what}", upgrade(protocols=("jwt-auth", prefix + said))
    yield "query", upgrade(f"/ws?token={wallet.token('query')}")
    yield "query and position", upgrade(f"/ws?token={wallet.token('query, position')}&resume=x:1")
    yield "echo", upgrade("/ws/echo", bearer=wallet.token("echo"))


def bad_carriers(wallet: Wallet) -> Iterator[tuple[str, bytes]]:
    """Yield opening handshakes with a token that is wrong."""
    wrong = {
        "foreign": wallet.token("foreign", secret=OTHER_SECRET),
        "expired": wallet.token("expired", expires_s=-600.0),
        "garbage": wallet.marks.secret("garbage", "garbage-that-was-meant-to-be-a-token"),
        "cut": wallet.marks.token("cut", wallet.token("to be cut")[:-9]),
        "no algorithm": wallet.marks.token(
            "none", "eyJhbGciOiJub25lIn0." + wallet.token("of none").split(".")[1] + "."
        ),
        "long": wallet.marks.secret("long", "long-token-" * 900),
    }
    for what, token in wrong.items():
        yield what, upgrade(bearer=token)
        yield f"{what} in an offer", upgrade(protocols=("netra.v1", f"jwt.{token}"))
        coded = base64.urlsafe_b64encode(token.encode()).decode()
        yield f"{what} coded", upgrade(protocols=(f"bearer.{coded}",))
        yield f"{what} in the query", upgrade(f"/ws?token={quote(token)}")
    double = wallet.token("double")
    yield "two", upgrade(bearer=double, headers=[("authorization", f"Bearer {double}")])
    yield "basic", upgrade(headers=[("authorization", f"Basic {wallet.token('basic')}")])
    yield "not ASCII", upgrade(headers=[("authorization", f"Bearer {wallet.token('not ASCII')}ü")])
    yield "offer not ASCII", upgrade(protocols=(f"jwt.{wallet.token('offer not ASCII')}ü",))


def wrong_places(wallet: Wallet) -> Iterator[tuple[str, bytes]]:
    """Yield requests with a good token where none belongs."""
    for name in ("resume", "thread_id", "access_token", "jwt", "ticket"):
        yield f"?{name}", upgrade(f"/ws?{name}={wallet.token(f'?{name}')}", bearer=wallet.token(f"beside ?{name}"))
    for name in ("Origin", "User-Agent", "Cookie", "Referer", "X-Forwarded-For", "X-Token", "Sec-WebSocket-Extensions"):
        token = wallet.token(name)
        value = f"https://{token}.example.org" if name == "Origin" else f"token={token}"
        yield name, upgrade(bearer=wallet.token(f"beside {name}"), headers=[(name, value)])
    yield "key", upgrade(bearer=wallet.token("beside key"), key=wallet.token("key"))
    yield "bare offer", upgrade(protocols=(wallet.token("bare offer"),))
    yield "path", request(f"/ws/{wallet.token('path')}")
    yield "path of a page", request(f"/{wallet.token('path of a page')}?token={wallet.token('query of a page')}")
    yield "method", request(method=wallet.token("method"))
    yield "version", b"GET /ws HTTP/" + wallet.token("version").encode() + b"\r\n\r\n"
    yield "absolute", request(f"http://ada:{wallet.token('absolute')}@localhost/ws")
    yield "host", f"GET /ws HTTP/1.1\r\nHost: {wallet.token('host')}.example.org\r\n\r\n".encode()
    yield "body", request("/ws/beacon", method="POST", body=wallet.token("body").encode())
    yield "kick", request("/ws/kick", method="POST", body=wallet.token("kick body").encode())


def broken_heads(wallet: Wallet) -> Iterator[tuple[str, bytes]]:
    """Yield what is no HTTP, with a good token in it."""
    start = b"GET /ws HTTP/1.1\r\nHost: localhost\r\n"

    def carried(what: str) -> bytes:
        return b"Authorization: Bearer " + wallet.token(what).encode()

    yield "no colon", start + carried("no colon").replace(b":", b"") + b"\r\n\r\n"
    yield "NUL", start + carried("NUL") + b"\0\r\n\r\n"
    yield "folded", start + b"Authorization:\r\n Bearer " + wallet.token("folded").encode() + b"\r\n\r\n"
    yield "two hosts", start + b"Host: other\r\n" + carried("two hosts") + b"\r\n\r\n"
    yield "no host", b"GET /ws HTTP/1.1\r\n" + carried("no host") + b"\r\n\r\n"
    yield "two lengths", start + carried("two lengths") + b"\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
    yield "coding", start + carried("coding") + b"\r\nTransfer-Encoding: nonsense\r\n\r\n"
    yield "half", start + carried("half")
    yield "huge", start + carried("huge") + b"\r\nX-Much: " + b"x" * 20_000 + b"\r\n\r\n"
    yield "glued garbage", upgrade(bearer=wallet.token("glued garbage")) + b"\xff" + carried("in glued garbage")
    yield "only a token", wallet.token("only a token").encode() + b"\r\n\r\n"
    yield "TLS", b"\x16\x03\x01\x02\x00\x01" + carried("TLS")
    chunked = b"POST /ws/beacon HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    yield "bad chunk", chunked + carried("bad chunk") + b"\r\n\r\n" + carried("as a chunk") + b"\r\n\r\n"


def bad_frames(wallet: Wallet) -> Iterator[tuple[str, bytes]]:
    """Yield frames that end a connection, with a token in them."""

    def payload(what: str) -> bytes:
        return wallet.token(what).encode()

    yield "binary", frame(BINARY, payload("binary"))
    yield "bad UTF-8", frame(TEXT, payload("bad UTF-8") + b"\xff")
    yield "reserved", frame(TEXT, payload("reserved"), rsv=4)
    yield "opcode", frame(0x3, payload("opcode"))
    yield "unmasked", frame(TEXT, payload("unmasked"), mask=None)
    yield "continuation", frame(0x0, payload("continuation"))
    yield "long ping", frame(PING, payload("long ping") + b"x" * 200)
    yield "bad close", frame(CLOSE, close_payload(1005, wallet.token("bad close")[:60]))
    yield "token in a close", frame(CLOSE, close_payload(1000, wallet.token("token in a close")[-60:]))


async def ask(ear: Ear, wallet: Wallet, what: str, type_name: str, **fields: object) -> None:
    """Say a command on a connection of its own, up to its answer; to be closed is an answer, too."""
    async with ear.dial(f"command {what}") as client:
        await client.open(upgrade(bearer=wallet.token(f"before {what}")))
        with contextlib.suppress(AssertionError, Ended):
            await client.ask(type_name, **fields)


async def talk(ear: Ear, wallet: Wallet) -> None:
    """Say a token in commands where one belongs and where none does.

    Not in a text, a title or an id: those are kept and said again, whatever they are.
    """
    for what in ("good", "expired", "foreign"):
        user = "bob" if what == "foreign" else "ada"
        token = wallet.token(f"refresh {what}", user=user, expires_s=-60.0 if what == "expired" else 600.0)
        await ask(ear, wallet, f"refresh {what}", "refresh_auth", token=token)
        await ask(ear, wallet, f"payload {what}", "refresh_auth", payload={"token": token})
    wrong: list[tuple[str, str, dict[str, object]]] = [
        ("in a list", "refresh_auth", {"token": [wallet.token("in a list")]}),
        ("kick", "kick", {"jti": wallet.token("kick")}),
        ("thread", "get_thread_history", {"thread_id": wallet.token("thread")}),
        ("run", "stop_agent", {"run_id": wallet.token("run")}),
        ("agent", "start_agent", {"user_request": "x", "agent": wallet.token("agent")}),
        ("on_busy", "start_agent", {"user_request": "x", "on_busy": wallet.token("on_busy")}),
        ("field", "ping", {"token": wallet.token("field"), "authorization": wallet.token("other field")}),
        ("epoch", "resume", {"epoch": wallet.token("epoch"), "seq": 0}),
        ("type", wallet.token("type"), {}),
    ]
    for what, type_name, fields in wrong:
        await ask(ear, wallet, what, type_name, **fields)
    rpc = '{"jsonrpc":"2.0","id":1,"method":"refresh_auth","params":{"token":"%s"}}'
    async with ear.dial("commands as text") as client:
        await client.open(upgrade(bearer=wallet.token("commands as text")))
        await client.say('{"type":"refresh_auth","token":"' + wallet.token("broken JSON"))
        await client.say(rpc % wallet.token("JSON-RPC"))
        with contextlib.suppress(AssertionError, Ended):
            await client.ask("ping")


async def run_agent(ear: Ear, wallet: Wallet, name: str) -> None:
    """Have an agent run, to its end, on a connection with a token of its own."""
    async with ear.dial(f"agent {name}") as client:
        await client.open(upgrade(bearer=wallet.token(f"agent {name}")))
        await client.send("start_agent", user_request="go", agent=name)
        await client.until("agent_completed")


async def suffer_bugs(ear: Ear, wallet: Wallet) -> None:
    """Meet bugs of the server's own, in its door, in a seat, in a command, and errors of the store."""
    await run_agent(ear, wallet, "break_door")
    for query in ("accident", "later"):
        await ear.exchange(f"bug {query}", upgrade(f"/ws?{query}=1", bearer=wallet.token(f"bug {query}")))
    await run_agent(ear, wallet, "break_commands")
    async with ear.dial("bugs of commands") as client:
        await client.open(upgrade(bearer=wallet.token("bugs of commands")))
        await client.ask("refresh_auth", token=wallet.token("refresh with a bug"))
        await client.ask("stop_agent", run_id="no-run", reason="broken")
        await client.ask("create_thread", title="away")


async def do_everything(process: Process, wallet: Wallet) -> Ear:
    """Do everything that somebody can do with a token; return what was heard."""
    ear = Ear(process.port)
    for what, head in good_carriers(wallet):
        async with ear.dial(what) as client:
            await client.open(head, welcome=what != "echo")
    for what, data in (*bad_carriers(wallet), *wrong_places(wallet), *broken_heads(wallet)):
        await ear.exchange(what, data)
    async with ear.dial("reset in the head") as client:
        await client.send_bytes(upgrade(bearer=wallet.token("reset"))[:-2])
    for what, data in bad_frames(wallet):
        async with ear.dial(what) as client:
            await client.open(upgrade(bearer=wallet.token(f"before {what}")))
            await client.send_bytes(data)
            with contextlib.suppress(Ended):
                await client.receive_close()
    await talk(ear, wallet)
    await try_tickets(ear, wallet)
    operator = wallet.token("operator")
    for page in PAGES:
        await ear.exchange(page, request(page, [("authorization", f"Bearer {operator}")]))
        await ear.exchange(f"{page} for nobody", request(page))
    for name in ("claims", "quoting"):
        await run_agent(ear, wallet, name)
    async with ear.dial("held open") as client:
        await client.open(upgrade(bearer=wallet.token("held open")))
        await run_agent(ear, wallet, "reprs")
    await suffer_bugs(ear, wallet)
    return ear


async def try_tickets(ear: Ear, wallet: Wallet) -> None:
    """Take a ticket, use it, use it again; only the answer that gives it may hold it."""
    async with ear.dial("ticket") as client:
        bearer = [("authorization", f"Bearer {wallet.token('for a ticket')}")]
        await client.send_bytes(request("/ws/ticket", bearer, method="POST"))
        answer = await client.read_answer()
    if answer.status == 200:
        given = ear.heard.pop("ticket")
        ticket = wallet.marks.secret("ticket", answer.json()["ticket"])
        ear.heard["ticket, but for itself"] = bytearray(given.replace(ticket.encode(), b""))
        for what in ("ticket used", "ticket used again"):
            await ear.exchange(what, upgrade(f"/ws?ticket={quote(ticket)}"))


@pytest.mark.parametrize("dev_mode", [False, True], ids=["plain", "dev mode"])
@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_nothing_secret_leaves_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_format: str, dev_mode: bool
) -> None:
    """Logs, answers, frames, metrics, the database and the command line show no secret and no token."""
    if dev_mode:
        monkeypatch.setenv("PYTHONDEVMODE", "1")
    marks = Marks()
    wallet = Wallet(marks)
    settings = {
        "AUTH_SECRET": marks.secret("auth.secret", SECRET),
        "AUTH_QUERY_TOKEN": "true",
        "LOG_LEVEL": "debug",
        "LOG_FORMAT": log_format,
    }
    marks.secret("a foreign secret", OTHER_SECRET)
    async with serving(tmp_path, settings, agents=AGENTS, names=NAMES) as process:
        argv = Path(f"/proc/{process.popen.pid}/cmdline")  # type: ignore[union-attr]
        places: dict[str, bytes | str] = {"argv": argv.read_bytes() if argv.exists() else b""}
        ear = await do_everything(process, wallet)
        with sqlite3.connect(tmp_path / "load.db") as other:
            other.execute("ALTER TABLE thread RENAME TO gone")  # the store fails from here on
        async with ear.dial("without a store") as client:
            await client.open(upgrade(bearer=wallet.token("without a store")))
            assert (await client.ask("list_threads"))["code"] == "UNAVAILABLE"
        other.execute("ALTER TABLE gone RENAME TO thread")
        other.close()
        await eventually(lambda: "a bug with" in process.log())
        process.signal()
        await process.ended()
        log = process.log()
    del ear.heard["token in a close"]  # a Close is answered with its own words (RFC 6455 §5.5.1)
    places |= {f"answer to {what}": bytes(said) for what, said in ear.heard.items()}
    places |= {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    # The scenario is worth nothing where it did not happen.
    assert log.count("a bug with") >= 3, log
    assert "cannot work for" in log
    assert "kinds: " in log
    assert len(marks) > 100
    assert not (found := marks.leaks(places)), "\n".join(found)
