"""The watch itself: what it must not let pass, also where the server does not go yet."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from .marks import Reader, Said, Watch, mark_of

ADA, BOB = mark_of(1), mark_of(2)
RUN = "run_0123456789abcdef0123456789abcdef"


def leaks(
    *frames: dict[str, Any], said: Said | None = None, echoed: set[bytes] | None = None, **known: Any
) -> list[str]:
    """Let Bob hear frames after Ada has heard of a run; return what the watch has against it."""
    watch = Watch(publishers={"job-1": {ADA.encode(), BOB.encode()}, "job-2": {ADA.encode()}})
    watch.look(Reader(f"user-{ADA}", ADA), json.dumps({"type": "ack", "run_id": RUN, "epoch": "adasepoch"}).encode())
    bob = Reader(f"user-{BOB}", BOB, frozenset({"job-1"}), echoed or set(), **known)
    for fields in frames:
        watch.look(bob, json.dumps(fields).encode(), {"c": said} if said else {})
    assert watch.frames == 1 + len(frames)
    return [leak.what for leak in watch.leaks]


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "agent_message", "content": f"deep {ADA} in a text"},
        {"type": "agent_event", "value": [{"x": {"y": f"{ADA}"}}]},
        {"type": "typing", "user_id": f"user-{ADA}"},
        {"type": "typing", "user_id": "somebody"},
        {"type": "ack", "run_id": RUN},
        {"type": "stream_reset", "stream": {"epoch": "adasepoch"}},
        {"type": "agent_event", "event_id": "e.3", "seq": 3, "job_id": "job-2", "value": 1},
        {"type": "job_connected", "job_id": "job-2", "stream": {"epoch": "new", "seq": 0}},
        {"jsonrpc": "2.0", "id": 1, "result": {"type": "job_connected", "job_id": "job-2", "stream": {"epoch": "new"}}},
        {"type": "agent_event", "event_id": "e.3", "seq": 3, "job_id": "job-2", "value": ADA},
        {"type": "agent_event", "event_id": "e.3", "seq": 3, "job_id": "job-2", "user_id": f"user-{BOB}", "value": BOB},
        {"type": "agent_event", "event_id": "e.3", "seq": 3, "job_id": "job-1", "value": mark_of(3)},
        {"type": "agent_event", "event_id": "e.3", "seq": 3, "job_id": "own", "user_id": f"user-{BOB}", "value": ADA},
        {"type": "job_connected", "job_id": "own", "stream": {"epoch": "adasepoch", "seq": 3}},
        {
            "jsonrpc": "2.0",
            "id": 1,
            "error": {"code": 1, "message": "", "data": {"type": "error", "code": "X", "of": ADA}},
        },
    ],
    ids=lambda fields: f"{fields.get('type', 'rpc')}-{sorted(fields)[0]}",
)
def test_what_must_not_pass(fields: dict[str, Any]) -> None:
    """Another's mark, id or name anywhere in a frame is a leak, and so is a job that was not granted."""
    assert leaks(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "agent_message", "content": BOB, "user_id": f"user-{BOB}"},
        {
            "type": "agent_event",
            "event_id": "e.3",
            "seq": 3,
            "job_id": "job-1",
            "user_id": f"user-{ADA}",
            "value": ADA,
            "run_id": RUN,
        },
        {"type": "job_connected", "job_id": "job-1", "stream": {"epoch": "adasepoch", "seq": 3}},
        {
            "jsonrpc": "2.0",
            "id": 1,
            "result": {"type": "job_connected", "job_id": "job-1", "stream": {"epoch": "adas"}},
        },
        {"type": "agent_event", "event_id": "e.3", "seq": 3, "job_id": "own", "user_id": f"user-{BOB}", "value": BOB},
    ],
    ids=["own", "job event", "job position", "job position by JSON-RPC", "owned job"],
)
def test_what_may_pass(fields: dict[str, Any]) -> None:
    """One's own, and what those say who publish in a job that was granted, is none."""
    assert not leaks(fields)


def test_an_id_that_was_said_may_be_echoed() -> None:
    """Who names another's thread hears that name again; a mark beside it is a leak nevertheless."""
    thread = f"t.{ADA}.1"
    assert not leaks({"type": "thread_switched", "thread_id": thread}, echoed={thread.encode()})
    assert leaks({"type": "thread_switched", "thread_id": thread, "title": ADA}, echoed={thread.encode()})


def test_answers_that_show_that_something_exists() -> None:
    """Success about what a user cannot know, a conflict with what was never said, a talkative error: all are leaks."""
    stop = Said("stop_agent", ("r-a",), (), True)
    assert leaks({"type": "ack", "reply_to": "c"}, said=stop)
    assert not leaks({"type": "ack", "reply_to": "c"}, said=stop, knows={"r-a"})
    missing = {"type": "error", "reply_to": "c", "code": "NOT_FOUND"}
    assert not leaks({**missing, "error": "there is no such run"}, said=stop)
    assert leaks({**missing, "error": "this run is another's"}, said=stop)
    assert leaks({"type": "error", "reply_to": "c", "code": "FORBIDDEN", "error": "not yours"}, said=stop)
    conflict = {"type": "error", "reply_to": "c", "code": "CONFLICT", "error": "used before"}
    start = Said("start_agent", (), ("run r-a",), True)
    assert leaks(conflict, said=start, used=Counter({"run r-a": 1}))
    assert not leaks(conflict, said=start, used=Counter({"run r-a": 2}))
