"""Tests of ``netra_ws.compat.messages``, its structures and types, and their way to our wire and back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netra_ws.client import connect as connect_client
from netra_ws.compat.message_types import native_command_type
from netra_ws.compat.messages import (
    LEGACY_MESSAGE_TYPE_MAP,
    MAX_MESSAGE_BYTES,
    BroadcastMessage,
    ErrorMessage,
    MessageType,
    ServerMessage,
    WebSocketMessage,
    create_error_message,
    create_server_message,
    create_standard_message,
    get_frontend_message_type,
    is_valid_message,
    normalize_message_type,
    validate_message,
)
from netra_ws.errors import InvalidArgument
from netra_ws.protocol.codec import encode_command, encode_event, encode_reply, frame_payload, read_command, read_server
from netra_ws.protocol.commands import COMMANDS, TYPES, Command, StartAgent, UserMessage, UserTyping
from netra_ws.protocol.events import EVENTS, Event, Stamp
from netra_ws.protocol.replies import REPLIES, Error, Reply

from ..conftest import StartServer
from ..kit import connect, token
from ..protocol.strategies import of

# Types.

FIVE = ("agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_completed")


@pytest.mark.parametrize("name", [member.value for member in MessageType])
def test_every_name_of_today_is_itself(name: str) -> None:
    """A type's own name is never read as another type, the agent events included."""
    assert normalize_message_type(name) == name
    assert normalize_message_type(MessageType(name)) is MessageType(name)


def test_the_five_agent_events_keep_their_identity() -> None:
    """Five events are five types, however they are looked up."""
    assert len({normalize_message_type(name) for name in FIVE}) == 5
    assert [get_frontend_message_type(name) for name in FIVE] == list(FIVE)


@pytest.mark.parametrize(
    ("older", "today"),
    [
        ("connected", MessageType.CONNECT),
        ("isolated_connection_established", MessageType.CONNECTION_ESTABLISHED),
        ("user", MessageType.USER_MESSAGE),
        ("user_input", MessageType.USER_MESSAGE),
        ("message", MessageType.USER_MESSAGE),
        ("chat_message", MessageType.USER_MESSAGE),
        ("agent", MessageType.AGENT_REQUEST),
        ("EXECUTE_AGENT", MessageType.START_AGENT),
        ("agent_update", MessageType.AGENT_STATUS_UPDATE),
        ("agent_failed", MessageType.AGENT_ERROR),
        ("thread", MessageType.THREAD_UPDATE),
        ("system", MessageType.SYSTEM_MESSAGE),
        ("legacy_response", MessageType.AGENT_RESPONSE),
    ],
)
def test_older_names(older: str, today: MessageType) -> None:
    """An older name is read as the type that it stands for."""
    assert normalize_message_type(older) is today


def test_every_word_of_the_wire_is_known() -> None:
    """Whatever our wire takes or says has a type, and commands keep what they do."""
    said = {event.type for event in EVENTS} | {reply.type for reply in REPLIES}
    assert said <= LEGACY_MESSAGE_TYPE_MAP.keys()
    for name, class_ in TYPES.items():
        native = native_command_type(normalize_message_type(name))
        assert native is not None
        assert TYPES[native] is class_
        assert (native == "typing_stopped") == (name == "typing_stopped")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("strat_agent", "did you mean 'start_agent'"),
        ("AGENT_STARTED", "did you mean 'agent_started'"),
        ("zzzzzzzz", "no message type is called 'zzzzzzzz'$"),
        ("", "called ''"),
        ("x" * 10_000, "called 'x{64}'"),
        (5, "expected text, got int"),
        (None, "expected text, got NoneType"),
        (["chat"], "expected text, got list"),
    ],
)
def test_a_name_that_no_type_has(name: object, text: str) -> None:
    """An unknown type is never taken for another: the error names it, and what is near."""
    with pytest.raises(InvalidArgument, match=rf"^message_type: .*{text}"):
        normalize_message_type(name)
    with pytest.raises(InvalidArgument):
        get_frontend_message_type(name)


def test_what_the_browser_calls_them() -> None:
    """Four types have another name in the older browser client; its own events and all others keep theirs."""
    assert get_frontend_message_type(MessageType.AGENT_RESPONSE) == "agent_completed"
    assert get_frontend_message_type("agent_progress") == "agent_update"
    assert get_frontend_message_type("thread_update") == "thread_updated"
    assert get_frontend_message_type("error_message") == "error"
    for name in ("partial_result", "final_report", "stream_chunk", "agent_fallback", "agent_failed", "agent_log"):
        assert get_frontend_message_type(name) == name
    assert get_frontend_message_type("ping") == "ping"
    assert get_frontend_message_type("user_input") == "user_message"


