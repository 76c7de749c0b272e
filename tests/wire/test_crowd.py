"""What the door does when it is crowded."""

from __future__ import annotations

import trio

from netra_ws.wire.crowd import HURRIED_S, Crowd


async def test_who_was_heard_is_not_hurried_any_more(autojump_clock: trio.testing.MockClock) -> None:
    """A client that was hurried and then sent its head has the whole time of a handshake for what comes."""
    crowd = Crowd(trio.CapacityLimiter(4), under_way=4)
    began = trio.current_time()
    with trio.CancelScope(deadline=began + 10) as scope, crowd.waiting(scope):
        assert scope.deadline == began + HURRIED_S
    assert scope.deadline == began + 10


async def test_who_says_nothing_is_out_in_a_second(autojump_clock: trio.testing.MockClock) -> None:
    """A client that is hurried and says nothing has one second in all."""
    crowd = Crowd(trio.CapacityLimiter(4), under_way=4)
    began = trio.current_time()
    with trio.CancelScope(deadline=began + 10) as scope, crowd.waiting(scope):
        await trio.sleep_forever()
    assert trio.current_time() == began + HURRIED_S
    assert scope.cancelled_caught
