"""Tests of ``netra_ws.protocol.codec`` where a client speaks JSON-RPC 2.0."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from netra_ws.protocol.codec import Incoming, encode_reply, error_reply, frame_payload, read_command
from netra_ws.protocol.commands import Ping
from netra_ws.protocol.replies import Pong


def rpc(message: Any) -> tuple[Incoming, Any]:
    """Read a request and answer it; return both, the answer None when there is none."""
    incoming = read_command(orjson.dumps({"jsonrpc": "2.0", **message}))
    reply = Pong(original_timestamp=1) if incoming.error is None else error_reply(incoming.error)
    frame = encode_reply(reply, 2.5, incoming)
    return incoming, None if frame is None else orjson.loads(frame_payload(frame))


@pytest.mark.parametrize("rpc_id", ["a", "", 7, -1, 1.5, None, 2**60])
def test_a_request_is_answered_under_its_id(rpc_id: Any) -> None:
    """Any id that JSON-RPC allows comes back unchanged, with the reply as the result."""
    incoming, answer = rpc({"method": "ping", "id": rpc_id, "params": {"timestamp": 1, "id": "x", "type": "chat"}})
    assert incoming.command == Ping(timestamp=1)  # type: ignore[arg-type]
    assert answer == {
        "jsonrpc": "2.0",
        "id": rpc_id,
        "result": {"type": "pong", "original_timestamp": 1, "timestamp": 2.5},
    }


@pytest.mark.parametrize(
    "message", [{"method": "ping"}, {"method": "nope"}, {"method": 5}, {"method": "chat", "params": 5}]
)
def test_a_notification_is_never_answered(message: Any) -> None:
    """A request without an id gets no answer, neither a result nor an error."""
    incoming, answer = rpc(message)
    assert incoming.silent
    assert answer is None


@pytest.mark.parametrize(
    ("message", "code", "word"),
    [
        ({}, -32600, "MISSING_TYPE"),
        ({"method": 5}, -32600, "INVALID_MESSAGE"),
        ({"method": "nope"}, -32601, "UNKNOWN_TYPE"),
        ({"method": "stop_agent"}, -32602, "INVALID_MESSAGE"),
        ({"method": "stop_agent", "params": ["run"]}, -32602, "INVALID_MESSAGE"),
        ({"method": "chat", "params": {"content": " "}}, -32000, "EMPTY_MESSAGE"),
    ],
)
def test_json_rpc_error_codes(message: Any, code: int, word: str) -> None:
    """Errors have the numbers of JSON-RPC 2.0 §5.1, and ours in their data."""
    _, answer = rpc({"id": 1, **message})
    assert answer["id"] == 1
    assert answer["error"]["code"] == code
    assert answer["error"]["data"]["code"] == word
    assert "result" not in answer


@pytest.mark.parametrize("rpc_id", [True, [], {}])
def test_a_bad_json_rpc_id(rpc_id: Any) -> None:
    """An id of a kind that JSON-RPC does not allow is an invalid request, answered under null."""
    incoming, answer = rpc({"method": "ping", "id": rpc_id})
    assert not incoming.silent
    assert (answer["id"], answer["error"]["code"]) == (None, -32600)


def test_json_rpc_names_bad_params_by_path() -> None:
    """The paths of bad fields begin at ``$.params``."""
    incoming, _ = rpc({"method": "chat", "id": 1, "params": {"text": 5}})
    assert incoming.error is not None
    assert incoming.error.details == {"fields": {"$.params.text": "expected string, got integer"}}


def test_another_json_rpc_version_is_no_json_rpc() -> None:
    """Only exactly "2.0" makes a message JSON-RPC."""
    incoming = read_command(b'{"jsonrpc":2.0,"type":"ping","id":"a"}')
    assert (incoming.command, incoming.rpc, incoming.reply_to) == (Ping(id="a"), False, "a")  # type: ignore[arg-type]
