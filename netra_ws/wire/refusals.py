"""What a refusal at the door leaves behind: a count by its word, and a line in the log.

Both are bounded, whoever is refused how often: a program's own rule may refuse with words that nobody has
foreseen, and attackers must not fill a disk. Of what a client sent, a line shows its address, which page of ours
it asked for, and for a refused origin the origin, where it is one; anything else could be a token.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, deque
from collections.abc import Sequence

import attrs
import trio

from netra_ws.access.origins import NO_ORIGIN, parse_origin
from netra_ws.errors import Refused

logger = logging.getLogger(__name__)

#: Words that are counted each by itself; the door's own are some thirty.
MAX_OUTCOMES = 64
#: Stands for every word beyond, and for what is none.
OTHER = "OTHER"
LINES_PER_MINUTE = 30
MAX_SHOWN = 200
#: Longest part of a host's name (RFC 1035 §2.3.4); the claims of a token are longer.
_MAX_LABEL = 63
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@attrs.define
class Refusals:
    """Counts refusals and writes them down.

    Attributes:
        outcomes: Where they are counted, beside what else becomes of those who come.
    """

    outcomes: Counter[str]
    _written: deque[float] = attrs.field(init=False, factory=lambda: deque(maxlen=LINES_PER_MINUTE))
    _left_out: int = attrs.field(init=False, default=0)

    def count(self, refused: Refused) -> None:
        """Count it by its code; beyond ``MAX_OUTCOMES`` different ones as ``OTHER``."""
        word = _word(refused.code)
        known = word in self.outcomes or len(self.outcomes) < MAX_OUTCOMES
        self.outcomes[word if known else OTHER] += 1

    def tell(self, refused: Refused, peer: str, path: str, origins: Sequence[bytes] | None = None) -> None:
        """Write one line, or note that it was left out.

        Args:
            path: What was asked for, if that is one of ours.
            origins: The Origin headers, if it was refused for them.
        """
        now = trio.current_time()
        if len(self._written) == LINES_PER_MINUTE and now - self._written[0] < 60:
            self._left_out += 1
            return
        self._written.append(now)
        origin = "" if origins is None else f" origin={_origin(origins)!r}"
        more = f" … and {self._left_out} more" if self._left_out else ""
        self._left_out = 0
        word = _word(refused.code)
        logger.info("refused %d %s peer=%r path=%r%s%s", refused.status, word, peer[:MAX_SHOWN], path, origin, more)


def _word(code: str) -> str:
    return code if _WORD.fullmatch(code) else OTHER


def _origin(origins: Sequence[bytes]) -> str:
    """Return what of Origin headers may stand in a log: a token in the place of a host is no host."""
    texts = {value.decode("latin-1").strip() for value in origins}
    if len(texts) != 1:
        return "several" if texts else NO_ORIGIN
    (text,) = texts
    if text == "null":
        return text
    origin = parse_origin(text)
    if origin is None or origin.any_label or max(map(len, origin.host.split("."))) > _MAX_LABEL:
        return "malformed"
    return str(origin)[:MAX_SHOWN]
