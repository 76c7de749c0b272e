from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.protocol.closing import CloseCode
from netra_ws.wire.frames import FRAMES_AT_ONCE, FREE_FRAGMENTS, LEAST_FRAGMENT, Inbound, Portion, frame_size, head_size
from tests.kit import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_payload, frame

payloads = st.integers(0, 130).map(bytes) | st.integers(65_534, 65_537).map(bytes)
frames = st.builds(
    frame,
    st.sampled_from([CONTINUATION, TEXT, BINARY, PING, PONG, 3]),
    st.integers(0, 300).map(bytes),
    fin=st.booleans(),
    rsv=st.sampled_from([0, 0, 0, 0, 4]),
    mask=st.sampled_from([b"abcd", b"abcd", b"abcd", bytes(4), None]),
    size=st.none() | st.sampled_from([500, 2**16, 2**62, 2**63]),
    wide=st.sampled_from([None, None, None, 64]),
)


def read(inbound: Inbound, *chunks: bytes) -> bytes:
    """Give *chunks* as a connection does; return what the library would get."""
    given = b""
    for chunk in chunks:
        rest = chunk
        while rest and inbound.verdict is None:
            portion = inbound.follow(rest)
            given += rest[: portion.size]
            rest = rest[portion.size :]
    return given


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    found = []
    for cut in cuts:
        found.append(data[:cut])
        data = data[cut:]
    return [*found, data]


@given(messages=st.lists(st.lists(payloads, min_size=1, max_size=4), max_size=6), cuts=st.lists(st.integers(1, 70_000)))
def test_the_count_does_not_depend_on_how_the_bytes_arrive(messages: list[list[bytes]], cuts: list[int]) -> None:
    """Frames cut anywhere give the same count as whole ones; control frames between them do not count."""
    data = b""
    for message in messages:
        for number, piece in enumerate(message):
            data += frame(TEXT if number == 0 else 0, piece, fin=number == len(message) - 1) + frame(PING, "x")
    inbound = Inbound(2**20, 10)
    assert read(inbound, *pieces(data, cuts)) == data
    assert inbound._fragments == (len(messages[-1]) - 1 if messages else 0)
    assert inbound._bytes == (sum(map(len, messages[-1])) if messages else 0)
    assert (inbound._skip, inbound._head, inbound.verdict) == (0, b"", None)


@given(sent=st.lists(frames, max_size=100).map(b"".join), cuts=st.lists(st.integers(1, 400)))
def test_the_verdict_does_not_depend_on_how_the_bytes_arrive(sent: bytes, cuts: list[int]) -> None:
    """Cut anywhere, the same frames get the same verdict at the same frame; nothing before it is held back."""
    whole, cut = Inbound(400, 3), Inbound(400, 3)
    first, second = read(whole, sent), read(cut, *pieces(sent, cuts))
    assert whole.verdict == cut.verdict
    # Of the judged frame's head a part may have gone on before it was complete.
    assert second[: len(first)] == first
    assert len(second) - len(first) < 14
    assert whole.verdict is not None or second == first == sent


@pytest.mark.parametrize("count", [5, 6])
def test_one_fragment_too_many_is_a_flood(count: int) -> None:
    """The bound holds for each message, not for all together."""
    inbound = Inbound(1000, 5)
    read(inbound, (frame(TEXT, "a", fin=False) + frame(0, "b", fin=False) * 4 + frame(0, "c")) * 3)
    assert inbound.verdict is None
    read(inbound, frame(TEXT, "a", fin=False) + frame(0, b"", fin=False) * count)
    assert inbound.verdict is (CloseCode.POLICY if count > 5 else None)


def test_large_messages_may_have_more_fragments() -> None:
    """The bound grows with the limit of a message, and is never small."""
    assert Inbound.of(2**20).most_fragments == FREE_FRAGMENTS + 2**20 // LEAST_FRAGMENT
    assert Inbound.of(1).most_fragments == FREE_FRAGMENTS
    assert Inbound.of(7).most_bytes == 7


@pytest.mark.parametrize(
    ("data", "kept", "fits"),
    [
        (frame(TEXT, b"x" * 100), 0, True),
        (frame(TEXT, b"x" * 101), 0, False),
        (frame(BINARY, b"", size=2**62), 0, False),
        (frame(TEXT, b"", size=2**16), 0, False),
        (frame(PING, b"x") + frame(TEXT, b"", size=101), 7, False),
        (frame(TEXT, b"x" * 60, fin=False) + frame(0, b"x" * 40), 0, True),
        (frame(TEXT, b"x" * 60, fin=False) + frame(PING, b"x" * 90) + frame(0, b"x" * 41), 162, False),
        (frame(TEXT, b"x" * 60) + frame(TEXT, b"x" * 60), 0, True),
        # What is no frame is the library's to refuse.
        (frame(TEXT, b"", size=500, mask=None), 0, True),
        (frame(TEXT, b"", size=500, rsv=4), 0, True),
        (frame(TEXT, b"", size=500, wide=64), 0, True),
        (frame(TEXT, b"", size=2**63), 0, True),
        (frame(0, b"", size=500), 0, True),
        (frame(TEXT, b"x", fin=False) + frame(TEXT, b"", size=500), 0, True),
        (frame(PING, b"", size=500), 0, True),
        (frame(3, b"", size=500), 0, True),
        # Behind a Close nothing is read.
        (frame(CLOSE, close_payload(1000)) + frame(TEXT, b"", size=500), 0, True),
    ],
)
def test_a_message_that_is_announced_too_large_is_not_waited_for(data: bytes, kept: int, fits: bool) -> None:
    """The head alone decides, for the sum of a message's frames; the library gets what stood before it."""
    inbound = Inbound(100, 10)
    assert read(inbound, data) == (data if fits else data[:kept])
    assert inbound.verdict is (None if fits else CloseCode.TOO_BIG)


def test_many_small_frames_come_in_portions() -> None:
    """However many frames one read brings, the library works on a few at a time; a pong ends its portion."""
    inbound = Inbound(1000, 10)
    data = frame(TEXT) * (FRAMES_AT_ONCE + 1) + frame(PONG, "x") * 2 + b"\x81"
    assert inbound.follow(data) == Portion(6 * FRAMES_AT_ONCE, False)
    data = data[6 * FRAMES_AT_ONCE :]
    assert inbound.follow(data) == Portion(13, True)
    assert inbound.follow(data[13:]) == Portion(7, True)
    assert inbound.follow(data[20:]) == Portion(1, False)


@given(st.binary(max_size=300))
def test_garbage_is_left_to_the_library(data: bytes) -> None:
    """Bytes that are no frames raise nothing, and little of them is kept."""
    inbound = Inbound(1000, 1000)
    assert data.startswith(read(inbound, data))
    assert len(inbound._head) < 14


@given(frames)
def test_sizes_are_those_of_whole_frames(data: bytes) -> None:
    """The size of a head is told by its second byte, and is part of the frame's."""
    size = frame_size(data, 0)
    assert size is not None
    assert head_size(data[1]) <= size
    assert frame_size(data[: head_size(data[1]) - (4 if data[1] & 0x80 else 0)], 0) == size
