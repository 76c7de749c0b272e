"""Tests of ``netra_ws.protocol.codec``: reading what clients send, and answering it.

That every command, event and reply survives the wire is tested beside their classes.
"""

from __future__ import annotations

from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.errors import ClientError
from netra_ws.protocol.codec import (
    Incoming,
    encode_reply,
    error_reply,
    frame_payload,
    read_command,
)
from netra_ws.protocol.commands import TYPES, InputResponse, ListThreads, Ping, PublishJob, UserMessage
from netra_ws.protocol.converter import MAX_BAD_ITEMS
from netra_ws.protocol.reading import MAX_CONTAINERS
from netra_ws.protocol.replies import ErrorCode
from netra_ws.protocol.values import MAX_METADATA_BYTES

from .strategies import JSON, TIMES

#: Names that fields of commands have, so that made-up messages go beyond "no type".
FIELDS = (
    "type payload jsonrpc method params id message_id timestamp thread_id content text user_request run_id limit"
    " before title metadata attachments jsonl_logs on_busy timeout_s value job_id seq epoch"
)
MESSAGES = st.dictionaries(
    st.sampled_from(FIELDS.split()), JSON | st.sampled_from([*TYPES, "2.0"]), max_size=8
) | st.builds(
    lambda type_, fields: {**fields, "type": type_},
    st.sampled_from(list(TYPES)),
    st.dictionaries(st.sampled_from(FIELDS.split()), JSON, max_size=8),
)


def error_of(message: Any) -> ClientError:
    incoming = read_command(message if isinstance(message, str | bytes) else orjson.dumps(message))
    assert incoming.command is None
    assert incoming.error is not None
    return incoming.error


def fields_of(message: Any) -> dict[str, str]:
    error = error_of(message)
    assert error.code == "INVALID_MESSAGE"
    assert error.details is not None
    fields: dict[str, str] = error.details["fields"]
    assert all(path in error.text for path in fields)
    return fields


def check(incoming: Incoming) -> None:
    """Either a command or a documented error, and an answer can be made of it."""
    assert (incoming.command is None) != (incoming.error is None)
    if incoming.error is not None:
        assert incoming.error.code in get_args(ErrorCode)
        reply = error_reply(incoming.error)
    else:
        reply = error_reply(ClientError("INTERNAL", "x"))
    frame = encode_reply(reply, 1.0, incoming)
    assert (frame is None) == incoming.silent


# Whatever a client sends.


@given(JSON | MESSAGES)
def test_any_json_is_a_command_or_a_documented_error(value: Any) -> None:
    """Reading any JSON value gives a command or an error of the contract, and never raises."""
    check(read_command(orjson.dumps(value)))


@given(st.text(st.characters()) | st.binary() | st.text(st.characters(categories=["Cs", "Ll"])))
def test_any_text_is_a_command_or_a_documented_error(text: str | bytes) -> None:
    """Reading any text or bytes, lone surrogates and bad UTF-8 included, never raises."""
    check(read_command(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{'type':'ping'}",
        '{"type":"ping"} x',
        "NaN",
        '{"type":"ping","timestamp":NaN}',
        '{"type":"ping","timestamp":Infinity}',
        '{"type":"ping","timestamp":1e999}',
        '{"type":"ping","timestamp":' + "9" * 400 + "}",
        '{"type":"chat","content":"\\ud800"}',
        '{"type":"chat","content":"\ud800"}',
        b'{"type":"chat","content":"\xff"}',
        "\ufeff{}",
        "[" * 60_000,
        '{"a":' * 5000 + "1" + "}" * 5000,
    ],
    ids=range(15),
)
def test_what_is_no_json(text: str | bytes) -> None:
    """Broken JSON, NaN, infinities, lone surrogates and bad UTF-8 are INVALID_JSON; the text names a place."""
    error = error_of(text)
    assert error.code == "INVALID_JSON"
    assert "line" in error.text


@pytest.mark.parametrize(
    ("value", "name"), [([], "list"), ("x", "string"), (5, "integer"), (None, "null"), (True, "boolean")]
)
def test_a_message_is_an_object(value: Any, name: str) -> None:
    """Any other JSON value is INVALID_MESSAGE at ``$``."""
    assert fields_of(orjson.dumps(value)) == {"$": f"expected object, got {name}"}