def test_the_map_cannot_be_changed() -> None:
    """No program can make a name mean something else for all others."""
    with pytest.raises(TypeError):
        LEGACY_MESSAGE_TYPE_MAP["chat"] = MessageType.PING  # type: ignore[index]


# Structures.


def test_a_message_is_a_copy() -> None:
    """What a program does to its own objects after it made a message changes nothing in it."""
    inner: dict[str, Any] = {"list": [1]}
    message = WebSocketMessage(type="chat", payload=inner)
    inner["list"].append(2)
    assert message.payload == {"list": [1]}
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        message.thread_id = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "message",
    [
        {"type": "chat", "payload": {"content": "hi", "thread_id": "t"}, "message_id": "m"},
        {"type": "chat", "content": "hi", "thread_id": "t", "id": "m"},
        {"type": "chat", "content": "no", "payload": {"content": "hi"}, "thread_id": "t", "message_id": "m"},
        {"type": "chat", "content": "hi", "payload": {"content": None}, "thread_id": "t", "id": "m"},
        {"type": "chat", "content": "hi", "payload": None, "thread_id": "t", "id": "m", "message_id": "n"},
    ],
)
def test_every_shape_of_a_clients_message(message: dict[str, Any]) -> None:
    """With a payload or flat, a message is read as our wire reads it."""
    read = WebSocketMessage.from_dict(message)
    assert read.to_command() == UserMessage(content="hi", thread_id="t", id="m")  # type: ignore[arg-type]
    assert read.to_command() == read_command(orjson.dumps(message)).command


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ([], r"message: \$: expected an object, got list"),
        (None, r"message: \$: expected an object, got NoneType"),
        ({}, r"message: \$\.type: required field missing"),
        ({"type": None}, r"message: \$\.type: required"),
        ({"type": 5}, "type: expected text, got int"),
        ({"type": "strat_agent"}, "type: .*did you mean"),
        ({"type": "chat", "payload": []}, r"message: \$\.payload: expected an object, got list"),
        ({"type": "chat", "payload": {"a": math.nan}}, r"payload: \$\.a: nan"),
        ({"type": "chat", "timestamp": "soon"}, "timestamp: expected a number"),
        ({"type": "chat", "timestamp": True}, "timestamp: expected a time, got bool"),
        ({"type": "chat", "message_id": ""}, "message_id: must not be empty"),
        ({"type": "chat", "message_id": 5}, "message_id: expected text, got int"),
        ({"type": "chat", "id": []}, "message_id: expected text, got list"),
        ({"type": "chat", "thread_id": "x" * 257}, "thread_id: longer than 256"),
        ({"type": "chat", "user_id": {}}, "user_id: expected text, got dict"),
    ],
)
def test_a_bad_message_is_refused_by_name(message: object, text: str) -> None:
    """What is no message is refused, and the error names the field."""
    with pytest.raises(InvalidArgument, match=f"^{text}"):
        validate_message(message)
    assert not is_valid_message(message)


def test_validation_takes_text_and_objects() -> None:
    """A message may be given as JSON text, bytes or object; markup in it is nobody's business here."""
    made = WebSocketMessage(type="chat", payload={"content": "<script>onclick=</script>"})
    text = orjson.dumps(made.to_dict())
    assert validate_message(text) == validate_message(text.decode()) == validate_message(made.to_dict()) == made
    assert validate_message(made) is made
    assert is_valid_message(text)
    for bad in ("", b"{", "[1]", "nonsense", b"\xff", '{"type":"chat","payload":{"a":NaN}}', "[" * 5000, 5):
        assert not is_valid_message(bad)
    with pytest.raises(InvalidArgument, match="more than"):
        validate_message(" " * (MAX_MESSAGE_BYTES + 1))


WORDS = st.text(min_size=1, max_size=20).filter(str.strip)
MESSAGES = st.builds(
    WebSocketMessage,
    type=st.sampled_from(sorted(LEGACY_MESSAGE_TYPE_MAP)),
    payload=st.dictionaries(
        st.text(max_size=8).filter(
            lambda name: name not in ("type", "payload", "timestamp", "message_id", "user_id", "thread_id", "id")
        ),
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=9),
        max_size=4,
    ),
    timestamp=st.none() | st.integers(0, 2**31) | st.datetimes(timezones=st.just(UTC)),
    message_id=st.none() | WORDS,
    user_id=st.none() | WORDS,
    thread_id=st.none() | WORDS,
)


