"""Tests of ``netra_ws.compat.jsonrpc``, and of the JSON-RPC form of our wire over real sockets."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.compat import jsonrpc
from netra_ws.compat.jsonrpc import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    SERVER_ERROR,
    JsonRpcMessage,
    is_jsonrpc,
    make_error,
    make_notification,
    make_request,
    make_result,
    read_jsonrpc,
)
from netra_ws.compat.messages import MAX_MESSAGE_BYTES, MessageType, ServerMessage, WebSocketMessage
from netra_ws.errors import CommandFailed, InvalidArgument
from netra_ws.protocol.codec import encode_reply, error_reply, frame_payload, read_command
from netra_ws.protocol.commands import COMMANDS, Command, Ping, UserMessage

from ..conftest import StartServer
from ..kit import Client, connect, operator, token
from ..protocol.strategies import JSON, OBJECTS


@pytest.mark.parametrize(
    ("message", "claims"),
    [
        ({"jsonrpc": "2.0", "method": "ping"}, True),
        ({"jsonrpc": "2.0", "result": None}, True),
        ({"jsonrpc": "2.0", "error": {}}, True),
        ({"jsonrpc": "2.0"}, False),
        ({"jsonrpc": 2.0, "method": "ping"}, False),
        ({"jsonrpc": "1.0", "method": "ping"}, False),
        ({"method": "ping"}, False),
        ([{"jsonrpc": "2.0", "method": "ping"}], False),
        ("jsonrpc method", False),
        (None, False),
    ],
)
def test_what_is_json_rpc(message: object, claims: bool) -> None:
    """An object is JSON-RPC when it says so and calls or answers something."""
    assert is_jsonrpc(message) is claims


@pytest.mark.parametrize(
    ("message", "kind", "wire"),
    [
        (
            make_request("ping", {"a": 1}, 7),
            MessageType.JSONRPC_REQUEST,
            {"jsonrpc": "2.0", "method": "ping", "params": {"a": 1}, "id": 7},
        ),
        (make_request("ping"), MessageType.JSONRPC_REQUEST, {"jsonrpc": "2.0", "method": "ping", "id": None}),
        (make_notification("ping"), MessageType.JSONRPC_NOTIFICATION, {"jsonrpc": "2.0", "method": "ping"}),
        (make_result("x", None), MessageType.JSONRPC_RESPONSE, {"jsonrpc": "2.0", "result": None, "id": "x"}),
        (
            make_error(1.5, -32000, "no", [1]),
            MessageType.JSONRPC_RESPONSE,
            {"jsonrpc": "2.0", "error": {"code": -32000, "message": "no", "data": [1]}, "id": 1.5},
        ),
    ],
)
def test_what_is_made_is_as_the_specification_says(message: JsonRpcMessage, kind: MessageType, wire: Any) -> None:
    """Calls, notifications, results and errors have the fields of JSON-RPC 2.0, no more, and are read back."""
    assert message.kind is kind
    assert message.to_dict() == wire
    assert read_jsonrpc(message.to_json()) == JsonRpcMessage.from_dict(wire) == message


@pytest.mark.parametrize(
    ("message", "argument"),
    [
        ([], "message"),
        ({}, "jsonrpc"),
        ({"jsonrpc": "1.0", "method": "x"}, "jsonrpc"),
        ({"jsonrpc": "2.0"}, "message"),
        ({"jsonrpc": "2.0", "id": 1}, "message"),
        ({"jsonrpc": "2.0", "method": "x", "result": 1, "id": 1}, "message"),
        ({"jsonrpc": "2.0", "result": 1, "error": {"code": 1, "message": ""}, "id": 1}, "message"),
        ({"jsonrpc": "2.0", "result": 1}, "id"),
        ({"jsonrpc": "2.0", "result": 1, "id": 1, "params": {}}, "params"),
        ({"jsonrpc": "2.0", "method": 5}, "method"),
        ({"jsonrpc": "2.0", "method": ""}, "method"),
        ({"jsonrpc": "2.0", "method": "x", "params": 5}, "params"),
        ({"jsonrpc": "2.0", "method": "x", "params": None}, "params"),
        ({"jsonrpc": "2.0", "method": "x", "params": "ab"}, "params"),
        ({"jsonrpc": "2.0", "method": "x", "params": {"a": math.nan}}, "params"),
        ({"jsonrpc": "2.0", "method": "x", "id": True}, "id"),
        ({"jsonrpc": "2.0", "method": "x", "id": []}, "id"),
        ({"jsonrpc": "2.0", "method": "x", "id": math.inf}, "id"),
        ({"jsonrpc": "2.0", "error": 5, "id": 1}, "error"),
        ({"jsonrpc": "2.0", "error": {"message": "x"}, "id": 1}, "error"),
        ({"jsonrpc": "2.0", "error": {"code": True, "message": "x"}, "id": 1}, "error"),
        ({"jsonrpc": "2.0", "error": {"code": 1}, "id": 1}, "error"),
        ({"jsonrpc": "2.0", "result": object(), "id": 1}, "result"),
    ],
)
def test_what_is_no_json_rpc_is_refused_by_name(message: Any, argument: str) -> None:
    """Exactly one of method, result and error; ids, params and errors of the kinds that JSON-RPC allows."""
    with pytest.raises(InvalidArgument) as caught:
        JsonRpcMessage.from_dict(message)
    assert caught.value.argument == argument


@pytest.mark.parametrize("text", ["", "{", "[]", b"\xff", 5, None, " " * (MAX_MESSAGE_BYTES + 1)])
def test_text_that_is_none(text: Any) -> None:
    """What cannot be read raises our error, whatever it is."""
    with pytest.raises(InvalidArgument):
        read_jsonrpc(text)


def test_only_commands_of_our_wire_can_be_called() -> None:
    """An older name of a command becomes today's; what is no command is refused before it is sent."""
    assert make_request("user_input").method == "user_message"
    for method in ("agent_started", "strat_agent", 5, None):
        for make in (make_request, make_notification):
            with pytest.raises(InvalidArgument, match=r"^method: "):
                make(method)  # type: ignore[arg-type]


