"""Random walks: whatever comes, goes, fails and stalls, nobody gets another's, and nothing is doubled or lost."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import attrs
import pytest
import trio

from netra_ws.compat.manager import UnifiedWebSocketManager
from netra_ws.compat.policy import ManagerPolicy

from .sockets import JsonSocket

USERS = ("ada", "bob", "eve")


@attrs.define(eq=False)
class Moody(JsonSocket):
    """Takes, fails, is slow or stalls, as the dice say."""

    dice: random.Random = attrs.field(factory=random.Random)
    user: str = ""
    calm: bool = False

    async def send_json(self, message: dict[str, Any]) -> None:
        mood = 0.0 if self.calm else self.dice.random()
        self.takes_s, self.stalled = (self.dice.random(), False) if mood < 0.9 else (0.0, mood > 0.98)
        self.error = ConnectionResetError() if 0.9 < mood < 0.94 else None
        await super().send_json(message)


@attrs.define
class Walk:
    """One walk and what is known of it."""

    dice: random.Random
    manager: UnifiedWebSocketManager = attrs.field(
        factory=lambda: UnifiedWebSocketManager(ManagerPolicy(max_undelivered=10_000))
    )
    sockets: list[Moody] = attrs.field(factory=list)
    taken: dict[int, bool] = attrs.field(factory=dict)
    owner: dict[int, str] = attrs.field(factory=dict)

    async def step(self) -> None:
        user = self.dice.choice(USERS)
        action = self.dice.random()
        await trio.sleep(self.dice.random() * 3)
        mine = [socket for socket in self.sockets if socket.user == user]
        if action < 0.2 and len(self.manager.get_user_connections(user)) < 10:
            socket = Moody(dice=self.dice, user=user)
            self.sockets.append(socket)
            await self.manager.connect_user(user, socket)
        elif action < 0.3 and mine:
            await self.manager.disconnect_user(user, self.dice.choice(mine))
        elif action < 0.35:
            await self.manager.attempt_message_recovery(user)
        else:
            number = len(self.owner)
            self.owner[number] = user
            self.taken[number] = await self.manager.send_to_user(user, {"type": "m", "for": user, "n": number})

    async def calm(self) -> None:
        """Let everybody have a good connection, and all go."""
        for user in USERS:
            for one in self.manager.connections_of(user):
                await self.manager.remove_connection(one.connection_id)
            socket = Moody(user=user, calm=True)
            self.sockets.append(socket)
            await self.manager.connect_user(user, socket)
            await self.manager.disconnect_user(user, socket)


@pytest.mark.parametrize("seed", range(12))
async def test_a_random_walk(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    """Over random walks each message reaches its own user only, what nobody took comes once, and all is empty again."""
    walk = Walk(random.Random(seed))
    async with trio.open_nursery() as nursery:
        for _ in range(150):
            nursery.start_soon(walk.step)
            await trio.sleep(walk.dice.random() / 5)
    await walk.calm()
    got: Counter[int] = Counter()
    for socket in walk.sockets:
        numbers = [message["n"] for message in socket.got]
        assert len(set(numbers)) == len(numbers), "twice on one socket"
        assert {message["for"] for message in socket.got} <= {socket.user}
        recovered = [message["n"] for message in socket.got if message.get("recovered")]
        assert all(not walk.taken[number] or number in numbers for number in recovered)
        got.update(numbers)
    assert got.keys() == walk.taken.keys()
    for number, taken in walk.taken.items():
        assert got[number] >= 1 if taken else got[number] == 1
    statistics = walk.manager.get_error_statistics()
    assert statistics["total_queued_messages"] == statistics["dropped_messages"] == 0
    assert walk.manager.get_stats()["connections_by_user"] == {}
    assert not walk.manager.connection_registry
    assert sum(not taken for taken in walk.taken.values()) >= 3
