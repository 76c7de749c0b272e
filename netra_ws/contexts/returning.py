"""When the clients of a drained server are asked to come back: not all at once, since they may all find one door."""

from __future__ import annotations

import random
from collections.abc import Iterator

#: Clients that come back per second after a drain: about a third of the handshakes that one core takes.
RETURNS_PER_S = 500
#: Seconds over which they are spread, at least and at most, and before which none comes back.
SPREAD_S = (2.0, 60.0)
RETURN_AFTER_S = 0.5

_DICE = random.Random()  # noqa: S311  (spreads clients, protects nothing)


def spread_s(clients: int) -> float:
    """Return over how many seconds so many clients are asked to come back."""
    return min(max(SPREAD_S[0], clients / RETURNS_PER_S), SPREAD_S[1])


def return_delays_ms(clients: int, dice: random.Random = _DICE) -> Iterator[int]:
    """Yield one delay per client: each has its own part of the window, and jitter within it."""
    part_s = spread_s(clients) / max(1, clients)
    for number in range(clients):
        yield round((RETURN_AFTER_S + (number + dice.random()) * part_s) * 1000)
