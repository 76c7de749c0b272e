from __future__ import annotations

import logging
import math
from collections.abc import Callable

import attrs
import pytest
import trio
import trio.testing

from netra_ws.access.freshness import (
    BELIEVED_S,
    EARLY_S,
    LOOK_S,
    MAX_AWAITING,
    NEWS_S,
    REFRESH_S,
    Freshness,
    Unread,
)
from netra_ws.access.jwks import KeySet, read_jwks
from netra_ws.access.tokens import Verifier
from netra_ws.errors import ConfigError, Refused
from netra_ws.keyring import Keyring
from netra_ws.keyring.sources import Source
from tests.key_pairs import jwk, jwks, signed_by

SECRET = "s" * 32
NOW = 1_763_000_000.0


@attrs.define(eq=False)
class Script:
    """Gives the keys of the moment, or fails, and remembers when it was read."""

    names: list[str] = attrs.field(factory=lambda: ["one"])
    fault: Exception | None = None
    after_s: float = REFRESH_S
    takes_s: float = 0.0
    times: list[float] = attrs.field(factory=list)
    began: float = attrs.field(factory=trio.current_time)

    async def __call__(self) -> tuple[KeySet | None, float]:
        self.times.append(trio.current_time() - self.began)
        await trio.sleep(self.takes_s)
        if self.fault is not None:
            raise self.fault
        skipped = [jwk("EdDSA", f"{name}-bad", use="enc") for name in self.names]
        return read_jwks(jwks(*(jwk("EdDSA", name) for name in self.names), *skipped)), self.after_s

    def source(self) -> Source:
        return Source("auth.jwks_url: https://id.example", self, Freshness(math.inf))


def opens(keyring: Keyring, kid: str) -> bool:
    """Whether a client with a token of that key gets in now."""
    try:
        Verifier(SECRET, public=keyring.public).verify(signed_by("EdDSA", kid, now=NOW), NOW)
    except Refused as refused:
        assert refused.code == "TOKEN_INVALID"  # noqa: PT017
        return False
    return True


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await trio.sleep(1)


async def test_the_first_time(autojump_clock: trio.testing.MockClock) -> None:
    """After the start the keys are there; before, none is."""
    source = Script()
    keyring = Keyring((source.source(),))
    assert not opens(keyring, "one")
    await keyring.load()
    assert opens(keyring, "one")
    assert source.times == [0]


async def test_a_start_is_patient(autojump_clock: trio.testing.MockClock) -> None:
    """A service that comes up together with the server is waited for."""
    source = Script(fault=Unread("no connection"))
    keyring = Keyring((source.source(),))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keyring.load)
        await trio.sleep(5)
        source.fault = None
    assert 3 < len(source.times) < 10
    assert opens(keyring, "one")


@pytest.mark.parametrize("takes_s", [0.0, 3.0, 100.0])
async def test_a_start_without_keys(autojump_clock: trio.testing.MockClock, takes_s: float) -> None:
    """A start fails within ten seconds, with one line that says why."""
    source = Script(fault=Unread("no connection"), takes_s=takes_s)
    with pytest.raises(ConfigError) as caught:
        await Keyring((source.source(),)).load()
    assert trio.current_time() - source.began == pytest.approx(10)
    assert str(caught.value).startswith("auth.jwks_url: https://id.example: no ")
    assert "\n" not in str(caught.value)


async def test_a_start_that_is_pointless(autojump_clock: trio.testing.MockClock) -> None:
    """What will not pass is told at once."""
    source = Script(fault=Unread("answered 404", lasting=True))
    with pytest.raises(ConfigError, match="answered 404"):
        await Keyring((source.source(),)).load()
    assert source.times == [0]


