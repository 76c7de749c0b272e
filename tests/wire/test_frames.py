from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.wire.frames import FREE_FRAGMENTS, LEAST_FRAGMENT, FragmentFlood, Fragments
from tests.kit import PING, TEXT, frame

payloads = st.integers(0, 130).map(bytes) | st.integers(65_534, 65_537).map(bytes)


@given(messages=st.lists(st.lists(payloads, min_size=1, max_size=4), max_size=6), cuts=st.lists(st.integers(1, 70_000)))
def test_the_count_does_not_depend_on_how_the_bytes_arrive(messages: list[list[bytes]], cuts: list[int]) -> None:
    """Frames cut anywhere give the same count as whole ones; control frames between them do not count."""
    data = b""
    for pieces in messages:
        for number, piece in enumerate(pieces):
            data += frame(TEXT if number == 0 else 0, piece, fin=number == len(pieces) - 1) + frame(PING, "x")
    fragments = Fragments(10)
    for cut in cuts:
        fragments.follow(data[:cut])
        data = data[cut:]
    fragments.follow(data)
    assert fragments._count == (len(messages[-1]) - 1 if messages else 0)
    assert (fragments._skip, fragments._head) == (0, b"")


@pytest.mark.parametrize("count", [5, 6])
def test_one_fragment_too_many_is_a_flood(count: int) -> None:
    """The bound holds for each message, not for all together."""
    fragments = Fragments(5)
    for _ in range(3):
        fragments.follow(frame(TEXT, "a", fin=False) + frame(0, "b", fin=False) * 4 + frame(0, "c"))
    data = frame(TEXT, "a", fin=False) + frame(0, b"", fin=False) * count
    if count > 5:
        with pytest.raises(FragmentFlood):
            fragments.follow(data)
    else:
        fragments.follow(data)


def test_large_messages_may_have_more_fragments() -> None:
    """The bound grows with the limit of a message, and is never small."""
    assert Fragments.of(2**20).most == FREE_FRAGMENTS + 2**20 // LEAST_FRAGMENT
    assert Fragments.of(1).most == FREE_FRAGMENTS


@given(st.binary(max_size=300))
def test_garbage_is_left_to_the_library(data: bytes) -> None:
    """Bytes that are no frames raise nothing but the flood, and little of them is kept."""
    fragments = Fragments(1000)
    fragments.follow(data)
    assert len(fragments._head) < 14
