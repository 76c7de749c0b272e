"""Tests of ``netra_ws.protocol.commands``: everything that PROTOCOL §2 lets a client say."""

from __future__ import annotations

from typing import Any

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.protocol.codec import encode_command, read_command
from netra_ws.protocol.commands import (
    COMMANDS,
    FIELD_NAMES,
    TYPES,
    Command,
    Start,
    StartAgent,
    UserMessage,
    UserTyping,
)

from .strategies import least, of

#: PROTOCOL §2: every name of a type, and its fields; ``!`` marks those that must be there.
TABLE = {
    "start_agent": "user_request! agent thread_id run_id context on_busy on_disconnect timeout_s idle_timeout_s",
    "user_message": "content! thread_id agent attachments jsonl_logs context on_busy on_disconnect timeout_s",
    "stop_agent": "run_id! mode reason",
    "input_response": "input_id! status! value",
    "create_thread": "thread_id title metadata",
    "list_threads": "limit before",
    "get_thread_history": "thread_id! limit before",
    "rename_thread": "thread_id! title!",
    "delete_thread": "thread_id!",
    "switch_thread": "thread_id!",
    "connect_job": "job_id! resume",
    "disconnect_job": "job_id!",
    "publish_job": "job_id! name! value!",
    "resume": "epoch! seq! job_id",
    "refresh_auth": "token!",
    "kick": "user_id jti reason",
    "user_typing": "thread_id!",
    "ping": "",
    "heartbeat": "",
    "connect": "",
    "disconnect": "",
    "handshake_acknowledged": "thread_id",
}
ALIASES = {
    "chat": "user_message",
    "user_input": "user_message",
    "message": "user_message",
    "chat_message": "user_message",
    "agent_request": "start_agent",
    "execute_agent": "start_agent",
    "cancel": "stop_agent",
    "typing_started": "user_typing",
    "typing_stopped": "user_typing",
}


def wire(command: Command) -> dict[str, Any]:
    fields: dict[str, Any] = orjson.loads(encode_command(command))
    return fields


def test_every_documented_type_is_known() -> None:
    """The types and the older names of the contract are those that the server reads, no more and no less."""
    assert {name: class_.type for name, class_ in TYPES.items()} == {name: name for name in TABLE} | ALIASES
    assert {command.type for command in COMMANDS} == set(TABLE)


@pytest.mark.parametrize("class_", COMMANDS, ids=lambda class_: class_.type)
def test_every_command_has_the_documented_fields(class_: type[Command]) -> None:
    """A command has the fields of the contract, required where the contract requires them."""
    documented = TABLE[class_.type].split()
    own = [field for field in attrs.fields(class_) if field.name not in ("id", "timestamp", "is_typing")]
    assert {field.name for field in own} == {name.rstrip("!") for name in documented}
    required = {field.name for field in own if field.default is attrs.NOTHING}
    assert required == {name[:-1] for name in documented if name.endswith("!")}


@given(st.one_of([of(class_) for class_ in COMMANDS]))
def test_a_command_survives_the_wire(command: Command) -> None:
    """What a client encodes is what the server reads, for every command and every value."""
    incoming = read_command(encode_command(command))
    assert incoming.error is None
    assert incoming.command == command
    assert incoming.type_name == command.type
    assert incoming.reply_to == command.id


@given(st.one_of([of(class_) for class_ in COMMANDS]))
def test_payload_and_flat_say_the_same(command: Command) -> None:
    """A body under ``payload`` is the same command as one beside ``type``."""
    fields = wire(command)
    type_ = fields.pop("type")
    nested = read_command(orjson.dumps({"type": type_, "payload": fields}))
    assert nested.error is None
    assert nested.command == command
    assert nested.reply_to == command.id


@given(st.one_of([of(class_) for class_ in COMMANDS]), st.text() | st.integers(0, 2**53))
def test_json_rpc_says_the_same(command: Command, rpc_id: str | int) -> None:
    """A command as JSON-RPC is the same command, but its id is the request's alone."""
    fields = wire(command)
    type_ = fields.pop("type")
    incoming = read_command(orjson.dumps({"jsonrpc": "2.0", "id": rpc_id, "method": type_, "params": fields}))
    assert incoming.error is None
    assert incoming.command == attrs.evolve(command, id=None)
    assert incoming.rpc
    assert incoming.reply_to == rpc_id


@given(st.one_of([of(class_) for class_ in COMMANDS if class_.type != "kick"]))  # that needs one of two
def test_null_means_absent(command: Command) -> None:
    """Null for an optional field is the same as leaving it out, also where its default is not null."""
    class_ = type(command)
    names = FIELD_NAMES.get(class_, {})
    required = {field.name: getattr(command, field.name) for field in attrs.fields(class_) if not _optional(field)}
    fields = wire(class_(**required))
    nulls = {f.name: None for f in attrs.fields(class_) if _optional(f)}
    nulls |= {alias: None for aliases in names.values() for alias in aliases[1:]}
    incoming = read_command(orjson.dumps({**fields, **nulls}))
    assert incoming.error is None
    assert incoming.command == class_(**required)


