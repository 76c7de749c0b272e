"""Tests of the frames that ``netra_ws.protocol.codec`` makes, read by wsproto as an independent check."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, TextMessage

from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.codec import close_frame, frame_payload, ping_frame, text_frame

SIZES = [0, 1, 125, 126, 127, 65535, 65536, 200_000]


def read(data: bytes) -> list[Event]:
    """Read what a client would; the text of a message in one piece."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(data)
    return list(client.events())


@pytest.mark.parametrize("size", SIZES)
def test_frames_of_all_three_sizes(size: int) -> None:
    """A text of any size is one complete frame, and its payload is found again."""
    text = "x" * size
    frame = text_frame(text.encode())
    assert frame_payload(frame) == text.encode()
    events = read(frame)
    assert all(isinstance(event, TextMessage) for event in events)
    assert "".join(event.data for event in events if isinstance(event, Message)) == text
    assert [event.message_finished for event in events if isinstance(event, Message)][-1]
    assert len(frame) == size + (2 if size < 126 else 4 if size < 65536 else 10)


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_frames_stand_side_by_side(texts: list[str]) -> None:
    """Frames written one behind the other are read as the same messages in the same order."""
    events = read(b"".join(text_frame(text.encode()) for text in texts))
    assert [event.data for event in events if isinstance(event, TextMessage)] == texts
    assert not any(isinstance(event, BytesMessage) for event in events)


@pytest.mark.parametrize("code", CloseCode)
def test_close_frames(code: CloseCode) -> None:
    """Every close code is told with its reason, as the client's library reads it."""
    (event,) = read(close_frame(code, "because"))
    assert isinstance(event, CloseConnection)
    assert (event.code, event.reason) == (code, "because")


@given(st.text(max_size=400))
@example("x" * 200)
@example("é" * 100)
@example("€" * 42)
@example("𝔘" * 31)
def test_a_long_reason_is_cut_between_characters(reason: str) -> None:
    """A reason of any length fits into a control frame and stays valid text."""
    (event,) = read(close_frame(1000, reason))
    assert isinstance(event, CloseConnection)
    told = event.reason or ""
    assert reason.startswith(told)
    assert len(told.encode()) > 119 or told == reason


@given(st.binary(max_size=125))
def test_ping_frames(payload: bytes) -> None:
    """A ping carries its payload."""
    (event,) = read(ping_frame(payload))
    assert isinstance(event, Ping)
    assert bytes(event.payload) == payload
