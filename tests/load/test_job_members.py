"""Many members of one job on real sockets: everybody gets everything, and nobody else waits."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
import trio

from netra_ws.contexts.lane import LAG_BYTES
from tests.conftest import StartServer
from tests.kit import Client, connect, holdings, settles

#: A thousand in the environment ``heavy`` of tox.
MEMBERS = int(os.environ.get("NETRA_WS_TEST_MEMBERS", "250"))
EVENTS = 50
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

        began, pings = trio.current_time(), [0.0]
        async with trio.open_nursery() as nursery, connect(running, "quiet") as quiet:
            for member in reading:
                nursery.start_soon(read, member)
            for number in range(EVENTS):
                await job.emit("step", number)
                if number % 10 == 0:
                    asked = trio.current_time()
                    assert (await quiet.ask("ping"))["type"] == "pong"
                    pings.append(trio.current_time() - asked)
        took = trio.current_time() - began
        print(f"{MEMBERS} members, {EVENTS} events each: {MEMBERS * EVENTS / took:,.0f} events/s, {took:.2f} s in all")
        print(f"the longest wait of another user's ping: {max(pings) * 1000:.0f} ms")
        del silent
    assert len(heard) == MEMBERS - 1
    assert all(mine == list(range(EVENTS)) for mine in heard)
    await settles(running, before, within_s=20)
    assert await job.members() == 0


async def test_a_member_that_never_reads(server: StartServer) -> None:
    """A member that takes nothing while megabytes are said is closed; all others hear every word."""
    running = await server(timing__resume_window_s=0)
    job = running.job("ada", "build-7")
    await job.open()
    before = holdings(running)
    heard: list[list[int]] = []
    count = 3 * LAG_BYTES // 200_000 // 2

    async def read(member: Client) -> None:
        mine: list[int] = []
        heard.append(mine)
        while len(mine) < count:
            mine.append((await member.receive())["seq"])

    async with AsyncExitStack() as stack:
        members: list[Client] = []
        for number in range(4):
            buffer = 4096 if number == 0 else None
            member = connect(running, f"user-{number}", permissions=("job:build-7",), receive_buffer=buffer)
            members.append(await stack.enter_async_context(member))
            assert (await members[-1].ask("connect_job", job_id="build-7"))["type"] == "job_connected"
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery, connect(running, "quiet") as quiet:
                for member in members[1:]:
                    nursery.start_soon(read, member)
                for number in range(count):
                    await job.emit("step", "x" * 200_000)
                    while number % 20 == 0 and any(len(mine) < number for mine in heard):
                        await trio.sleep(0.001)  # those who read keep pace
                    if number % 40 == 0:
                        assert (await quiet.ask("ping"))["type"] == "pong"
            while await job.members() > 3:
                await trio.sleep(0.01)
    assert heard == [list(range(1, count + 1))] * 3
    await settles(running, before, within_s=20)
    assert running.wiring.counts.closes[4000] == 1
    assert await job.members() == 0
