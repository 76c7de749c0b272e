"""What a server that ended hard or badly leaves behind, and what its successor and its supervisor are told."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from pathlib import Path

import pytest

from tests.agents.test_processes import alive, signed_in
from tests.kit import connect, http
from tests.load.process import AGENTS, eventually, serving

#: An agent whose child leaves a grandchild in a session of its own; both sign in.
AGENT = """
import sys

CHILD = "import os, subprocess, sys, time; open(sys.argv[1] + '/' + str(os.getpid()), 'w').close();"
SLEEP = " time.sleep(600)"
FORK = " subprocess.Popen([sys.executable, '-c', " + repr(CHILD + SLEEP) + ", sys.argv[1]], start_new_session=True);"


async def parent(run):
    process = await run.process([sys.executable, "-c", CHILD + FORK + SLEEP, run.text])
    await process.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", ["kill -9", "SIGTERM twice"])
async def test_processes_of_lost_runs_go_before_their_end_is_told(tmp_path: Path, how: str) -> None:
    """Processes that outlive a killed server are gone when the next start tells that their runs were lost."""
    children = tmp_path / "children"
    children.mkdir()
    async with serving(tmp_path, agents=AGENT, names=("parent",)) as server:
        async with connect(server) as client:  # type: ignore[arg-type]
            await client.send("chat", content=str(children), agent="parent", on_disconnect="continue")
            await signed_in(children, 2)
        if how == "kill -9":
            server.signal(signal.SIGKILL)
        else:
            server.signal()
            await eventually(lambda: "draining" in server.log())
            server.signal()
        await server.ended()
        try:
            assert len(alive(children)) == 2
            await server.start()
            assert alive(children) == []
        finally:
            for pid in alive(children):
                os.kill(pid, signal.SIGKILL)
        async with connect(server, path="/ws?resume=x:0") as client:  # type: ignore[arg-type]
            threads = (await client.ask("list_threads"))["threads"]
            assert len(threads) == 1
        assert "killed 2 processes of runs that were lost" in server.log()


#: Appended to the agents of a server: it has less patience with its store.
HASTY = """
import netra_ws.history.stores.sqlite
import netra_ws.server

netra_ws.server.FLUSH_S = netra_ws.server.LAST_FLUSH_S = 0.3
netra_ws.history.stores.sqlite._BUSY_TIMEOUT_MS = 200
"""


async def test_a_drain_that_could_not_keep_the_last_events_says_so(tmp_path: Path) -> None:
    """A server whose store does not take the last events of a drain ends with status 1 and one clear line."""
    settings = {"TIMING_DRAIN_S": 0.1, "TIMING_FINALISE_S": 0.2}
    async with serving(tmp_path, settings, agents=AGENTS + HASTY) as server:
        async with connect(server) as client:  # type: ignore[arg-type]
            await client.send("chat", content="x", agent="forever")
            await client.until("agent_message")
            locked = sqlite3.connect(tmp_path / "load.db", isolation_level=None)
            locked.execute("BEGIN IMMEDIATE")
            server.signal()
            assert await server.ended() == 1
            locked.close()
        assert "netra-ws: the store did not take the last events" in server.log()
        await server.start()
        assert (await http(server, "/ready")).status == 200  # type: ignore[arg-type]
