"""What is wrong with the settings of the model; found without a look at any address."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from .rules import is_loopback, mask_address
from .sections import Settings

#: Who starts with these wants them used.
_NEEDING = ("model", "api_key", "proxy")


def model_problems(settings: Settings) -> Iterator[str]:
    """Yield what stops a start, one line each."""
    llm = settings.llm
    if llm.base_url is None:
        for name in _NEEDING:
            if getattr(llm, name) is not None:
                yield f"llm.{name}: of no use without llm.base_url"
        return
    if fault := _fault_of(llm.base_url):
        yield f"llm.base_url: {mask_address(llm.base_url)}: {fault}"
    elif "@" in urlsplit(llm.base_url).netloc:
        yield "llm.base_url: a user or password in it is not sent; use llm.api_key"
    if llm.model is None:
        yield "llm.model: needed where llm.base_url is set"
    if llm.api_key is not None and not (llm.api_key.isascii() and llm.api_key.isprintable() and " " not in llm.api_key):
        yield "llm.api_key: it has spaces or other characters that no header carries"
    if llm.proxy is not None and (fault := _fault_of(llm.proxy)):
        yield f"llm.proxy: {mask_address(llm.proxy)}: {fault}"


def has_model(settings: Settings) -> bool:
    """Whether there is a model that can be asked."""
    return settings.llm.base_url is not None and not any(model_problems(settings))


def model_in_the_clear(settings: Settings) -> bool:
    """Whether what is said to the model can be read on its way, by more than this machine."""
    url = settings.llm.base_url
    if url is None or _fault_of(url):
        return False
    parts = urlsplit(url)
    return parts.scheme.lower() == "http" and not is_loopback(parts.hostname or "")


def _fault_of(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "not a URL"
    if parts.scheme.lower() not in ("http", "https"):
        return "expected a URL that starts with http:// or https://"
    if not host or any(character.isspace() or not character.isprintable() for character in url):
        return "not a URL"
    return None
