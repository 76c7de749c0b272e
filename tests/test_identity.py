"""Who is here, and what their permissions say."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws import Identity
from netra_ws.identity import fits

few = st.text("ab.*", max_size=12)


@pytest.mark.parametrize(
    "at", ["tomorrow", "1763000000", float("nan"), float("inf"), 10**400, True, [1]], ids=lambda at: str(at)[:12]
)
def test_an_end_is_a_time(at: Any) -> None:
    """What nobody can reckon with is refused where it is made, not in a task that looks after everybody."""
    with pytest.raises(ValueError, match="expires_at must be Unix seconds"):
        Identity("u", expires_at=at)


def test_the_id_of_a_token_is_text() -> None:
    """A number would fail wherever revocations are looked up."""
    wrong: Any = 5
    with pytest.raises(ValueError, match="token_id must be text"):
        Identity("u", token_id=wrong)


@pytest.mark.parametrize(
    "granted", ["*", "chat*", "chat:*", "ch?t", "CHAT", " chat", "chat ", "chat,read", "", "job:*"]
)
def test_permissions_are_exact_words(granted: str) -> None:
    """No word but ``chat`` itself is the permission chat, whatever wildcard it looks like."""
    assert not Identity("u", {granted}).may("chat")
    assert Identity("u", {granted, "chat"}).may("chat")


@pytest.mark.parametrize(
    ("granted", "job_id", "may"),
    [
        ("job:build-7", "build-7", True),
        ("job:build-7", "build-70", False),
        ("job:build-7", "BUILD-7", False),
        ("job:build-*", "build-7", True),
        ("job:build-*", "build-", True),
        ("job:build-*", "my-build-7", False),
        ("job:*-7", "build-7", True),
        ("job:a*b*c", "a.b.b.c", True),
        ("job:a*b*c", "acb", False),
        ("job:ab*ba", "aba", False),
        ("job:*b*b", "ab", False),
        ("job:*b*b", "abb", True),
        ("job:*", "anything:at.all", True),
        ("job:**", "x", True),
        ("job:b.ild", "build", False),
        ("job:b[u]ild", "build", False),
        ("job:b?ild", "build", False),
        ("job:", "build", False),
        ("job:publish", "publish", False),
        ("job:publis*", "publish", True),
        ("job:job:build", "job:build", True),
        ("Job:build", "build", False),
        (" job:build", "build", False),
        ("build", "build", False),
        ("*", "build", False),
        ("operator", "build", False),
        ("read", "build", False),
    ],
)
def test_who_may_read_a_job(granted: str, job_id: str, may: bool) -> None:
    """A job is read by who has its id, or a pattern whose star stands for any characters; by nobody else."""
    assert Identity("u", {granted}).may_read_job(job_id) is may
    assert Identity("u", {granted, "chat", "job:publish"}).may_read_job(job_id) is may
    assert not Identity("u", ()).may_read_job(job_id)


@given(few, few)
def test_a_pattern_means_what_it_says(pattern: str, text: str) -> None:
    """A star is any run of characters, everything else itself: as the regular expression that we do not use."""
    expression = ".*".join(re.escape(part) for part in pattern.split("*"))
    assert fits(pattern, text) is (re.fullmatch(expression, text, re.DOTALL) is not None)


@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=5), st.lists(st.text("ab", max_size=3), max_size=5))
def test_a_pattern_fits_what_it_was_made_of(parts: list[str], fillings: list[str]) -> None:
    """Whatever is put for the stars of a pattern, the result fits it."""
    filled = "".join(part + (fillings[n] if n < len(fillings) else "") for n, part in enumerate(parts[:-1])) + parts[-1]
    assert fits("*".join(parts), filled)


def test_a_hostile_pattern_is_no_work() -> None:
    """Patterns that make matchers go back and forth for ever are answered at once."""
    assert not fits("*a" * 2000 + "b", "a" * 128)
    assert not fits("a*" * 60 + "b", "a" * 128)
    assert fits("*" * 8000, "a" * 128)
