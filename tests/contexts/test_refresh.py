"""``refresh_auth``: a connection outlives its token, with what the new one allows, and nothing else."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import trio

import netra_ws
from netra_ws import Identity, Refused, Run
from netra_ws.access import mint
from netra_ws.wire.head import Head

from ..conftest import StartServer
from ..kit import PING, SECRET, connect, http, operator, raw, token, upgrade


class Clock:
    """A clock that stands still until it is put forward."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now

    def token(self, user: str = "ada", expires_s: float = 100.0, permissions: Any = None, **claims: object) -> str:
        return mint(SECRET, user, permissions, expires_s, self.now, **claims)


async def say(run: Run) -> str:
    await run.say(" ".join(sorted(run.identity.permissions)))
    return "done"


async def test_a_renewed_connection_goes_on(server: StartServer) -> None:
    """Behind the old token's end everything works with the new one; the answer says until when."""
    clock = Clock()
    running = await server(clock=clock)
    async with connect(running, bearer=clock.token(expires_s=100)) as client:
        fresh = clock.token(expires_s=1000)
        answer = await client.ask("refresh_auth", token=fresh)
        assert answer["type"] == "auth_refreshed"
        assert abs(answer["expires_at"] - (clock.now + 1000)) < 0.01
        clock.now += 500
        assert (await client.ask("list_threads"))["type"] == "thread_list"
        clock.now += 501
        assert (await client.ask("list_threads"))["code"] == "AUTH_FAILED"


async def test_after_the_end_it_can_still_be_renewed(server: StartServer) -> None:
    """In the grace after exp a client is told AUTH_FAILED for everything else and renews all the same."""
    clock = Clock()
    running = await server(clock=clock)
    async with connect(running, bearer=clock.token(expires_s=100)) as client:
        clock.now += 110
        assert (await client.ask("chat", content="x"))["code"] == "AUTH_FAILED"
        assert (await client.ask("refresh_auth", token=clock.token()))["type"] == "auth_refreshed"
        assert (await client.ask("chat", content="x", agent="echo"))["type"] == "ack"


async def test_permissions_count_at_once(server: StartServer) -> None:
    """What the new token does not allow is FORBIDDEN from then on, and what it allows works; runs that go on stay."""
    running = await server(agents={"say": say})
    async with connect(running, permissions=("chat", "read")) as client:
        assert (await client.ask("list_threads"))["type"] == "thread_list"
        await client.ask("refresh_auth", token=token(permissions=("chat",)))
        assert (await client.ask("list_threads"))["code"] == "FORBIDDEN"
        assert (await client.ask("kick", user_id="bob"))["code"] == "FORBIDDEN"
        assert (await client.ask("start_agent", user_request="x", agent="say", id="s"))["type"] == "ack"
        await client.ask("refresh_auth", token=operator("ada"))
        assert (await client.ask("kick", user_id="bob"))["type"] == "ack"
        await client.send("start_agent", user_request="x", agent="say")
        said = await client.until("agent_message", phase="full")
        assert said[-1]["content"] == "chat operator read"


async def test_without_read_nothing_more_is_shown(server: StartServer) -> None:
    """A connection that loses ``read`` gets no event any more; with it back, it is told what it missed."""
    running = await server()
    async with connect(running) as tab, connect(running) as client:
        await client.ask("refresh_auth", id="less", token=token(permissions=("chat",)))
        seq = client.welcome["stream"]["seq"]
        unseen = (await tab.ask("create_thread", thread_id="unseen"))["type"]
        assert unseen == "thread_created"
        await client.send("refresh_auth", id="more", token=token(permissions=("chat", "read")))
        told = [await client.receive(), await client.receive()]
        assert sorted(each["type"] for each in told) == ["auth_refreshed", "lagging"]
        lagging = next(each for each in told if each["type"] == "lagging")
        assert (lagging["skipped"], lagging["from_seq"], lagging["to_seq"]) == (1, seq, seq + 1)
        await tab.ask("create_thread", thread_id="seen")
        event = await client.receive()
        assert (event["type"], event["thread_id"]) == ("thread_created", "seen")
        await client.send("resume", epoch=client.welcome["stream"]["epoch"], seq=seq)
        replayed = await client.until("replay_completed")
        assert [each.get("thread_id") for each in replayed[1:-1]] == ["unseen", "seen"]


async def test_a_resume_without_read_is_told(server: StartServer) -> None:
    """Who asks for a replay and may not read hears so at once, instead of waiting for it."""
    running = await server()
    async with connect(running, path="/ws?resume=abc:5", permissions=("chat",)) as client:
        answer = await client.receive()
        assert (answer["type"], answer["code"]) == ("error", "FORBIDDEN")
        assert client.welcome["resumed"] is False


@pytest.mark.parametrize(
    ("bearer", "reason"),
    [
        (lambda: token("bob"), "OTHER_USER"),
        (lambda: token(expires_s=-60), "TOKEN_EXPIRED"),
        (lambda: "not.a.token", "TOKEN_INVALID"),
        (lambda: "", "TOKEN_INVALID"),
        (lambda: " ", "TOKEN_INVALID"),
        (lambda: "\n" + token(), "TOKEN_INVALID"),
        (lambda: token() + " x", "TOKEN_INVALID"),
        (lambda: "ä", "TOKEN_INVALID"),
        (lambda: "x" * 9000, "TOKEN_INVALID"),
        (lambda: mint("another secret of 32 bytes or more!", "ada", None, 60, time.time()), "TOKEN_INVALID"),
    ],
    ids=["other user", "expired", "garbage", "empty", "blank", "line", "two", "letters", "long", "other secret"],
)
async def test_a_bad_token_changes_nothing(server: StartServer, bearer: Any, reason: str) -> None:
    """A token that is not good, or is another user's, answers AUTH_FAILED; the connection goes on under its old one."""
    running = await server()
    async with connect(running, path="/ws?token=x", protocols=("netra.v1", f"jwt.{token()}")) as client:
        answer = await client.ask("refresh_auth", token=bearer())
        assert (answer["code"], answer["details"]) == ("AUTH_FAILED", {"reason": reason})
        assert bearer().strip() not in json.dumps(answer) or not bearer().strip()
        assert (await client.ask("list_threads"))["type"] == "thread_list"