LISTS = '{"type":"ping","a":[' + "[],[]," * (MAX_CONTAINERS // 2 - 1)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (LISTS + "1]}", True),
        (LISTS + "[]]}", False),
        (LISTS + "{}]}", False),
        (LISTS + r'"\\",[]]}', False),
        (LISTS + r'"\",' + "[]]}", None),
        (LISTS + "]}" + "[", False),
        (LISTS + '"' + "[{" * 10_000 + '"]}', True),
        (LISTS + r'"a\"[{\"' + "[" * 10_000 + '"]}', True),
        ('{"type":"ping","a":"' + "[" * 200_000 + '"}', True),
        ('{"type":"ping","a":["' + r"\"[" * 100_000 + '"]}', True),
        ('["' + "[" * 200_000, None),
        ('"' + r"\"[" * 200_000, None),
        ("[" * 200_000, False),
    ],
    ids=range(13),
)
@pytest.mark.parametrize("form", [str, str.encode])
def test_lists_and_objects_are_counted_before_they_are_built(text: str, fits: bool | None, form: Any) -> None:
    """Half a million lists would stop the whole process for long; brackets inside of strings are none."""
    incoming = read_command(form(text))
    if fits:
        assert incoming.error is None
    elif fits is None:
        assert incoming.error is not None
        assert incoming.error.code == "INVALID_JSON"
    else:
        assert fields_of(form(text)) == {"$": f"more than {MAX_CONTAINERS} lists and objects"}


def test_big_integers_are_read_as_numbers() -> None:
    """An integer beyond 64 bits is a number, not an error, and comes back in the answer."""
    incoming = read_command('{"type":"ping","timestamp":123456789012345678901234567890}')
    assert incoming.command == Ping(timestamp=1.2345678901234568e29)


@pytest.mark.parametrize("room", ["x", "context", "payload"])
def test_depth_is_bounded(room: str) -> None:
    """64 levels are read, 65 are INVALID_MESSAGE: what was read can always be written again."""

    def nested(levels: int) -> str:
        # The message itself is the first level, the object under *room* the second.
        tower = "[" * (levels - 2) + "]" * (levels - 2)
        return f'{{"type":"chat","content":"x","{room}":{{"a":{tower}}}}}'

    assert isinstance(read_command(nested(64)).command, UserMessage)
    assert fields_of(nested(65)) == {"$": "nested more than 64 levels deep"}


# What is wrong, and where.


def test_missing_type() -> None:
    """Without a type, or with null for one, a message is MISSING_TYPE."""
    for message in ({}, {"type": None}, {"content": "x"}, {"payload": {"type": "ping"}}):
        assert error_of(message).code == "MISSING_TYPE"


def test_a_type_is_a_string() -> None:
    """A type of another kind is INVALID_MESSAGE and named by its path."""
    assert fields_of({"type": 5}) == {"$.type": "expected string, got integer"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("strat_agent", "start_agent"),
        ("pingg", "ping"),
        ("user_mesage", "user_message"),
        ("subscribe", None),
        ("", None),
    ],
)
def test_did_you_mean(name: str, meant: str | None) -> None:
    """An unknown type is told back, with the nearest known one where there is one."""
    error = error_of({"type": name})
    assert error.code == "UNKNOWN_TYPE"
    assert error.text == f"unknown message type {name!r}"
    assert error.details == ({"did_you_mean": meant} if meant else None)