@given(MESSAGES)
def test_a_message_survives_the_way_to_json_and_back(message: WebSocketMessage) -> None:
    """What is written as JSON is read as the same message."""
    assert validate_message(orjson.dumps(message.to_dict())) == message


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(st.characters(), max_size=9) | st.binary(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["type", "payload", "id", "timestamp", "x"]), inner, max_size=4)
        ),
        max_leaves=8,
    )
)
def test_whatever_is_given_is_a_message_or_an_error_of_ours(value: object) -> None:
    """No input raises anything but InvalidArgument, and what is taken can be sent."""
    try:
        message = validate_message(value)
        orjson.dumps(message.to_dict())
        message.to_command()
    except InvalidArgument:
        pass


# Making them.


def test_a_standard_message_has_an_id_and_a_time() -> None:
    """Ids are different each time and name the type; a time that is given stays."""
    before = time.time()
    one, two = create_standard_message("user_input", {"content": "x"}, "ada", "t"), create_standard_message("ping")
    assert (one.type, one.user_id, one.thread_id) == ("user_message", "ada", "t")
    assert one.message_id is not None
    assert one.message_id.startswith("msg_user_message_")
    assert one.message_id != create_standard_message("user_input", {"content": "x"}).message_id
    assert one.timestamp is not None
    assert before <= one.timestamp <= time.time()
    assert two.payload == {}
    given_ = create_standard_message("ping", timestamp=datetime(2025, 9, 5, tzinfo=UTC), message_id="m")
    assert (given_.timestamp, given_.message_id) == (1757030400.0, "m")


CIRCLE: dict[str, Any] = {}
CIRCLE["self"] = CIRCLE


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nope",), "message_type: no message type"),
        ((5, {}), "message_type: expected text"),
        (("chat", []), "payload: expected an object, got list"),
        (("chat", "text"), "payload: expected an object, got str"),
        (("chat", {"a": math.inf}), r"payload: \$\.a: inf"),
        (("chat", {"a": [math.nan]}), r"payload: \$\.a\[0\]: nan"),
        (("chat", {"a": object()}), r"payload: \$\.a: JSON cannot say object"),
        (("chat", CIRCLE), r"payload: \$\.self: circular"),
        (("start_agent", {}), "payload: start_agent needs a payload"),
        (("agent_request",), "payload: agent_request needs a payload"),
        (("start_agent", {"request": 5}), r"payload: \$\.request: expected an object or text"),
        (("chat", {}, 5), "user_id: expected text"),
        (("chat", {}, "ada", " "), "thread_id: must not be empty"),
    ],
)
def test_a_standard_message_of_bad_parts(arguments: tuple[Any, ...], text: str) -> None:
    """Each bad argument is named; nothing half-made comes out."""
    with pytest.raises(InvalidArgument, match=f"^{text}"):
        create_standard_message(*arguments)


def test_no_name_of_a_field_is_forbidden() -> None:
    """A payload may have fields of any name."""
    assert create_standard_message("chat", {"forbidden_field": 1, "invalid_field": 2}).payload["forbidden_field"] == 1


