from __future__ import annotations

import base64
import hashlib
import json
import time
from typing import Any

import pytest
import trio

from netra_ws.access import mint
from netra_ws.errors import Refused
from netra_ws.identity import Identity
from netra_ws.settings import Settings
from netra_ws.wire.head import Head
from tests.conftest import StartServer
from tests.kit import (
    BINARY,
    PONG,
    SECRET,
    TEXT,
    Answer,
    connect,
    exchange,
    frame,
    http,
    raw,
    request,
    token,
    upgrade,
    upgrade_headers,
)


def refused(answer: Answer, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is a refusal as PROTOCOL §1 describes it."""
    assert (answer.status, answer.json()["code"]) == (status, code)
    assert set(answer.json()) == {"code", "error"}
    assert "close" in answer.headers["connection"].lower()
    fields: dict[str, Any] = answer.json()
    return fields


def signed_in() -> tuple[str, str]:
    return "authorization", f"Bearer {token()}"


# What is refused before the 101.


async def test_a_request_that_is_no_upgrade_is_426(server: StartServer) -> None:
    """A plain GET of the endpoint learns what is spoken here."""
    answer = await http(await server(), "/ws", bearer=token())
    refused(answer, 426, "UPGRADE_REQUIRED")
    assert answer.headers["upgrade"] == "websocket"
    assert answer.headers["sec-websocket-version"] == "13"
    assert "upgrade" in answer.headers["connection"].lower()


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        (upgrade_headers(sec_websocket_version="8"), 426, "UPGRADE_REQUIRED"),
        (upgrade_headers(connection="close"), 426, "UPGRADE_REQUIRED"),
        (upgrade_headers(sec_websocket_key="short"), 400, "BAD_REQUEST"),
        ([*upgrade_headers(), ("content-length", "3")], 400, "BAD_REQUEST"),
        ([*upgrade_headers(), ("origin", "https://evil.example")], 403, "ORIGIN_REFUSED"),
        (
            [*upgrade_headers(), ("origin", "http://localhost"), ("origin", "https://evil.example")],
            403,
            "ORIGIN_REFUSED",
        ),
        ([*upgrade_headers(), ("x-large", "a" * 40_000)], 413, "HEAD_TOO_LARGE"),
    ],
)
async def test_a_faulty_upgrade_gets_its_status(
    headers: list[tuple[str, str]], status: int, code: str, server: StartServer
) -> None:
    """Faults of the head are told by status and code, also to somebody with a good token."""
    refused(await exchange(await server(), request("/ws", [*headers, signed_in()])), status, code)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], "TOKEN_MISSING"),
        ([("authorization", "Basic YTpi")], "TOKEN_MISSING"),
        ([("authorization", "Bearer nonsense")], "TOKEN_INVALID"),
        ([("authorization", f"Bearer {token(expires_s=-60)}")], "TOKEN_EXPIRED"),
        ([signed_in(), signed_in()], "TOKEN_INVALID"),
        ([("authorization", f"Bearer {mint('x' * 32, 'ada', None, 60, time.time())}")], "TOKEN_INVALID"),
        ([("sec-websocket-protocol", "netra.v1, jwt.###")], "TOKEN_INVALID"),
        ([("sec-websocket-protocol", "netra.v1, jwt.\xe9")], "TOKEN_INVALID"),
    ],
)
async def test_no_good_token_no_socket(headers: list[tuple[str, str]], code: str, server: StartServer) -> None:
    """Without one valid token the answer is 401, and says by which scheme to come back."""
    answer = await exchange(await server(), request("/ws", [*upgrade_headers(), *headers]))
    refused(answer, 401, code)
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_token_in_the_query_is_refused_where_it_is_not_allowed(server: StartServer) -> None:
    """Outside development ``?token=`` is no carrier."""
    refused(await exchange(await server(), upgrade(f"/ws?token={token()}")), 401, "TOKEN_MISSING")


@pytest.mark.parametrize("path", ["/nothing", "/ws/", "//ws", "/ws/echo/", "/%77s"])
async def test_an_unknown_path_is_404(path: str, server: StartServer) -> None:
    """What does not exist is not found, upgrade or not."""
    running = await server()
    refused(await http(running, path), 404, "NOT_FOUND")
    refused(await exchange(running, upgrade(path, bearer=token())), 404, "NOT_FOUND")


async def test_another_method_is_405(server: StartServer) -> None:
    """Methods that nothing here knows are refused with those that exist."""
    answer = await http(await server(), "/ws", method="DELETE")
    refused(answer, 405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"


@pytest.mark.parametrize(
    "resume", ["", "x", "x:", ":5", "x:-1", "x:1.5", "x:%d9%a3", "x:1e3", "e" * 65 + ":1", "a:" + "9" * 20, "a:1:2"]
)
async def test_a_malformed_resume_is_400(resume: str, server: StartServer) -> None:
    """A position that cannot be read is refused, not ignored."""
    refused(await exchange(await server(), upgrade(f"/ws?resume={resume}", bearer=token())), 400, "BAD_REQUEST")


async def test_a_malformed_thread_is_400(server: StartServer) -> None:
    """The thread in the URL follows the rule of ids."""
    refused(await exchange(await server(), upgrade("/ws?thread_id=a%20b", bearer=token())), 400, "BAD_REQUEST")


async def test_too_many_attempts_are_429_with_retry_after(server: StartServer) -> None:
    """An address above its budget learns when to come back."""
    running = await server(limits__connects_per_minute_per_address=2)
    for _ in range(2):
        async with connect(running):
            pass
    answer = await exchange(running, upgrade(bearer=token()))
    refused(answer, 429, "RATE_LIMITED")
    assert 1 <= int(answer.headers["retry-after"]) <= 60


async def test_failed_attempts_have_a_smaller_budget(server: StartServer) -> None:
    """Guessing tokens locks the address out, for good tokens as well."""
    running = await server(limits__failed_connects_per_minute_per_address=2)
    for _ in range(2):
        assert (await exchange(running, upgrade(bearer="guess"))).status == 401
    assert (await exchange(running, upgrade(bearer=token()))).status == 429


async def test_too_many_connections_of_a_user_are_429(server: StartServer) -> None:
    """The newest connection of a user is refused; another user is not concerned, and one that leaves makes room."""
    running = await server(limits__max_connections_per_user=2)
    async with connect(running), connect(running) as second:
        answer = await exchange(running, upgrade(bearer=token()))
        refused(answer, 429, "TOO_MANY_CONNECTIONS")
        assert int(answer.headers["retry-after"]) >= 1
        async with connect(running, "bob"):
            pass
        await second.finish()
        await second.stream.aclose()
        await until_seats(running, 1)
        async with connect(running):
            pass


async def until_seats(running: Any, count: int) -> None:
    with trio.fail_after(5):
        while running.registry.seats > count:
            await trio.sleep(0.01)


async def test_a_full_server_is_503_with_retry_after(server: StartServer) -> None:
    """A server without room says so, and pages still work."""
    running = await server(limits__max_connections=1)
    async with connect(running):
        answer = await exchange(running, upgrade(bearer=token("bob")))
        refused(answer, 503, "OVERLOADED")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await http(running, "/health")).status == 200


async def test_a_draining_server_is_503_with_retry_after(server: StartServer) -> None:
    """A server that is about to stop sends newcomers elsewhere."""
    running = await server()
    await running.drain(0.0)
    answer = await exchange(running, upgrade(bearer=token()))
    refused(answer, 503, "DRAINING")
    assert int(answer.headers["retry-after"]) >= 1


async def test_the_outcome_of_each_attempt_is_counted(server: StartServer) -> None:
    """Operators see how attempts to connect ended."""
    running = await server()
    async with connect(running):
        pass
    await exchange(running, upgrade())
    await exchange(running, request("/ws"))
    assert running.door.outcomes == {"accepted": 1, "TOKEN_MISSING": 1, "UPGRADE_REQUIRED": 1}


async def test_a_program_may_authenticate_in_its_own_way(server: StartServer) -> None:
    """The embedding program's rule replaces tokens; its refusal is the client's answer."""

    async def by_name(head: Head) -> Identity:
        name = head.get(b"x-user")
        if name is None:
            raise Refused(401, "WHO", "Say who you are.")
        return Identity(user_id=name.decode())

    running = await server(authenticate=by_name)
    async with raw(running) as client:
        await client.open(upgrade(headers=[("x-user", "grace")]))
        assert client.welcome["user_id"] == "grace"
    refused(await exchange(running, upgrade(bearer=token())), 401, "WHO")


# What is accepted.


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("path", ["/ws", "/websocket", "/api/v1/websocket"])
async def test_each_endpoint_takes_a_bearer_token(path: str, server: StartServer) -> None:
    """The three endpoints are the same, and the 101 proves that the key was read (RFC 6455 §4.2.2)."""
    key = base64.b64encode(b"0123456789abcdef").decode()
    async with raw(await server()) as client:
        await client.open(upgrade(path, bearer=token(), key=key))
        assert client.welcome["user_id"] == "ada"
        assert client.answer is not None
        digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        assert client.answer.headers["sec-websocket-accept"] == base64.b64encode(digest).decode()
        assert client.answer.headers["upgrade"].lower() == "websocket"
        assert client.answer.headers["connection"].lower() == "upgrade"
        assert "sec-websocket-extensions" not in client.answer.headers


@pytest.mark.parametrize("start", ["jwt", "jwt-auth", "bearer"])
@pytest.mark.parametrize("word", ["", "local."])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("beside", [["netra.v1"], ["jwt-auth"], []])
async def test_a_subprotocol_may_carry_the_token(
    start: str, word: str, packed: bool, beside: list[str], server: StartServer
) -> None:
    """Every carrier of PROTOCOL §1 works, and the entry with the token is never echoed."""
    bare = token()
    offer = [f"{start}.{word}{encoded(bare) if packed else bare}", *beside]
    async with raw(await server()) as client:
        await client.open(upgrade(protocols=offer))
        assert client.welcome["user_id"] == "ada"
        assert client.answer is not None
        assert client.answer.headers.get("sec-websocket-protocol") == (beside[0] if beside else None)
        assert bare not in str(client.answer)


async def test_a_query_may_carry_the_token_where_settings_allow_it(server: StartServer) -> None:
    """``?token=`` works in development."""
    async with raw(await server(auth__query_token=True)) as client:
        await client.open(upgrade(f"/ws?token={token('eve')}"))
        assert client.welcome["user_id"] == "eve"


async def test_the_first_carrier_wins(server: StartServer) -> None:
    """Header before subprotocol before query."""
    running = await server(auth__query_token=True)
    offer = ("netra.v1", f"jwt.{token('second')}")
    async with raw(running) as client:
        await client.open(upgrade(f"/ws?token={token('third')}", bearer=token("first"), protocols=offer))
        assert client.welcome["user_id"] == "first"
    async with raw(running) as client:
        await client.open(upgrade(f"/ws?token={token('third')}", protocols=offer))
        assert client.welcome["user_id"] == "second"


@pytest.mark.parametrize(
    ("offers", "chosen"),
    [
        (["chat", "netra.v1", "jwt-auth"], "netra.v1"),
        (["jwt-auth", "netra.v1"], "netra.v1"),
        (["chat", "jwt-auth"], "jwt-auth"),
        (["chat"], None),
        ([], None),
    ],
)
async def test_the_chosen_subprotocol(offers: list[str], chosen: str | None, server: StartServer) -> None:
    """``netra.v1`` if offered, else ``jwt-auth``, else none."""
    async with connect(await server(), protocols=offers) as client:
        assert client.answer is not None
        assert client.answer.headers.get("sec-websocket-protocol") == chosen


async def test_the_welcome_tells_what_a_client_needs(server: StartServer) -> None:
    """The first frame is ``connection_established`` with every field of PROTOCOL §1."""
    async with connect(await server(limits__max_runs_per_user=3, timing__resume_window_s=7)) as client:
        welcome = client.welcome
        assert set(welcome) - {"timestamp"} == {
            "type",
            "connection_id",
            "user_id",
            "protocol",
            "server_time",
            "heartbeat_interval_s",
            "pong_timeout_s",
            "limits",
            "stream",
            "resume_window_s",
            "resumed",
            "active_runs",
            "pending_inputs",
            "agents",
            "connection_ready",
        }
        assert welcome["limits"] == {
            "max_message_bytes": 1_048_576,
            "messages_per_minute": 1000,
            "max_connections_per_user": 10,
            "max_runs_per_user": 3,
        }
        assert abs(welcome["server_time"] - time.time()) < 5
        assert (welcome["resume_window_s"], welcome["resumed"], welcome["connection_ready"]) == (7, False, True)
        assert welcome["agents"] == ["assistant", "echo"]


async def test_frames_glued_to_the_upgrade_are_served_after_the_welcome(server: StartServer) -> None:
    """What a client sends in one piece with its upgrade is answered, in order."""
    async with raw(await server()) as client:
        said = [frame(TEXT, json.dumps({"type": "ping", "id": f"p{n}"})) for n in range(3)]
        half = frame(TEXT, json.dumps({"type": "heartbeat", "id": "h"}))
        await client.open(upgrade(bearer=token()) + b"".join(said) + half[:7])
        assert [(await client.receive())["reply_to"] for _ in range(3)] == ["p0", "p1", "p2"]
        await client.send_bytes(half[7:])
        assert (await client.receive())["type"] == "heartbeat_ack"


@pytest.mark.parametrize("count", [1, 100])
async def test_frames_glued_to_the_upgrade_are_echoed(count: int, server: StartServer) -> None:
    """The echo endpoint gives back glued text and binary messages unchanged, after nothing but the 101."""
    async with raw(await server()) as client:
        glued = frame(TEXT, "ünï") + frame(BINARY, b"\x00\xff") + frame(TEXT, "")
        await client.open(upgrade("/ws/echo", bearer=token()) + glued * count, welcome=False)
        for _ in range(count):
            received = [await client.receive_data() for _ in range(3)]
            assert [(one.opcode, one.payload) for one in received] == [
                (TEXT, "ünï".encode()),
                (BINARY, b"\x00\xff"),
                (TEXT, b""),
            ]
        assert (await client.finish(1000)).code == 1000


async def test_the_echo_endpoint_exists_only_in_testing(server: StartServer) -> None:
    """Elsewhere ``/ws/echo`` is not found; and it asks for a token as ``/ws`` does."""
    testing = await server()
    refused(await exchange(testing, upgrade("/ws/echo")), 401, "TOKEN_MISSING")
    plain = {"server.port": 0, "store.url": "memory:", "auth.secret": SECRET}
    development = await server(Settings.make(plain, environment="development"))
    refused(await exchange(development, upgrade("/ws/echo", bearer=token())), 404, "NOT_FOUND")


async def test_an_older_client_gets_its_handshake(server: StartServer) -> None:
    """A client with its token in a subprotocol and without ``netra.v1`` is led through the older handshake."""
    async with raw(await server()) as client:
        await client.open(upgrade(protocols=("jwt-auth", f"jwt.{token()}")))
        seen = await client.until("handshake_response")
        response = seen[-1]
        assert response["run_id"] is None
        assert response["thread_id"]
        assert {"request_id", "session_token", "timestamp", "message"} <= set(response)
        await client.send("handshake_acknowledged", thread_id=response["thread_id"], timestamp=time.time())
        complete = await client.receive()
        assert (complete["type"], complete["thread_id"]) == ("handshake_complete", response["thread_id"])


async def test_a_resume_of_an_unknown_epoch_is_a_reset(server: StartServer) -> None:
    """Where a position cannot be continued nothing partial is sent, only the reset."""
    async with connect(await server(), path="/ws?resume=nothing:5") as client:
        assert client.welcome["resumed"] is False
        reset = await client.receive()
        assert (reset["type"], reset["reason"]) == ("stream_reset", "epoch_changed")
        assert (reset["epoch"], reset["seq"]) == (client.welcome["stream"]["epoch"], client.welcome["stream"]["seq"])


async def test_a_resume_goes_on_where_the_client_was(server: StartServer) -> None:
    """What came after the position is replayed in order, then ``replay_completed`` stands before what is live."""
    running = await server()
    async with connect(running) as client:
        epoch = client.welcome["stream"]["epoch"]
        await client.send("user_message", id="m", content="hi", agent="echo", thread_id="t")
        seen = [message for message in await client.until("agent_completed") if "seq" in message]
    middle = seen[2]["seq"]
    async with connect(running, path=f"/ws?resume={epoch}:{middle}") as client:
        assert client.welcome["resumed"] is True
        again = await client.until("replay_completed")
        durable = [message["seq"] for message in seen[3:]]
        assert [message["seq"] for message in again[:-1]] == durable
        done = again[-1]
        assert (done["from_seq"], done["to_seq"], done["complete"]) == (middle, seen[-1]["seq"], True)
        assert done["count"] == len(durable)


async def test_pings_before_anything_else_are_ponged(server: StartServer) -> None:
    """A ping glued to the upgrade gets its pong behind the 101."""
    async with raw(await server()) as client:
        await client.open(upgrade(bearer=token()) + frame(0x9, b"early"), welcome=False)
        frames = [await client.receive_frame() for _ in range(2)]
        assert sorted(one.opcode for one in frames) == [TEXT, PONG]
        assert next(one for one in frames if one.opcode == PONG).payload == b"early"
