"""Tests of ``netra_ws.protocol.replies``: the answers and notices of PROTOCOL §1, §2 and §4."""

from __future__ import annotations

from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.protocol.codec import Incoming, encode_reply, frame_payload, read_server
from netra_ws.protocol.replies import (
    MALFORMED,
    MAX_MALFORMED,
    REPLIES,
    ConnectionEstablished,
    ErrorCode,
    HistoryMessage,
    Reply,
    ThreadHistory,
)

from .strategies import least, of

#: type → fields on the wire besides ``type``, ``timestamp`` and ``reply_to``; ``?``: left out when absent.
TABLE = {
    "connection_established": "connection_id user_id protocol server_time heartbeat_interval_s pong_timeout_s limits"
    " stream resume_window_s resumed active_runs pending_inputs agents connection_ready",
    "ack": "run_id? thread_id? message_id? disposition? status? seq? connections? runs?",
    "error": "code error message retryable retry_after_s? details? correlation_id?",
    "pong": "original_timestamp?",
    "heartbeat_ack": "status",
    "thread_created": "thread_id title metadata",
    "thread_renamed": "thread_id title metadata",
    "thread_deleted": "thread_id title metadata",
    "thread_switched": "thread_id",
    "thread_list": "threads next",
    "thread_history": "thread_id messages partial stream next",
    "job_connected": "job_id stream",
    "job_disconnected": "job_id",
    "auth_refreshed": "expires_at",
    "typing": "user_id thread_id is_typing",
    "replay_completed": "epoch from_seq to_seq count complete reason job_id?",
    "stream_reset": "epoch seq reason job_id?",
    "lagging": "skipped from_seq to_seq job_id?",
    "auth_expiring": "expires_at expires_in_s",
    "connection_warning": "code error",
    "draining": "reconnect_after_ms deadline_s",
    "handshake_response": "thread_id run_id request_id session_token message",
    "handshake_complete": "thread_id",
}
CODES = (
    "INVALID_JSON INVALID_MESSAGE MISSING_TYPE UNKNOWN_TYPE EMPTY_MESSAGE NOT_FOUND CONFLICT FORBIDDEN BUSY"
    " RATE_LIMITED QUOTA_EXCEEDED ALREADY_ANSWERED UNKNOWN_AGENT AUTH_FAILED DRAINING UNAVAILABLE CANCEL_TIMEOUT"
    " INTERNAL"
)


def wire(reply: Reply, now: float = 5.5, incoming: Incoming | None = None) -> dict[str, Any]:
    frame = encode_reply(reply, now, incoming)
    assert frame is not None
    fields: dict[str, Any] = orjson.loads(frame_payload(frame))
    return fields


def test_every_documented_reply_exists() -> None:
    """The control frames of the contract are those that the server can say, no more and no less."""
    assert {reply.type for reply in REPLIES} == set(TABLE)


def test_error_codes() -> None:
    """The codes of an ``error`` are the documented ones; the malformed ones close after 20 in a row."""
    assert set(get_args(ErrorCode)) == set(CODES.split())
    assert {"INVALID_JSON", "INVALID_MESSAGE", "MISSING_TYPE", "UNKNOWN_TYPE"} == MALFORMED
    assert MAX_MALFORMED == 20


@given(st.one_of([of(class_) for class_ in REPLIES]), st.none() | st.text(min_size=1, max_size=256))
def test_a_reply_survives_the_wire(reply: Reply, reply_to: str | None) -> None:
    """A client reads exactly the reply that the server wrote, and which command it answers."""
    frame = encode_reply(reply, 1.0, Incoming(reply_to=reply_to))
    assert frame is not None
    heard = read_server(frame_payload(frame))
    assert heard.message == reply
    assert heard.reply_to == reply_to
    assert heard.stamp is None


@given(st.one_of([of(class_) for class_ in REPLIES]))
def test_fields_are_there_or_left_out_as_documented(reply: Reply) -> None:
    """A field marked ``?`` is left out when absent; every other field is always there, null or not."""
    fields = wire(reply)
    assert fields.pop("type") == reply.type
    assert fields.pop("timestamp") == 5.5
    documented = TABLE[reply.type].split()
    optional = {name[:-1] for name in documented if name.endswith("?")}
    always = set(documented) - {f"{name}?" for name in optional}
    assert always <= fields.keys() <= always | optional
    for name in optional:
        assert (name in fields) == (getattr(reply, name) is not None)


@pytest.mark.parametrize("class_", REPLIES, ids=lambda class_: class_.type)
def test_a_notice_answers_nothing(class_: type[Reply]) -> None:
    """Without a command, or with one that had no id, there is no ``reply_to`` and no ``seq``."""
    fields = wire(least(class_), incoming=Incoming())
    assert "reply_to" not in fields
    assert "seq" not in fields or class_.type == "stream_reset"


def test_the_welcome_has_the_documented_shape() -> None:
    """The objects inside ``connection_established`` have exactly the documented fields."""
    fields = wire(least(ConnectionEstablished))
    limits = "max_message_bytes messages_per_minute max_connections_per_user max_runs_per_user"
    assert fields["limits"].keys() == set(limits.split())
    assert fields["stream"].keys() == {"epoch", "seq"}
    assert fields["connection_ready"] is True


@given(of(ThreadHistory))
def test_a_history_has_the_documented_shape(history: ThreadHistory) -> None:
    """Messages and partial texts of a history have exactly the documented fields; attachments only where there are."""
    fields = wire(history)
    for message, row in zip(fields["messages"], history.messages, strict=True):
        shape = {"id", "role", "content", "created_at", "run_id"}
        assert message.keys() == shape | ({"attachments"} if row.attachments is not None else set())
    for partial in fields["partial"]:
        assert partial.keys() == {"message_id", "run_id", "content"}
    assert fields["stream"].keys() == {"epoch", "seq"}


def test_a_message_of_no_run_says_so() -> None:
    """``run_id`` of a message is null where there is none, not absent."""
    message = HistoryMessage(id="m", role="user", content="x", created_at=1.0, run_id=None)
    history = ThreadHistory(
        thread_id="t", messages=[message], partial=[], stream=least(ThreadHistory).stream, next=None
    )
    assert wire(history)["messages"][0]["run_id"] is None
    assert wire(history)["next"] is None
