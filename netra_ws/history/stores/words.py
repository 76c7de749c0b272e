"""How a text becomes words for search: one rule for every driver, whatever its engine would do."""

from __future__ import annotations

import unicodedata

#: A longer word is told from others by its beginning only: data in a message must not fill the index.
LONGEST_WORD = 100

#: Scripts written without spaces, as first and last code point: kana, ideographs and their extensions.
_SPACELESS = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
#: So many different words of a query count; FTS5 would need seconds for the 100,000 of a long one.
MOST_QUERY_WORDS = 100


def words(text: str) -> list[str]:
    """Return the words of *text* in their order, folded so that the same word is the same string.

    A word is an unbroken row of letters, marks and digits of any script (Unicode categories L, M
    and N); an ideograph or kana is a word by itself. Everything else only separates.
    """
    folded = unicodedata.normalize("NFC", text).casefold()
    # By distinct character, not by place: a text has few of them, and str.translate runs in C.
    table = {}
    for character in set(folded):
        code = ord(character)
        if unicodedata.category(character)[0] not in "LMN":
            table[code] = " "
        elif any(first <= code <= last for first, last in _SPACELESS):
            table[code] = f" {character} "
    return [word[:LONGEST_WORD] for word in folded.translate(table).split()]


def query_words(query: str) -> list[str]:
    """Return the different words that a message must contain to be found, at most ``MOST_QUERY_WORDS``."""
    return list(dict.fromkeys(words(query)))[:MOST_QUERY_WORDS]
