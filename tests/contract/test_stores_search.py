"""What every store promises of search."""

from __future__ import annotations

import pytest

from netra_ws.history.stores.contract import Store

from .rows import ALICE, put_message, put_thread


async def found(store: Store, query: str, limit: int = 100) -> list[str]:
    return [row.message_id for row in await store.search(ALICE, query, limit)]


async def test_search_wants_every_word(store: Store) -> None:
    """A message is found when it has all words, whole, in any order and case."""
    await store.write([put_thread(), put_message("m", "The quick brown Fox"), put_message("n", "quick quick", seq=2)])
    assert await found(store, "fox QUICK") == ["m"]
    assert sorted(await found(store, "quick")) == ["m", "n"]
    assert await found(store, "qui") == []
    assert await found(store, "quick dog") == []


@pytest.mark.parametrize("query", ["", " ", '"', "*", "-", "()", ":", "\0", "\ud800", "☃", "%", "'"])
async def test_a_query_without_words_finds_nothing(store: Store, query: str) -> None:
    """Signs alone are no words: such a query is answered with nothing, not with an error."""
    await store.write([put_thread(), put_message("m", f"hello {query} there")])
    assert await found(store, query) == []


@pytest.mark.parametrize(
    "query",
    [
        '"hello',
        "hello*",
        "hello OR nothing",
        "NEAR(hello there)",
        "-hello",
        "NOT hello",
        "content:hello",
        "^hello",
        "hel*",
    ],
)
async def test_operators_are_words(store: Store, query: str) -> None:
    """What is an operator elsewhere is a literal: its letters must be in the message, its signs do not count."""
    await store.write([put_thread(), put_message("m", "hello there"), put_message("n", f"{query} there", seq=2)])
    words = query.replace("-", "").strip('"*^').lower()
    assert sorted(await found(store, query)) == (["m", "n"] if words == "hello" else ["n"])


@pytest.mark.parametrize(
    ("content", "query"),
    [
        ("GRÖSSE", "größe"),
        ("cafe\N{COMBINING ACUTE ACCENT}", "CAFÉ"),
        ("Ὀδυσσεύς", "ὀδυσσεύσ"),
        ("हिन्दी में", "हिन्दी"),
        ("我在东京吃饭", "东京"),
        ("price: 42€/kg", "42 KG"),
        ("snake_case", "case"),
    ],
)
async def test_words_of_all_scripts(store: Store, content: str, query: str) -> None:
    """Case and composition do not matter in any script; text without spaces is found by its characters."""
    await store.write([put_thread(), put_message("m", content)])
    assert await found(store, query) == ["m"]


@pytest.mark.parametrize(("content", "query"), [("café", "cafe"), ("हिन्दी", "हिन"), ("übung", "bung")])
async def test_a_part_of_a_word_is_not_the_word(store: Store, content: str, query: str) -> None:
    """Accents and vowel signs belong to their word."""
    await store.write([put_thread(), put_message("m", content)])
    assert await found(store, query) == []


async def test_search_gives_the_best_first(store: Store) -> None:
    """More of the words in less text comes first; of equals the newer one; never more than *limit*."""
    filler = " ".join(f"filler{n}" for n in range(50))
    await store.write([put_thread(), put_message("long", f"tea {filler}", seq=9), put_message("tea", "tea tea", seq=1)])
    await store.write([put_message("old", "coffee now", seq=2), put_message("new", "coffee now", seq=3)])
    assert await found(store, "tea") == ["tea", "long"]
    assert await found(store, "coffee") == ["new", "old"]
    assert await found(store, "coffee", limit=1) == ["new"]
    assert await found(store, "coffee", limit=0) == []


async def test_a_long_query_is_cut(store: Store) -> None:
    """A query of very many words is answered by its first ones."""
    first = " ".join(f"w{n}" for n in range(100))
    await store.write([put_thread(), put_message("m", first)])
    assert await found(store, first + " " + " ".join(f"missing{n}" for n in range(10_000))) == ["m"]
    assert await found(store, "missing " + first) == []
