"""Child processes of a run, each in a process group of its own, so that grandchildren go with it.

A grandchild may leave its group (``setsid``, as daemons do). So every process also carries the name
of its run in its environment, which all that it starts inherit: where the system shows it (``/proc``
of Linux), what bears that name is killed, too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from netra_ws.errors import AgentError

#: Processes that one run may start; all are remembered, since a group may outlive its leader.
MAX_PROCESSES = 256
#: Seconds between two looks at processes that were killed.
LOOK_EVERY_S = 0.005
#: Seconds in which what a killed server left behind has to be gone, before a start goes on without that.
LOST_S = 5.0
#: The variable that tells to which run a process belongs.
VARIABLE = "NETRA_WS_RUN"
#: Whether the system shows the environment of processes.
_SHOWN = os.path.isdir("/proc/self")  # noqa: PTH112
#: Looks are files to read, one per process of the machine; these threads are not those of agents.
_LOOKERS = trio.CapacityLimiter(2)


@attrs.define
class Processes:
    """What a run has started and must not leave behind."""

    run_id: str
    _started: list[trio.Process] = attrs.field(factory=list)
    _claimed: int = 0
    _parts: list[Processes] = attrs.field(factory=list)
    _whole: Processes | None = attrs.field(default=None, kw_only=True)

    @asynccontextmanager
    async def part(self, finalise_s: float) -> AsyncIterator[Processes]:
        """Hold processes that end before the run does: when the block is left, they are killed and waited for.

        What is not gone in *finalise_s* seconds stays with the run.
        """
        part = Processes(self.run_id, whole=self)
        self._parts.append(part)
        try:
            yield part
        finally:
            with trio.move_on_after(finalise_s, shield=True) as scope:
                await part.end()
            if not scope.cancelled_caught:
                self._parts.remove(part)

    async def start(
        self, command: Sequence[str] | str, *, env: Mapping[str, str] | None = None, **options: Any
    ) -> trio.Process:
        """Start *command* as the leader of a new process group; options as ``trio.lowlevel.open_process`` has them.

        Raises:
            AgentError: ``QUOTA_EXCEEDED``: the run has started ``MAX_PROCESSES``.
        """
        self._check_room()
        options["start_new_session"] = True
        options["env"] = {**(os.environ if env is None else env), VARIABLE: self._mark}
        # Shielded: a cancel between fork and return would leave a child that nobody knows.
        with trio.CancelScope(shield=True):
            process = await trio.lowlevel.open_process(command, **options)
            self._started.append(process)
        await trio.lowlevel.checkpoint_if_cancelled()
        return process

    def claim(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment for a process that somebody else starts for the run; *env* is ours when None.

        Where the system shows it, that process and all that comes of it go with the run. May be called from
        any thread.

        Raises:
            AgentError: ``QUOTA_EXCEEDED``, as ``start``.
        """
        self._check_room()
        self._claimed += 1
        return {**(os.environ if env is None else env), VARIABLE: self._mark}

    def _check_room(self) -> None:
        whole = self if self._whole is None else self._whole
        if sum(len(each._started) + each._claimed for each in (whole, *whole._parts)) >= MAX_PROCESSES:
            raise AgentError(f"a run may start {MAX_PROCESSES} processes", code="QUOTA_EXCEEDED")

    @property
    def _mark(self) -> str:
        # Run ids are unique per user only, and another server may run beside this one.
        return f"{os.getpid()}.{id(self)}.{self.run_id}"

    @property
    def any(self) -> bool:
        """Whether something was started."""
        return bool(self._started or self._claimed) or any(part.any for part in self._parts)

    def kill(self) -> set[int]:
        """Kill every group that is still there and return their numbers, at once."""
        for part in self._parts:
            part.kill()
        if self._claimed:
            for pid in _living((), self._mark):
                _kill(pid)
        return {process.pid for process in self._started if _is_ours(process) and _kill_group(process.pid)}

    async def end(self) -> None:
        """Kill everything that was started and all that came of it, and wait until it is gone.

        The caller bounds the wait; a process that ignores SIGKILL is in the kernel's hands.
        """
        groups = self.kill()
        for part in self._parts:
            await part.end()
        for process in self._started:
            await process.wait()
        while left := await trio.to_thread.run_sync(_living, groups, self._mark, limiter=_LOOKERS):
            for pid in left:
                _kill(pid)
            await trio.sleep(LOOK_EVERY_S)
        self._started.clear()
        self._claimed = 0


