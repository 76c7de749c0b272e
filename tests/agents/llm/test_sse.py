"""Server-sent events come out of bytes whole and in order, wherever these were cut."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netra_ws.agents.llm.sse import EventDecoder, EventTooLong, ServerEvent


def decode(*pieces: bytes, **options: int) -> list[ServerEvent]:
    decoder = EventDecoder(**options)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return [*events, *filter(None, [decoder.finish()])]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(ends)]


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"data: a\n\n", ["a"]),
        (b"data:a\n\n", ["a"]),
        (b"data:  a\n\n", [" a"]),
        (b"data: a\r\n\r\n", ["a"]),
        (b"data: a\r\r", ["a"]),
        (b"data: a\r\n\ndata: b\n\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", ["b"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data\ndata:\n\n", ["\n"]),
        (b"data: a\r\ndata: b\r\n\r\n", ["a\nb"]),
        (b"data: a\rdata: b\r\r", ["a\nb"]),
        (b": a comment\n\n:\n\ndata: a\n: another\n\n", ["a"]),
        (b"id: 7\nretry: 5\nfoo: bar\ndata: a\n\n", ["a"]),
        (b"event: ping\n\ndata: a\n\n", ["a"]),
        (b"\n\n\r\n\r\n\r\rdata: a\n\n", ["a"]),
        (b"data: a\n\ndata: [DONE]", ["a", "[DONE]"]),
        (b"data: a\n", ["a"]),
        ("data: a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\n\n".encode(), ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"]),
        (b"data: \xff\n\n", ["\ufffd"]),
        (b"", []),
        (b"\xef\xbb", []),
    ],
)
def test_forms(data: bytes, events: list[str]) -> None:
    """Every form that the standard allows is read, and what has no data is no event, however it is cut."""
    assert [event.data for event in decode(data)] == events
    assert [event.data for event in decode(*(bytes([byte]) for byte in data))] == events


def test_a_name() -> None:
    """An event has the name that was given for it, and only it."""
    assert decode(b"event: error\ndata: a\n\ndata: b\n\n") == [ServerEvent("a", "error"), ServerEvent("b")]


LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=30)


@settings(deadline=None)
@given(
    texts=st.lists(st.lists(LINE, min_size=1, max_size=3), max_size=5),
    ends=st.lists(st.sampled_from(["\n", "\r\n", "\r"]), min_size=1),
    bom=st.booleans(),
    places=st.lists(st.integers(0, 2000), max_size=20),
)
def test_cut_anywhere(texts: list[list[str]], ends: list[str], bom: bool, places: list[int]) -> None:
    """Whatever the texts, line ends and cuts are, the events that come out are those that went in."""
    end = iter(ends * 100)
    lines = [line for text in texts for line in [*(f"data: {part}" for part in text), ""]]
    whole = ""
    for line in lines:
        # A CR in front of an LF would be one line end, not two.
        mark = next(end)
        whole += line + ("\r\n" if whole.endswith("\r") and not line and mark == "\n" else mark)
    data = ("\ufeff" if bom else "").encode() + whole.encode()
    assert [event.data for event in decode(*cut(data, places))] == ["\n".join(text) for text in texts]


@settings(deadline=None)
@given(data=st.binary(max_size=200), places=st.lists(st.integers(0, 200), max_size=10))
def test_any_bytes(data: bytes, places: list[int]) -> None:
    """Any bytes at all are decoded without an error, and in the same way however they are cut."""
    assert decode(*cut(data, places)) == decode(data)


def test_an_event_is_out_at_once() -> None:
    """An event is returned with the byte that ends it, also where a CR does: nothing waits for a byte more."""
    for ending in (b"\n\n", b"\r\r", b"\r\n\r"):
        assert EventDecoder().feed(b"data: a" + ending) == [ServerEvent("a")]


@pytest.mark.parametrize(
    "data",
    [b"data: " + b"a" * 100, b"data: a\n" * 20, b":" + b" " * 100, b"x" * 100, b"data: " + b"a" * 90 + b"\n\n"],
)
def test_bounded(data: bytes) -> None:
    """An event, a line or a comment above the bound is refused, at the latest where it reaches it."""
    with pytest.raises(EventTooLong):
        decode(*(bytes([byte]) for byte in data), max_event_bytes=64)
    with pytest.raises(EventTooLong):
        decode(data, max_event_bytes=64)


def test_many_small_events_are_no_large_one() -> None:
    """The bound is on one event, not on the stream."""
    assert len(decode(b"data: abcdefghijklmnop\n\n" * 1000, max_event_bytes=64)) == 1000


def test_time_is_linear() -> None:
    """A line of a million bytes that comes byte by byte is read in the time of its bytes, not of their square."""
    decoder = EventDecoder(max_event_bytes=2**21)
    data = b"data: " + json.dumps("a" * 500_000).encode() + b"\n\n"
    started = time.process_time()
    events = [event for at in range(len(data)) for event in decoder.feed(data[at : at + 1])]
    assert len(events) == 1
    assert time.process_time() - started < 20  # quadratic: minutes
