"""The states of a run, all of them, and what may follow what.

A run is QUEUED behind another one of its thread, or RUNNING at once. STOPPING means that somebody
asked it to end and its nursery has not exited yet. DONE is the end: the closing events are written
and nothing of the run is left. STUCK is a run whose code could not be stopped in time: its closing
events are written, nothing more is said in its name, but a task or thread of it is still there;
when that goes, too, it is DONE.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class RunState(Enum):
    QUEUED = "queued"
    RUNNING = "running"
    STOPPING = "stopping"
    STUCK = "stuck"
    DONE = "done"


class RunStep(Enum):
    START = "start"
    STOP = "stop"
    SEAL = "seal"
    FINISH = "finish"


TRANSITIONS: Mapping[RunState, Mapping[RunStep, RunState]] = {
    RunState.QUEUED: {RunStep.START: RunState.RUNNING},
    RunState.RUNNING: {RunStep.STOP: RunState.STOPPING, RunStep.FINISH: RunState.DONE},
    RunState.STOPPING: {RunStep.SEAL: RunState.STUCK, RunStep.FINISH: RunState.DONE},
    RunState.STUCK: {RunStep.FINISH: RunState.DONE},
    RunState.DONE: {},
}

#: In these states a run may still say something.
SPEAKING = frozenset({RunState.RUNNING, RunState.STOPPING})
#: In these states the closing events are written.
CLOSED = frozenset({RunState.STUCK, RunState.DONE})
