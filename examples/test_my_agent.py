"""Tests of an agent, as you would write them for yours: streaming, cancel, a bad network, timeouts.

    python test_my_agent.py        (or pytest; needs pytest and pytest-trio)

Server and clients are the real ones, over memory. ``autojump_clock`` lets an hour pass in no time; the
test with a child process goes without it, since processes live by the system's clock.
"""

from __future__ import annotations

import pytest
import trio

from netra_ws import Run
from netra_ws.testing import check_no_gap_no_double, check_run, open_test_server, run_agent, texts

pytestmark = pytest.mark.trio


async def my_agent(run: Run) -> str:
    """Look something up, which takes a while, and tell it word by word."""
    async with run.tool("look_up", query=run.text, timeout_s=30) as call:
        await trio.sleep(3600 if "slowly" in run.text else 1)
        call.results = run.text.split()
    for word in call.results:
        await run.say(f"{word} ")
        await trio.sleep(0.5)
    return run.said


async def my_program(run: Run) -> None:
    """Work with a program of the system's."""
    await (await run.process(["sleep", "3600"])).wait()


async def test_it_streams(autojump_clock: object) -> None:
    """Each word is said as soon as it is known, and the end has the whole text."""
    events = await run_agent(my_agent, "to be or not")
    said = [one.fields["content"] for one in events if one.fields.get("phase") == "delta"]
    assert said == ["to ", "be ", "or ", "not "]
    assert check_run(events).final_response == "to be or not "


async def test_cancel_leaves_nothing() -> None:
    """When a stop is answered, the program that the agent works with is gone."""
    async with open_test_server({"mine": my_program}) as server:
        async with server.connect("alice") as alice:
            run = await alice.start("go")
            while "sleep 3600" not in str(server.leaks()):  # what there is besides the server itself
                await trio.sleep(0.01)
            assert await run.stop() == "cancelled"
            assert "sleep 3600" not in str(server.leaks())
        await server.settled()


@pytest.mark.parametrize("seed", range(5))
async def test_a_bad_network_loses_nothing(autojump_clock: object, seed: int) -> None:
    """Whatever happens to connections and store, the user ends with every event and word, once."""
    async with open_test_server({"mine": my_agent}, seed=seed) as server:
        async with server.connect("alice") as alice:
            events = alice.events()
            run = await alice.start("word " * 50, on_disconnect="continue")
            async with server.faults.chaos(rate=0.3):
                completed = await run.result()
        heard = [one async for one in events]
        check_no_gap_no_double(heard, await server.recorded("alice"))
        assert list(texts(heard).values()) == [completed.final_response]
        await server.settled()


async def test_a_slow_look_up_is_given_up(autojump_clock: object) -> None:
    """A look-up that takes an hour ends after thirty seconds, and the run says what went wrong."""
    end = check_run(await run_agent(my_agent, "slowly"))
    assert (end.status, round(end.duration_ms / 1000)) == ("error", 30)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-q"]))
