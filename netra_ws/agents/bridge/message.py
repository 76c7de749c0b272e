"""The current message, as the asyncio side knows it before Trio's side has said it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from ..speech import cut

if TYPE_CHECKING:
    from ..request import RunPolicy


@attrs.define
class Message:
    """What was said since the last message ended, by the rules of ``Speech``."""

    _policy: RunPolicy
    _pieces: list[str] = attrs.field(factory=list)
    _bytes: int = 0

    def add(self, piece: str) -> None:
        for part in cut(piece, self._policy.max_event_bytes):
            size = len(part.encode())
            if self._bytes + size > self._policy.max_response_bytes:
                self.clear()
            self._pieces.append(part)
            self._bytes += size

    def clear(self) -> None:
        self._pieces.clear()
        self._bytes = 0

    @property
    def text(self) -> str:
        self._pieces[:] = ["".join(self._pieces)]
        return self._pieces[0]
