"""Bounds of connections to MCP servers, apart from what enforces them: that needs the library."""

from __future__ import annotations

from typing import Final

#: Bytes of one message; a result above ``limits.max_event_bytes`` is cut later, this bounds what is read at all.
MAX_MESSAGE_BYTES: Final = 4 * 2**20
#: Messages that wait to be sent; whoever has more waits.
MAX_UNSENT: Final = 64
#: Seconds that one message may take to be sent before its server counts as gone.
STALL_S: Final = 10.0
#: Seconds that a server has to part from us; at most a quarter of what its run has for its end.
PARTING_S: Final = 1.0
#: Lines of standard error that are logged of one process, and how many of them are kept for a warning.
MAX_COMPLAINTS: Final = 200
KEPT_COMPLAINTS: Final = 10
