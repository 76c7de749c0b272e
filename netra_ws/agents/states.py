"""The states of a run, all of them, and what may follow what.

A run is QUEUED behind another one of its thread, or RUNNING at once. ASKING means that it, or a sub-run
of it, waits for its user, and its clocks stand still. STOPPING means that somebody
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
    ASKING = "asking"
    STOPPING = "stopping"
    STUCK = "stuck"
    DONE = "done"


class RunStep(Enum):
    START = "start"
    ASK = "ask"
    ANSWER = "answer"
    STOP = "stop"
    SEAL = "seal"
    FINISH = "finish"


TRANSITIONS: Mapping[RunState, Mapping[RunStep, RunState]] = {
    RunState.QUEUED: {RunStep.START: RunState.RUNNING},
    RunState.RUNNING: {
        RunStep.ASK: RunState.ASKING,
        RunStep.STOP: RunState.STOPPING,
        RunStep.FINISH: RunState.DONE,
    },
    RunState.ASKING: {
        RunStep.ANSWER: RunState.RUNNING,
        RunStep.STOP: RunState.STOPPING,
        RunStep.FINISH: RunState.DONE,
    },
    RunState.STOPPING: {RunStep.SEAL: RunState.STUCK, RunStep.FINISH: RunState.DONE},
    RunState.STUCK: {RunStep.FINISH: RunState.DONE},
    RunState.DONE: {},
}

#: In these states a run has begun, and nobody wants it to end.
LIVE = frozenset({RunState.RUNNING, RunState.ASKING})
#: In these states a run may still say something.
SPEAKING = LIVE | {RunState.STOPPING}
#: In these states the closing events are written.
CLOSED = frozenset({RunState.STUCK, RunState.DONE})
