from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from netra_ws.access.tickets import MAX_OF_USER, TICKET_S, Issued, Tickets
from netra_ws.errors import Refused
from netra_ws.identity import Identity
from tests.effort import share

NOW = 1_763_000_000.0
ADA = Identity("ada", {"chat"}, NOW + 3600, "jti-1", {"email": "ada@example.org"})


def is_good(tickets: Tickets, ticket: str, now: float = NOW) -> bool:
    try:
        tickets.find(ticket, now)
    except Refused as refused:
        assert (refused.status, refused.code) == (401, "TICKET_INVALID")  # noqa: PT017
        return False
    return True


def test_a_ticket_stands_for_all_of_an_identity() -> None:
    """Name, permissions, end, token and claims are those of who asked."""
    tickets = Tickets()
    found = tickets.find(tickets.issue(ADA, NOW).ticket, NOW)
    assert found is ADA


def test_a_ticket_is_used_once() -> None:
    """When the block succeeds, the ticket is gone."""
    tickets = Tickets()
    ticket = tickets.issue(ADA, NOW).ticket
    with tickets.use(ticket, NOW) as identity:
        assert identity is ADA
    assert not is_good(tickets, ticket)
    assert len(tickets) == 0
    with pytest.raises(Refused, match="TICKET_INVALID"), tickets.use(ticket, NOW):
        pytest.fail("nobody gets in twice")


def test_a_look_uses_nothing_up() -> None:
    """A ticket that was only looked at is as good as before."""
    tickets = Tickets()
    ticket = tickets.issue(ADA, NOW).ticket
    assert all(is_good(tickets, ticket) for _ in range(5))


@pytest.mark.parametrize("error", [Refused(503, "DRAINING", "x"), KeyboardInterrupt()])
def test_a_failure_uses_nothing_up(error: BaseException) -> None:
    """Whatever ends the block early gives the ticket back."""
    tickets = Tickets()
    ticket = tickets.issue(ADA, NOW).ticket
    with pytest.raises(type(error)), tickets.use(ticket, NOW):
        assert not is_good(tickets, ticket), "in use: for nobody else"
        raise error
    assert is_good(tickets, ticket)


def test_thirty_seconds() -> None:
    """A ticket is good for less than 30 s, also when the clock is set back."""
    tickets = Tickets()
    issued = tickets.issue(ADA, NOW)
    assert issued.expires_at == NOW + 30
    assert is_good(tickets, issued.ticket, NOW + 29.9)
    assert not is_good(tickets, issued.ticket, NOW + 30)
    assert not is_good(tickets, issued.ticket, NOW - 1)


def test_a_ticket_never_outlives_its_token() -> None:
    """A token that ends in 3 s gives a ticket of 3 s; one that lives by the leeway only gives none."""
    tickets = Tickets()
    issued = tickets.issue(Identity("ada", expires_at=NOW + 3), NOW)
    assert issued.expires_at == NOW + 3
    assert not is_good(tickets, issued.ticket, NOW + 3)
    with pytest.raises(Refused, match="TOKEN_EXPIRED"):
        tickets.issue(Identity("ada", expires_at=NOW), NOW)
    assert tickets.issue(Identity("ada", expires_at=None), NOW).expires_at == NOW + 30


def test_a_user_has_sixteen() -> None:
    """One more, and the user's oldest goes; nobody else's does."""
    tickets = Tickets()
    other = tickets.issue(Identity("bob"), NOW).ticket
    made = [tickets.issue(ADA, NOW).ticket for _ in range(MAX_OF_USER + 1)]
    assert [is_good(tickets, ticket) for ticket in made] == [False] + [True] * MAX_OF_USER
    assert is_good(tickets, other)


def test_one_that_made_room_while_in_use_is_used_all_the_same() -> None:
    """A ticket that is forgotten while its bearer gets a seat admits that bearer and nobody else."""
    tickets = Tickets(max_of_user=1)
    ticket = tickets.issue(ADA, NOW).ticket
    with tickets.use(ticket, NOW):
        newer = tickets.issue(ADA, NOW).ticket
    assert not is_good(tickets, ticket)
    assert is_good(tickets, newer)
    assert len(tickets) == 1


def test_all_together_are_bounded() -> None:
    """At the bound nobody gets one before another has expired; who comes is told when that is."""
    tickets = Tickets(max_total=3)
    for number in range(3):
        tickets.issue(Identity(f"user-{number}"), NOW + number)
    with pytest.raises(Refused, match="OVERLOADED") as caught:
        tickets.issue(ADA, NOW + 3)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 27)
    assert tickets.issue(ADA, NOW + 30)
    assert len(tickets) == 3


