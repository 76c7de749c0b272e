"""What the door does when it is crowded: handshakes that are hurried, and a descriptor kept for saying no.

Who opens a thousand sockets and says nothing holds every place for ``timing.handshake_s``. So beyond three
quarters of the places each newcomer hurries the one that has kept us waiting longest: it has ``HURRIED_S``
from its beginning, which a client that means it never needs. Who was heard is not hurried.

A process without descriptors cannot even accept in order to refuse; its clients would hang in the system's
queue. A spare descriptor is given up for that moment: the client hears 503 and tries another server.
Others may be quicker to take its place, so there are some more.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

#: Handshakes at the same time; beyond it the system's queue holds newcomers.
MAX_HANDSHAKES = 1000
#: Share of the places above which the oldest silent ones are hurried.
CROWDED = 0.75
#: Descriptors that are kept for saying no.
SPARES = 8
#: Seconds for a hurried client to have sent its head.
HURRIED_S = 1.0


@attrs.define
class Crowd:
    """The places of handshakes, and who keeps us waiting in them.

    Attributes:
        places: Taken before a client is accepted, so each listener holds one while nobody comes.
        under_way: Clients that were accepted and are neither answered nor seated.
        hurried: How many were given a shorter deadline.
    """

    places: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(MAX_HANDSHAKES))
    under_way: int = 0
    hurried: int = 0
    _silent: dict[trio.CancelScope, float] = attrs.field(factory=dict)

    @contextmanager
    def waiting(self, scope: trio.CancelScope) -> Iterator[None]:
        """Note that inside the block a client's head or body is waited for, under the deadline of *scope*."""
        deadline = scope.deadline
        self._silent[scope] = trio.current_time()
        if self.under_way > CROWDED * self.places.total_tokens:
            self._hurry()
        try:
            yield
            scope.deadline = deadline  # it was heard
        finally:
            self._silent.pop(scope, None)

    def _hurry(self) -> None:
        scope, began = next(iter(self._silent.items()))
        del self._silent[scope]
        scope.deadline = min(scope.deadline, began + HURRIED_S)
        self.hurried += 1

    @property
    def silent(self) -> int:
        """How many clients are waited for."""
        return len(self._silent)


@attrs.define
class Spare:
    """A few descriptors that are kept open so that they can be given up, one at a time.

    One would do if nobody else took the place at that moment: a store that opens a file, an agent.
    """

    _descriptors: list[int] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.keep()

    def keep(self) -> None:
        """Take descriptors again, as many as the system has, up to ``SPARES``."""
        with contextlib.suppress(OSError):
            while len(self._descriptors) < SPARES:
                self._descriptors.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def give_up(self) -> bool:
        """Close one of the descriptors; return whether there was one."""
        if not self._descriptors:
            return False
        os.close(self._descriptors.pop())
        return True

    def close(self) -> None:
        """Close them all."""
        while self.give_up():
            pass