def test_a_long_unknown_type_is_cut() -> None:
    """An unknown type of a megabyte is not sent back in full."""
    assert len(error_of({"type": "x" * 1_000_000}).text) < 120


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ({"type": "stop_agent"}, {"$.run_id": "required field missing"}),
        ({"type": "stop_agent", "run_id": None}, {"$.run_id": "expected string, got null"}),
        ({"type": "stop_agent", "run_id": 5}, {"$.run_id": "expected string, got integer"}),
        ({"type": "stop_agent", "payload": {"run_id": 5}}, {"$.payload.run_id": "expected string, got integer"}),
        ({"type": "stop_agent", "payload": {"mode": "now"}}, {"$.payload.run_id": "required field missing"}),
        ({"type": "stop_agent", "payload": {"x": 1}, "run_id": 5}, {"$.run_id": "expected string, got integer"}),
        ({"type": "chat", "text": 5}, {"$.text": "expected string, got integer"}),
        ({"type": "chat", "payload": {"message": {}}}, {"$.payload.message": "expected string, got object"}),
        ({"type": "start_agent", "query": []}, {"$.query": "expected string, got list"}),
        ({"type": "ping", "id": 7}, {"$.id": "expected string, got integer"}),
        ({"type": "ping", "id": ""}, {"$.id": "must not be empty"}),
        ({"type": "ping", "message_id": 7}, {"$.message_id": "expected string, got integer"}),
        (
            {"type": "ping", "payload": {"message_id": "m" * 257}},
            {"$.payload.message_id": "longer than 256 characters"},
        ),
        ({"type": "ping", "payload": 5}, {"$.payload": "expected object, got integer"}),
        ({"type": "chat", "text": "x", "attachments": "abc"}, {"$.attachments": "expected list, got string"}),
        ({"type": "chat", "text": "x", "attachments": [5]}, {"$.attachments[0]": "expected object, got integer"}),
        ({"type": "chat", "text": "x", "attachments": ["x"]}, {"$.attachments[0]": "expected object, got string"}),
        (
            {"type": "chat", "text": "x", "payload": {"attachments": [{"name": "n", "media_type": 5, "url": "u"}]}},
            {"$.payload.attachments[0].media_type": "expected string, got integer"},
        ),
        (
            {"type": "chat", "text": "x", "attachments": [{"name": "n", "media_type": "m"}]},
            {"$.attachments[0]": "expected either data or url"},
        ),
        (
            {"type": "chat", "text": "x", "attachments": [{"name": "n", "media_type": "m", "data": "", "url": ""}]},
            {"$.attachments[0]": "expected either data or url"},
        ),
        ({"type": "chat", "text": "x", "jsonl_logs": [{}, 1]}, {"$.jsonl_logs": "expected object at [1], got integer"}),
        ({"type": "chat", "text": "x", "context": []}, {"$.context": "expected object, got list"}),
        (
            {"type": "chat", "text": "x", "on_busy": "wait"},
            {"$.on_busy": "expected one of enqueue, reject, interrupt, rollback, steer"},
        ),
        (
            {"type": "chat", "text": "x", "timeout_s": 0, "thread_id": "a b", "agent": 1},
            {
                "$.timeout_s": "must be above 0",
                "$.thread_id": "expected 1 to 128 of the characters A-Z a-z 0-9 _ . : -",
                "$.agent": "expected string, got integer",
            },
        ),
        ({"type": "list_threads", "limit": "5"}, {"$.limit": "expected integer, got string"}),
        ({"type": "list_threads", "limit": True}, {"$.limit": "expected integer, got boolean"}),
        ({"type": "list_threads", "limit": 101}, {"$.limit": "must be from 1 to 100"}),
        ({"type": "resume", "epoch": "e", "seq": 1.0}, {"$.seq": "expected integer, got number"}),
        (
            {"type": "ping", "timestamp": "soon"},
            {"$.timestamp": "expected a number, a numeric string or an ISO 8601 time"},
        ),
        (
            {"type": "create_thread", "metadata": {"a": "x" * MAX_METADATA_BYTES}},
            {"$.metadata": f"more than {MAX_METADATA_BYTES} bytes of JSON"},
        ),
    ],
)
def test_bad_fields_are_named_by_the_path_at_which_they_were_written(message: Any, fields: dict[str, str]) -> None:
    """Each bad field is named by its JSON path, under the name and at the place the client used; no type is bent."""
    assert fields_of(message) == fields


def test_a_payload_wins_but_its_nulls_hide_nothing() -> None:
    """A field of the payload wins over the same one beside it; null in it means absent."""
    message = {
        "type": "chat",
        "content": "outer",
        "thread_id": "t",
        "agent": "outer",
        "payload": {"content": "inner", "thread_id": None, "agent": "inner", "type": "ping"},
    }
    assert read_command(orjson.dumps(message)).command == UserMessage(content="inner", thread_id="t", agent="inner")


