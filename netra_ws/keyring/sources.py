"""Where public keys come from: a file that is read again when it has changed, and an address."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from netra_ws.access.freshness import LOOK_S, READ_S, Freshness, Unread
from netra_ws.access.keys import PUBLIC_ALGORITHMS
from netra_ws.settings import Settings, mask_address

if TYPE_CHECKING:
    from netra_ws.access.jwks import KeySet

logger = logging.getLogger(__name__)

#: Returns the keys, or None when they are those of last time; and the seconds after which to ask again.
Read = Callable[[], Awaitable["tuple[KeySet | None, float]"]]


@attrs.define(eq=False)
class Source:
    """Where keys come from.

    Attributes:
        name: What messages call it: the setting and, for an address, what of it may be shown.
        read: Gets the keys; raises ``Unread``.
        retry_s: Seconds until the next attempt after a failure; None backs off.
    """

    name: str
    read: Read
    freshness: Freshness
    retry_s: float | None = None
    _skipped: tuple[str, ...] = ()

    def tell_skipped(self, skipped: tuple[str, ...]) -> None:
        """Log what cannot be used, when it is not what could not be used before."""
        if skipped != self._skipped:
            for line in skipped:
                logger.warning("%s: skipped %s", self.name, line)
        self._skipped = skipped


@attrs.define(eq=False)
class FileReader:
    """Reads a file of keys when it is another one than last time.

    Its threads wait for one another: of a file system that hangs, one thread hangs.
    """

    path: Path
    allowed: frozenset[str]
    _seen: tuple[int, ...] | None = None
    _fault: str | None = None
    _threads: trio.CapacityLimiter = attrs.field(init=False, factory=lambda: trio.CapacityLimiter(1))

    async def __call__(self) -> tuple[KeySet | None, float]:
        """Look at the file; raises ``Unread``."""
        with trio.move_on_after(READ_S):
            look = partial(self._look, self._seen)
            seen, found = await trio.to_thread.run_sync(look, limiter=self._threads, abandon_on_cancel=True)
            return self._take(seen, found), LOOK_S
        raise Unread(f"the file system gave no answer in {READ_S:g} s")

    def _look(self, known: tuple[int, ...] | None) -> tuple[tuple[int, ...], KeySet | Unread | None]:
        """Return the marks of the file and what it holds, None where they are the known ones.

        In a thread that may have been given up: it changes nothing here, or what nobody took would pass for taken.
        """
        seen = _marks(self.path)
        if seen == known:
            return seen, None
        try:
            return seen, read_key_file(self.path, self.allowed)
        except Unread as exc:
            return seen, exc

    def _take(self, seen: tuple[int, ...], found: KeySet | Unread | None) -> KeySet | None:
        self._seen = seen
        if isinstance(found, Unread):
            self._fault = str(found)
            raise found
        if found is not None:
            self._fault = None
        elif self._fault is not None:
            raise Unread(self._fault, lasting=True, known=True)
        return found


def _marks(path: Path) -> tuple[int, ...]:
    """Return what changes when a file does, also behind a link; nothing where there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev


def read_key_file(path: Path, allowed: frozenset[str]) -> KeySet:
    """Read a JWK Set or PEM.

    Raises:
        Unread: It cannot be read, or has no usable key.
    """
    from netra_ws.access.jwks import MAX_SET_BYTES, Unusable, read_keys

    try:
        if not path.is_file():  # a pipe would wait for its writer
            raise Unread("there is no such file", lasting=True)
        with path.open("rb") as file:
            content = file.read(MAX_SET_BYTES + 1)
        if len(content) > MAX_SET_BYTES:
            raise Unread(f"more than {MAX_SET_BYTES} bytes", lasting=True)
        return read_keys(content, allowed)
    except OSError as exc:
        raise Unread(f"cannot be read ({exc.strerror})", lasting=True) from None
    except Unusable as exc:
        raise Unread(str(exc), lasting=True) from None


def from_file(path: Path, allowed: frozenset[str]) -> Source:
    """Return the source that ``auth.jwks_file`` names."""
    # Believed for ever: nobody withdraws keys by breaking a file.
    return Source("auth.jwks_file", FileReader(path, allowed), Freshness(math.inf, math.inf), LOOK_S)


def from_address(url: str, allowed: frozenset[str]) -> Source:
    """Return the source that ``auth.jwks_url`` names."""
    # Late: only servers that fetch pay for httpx.
    from netra_ws.access.jwks import Unusable, read_jwks

    from .fetch import fetch, trust

    context, threads = trust(), trio.CapacityLimiter(1)

    async def read() -> tuple[KeySet | None, float]:
        answer = await fetch(url, context)
        try:
            # In a thread: a hundred keys of RSA take longer than a frame may wait; not in Trio's own pool, which an
            # agent may have filled.
            read = partial(read_jwks, answer.body, allowed)
            return await trio.to_thread.run_sync(read, limiter=threads), answer.after_s
        except Unusable as exc:
            raise Unread(str(exc), lasting=True) from None

    return Source(f"auth.jwks_url: {mask_address(url)}", read, Freshness(math.inf))


def allowed_algorithms(settings: Settings) -> frozenset[str]:
    """Return the algorithms that public keys may be used with."""
    return frozenset(PUBLIC_ALGORITHMS) & frozenset(settings.auth.algorithms or PUBLIC_ALGORITHMS)


def key_sources(settings: Settings) -> tuple[Source, ...]:
    """Return every source of public keys that the settings name."""
    auth, allowed = settings.auth, allowed_algorithms(settings)
    sources = []
    if auth.jwks_file is not None:
        sources.append(from_file(Path(auth.jwks_file), allowed))
    if auth.jwks_url is not None:
        sources.append(from_address(auth.jwks_url, allowed))
    return tuple(sources)


def file_problems(settings: Settings) -> list[str]:
    """Return what is wrong with the file of keys, one line each, without looking at any address."""
    if settings.auth.jwks_file is None:
        return []
    try:
        read_key_file(Path(settings.auth.jwks_file), allowed_algorithms(settings))
    except Unread as exc:
        return [f"auth.jwks_file: {exc}"]
    return []
