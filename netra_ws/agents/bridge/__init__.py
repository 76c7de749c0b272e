"""asyncio code as agents."""

from __future__ import annotations

from .agent import BridgedAgent as BridgedAgent
from .agent import bridge as bridge
from .asyncio_run import AsyncioRun as AsyncioRun
from .asyncio_run import AsyncioToolCall as AsyncioToolCall
