"""A validator by JSON Schema that ends: whatever the schema and the value, it takes so many steps and no more.

It works on the event loop of all users. So nothing is fetched for a schema, none of its regular
expressions is run (one can take for ever), the same item twice is looked for by hash and not by comparing
each with each, and every keyword costs steps in proportion to what it looks at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import attrs
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import specification_with

from netra_ws.errors import MAX_FIELDS

#: Steps of one check: at most about 100 ms.
MAX_STEPS = 10_000
#: Keywords that run regular expressions, or look through the schema in a way that cannot be counted.
UNCHECKED = frozenset({"pattern", "patternProperties", "unevaluatedItems", "unevaluatedProperties"})

#: Keywords inside each other; each takes four frames of Python's stack, which has 1000.
MAX_NESTED = 150
#: Characters of what is said about a value that cost a step: it quotes the value.
_CHARACTERS = 1024
#: Entries of a keyword's own value that cost a step.
_ENTRIES = 10
#: Keywords that go through the items of a value.
_ITERATING = frozenset({"items", "prefixItems", "additionalItems", "contains", "additionalProperties", "propertyNames"})
#: Keywords whose values are data, not schemas.
_DATA = frozenset({"const", "default", "enum", "examples"})
#: Keywords whose values are schemas by a name that anybody has chosen.
_NAMED = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions", "dependencies"})

Rule = Callable[[Any, Any, Any, Any], Any]


class Exhausted(Exception):
    """A check has taken all of its steps, or cannot be done at all; nothing is known of the rest."""


@attrs.define(eq=False)
class _Budget:
    """What one check may still take.

    Attributes:
        nested: How many keywords are being looked at, inside each other.
    """

    left: int = MAX_STEPS
    nested: int = 0

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Exhausted("too much to check")


_budget: ContextVar[_Budget] = ContextVar("budget")


@attrs.frozen(eq=False)
class Check:
    """Checks values by one schema, which is known to be one."""

    _validator: Any

    @classmethod
    def by(cls, schema: Mapping[str, Any], draft: Any = Draft202012Validator) -> Check:
        """Return the check of a schema; *draft* is a class of validators."""
        return cls(_bounded(draft)(schema, registry=Registry()))  # a registry that retrieves nothing

    def problems(self, value: Any) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with *value*: JSON path and text, several for one path; at most ``MAX_FIELDS`` paths.

        Raises:
            Exhausted: Not all of the value could be checked; what was yielded before is wrong all the same.
        """
        paths: set[str] = set()
        for path, text in self._found(value):
            paths.add(path)
            yield path, text
            if len(paths) == MAX_FIELDS:
                return

    def _found(self, value: Any) -> Iterator[tuple[str, str]]:
        budget = _Budget()
        errors = self._validator.iter_errors(value)
        while True:
            # Set around each step alone: between two of them, the context is that of whoever asks.
            before = _budget.set(budget)
            try:
                error: ValidationError | None = next(errors, None)
            except (RecursionError, Unresolvable) as exc:
                raise Exhausted(f"the schema cannot be applied: {type(exc).__name__}") from None
            finally:
                _budget.reset(before)
            if error is None:
                return
            yield error.json_path, error.message


def unresolved(schema: Mapping[str, Any], draft: Any = Draft202012Validator) -> str | None:
    """Return a reference of *schema* that leads out of it, or nowhere; None when there is none."""
    resource = specification_with(draft.META_SCHEMA["$schema"]).create_resource(schema)
    resolver = Registry().resolver_with_root(resource)
    for keyword, reference in keywords(schema):
        if keyword in ("$ref", "$dynamicRef") and isinstance(reference, str):
            try:
                resolver.lookup(reference)
            except (Unresolvable, ValueError, TypeError):
                return reference
    return None


def keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Yield every keyword in a schema and in those inside it, with its value."""
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            for name, value in each.items():
                yield name, value
                if name in _NAMED and isinstance(value, Mapping):
                    waiting.extend(value.values())
                elif name not in _DATA:
                    waiting.append(value)
        elif isinstance(each, list | tuple):
            waiting.extend(each)


@functools.cache
def _bounded(draft: Any) -> Any:
    """Return the class of validators of a draft whose checks are bounded."""
    rules = {name: _counted(name, rule) for name, rule in draft.VALIDATORS.items()}
    rules |= {name: _unchecked for name in UNCHECKED if name in rules}
    rules |= {"uniqueItems": _unique}
    if "additionalProperties" in rules:
        rules["additionalProperties"] = _additional(rules["additionalProperties"])
    return extend(draft, rules)


def _counted(name: str, rule: Rule) -> Rule:
    def apply(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        budget = _budget.get()
        steps = 1
        if name in ("const", "enum"):
            steps += sum(1 for _ in _nodes(value)) // _ENTRIES
        elif isinstance(value, list | dict):
            steps += len(value) // _ENTRIES
        if name in _ITERATING and isinstance(instance, list | dict):
            steps += len(instance) // 2
        budget.spend(steps)
        # Python's own end of the stack would do, were it not reached within a library that is no Python.
        if budget.nested == MAX_NESTED:
            raise Exhausted("too deep to check")
        budget.nested += 1
        try:
            for error in rule(validator, value, instance, schema) or ():
                # What comes from a schema inside has had its price for the text.
                budget.spend(1 if isinstance(error.validator, str) else 1 + len(error.message) // _CHARACTERS)
                yield error
        finally:
            budget.nested -= 1

    return apply


def _unchecked(validator: Any, value: Any, instance: Any, schema: Any) -> None:
    return None


def _additional(rule: Rule) -> Rule:
    def apply(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        # Which properties are additional is a matter of regular expressions where there are such.
        return None if "patternProperties" in schema else rule(validator, value, instance, schema)

    return apply


def _unique(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    budget = _budget.get()
    budget.spend(1)
    if value and isinstance(instance, list):
        keys = set()
        for item in instance:
            budget.spend(1)
            keys.add(_key(item, budget))
        if len(keys) < len(instance):
            yield ValidationError("the same item is in it twice")


def _key(value: Any, budget: _Budget) -> Any:
    """Return what is equal for equal JSON values: 1 is 1.0, but not true."""
    if isinstance(value, dict):
        budget.spend(len(value))
        return dict, frozenset((name, _key(item, budget)) for name, item in value.items())
    if isinstance(value, list):
        budget.spend(len(value))
        return list, tuple(_key(item, budget) for item in value)
    return (bool, value) if isinstance(value, bool) else value


def _nodes(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        yield each
        waiting.extend(each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
