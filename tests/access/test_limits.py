import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.access.limits import LEAST_REQUESTS, AddressTable, Budgets, RateLimit, ping_budget
from netra_ws.errors import Refused


def test_burst_then_wait() -> None:
    """A full bucket gives its burst at once, then tells how long the next token takes."""
    limit = RateLimit(60, 3)
    assert [limit.take(100) for _ in range(3)] == [0, 0, 0]
    assert limit.take(100) == pytest.approx(1)
    assert limit.take(100.4) == pytest.approx(0.6)
    assert limit.take(101) == 0


def test_refused_attempts_cost_nothing() -> None:
    """Asking again and again does not make the wait longer."""
    limit = RateLimit(60, 1)
    limit.take(0)
    assert [limit.take(0.5) for _ in range(100)] == pytest.approx([0.5] * 100)
    assert limit.wait_s(1) == 0
    assert limit.take(1) == 0


def test_bucket_never_overflows() -> None:
    """A long pause gives no more than the burst."""
    limit = RateLimit(60, 2)
    limit.take(0)
    assert [limit.take(1e9) == 0 for _ in range(3)] == [True, True, False]


def test_clock_set_back() -> None:
    """A clock that is set back gives nothing and does not lock anybody out."""
    limit = RateLimit(60, 1)
    limit.take(1000)
    assert limit.take(500) == pytest.approx(1)
    assert limit.take(501) == 0


def test_default_burst() -> None:
    """The burst is as large as a minute's tokens, and at least one."""
    assert RateLimit(30).burst == 30
    assert RateLimit(0.5).burst == 1


@pytest.mark.parametrize("arguments", [(0,), (-1,), (1, 0)])
def test_impossible_limits(arguments: tuple[float, ...]) -> None:
    """A bucket that could never give a token cannot be made."""
    with pytest.raises(ValueError):
        RateLimit(*arguments)


@given(st.integers(1, 100_000), st.integers(1, 50), st.floats(0, 2e9), st.lists(st.floats(0, 10), max_size=30))
def test_the_promised_wait_is_enough(per_minute: int, burst: int, now: float, pauses: list[float]) -> None:
    """Who waits as long as told is let in."""
    limit = RateLimit(per_minute, burst)
    for pause in pauses:
        now += pause
        wait_s = limit.take(now)
        if wait_s:
            now += wait_s
            assert limit.take(now) == 0


@given(st.integers(1, 6000), st.integers(1, 20), st.lists(st.floats(0, 1), min_size=1, max_size=200))
def test_never_more_than_burst_and_rate(per_minute: int, burst: int, pauses: list[float]) -> None:
    """Over any time, no more is given than the burst and what was refilled."""
    limit, now, given_tokens = RateLimit(per_minute, burst), 0.0, 0
    for pause in pauses:
        now += pause
        given_tokens += limit.take(now) == 0
    assert given_tokens <= burst + now * per_minute / 60 + 0.01


def test_budgets() -> None:
    """Stops and answers have a budget of their own, ten times that of starts and messages."""
    budgets = Budgets.of(3)
    assert [budgets.talk.take(0) == 0 for _ in range(4)] == [True, True, True, False]
    assert [budgets.other.take(0) == 0 for _ in range(31)] == [True] * 30 + [False]


def test_ping_budget() -> None:
    """A connection may send as many pings at once as in a minute."""
    assert ping_budget(600).burst == 600


def retry_after(table: AddressTable, address: str, now: float) -> int:
    with pytest.raises(Refused) as caught:
        table.arrive(address, now)
    assert (caught.value.status, caught.value.code) == (429, "RATE_LIMITED")
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


def test_connects() -> None:
    """An address above its connects per minute is refused with whole seconds to wait, which are enough."""
    table = AddressTable(10, connects_per_minute=2, failed_connects_per_minute=100)
    table.arrive("192.0.2.1", 0)
    table.arrive("192.0.2.1", 0)
    assert retry_after(table, "192.0.2.1", 0) == 30
    assert retry_after(table, "192.0.2.1", 29.5) == 1
    table.arrive("192.0.2.1", 30)
    table.arrive("192.0.2.2", 0)


def test_failed_connects() -> None:
    """An address with too many failures is refused even if it could connect, and its own failures only count."""
    table = AddressTable(10, connects_per_minute=100, failed_connects_per_minute=2)
    for _ in range(5):
        table.failed("192.0.2.1", 0)
    assert retry_after(table, "192.0.2.1", 0) == 30
    table.arrive("192.0.2.1", 30)
    table.arrive("192.0.2.2", 0)


def test_least_recently_seen_is_forgotten() -> None:
    """The table never grows above its bound and forgets who was not seen for the longest time."""
    table = AddressTable(2, connects_per_minute=1, failed_connects_per_minute=1)
    table.arrive("192.0.2.1", 0)
    table.arrive("192.0.2.2", 0)
    retry_after(table, "192.0.2.1", 0)
    table.arrive("192.0.2.3", 0)
    assert len(table) == 2
    retry_after(table, "192.0.2.1", 0)
    table.arrive("192.0.2.2", 0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("fe80::1%eth0", "fe80::1", True),
        ("unix", "unix", True),
        ("", "unix", False),
    ],
)
def test_addresses_of_one_client(one: str, other: str, same: bool) -> None:
    """An IPv6 /64 is one client, an IPv4 address stays the same in IPv6 clothes, and no text is an error."""
    table = AddressTable(10, connects_per_minute=1, failed_connects_per_minute=1)
    table.arrive(one, 0)
    if same:
        retry_after(table, other, 0)
    else:
        table.arrive(other, 0)


def test_no_room_at_all() -> None:
    """A table needs room for one address."""
    with pytest.raises(ValueError):
        AddressTable(0, 1, 1)


def test_refusals_are_counted_by_budget() -> None:
    """Statistics tell which budget of an address was used up."""
    table = AddressTable(10, connects_per_minute=1, failed_connects_per_minute=1)
    table.arrive("192.0.2.1", 0)
    retry_after(table, "192.0.2.1", 0)
    table.failed("192.0.2.1", 0)
    retry_after(table, "192.0.2.1", 0)
    retry_after(table, "192.0.2.1", 0)
    assert table.refused == {"connects": 1, "failed_connects": 2}


def test_connections_have_a_budget_ten_times_as_large() -> None:
    """An address may open ten times as many connections as sockets, whatever they are for; neither pays for both."""
    table = AddressTable(10, connects_per_minute=100, failed_connects_per_minute=2)
    for _ in range(1000):
        table.meet("192.0.2.1", 0.0)
    with pytest.raises(Refused) as caught:
        table.meet("192.0.2.1", 0.0)
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (429, "RATE_LIMITED", 1)
    table.arrive("192.0.2.1", 0.0)
    table.meet("192.0.2.2", 0.0)
    table.meet("192.0.2.1", 1.0)
    assert table.refused == {"requests": 1}


def test_health_checks_have_room() -> None:
    """Where an address may open few sockets it can still ask for pages, ten a second."""
    table = AddressTable(10, connects_per_minute=1, failed_connects_per_minute=2)
    for _ in range(LEAST_REQUESTS):
        table.meet("192.0.2.1", 0.0)
    with pytest.raises(Refused):
        table.meet("192.0.2.1", 0.0)
