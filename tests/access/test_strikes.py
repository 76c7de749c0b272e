from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from netra_ws.access import AddressTable, Admission, OriginPolicy
from netra_ws.access.strikes import EVERY_ORIGIN, MAX_TEXT, Strikes, bounded
from netra_ws.errors import Refused
from tests.effort import share

EVIL, OTHER = "https://evil.example", "https://other.example"
HERE, THERE = "192.0.2.1", "192.0.2.2"


def words(strikes: Strikes, origin: str, address: str, now: float, times: int) -> list[bool]:
    return [strikes.strike(origin, address, now) is not None for _ in range(times)]


def test_refused_then_blocked() -> None:
    """After so many strikes a pair is blocked, and told for how long."""
    strikes = Strikes(3, 60)
    assert words(strikes, EVIL, HERE, 0, 5) == [False, False, False, True, True]
    blocked = strikes.strike(EVIL, HERE, 12.5)
    assert blocked is not None
    assert (blocked.status, blocked.code, blocked.retry_after_s) == (403, "ORIGIN_BLOCKED", 48)


def test_a_block_ends_and_is_not_made_longer() -> None:
    """Whoever comes back while blocked neither waits longer nor is remembered for it."""
    strikes = Strikes(2, 60)
    words(strikes, EVIL, HERE, 0, 2)
    assert all(words(strikes, EVIL, HERE, now, 1) == [True] for now in range(0, 60, 5))
    assert words(strikes, EVIL, HERE, 60, 3) == [False, False, True]


def test_strikes_expire() -> None:
    """Strikes count together only within the window that the first one opened."""
    strikes = Strikes(2, 60)
    assert words(strikes, EVIL, HERE, 0, 1) == [False]
    assert words(strikes, EVIL, HERE, 60, 1) == [False]
    assert words(strikes, EVIL, HERE, 119, 2) == [False, True]


def test_a_pair_is_an_origin_and_an_address() -> None:
    """Another origin of the same address, and the same origin elsewhere, are other pairs."""
    strikes = Strikes(3, 60)
    words(strikes, EVIL, HERE, 0, 3)
    assert words(strikes, EVIL, HERE, 0, 1) == [True]
    assert words(strikes, EVIL, THERE, 0, 1) == [False]
    assert words(strikes, OTHER, HERE, 0, 1) == [False]


def test_an_address_that_invents_origins_is_blocked_as_a_whole() -> None:
    """So many different origins of one address, and it is not looked at any more; it then holds one entry."""
    strikes = Strikes(5, 60)
    assert [words(strikes, f"https://{n}.example", HERE, 0, 1)[0] for n in range(7)] == 5 * [False] + 2 * [True]
    assert len(strikes) == 1
    assert [block.origin for block in strikes.blocked(0)] == [EVERY_ORIGIN]
    assert words(strikes, EVIL, THERE, 0, 1) == [False]
    assert words(strikes, EVIL, HERE, 60, 1) == [False]


def test_what_is_remembered_can_be_looked_at() -> None:
    """Every pair is told with its strikes and whether it is blocked, and no longer than it is remembered."""
    strikes = Strikes(3, 60)
    words(strikes, EVIL, HERE, 0, 5)
    words(strikes, OTHER, HERE, 10, 2)
    words(strikes, EVIL, THERE, 20, 1)
    assert [(pair.origin, pair.address, pair.strikes, pair.blocked) for pair in strikes.tracked(20)] == [
        (OTHER, HERE, 2, False),
        (EVIL, THERE, 1, False),
        (EVIL, HERE, 3, True),
    ]
    assert [pair.origin for pair in strikes.tracked(70)] == [EVIL]
    assert list(strikes.tracked(80)) == []


def test_an_ipv6_network_is_one_client() -> None:
    """Who has a /64 has as many strikes as who has one address."""
    strikes = Strikes(2, 60)
    assert [words(strikes, EVIL, f"2001:db8::{n}", 0, 1)[0] for n in range(3)] == [False, False, True]
    assert [block.address for block in strikes.blocked(0)] == ["2001:db8::/64"]
    assert strikes.unblock(None, "2001:db8::/64", 0) == 1


