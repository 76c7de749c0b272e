"""The product itself in a process of its own, ``python -m netra_ws``, with what the system knows of it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from tests.kit import SECRET

ROOT = Path(__file__).parents[2]
#: Seconds for a start or an end, on a machine that has other things to do.
PATIENCE_S = 30.0

#: Agents that the processes serve; a test adds its own behind them.
AGENTS = """
import time

import trio


async def counter(run):
    "Say the number that the text is, one tool call for each, a hundred a second."
    for number in range(int(run.text)):
        async with run.tool("count", number=number) as call:
            call.results = number
        await run.say(f"{number} ")
        await trio.sleep(0.01)
    return run.said


async def forever(run):
    await run.say("for ever ")
    await trio.sleep_forever()


async def standstill(run):
    "Hold up the event loop, as blocking code in an agent does."
    await run.say("standing still")
    await trio.sleep(0.1)
    time.sleep(600)
"""


@attrs.define(eq=False)
class Process:
    """A server with a SQLite file; it can be ended and started again on the same port.

    Attributes:
        settings: ``NETRA_WS_…`` without the prefix, such as ``TIMING_DRAIN_S``.
        descriptors: How many it may have open; None leaves it as it is.
        port: 0 before the first start.
    """

    folder: Path
    settings: Mapping[str, object] = attrs.field(factory=dict)
    agents: str = AGENTS
    names: tuple[str, ...] = ("counter", "forever", "standstill")
    descriptors: int | None = None
    port: int = 0
    popen: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it and wait until it listens."""
        self.spawn()
        with trio.fail_after(PATIENCE_S):
            while "Listening on" not in (log := self._own_log()):
                assert self.popen is not None
                assert self.popen.poll() is None, self.log()
                await trio.sleep(0.01)
        self.port = int(log.partition("://127.0.0.1:")[2].split()[0])

    def spawn(self) -> None:
        """Start it without waiting."""
        (self.folder / "load_agents.py").write_text(self.agents)
        words = [f"--agent=load_agents:{name}" for name in self.names]
        words += ["--port", str(self.port), "--store", f"sqlite:///{self.folder / 'load.db'}"]
        own = {name: value for name, value in os.environ.items() if not name.startswith("NETRA_WS_")}
        given = {f"NETRA_WS_{name}": str(value) for name, value in self.settings.items()}
        with (self.folder / "server.log").open("ab") as log:
            self._log_from = log.seek(0, os.SEEK_END)
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "netra_ws", *words],
                cwd=self.folder,
                env={
                    **own,
                    "PYTHONPATH": str(ROOT),
                    "NETRA_WS_ENVIRONMENT": "testing",
                    "NETRA_WS_AUTH_SECRET": SECRET,
                    **given,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=self._limits(),
            )

    _log_from: int = 0

    def _limits(self) -> Callable[[], None] | None:
        if (count := self.descriptors) is None:
            return None
        return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal."""
        assert self.popen is not None
        self.popen.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end and return its exit status."""
        assert self.popen is not None
        with trio.fail_after(PATIENCE_S):
            while self.popen.poll() is None:
                await trio.sleep(0.005)
        status: int = self.popen.returncode
        return status

    def kill(self) -> None:
        """Make sure that nothing of it is left."""
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait()

    def log(self) -> str:
        """Return what it has written since the first start."""
        return (self.folder / "server.log").read_text(errors="replace")

    def _own_log(self) -> str:
        return (self.folder / "server.log").read_bytes()[self._log_from :].decode(errors="replace")

    # What the system knows.

    @property
    def _proc(self) -> Path:
        assert self.popen is not None
        return Path(f"/proc/{self.popen.pid}")

    def rss_bytes(self) -> int:
        """Return its resident memory."""
        return int((self._proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        """Return the processor time that it has used."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def open_descriptors(self) -> tuple[int, int]:
        """Return how many descriptors it has open: of the store's files, and others."""
        names = []
        for descriptor in (self._proc / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                names.append(descriptor.readlink().name)
        of_store = sum(name.startswith("load.db") for name in names)
        return of_store, len(names) - of_store


@asynccontextmanager
async def serving(folder: Path, settings: Mapping[str, object] = {}, **more: object) -> AsyncIterator[Process]:
    """Run a server beside the block; at the end it is killed, unless it has ended."""
    process = Process(folder, settings, **more)  # type: ignore[arg-type]
    try:
        await process.start()
        yield process
    finally:
        process.kill()


async def eventually(true: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait until something is true.

    Raises:
        trio.TooSlowError: It is not within that time.
    """
    with trio.fail_after(within_s):
        while not true():
            await trio.sleep(0.01)
