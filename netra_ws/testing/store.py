"""A store that works until it is told not to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import trio

from netra_ws.errors import StoreError
from netra_ws.history.stores.contract import Write
from netra_ws.history.stores.memory import MemoryStore

#: What a failing store says, as a driver's error might: it must never reach a client.
SECRET_TEXT = "postgresql://admin:hunter2@10.0.0.1/ledger is gone"  # noqa: S105  (nobody's password)


class Health(Enum):
    """How the store does."""

    WELL = "it answers"
    AWAY = "every call fails at once, as a store does that went away"
    FULL = "reads answer and writes fail, as on a full disk"
    HANGING = "no call returns until it is well again"
    MUTE = "writes take effect and fail nevertheless: the answer is lost on its way"
    BROKEN = "every call raises what no store may raise: a bug"


class FaultyStore(MemoryStore):
    """A memory store whose every call does what was said last.

    It keeps its rows as long as the object lives, so a second server may go on with it.

    Attributes:
        calls: How many calls there were.
    """

    def __init__(self, health: Health = Health.WELL) -> None:
        super().__init__()
        self._health = health
        self._turned = trio.Event()
        self.calls = 0

    @property
    def health(self) -> Health:
        return self._health

    def turn(self, health: Health) -> None:
        """Let all calls from now on, and those that hang, be in that state of health."""
        self._health = health
        self._turned.set()
        self._turned = trio.Event()

    def fail(self) -> None:
        """Let every call fail at once, until ``recover``."""
        self.turn(Health.AWAY)

    def hang(self) -> None:
        """Let no call return, until ``recover``."""
        self.turn(Health.HANGING)

    def full(self) -> None:
        """Let writes fail and reads answer, until ``recover``."""
        self.turn(Health.FULL)

    def lose_answers(self) -> None:
        """Let writes take effect and fail nevertheless, until ``recover``: the recorder repeats them."""
        self.turn(Health.MUTE)

    def recover(self) -> None:
        """Let every call work, also those that hang."""
        self.turn(Health.WELL)

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
        trimmed = await super().write(batch)
        if self._health is Health.MUTE:
            raise StoreError(SECRET_TEXT)
        return trimmed