def test_a_flood_of_one_address_pushes_nobody_out() -> None:
    """Invented origins of one address take no more than a few places."""
    strikes = Strikes(5, 60, 20)
    for place in range(10):
        words(strikes, EVIL, f"198.51.100.{place}", 0, 5)
    for number in range(1000):
        strikes.strike(f"https://{number}.example", HERE, 1)
    assert [words(strikes, EVIL, f"198.51.100.{place}", 1, 1) for place in range(10)] == 10 * [[True]]


def test_who_goes_first() -> None:
    """Beyond the bound the expired go first, then the oldest that is not blocked, then the block that ends first."""
    strikes = Strikes(2, 60, 3)
    words(strikes, EVIL, "192.0.2.10", 0, 2)
    words(strikes, EVIL, "192.0.2.11", 1, 1)
    words(strikes, EVIL, "192.0.2.12", 2, 2)
    words(strikes, EVIL, "192.0.2.13", 3, 2)
    assert [block.address for block in strikes.blocked(3)] == ["192.0.2.10", "192.0.2.12", "192.0.2.13"]
    words(strikes, EVIL, "192.0.2.14", 4, 1)
    assert [block.address for block in strikes.blocked(4)] == ["192.0.2.12", "192.0.2.13"]
    words(strikes, EVIL, "192.0.2.15", 62, 2)
    assert [block.address for block in strikes.blocked(62)] == ["192.0.2.13", "192.0.2.15"]
    assert len(strikes) == 3, "of those who were left, none had to go"


def test_unblock() -> None:
    """An operator lifts the blocks of an origin, of an address or of a pair, and the strikes with them."""
    strikes = Strikes(3, 60)
    for address in (HERE, THERE):
        words(strikes, EVIL, address, 0, 3)
        words(strikes, OTHER, address, 0, 3)
    assert strikes.unblock("https://unknown.example", None, 0) == 0
    assert strikes.unblock(EVIL, HERE, 0) == 1
    assert words(strikes, EVIL, HERE, 0, 1) == [False]
    assert words(strikes, EVIL, THERE, 0, 1) == [True]
    assert strikes.unblock(None, THERE, 0) == 2
    assert strikes.unblock(OTHER, None, 0) == 1
    assert list(strikes.blocked(0)) == []
    assert words(strikes, EVIL, HERE, 0, 2) == [False, False], "its one strike stayed"
    assert words(strikes, EVIL, HERE, 0, 1) == [True]


def test_unblock_of_a_pair_behind_the_block_of_its_address() -> None:
    """Who lifts the block of a pair need not know that its address is blocked as a whole."""
    strikes = Strikes(2, 60)
    words(strikes, EVIL, HERE, 0, 1)
    words(strikes, OTHER, HERE, 0, 1)
    assert words(strikes, EVIL, HERE, 0, 1) == [True]
    assert strikes.unblock(EVIL, None, 0) == 0
    assert strikes.unblock(EVIL, HERE, 0) == 1
    assert words(strikes, EVIL, HERE, 0, 1) == [False]


def test_a_clock_that_was_set_back_blocks_nobody_longer() -> None:
    """From any moment on a block lasts no longer than the window."""
    strikes = Strikes(2, 60)
    words(strikes, EVIL, HERE, 100_000, 2)
    assert words(strikes, EVIL, HERE, 0, 1) == [True]
    assert [block.until for block in strikes.blocked(0)] == [60]
    assert words(strikes, EVIL, HERE, 60, 1) == [False]


@given(st.text(), st.sampled_from([1, 2000]))
def test_what_is_remembered_of_an_origin_is_bounded(text: str, times: int) -> None:
    """However long, whatever its characters: a short text without control characters, never the one of an address."""
    kept = bounded(text * times)
    assert len(kept) <= MAX_TEXT + 17
    assert kept.replace("…", "").isascii()
    assert kept.isprintable()
    assert kept != EVERY_ORIGIN


def test_long_origins_are_told_apart() -> None:
    """Two long origins with the same beginning are two, and the text of the list unblocks."""
    strikes = Strikes(2, 60)
    one, two = "https://" + "a" * 5000, "https://" + "a" * 4999 + "b"
    words(strikes, one, HERE, 0, 2)
    assert words(strikes, two, THERE, 0, 1) == [False]
    (block,) = strikes.blocked(0)
    assert strikes.unblock(block.origin, None, 0) == 1


