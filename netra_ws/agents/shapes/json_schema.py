"""JSON values checked by a JSON Schema that somebody has written: a program, or a server of tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from netra_ws.errors import MAX_FIELDS, InvalidParameters

#: Characters of what the validator says about one place; it quotes the value.
_WORDS = 200


def read_by_schema(schema: Mapping[str, Any], root: str = "$") -> Callable[[Any], Any]:
    """Return a function that returns a JSON value when it fits *schema* (draft 2020-12).

    It raises ``InvalidParameters`` when it does not, with the JSON paths of what is wrong, which begin with
    *root*. What the schema refers to elsewhere is never fetched.

    Raises:
        ValueError: This is no JSON Schema.
    """
    # Imported late: it takes a tenth of the time until a server listens, and few agents need it.
    import jsonschema
    import referencing
    import referencing.exceptions

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as exc:
        raise ValueError(f"schema: {str(getattr(exc, 'message', exc))[:_WORDS]}") from None
    validator = jsonschema.Draft202012Validator(schema, registry=referencing.Registry())

    def read(value: Any) -> Any:
        wrong: dict[str, str] = {}
        try:
            for error in validator.iter_errors(value):
                wrong[f"{root}{error.json_path[1:]}"] = error.message[:_WORDS]
                if len(wrong) == MAX_FIELDS:
                    break
        except (referencing.exceptions.Unresolvable, RecursionError) as exc:
            wrong = {root: f"the schema cannot be applied: {type(exc).__name__}"}
        if wrong:
            raise InvalidParameters(wrong)
        return value

    return read
