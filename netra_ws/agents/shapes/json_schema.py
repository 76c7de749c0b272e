"""JSON values checked by a JSON Schema that a program has written.

The value is a stranger's and is checked where all users are served, so what cannot be checked in bounded
time is not taken in a schema: ``pattern``, ``patternProperties`` and ``unevaluated…`` are refused. A text
that has to match a regular expression is for the agent to check, when it has the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from netra_ws.errors import InvalidParameters

#: Characters of what the validator says about one place; it quotes the value.
_WORDS = 200


def read_by_schema(schema: Mapping[str, Any], root: str = "$") -> Callable[[Any], Any]:
    """Return a function that returns a JSON value when it fits *schema* (draft 2020-12).

    It raises ``InvalidParameters`` when it does not, with the JSON paths of what is wrong, which begin with
    *root*; so it does for a value that takes too long to check, of some thousand items.

    Raises:
        ValueError: This is no JSON Schema, it refers to something outside, or it has a keyword that is not
            checked here.
    """
    # Imported late: it takes a tenth of the time until a server listens, and few agents need it.
    import jsonschema

    from . import bounded

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
        unchecked = sorted({name for name, _ in bounded.keywords(schema)} & bounded.UNCHECKED)
        outside = bounded.unresolved(schema)
    except (jsonschema.SchemaError, RecursionError) as exc:
        raise ValueError(f"schema: {str(getattr(exc, 'message', exc))[:_WORDS]}") from None
    if unchecked:
        raise ValueError(f"schema: {', '.join(unchecked)}: not checked here; check the value in the agent")
    if outside is not None:
        raise ValueError(f"schema: it refers to {outside[:_WORDS]}, which is not in it")
    check = bounded.Check.by(schema)

    def read(value: Any) -> Any:
        wrong: dict[str, str] = {}
        try:
            for path, text in check.problems(value):
                wrong.setdefault(f"{root}{path[1:]}", text[:_WORDS])
        except bounded.Exhausted as exc:
            wrong = wrong or {root: str(exc)}
        if wrong:
            raise InvalidParameters(wrong)
        return value

    return read