def test_a_servers_message_from_parts_or_from_one_object() -> None:
    """Type and data may be given apart or together, in any of the older shapes."""
    apart = create_server_message("agent_started", {"run_id": "r"}, correlation_id="c", timestamp=5)
    assert apart.to_dict() == {
        "type": "agent_started",
        "data": {"run_id": "r"},
        "timestamp": 5.0,
        "correlation_id": "c",
    }
    for together in (
        {"type": "agent_started", "data": {"run_id": "r"}, "timestamp": 5, "correlation_id": "c"},
        {"type": "agent_started", "payload": {"run_id": "r"}, "timestamp": "5", "correlation_id": "c"},
        {
            "type": "agent_started",
            "data": {"run_id": "r"},
            "payload": {"run_id": "r"},
            "timestamp": 5,
            "correlation_id": "c",
        },
        {"type": "agent_started", "run_id": "r", "timestamp": "1970-01-01T00:00:05Z", "correlation_id": "c"},
    ):
        assert create_server_message(together) == apart
    assert create_server_message("partial_result").data == {}
    assert create_server_message({"type": "x"}, server_id="s").server_id == "s"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (({"data": {}},), r"message: \$\.type: required field missing"),
        (({},), r"message: \$\.type"),
        (({"type": "x", "data": []},), r"message: \$\.data: expected an object, got list"),
        (({"type": "x"}, {}), "data: stands in the object already"),
        (("x", []), "data: expected an object, got list"),
        (("x", "text"), "data: expected an object, got str"),
        (("", {}), "type: must not be empty"),
        ((None, {}), "type: expected text, got NoneType"),
        (("x", {"a": {1: math.nan}}), r"data: \$\.a\.1: nan"),
        (({"type": "x", "correlation_id": 5},), "correlation_id: expected text, got int"),
        (({"type": "x", "server_id": 5},), "server_id: expected text, got int"),
    ],
)
def test_a_servers_message_of_bad_parts(arguments: tuple[Any, ...], text: str) -> None:
    """Each bad argument is named."""
    with pytest.raises(InvalidArgument, match=f"^{text}"):
        create_server_message(*arguments)


def test_the_three_shapes_of_a_servers_message() -> None:
    """One message can be written in each of the older shapes, and is read back from it."""
    message = create_server_message("agent_thinking", {"thought": "so"}, server_id="s", timestamp=2)
    assert message.to_dict("payload") == {
        "type": "agent_thinking",
        "payload": {"thought": "so"},
        "timestamp": 2.0,
        "server_id": "s",
    }
    assert message.to_dict("flat") == {"type": "agent_thinking", "thought": "so", "timestamp": 2.0, "server_id": "s"}
    for shape in ("data", "payload", "flat"):
        assert ServerMessage.from_dict(message.to_dict(shape)) == message  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="shape"):
        message.to_dict("round")  # type: ignore[arg-type]


def test_an_error_message_satisfies_every_reader() -> None:
    """Code and text stand under the older names and under those of our error frame."""
    error = create_error_message(
        "AUTH_ERROR", "No.", {"at": datetime(2025, 9, 5, tzinfo=UTC)}, ["Sign in."], timestamp=3
    )
    assert error.to_dict() == {
        "type": "error_message",
        "error_code": "AUTH_ERROR",
        "code": "AUTH_ERROR",
        "error_message": "No.",
        "error": "No.",
        "message": "No.",
        "details": {"at": "2025-09-05T00:00:00+00:00"},
        "timestamp": 3.0,
        "recovery_suggestions": ["Sign in."],
    }
    assert ErrorMessage.from_dict(error.to_dict()) == error
    assert create_error_message("A", "b").details == {}
    assert "recovery_suggestions" not in create_error_message("A", "b").to_dict()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("", "b"), "error_code: must not be empty"),
        ((5, "b"), "error_code: expected text"),
        (("A", " "), "error_message: must not be empty"),
        (("A", None), "error_message: expected text"),
        (("A", "b", []), "details: expected an object"),
        (("A", "b", {"x": math.nan}), r"details: \$\.x"),
        (("A", "b", {}, "one text"), "recovery_suggestions: expected a list of texts, got str"),
        (("A", "b", {}, {"a": 1}), "recovery_suggestions: expected a list"),
        (("A", "b", {}, ["ok", 5]), r"recovery_suggestions\[1\]: expected text"),
    ],
)
def test_an_error_message_of_bad_parts(arguments: tuple[Any, ...], text: str) -> None:
    """Each bad argument is named."""
    with pytest.raises(InvalidArgument, match=f"^{text}"):
        create_error_message(*arguments)


def test_a_message_for_several() -> None:
    """Room, exceptions and priority are kept; a priority that nobody knows is refused."""
    message = BroadcastMessage(content={"a": 1}, target_room="build", exclude_users=["bob"], priority="high")
    assert message.to_dict() == {
        "type": "broadcast",
        "content": {"a": 1},
        "priority": "high",
        "target_room": "build",
        "exclude_users": ["bob"],
    }
    assert "target_room" not in BroadcastMessage(content={}, exclude_users=None).to_dict()
    for bad in ({"priority": "urgent"}, {"content": []}, {"exclude_users": "bob"}, {"target_room": 5}):
        with pytest.raises(InvalidArgument, match=f"^{next(iter(bad))}: "):
            BroadcastMessage(**{"content": {}, **bad})  # type: ignore[arg-type]


