"""The answer to whoever came with a token or ticket that is not good."""

from __future__ import annotations

from netra_ws.errors import Refused


def not_good(code: str, text: str) -> Refused:
    """Return a refusal with 401 and the challenge that RFC 6750 §3 asks for."""
    return Refused(401, code, text, headers=(("WWW-Authenticate", 'Bearer error="invalid_token"'),))
