"""How a text becomes words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from netra_ws.history.stores.words import LONGEST_WORD, MOST_QUERY_WORDS, query_words, words

ANY_TEXT = st.text(st.characters(exclude_categories=()))


def test_words_are_folded() -> None:
    """Words come in their order, with repeats, without case and in composed form."""
    assert words("Hello, HELLO Größe cafe\N{COMBINING ACUTE ACCENT}-9") == ["hello", "hello", "grösse", "café", "9"]


def test_spaceless_scripts_part_by_character() -> None:
    """An ideograph and a kana are words of their own; other letters beside them are not parted."""
    assert words("GPT在东京です") == ["gpt", "在", "东", "京", "で", "す"]


def test_a_long_word_is_known_by_its_beginning() -> None:
    """A row of letters without end fills neither the index nor a query."""
    assert words("x" * 1_000_000) == ["x" * LONGEST_WORD]


def test_a_query_has_each_word_once() -> None:
    """Repeats in a query cost nothing, and only its first words count."""
    assert query_words("a b A c a") == ["a", "b", "c"]
    assert len(query_words(" ".join(map(str, range(1_000))))) == MOST_QUERY_WORDS


@given(ANY_TEXT)
def test_a_word_is_made_of_word_characters(text: str) -> None:
    """No word of any text holds a space, quote, NUL or surrogate, or is empty."""
    for word in words(text):
        assert word
        assert not set(word) & set(' "*\0')
        word.encode()


@given(ANY_TEXT)
def test_a_word_is_itself(text: str) -> None:
    """The words of words are the same words: what was found once can be asked for again."""
    for word in words(text):
        assert words(word) == [word]