async def test_failed_refreshes_are_counted(server: StartServer) -> None:
    """Tokens are not guessed over an open socket: the failures of an address count there as at the door."""
    running = await server(limits__failed_connects_per_minute_per_address=3)
    async with connect(running) as client:
        for _ in range(3):
            assert (await client.ask("refresh_auth", token="a.b.c"))["code"] == "AUTH_FAILED"
        answer = await client.ask("refresh_auth", token=token())
        assert (answer["code"], answer["retryable"]) == ("RATE_LIMITED", True)
        assert answer["retry_after_s"] > 0
        assert (await client.ask("list_threads"))["type"] == "thread_list"
    assert (await http(running, "/ws/stats", bearer=operator())).status == 429


async def test_a_revoked_token_renews_nothing(server: StartServer) -> None:
    """A token that was called back is refused on an open connection as at the door."""
    running = await server()
    revoked = token(jti="gone")
    async with connect(running) as client, connect(running, "root", bearer=operator()) as boss:
        await boss.ask("kick", jti="gone")
        answer = await client.ask("refresh_auth", token=revoked)
        assert (answer["code"], answer["details"]) == ("AUTH_FAILED", {"reason": "TOKEN_REVOKED"})


async def test_a_shorter_token_ends_the_connection_sooner(server: StartServer) -> None:
    """The warning comes at once for a token that ends within a minute, and 4003 at its end, not the old one's."""
    running = await server(auth__expiry_grace_s=0.3)
    async with connect(running, expires_s=3600) as client:
        await client.send("refresh_auth", token=token(expires_s=1.2), id="r")
        seen = await client.until("auth_expiring")
        assert 0 < seen[-1]["expires_in_s"] <= 1.3
        close = await client.receive_close()
        assert close.code == 4003


async def test_a_longer_token_is_warned_of_anew(server: StartServer) -> None:
    """After a refresh within the last minute there is a warning for the new end, when that is near, too."""
    running = await server(auth__expiry_grace_s=60)
    async with connect(running, expires_s=30) as client:
        first = (await client.until("auth_expiring"))[-1]
        await client.send("refresh_auth", token=token(expires_s=50))
        second = (await client.until("auth_expiring"))[-1]
        assert second["expires_at"] > first["expires_at"] + 10


async def test_a_session_outlives_its_tokens(server: StartServer) -> None:
    """A client whose token is a function stays on one connection for longer than any of its tokens lives."""
    running = await server(auth__expiry_grace_s=0.1, auth__leeway_s=0.0)
    states: list[str] = []
    made: list[float] = []

    def fresh() -> str:
        made.append(time.time())
        return token(expires_s=1.0)

    async with netra_ws.connect(running.url, fresh, on_state=lambda change: states.append(change.state.value)) as me:
        await trio.sleep(2.5)
        await me.threads()
        assert states.count("open") == 1
        assert 3 <= len(made) <= 12


async def test_the_rule_of_a_program_is_asked(server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``authenticate`` the new token is shown to the program's own rule, as the head of the client would.

    It has its own time; one that does not answer is UNAVAILABLE, since it says nothing about the token.
    """
    monkeypatch.setattr("netra_ws.contexts.dispatch.READ_S", 0.1)
    seen: list[tuple[bytes | None, bytes | None]] = []

    async def authenticate(head: Head) -> Identity:
        key = head.get(b"authorization")
        seen.append((key, head.get(b"cookie")))
        if key == b"Bearer good":
            return Identity("ada", expires_at=time.time() + 60)
        if key == b"Bearer slow":
            await trio.sleep_forever()
        raise Refused(401, "NO_KEY", "No key.")

    running = await server(authenticate=authenticate, timing__handshake_s=1)
    async with raw(running) as client:
        await client.open(upgrade("/ws", bearer="good", headers=[("cookie", "a=b")]))
        assert (await client.ask("refresh_auth", token="good"))["type"] == "auth_refreshed"
        assert (await client.ask("refresh_auth", token="bad"))["details"] == {"reason": "NO_KEY"}
        assert seen[-1] == (b"Bearer bad", b"a=b")
        answer = await client.ask("refresh_auth", token="slow")
        assert (answer["code"], answer["retryable"]) == ("UNAVAILABLE", True)
        assert "store" not in answer["error"]


async def test_a_rule_that_errs_ends_nothing(server: StartServer) -> None:
    """A rule that says nonsense about a new token is an error for this client, and nobody else notices."""

    async def authenticate(head: Head) -> Identity:
        odd: Any = "tomorrow"
        good = head.get(b"authorization") == b"Bearer good"
        return Identity("ada", expires_at=time.time() + 60 if good else odd)

    running = await server(authenticate=authenticate, timing__heartbeat_interval_s=0.5)
    async with raw(running) as client, raw(running) as other:
        for each in (client, other):
            await each.open(upgrade("/ws", bearer="good"))
        assert (await client.ask("refresh_auth", token="bad"))["code"] == "UNAVAILABLE"
        assert (await client.receive_frame()).opcode == PING  # so somebody has looked after both since
        assert (await other.ask("ping"))["type"] == "pong"
