"""Checks of what a reader heard: the grammar of a run, and nothing missing or doubled."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import (
    AgentCompleted,
    AgentMessage,
    AgentStarted,
    AgentThinking,
    InputReceived,
    InputRequired,
    RunEvent,
    ToolCompleted,
    ToolExecuting,
    ToolProgress,
)
from netra_ws.session import message_text


def check_run(events: Sequence[Heard]) -> AgentCompleted:
    """Check that the events of one run keep the grammar of PROTOCOL §3, and those of its sub-runs among them, too.

    Args:
        events: Everything heard of one run; what comes before ``agent_started`` is left out.

    Returns:
        The last event of the run.

    Raises:
        AssertionError: The grammar is broken; the text says where.
    """
    ended = check_family(events)
    first = [last for last in ended.values() if last.parent_run_id not in ended]
    assert len(first) == 1, f"events of {len(first)} runs"
    return first[0]


def _check_one(events: Sequence[Heard]) -> AgentCompleted:
    heard = _from_start(events)
    tools: set[str] = set()
    inputs: set[str] = set()
    texts: set[str] = set()
    thinking = False
    for one in heard[1:-1]:
        event = one.message
        if isinstance(event, ToolExecuting):
            _expect(event.tool_call_id not in tools, one, "a tool call began twice")
            tools.add(event.tool_call_id)
        elif isinstance(event, ToolCompleted):
            _expect(event.tool_call_id in tools, one, "a tool call ended that is not open")
            tools.remove(event.tool_call_id)
        elif isinstance(event, ToolProgress):
            _expect(event.tool_call_id in tools, one, "progress of a tool call that is not open")
        elif isinstance(event, InputRequired):
            inputs.add(event.input_id)
        elif isinstance(event, InputReceived):
            _expect(event.input_id in inputs, one, "an input was received that is not open")
            inputs.remove(event.input_id)
        elif isinstance(event, AgentMessage):
            (texts.add if event.phase == "delta" else texts.discard)(event.message_id)
        elif isinstance(event, AgentThinking):
            thinking = event.phase == "delta"
        _expect(not isinstance(event, AgentStarted | AgentCompleted), one, "a second start or an early end")
    last = heard[-1].message
    assert isinstance(last, AgentCompleted), f"the last event is {heard[-1].type}, not agent_completed"
    assert not tools, f"tool calls without an end: {tools}"
    assert not inputs, f"inputs without an end: {inputs}"
    assert not texts, f"messages without a final full: {texts}"
    assert not thinking, "a thought without a final full"
    seqs = [one.stamp.seq for one in heard if one.stamp is not None]
    assert seqs == sorted(set(seqs)), "numbers do not grow"
    assert last.success == (last.status == "success"), "success and status disagree"
    return last


def check_family(events: Sequence[Heard]) -> dict[str, AgentCompleted]:
    """Check the grammar of every run in *events*, and that every sub-run ends before its parent.

    Returns:
        The last event of each run, by run id.

    Raises:
        AssertionError: The text says where.
    """
    runs: dict[str, list[Heard]] = {}
    for one in events:
        if isinstance(one.message, RunEvent):
            runs.setdefault(one.message.run_id, []).append(one)
    ended = {run_id: _check_one(heard) for run_id, heard in runs.items()}
    spans = {run_id: (number(_from_start(heard)[0]), number(heard[-1])) for run_id, heard in runs.items()}
    for run_id, last in ended.items():
        if last.parent_run_id in ended:
            outer, inner = spans[last.parent_run_id], spans[run_id]
            assert outer[0] < inner[0] < inner[1] < outer[1], f"{run_id} is not inside of its parent: {inner}, {outer}"
    return ended


_BEFORE_A_RUN = ("thread_created", "user_message", "run_queued")


def _from_start(events: Sequence[Heard]) -> list[Heard]:
    starts = [position for position, one in enumerate(events) if isinstance(one.message, AgentStarted)]
    assert len(starts) == 1, f"{len(starts)} agent_started instead of one"
    before = [one.type for one in events[: starts[0]] if one.type not in _BEFORE_A_RUN]
    assert not before, f"said before agent_started: {before}"
    return list(events[starts[0] :])


def _expect(holds: bool, heard: Heard, text: str) -> None:
    assert holds, f"{text}: {dict(heard.fields)}"


def check_no_gap_no_double(
    heard: Sequence[Heard], witness: Sequence[Heard], *, skipping: bool = False, job_id: str | None = None
) -> None:
    """Check that a reader whom things happened to ended up with what a witness knows.

    Numbers grow, so nothing came twice; every durable event of the witness was heard, unchanged, and
    none besides; the pieces of every text, put together, are the text that was stored.

    Args:
        heard: What the reader got, over all of its connections (``session.events()``).
        witness: What there was: ``await server.recorded(user)``, or what an undisturbed reader heard.
        skipping: Whether pieces of texts may be missing where a ``full`` replaces them, as for a
            reader who was away for longer than the memory ring holds (``history.ring_events``): until
            that ``full``, such a reader may see a text with a hole.
        job_id: Look at what was heard of this job, whose witness is ``await server.recorded_job(job_id)``. By
            default only the user's own events are looked at.

    Raises:
        AssertionError: The text says where.
    """
    heard = [one for one in heard if _is_of(one, job_id)]
    resets = [one.fields.get("reason") for one in heard if one.type == "stream_reset"]
    assert not resets, f"the stream was reset, so events are missing: {resets} (overflow: give events() a larger limit)"
    numbers = [number(one) for one in heard]
    for before, after in itertools.pairwise(numbers):
        assert before < after, f"{after} was heard behind {before}"
    expected = {number(one): one for one in witness if is_durable(one)}
    got = {number(one): one for one in heard if is_durable(one)}
    missing = sorted(expected.keys() - got.keys())
    assert not missing, f"durable events were not heard: {[(seq, expected[seq].type) for seq in missing[:5]]}"
    invented = sorted(seq for seq in got.keys() - expected.keys() if not (skipping and _is_full(got[seq])))
    assert not invented, f"the witness does not know: {[(seq, got[seq].type) for seq in invented[:5]]}"
    for seq, one in expected.items():
        assert dict(got[seq].fields) == dict(one.fields), f"{seq} was heard otherwise: {dict(got[seq].fields)}"
    texts(heard, skipping=skipping)


def _is_of(heard: Heard, job_id: str | None) -> bool:
    """Whether a stream has to account for a frame; nobody knows whose events an overflow has dropped."""
    if heard.type == "job_disconnected":
        return False
    return heard.fields.get("job_id") == job_id or heard.fields.get("reason") == "overflow"


def texts(heard: Sequence[Heard], *, skipping: bool = False) -> dict[str, str]:
    """Put every message together as a client would, and return message id → text.

    Raises:
        AssertionError: The pieces of a message or thought are not what its ``full`` says; with
            *skipping*, they are no part of it.
    """
    said: dict[str, str] = {}
    thoughts: dict[str, str] = {}
    for one in heard:
        event = one.message
        if isinstance(event, AgentMessage):
            before = said.get(event.message_id, "")
            said[event.message_id] = after = message_text(before, event)
        elif isinstance(event, AgentThinking):
            before = thoughts.pop(event.run_id, "")
            after = message_text(before, event)
            if event.phase == "delta":
                thoughts[event.run_id] = after
        else:
            continue
        if event.phase == "full" and before:
            fits = _is_part(before, after) if skipping else before == after
            assert fits, f"{number(one)}: {_difference(before, after)}"
    return said


def _is_part(pieces: str, whole: str) -> bool:
    """Whether *pieces* is *whole* with parts left out."""
    rest = iter(whole)
    return all(character in rest for character in pieces)


def _difference(pieces: str, whole: str) -> str:
    pairs = zip(pieces, whole, strict=False)
    at = next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(pieces), len(whole)))
    around = slice(max(0, at - 20), at + 20)
    sizes = f"the pieces make {len(pieces)} characters, the whole has {len(whole)}"
    return f"{sizes}; they differ at {at}: {pieces[around]!r}, {whole[around]!r}"


def is_durable(heard: Heard) -> bool:
    """Whether an event is kept; only such are certain to be heard after a return."""
    return heard.message is None or bool(getattr(heard.message, "durable", True))


def _is_full(heard: Heard) -> bool:
    # Who comes late gets one where deltas stood; the store has none of that number.
    return isinstance(heard.message, AgentMessage | AgentThinking)


def number(heard: Heard) -> int:
    """Return the ``seq`` of an event."""
    assert heard.stamp is not None, f"an event without a number: {dict(heard.fields)}"
    return heard.stamp.seq