def test_a_call_is_a_command() -> None:
    """A call becomes the command that our wire reads from it; ids of JSON-RPC never become a command's id."""
    call = make_request("chat", {"content": "hi", "id": "no", "thread_id": "t"}, "c7")
    assert call.to_command() == UserMessage(content="hi", thread_id="t")  # type: ignore[arg-type]
    assert call.to_command() == read_command(call.to_json()).command
    assert make_notification("ping").to_command() == Ping()
    in_envelope = WebSocketMessage(type="jsonrpc_request", payload=call.to_dict(), message_id=None)
    assert in_envelope.to_command() == call.to_command()
    with pytest.raises(InvalidArgument, match="response"):
        make_result(1, {}).to_command()
    with pytest.raises(InvalidArgument, match=r"\$\.params: expected an object, got list"):
        JsonRpcMessage(method="ping", params=[1]).to_command()


def test_a_message_becomes_a_call() -> None:
    """An older message can be called, thread and payload being its params."""
    message = WebSocketMessage(type="user_input", payload={"content": "hi"}, thread_id="t", user_id="ada")
    call = JsonRpcMessage.from_message(message, 3)
    assert call == make_request("user_message", {"content": "hi", "thread_id": "t"}, 3)
    assert JsonRpcMessage.from_message(message).kind is MessageType.JSONRPC_NOTIFICATION
    with pytest.raises(InvalidArgument, match="no command"):
        JsonRpcMessage.from_message(WebSocketMessage(type="agent_started"))


def test_the_outcome_of_a_response() -> None:
    """A result is returned, null too; an error is raised with our code where our server said it."""
    assert make_result(1, None).outcome() is None
    with pytest.raises(CommandFailed) as foreign:
        make_error(1, -5, "no").outcome()
    assert (foreign.value.code, foreign.value.details, foreign.value.retryable) == ("-5", None, False)
    incoming = read_command('{"jsonrpc":"2.0","method":"stop_agent","id":1}')
    assert incoming.error is not None
    frame = encode_reply(error_reply(incoming.error), 2.5, incoming)
    assert frame is not None
    with pytest.raises(CommandFailed) as ours:
        read_jsonrpc(frame_payload(frame)).outcome()
    assert ours.value.code == "INVALID_MESSAGE"
    assert ours.value.details == {"fields": {"$.params.run_id": "required field missing"}}
    with pytest.raises(InvalidArgument, match="call"):
        make_request("ping").outcome()


