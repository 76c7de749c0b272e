"""A store that works until it is told not to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import trio

from netra_ws.errors import StoreError
from netra_ws.history.stores.contract import Write
from netra_ws.history.stores.memory import MemoryStore

#: What must never reach a client.
SECRET_TEXT = "postgresql://admin:hunter2@10.0.0.1/ledger is gone"


class Health(Enum):
    """How the store does."""

    WELL = "it answers"
    AWAY = "every call fails at once, as a store does that went away"
    FULL = "reads answer and writes fail, as on a full disk"
    HANGING = "no call returns until it is well again"
    BROKEN = "every call raises what no store may raise: a bug"


class FaultyStore(MemoryStore):
    """A memory store whose every call does what ``turn`` said last."""

    def __init__(self, health: Health = Health.WELL) -> None:
        super().__init__()
        self._health = health
        self._turned = trio.Event()
        self.calls = 0

    def turn(self, health: Health) -> None:
        """Let all calls from now on, and those that hang, be in that state of health."""
        self._health = health
        self._turned.set()
        self._turned = trio.Event()

    async def _ready(self) -> None:
        self.calls += 1
        await super()._ready()
        while self._health is Health.HANGING:
            await self._turned.wait()
        if self._health is Health.AWAY:
            raise StoreError(SECRET_TEXT)
        if self._health is Health.BROKEN:
            raise RuntimeError(SECRET_TEXT)

    async def write(self, batch: Sequence[Write]) -> Mapping[str, int]:
        if self._health is Health.FULL:
            raise StoreError(SECRET_TEXT)
        return await super().write(batch)