def test_at_the_bound_the_expired_go_first() -> None:
    """Tickets of tokens that have ended in the meantime make room, wherever they stand."""
    tickets = Tickets(max_total=2)
    good = tickets.issue(Identity("bob"), NOW).ticket
    tickets.issue(Identity("eve", expires_at=NOW + 1), NOW)
    tickets.issue(ADA, NOW + 2)
    assert is_good(tickets, good, NOW + 2)
    assert len(tickets) == 2


def test_tickets_are_not_kept_as_they_are() -> None:
    """Neither memory nor any text of the table, or of what it gave, has the ticket itself."""
    tickets = Tickets()
    issued = tickets.issue(ADA, NOW)
    kept = [repr(tickets), repr(issued), repr(tickets._tickets), repr(tickets._of_user)]
    assert not any(issued.ticket in text for text in kept)


def test_tickets_cannot_be_guessed() -> None:
    """32 random bytes, in characters that need no quoting in a URL."""
    tickets = Tickets(max_of_user=1000)
    made = {tickets.issue(ADA, NOW).ticket for _ in range(1000)}
    assert len(made) == 1000
    assert all(len(ticket) == 43 and ticket.replace("-", "").replace("_", "").isalnum() for ticket in made)


@given(st.text(), st.sampled_from([1, 2000]))
def test_any_text(text: str, times: int) -> None:
    """Whatever stands in a URL is no ticket."""
    tickets = Tickets()
    tickets.issue(ADA, NOW)
    assert not is_good(tickets, text * times)


class AnyTickets(RuleBasedStateMachine):
    """Tickets asked for, looked at, used, given back and left, in whatever order."""

    issued = Bundle("issued")
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.tickets = Tickets(max_of_user=3, max_total=5)
        self.identities: dict[str, tuple[Identity, float]] = {}
        self.admitted: set[str] = set()
        self.in_use: set[str] = set()

    @rule(target=issued, user=st.sampled_from("abc"), lives_s=st.none() | st.integers(1, 60))
    def issue(self, user: str, lives_s: int | None) -> Issued | None:
        identity = Identity(user, expires_at=None if lives_s is None else self.now + lives_s)
        try:
            issued = self.tickets.issue(identity, self.now)
        except Refused as refused:
            assert (refused.status, refused.code) == (503, "OVERLOADED")  # noqa: PT017
            assert refused.retry_after_s is not None  # noqa: PT017
            assert 0 < refused.retry_after_s <= TICKET_S  # noqa: PT017
            return None
        self.identities[issued.ticket] = (identity, self.now)
        return issued

    def judge(self, issued: Issued, identity: Identity) -> None:
        expected, made_at = self.identities[issued.ticket]
        assert identity is expected, "never another identity"
        assert self.now < made_at + TICKET_S, "never after 30 s"
        assert identity.expires_at is None or self.now < identity.expires_at, "never after its token"
        assert issued.ticket not in self.admitted, "at most once"
        assert issued.ticket not in self.in_use, "nobody beside its bearer"

    @rule(issued=issued)
    def look(self, issued: Issued | None) -> None:
        if issued is not None:
            with contextlib.suppress(Refused):
                self.judge(issued, self.tickets.find(issued.ticket, self.now))

    @rule(target=held, issued=issued)
    def begin(self, issued: Issued | None) -> tuple[Issued, AbstractContextManager[Identity]] | None:
        if issued is None:
            return None
        using = self.tickets.use(issued.ticket, self.now)
        try:
            identity = using.__enter__()
        except Refused:
            return None
        self.judge(issued, identity)
        self.in_use.add(issued.ticket)
        return issued, using

    @rule(held=consumes(held), succeeds=st.booleans())
    def end(self, held: tuple[Issued, AbstractContextManager[Identity]] | None, succeeds: bool) -> None:
        if held is None:
            return
        issued, using = held
        self.in_use.remove(issued.ticket)
        if succeeds:
            using.__exit__(None, None, None)
            self.admitted.add(issued.ticket)
        else:
            failure = Refused(503, "DRAINING", "x")
            assert not using.__exit__(Refused, failure, None)

    @rule(seconds=st.integers(0, 40))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def bounded(self) -> None:
        of_users = self.tickets._of_user
        assert len(self.tickets) == sum(map(len, of_users.values())) <= 5
        assert all(0 < len(of_user) <= 3 for of_user in of_users.values())


TestAnyTickets = AnyTickets.TestCase
TestAnyTickets.settings = settings(max_examples=share(100))