@given(st.sampled_from([c.type for c in COMMANDS]), OBJECTS, st.text() | st.integers(-(2**53), 2**53) | st.none())
def test_calls_survive_the_way_over_the_wire(method: str, params: dict[str, Any], rpc_id: Any) -> None:
    """Whatever the params are, our wire reads the call under its id, and the call is read back as it was."""
    call = make_request(method, params, rpc_id)
    incoming = read_command(call.to_json())
    assert (incoming.rpc, incoming.silent, incoming.reply_to) == (True, False, rpc_id)
    assert read_jsonrpc(call.to_json()) == call


@given(st.text() | st.integers(-(2**53), 2**53), JSON)
def test_results_survive_the_way_over_the_wire(rpc_id: Any, result: Any) -> None:
    """Whatever a result is, it is read back as it was."""
    assert read_jsonrpc(make_result(rpc_id, result).to_json()).outcome() == result


# Over real sockets.

#: Method → params that are good, and the type of the result, or the code of the error that is due.
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "start_agent": ({"user_request": "x", "agent": "echo", "thread_id": "t"}, "ack"),
    "user_message": ({"content": "x", "agent": "echo", "thread_id": "t"}, "ack"),
    "stop_agent": ({"run_id": "none"}, "NOT_FOUND"),
    "input_response": ({"input_id": "none", "status": "cancelled"}, "NOT_FOUND"),
    "create_thread": ({"title": "T"}, "thread_created"),
    "list_threads": ({}, "thread_list"),
    "get_thread_history": ({"thread_id": "t"}, "thread_history"),
    "rename_thread": ({"thread_id": "t", "title": "T"}, "thread_renamed"),
    "delete_thread": ({"thread_id": "t"}, "thread_deleted"),
    "switch_thread": ({"thread_id": "t"}, "thread_switched"),
    "connect_job": ({"job_id": "mine"}, "job_connected"),
    "disconnect_job": ({"job_id": "mine"}, "job_disconnected"),
    "publish_job": ({"job_id": "mine", "name": "n", "value": 1}, "ack"),
    "resume": ({"epoch": "none", "seq": 0}, "ack"),
    "refresh_auth": ({"token": token("root")}, "auth_refreshed"),
    "kick": ({"user_id": "nobody"}, "ack"),
    "user_typing": ({"thread_id": "t"}, "ack"),
    "ping": ({"timestamp": 1}, "pong"),
    "heartbeat": ({}, "heartbeat_ack"),
    "connect": ({}, "ack"),
    "disconnect": ({}, "ack"),
    "handshake_acknowledged": ({"thread_id": "t"}, "INVALID_MESSAGE"),
}


async def answer_to(client: Client, call: JsonRpcMessage) -> JsonRpcMessage:
    """Send a call and return its answer; events and notices in between are skipped."""
    await client.say(call.to_json())
    while not is_jsonrpc(said := await client.receive()):
        assert "reply_to" not in said
    return JsonRpcMessage.from_dict(said)


def test_every_command_is_called_below() -> None:
    """A new command cannot be added without trying it as JSON-RPC."""
    assert CALLS.keys() == {class_.type for class_ in COMMANDS}


