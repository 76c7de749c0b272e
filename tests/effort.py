"""How much the campaigns do: bounded numbers in the plain suite, the full ones where the environment asks.

A campaign draws something else in each run, so what a short one misses, one of the next finds. ``tox -e heavy``
sets ``NETRA_WS_TEST_EFFORT=1`` and runs all of them, property tests too, with their full numbers.
"""

from __future__ import annotations

import os

#: The share of the full numbers.
EFFORT = float(os.environ.get("NETRA_WS_TEST_EFFORT", "0.25"))


def share(full: int, least: int = 1) -> int:
    """Return the share of a full number that is to be done now, at least *least*."""
    return max(least, round(full * EFFORT))
