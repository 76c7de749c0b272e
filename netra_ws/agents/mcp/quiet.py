"""Keeps what the library logs of our connections out of the log, where a foreign server could fill it.

It logs each request at level INFO, an error with its traceback for each message that it cannot read, and the
ids of sessions, which are secrets. What an operator has to know of a server is logged by ``link``. Connections
that a program has made by itself are not ours, and stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ours: ContextVar[bool] = ContextVar("netra_ws_mcp_is_ours", default=False)
#: The loggers of what works for a connection.
_LOGGERS = ("client", "httpx2", "mcp.client.streamable_http", "mcp.shared.jsonrpc_dispatcher")


@contextmanager
def quiet() -> Iterator[None]:
    """Tell that this task, and those that it starts, work for a connection of ours."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_demote)  # once, however often it is added
    before = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(before)


def _demote(record: logging.LogRecord) -> bool:
    if not _ours.get():
        return True
    record.levelno, record.levelname = logging.DEBUG, "DEBUG"
    return logging.getLogger(record.name).isEnabledFor(logging.DEBUG) and "session ID" not in str(record.msg)
