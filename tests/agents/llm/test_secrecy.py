"""A key is covered in whatever leaves, and nothing else is."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netra_ws.agents.llm.secrecy import COVER, Secrecy

KEY = "sk-abababab-0123456789"


def veiled(pieces: list[str], key: str = KEY) -> str:
    veil = Secrecy(key).veil()
    return "".join([*(veil.show(piece) for piece in pieces), veil.rest()])


@settings(deadline=None)
@given(
    texts=st.lists(st.text(st.sampled_from(list("sk-ab019 x")), max_size=12), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 200), max_size=12),
)
def test_cut_anywhere(texts: list[str], cuts: list[int]) -> None:
    """Wherever a text is cut, the key is covered in it and all else comes through unchanged."""
    whole = KEY.join(texts)
    ends = [0, *sorted(cut % (len(whole) + 1) for cut in cuts), len(whole)]
    assert veiled([whole[start:end] for start, end in itertools.pairwise(ends)]) == whole.replace(KEY, COVER)


def test_little_is_held_back() -> None:
    """A piece is shown at once, but for an end that the key may go on with."""
    veil = Secrecy(KEY).veil()
    assert veil.show("What is a sketch") == "What is a sketch"
    assert veil.show(" of sk-ab") == " of "
    assert veil.show("c") == "sk-abc"


@pytest.mark.parametrize("key", ["", "EMPTY", "ollama", "none", "sk-short"])
def test_placeholders(key: str) -> None:
    """A placeholder in place of a key is a word like others."""
    assert veiled(["ollama ", "none", " EMPTY"], key) == "ollama none EMPTY"
    assert Secrecy(key).cover("ollama") == "ollama"


def test_betrayed() -> None:
    """A message with the key, or so much of it that it can be told which it is, betrays it."""
    secrecy = Secrecy(KEY)
    assert secrecy.betrayed_by(f"wrong key {KEY}")
    assert secrecy.betrayed_by(f"wrong key {KEY[:7]}***{KEY[-4:]}")
    assert secrecy.betrayed_by(KEY[-6:])
    assert not secrecy.betrayed_by("wrong key")
    assert not Secrecy("").betrayed_by("wrong key")
    assert Secrecy("none").betrayed_by("the key none is wrong")
    assert KEY not in repr(secrecy) + repr(secrecy.veil())
