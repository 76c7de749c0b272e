"""Tests of ``netra_ws.protocol.events``: everything that PROTOCOL §3 says about runs and threads."""

from __future__ import annotations

from typing import Any

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.protocol.codec import encode_event, frame_payload, read_server
from netra_ws.protocol.events import (
    EVENTS,
    AgentCompleted,
    AgentMessage,
    AgentThinking,
    Announcement,
    Event,
    Stamp,
    ToolProgress,
    Usage,
)

from .strategies import least, of

STAMPS = of(Stamp)
STAMPED = "type event_id seq timestamp user_id"
RUN = "thread_id run_id agent_name parent_run_id?"

#: PROTOCOL §3: type → fields on the wire; ``?`` marks those that are left out when absent.
TABLE = {
    "agent_started": f"{RUN} message_id trigger parent_tool_call_id?",
    "agent_thinking": f"{RUN} reasoning phase step? progress?",
    "tool_executing": f"{RUN} tool_call_id tool_name parameters status timeout_s?",
    "tool_completed": f"{RUN} tool_call_id tool_name status success results error? duration_ms",
    "agent_completed": f"{RUN} status success final_response error? cancelled_by? usage? duration_ms events",
    "agent_message": f"{RUN} message_id phase content role",
    "tool_progress": f"{RUN} tool_call_id progress message?",
    "input_required": f"{RUN} input_id prompt choices? schema? expires_at?",
    "input_received": f"{RUN} input_id status value by",
    "user_message": f"{RUN} message_id content disposition command_id?",
    "run_queued": f"{RUN} position",
    "agent_event": f"{RUN} name value",
    "thread_created": "thread_id title metadata",
    "thread_renamed": "thread_id title metadata",
    "thread_deleted": "thread_id title metadata",
}
#: What an ``agent_event`` of no run of its stream carries (of a job, or of a program).
ANNOUNCED = "name value job_id? run_id? agent_name?"
#: PROTOCOL §3: field → every value that it may have.
WORDS = {
    ("agent_started", "trigger"): "message start_agent api queue delegate",
    ("agent_thinking", "phase"): "delta full",
    ("agent_message", "phase"): "delta full",
    ("agent_message", "role"): "assistant",
    ("tool_executing", "status"): "executing",
    ("tool_completed", "status"): "ok error denied cancelled timeout",
    ("agent_completed", "status"): "success cancelled error timeout lost",
    ("user_message", "disposition"): "started queued steered",
}
CANCELLED_BY = "user disconnect timeout idle_timeout interrupt rollback parent quota shutdown admin"


def wire(event: Event, stamp: Stamp) -> dict[str, Any]:
    fields: dict[str, Any] = orjson.loads(frame_payload(encode_event(event, stamp)))
    return fields


def table(class_: type[Event]) -> str:
    return ANNOUNCED if class_ is Announcement else TABLE[class_.type]


def names(documented: str, *, optional: bool) -> set[str]:
    return {name.rstrip("?") for name in documented.split() if optional or not name.endswith("?")}


def test_every_documented_event_exists() -> None:
    """The events of the contract are those that the server can say, no more and no less."""
    assert {event.type for event in EVENTS} == set(TABLE)


@given(st.one_of([st.tuples(of(class_), STAMPS) for class_ in EVENTS]))
def test_an_event_survives_the_wire(case: tuple[Event, Stamp]) -> None:
    """A client reads exactly the event and the stamp that the server wrote, for every value."""
    event, stamp = case
    if isinstance(event, Announcement):  # who said it is on the wire in any case: else the stream's owner
        event = attrs.evolve(event, user_id=event.user_id or stamp.user_id)
        stamp = attrs.evolve(stamp, user_id=event.user_id)
    heard = read_server(frame_payload(encode_event(event, stamp)))
    assert heard.message == event
    assert heard.stamp == stamp
    assert heard.reply_to is None


