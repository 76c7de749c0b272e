"""Tests of ``netra_ws.pending``."""

from __future__ import annotations

import json

from netra_ws.pending import MAX_INPUTS, PendingInput, PendingInputs
from netra_ws.protocol.codec import Heard, read_server


def _event(type_: str, **fields: object) -> Heard:
    names = {"seq": 1, "event_id": "e", "timestamp": 1.0, "user_id": "ada", "thread_id": "t", "run_id": "r"}
    return read_server(json.dumps({"type": type_, "agent_name": "a"} | names | fields))


def test_their_number_is_bounded() -> None:
    """A server that asks without end costs no memory: the oldest input is forgotten first."""
    inputs = PendingInputs()
    for number in range(MAX_INPUTS + 2):
        inputs.hear(_event("input_required", input_id=f"i{number}", prompt="?"))
    assert [pending.input_id for pending in inputs] == [f"i{number}" for number in range(2, MAX_INPUTS + 2)]


def test_one_that_comes_again_is_one() -> None:
    """An input that a replay brings once more stays where it is, and drives no other out."""
    inputs = PendingInputs(limit=2)
    for input_id in ("a", "b", "a"):
        inputs.hear(_event("input_required", input_id=input_id, prompt="?"))
    assert [pending.input_id for pending in inputs] == ["a", "b"]


def test_a_newer_server_may_say_more() -> None:
    """Fields that are missing or of another kind leave an input that can be answered all the same."""
    fields = {"input_id": "i", "run_id": "r", "choices": [1, "two"], "schema": True, "expires_at": "soon", "more": 1}
    pending = PendingInput.read(fields)
    assert pending == PendingInput(
        input_id="i", run_id="r", thread_id="", agent_name="", prompt="", choices=("1", "two")
    )


def test_what_names_no_input_is_none() -> None:
    """Without an id there is nothing to answer."""
    inputs = PendingInputs()
    inputs.welcomed([{}, {"input_id": 5, "run_id": "r"}, {"input_id": "i"}, {"input_id": "j", "run_id": "r"}])
    inputs.hear(_event("input_received", input_id=["no", "id"], status="resolved", value=None, by="x"))
    assert [pending.input_id for pending in inputs] == ["j"]