async def test_a_refresh_when_it_is_due(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    """Keys are read as often as the service says, and what it no longer gives does not open any more."""
    source = Script(after_s=100)
    keyring = Keyring((source.source(),))
    await keyring.load()
    nursery.start_soon(keyring.run)
    await trio.sleep(250)
    assert source.times == [0, 100, 200]
    source.names = ["two"]
    assert opens(keyring, "one")
    await trio.sleep(100)
    assert opens(keyring, "two")
    assert not opens(keyring, "one")


async def test_a_rotation(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    """The first token of a new key brings the keys within half a minute; then whoever has one gets in."""
    source = Script()
    keyring = Keyring((source.source(),))
    await keyring.load()
    nursery.start_soon(keyring.run)
    await trio.sleep(100)
    source.names = ["one", "two"]
    assert not opens(keyring, "two")
    await trio.sleep(1)
    assert source.times == [0, 100]
    assert opens(keyring, "two")
    assert opens(keyring, "one")


async def test_a_flood_of_unknown_names(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    """However many tokens name keys that nobody has, the service is asked every half minute at most."""
    source = Script(takes_s=0.5)
    keyring = Keyring((source.source(),))
    await keyring.load()
    nursery.start_soon(keyring.run)
    for number in range(1000):
        assert not opens(keyring, f"made up {number}")
        await trio.sleep(0.3)
    assert 9 <= len(source.times) <= 11
    gaps = [later - earlier for earlier, later in zip(source.times, source.times[1:], strict=False)]
    assert min(gaps) >= EARLY_S


async def wait_for_news(keyring: Keyring) -> float:
    """Return the seconds that it took."""
    began = trio.current_time()
    await keyring.news()
    return trio.current_time() - began


async def test_news_are_waited_for_together(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    """One fetch serves all who wait for it, those who came while it was under way, too; then nobody waits."""
    source = Script(takes_s=2)
    keyring = Keyring((source.source(),))
    await keyring.load()
    nursery.start_soon(keyring.run)
    assert await wait_for_news(keyring) == 0, "it was read just now"
    await trio.sleep(100)
    source.names = ["two"]
    waited: list[float] = []

    async def wait(delay_s: float) -> None:
        await trio.sleep(delay_s)
        waited.append(await wait_for_news(keyring))
        assert opens(keyring, "two")

    async with trio.open_nursery() as waiting:
        for delay_s in (0, 0, 0.5, 1.5):
            waiting.start_soon(wait, delay_s)
    assert sorted(waited) == pytest.approx([0.5, 1.5, 2, 2])
    assert source.times == [0, 2 + EARLY_S, 102]
    assert await wait_for_news(keyring) == 0


async def test_news_that_do_not_come(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    """The wait has a bound, leaves half of the time that is left, and only so many wait."""
    source = Script()
    keyring = Keyring((source.source(),))
    await keyring.load()
    nursery.start_soon(keyring.run)
    await trio.sleep(100)
    source.takes_s = 10
    assert await wait_for_news(keyring) == pytest.approx(NEWS_S)
    with trio.fail_after(2):
        assert await wait_for_news(keyring) == pytest.approx(1)
    async with trio.open_nursery() as waiting:
        for _ in range(MAX_AWAITING):
            waiting.start_soon(wait_for_news, keyring)
        await trio.testing.wait_all_tasks_blocked()
        assert await wait_for_news(keyring) == 0
    assert await wait_for_news(keyring) > 0, "whoever has waited makes room"
    assert len(source.times) == 2


async def test_files_are_not_waited_for(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    """A file is looked at often enough: no request waits for a look."""
    file = Source("auth.jwks_file", Script(after_s=LOOK_S, takes_s=1), Freshness(math.inf, math.inf), LOOK_S)
    keyring = Keyring((file,))
    await keyring.load()
    nursery.start_soon(keyring.run)
    await trio.sleep(LOOK_S + 0.5)
    assert await wait_for_news(keyring) == 0


async def test_the_usual_pace_comes_back(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    """After an early refresh the next one is as far away as ever."""
    source = Script()
    keyring = Keyring((source.source(),))
    await keyring.load()
    nursery.start_soon(keyring.run)
    await trio.sleep(10)
    opens(keyring, "nobody")
    await trio.sleep(2000)
    assert source.times == [0, EARLY_S, EARLY_S + REFRESH_S, EARLY_S + 2 * REFRESH_S, EARLY_S + 3 * REFRESH_S]


async def test_an_outage(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    """The keys of before stay, with one line at its beginning and one at its end; the figures show it."""
    caplog.set_level(logging.INFO, "netra_ws.keyring")
    source = Script()
    keyring = Keyring((source.source(),))
    await keyring.load()
    caplog.clear()
    nursery.start_soon(keyring.run)
    source.fault = Unread("answered 500")
    await trio.sleep(6000)
    assert opens(keyring, "one")
    numbers = keyring.public.statistics(trio.current_time())
    assert numbers.failures == numbers.refreshes["failed"] > 10
    assert numbers.age_s == 6000
    source.fault = None
    await trio.sleep(700)
    assert [record.getMessage() for record in caplog.records] == [
        "auth.jwks_url: https://id.example: answered 500; the keys of before stay",
        "auth.jwks_url: https://id.example: works again, 1 keys",
    ]
    assert keyring.public.statistics(trio.current_time()).failures == 0


async def test_a_failure_that_nobody_expects(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever reading raises, as when the system has no thread left, the keys stay and it is tried again."""
    source = Script()
    keyring = Keyring((source.source(),))
    await keyring.load()
    nursery.start_soon(keyring.run)
    source.fault = RuntimeError("can't start new thread: marked")
    await until(lambda: len(source.times) == 3)
    assert opens(keyring, "one")
    assert "failed with RuntimeError; the keys of before stay" in caplog.text
    assert "marked" not in caplog.text
    source.fault, source.names = None, ["two"]
    await until(lambda: opens(keyring, "two"))


async def test_keys_are_given_up(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    """After a day without an answer the keys open to nobody, until the service is there again."""
    source = Script()
    keyring = Keyring((source.source(),))
    await keyring.load()
    nursery.start_soon(keyring.run)
    source.fault = Unread("no connection")
    await trio.sleep(BELIEVED_S)
    assert opens(keyring, "one")
    await trio.sleep(3 * REFRESH_S)
    assert not opens(keyring, "one")
    assert keyring.public.statistics(trio.current_time()).count == 0
    assert sum("given up" in record.getMessage() for record in caplog.records) == 1
    source.fault = None
    await trio.sleep(REFRESH_S)
    assert opens(keyring, "one")


async def test_what_is_skipped_is_told_once(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    """A key that cannot be used is one line, until the set is another one."""
    source = Script()
    keyring = Keyring((source.source(),))
    await keyring.load()
    nursery.start_soon(keyring.run)
    await trio.sleep(5 * REFRESH_S)
    assert [record.getMessage() for record in caplog.records] == [
        "auth.jwks_url: https://id.example: skipped key 2, kid 'one-bad': its use is not sig"
    ]
    source.names = ["two"]
    await trio.sleep(5 * REFRESH_S)
    assert "two-bad" in caplog.records[-1].getMessage()
    assert len(caplog.records) == 2


async def test_two_sources(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    """The trouble of one source is not that of the other, and a flood asks only the one that is far away."""
    look_s = 20 * LOOK_S  # a file is looked at more often, which makes no difference but in work
    near, far = Script(names=["near"], after_s=look_s), Script(names=["far"])
    file = Source("auth.jwks_file", near, Freshness(math.inf, math.inf), look_s)
    keyring = Keyring((file, far.source()))
    await keyring.load()
    nursery.start_soon(keyring.run)
    near.fault = Unread("no such file", lasting=True)
    await trio.sleep(2 * BELIEVED_S)
    assert opens(keyring, "near")
    assert opens(keyring, "far")
    gaps = {round(later - earlier) for earlier, later in zip(near.times, near.times[1:], strict=False)}
    assert gaps == {round(look_s)}
    near.fault, near.names = None, ["next"]
    await trio.sleep(look_s + 1)
    assert opens(keyring, "next")
    assert not opens(keyring, "near")


async def test_news_for_who_has_no_time_left(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    """Whoever is cancelled already, or out of time, waits for nothing, and nothing fails."""
    source = Script()
    keyring = Keyring((source.source(),))
    await keyring.load()
    nursery.start_soon(keyring.run)
    await trio.sleep(100)
    with trio.CancelScope() as scope:
        scope.cancel()
        await keyring.news()
    assert scope.cancelled_caught