@pytest.mark.parametrize("arguments", [(0, 60, 10), (5, 0, 10), (5, 60, 0)])
def test_impossible_rules(arguments: tuple[int, int, int]) -> None:
    """Nobody is blocked without a strike or a window, and a table needs room for one pair."""
    with pytest.raises(ValueError):
        Strikes(*arguments)


ORIGINS = st.sampled_from(["https://a.example", "https://b.example", "https://c.example", "*", "null", "x" * 200])
ADDRESSES = st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "?"])
ALLOWED = "https://app.example.org"
WINDOW_S = 60.0


@attrs.frozen
class Request:
    headers: Sequence[tuple[bytes, bytes]]
    query: Mapping[str, str] = attrs.field(factory=dict)


class AnyStrikes(RuleBasedStateMachine):
    """Whoever strikes, in whatever order, with a clock that goes as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.strikes = Strikes(3, WINDOW_S, 4)
        self.admission = Admission(None, OriginPolicy([ALLOWED]), AddressTable(10, 10**6, 10**6), strikes=self.strikes)
        self.refused: set[str] = set()

    def ask(self, origin: str, address: str) -> None:
        self.admission.screen(Request([(b"origin", origin.encode())]), self.now, address)

    @rule(origin=ORIGINS, address=ADDRESSES, times=st.integers(1, 4))
    def strike(self, origin: str, address: str, times: int) -> None:
        for _ in range(times):
            with pytest.raises(Refused) as caught:
                self.ask(origin, address)
            assert caught.value.status == 403
            place = "2001" if address.startswith("2001") else address
            if caught.value.code == "ORIGIN_REFUSED":
                self.refused.add(place)
            else:
                assert caught.value.code == "ORIGIN_BLOCKED"
                assert caught.value.retry_after_s is not None
                assert 1 <= caught.value.retry_after_s <= WINDOW_S
                assert place in self.refused, "nobody is born blocked"

    @rule(address=ADDRESSES)
    def an_allowed_origin_passes(self, address: str) -> None:
        self.ask(ALLOWED, address)

    @rule(seconds=st.floats(0, 100) | st.floats(-500, 0))
    def time_goes_on_or_back(self, seconds: float) -> None:
        self.now = max(0.0, self.now + seconds)

    @rule(origin=ORIGINS | st.none(), address=ADDRESSES | st.none())
    def unblock(self, origin: str | None, address: str | None) -> None:
        before = self.strikes.blocked_count(self.now)
        lifted = self.admission.unblock(origin, address, self.now)
        assert self.strikes.blocked_count(self.now) == before - lifted
        if origin is None and address is None:
            assert len(self.strikes) == 0

    @invariant()
    def bounded(self) -> None:
        assert len(self.strikes) <= self.strikes.max_tracked
        assert self.strikes.blocked_count(self.now) <= len(self.strikes)
        places = self.strikes._origins
        assert sum(map(len, places.values())) == len(self.strikes), "what is known by address is what is remembered"
        assert all(len(origins) <= self.strikes.strikes for origins in places.values())


@given(
    st.lists(st.tuples(ORIGINS, st.floats(0, 30)), max_size=60),
    st.integers(1, 4),
)
def test_a_block_has_its_reason_and_its_end(attempts: list[tuple[str, float]], limit: int) -> None:
    """At one address: no block without its strikes within a window, and none is longer than the window."""
    strikes, now = Strikes(limit, WINDOW_S), 0.0
    struck: list[tuple[str, float]] = []
    blocked_until = 0.0
    for origin, pause in attempts:
        now += pause
        if strikes.strike(origin, HERE, now) is None:
            struck.append((origin, now))
            blocked_until = now + WINDOW_S
            continue
        recent = [(each, at) for each, at in struck if at > now - 2 * WINDOW_S]
        same = sum(each == origin for each, _ in recent)
        assert same >= limit or len({each for each, _ in recent}) >= max(2, limit)
        assert now < blocked_until


TestAnyStrikes = AnyStrikes.TestCase
TestAnyStrikes.settings = settings(max_examples=share(100))
