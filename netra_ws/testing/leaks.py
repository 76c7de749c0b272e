"""What is left when everybody has gone: seats, runs, tasks, processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import attrs
import trio

from netra_ws.server import Server


@attrs.define
class Ground:
    """What there was before anybody came; whatever is more than that afterwards is left over.

    Attributes:
        main: The server's own task; all tasks of its users live beneath it.
    """

    server: Server
    main: trio.lowlevel.Task
    _tasks: frozenset[trio.lowlevel.Task] = attrs.field(init=False)
    _children: frozenset[int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._tasks = frozenset(self._living())
        self._children = frozenset(children())

    def leftovers(self) -> Iterator[str]:
        """Say what of the server is left right now, a line for each thing."""
        registry = self.server.registry
        for context in registry:
            yield f"the context of user {context.user_id!r} is {context.state.name.lower()}"
            for run in context.runs.values():
                stuck = " and could not be stopped" if run.sealed else ""
                yield f"run {run.run_id} of agent {run.agent_name!r} has not ended{stuck}"
        if registry.seats:
            yield f"{registry.seats} connections have a seat"
        for stream in self.server.streams:
            if readers := stream.statistics().readers:
                yield f"{readers} readers of {stream.key}"
        for task in self._living():
            if task not in self._tasks:
                yield f"task {task.name}"

    def processes(self) -> Iterator[str]:
        """Say which child processes are left right now; looks through ``/proc``, so not to be asked all the time."""
        for pid in sorted(set(children()) - self._children):
            yield f"child process {pid}: {_command(pid)}"

    def _living(self) -> Iterator[trio.lowlevel.Task]:
        """Yield the server's tasks, and those that belong to nobody (system tasks)."""
        yield from _beneath(self.main)
        root = trio.lowlevel.current_root_task()
        for nursery in root.child_nurseries if root is not None else ():
            yield from nursery.child_tasks


def _beneath(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield child
            yield from _beneath(child)


def children() -> list[int]:
    """Return the living child processes of this one; none where there is no ``/proc``."""
    found = []
    # Not by glob(), which looks at each file once more and raises for one that has ended meanwhile.
    for entry in os.listdir("/proc") if os.path.isdir("/proc/self") else ():  # noqa: PTH112, PTH208
        try:
            fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split() if entry.isdigit() else []
        except OSError:
            continue  # it has ended meanwhile
        if not fields:
            continue
        state, parent = fields[0], int(fields[1])
        if parent == os.getpid() and state not in (b"Z", b"X"):
            found.append(int(entry))
    return found


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "it has just ended"
    return b" ".join(words).decode(errors="replace").strip()
