"""Keeps an endpoint's key out of every text that leaves, also where the endpoint itself says it back."""

from __future__ import annotations

import attrs

#: Shorter keys are placeholders of servers that need none ("ollama", "EMPTY", "none"), and words of the language.
MIN_SECRET = 16
#: A message that holds so many characters of the key in a row is not shown: servers quote it with stars inside.
MIN_PART = 6
COVER = "***"


@attrs.frozen
class Secrecy:
    """What is not to be shown; empty when there is nothing."""

    _secret: str = attrs.field(repr=False)

    def betrayed_by(self, text: str) -> bool:
        """Whether *text* holds the secret or a piece of it."""
        size = min(len(self._secret), MIN_PART)
        return size > 0 and any(self._secret[at : at + size] in text for at in range(len(self._secret) - size + 1))

    def cover(self, text: str) -> str:
        """Return *text*, all of it being there, without the secret."""
        return text.replace(self._secret, COVER) if len(self._secret) >= MIN_SECRET else text

    def veil(self) -> Veil:
        """Return a cover for a text that comes in pieces."""
        return Veil(self._secret if len(self._secret) >= MIN_SECRET else "")


@attrs.define
class Veil:
    """Covers the secret in a text that comes in pieces, wherever these are cut.

    Holds back no more than what may be the secret's beginning.
    """

    _secret: str = attrs.field(repr=False)
    _held: str = attrs.field(default="", repr=False)

    def show(self, piece: str) -> str:
        """Return what can be shown now that *piece* has come."""
        if not self._secret:
            return piece
        text = (self._held + piece).replace(self._secret, COVER)
        most = min(len(text), len(self._secret) - 1)
        held = next((size for size in range(most, 0, -1) if self._secret.startswith(text[-size:])), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """Return what was held back; nothing comes any more."""
        held, self._held = self._held, ""
        return held
