"""What went wrong with an endpoint, in words for the user: from statuses, bodies and exceptions to a ``ModelError``."""

from __future__ import annotations

import email.utils
import math
import re
import ssl
import time
from collections.abc import Mapping

import attrs
import httpx
import orjson

from netra_ws.errors import ModelError

from .secrecy import Secrecy

#: The server's own words are shown up to so many characters; longer ones are pages or traces, not a message.
MAX_WORDS = 300

_TOO_LONG = re.compile(
    r"context.{0,20}(?:length|window|size|limit)|maximum context|prompt is too long|too many (?:input )?tokens"
    r"|(?:input|prompt).{0,40}(?:exceeds|longer than)|reduce the length",
    re.IGNORECASE,
)
_BUSY = re.compile(r"overload|rate.?limit|server_error|unavailable|timeout", re.IGNORECASE)
#: Statuses below 500 that may pass within seconds.
_PASSING = (408, 409, 425, 429)


@attrs.frozen
class _Words:
    """What a server says of an error; empty where it does not."""

    message: str = ""
    code: str = ""


def refusal(status: int, headers: Mapping[str, str], body: bytes, secrecy: Secrecy) -> ModelError:
    """Return the error for an answer that is not 200."""
    if 300 <= status < 400:
        return ModelError("LLM_REFUSED", f"the model's server answered {status}; redirects are not followed")
    return _failure(status, _words(_parsed(body)), secrecy, _retry_after_s(headers))


def told_inside(chunk: Mapping[str, object], secrecy: Secrecy) -> ModelError:
    """Return the error that a server told in the middle of an answer."""
    words = _words(chunk)
    status = int(words.code) if re.fullmatch(r"[45]\d\d", words.code) else 0
    if status or _is_too_long(words):
        return _failure(status, words, secrecy, None)
    text = f"the model's server broke off{_quoted(words, secrecy)}"
    if _BUSY.search(f"{words.code} {words.message}"):
        return ModelError("LLM_UNAVAILABLE", text, again=True)
    return ModelError("LLM_BROKEN", text, retryable=True)


def away(exc: Exception, *, answering: bool = False) -> ModelError:
    """Return the error for a connection that could not be made, or broke, before or while *answering*."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ModelError("LLM_UNAVAILABLE", "the certificate of the model's server is not trusted")
        cause = cause.__cause__ or cause.__context__
    if isinstance(exc, httpx.ConnectTimeout | httpx.ConnectError | httpx.ProxyError):
        return ModelError("LLM_UNAVAILABLE", "the model's server cannot be reached", again=True)
    if isinstance(exc, httpx.TimeoutException):
        # Not again: the model may have worked all the time, and the user has waited long enough.
        return ModelError("LLM_UNAVAILABLE", "the model's server did not answer in time", retryable=True)
    if isinstance(exc, httpx.LocalProtocolError | httpx.UnsupportedProtocol):
        return ModelError("LLM_BROKEN", "the model's server cannot be asked like this")
    if isinstance(exc, httpx.TransportError):
        return ModelError("LLM_BROKEN" if answering else "LLM_UNAVAILABLE", "the model's server broke off", again=True)
    return ModelError("LLM_UNAVAILABLE", "the model's server cannot be asked")


def _failure(status: int, words: _Words, secrecy: Secrecy, retry_after_s: float | None) -> ModelError:
    if status == 413 or (status < 500 and _is_too_long(words)):
        text = f"the conversation is too long for the model{_quoted(words, secrecy)}"
        return ModelError("LLM_CONTEXT_TOO_LONG", text)
    if status in _PASSING or (status >= 500 and status != 501):
        # A quota that is used up is answered with 429, too, and does not come back within seconds.
        again = words.code != "insufficient_quota"
        text = f"the model's server is busy or out of order ({status}){_quoted(words, secrecy)}"
        return ModelError("LLM_UNAVAILABLE", text, again=again, retry_after_s=retry_after_s)
    return ModelError("LLM_REFUSED", f"the model's server refused ({status}){_quoted(words, secrecy)}")


def _is_too_long(words: _Words) -> bool:
    return words.code == "context_length_exceeded" or bool(_TOO_LONG.search(words.message))


def _quoted(words: _Words, secrecy: Secrecy) -> str:
    message = words.message
    if not message or len(message) > MAX_WORDS or secrecy.betrayed_by(message):
        return ""
    return f": {message}"


def _parsed(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        text = body.decode(errors="replace").strip()
        return {} if text.startswith("<") else {"message": text}  # a page is no message


def _words(body: object) -> _Words:
    """Find message and code in the forms that servers have: an object ``error``, a text, or a ``detail``."""
    error = body.get("error", body) if isinstance(body, Mapping) else None
    if isinstance(error, str):
        return _Words(_line(error))
    if not isinstance(error, Mapping):
        return _Words()
    message = next((text for key in ("message", "detail") if isinstance(text := error.get(key), str)), "")
    codes = [error.get("code"), error.get("status"), error.get("type")]
    code = next((str(code) for code in codes if isinstance(code, str | int) and code), "")
    return _Words(_line(message), code[:100])


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text[: 10 * MAX_WORDS]).split())


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of ``Retry-After``, a number or a date (RFC 9110 §10.2.3), or of ``retry-after-ms``."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    try:
        at = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, at.timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
