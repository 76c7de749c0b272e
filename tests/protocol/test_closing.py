"""Tests of ``netra_ws.protocol.closing``."""

from __future__ import annotations

import pytest

from netra_ws.protocol.closing import FINAL_CODES, SENT_FOR_THE_LIBRARY, CloseCode, may_reconnect

#: PROTOCOL §6: code → whether a client may come back.
TABLE = {
    1000: True,
    1001: True,
    1002: False,
    1003: False,
    1007: False,
    1008: False,
    1009: False,
    1011: True,
    1012: True,
    1013: True,
    4000: True,
    4001: True,
    4002: True,
    4003: True,
    4009: False,
    4010: False,
}


def test_every_code_has_a_row() -> None:
    """A new close code cannot be added without saying whether a client may come back."""
    assert TABLE.keys() == set(CloseCode)


@pytest.mark.parametrize("code", TABLE)
def test_who_may_come_back(code: int) -> None:
    """A code tells a client to come back exactly where the contract says so."""
    assert may_reconnect(code) is TABLE[code]


@pytest.mark.parametrize("code", [1005, 1006, 1014, 1015, 3000, 4999])
def test_unknown_codes_and_broken_sockets_may_come_back(code: int) -> None:
    """A connection that just broke, or a code of another version, does not lock a client out."""
    assert may_reconnect(code)


def test_what_the_stream_sends_for_the_library_is_final() -> None:
    """Codes that answer a client's broken frames are among those after which it must not come back."""
    assert SENT_FOR_THE_LIBRARY <= FINAL_CODES
    assert {int(code) for code in SENT_FOR_THE_LIBRARY} == {1002, 1003, 1007, 1009}
