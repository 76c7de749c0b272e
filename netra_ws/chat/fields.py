"""From a JSON Schema to questions that a terminal can ask one after another, and from their answers to a value.

The server alone decides what fits. What is checked here is checked to tell it earlier; what cannot be
asked line by line is asked as JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import unquote

import attrs

Kind = Literal["text", "integer", "number", "boolean", "choice", "several", "list", "json", "gate"]

#: Objects within objects that are asked field by field; what lies deeper is asked as JSON.
MAX_DEPTH = 6
_YES, _NO = frozenset({"y", "yes", "true", "1"}), frozenset({"n", "no", "false", "0"})
#: What an empty line means where there is nothing to fall back on.
LEFT_OUT = object()
_WORDS: Mapping[str, str] = {
    "integer": "whole number",
    "number": "number",
    "list": "with commas between",
    "several": "numbers, with commas between",
    "choice": "number",
    "json": "as JSON",
}


@attrs.frozen(kw_only=True)
class Field:
    """One line to be asked for.

    Attributes:
        path: Names of the objects and of the field; empty for an answer that is no object.
        kind: ``gate`` asks whether an object is wanted at all, before its fields.
        options: What can be chosen.
        default: What an empty line means; ``LEFT_OUT``: nothing is said.
        schema: Where the bounds are.
    """

    path: tuple[str, ...]
    kind: Kind
    label: str
    required: bool = True
    nullable: bool = False
    help: str = ""
    options: Sequence[Any] = ()
    default: Any = LEFT_OUT
    schema: Mapping[str, Any] = attrs.field(factory=dict)

    def prompt(self) -> str:
        """Return what to print before the line."""
        if self.kind in ("boolean", "gate"):
            notes = ["y/n"]
        else:
            words = (_WORDS.get(self.kind), self.schema.get("format"), _bounds(self.schema))
            notes = [str(word) for word in words if word]
        if not self.required and self.default is LEFT_OUT:
            notes.append("may be left out")
        shown = f" ({', '.join(notes)})" if notes else ""
        given = "" if self.default is LEFT_OUT or self.default is None else f" [{_shown(self.default)}]"
        return f"{self.label}{shown}{given}: "

    def shuts(self, other: Field) -> bool:
        """Return whether *other* is a part of the object that this gate asks about."""
        return self.kind == "gate" and other.path[: len(self.path)] == self.path

    def read(self, line: str) -> Any:
        """Return the value of a line, or ``LEFT_OUT``.

        Raises:
            ValueError: It is none; the text says why.
        """
        line = line.strip()
        if line:
            return _READERS[self.kind](self, line)
        if self.default is not LEFT_OUT:
            return self.default
        if not self.required:
            return LEFT_OUT
        if self.nullable:
            return None
        raise ValueError("an answer is needed here")


def fields_of(schema: Mapping[str, Any]) -> list[Field]:
    """Return what to ask for a value of *schema*, in its order."""
    found: list[Field] = []
    _collect(schema, _Place(root=schema), found)
    return found


def assemble(answers: Sequence[tuple[Field, Any]]) -> Any:
    """Put answers together; those of a gate that stays closed, and what was left out, are not in the value."""
    if len(answers) == 1 and not answers[0][0].path:
        return None if answers[0][1] is LEFT_OUT else answers[0][1]
    value: dict[str, Any] = {}
    for field, answer in answers:
        if answer is LEFT_OUT:
            continue
        inside = value
        for name in field.path[:-1]:
            inside = inside.setdefault(name, {})
        if field.kind == "gate":
            if answer:
                inside.setdefault(field.path[-1], {})
            elif field.required:
                inside[field.path[-1]] = None
        else:
            inside[field.path[-1]] = answer
    return value


@attrs.frozen(kw_only=True)
class _Place:
    root: Mapping[str, Any]
    path: tuple[str, ...] = ()
    required: bool = True
    references: frozenset[str] = frozenset()


def _collect(given: Any, place: _Place, found: list[Field]) -> None:
    schema, nullable, references = _settle(given, place)
    label = " / ".join(map(_words, place.path)) or "Answer"
    common: dict[str, Any] = {
        "path": place.path,
        "label": str(given.get("title") or label) if isinstance(given, Mapping) and place.path else label,
        "required": place.required,
        "nullable": nullable,
        "help": str(schema.get("description") or ""),
        "default": schema.get("default", LEFT_OUT),
        "schema": schema,
    }
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and properties and len(place.path) < MAX_DEPTH:
        if place.path and (nullable or not place.required):
            found.append(Field(**common | {"kind": "gate", "default": False, "label": f"Fill in {label}?"}))
        needed = schema.get("required") or ()
        for name, inner in properties.items():
            inside = _Place(root=place.root, path=(*place.path, name), required=name in needed, references=references)
            _collect(inner, inside, found)
        return
    kind, options = _kind_of(schema, place)
    found.append(Field(**common | {"kind": kind, "options": options}))


def _settle(given: Any, place: _Place) -> tuple[Mapping[str, Any], bool, frozenset[str]]:
    """Follow references and take null out of alternatives, so that what is left has one kind."""
    schema: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    nullable, references = False, place.references
    for _ in range(16):
        before = schema
        reference = schema.get("$ref")
        if isinstance(reference, str):
            target = None if reference in references else _resolve(place.root, reference)
            references |= {reference}
            beside = {name: value for name, value in schema.items() if name != "$ref"}
            schema = {**target, **beside} if isinstance(target, Mapping) else beside
        for word in ("anyOf", "oneOf"):
            ways = schema.get(word)
            if isinstance(ways, list) and any(map(_is_null, ways)):
                nullable = True
                left = [way for way in ways if not _is_null(way)]
                beside = {name: value for name, value in schema.items() if name != word}
                only = left[0] if len(left) == 1 and isinstance(left[0], Mapping) else {word: left}
                schema = {**only, **beside}
        if isinstance(schema.get("type"), list):
            types = [each for each in schema["type"] if each != "null"]
            nullable = nullable or len(types) < len(schema["type"])
            schema = {**schema, "type": types[0] if len(types) == 1 else None}
        if schema == before:
            break
    return schema, nullable, references


def _resolve(root: Mapping[str, Any], reference: str) -> Any:
    if not reference.startswith("#/"):
        return root if reference == "#" else None
    found: Any = root
    for part in reference[2:].split("/"):
        found = found.get(unquote(part).replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _kind_of(schema: Mapping[str, Any], place: _Place) -> tuple[Kind, Sequence[Any]]:
    if "const" in schema:
        return "choice", (schema["const"],)
    if options := _options(schema):
        return "choice", options
    match schema.get("type"):
        case "string":
            return "text", ()
        case "integer" | "number" | "boolean" as kind:
            return kind, ()
        case "array" if "prefixItems" not in schema:
            items, nullable, _ = _settle(schema.get("items"), place)
            if not nullable and (options := _options(items)):
                return "several", options
            if not nullable and items.get("type") in ("string", "integer", "number"):
                return "list", ()
    return "json", ()


def _options(schema: Mapping[str, Any]) -> Sequence[Any]:
    options = schema.get("enum")
    if isinstance(options, list):
        return options
    ways = schema.get("oneOf") or schema.get("anyOf")
    if isinstance(ways, list) and ways and all(isinstance(way, Mapping) and "const" in way for way in ways):
        return [way["const"] for way in ways]
    return ()


def _is_null(way: Any) -> bool:
    return isinstance(way, Mapping) and (way.get("type") == "null" or ("const" in way and way["const"] is None))


# From a line to a value.


def _read_number(field: Field, line: str) -> int | float:
    return _number(field.kind == "integer", field.schema, line)


def _number(whole: bool, schema: Mapping[str, Any], line: str) -> int | float:
    try:
        number = int(line) if whole else float(line)
    except ValueError:
        raise ValueError(f"this is no {'whole ' if whole else ''}number") from None
    if not math.isfinite(number):
        raise ValueError("this is no number")
    if number < schema.get("minimum", -math.inf) or number > schema.get("maximum", math.inf):
        raise ValueError(f"expected {_bounds(schema)}")
    return number


def _read_text(field: Field, line: str) -> str:
    least, most = field.schema.get("minLength", 0), field.schema.get("maxLength", math.inf)
    if not least <= len(line) <= most:
        raise ValueError(f"expected {_bounds(field.schema)}, these are {len(line)}")
    return line


def _read_boolean(field: Field, line: str) -> bool:
    if line.lower() in _YES | _NO:
        return line.lower() in _YES
    raise ValueError("expected y or n")


def choose(options: Sequence[Any], line: str) -> Any:
    """Return the option that a line names, by its number from 1 or by its words.

    Raises:
        ValueError: It names none.
    """
    named = [option for option in options if _shown(option) == line]
    if named:
        return named[0]
    if line.isascii() and line.isdigit() and 1 <= int(line) <= len(options):
        return options[int(line) - 1]
    raise ValueError(f"expected a number from 1 to {len(options)}")


def _read_list(field: Field, line: str) -> list[Any]:
    entries = [entry.strip() for entry in line.split(",") if entry.strip()]
    items = field.schema.get("items")
    kind = items.get("type") if isinstance(items, Mapping) else None
    if kind in ("integer", "number"):
        assert isinstance(items, Mapping)
        return [_number(kind == "integer", items, entry) for entry in entries]
    return list(entries)


def _read_json(field: Field, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as exc:
        raise ValueError(f"this is no JSON: {exc}") from None


_READERS: Mapping[Kind, Any] = {
    "text": _read_text,
    "integer": _read_number,
    "number": _read_number,
    "boolean": _read_boolean,
    "gate": _read_boolean,
    "choice": lambda field, line: choose(field.options, line),
    "several": lambda field, line: [choose(field.options, each.strip()) for each in line.split(",") if each.strip()],
    "list": _read_list,
    "json": _read_json,
}


def _bounds(schema: Mapping[str, Any]) -> str:
    for least, most, unit in (("minimum", "maximum", ""), ("minLength", "maxLength", " characters")):
        low, high = schema.get(least), schema.get(most)
        if low is not None and high is not None:
            return f"{low} to {high}{unit}"
        if low is not None:
            return f"at least {low}{unit}"
        if high is not None:
            return f"at most {high}{unit}"
    return ""


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _words(name: str) -> str:
    words = name.replace("_", " ").replace("-", " ").strip() or name
    return words[:1].upper() + words[1:]
