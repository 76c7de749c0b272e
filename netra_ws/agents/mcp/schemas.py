"""Checks arguments against the schema that an MCP server gave for a tool.

The server has the last word on what it takes; the check here is for a model, which is told at once and by
name what is wrong. The schema is another's text, so it gets no power: nothing is fetched for it, none of
its regular expressions is run (one can take for ever), and a check takes so many steps and no more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import attrs
import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import extend, validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import specification_with

from netra_ws.errors import MAX_FIELDS

#: Bytes of a schema; it goes to the model with every request.
MAX_SCHEMA_BYTES = 64 * 2**10
#: Keywords that one check looks at, about 50 ms; what is behind that is left to the server.
MAX_STEPS = 10_000
#: Characters of what is said about one place; it quotes the value.
MAX_WORDS = 300
#: Items among which the same one twice is looked for: each is compared with each, in one step.
MAX_UNIQUE = 100
#: Keywords that run regular expressions.
_UNCHECKED = ("pattern", "patternProperties", "unevaluatedProperties")
#: Keywords whose values are data, not schemas.
_DATA = ("const", "default", "enum", "examples")

Rule = Callable[[Any, Any, Any, Any], Any]
_steps_left: ContextVar[int] = ContextVar("steps_left")


class UnfitSchema(ValueError):
    """A schema that cannot be offered; the text says why."""


class _Enough(Exception):
    """A check has taken all of its steps."""


@attrs.frozen(eq=False)
class Parameters:
    """The parameters of one tool.

    Attributes:
        schema: A JSON Schema of an object.
    """

    schema: Mapping[str, Any]
    _validator: Any

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
            _check_references(schema, draft)
        except SchemaError as exc:
            raise UnfitSchema(f"its schema is no JSON Schema: {exc.json_path}: {_short(exc.message)}") from None
        except RecursionError:
            raise UnfitSchema("its schema is too deep") from None
        return cls(schema, _bounded(draft)(schema, registry=Registry()))  # a registry that retrieves nothing

    def violations(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """Return what is wrong with *arguments* by JSON path: ``$.limit``: ``0 is less than the minimum of 1``."""
        found: dict[str, str] = {}
        before = _steps_left.set(MAX_STEPS)
        try:
            for error in self._validator.iter_errors(dict(arguments)):
                before_it = f"{found[error.json_path]}; " if error.json_path in found else ""
                found[error.json_path] = _short(before_it + error.message)
                if len(found) == MAX_FIELDS:
                    break
        except (_Enough, RecursionError, Unresolvable):
            pass  # what the schema wants is not to be found out here
        finally:
            _steps_left.reset(before)
        return found


def _short(text: str) -> str:
    return text if len(text) <= MAX_WORDS else f"{text[: MAX_WORDS - 1]}…"


@functools.cache
def _bounded(draft: Any) -> Any:
    """Return the class of validators of a draft whose checks are bounded."""
    rules = {name: _counted(rule) for name, rule in draft.VALIDATORS.items()}
    rules |= {name: _unchecked for name in _UNCHECKED if name in rules}
    for name, make in (("additionalProperties", _additional), ("uniqueItems", _unique)):
        if name in rules:
            rules[name] = make(rules[name])
    return extend(draft, rules)


def _counted(rule: Rule) -> Rule:
    def apply(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        left = _steps_left.get()
        if left <= 0:
            raise _Enough
        _steps_left.set(left - 1)
        return rule(validator, value, instance, schema)

    return apply


def _unchecked(validator: Any, value: Any, instance: Any, schema: Any) -> None:
    return None


def _additional(rule: Rule) -> Rule:
    def apply(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        # Which properties are additional is a matter of regular expressions where there are such.
        return None if "patternProperties" in schema else rule(validator, value, instance, schema)

    return apply


def _unique(rule: Rule) -> Rule:
    def apply(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        is_long = isinstance(instance, list) and len(instance) > MAX_UNIQUE
        return None if is_long else rule(validator, value, instance, schema)

    return apply


def _check_references(schema: Mapping[str, Any], draft: Any) -> None:
    """Raise ``UnfitSchema`` for a reference that leads out of the schema, or nowhere."""
    resource = specification_with(draft.META_SCHEMA["$schema"]).create_resource(schema)
    resolver = Registry().resolver_with_root(resource)
    for reference in set(_references(schema)):
        try:
            resolver.lookup(reference)
        except (Unresolvable, ValueError, TypeError):
            raise UnfitSchema(f"its schema refers to {_short(reference)}, which is not in it") from None


def _references(schema: Any) -> Iterator[str]:
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            yield from (each[name] for name in ("$ref", "$dynamicRef") if isinstance(each.get(name), str))
            waiting.extend(value for name, value in each.items() if name not in _DATA)
        elif isinstance(each, list):
            waiting.extend(each)
