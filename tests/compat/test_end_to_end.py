"""The older system's end-to-end topics, as a program that was written for it has them: another library's client in a
process of its own, the older frames, and a real server.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.end_to_end.needs import need
from tests.end_to_end.serving import ServerProcess, running_server

sync = need("websockets.sync.client")
exceptions = need("websockets.exceptions")

CRITICAL = ["agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_completed"]
QUESTION, ANSWER = "What is 17% of 2,340?", "17% of 2,340 = 397.8"
#: Seconds after which something that does not come fails the test.
PATIENCE_S = 10.0

Message = dict[str, Any]


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server in a process of its own; tests that share it come as different users."""
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@attrs.define
class Program:
    """A program of the older system: flat messages with everything it ever put into them."""

    socket: Any
    user: str
    welcome: Message

    def send(self, type_name: str, **fields: object) -> None:
        now = datetime.now(UTC).isoformat()
        self.socket.send(json.dumps({"type": type_name, "user_id": self.user, "timestamp": now, **fields}))

    def receive(self) -> Message:
        message: Message = json.loads(self.socket.recv(timeout=PATIENCE_S))
        return message

    def until(self, *types: str) -> list[Message]:
        """Read up to the first message of one of these types."""
        seen = [self.receive()]
        while seen[-1]["type"] not in types:
            seen.append(self.receive())
        return seen

    def close_code(self) -> int:
        """Read up to the end of the connection, and return its code."""
        with pytest.raises(exceptions.ConnectionClosed) as closed:
            while True:
                self.socket.recv(timeout=PATIENCE_S)
        return int(closed.value.rcvd.code)


