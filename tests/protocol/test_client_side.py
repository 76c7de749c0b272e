"""Tests of ``netra_ws.protocol.codec`` as a client uses it: reading frames of a server, also of a newer one."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.protocol.codec import read_server
from netra_ws.protocol.events import RunQueued, Stamp
from netra_ws.protocol.replies import Ack

from .strategies import JSON


@pytest.mark.parametrize("text", ["[]", "5", '{"seq":1}', '{"type":5}', "{", b"\xff"])
def test_what_is_not_of_this_protocol(text: str | bytes) -> None:
    """A frame that is no object with a type is a ValueError for the client."""
    with pytest.raises(ValueError):
        read_server(text)


def test_types_of_a_newer_server_are_kept() -> None:
    """An unknown type is no error: its fields are there, without a message."""
    heard = read_server(b'{"type":"hologram","seq":5,"x":1}')
    assert (heard.type, heard.message, heard.stamp) == ("hologram", None, None)
    assert heard.fields["x"] == 1


def test_unknown_fields_of_a_newer_server_are_ignored() -> None:
    """A known type with more fields than this version knows is read all the same."""
    assert read_server(b'{"type":"ack","run_id":"r","colour":"red","reply_to":"c"}').message == Ack(run_id="r")


@given(
    st.dictionaries(st.sampled_from(["seq", "reply_to", "timestamp", "event_id", "user_id", "code"]), JSON, max_size=6)
)
def test_a_strange_frame_is_no_error(fields: dict[str, Any]) -> None:
    """A frame with a known type and anything else in it is read without an exception."""
    for type_ in ("agent_event", "thread_created", "error", "ack", "run_queued"):
        heard = read_server(orjson.dumps({**fields, "type": type_}))
        assert heard.reply_to is None or isinstance(heard.reply_to, str)
        assert heard.fields == {**fields, "type": type_}


def test_a_known_type_with_a_strange_field_is_kept_as_it_is() -> None:
    """An event of a newer server that this version cannot build is given with its fields, without a message."""
    event = {"type": "agent_thinking", "seq": 1, "timestamp": 1.0, "event_id": "e.1", "user_id": "u", "thread_id": "t"}
    event |= {"run_id": "r", "agent_name": "a", "reasoning": "x"}
    heard = read_server(orjson.dumps({**event, "step": ["a", "b"]}))
    assert (heard.message, heard.fields["step"]) == (None, ["a", "b"])
    assert read_server(orjson.dumps({**event, "step": 2})).message is not None


def test_an_event_of_a_job_needs_no_user() -> None:
    """An event without ``user_id``, as a job's stream may have, is an event all the same."""
    heard = read_server(
        b'{"type":"run_queued","seq":5,"timestamp":1,"event_id":"e.5","job_id":"j",'
        b'"thread_id":"t","run_id":"r","agent_name":"a","position":1}'
    )
    assert heard.stamp == Stamp(seq=5, timestamp=1.0, event_id="e.5", user_id="")
    assert heard.message == RunQueued(thread_id="t", run_id="r", agent_name="a", position=1)
