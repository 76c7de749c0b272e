"""A store that works until it is told not to: the one of the public kit."""

from __future__ import annotations

from netra_ws.testing.store import SECRET_TEXT as SECRET_TEXT
from netra_ws.testing.store import FaultyStore as FaultyStore
from netra_ws.testing.store import Health as Health
