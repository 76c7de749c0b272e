"""Revocations: which tokens are refused, and for how long that is remembered."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.access import Revocation, Revocations, issued_at
from netra_ws.access.revocations import LEEWAY_S, LONGEST_LIFE_S
from netra_ws.errors import Refused
from netra_ws.identity import Identity

ADA = Identity("ada", token_id="a1")


def test_tokens_of_before_are_refused_and_later_ones_are_not() -> None:
    """A token of a revoked user is refused when it was issued up to that moment, or does not say when."""
    revocations = Revocations()
    assert not revocations.cover(ADA, 10.0, 1.0)
    revocations.revoke(10.0, "ada", None)
    assert revocations.cover(ADA, 10.0, 9.0)
    assert revocations.cover(ADA, 10.0, 10.0)
    assert revocations.cover(ADA, 10.0, None)
    assert not revocations.cover(ADA, 11.0, 10.001)
    assert not revocations.cover(Identity("bob"), 11.0, None)
    with pytest.raises(Refused) as caught:
        revocations.check(ADA, 11.0, 9.0)
    assert (caught.value.status, caught.value.code) == (401, "TOKEN_REVOKED")


def test_one_token_is_refused_for_good() -> None:
    """A revoked token is refused whenever it says it was issued; other tokens of that user are not."""
    revocations = Revocations()
    revocations.revoke(10.0, None, "a1", 100.0)
    assert revocations.cover(ADA, 99.0, 50.0)
    assert not revocations.cover(Identity("ada", token_id="a2"), 99.0, 1.0)
    assert not revocations.cover(Identity("ada"), 99.0, 1.0)


def test_how_long() -> None:
    """A token's revocation lasts until it has expired for everybody, a user's as long as any token may live."""
    revocations = Revocations()
    token = revocations.revoke(10.0, None, "a1", 100.0)
    unknown = revocations.revoke(10.0, None, "b1")
    user = revocations.revoke(10.0, "ada", None, 100.0)
    long = revocations.revoke(10.0, "bob", None, 10.0 + 2 * LONGEST_LIFE_S)
    assert [each and each.until for each in (token, unknown, user, long)] == [
        100.0 + LEEWAY_S,
        10.0 + LONGEST_LIFE_S,
        10.0 + LONGEST_LIFE_S,
        10.0 + 2 * LONGEST_LIFE_S + LEEWAY_S,
    ]
    assert not revocations.cover(Identity("x", token_id="a1"), 100.0 + LEEWAY_S, None)


def test_none_is_forgotten_for_another() -> None:
    """When no more can be remembered a new one is refused, unless old ones are over; known ones are still raised."""
    revocations = Revocations(most=2)
    assert revocations.revoke(1.0, None, "a", 5.0)
    assert revocations.revoke(1.0, None, "b", 5.0)
    assert revocations.revoke(2.0, None, "c", 9.0) is None
    assert revocations.revoke(2.0, None, "b", 9.0)
    assert revocations.revoke(2.0, "ada", None)  # users have places of their own
    assert len(revocations) == 3
    assert revocations.revoke(5.0 + LEEWAY_S, None, "c", 9.0 + LEEWAY_S)
    assert revocations.cover(Identity("x", token_id="b"), 6.0 + LEEWAY_S, None)
    assert not revocations.cover(Identity("x", token_id="a"), 6.0 + LEEWAY_S, None)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("ab"), st.floats(0, 50), st.floats(50, 99)), max_size=12))
def test_the_order_does_not_matter(rows: list[tuple[bool, str, float, float]]) -> None:
    """What a store hands back in any order covers the same as what was revoked one after the other."""
    made = [Revocation(name if user else None, None if user else name, at, until) for user, name, at, until in rows]
    forth, back = Revocations(), Revocations()
    forth.load(made)
    back.load(reversed(made))
    for identity in (Identity("a", token_id="b"), Identity("b", token_id="a"), Identity("a")):
        for since in (None, 0.0, 25.0, 50.0):
            for now in (0.0, 60.0, 98.0):
                assert forth.cover(identity, now, since) == back.cover(identity, now, since)


@pytest.mark.parametrize(
    ("claims", "at"),
    [
        ({"iat": 5}, 5.0),
        ({"iat": 5.5}, 5.5),
        ({}, None),
        ({"iat": "5"}, None),
        ({"iat": 10**400}, None),
        ({"iat": float("nan")}, None),
        ({"iat": float("inf")}, None),
    ],
)
def test_issued_at(claims: dict[str, object], at: float | None) -> None:
    """The time of issue is what the token says, in seconds, or unknown; a program's own rule may say anything."""
    assert issued_at(attrs.evolve(ADA, claims=claims)) == at
