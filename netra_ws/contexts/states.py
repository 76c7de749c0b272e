"""The states of a user context, and what may follow what.

OPEN: somebody is there, a connection or an embedding program. LINGERING: nobody is, but a run goes
on and its user may come back. CLOSING: everything of the user is being torn down; who comes now gets
a new context on the same stream. CLOSED: nothing is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class ContextState(Enum):
    OPEN = "open"
    LINGERING = "lingering"
    CLOSING = "closing"
    CLOSED = "closed"


class ContextStep(Enum):
    LEAVE = "leave"
    RETURN = "return"
    CLOSE = "close"
    GONE = "gone"


TRANSITIONS: Mapping[ContextState, Mapping[ContextStep, ContextState]] = {
    ContextState.OPEN: {ContextStep.LEAVE: ContextState.LINGERING, ContextStep.CLOSE: ContextState.CLOSING},
    ContextState.LINGERING: {ContextStep.RETURN: ContextState.OPEN, ContextStep.CLOSE: ContextState.CLOSING},
    ContextState.CLOSING: {ContextStep.GONE: ContextState.CLOSED},
    ContextState.CLOSED: {},
}

#: In these states a context takes connections and runs.
LIVING = frozenset({ContextState.OPEN, ContextState.LINGERING})
