"""WebSocket close codes, and what each tells a client about coming back (PROTOCOL §6)."""

from __future__ import annotations

from enum import IntEnum


class CloseCode(IntEnum):
    """Every code that this server sends; RFC 6455 §7.4 for those below 4000."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED = 1003
    BAD_TEXT = 1007
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL = 1011
    RESTART = 1012
    OVERLOADED = 1013
    SLOW_CONSUMER = 4000
    NO_PONG = 4001
    HANDSHAKE_TIMEOUT = 4002
    TOKEN_EXPIRED = 4003
    TOO_MANY_CONNECTIONS = 4009
    SIGNED_OUT = 4010


#: A client that gets one of these asks for the same trouble again by reconnecting with the same input.
FINAL_CODES = frozenset(
    {
        CloseCode.PROTOCOL_ERROR,
        CloseCode.UNSUPPORTED,
        CloseCode.BAD_TEXT,
        CloseCode.POLICY,
        CloseCode.TOO_BIG,
        CloseCode.TOO_MANY_CONNECTIONS,
        CloseCode.SIGNED_OUT,
    }
)

#: What trio-websocket decides by itself and never puts on the wire: our stream sends the frame.
SENT_FOR_THE_LIBRARY = frozenset(
    {CloseCode.PROTOCOL_ERROR, CloseCode.UNSUPPORTED, CloseCode.BAD_TEXT, CloseCode.TOO_BIG}
)


def may_reconnect(code: int) -> bool:
    """Tell whether a client that was closed with *code* may connect again with the same input.

    1000 and 1001 are the client's choice and count as yes; so does a connection that broke
    without any code (1005, 1006). Codes that nobody has defined here count as yes, with backoff.
    """
    return code not in FINAL_CODES
