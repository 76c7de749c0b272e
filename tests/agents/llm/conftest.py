"""What the tests of the agent share."""

from __future__ import annotations

import pytest
import trio.testing


@pytest.fixture
def fast_clock() -> trio.testing.MockClock:
    """A clock that goes a hundred times as fast as the world: for waits with real sockets, where none may jump."""
    return trio.testing.MockClock(rate=100.0)
