"""Where frames begin, however the bytes come."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from netra_ws.testing.boundaries import Boundaries
from netra_ws.testing.frames import BINARY, frame

HEAD = b"GET /ws HTTP/1.1\r\nHost: h\r\n\r\n"
SIZES = st.lists(st.sampled_from([0, 1, 125, 126, 300, 0xFFFF, 0x10000]), min_size=1, max_size=5)


@given(sizes=SIZES, masked=st.booleans(), cuts=st.lists(st.integers(0, 200_000), max_size=6))
def test_every_frame_is_found_once(sizes: list[int], masked: bool, cuts: list[int]) -> None:
    """Each frame behind the head is found at its first byte, whatever its size and however the bytes are cut."""
    frames = [frame(BINARY, bytes(size), mask=b"\1\2\3\4" if masked else None) for size in sizes]
    whole = HEAD + b"".join(frames)
    expected, position = [], len(HEAD)
    for one in frames:
        expected.append((position, len(one)))
        position += len(one)
    edges = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    boundaries, found = Boundaries(), []
    for start, end in itertools.pairwise(edges):
        found += [(start + offset, size) for offset, size in boundaries.follow(whole[start:end])]
    assert [position for position, _ in found] == [position for position, _ in expected]
    assert all(size in (2, true) for (_, size), (_, true) in zip(found, expected, strict=True))