# To our wire.

#: What a command needs besides its type, by what it becomes.
NEEDED: Mapping[str, dict[str, Any]] = {
    "start_agent": {"user_request": "do it"},
    "agent_request": {"user_request": "do it"},
    "user_message": {"content": "hi"},
    "chat": {"content": "hi"},
    "stop_agent": {"run_id": "r"},
    "input_response": {"input_id": "i", "status": "resolved", "value": [1]},
    "get_thread_history": {"thread_id": "t"},
    "rename_thread": {"thread_id": "t", "title": "T"},
    "delete_thread": {"thread_id": "t"},
    "switch_thread": {"thread_id": "t"},
    "connect_job": {"job_id": "j"},
    "disconnect_job": {"job_id": "j"},
    "publish_job": {"job_id": "j", "name": "n", "value": None},
    "resume": {"epoch": "e", "seq": 5},
    "refresh_auth": {"token": "x"},
    "kick": {"user_id": "bob"},
    "user_typing": {"thread_id": "t"},
    "typing_started": {"thread_id": "t"},
    "typing_stopped": {"thread_id": "t"},
}
WITH_COMMAND = [member for member in MessageType if native_command_type(member)]


@pytest.mark.parametrize("kind", [member for member in WITH_COMMAND if member is not MessageType.TYPING])
def test_a_message_may_go_over_the_wire_as_it_is(kind: MessageType) -> None:
    """The older envelope of every type that our wire has is read there as the same command."""
    message = create_standard_message(kind, NEEDED.get(kind, {}), "ada")
    incoming = read_command(orjson.dumps(message.to_dict()))
    assert incoming.error is None
    assert incoming.command == message.to_command()
    assert (incoming.command.type, incoming.command.id) == (TYPES[kind].type, message.message_id)


@pytest.mark.parametrize("class_", COMMANDS, ids=lambda class_: class_.type)
def test_every_command_can_be_said_in_the_older_envelope(class_: type[Command]) -> None:
    """Whatever command there is, the envelope that holds its fields becomes that very command."""

    @settings(max_examples=30)
    @given(of(class_))
    def check(command: Command) -> None:
        fields = orjson.loads(encode_command(command))
        message = WebSocketMessage(type=fields.pop("type"), payload=fields)
        assert message.to_command() == read_command(encode_command(command)).command
        assert read_command(encode_command(message.to_command())).command == message.to_command()

    check()


@pytest.mark.parametrize("kind", [member for member in MessageType if member not in WITH_COMMAND])
def test_what_is_no_command_says_so(kind: MessageType) -> None:
    """A type that our wire takes from nobody is refused by name."""
    with pytest.raises(InvalidArgument, match=r"^type: our wire has no command|^payload: \$\.method: expected text"):
        WebSocketMessage(type=kind, payload={"a": 1}).to_command()


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({"user_request": "a"}, "a"),
        ({"content": "b"}, "b"),
        ({"query": "c"}, "c"),
        ({"request": "d"}, "d"),
        ({"request": {"query": "e"}}, "e"),
        ({"request": {"user_request": "f"}}, "f"),
        ({"text": " g ", "request": "no"}, "g"),
    ],
)
def test_where_the_text_of_a_start_may_stand(payload: dict[str, Any], text: str) -> None:
    """Older programs put the text in one of several places; it is found in all of them."""
    assert WebSocketMessage(type="start_agent", payload=payload).to_command().text == text  # type: ignore[attr-defined]


def test_what_our_wire_has_no_field_for_goes_into_the_context() -> None:
    """References, metadata and settings of a start are there for the agent, and hide nothing of its context."""
    payload = {"content": "x", "references": [1], "metadata": {"a": 1}, "context": {"metadata": "own", "b": 2}}
    command = WebSocketMessage(type="chat", payload=payload).to_command()
    assert isinstance(command, UserMessage)
    assert command.context == {"references": [1], "metadata": "own", "b": 2}
    started = WebSocketMessage(type="start_agent", payload={"user_request": "x", "settings": {"s": 1}}).to_command()
    assert isinstance(started, StartAgent)
    assert started.context == {"settings": {"s": 1}}


