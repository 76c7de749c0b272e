"""Heads and bodies through the real ``Request``: a head, a refusal or nothing, however the bytes arrive."""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs
import h11
import trio

from netra_ws.errors import Refused
from netra_ws.wire.head import MAX_HEAD_BYTES, Request, canonical_upgrade, check_upgrade, json_reply, refusal

from .corpus.heads import SEEDS, WORDS
from .mutation import mutated, pieces

#: From here on the limit of a head counts, which h11 applies to what it has got so far.
_EXACT = MAX_HEAD_BYTES // 2


@attrs.define(eq=False)
class Pieces(trio.abc.Stream):
    """A client that sends some pieces, then its end; what it is told is kept."""

    left: list[bytes]
    told: bytes = b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self.left:
            return b""
        piece = self.left.pop(0)
        if max_bytes is not None and len(piece) > max_bytes:
            self.left.insert(0, piece[max_bytes:])
        return piece[:max_bytes]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.told += bytes(data)

    async def wait_send_all_might_not_block(self) -> None: ...

    async def aclose(self) -> None: ...


async def outcome(sent: Sequence[bytes]) -> tuple[object, ...]:
    """Return what became of a request, as the door would go about it, and check the answer."""
    stream = Pieces(list(sent))
    request = Request(stream, "192.0.2.1")
    try:
        head = await request.head()
        if head is None:
            return ("nothing",)
        seen: tuple[object, ...] = (head.method, head.path, dict(head.query), list(head.headers), head.http_version)
        if head.method == "POST":
            seen = (*seen, await request.body())
        elif head.path == "/ws":
            check_upgrade(head)
            request.rest()
            canonical_upgrade(head, None).decode("ascii")
            return (*seen, "upgrade")
        await request.answer(json_reply(200, {}))
    except Refused as refused:
        await request.answer(refusal(refused))
        seen = (refused.status, refused.code)
    _check_answer(stream.told, head_only=sent and b"".join(sent).startswith(b"HEAD"))
    return seen


def _check_answer(told: bytes, *, head_only: object) -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="HEAD" if head_only else "GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(told)
    client.receive_data(b"")
    events = []
    while (event := client.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
        events.append(event)
        if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            break
    assert isinstance(events[0], h11.Response), told
    assert isinstance(events[-1], h11.EndOfMessage), told


class Heads:
    """The target ``head``."""

    name = "head"

    def make(self, chance: random.Random) -> bytes:
        """Return a head, or what once was one."""
        return mutated(chance, SEEDS, WORDS)

    async def check(self, data: bytes, where: Sequence[int]) -> None:
        """Fail for any exception but a refusal, and for an outcome that depends on how the bytes arrive.

        Raises:
            Exception: What should not have happened.
        """
        whole, cut = await outcome([data] if data else []), await outcome(pieces(data, where))
        assert whole == cut or len(data) > _EXACT, f"{whole} at once, {cut} in pieces"
