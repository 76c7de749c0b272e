"""Column types for texts and JSON that come back as they went in, whatever the engine takes for a text."""

from __future__ import annotations

import json
import re
from typing import Any

import sqlalchemy as sa

# PostgreSQL has no NUL in a text and no engine a lone surrogate. Each becomes two characters, of which the
# first is one that hardly occurs, and which therefore is doubled itself. The order of texts stays what it was.
_NO_TEXT = re.compile("[\0\1\ud7ff-\udfff]")
_ESCAPED = re.compile("\1[\1\2]|\ud7ff[\1\u0100-\u08ff]")
_LOW, _HIGH = "\1", "\ud7ff"
_FIRST_SURROGATE = 0xD800
_TO_PLAIN = 0x0100 - _FIRST_SURROGATE


def escape(text: str) -> str:
    """Return *text* without NUL and lone surrogates, for PostgreSQL; ``unescape`` gives it back.

    Of two texts the lesser one, by code points, stays the lesser.
    """
    return _NO_TEXT.sub(_escape_one, text)


def unescape(text: str) -> str:
    """Return the text that ``escape`` was given."""
    return _ESCAPED.sub(_unescape_one, text) if _LOW in text or _HIGH in text else text


def _escape_one(found: re.Match[str]) -> str:
    character = found[0]
    if character <= _LOW:
        return _LOW + chr(ord(character) + 1)
    return _HIGH + (_LOW if character == _HIGH else chr(ord(character) + _TO_PLAIN))


def _unescape_one(found: re.Match[str]) -> str:
    first, second = found[0][0], found[0][1]
    if first == _LOW:
        return chr(ord(second) - 1)
    return _HIGH if second == _LOW else chr(ord(second) - _TO_PLAIN)


def plain_text() -> sa.types.TypeEngine[str]:
    """Return the type of a column that is compared and ordered by code points in every engine."""
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


class AnyText(sa.TypeDecorator[str]):
    """Text that comes back as it went in.

    No UTF-8 engine takes a lone surrogate, but an agent can make one, and a batch refused for it would
    be tried again for ever. SQLite keeps such a text as bytes, which it allows in a column of texts;
    PostgreSQL keeps it escaped.
    """

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[str]:
        return dialect.type_descriptor(sa.Text(collation="C" if dialect.name == "postgresql" else None))

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | bytes | None:
        if value is None:
            return None
        if dialect.name == "postgresql":
            return escape(value)
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogatepass")
        return value

    def process_result_value(self, value: str | bytes | None, dialect: sa.Dialect) -> str | None:
        if isinstance(value, bytes):
            return value.decode("utf-8", "surrogatepass")
        return unescape(value) if value is not None and dialect.name == "postgresql" else value


class AnyJson(sa.TypeDecorator[Any]):
    """JSON as Python writes it, which has NaN.

    The types of PostgreSQL refuse what Python calls JSON, and a batch refused would be tried again for
    ever; so there it is a text. Nobody asks the engine for what is within.
    """

    impl = sa.JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        postgres = dialect.name == "postgresql"
        return dialect.type_descriptor(sa.Text(collation="C") if postgres else sa.JSON())

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return json.dumps(value) if dialect.name == "postgresql" else value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        return json.loads(value) if dialect.name == "postgresql" else value
