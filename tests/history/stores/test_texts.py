"""How texts are kept where the engine does not take every text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.history.stores.texts import escape, unescape

#: Mostly those that matter: the ones that are escaped, the ones that escape them, and their neighbours.
_awkward = st.sampled_from("\0\1\2\3a\u00ff\u0100\u08ff\u0900\ud7fe\ud7ff\ud800\udbff\udc00\udfff\ue000\U0001f600")
texts = st.one_of(st.text(_awkward), st.text(st.characters(exclude_categories=())))


@given(texts)
def test_every_text_comes_back(text: str) -> None:
    """Whatever is escaped has no NUL and no surrogate, and is given back as it was."""
    kept = escape(text)
    assert "\0" not in kept
    kept.encode()
    assert unescape(kept) == text


@given(texts, texts)
def test_the_order_stays(one: str, other: str) -> None:
    """Escaped texts are in the order of the texts, so an engine that compares code points agrees with Python."""
    assert (escape(one) < escape(other)) == (one < other)


@pytest.mark.parametrize("text", ["", "hello", "Größe 東京", "tab\tand\nline", "\x02", "\ue000"])
def test_usual_texts_are_kept_as_they_are(text: str) -> None:
    """What an engine takes is not touched, so that people can read it there."""
    assert escape(text) == text