def _is_ours(process: trio.Process) -> bool:
    # A leader's number is given to nobody else while its group has members: if it was reaped and there is
    # a process of that number again, the group has gone, and that one is somebody else's.
    return process.returncode is None or not Path(f"/proc/{process.pid}").exists()


def _kill_group(group: int) -> bool:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _living(groups: Iterable[int], mark: str) -> list[int]:
    """Return the processes of *groups* and those that bear *mark*, zombies that wait for their parent left out.

    Blocks. Without ``/proc`` it is the groups that the system still knows.
    """
    if not _SHOWN:
        return [group for group in groups if _known(group)]
    entries = os.listdir("/proc")  # noqa: PTH208
    variable = f"{VARIABLE}={mark}".encode()
    return [int(entry) for entry in entries if entry.isdigit() and _belongs(entry, set(groups), variable)]


def _known(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _fields(entry: str) -> list[bytes]:
    """Return what the system says of a process behind its name: its state, parent and group, in the first place."""
    with open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123  (a hot loop)
        return file.read().rpartition(b")")[2].split()


def _belongs(entry: str, groups: set[int], variable: bytes) -> bool:
    try:
        fields = _fields(entry)
        if fields[0] in (b"Z", b"X"):
            return False
        if int(fields[2]) in groups:
            return True
        with open(f"/proc/{entry}/environ", "rb") as file:  # noqa: PTH123
            return variable in file.read().split(b"\0")
    except OSError:  # gone meanwhile, or somebody else's
        return False


async def end_lost(run_ids: Iterable[str]) -> int:
    """Kill what is left of runs that were lost with their server; return how many processes that were.

    A process is known by the mark that it inherited, of a run among *run_ids* and of a server that is
    not there any more. This process and those that it comes from are spared: a run may have started its
    own server anew. Only where the system shows it. Takes ``LOST_S`` seconds at most.
    """
    lost, ended = set(run_ids), set[int]()
    with trio.move_on_after(LOST_S):
        while lost and (left := await trio.to_thread.run_sync(_of_lost, lost, limiter=_LOOKERS)):
            for pid in left:
                _kill(pid)
            ended.update(left)
            await trio.sleep(LOOK_EVERY_S)
    return len(ended)


def _of_lost(run_ids: set[str]) -> list[int]:
    """Return the processes that bear the mark of one of these runs and of a server that has gone; blocks."""
    if not _SHOWN:
        return []
    found, spared = [], set(_ancestry())
    for entry in os.listdir("/proc"):  # noqa: PTH208
        mark = _mark_of(entry) if entry.isdigit() and int(entry) not in spared else None
        if mark is None:
            continue
        server, _, run_id = mark.split(".", 2)
        if run_id in run_ids and server.isdigit() and not Path(f"/proc/{server}").exists():
            found.append(int(entry))
    return found


def _ancestry() -> Iterator[int]:
    """Yield this process and those that it comes from."""
    pid = os.getpid()
    while pid:
        yield pid
        try:
            pid = int(_fields(str(pid))[1])
        except OSError:  # it has just ended
            return


def _mark_of(entry: str) -> str | None:
    try:
        if _fields(entry)[0] in (b"Z", b"X"):
            return None
        with open(f"/proc/{entry}/environ", "rb") as file:  # noqa: PTH123
            variables = file.read().split(b"\0")
    except OSError:
        return None
    name = f"{VARIABLE}=".encode()
    marks = (
        variable.removeprefix(name).decode(errors="replace") for variable in variables if variable.startswith(name)
    )
    return next((mark for mark in marks if mark.count(".") >= 2), None)
