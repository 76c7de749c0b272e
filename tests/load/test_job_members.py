"""Many members of one job on real sockets: everybody gets everything, and nobody else waits."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
import trio

from tests.conftest import StartServer
from tests.kit import Client, connect, holdings, settles

#: A thousand in the environment ``heavy`` of tox.
MEMBERS = int(os.environ.get("NETRA_WS_TEST_MEMBERS", "250"))
EVENTS = 20
#: Both ends of each socket, and what a test run has open.
DESCRIPTORS = 2 * MEMBERS + 500


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Room for the descriptors of both ends of so many sockets."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < DESCRIPTORS:
        pytest.skip(f"needs {DESCRIPTORS} descriptors, the system allows {before[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], DESCRIPTORS), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.heavy
async def test_members_of_one_job(descriptors: None, server: StartServer) -> None:
    """Each of many members gets each event once and in order, one that does not read holds up nobody."""
    running = await server(timing__resume_window_s=0, limits__connects_per_minute_per_address=6000)
    job = running.job("ada", "build-7")
    await job.open()
    before = holdings(running)
    heard: list[list[int]] = []
    async with AsyncExitStack() as stack:
        members: list[Client] = []

        async def join(numbers: range) -> None:
            for number in numbers:
                member = await stack.enter_async_context(
                    connect(running, f"user-{number}", permissions=("job:build-7",))
                )
                assert (await member.ask("connect_job", job_id="build-7"))["type"] == "job_connected"
                members.append(member)

        async with trio.open_nursery() as nursery:
            for first in range(8):
                nursery.start_soon(join, range(first, MEMBERS, 8))
        assert await job.members() == MEMBERS
        silent, *reading = members  # the silent one never reads

        async def read(member: Client) -> None:
            mine: list[int] = []
            heard.append(mine)
            with trio.fail_after(60):
                while len(mine) < EVENTS:
                    message = await member.receive()
                    mine.append(message["value"])

        async with trio.open_nursery() as nursery, connect(running, "quiet") as quiet:
            for member in reading:
                nursery.start_soon(read, member)
            for number in range(EVENTS):
                await job.emit("step", number)
                if number % 10 == 0:
                    assert (await quiet.ask("ping"))["type"] == "pong"
        del silent
    assert len(heard) == MEMBERS - 1
    assert all(mine == list(range(EVENTS)) for mine in heard)
    await settles(running, before, within_s=20)
    assert await job.members() == 0
