"""Child processes of a run, each in a process group of its own, so that grandchildren go with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

import attrs
import trio

from netra_ws.errors import AgentError

#: Seconds between two looks at a process group that was killed.
LOOK_EVERY_S = 0.005
#: Processes that one run may start; all are remembered, since a group may outlive its leader.
MAX_PROCESSES = 256


@attrs.define
class Processes:
    """What a run has started and must not leave behind."""

    _started: list[trio.Process] = attrs.field(factory=list)

    async def start(self, command: Sequence[str] | str, **options: Any) -> trio.Process:
        """Start *command* as the leader of a new process group; options as ``trio.lowlevel.open_process`` has them.

        Raises:
            AgentError: ``QUOTA_EXCEEDED``: the run has started ``MAX_PROCESSES``.
        """
        if len(self._started) >= MAX_PROCESSES:
            raise AgentError(f"a run may start {MAX_PROCESSES} processes", code="QUOTA_EXCEEDED")
        options.pop("start_new_session", None)
        # Shielded: a cancel between fork and return would leave a child that nobody knows.
        with trio.CancelScope(shield=True):
            process = await trio.lowlevel.open_process(command, start_new_session=True, **options)
            self._started.append(process)
        await trio.lowlevel.checkpoint_if_cancelled()
        return process

    @property
    def any(self) -> bool:
        """Whether something was started."""
        return bool(self._started)

    async def end(self) -> None:
        """Kill every group that is still there and wait until its processes are gone.

        The caller bounds the wait; a process that ignores SIGKILL is in the kernel's hands.
        """
        groups = [process for process in self._started if _kill_group(process.pid)]
        for process in self._started:
            await process.wait()
        while any(_alive(process.pid) for process in groups):  # noqa: ASYNC110  (nobody tells when a group is gone)
            await trio.sleep(LOOK_EVERY_S)
        self._started.clear()


def _kill_group(group: int) -> bool:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _alive(group: int) -> bool:
    """Whether the group has a member that is more than a zombie waiting for its parent."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    try:
        entries = os.listdir("/proc")  # noqa: PTH208
    except OSError:
        return True  # no /proc: believe the signal
    for entry in entries:
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123  (hot loop over /proc)
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] not in (b"Z", b"X"):
                return True
    return False
