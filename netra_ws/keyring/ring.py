"""Keeps the public keys fresh, beside everything else: no request fetches a key, and only news are waited for.

One task reads each source when it is due: the address of ``auth.jwks_url`` every ten minutes, or as its
``Cache-Control`` says; the file of ``auth.jwks_file`` when it has changed. What cannot be used changes nothing:
the keys at hand stay, those of an address for a day of failures, those of a file for as long as the server runs.

A token with an unknown ``kid`` brings the next fetch forward: keys were changed, or somebody makes names up. When
that fetch may begin at once, or is under way, the request waits for its end – one fetch for all of them, ``NEWS_S``
at most, ``MAX_AWAITING`` requests at most – and is judged then, so that clients of a new key are not turned away.
When none may begin, because one has just been made, nobody waits: the token is refused at once.
"""

from __future__ import annotations

import logging

import attrs
import trio

from netra_ws.access import PublicKeys
from netra_ws.access.freshness import BELIEVED_S, MAX_AWAITING, NEWS_S, START_S, Unread
from netra_ws.errors import ConfigError

from .sources import Source

logger = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.25


@attrs.define(eq=False)
class Keyring:
    """The public keys with what keeps them fresh.

    Attributes:
        public: The keys, for whoever checks tokens.
    """

    sources: tuple[Source, ...]
    public: PublicKeys = attrs.field(factory=PublicKeys)
    _wake: trio.Event = attrs.field(init=False, factory=trio.Event)
    _fetched: trio.Event = attrs.field(init=False, factory=trio.Event)
    _awaiting: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self.public.on_unknown = self.hurry

    async def load(self, within_s: float = START_S) -> None:
        """Read every source for the first time.

        Raises:
            ConfigError: One gave no usable key within *within_s* seconds; one line.
        """
        deadline = trio.current_time() + within_s
        for source in self.sources:
            wait_s = _FIRST_RETRY_S
            why = f"no answer within {within_s:g} s"
            while True:
                with trio.move_on_at(deadline):
                    try:
                        await self._refresh(source)
                        break
                    except Unread as exc:
                        why = str(exc)
                        if exc.lasting:
                            raise ConfigError(f"{source.name}: {why}") from None
                    await trio.sleep(wait_s)
                    wait_s *= 2
                if trio.current_time() >= deadline:
                    raise ConfigError(f"{source.name}: {why}")

    async def run(self) -> None:
        """Refresh until cancelled; ``load`` comes before it."""
        while True:
            with trio.move_on_at(min(source.freshness.due for source in self.sources)):
                await self._wake.wait()
            self._wake = trio.Event()
            for source in self.sources:
                if source.freshness.due <= trio.current_time():
                    await self._try(source)
                    if source.retry_s is None:
                        self._fetched.set()
                        self._fetched = trio.Event()

    def hurry(self) -> None:
        """Ask for an early refresh of what is fetched; cheap, and bounded in its effect (``EARLY_S``)."""
        now = trio.current_time()
        for source in self.sources:
            # A file is looked at often enough.
            if source.retry_s is None and source.freshness.hurry(now):
                self._wake.set()

    async def news(self) -> None:
        """Wait for the end of the fetch that is under way or may begin now, whatever it brings.

        Returns at once where there is none, or where too many wait already. Of the time that the caller has left, half
        is left to it.
        """
        self.hurry()
        now = trio.current_time()
        fetching = any(source.retry_s is None and source.freshness.due <= now for source in self.sources)
        if not fetching or self._awaiting >= MAX_AWAITING:
            return
        self._awaiting += 1
        try:
            # Whoever is cancelled already has less than no time left.
            with trio.move_on_after(max(0.0, min(NEWS_S, (trio.current_effective_deadline() - now) / 2))):
                await self._fetched.wait()
        finally:
            self._awaiting -= 1

    async def _refresh(self, source: Source) -> None:
        keys, after_s = await source.read()
        now = trio.current_time()
        if keys is None:
            self.public.confirm(source.name, now)
        else:
            self.public.replace(source.name, keys.keys, now)
            source.tell_skipped(keys.skipped)
        if source.freshness.succeeded(now, after_s):
            logger.info("%s: works again, %d keys", source.name, len(self.public))

    async def _try(self, source: Source) -> None:
        try:
            await self._refresh(source)
        except Unread as exc:
            if exc.known:
                source.freshness.due = trio.current_time() + (source.retry_s or 0.0)
                return
            self._fail(source, str(exc))
        except Exception as exc:  # no thread to be had, a library that fails: keys that are old must not end the server
            self._fail(source, f"failed with {type(exc).__name__}")

    def _fail(self, source: Source, why: str) -> None:
        now, freshness = trio.current_time(), source.freshness
        self.public.failed(source.name)
        if freshness.failed(now):
            logger.error("%s: %s; the keys of before stay", source.name, why)
        if source.retry_s is not None:
            freshness.due = now + source.retry_s
        if not freshness.believed(now) and self.public.give_up(source.name):
            logger.error("%s: its keys are given up, after %.0f s without an answer", source.name, BELIEVED_S)
