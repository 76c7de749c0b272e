"""When a stop is answered no process of the run is alive, however it tried to stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from netra_ws import ClientError, Run
from netra_ws.agents.processes import Processes
from netra_ws.testing import check_run, open_session

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

IGNORE = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN);"
WRITE = "import os, sys; f = sys.argv[1] + '/' + str(os.getpid()); open(f, 'w').close();"
SLEEP = "import time; time.sleep(600)"

#: What the child of a run does before it says that it is ready, by name.
CHILDREN = {
    "ignores SIGTERM": f"{IGNORE} {WRITE} {SLEEP}",
    "has a grandchild": "import subprocess, sys; subprocess.Popen([sys.executable, '-c', "
    f"{WRITE + SLEEP!r}, sys.argv[1]]); {WRITE} {SLEEP}",
    "has a grandchild in a session of its own": "import subprocess, sys; subprocess.Popen([sys.executable, '-c', "
    f"{IGNORE + WRITE + SLEEP!r}, sys.argv[1]], start_new_session=True); {WRITE} {SLEEP}",
    "left a daemon behind": f"""{WRITE}
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        {WRITE}
        import time; time.sleep(600)
    os._exit(0)
os.wait()
import time; time.sleep(600)
""",
}


def alive(folder: Path) -> list[int]:
    """Return which of the processes that have signed in *folder* are there, zombies left out."""
    found = []
    for signed in folder.iterdir():
        if not signed.name.isdigit():
            continue
        try:
            state = Path(f"/proc/{signed.name}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in ("Z", "X"):
            found.append(int(signed.name))
    return found


async def signed_in(folder: Path, count: int) -> None:
    with trio.fail_after(20):
        while len(list(folder.iterdir())) < count:
            await trio.sleep(0.01)


@pytest.mark.parametrize("child", CHILDREN)
async def test_nothing_stays(child: str, tmp_path: Path) -> None:
    """Children that ignore signals, grandchildren, other sessions, daemons: all are gone when the stop is answered."""

    async def agent(run: Run) -> None:
        process = await run.process([sys.executable, "-c", CHILDREN[child], str(tmp_path)], stderr=subprocess.DEVNULL)
        await process.wait()

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        await signed_in(tmp_path, 1 if child == "ignores SIGTERM" else 2)
        assert alive(tmp_path)
        assert await run.stop() == "cancelled"
        assert not alive(tmp_path)


async def test_what_is_left_goes_when_the_agent_returns(tmp_path: Path) -> None:
    """A run that ends by itself ends what it has started, too, also behind a child that is gone already."""
    script = CHILDREN["has a grandchild in a session of its own"].removesuffix(SLEEP)

    async def agent(run: Run) -> str:
        process = await run.process([sys.executable, "-c", script, str(tmp_path)])
        await process.wait()
        await signed_in(tmp_path, 2)
        return str(len(alive(tmp_path)))

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        assert (await run.result()).final_response == "1"
        assert await session.stop(run.run_id) == "success"
        assert not alive(tmp_path)


async def test_a_pipe_that_a_grandchild_holds(tmp_path: Path) -> None:
    """Reading a pipe that a grandchild keeps open is cancelled like any wait, and the grandchild is gone."""
    script = CHILDREN["has a grandchild"].removesuffix(SLEEP)

    async def agent(run: Run) -> None:
        process = await run.process([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        await process.wait()
        async with process.stdout:
            while await process.stdout.receive_some():
                pass

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        await signed_in(tmp_path, 2)
        await trio.sleep(0.05)
        assert await run.stop() == "cancelled"
        assert not alive(tmp_path)


async def test_a_shielded_wait_for_a_process_ends_with_it(tmp_path: Path) -> None:
    """A run that cannot be stopped because it waits for its own process is sealed, and gone with that process."""

    async def agent(run: Run) -> None:
        with trio.CancelScope(shield=True):
            process = await run.process([sys.executable, "-c", CHILDREN["ignores SIGTERM"], str(tmp_path)])
            await process.wait()

    async with open_session({"agent": agent}, {"timing.finalise_s": 0.2}) as (server, session):
        run = await session.start("x", agent="agent")
        await signed_in(tmp_path, 1)
        with pytest.raises(ClientError, match="CANCEL_TIMEOUT"):
            await run.stop()
        with trio.fail_after(5):
            while server.registry.statistics().runs:
                await trio.sleep(0.01)
        assert not alive(tmp_path)
        assert check_run([heard async for heard in run]).cancelled_by == "user"


async def test_the_environment_of_a_process_is_as_asked() -> None:
    """A process has the server's environment, or the one it was given, and one variable more."""
    script = "import os; print(os.environ.get('HOME'), os.environ.get('MINE'), len(os.environ))"

    async def agent(run: Run) -> list[str]:
        said = []
        for env in (None, {"MINE": "yes"}):
            process = await run.process([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE)
            assert process.stdout is not None
            said.append((await process.stdout.receive_some()).decode().split())
            await process.wait()
        return [said[0][0], *said[1][:2]]

    async with open_session({"agent": agent}) as (_, session):
        result = await (await session.start("x", agent="agent")).result()
        assert result.final_response == [os.environ.get("HOME", "None"), "None", "yes"]


async def test_what_a_leader_that_has_gone_left_in_its_group() -> None:
    """A grandchild goes with its group also when its leader was waited for and its environment is empty."""
    processes = Processes("run")
    command = ["/bin/sh", "-c", "env -i sleep 600 & echo $!; exit 0"]
    leader = await processes.start(command, stdout=subprocess.PIPE)
    assert leader.stdout is not None
    grandchild = int(await leader.stdout.receive_some())
    await leader.wait()
    assert Path(f"/proc/{grandchild}").exists()
    await processes.end()
    with trio.fail_after(5):
        while Path(f"/proc/{grandchild}").exists() and "Z" not in state_of(grandchild):
            await trio.sleep(0.01)


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_start_does_not_end_itself() -> None:
    """A server that was started by a process of a lost run spares itself when it ends what is left of that run."""
    program = "import trio; from netra_ws.agents.processes import end_lost; print(trio.run(end_lost, ['run_lost']))"
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    mark = {**os.environ, "NETRA_WS_RUN": f"{gone.pid}.1.run_lost"}
    other = subprocess.Popen(["/bin/sleep", "600"], env=mark)
    try:
        done = subprocess.run([sys.executable, "-c", program], env=mark, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
        assert other.wait(5) == -9
    finally:
        other.kill()
        other.wait()


async def test_a_part_ends_before_the_rest(tmp_path: Path) -> None:
    """Processes of a part are gone when its block is left, with all that came of them; the others go on."""
    processes = Processes("run")
    folders = [tmp_path / "rest", tmp_path / "part"]
    script = CHILDREN["has a grandchild in a session of its own"]
    for folder in folders:
        folder.mkdir()
    await processes.start([sys.executable, "-c", script, str(folders[0])])
    async with processes.part(5.0) as part:
        await part.start([sys.executable, "-c", script, str(folders[1])])
        for folder in folders:
            await signed_in(folder, 2)
    assert [len(alive(folder)) for folder in folders] == [2, 0]
    await processes.end()
    assert not alive(folders[0])


async def test_parts_go_with_the_rest(tmp_path: Path) -> None:
    """Who kills the processes of a run, or ends them, reaches those of its parts, too."""
    processes = Processes("run")
    for end in (processes.end, None):
        async with processes.part(5.0) as part:
            process = await part.start([sys.executable, "-c", SLEEP])
            assert processes.any
            if end is None:
                processes.kill()
            else:
                await end()
            with trio.fail_after(5):
                assert await process.wait() == -9
    assert not processes.any