def test_older_fields_of_threads_and_typing() -> None:
    """A thread's name is its title, and is_typing decides what a typing notice says."""
    created = WebSocketMessage(type="create_thread", payload={"name": "Plans", "metadata": {"a": 1}}).to_command()
    assert (created.title, created.metadata) == ("Plans", {"a": 1})  # type: ignore[attr-defined]
    for kind in ("typing", "user_typing"):
        for is_typing in (True, False):
            said = WebSocketMessage(type=kind, payload={"thread_id": "t", "is_typing": is_typing}).to_command()
            assert said == UserTyping(thread_id="t", is_typing=is_typing)  # type: ignore[arg-type]


def test_what_the_envelope_says_and_what_the_payload_says() -> None:
    """The payload wins over the envelope, null in it hides nothing, and a program's user id is not believed."""
    message = WebSocketMessage(
        type="chat",
        payload={"content": "x", "thread_id": "inner", "id": None, "user_id": "mallory", "payload": {"content": "y"}},
        thread_id="outer",
        message_id="m",
        user_id="ada",
        timestamp=5,
    )
    assert message.to_command() == UserMessage(content="x", thread_id="inner", id="m", timestamp=5.0)  # type: ignore[arg-type]
    inner = WebSocketMessage(type="ping", payload={"message_id": "n", "jsonrpc": "2.0"}, message_id="m")
    assert inner.to_command().id == "n"


def test_the_one_command_that_is_about_somebody_else() -> None:
    """A kick in the flat shape names its user beside the type, as on our wire."""
    flat = {"type": "kick", "user_id": "bob", "reason": "late"}
    assert WebSocketMessage.from_dict(flat).to_command() == read_command(orjson.dumps(flat)).command


@pytest.mark.parametrize(
    ("kind", "payload", "text"),
    [
        ("stop_agent", {"agent_id": "a"}, r"message: \$\.run_id: required field missing"),
        ("chat", {"content": " "}, "message: the message has no text"),
        ("chat", {}, r"message: \$\.content: required field missing"),
        ("start_agent", {"request": {"query": 5}}, r"message: \$\.user_request: expected string, got integer"),
        ("chat", {"content": "x", "thread_id": "a b"}, r"message: \$\.thread_id: expected 1 to 128"),
        ("chat", {"content": "x", "metadata": {}, "context": []}, r"message: \$\.context: expected object, got list"),
        ("chat", {"content": "x", "attachments": [{}]}, r"message: \$\.attachments\[0\]"),
        ("kick", {"user_id": "u", "jti": "j"}, r"message: \$\.user_id: expected either"),
    ],
)
def test_fields_that_our_wire_does_not_take(kind: str, payload: dict[str, Any], text: str) -> None:
    """A command that our server would refuse is refused before it is sent, with the path of the field."""
    with pytest.raises(InvalidArgument, match=f"^{text}"):
        WebSocketMessage(type=kind, payload=payload).to_command()


# From our wire.

STAMP = Stamp(seq=7, timestamp=1.5, event_id="e", user_id="ada")


@pytest.mark.parametrize("class_", EVENTS, ids=lambda class_: class_.type)
def test_every_event_can_be_shown_in_the_older_envelope(class_: type[Event]) -> None:
    """An event keeps every field, under its own type, and comes back from the envelope as the same event."""

    @settings(max_examples=30)
    @given(of(class_))
    def check(event: Event) -> None:
        frame = frame_payload(encode_event(event, STAMP))
        wire, heard = orjson.loads(frame), read_server(frame)
        for message in (
            ServerMessage.from_event(wire),
            ServerMessage.from_event(heard),
            ServerMessage.from_event(event, STAMP),
        ):
            assert (message.type, message.timestamp, message.correlation_id) == (class_.type, 1.5, None)
            assert normalize_message_type(message.type) == class_.type
            for shape in ("data", "payload"):
                shown = orjson.loads(orjson.dumps(message.to_dict(shape)))  # type: ignore[arg-type]
                assert all(shown[shape][name] == wire[name] for name in wire.keys() - {"type", "timestamp"})
                back = read_server(orjson.dumps(ServerMessage.from_dict(shown).to_dict("flat")))
                assert (back.message, back.stamp) == (heard.message, heard.stamp)

    check()