@pytest.mark.parametrize("class_", COMMANDS, ids=lambda class_: class_.type)
async def test_every_command_works_as_json_rpc(server: StartServer, class_: type[Command]) -> None:
    """Every command of a real server is answered as JSON-RPC, exactly once, under the id of its call."""
    running = await server()
    params, due = CALLS[class_.type]
    await running.job("root", "mine").emit("begun", 1)
    bearer = token("root", permissions=("chat", "read", "operator", "job:publish"))
    async with connect(running, bearer=bearer) as client:
        await answer_to(client, make_request("create_thread", {"thread_id": "t"}, 0))
        if class_.type == "disconnect_job":
            await answer_to(client, make_request("connect_job", {"job_id": "mine"}, 0))
        answer = await answer_to(client, make_request(class_.type, params, "the call"))
        assert answer.id == "the call"
        try:
            found = answer.outcome()["type"]
        except CommandFailed as failed:
            found = failed.code
        assert found == due
        shown = ServerMessage.from_event(answer.to_dict())
        assert shown.correlation_id == "the call"
        if class_.type != "disconnect":  # what comes is the answer to the next call, so nothing was said twice
            assert (await answer_to(client, make_request("ping", {}, "next"))).id == "next"


@pytest.mark.parametrize("class_", COMMANDS, ids=lambda class_: class_.type)
async def test_errors_of_every_command_have_the_id_of_its_call(server: StartServer, class_: type[Command]) -> None:
    """Bad params of any command are told under the call's id, and the connection goes on."""
    running = await server()
    async with connect(running, bearer=operator()) as client:
        good = CALLS[class_.type][0]
        answer = await answer_to(client, make_request(class_.type, {**good, "timestamp": "soon"}, 1.5))
        assert answer.id == 1.5
        assert answer.error is not None
        assert answer.error["code"] == INVALID_PARAMS
        assert answer.error["data"]["details"]["fields"].keys() == {"$.params.timestamp"}
        answer = await answer_to(client, JsonRpcMessage(method=class_.type, params=[1], id=None))
        assert (answer.id, answer.error and answer.error["code"]) == (None, INVALID_PARAMS)
        assert (await answer_to(client, make_request("ping", {}, 2))).outcome()["type"] == "pong"


async def test_notifications_and_other_errors_over_a_socket(server: StartServer) -> None:
    """A notification takes effect without an answer; numbers of errors are those of JSON-RPC."""
    running = await server()
    async with connect(running) as client:
        await client.say(make_notification("create_thread", {"thread_id": "quiet"}).to_json())
        await client.say(JsonRpcMessage(method="nope", params={}).to_json())
        threads = (await answer_to(client, make_request("list_threads", {}, 1))).outcome()["threads"]
        assert [thread["thread_id"] for thread in threads] == ["quiet"]
        for call, code, word in (
            (JsonRpcMessage(method="nope", id=2), METHOD_NOT_FOUND, "UNKNOWN_TYPE"),
            (make_request("chat", {"content": " "}, 2), SERVER_ERROR, "EMPTY_MESSAGE"),
            (make_request("stop_agent", {"run_id": "none"}, 2), SERVER_ERROR, "NOT_FOUND"),
        ):
            answer = await answer_to(client, call)
            assert answer.error is not None
            assert (answer.id, answer.error["code"], answer.error["data"]["code"]) == (2, code, word)
        for text in ('{"jsonrpc":"2.0","id":3}', '{"jsonrpc":"2.0","method":5,"id":3}'):
            await client.say(text)
            answer = JsonRpcMessage.from_dict(await client.receive())
            assert (answer.id, answer.error and answer.error["code"]) == (3, INVALID_REQUEST)


def test_the_numbers_are_those_of_the_wire() -> None:
    """Numbers of errors here are those that our wire says, and those of the specification."""
    assert (PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS) == (-32700, -32600, -32601, -32602)
    for message, code in (
        ({"method": "nope", "id": 1}, jsonrpc.METHOD_NOT_FOUND),
        ({"method": "stop_agent", "id": 1}, jsonrpc.INVALID_PARAMS),
        ({"id": 1}, jsonrpc.INVALID_REQUEST),
        ({"method": "chat", "params": {"content": ""}, "id": 1}, jsonrpc.SERVER_ERROR),
    ):
        incoming = read_command(orjson.dumps({"jsonrpc": "2.0", **message}))
        assert incoming.error is not None
        frame = encode_reply(error_reply(incoming.error), 1.0, incoming)
        assert frame is not None
        answer = read_jsonrpc(frame_payload(frame))
        assert (answer.id, answer.error and answer.error["code"]) == (1, code)