def test_null_is_a_value_where_any_json_is_wanted() -> None:
    """A required value may be null; an optional one is null by itself."""
    command = read_command(b'{"type":"publish_job","job_id":"j","name":"n","value":null}').command
    assert command == PublishJob(job_id="j", name="n", value=None)
    answer = read_command(b'{"type":"input_response","input_id":"i","status":"cancelled"}').command
    assert answer == InputResponse(input_id="i", status="cancelled")


def test_unknown_fields_are_ignored() -> None:
    """A field that no command has changes nothing."""
    assert read_command(b'{"type":"list_threads","colour":"red","payload":{"_":1}}').command == ListThreads()


@pytest.mark.parametrize("item", ["1", "{}", '{"name":1,"media_type":1}'])
def test_a_hostile_list_gets_a_short_answer(item: str) -> None:
    """However many items of a list are bad, the answer names a bounded number of them."""
    many = ",".join([item] * 50_000)
    error = error_of(f'{{"type":"chat","content":"x","attachments":[{many}]}}')
    assert error.details is not None
    assert MAX_BAD_ITEMS <= len(error.details["fields"]) <= MAX_BAD_ITEMS * 4
    frame = encode_reply(error_reply(error), 1.0)
    assert frame is not None
    assert len(frame) < 8000
    assert len(error.text) <= 1000


@given(TIMES)
def test_timestamps_come_back_as_they_came(moment: object) -> None:
    """A timestamp may be a number, a numeric string or ISO 8601, and is never changed."""
    command = read_command(orjson.dumps({"type": "ping", "timestamp": moment})).command
    assert command == Ping(timestamp=moment)  # type: ignore[arg-type]


# Whom the answer is for.


@pytest.mark.parametrize(
    ("message", "reply_to"),
    [
        ({"type": "ping", "id": "a"}, "a"),
        ({"type": "ping", "message_id": "b"}, "b"),
        ({"type": "ping", "id": "a", "message_id": "b"}, "a"),
        ({"type": "ping", "id": None, "message_id": "b"}, "b"),
        ({"type": "ping", "id": "a", "payload": {"id": "p"}}, "p"),
        ({"type": "ping", "id": "a", "payload": 5}, "a"),
        ({"type": "nope", "id": "a"}, "a"),
        ({"id": "a"}, "a"),
        ({"type": "stop_agent", "id": "a"}, "a"),
        ({"type": "ping", "id": 5}, None),
        ({"type": "ping", "id": "x" * 257}, None),
        ({"type": "ping"}, None),
    ],
)
def test_an_answer_names_its_command(message: Any, reply_to: str | None) -> None:
    """The answer carries the command's ``id`` or ``message_id``, also when it is an error."""
    assert read_command(orjson.dumps(message)).reply_to == reply_to


def test_an_error_has_the_documented_shape() -> None:
    """An ``error`` frame is the one of the contract, its text under both names."""
    incoming = read_command(b'{"type":"strat_agent","id":"c7"}')
    assert incoming.error is not None
    frame = encode_reply(error_reply(incoming.error), 1763.1, incoming)
    assert frame is not None
    assert orjson.loads(frame_payload(frame)) == {
        "type": "error",
        "reply_to": "c7",
        "code": "UNKNOWN_TYPE",
        "error": "unknown message type 'strat_agent'",
        "message": "unknown message type 'strat_agent'",
        "retryable": False,
        "details": {"did_you_mean": "start_agent"},
        "timestamp": 1763.1,
    }


def test_an_error_tells_when_to_come_back() -> None:
    """``retry_after_s`` and a correlation id are in the frame where they are known."""
    error = ClientError("RATE_LIMITED", "slower", retryable=True, retry_after_s=1.5)
    frame = encode_reply(error_reply(error, "abcd"), 1.0)
    assert frame is not None
    fields = orjson.loads(frame_payload(frame))
    assert (fields["retry_after_s"], fields["correlation_id"], fields["retryable"]) == (1.5, "abcd", True)
