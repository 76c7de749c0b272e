"""Checks arguments against the schema that an MCP server gave for a tool.

The server has the last word on what it takes; the check here is for a model, which is told at once and by
name what is wrong. The schema is another's text, so it gets no power: the validator is the bounded one of
``agents/shapes``, and what it cannot check is left to the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for

from ..shapes.bounded import Check, Exhausted, unresolved

#: Bytes of a schema; it goes to the model with every request.
MAX_SCHEMA_BYTES = 64 * 2**10
#: Characters of what is said about one place; it quotes the value.
MAX_WORDS = 300


class UnfitSchema(ValueError):
    """A schema that cannot be offered; the text says why."""


@attrs.frozen(eq=False)
class Parameters:
    """The parameters of one tool.

    Attributes:
        schema: A JSON Schema of an object.
    """

    schema: Mapping[str, Any]
    _check: Check

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Parameters:
        """Take a server's schema.

        Raises:
            UnfitSchema: It is none, is not one of objects, is too large, or refers to another document.
        """
        schema = {"type": "object", "properties": {}, **given}
        if schema["type"] != "object":
            raise UnfitSchema("its schema is not one of objects")
        try:
            size = len(orjson.dumps(schema))
        except TypeError:
            raise UnfitSchema("its schema is deeper, or has larger numbers, than JSON is read with") from None
        if size > MAX_SCHEMA_BYTES:
            raise UnfitSchema(f"its schema has {size} bytes, more than {MAX_SCHEMA_BYTES}")
        draft: Any = Draft202012Validator
        if isinstance(schema.get("$schema"), str):
            draft = validator_for(schema, default=Draft202012Validator)
        try:
            # Without its formats: they would refuse regular expressions of other languages than Python.
            draft.check_schema(schema, format_checker=None)
            outside = unresolved(schema, draft)
        except SchemaError as exc:
            raise UnfitSchema(f"its schema is no JSON Schema: {exc.json_path}: {_short(exc.message)}") from None
        except RecursionError:
            raise UnfitSchema("its schema is too deep") from None
        if outside is not None:
            raise UnfitSchema(f"its schema refers to {_short(outside)}, which is not in it")
        return cls(schema, Check.by(schema, draft))

    def violations(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """Return what is wrong with *arguments* by JSON path: ``$.limit``: ``0 is less than the minimum of 1``."""
        found: dict[str, str] = {}
        try:
            for path, text in self._check.problems(dict(arguments)):
                found[path] = _short(f"{found[path]}; {text}" if path in found else text)
        except Exhausted:
            pass  # what the schema wants is not to be found out here
        return found


def _short(text: str) -> str:
    return text if len(text) <= MAX_WORDS else f"{text[: MAX_WORDS - 1]}…"