@pytest.mark.parametrize("class_", REPLIES, ids=lambda class_: class_.type)
def test_every_reply_can_be_shown_in_the_older_envelope(class_: type[Reply]) -> None:
    """A reply names the command that it answers, also where it came as JSON-RPC."""

    @settings(max_examples=30)
    @given(of(class_))
    def check(reply: Reply) -> None:
        for text, correlation in (
            ('{"type":"ping","id":"c7"}', "c7"),
            ('{"jsonrpc":"2.0","method":"ping","id":7}', "7"),
            ('{"jsonrpc":"2.0","method":"ping","id":""}', ""),
            ('{"jsonrpc":"2.0","method":"ping","id":null}', None),
        ):
            frame = encode_reply(reply, 2.5, read_command(text))
            assert frame is not None
            message = ServerMessage.from_event(orjson.loads(frame_payload(frame)))
            assert (message.type, message.timestamp, message.correlation_id) == (class_.type, 2.5, correlation)
            flat = orjson.dumps(message.to_dict("flat"))
            if isinstance(reply, Error) and reply.correlation_id is None:
                continue  # the flat shape has one field for both ids
            assert read_server(flat).message == read_server(frame_payload(encode_reply(reply, 2.5) or b"")).message

    check()


@pytest.mark.parametrize(
    ("wire", "older"),
    [
        ({"type": "agent_started", "agent_name": "a"}, {"agent": "a"}),
        ({"type": "agent_thinking", "reasoning": "so"}, {"thought": "so"}),
        ({"type": "tool_executing", "tool_name": "t"}, {"tool": "t"}),
        ({"type": "tool_completed", "tool_name": "t", "results": None}, {"tool": "t", "result": None}),
        ({"type": "agent_completed", "final_response": "ok"}, {"result": "ok"}),
        ({"type": "error", "code": "BUSY", "error": "no"}, {"error_code": "BUSY", "error_message": "no"}),
        ({"type": "thread_created", "title": "T"}, {"name": "T"}),
        ({"type": "agent_thinking", "reasoning": "so", "thought": "own"}, {"thought": "own"}),
        ({"type": "agent_thinking"}, {}),
    ],
)
def test_fields_have_their_older_names_too(wire: dict[str, Any], older: dict[str, Any]) -> None:
    """A reader of before finds what it knows beside the names of today."""
    data = ServerMessage.from_event(wire).data
    assert data == {name: value for name, value in wire.items() if name != "type"} | older


def test_an_error_frame_is_an_error_message() -> None:
    """An error of our server can be shown as the older error message."""
    error = Error(code="BUSY", error="no", message="no", retryable=True, details={"a": 1})
    frame = encode_reply(error, 2.5)
    assert frame is not None
    shown = ErrorMessage.from_dict(orjson.loads(frame_payload(frame)))
    assert shown == create_error_message("BUSY", "no", {"a": 1}, timestamp=2.5)


@pytest.mark.parametrize(
    "said",
    [
        None,
        5,
        "text",
        [],
        {},
        {"type": 5},
        {"type": ""},
        {"jsonrpc": "2.0", "id": 1, "result": 5},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "x"}},
        {"type": "ack", "x": math.nan},
    ],
)
def test_what_no_server_says(said: Any) -> None:
    """What is no event and no answer is refused."""
    with pytest.raises(InvalidArgument):
        ServerMessage.from_event(said)


# Over real sockets.


async def test_a_conversation_in_older_messages(server: StartServer) -> None:
    """An older program's messages run an agent through the client, and what comes is shown in its own envelope."""
    running = await server()
    async with connect_client(running.url, token=token()) as session:
        events = session.events()
        asked = {"request": {"query": "hello"}, "agent": "echo"}
        start = create_standard_message("agent_request", asked, thread_id="t")
        answer = ServerMessage.from_event(await session.command(start.to_command()))
        assert (answer.type, answer.data["thread_id"], answer.data["disposition"]) == ("ack", "t", "started")
        shown = []
        async for heard in events:
            shown.append(ServerMessage.from_event(heard))
            if shown[-1].type == MessageType.AGENT_COMPLETED:
                break
        types = [message.type for message in shown]
        assert types[types.index("agent_started") :][0] == "agent_started"
        assert shown[-1].data["result"] == shown[-1].data["final_response"] == "hello"


async def test_an_older_envelope_on_the_socket(server: StartServer) -> None:
    """The envelope itself may be sent: our server reads it without this package's help."""
    running = await server()
    async with connect(running) as client:
        message = create_standard_message("create_thread", {"title": "Plans"}, "somebody else", "plans")
        await client.say(orjson.dumps(message.to_dict()).decode())
        reply = (await client.until("thread_created", reply_to=message.message_id))[-1]
        assert (reply["thread_id"], reply["title"]) == ("plans", "Plans")