@given(st.one_of([of(class_) for class_ in EVENTS]), STAMPS)
def test_fields_are_there_or_left_out_as_documented(event: Event, stamp: Stamp) -> None:
    """A field marked ``?`` is left out when absent; every other field is always there, null or not."""
    fields = wire(event, stamp)
    documented = f"{STAMPED} {table(type(event))}"
    assert names(documented, optional=False) <= fields.keys() <= names(documented, optional=True)
    for name in names(documented, optional=True) - names(documented, optional=False):
        assert (name in fields) == (getattr(event, name) is not None)


@pytest.mark.parametrize("class_", EVENTS, ids=lambda class_: class_.type)
def test_an_event_with_nothing_optional_has_no_more_than_must_be(class_: type[Event]) -> None:
    """What is not said is not on the wire; what must be said is, as null where there is nothing."""
    fields = wire(least(class_), Stamp(seq=1, timestamp=2.5, event_id="e.1", user_id="alice"))
    assert fields.keys() == names(f"{STAMPED} {table(class_)}", optional=False)
    stamped = {"type": class_.type, "event_id": "e.1", "seq": 1, "timestamp": 2.5, "user_id": "alice"}
    assert fields.items() >= stamped.items()


@pytest.mark.parametrize(("type_", "field"), WORDS)
def test_words_of_the_contract(type_: str, field: str) -> None:
    """A field with a fixed set of words has exactly the documented ones."""
    (class_,) = (event for event in EVENTS if event.type == type_)
    assert _words(getattr(attrs.fields(class_), field).type) == set(WORDS[type_, field].split())


def test_who_can_cancel() -> None:
    """``cancelled_by`` has exactly the documented words."""
    assert _words(attrs.fields(AgentCompleted).cancelled_by.type) >= set(CANCELLED_BY.split())


def _words(type_: Any) -> set[str]:
    words: set[str] = set()
    for inner in getattr(type_, "__args__", ()):
        words |= {inner} if isinstance(inner, str) else _words(inner)
    return words


@given(st.one_of([of(class_) for class_ in EVENTS]))
def test_what_is_durable(event: Event) -> None:
    """Everything is durable except deltas and the progress of tools."""
    passing = isinstance(event, ToolProgress) or getattr(event, "phase", "full") == "delta"
    assert event.durable is not passing


def test_a_usage_count_that_nobody_told_is_absent() -> None:
    """A count that is not known is left out, which is not the same as zero."""
    usage = [Usage(provider="p", model="m", input_tokens=0)]
    event = attrs.evolve(least(AgentCompleted), usage=usage)
    fields = wire(event, Stamp(seq=1, timestamp=0.0, event_id="e", user_id="u"))
    assert fields["usage"] == [{"provider": "p", "model": "m", "input_tokens": 0}]


@pytest.mark.parametrize("value", [{1, 2}, object(), 2**64, "\ud800", {"a": b"bytes"}, {1: "key"}])
def test_what_json_cannot_say_is_a_type_error(value: Any) -> None:
    """An event with a value that is no JSON is refused when it is encoded, as documented."""
    event = attrs.evolve(least(AgentCompleted), final_response=value)
    with pytest.raises(TypeError):
        encode_event(event, Stamp(seq=1, timestamp=0.0, event_id="e", user_id="u"))


@pytest.mark.parametrize("step", [None, "plan", 3])
def test_a_step_is_a_text_or_a_number(step: str | int | None) -> None:
    """The step of a thought keeps its kind on its way to the client."""
    event = attrs.evolve(least(AgentThinking), step=step)
    heard = read_server(frame_payload(encode_event(event, Stamp(seq=1, timestamp=0.0, event_id="e", user_id="u"))))
    assert heard.message == event


def test_a_message_has_to_say_its_phase() -> None:
    """A delta cannot be taken for a whole text by forgetting a field."""
    with pytest.raises(TypeError):
        AgentMessage(thread_id="t", run_id="r", agent_name="a", message_id="m", content="x")  # type: ignore[call-arg]