@attrs.define
class Programs:
    """Opens programs' connections, and closes them with the test."""

    server: ServerProcess
    stack: ExitStack

    def open(
        self,
        user: str,
        query: str = "",
        *,
        token: str | None = None,
        protocols: Sequence[str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Program:
        """Connect with the token in a header, beside the older helper's headers of tests, or among *protocols*."""
        carried = {"Authorization": f"Bearer {token or self.server.token(user)}"} if protocols is None else {}
        hints = {"X-Test-Type": "E2E", "X-Test-Environment": "test", "X-E2E-Test": "true", "X-Auth-Fast-Path": "true"}
        socket = sync.connect(
            self.server.socket_url + query,
            additional_headers={**hints, **carried, **(headers or {})},
            subprotocols=protocols,
            open_timeout=PATIENCE_S,
            max_queue=None,  # with too much unread it does not read on to the answer of its own Close
        )
        self.stack.enter_context(socket)
        program = Program(socket, user, {})
        program.welcome = program.receive()
        assert program.welcome["type"] == "connection_established"
        return program

    def refused(self, **headers: str) -> tuple[int, Message]:
        """Try to connect with these headers, and return the status and the body of the refusal."""
        hints = {"X-Test-Type": "E2E", "X-Auth-Fast-Path": "true"}
        with pytest.raises(exceptions.InvalidStatus) as refused:
            sync.connect(self.server.socket_url, additional_headers={**hints, **headers}, open_timeout=PATIENCE_S)
        response = refused.value.response
        return response.status_code, json.loads(response.body)

    def get(self, path: str) -> Message:
        with urllib.request.urlopen(self.server.url + path, timeout=PATIENCE_S) as answer:
            assert answer.status == 200
            fields: Message = json.load(answer)
        return fields

    def settles(self, what: Any, wanted: object) -> None:
        """Wait until *what* returns what is wanted: the end of a connection is seen a moment later."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := what()) != wanted:
            assert time.monotonic() < deadline, f"{found} instead of {wanted}"
            time.sleep(0.01)


@pytest.fixture
def programs(older: ServerProcess) -> Iterator[Programs]:
    with ExitStack() as stack:
        yield Programs(older, stack)


# Coming in.


def test_connection_with_auth(programs: Programs) -> None:
    """With a token in the header a program is let in, and its ping is answered."""
    program = programs.open("auth")
    program.send("ping")
    assert program.receive()["type"] == "pong"


def test_connection_without_auth_fails(programs: Programs) -> None:
    """Without a token the upgrade itself is refused with 401, whatever headers of tests come along."""
    status, body = programs.refused()
    assert (status, body["code"]) == (401, "TOKEN_MISSING")


@pytest.mark.parametrize(
    "bearer", ["invalid.token.here", "nonsense", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiIsImV4cCI6OTk5OTk5OTk5OX0."]
)
def test_connection_with_invalid_token_fails(bearer: str, programs: Programs) -> None:
    """A token that is none, or is not signed, is refused before there is a socket; no header makes it good."""
    status, body = programs.refused(Authorization=f"Bearer {bearer}")
    assert (status, body["code"]) == (401, "TOKEN_INVALID")
    assert "token" in body["error"]


def test_token_expiry_handling(programs: Programs) -> None:
    """A token whose time is over is refused, and the program is told that this is why."""
    expired = programs.server.token("late", expires_s=-60)
    status, body = programs.refused(Authorization=f"Bearer {expired}")
    assert (status, body["code"]) == (401, "TOKEN_EXPIRED")
    assert "expired" in body["error"]


def test_user_permissions_validation(programs: Programs) -> None:
    """Who may only read is let in and gets an answer to a ping, and may not start an agent."""
    reader = programs.open("reader", token=programs.server.token("reader", permissions=["read"]))
    reader.send("ping")
    assert reader.receive()["type"] == "pong"
    reader.send("chat", content=QUESTION, thread_id="t")
    refusal = reader.receive()
    assert (refusal["type"], refusal["code"]) == ("error", "FORBIDDEN")


# What agents say.


def test_all_five_critical_websocket_events(programs: Programs) -> None:
    """A flat chat message gets the five events, the start first, the end last, each tool closed before the end."""
    program = programs.open("five")
    program.send("chat", content=QUESTION, thread_id="thread-1")
    run = [message for message in program.until("agent_completed") if "run_id" in message and "seq" in message]
    names = [message["type"] for message in run if message["type"] in CRITICAL]
    assert set(names) == set(CRITICAL)
    assert (names[0], names[-1]) == ("agent_started", "agent_completed")
    assert names.index("tool_executing") < names.index("tool_completed")
    assert {message["thread_id"] for message in run} == {"thread-1"}
    assert (run[-1]["success"], run[-1]["final_response"]) == (True, ANSWER)


def test_agent_event_message_structure(programs: Programs) -> None:
    """Whatever the server says has its type and its time at the top level; events have what they are about, too."""
    program = programs.open("structure")
    program.send("ping")
    program.send("user_message", payload={"content": QUESTION, "thread_id": "thread-1"})
    heard = program.until("agent_completed")
    for message in [*heard, program.welcome]:
        assert isinstance(message["type"], str)
        assert abs(message.get("timestamp", message.get("server_time")) - time.time()) < 60
    for event in heard:
        if event["type"] in CRITICAL:
            assert all(event[name] for name in ("event_id", "user_id", "thread_id", "run_id", "agent_name"))
            assert event["user_id"] == "structure"


def test_agent_thinking_event_contains_reasoning(programs: Programs) -> None:
    """What an agent thinks stands at the top level of the event, and is not empty."""
    program = programs.open("thinking")
    program.send("chat", content=QUESTION, thread_id="t")
    thoughts = [message for message in program.until("agent_completed") if message["type"] == "agent_thinking"]
    assert thoughts
    assert all(thought["reasoning"].strip() for thought in thoughts)


# What programs say.


def test_message_routing_by_type(programs: Programs) -> None:
    """Each type of message gets the answer of its type, also under older names and in a payload."""
    program = programs.open("routing")
    program.send("chat", message_id="m1", content="hello", agent="echo", thread_id="t")
    program.send("ping", message_id="m2")
    program.send("user_message", message_id="m3", payload={"text": "hello again", "agent": "echo", "thread_id": "t"})
    program.send("heartbeat", message_id="m4")
    program.send("agent_request", message_id="m5", user_request="and again", agent="echo")
    answers: dict[str, Message] = {}
    while len(answers) < 5:
        message = program.receive()
        if "reply_to" in message:
            answers[message["reply_to"]] = message
    types = {name: answer["type"] for name, answer in answers.items()}
    assert types == {"m1": "ack", "m2": "pong", "m3": "ack", "m4": "heartbeat_ack", "m5": "ack"}
    assert answers["m1"]["thread_id"] == answers["m3"]["thread_id"] == "t"


def test_invalid_message_type_handling(programs: Programs) -> None:
    """A type that does not exist is an error that says so, not an ack, and the connection goes on."""
    program = programs.open("invalid-type")
    program.send("invalid_type", content="test")
    error = program.receive()
    assert (error["type"], error["code"]) == ("error", "UNKNOWN_TYPE")
    assert "unknown" in error["error"]
    assert error["error"] == error["message"]
    program.send("ping")
    assert program.receive()["type"] == "pong"


@pytest.mark.parametrize("text", ['{"type": "ping", invalid json', "", "hello", "[1, 2"])
def test_malformed_json_handling(text: str, programs: Programs) -> None:
    """What is no JSON is an error that says so, and the connection goes on."""
    program = programs.open("malformed")
    program.socket.send(text)
    error = program.receive()
    assert (error["type"], error["code"]) == ("error", "INVALID_JSON")
    assert "JSON" in error["error"]
    program.send("ping")
    assert program.receive()["type"] == "pong"


def test_missing_required_fields_handling(programs: Programs) -> None:
    """Without a type or without a text: an error that names what is missing."""
    program = programs.open("missing")
    program.socket.send(json.dumps({"content": "no type"}))
    error = program.receive()
    assert (error["code"], "type" in error["error"]) == ("MISSING_TYPE", True)
    program.send("chat", thread_id="t")
    error = program.receive()
    assert (error["code"], list(error["details"]["fields"])) == ("INVALID_MESSAGE", ["$.content"])


def test_oversized_message_handling(programs: Programs) -> None:
    """A long message is served; one above the limit ends its connection with 1009, and no other."""
    program, neighbour = programs.open("oversized"), programs.open("oversized")
    program.send("chat", content="A" * 6000, agent="echo", thread_id="t")
    assert program.until("agent_completed")[-1]["final_response"] == "A" * 6000
    program.send("chat", content="A" * program.welcome["limits"]["max_message_bytes"], thread_id="t")
    assert program.close_code() == 1009
    neighbour.until("agent_completed")
    neighbour.send("ping")
    assert neighbour.receive()["type"] == "pong"


# Many at once.


def test_multiple_concurrent_connections(programs: Programs) -> None:
    """Three users at once are all let in, and each is answered."""
    several = [programs.open(f"concurrent-{number}") for number in range(3)]
    for program in several:
        program.send("chat", content=QUESTION, thread_id="same-for-all")
    for program in several:
        completed = program.until("agent_completed")[-1]
        assert (completed["user_id"], completed["success"]) == (program.user, True)


def test_rapid_message_sending(programs: Programs) -> None:
    """Ten messages without a pause are all answered, in their order."""
    program = programs.open("rapid")
    for number in range(10):
        program.send("ping", message_id=f"m{number}")
    assert [program.receive()["reply_to"] for _ in range(10)] == [f"m{number}" for number in range(10)]


def test_connection_isolation_between_users(programs: Programs) -> None:
    """Nothing that one user says or is told reaches another one, though both call their threads the same."""
    one, two = programs.open("user-one"), programs.open("user-two")
    one.send("chat", content="a secret of one", agent="echo", thread_id="shared")
    two.send("chat", content="of two", agent="echo", thread_id="shared", user_id="user-one")
    for program, other in ((one, two), (two, one)):
        heard = program.until("agent_completed")
        assert other.user not in str(heard)
        assert {message["user_id"] for message in heard if "seq" in message} == {program.user}
        assert ("secret" in str(heard)) is (program is one)
        program.send("ping")
        assert program.receive()["type"] == "pong", "and nothing behind it"


def test_connection_establishment(programs: Programs) -> None:
    """Many connections after each other are all established; the welcome comes first, and says that it is ready."""
    for number in range(10):
        welcome = programs.open(f"established-{number}").welcome
        assert welcome["connection_ready"] is True


def test_message_throughput(programs: Programs) -> None:
    """Hundreds of messages that are sent at once are all answered, none twice."""
    program = programs.open("throughput")
    for number in range(300):
        program.send("ping", message_id=f"m{number}")
    assert len({program.receive()["reply_to"] for _ in range(300)}) == 300


def test_memory_usage_stability(programs: Programs) -> None:
    """Programs that came and went leave nothing behind: no connection, no user, no task."""
    programs.open("warm-up").socket.close()

    def holds() -> tuple[int, ...]:
        stats = programs.get("/ws/stats")
        return tuple(stats[name] for name in ("connections", "users", "runs"))

    def tasks() -> int:
        count: int = programs.get("/ws/stats")["tasks"]
        return count

    programs.settles(holds, (0, 0, 0))
    before = tasks()
    for number in range(5):
        program = programs.open(f"cycle-{number}")
        for _ in range(2):
            program.send("ping")
            assert program.receive()["type"] == "pong"
        program.send("disconnect")
        assert program.close_code() == 1000
    programs.settles(holds, (0, 0, 0))
    programs.settles(lambda: tasks() <= before, True)


# Coming again.


def test_connection_recovery_after_error(programs: Programs) -> None:
    """After an error, and after the end of a connection, the same user comes in again at once."""
    program = programs.open("recovery")
    program.socket.send("no json")
    assert program.receive()["type"] == "error"
    program.socket.close()
    again = programs.open("recovery")
    again.send("ping")
    assert again.receive()["type"] == "pong"


def test_reconnection_after_disconnect(programs: Programs) -> None:
    """A second connection of a program is a connection of its own, and answers."""
    first = programs.open("reconnecting")
    first.send("disconnect")
    assert first.close_code() == 1000
    second = programs.open("reconnecting")
    assert second.welcome["connection_id"] != first.welcome["connection_id"]
    second.send("ping")
    assert second.receive()["type"] == "pong"


def test_session_restoration_after_reconnect(programs: Programs) -> None:
    """A program that names its position and its thread goes on in both; fields that it invents change nothing."""
    first = programs.open("restoring")
    first.send("ping", client_id="client-1", session_id="session-1")
    assert first.receive()["type"] == "pong"
    first.send("chat", content="hello", agent="echo", thread_id="mine")
    last = first.until("agent_completed")[-1]
    first.socket.close()
    position = f"?resume={first.welcome['stream']['epoch']}:{last['seq']}&thread_id=mine"
    second = programs.open("restoring", position)
    assert second.welcome["resumed"] is True
    assert second.until("replay_completed")[-1]["count"] == 0
    second.send("ping", client_id="client-1", session_id="session-1", reconnect=True)
    assert second.receive()["type"] == "pong"
    second.send("chat", message_id="m1", content="again", agent="echo")
    acks = [message for message in second.until("agent_completed") if message.get("reply_to") == "m1"]
    assert [ack["thread_id"] for ack in acks] == ["mine"]


def test_message_queuing_during_disconnect(programs: Programs, tmp_path: Path) -> None:
    """What a run says while its program is away waits for it, in order, each event once."""
    first = programs.open("queuing")
    first.send("ping", client_id="client-1")
    assert first.receive()["type"] == "pong"
    awaited = tmp_path / "go on"
    first.send("chat", message_id="m1", content=str(awaited), agent="patient", thread_id="t")
    started = first.until("agent_started")[-1]
    first.socket.close()
    awaited.touch()
    second = programs.open("queuing", f"?resume={first.welcome['stream']['epoch']}:{started['seq']}")
    heard = second.until("agent_completed")
    seqs = [message["seq"] for message in heard if "seq" in message]
    assert seqs == sorted(set(seqs))
    assert seqs[0] > started["seq"]
    assert (heard[-1]["run_id"], heard[-1]["status"]) == (started["run_id"], "success")


# Limits and numbers.


def test_rate_limiting_enforcement(programs: Programs) -> None:
    """Twenty pings are nothing; messages above the limit that the welcome names are refused, with a time to wait."""
    program = programs.open("limited")
    for _ in range(20):
        program.send("ping")
    assert {program.receive()["type"] for _ in range(20)} == {"pong"}
    limit = program.welcome["limits"]["messages_per_minute"]
    for _ in range(limit + 50):
        program.send("chat", content="x", agent="nobody", thread_id="t")
    answers = [program.receive() for _ in range(limit + 50)]
    limited = [answer for answer in answers if answer["code"] == "RATE_LIMITED"]
    assert 0 < len(limited) <= 50
    assert all(answer["retry_after_s"] > 0 and answer["retryable"] for answer in limited)
    program.send("ping")
    assert program.receive()["type"] == "pong"


@pytest.mark.parametrize("path", ["/ws/health", "/health", "/ws/isolated/health"])
def test_websocket_health_endpoint(path: str, programs: Programs) -> None:
    """The health page is there with what the older monitoring reads."""
    health = programs.get(path)
    assert health["status"] in ("healthy", "degraded")
    assert "websocket" in health["service"]
    assert abs(health["timestamp"] - time.time()) < 60


def test_connection_metrics_tracking(programs: Programs) -> None:
    """Every connection is counted while it is there, and all that ever came are."""

    def counts() -> tuple[int, int]:
        websocket = programs.get("/ws/health")["metrics"]["websocket"]
        return websocket["active_connections"], websocket["total_connections"]

    programs.settles(lambda: counts()[0], 0)
    before = counts()[1]
    several = [programs.open(f"counted-{number}") for number in range(3)]
    assert counts() == (3, before + 3)
    assert programs.get("/ws/stats")["websocket_manager"]["unique_users"] == 3
    for program in several:
        program.socket.close()
    programs.settles(counts, (0, before + 3))


def test_error_rate_monitoring(programs: Programs) -> None:
    """A program's mistake is counted as one, its other messages are answered, and the server is none the worse."""
    before = programs.get("/ws/stats")["message_router"]
    program = programs.open("mistaken")
    for type_name in ("ping", "ping", "invalid_type", "ping"):
        program.send(type_name)
    assert [program.receive()["type"] for _ in range(4)] == ["pong", "pong", "error", "pong"]
    after = programs.get("/ws/stats")["message_router"]
    assert after["unhandled_messages"] - before["unhandled_messages"] == 1
    assert after["messages_routed"] - before["messages_routed"] == 4
    assert programs.get("/ws/health")["metrics"]["websocket"]["error_rate"] == 0


# The last of the older clients: a command line.


@pytest.mark.parametrize("offer", ["jwt.local.{}", "jwt-auth.local.{}", "bearer.local.{}", "jwt.{}"])
def test_a_command_line_of_the_older_system(offer: str, programs: Programs) -> None:
    """Welcome, handshake, a message with a payload, five events: as its last client goes about it, step by step."""
    user = "command-line"
    token = programs.server.token(user)
    program = programs.open(user, protocols=[offer.format(token)])
    assert token not in str(program.socket.response.headers)
    offered = program.receive()
    assert offered["type"] == "handshake_response"
    thread_id = offered["thread_id"]
    program.socket.send(
        json.dumps({"type": "handshake_acknowledged", "thread_id": thread_id, "timestamp": time.time()})
    )
    assert program.receive()["type"] == "handshake_complete"
    payload = {
        "content": QUESTION,
        "run_id": offered["run_id"],
        "thread_id": thread_id,
        "timestamp": datetime.now(UTC).isoformat(),
        "client_environment": "local",
    }
    program.socket.send(json.dumps({"type": "user_message", "payload": payload}))
    heard = program.until("agent_completed")
    names = [message["type"] for message in heard if message["type"] in CRITICAL]
    assert (names[0], names[-1], set(names)) == ("agent_started", "agent_completed", set(CRITICAL))
    assert {message["thread_id"] for message in heard if "seq" in message} == {thread_id}
    assert heard[-1]["final_response"] == ANSWER