def _optional(field: attrs.Attribute[Any]) -> bool:
    return field.default is not attrs.NOTHING


@pytest.mark.parametrize(("alias", "name"), [(a, n) for a, n in ALIASES.items() if n != "user_typing"])
def test_older_type_names_mean_the_same(alias: str, name: str) -> None:
    """A command under an older name is the same command; its metric label is the name of today."""
    fields = wire(least(TYPES[name]))
    incoming = read_command(orjson.dumps({**fields, "type": alias}))
    assert incoming.command == least(TYPES[name])
    assert incoming.type_name == name


@pytest.mark.parametrize(("type_", "typing"), [("typing_started", True), ("typing_stopped", False)])
def test_the_type_tells_whether_somebody_is_typing(type_: str, typing: bool) -> None:
    """The two names that tell whether somebody types do so, whatever else the message says."""
    said = orjson.dumps({"type": type_, "thread_id": "t", "is_typing": not typing})
    assert read_command(said).command == UserTyping(thread_id="t", is_typing=typing)


@pytest.mark.parametrize(("more", "typing"), [({}, True), ({"is_typing": None}, True), ({"is_typing": False}, False)])
def test_user_typing_may_say_that_nobody_is(more: dict[str, Any], typing: bool) -> None:
    """Under the name that means both, older clients say by ``is_typing`` which one they mean, flat or in a payload."""
    for said in ({"thread_id": "t", **more}, {"payload": {"thread_id": "t", **more}}):
        assert read_command(orjson.dumps({"type": "user_typing", **said})).command == UserTyping(
            thread_id="t", is_typing=typing
        )


def test_is_typing_is_no_text() -> None:
    """Whether somebody is typing is true or false, and nothing that looks like it."""
    error = read_command(b'{"type":"user_typing","thread_id":"t","is_typing":"false"}').error
    assert error is not None
    assert (error.code, list(error.details["fields"])) == ("INVALID_MESSAGE", ["$.is_typing"])


@pytest.mark.parametrize(
    ("type_", "field", "alias"),
    [
        (class_.type, field, alias)
        for class_, names in FIELD_NAMES.items()
        for field, aliases in names.items()
        for alias in aliases
    ],
)
def test_text_may_have_older_names(type_: str, field: str, alias: str) -> None:
    """The text of a start is found under each of its documented names, and stripped."""
    command = read_command(orjson.dumps({"type": type_, alias: "  hello \n"})).command
    assert isinstance(command, Start)
    assert command.text == getattr(command, field) == "hello"


def test_the_documented_names_of_texts() -> None:
    """The contract's four names of a request and four of a message are accepted, in that order."""
    assert FIELD_NAMES[StartAgent]["user_request"] == ("user_request", "content", "text", "query")
    assert FIELD_NAMES[UserMessage]["content"] == ("content", "text", "message", "user_request")


def test_the_first_name_that_says_something_wins() -> None:
    """A blank or null text does not hide another one."""
    said = {"type": "chat", "content": " ", "text": None, "message": "second", "user_request": "third"}
    assert read_command(orjson.dumps(said)).command == UserMessage(content="second")


@pytest.mark.parametrize("type_", ["start_agent", "user_message", "chat", "execute_agent"])
@pytest.mark.parametrize("text", ["", " ", "\n\t\u2003"])
def test_a_blank_text_is_an_empty_message(type_: str, text: str) -> None:
    """A text of nothing but blanks is EMPTY_MESSAGE, flat and in a payload, and the answer keeps the id."""
    for message in ({"content": text}, {"payload": {"content": text, "text": ""}}):
        incoming = read_command(orjson.dumps({"type": type_, "id": "c1", **message}))
        assert incoming.error is not None
        assert (incoming.error.code, incoming.reply_to) == ("EMPTY_MESSAGE", "c1")


@pytest.mark.parametrize("message", [{}, {"content": None}, {"payload": None}, {"payload": {"text": None}}])
def test_no_text_at_all_is_a_missing_field(message: dict[str, Any]) -> None:
    """A start without any text is INVALID_MESSAGE and names the field."""
    error = read_command(orjson.dumps({"type": "chat", **message})).error
    assert error is not None
    assert error.code == "INVALID_MESSAGE"
    path = "$.payload.content" if message.get("payload") else "$.content"
    assert error.details == {"fields": {path: "required field missing"}}


@pytest.mark.parametrize("class_", [class_ for class_ in COMMANDS if class_.type != "kick"], ids=lambda c: c.type)
def test_a_user_id_is_never_used(class_: type[Command]) -> None:
    """A ``user_id`` in a command changes nothing of it: who speaks is decided by the token alone."""
    fields = wire(least(class_))
    said = {**fields, "user_id": "mallory", "payload": {"user_id": "mallory"}}
    assert read_command(orjson.dumps(said)).command == least(class_)


def test_a_token_is_not_shown() -> None:
    """The repr of a command, as a log line might have it, shows no token."""
    command = read_command(b'{"type":"refresh_auth","token":"s3cret"}').command
    assert "s3cret" not in repr(command)
