from __future__ import annotations

import time
from collections.abc import AsyncIterator

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from netra_ws.wire.flusher import Flusher
from netra_ws.wire.stream import Progress


@attrs.define(eq=False)
class Stream:
    """A stream that says what each flush comes to."""

    name: str
    log: list[str]
    progress: list[Progress] = attrs.field(factory=list)
    closed: bool = False
    planned: bool = False
    takes_s: float = 0.0
    later: bool = False

    def flush(self) -> Progress:
        self.log.append(self.name)
        time.sleep(self.takes_s)
        return self.progress.pop(0) if self.progress else Progress.IDLE

    def write_later(self) -> None:
        self.later = True


@pytest.fixture
async def flusher() -> AsyncIterator[Flusher]:
    async with trio.open_nursery() as nursery:
        flusher = Flusher()
        nursery.start_soon(flusher.run)
        await wait_all_tasks_blocked()
        yield flusher
        nursery.cancel_scope.cancel()


async def test_streams_are_flushed_once_each_in_order(flusher: Flusher) -> None:
    """Whoever is planned is flushed soon, and no more often than there is something to write."""
    log: list[str] = []
    for name in "abc":
        flusher.plan(Stream(name, log))  # type: ignore[arg-type]
    await wait_all_tasks_blocked()
    assert log == ["a", "b", "c"]
    passes = flusher.passes
    await wait_all_tasks_blocked()
    assert flusher.passes == passes, "nothing to write, nothing runs"


async def test_who_has_more_waits_until_the_others_had_their_turn(flusher: Flusher) -> None:
    """Round robin: one with much to say does not hold up one with little."""
    log: list[str] = []
    flusher.plan(Stream("much", log, [Progress.MORE, Progress.MORE]))  # type: ignore[arg-type]
    flusher.plan(Stream("little", log))  # type: ignore[arg-type]
    await wait_all_tasks_blocked()
    assert log == ["much", "little", "much", "much"]


@pytest.mark.parametrize("progress", [Progress.FULL, Progress.REFILL])
async def test_a_full_socket_and_one_that_needs_the_store_leave_the_flusher(
    progress: Progress, flusher: Flusher
) -> None:
    """Both are handed to a task of their own."""
    stream = Stream("a", [], [progress])
    flusher.plan(stream)  # type: ignore[arg-type]
    await wait_all_tasks_blocked()
    assert stream.later
    assert stream.log == ["a"]
    assert not stream.planned


async def test_a_closed_stream_is_passed_over(flusher: Flusher) -> None:
    """Nothing is written to who has closed meanwhile."""
    stream = Stream("a", [], closed=True)
    flusher.plan(stream)  # type: ignore[arg-type]
    await wait_all_tasks_blocked()
    assert stream.log == []


async def test_other_tasks_get_their_turn_between_slices(flusher: Flusher) -> None:
    """A long list of streams is not written in one go."""
    log: list[str] = []
    for number in range(20):
        flusher.plan(Stream(str(number), log, takes_s=0.0015))  # type: ignore[arg-type]
    turns = 0
    while len(log) < 20:
        await trio.lowlevel.checkpoint()
        turns += 1
    assert turns >= 15


async def test_how_long_something_waits_is_known(autojump_clock: MockClock) -> None:
    """A flusher that does not move is seen; one with nothing to do is not."""
    flusher = Flusher()
    assert flusher.waiting_s == 0
    flusher.moved_at = trio.current_time()
    await trio.sleep(3)
    assert flusher.waiting_s == 0
    flusher.plan(Stream("a", []))  # type: ignore[arg-type]
    await trio.sleep(6)
    assert flusher.waiting_s > 5
