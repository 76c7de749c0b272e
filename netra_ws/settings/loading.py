"""Where values come from: defaults < profile < TOML < environment < command line.

Every mistake is collected before anything is said, one line each, and names its source.
"""

import contextlib
import difflib
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import cattrs

from netra_ws.errors import ConfigError

from .rules import finite
from .sections import LEAVES, SECTIONS, Price, Settings

_WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_PREFIX = "NETRA_WS_"


@attrs.frozen
class Loaded:
    """Settings with the source of each value by dotted name."""

    settings: Settings
    sources: Mapping[str, str]


def _env_name(name: str) -> str:
    return _PREFIX + name.replace(".", "_").upper()


_ENV_NAMES = MappingProxyType({_env_name(name): name for name in LEAVES})


def _make_converter() -> cattrs.Converter:
    """Build the converter of settings: scalars are exact, a list is never one text cut into letters."""

    def exactly(value: object, type_: type) -> object:
        if type(value) is not type_:
            raise TypeError(f"expected {type_.__name__}")
        return value

    def number(value: object, _: object) -> float:
        if not finite(value):
            raise TypeError("expected a number")
        return float(value)  # type: ignore[arg-type]

    def texts(value: object, _: object) -> tuple[object, ...]:
        if not isinstance(value, list | tuple):
            raise TypeError("expected a list")
        return tuple(value)

    def price_table(value: object, _: object) -> Mapping[str, Price]:
        if not isinstance(value, Mapping) or not all(isinstance(row, Mapping | Price) for row in value.values()):
            raise TypeError("expected a table of tables")
        return {
            model: row if isinstance(row, Price) else converter.structure(row, Price) for model, row in value.items()
        }

    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=False)
    for scalar in (str, int, bool):
        converter.register_structure_hook(scalar, exactly)
    converter.register_structure_hook(float, number)
    converter.register_structure_hook_func(lambda type_: type_ == tuple[str, ...], texts)
    converter.register_structure_hook_func(lambda type_: type_ == Mapping[str, Price], price_table)
    return converter


_CONVERTER = _make_converter()


class Draft:
    """Values so far, weakest source first; collects every mistake before it complains."""

    def __init__(self) -> None:
        self._given: dict[str, tuple[Any, str]] = {}
        self._mistakes: list[str] = []

    def put(self, name: str, raw: object, source: str) -> None:
        """Take a value, or note what is wrong with it; a wrong value counts even where a stronger source wins."""
        field = LEAVES.get(name)
        if field is None:
            self.refuse_unknown(name, source, _suggest(name))
            return
        rule: Any = field.validator
        kind: Any = field.type
        try:
            value = _CONVERTER.structure(raw, kind)
        except (ConfigError, TypeError, ValueError, KeyError, cattrs.ForbiddenExtraKeysError):
            fits = False
        else:
            fits = rule.holds(value)
        if fits:
            self._given[name] = (value, source)
        else:
            self.refuse(name, source, f"expected {rule.expects}" + ("" if field.metadata["mask"] else _got(raw)))

    def refuse(self, name: str, source: str, why: str) -> None:
        self._mistakes.append(f"{name} ({source}): {why}")

    def refuse_unknown(self, name: str, source: str, suggestion: str | None) -> None:
        hint = f"; did you mean {suggestion}?" if suggestion else ""
        self.refuse(name, source, f"there is no such setting{hint}")

    def finish(self) -> Loaded:
        if self._mistakes:
            raise ConfigError("\n".join(self._mistakes))
        environment = self._given.get("environment", ("development", ""))[0]
        settings = Settings(environment=environment)
        sources: dict[str, str] = {}
        for name, field in LEAVES.items():
            profiled = environment in field.metadata["profile"]
            sources[name] = f"profile {environment}" if profiled else "default"
        for name, (value, source) in self._given.items():
            section, _, key = name.rpartition(".")
            change = {section: attrs.evolve(getattr(settings, section), **{key: value})} if section else {key: value}
            settings = attrs.evolve(settings, **change)
            sources[name] = source
        if "agents.default" not in self._given and settings.llm.base_url is not None:
            # Who names a model wants to talk to it.
            settings = attrs.evolve(settings, agents=attrs.evolve(settings.agents, default="llm"))
            sources["agents.default"] = "because of llm.base_url"
        return Loaded(settings, MappingProxyType(sources))


def _got(raw: object) -> str:
    try:
        text = repr(raw)
    except ValueError:  # an int with more digits than Python prints
        return ""
    return f", got {text if len(text) <= 60 else text[:59] + '…'}"


def _suggest(name: str) -> str | None:
    """Return the known name that was probably meant: the same word in another section, else a similar one."""
    elsewhere = [known for known in LEAVES if known.rpartition(".")[2] == name.rpartition(".")[2]]
    if len(elsewhere) == 1:
        return elsewhere[0]
    return next(iter(difflib.get_close_matches(name, LEAVES, n=1)), None)


def load(argv_overrides: Mapping[str, object], config: Path | None, environ: Mapping[str, str], cwd: Path) -> Loaded:
    """Merge all sources into settings.

    *argv_overrides* holds dotted names; None means that the option was not given. Without
    *config*, ``netra_ws.toml`` in *cwd* is read if it is there.

    Raises:
        ConfigError: one line for each unknown name and each wrong value of any source.
    """
    draft = Draft()
    if config is not None:
        _put_table(draft, _read_toml(cwd / config), str(config))
    elif (cwd / "netra_ws.toml").exists():
        _put_table(draft, _read_toml(cwd / "netra_ws.toml"), "netra_ws.toml")
    _put_environ(draft, environ)
    for name, value in argv_overrides.items():
        if value is not None:
            draft.put(name, value, "command line")
    return draft.finish()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except ValueError as exc:  # bad TOML, bad UTF-8, or a number with too many digits
        raise ConfigError(f"{path}: is not TOML: {exc}") from exc


def _put_table(draft: Draft, document: Mapping[str, Any], source: str) -> None:
    # The file is ours alone: a forgotten "netra_ws." before a section must not pass in silence.
    for name in document:
        if name != "netra_ws":
            draft.refuse_unknown(f"[{name}]", source, f"[netra_ws.{name}]" if name in SECTIONS else "[netra_ws]")
    table = document.get("netra_ws", {})
    if not isinstance(table, dict):
        draft.refuse("netra_ws", source, "expected a table")
        return
    for name, value in table.items():
        if name in LEAVES:
            draft.put(name, value, source)
        elif name not in SECTIONS:
            draft.refuse_unknown(
                name, source, next(iter(difflib.get_close_matches(name, SECTIONS, n=1)), _suggest(name))
            )
        elif isinstance(value, dict):
            for key, inner in value.items():
                draft.put(f"{name}.{key}", inner, source)
        else:
            draft.refuse(name, source, "expected a table")


def _put_environ(draft: Draft, environ: Mapping[str, str]) -> None:
    for variable in sorted(environ):
        if not variable.startswith(_PREFIX) or variable.startswith(f"{_PREFIX}TEST_"):
            continue
        name = _ENV_NAMES.get(variable)
        if name is None:
            meant = _suggest(variable.removeprefix(_PREFIX).lower())
            draft.refuse_unknown(variable, "environment variable", meant and _env_name(meant))
        else:
            draft.put(name, _from_text(environ[variable], LEAVES[name].type), variable)


def _from_text(text: str, kind: object) -> object:
    """Read the text of an environment variable; text that cannot be read stays text, and its rule refuses it."""
    if kind == tuple[str, ...]:
        return [item.strip() for item in text.split(",") if item.strip()]
    kinds = typing.get_args(kind) or (kind,)
    if text == "" and type(None) in kinds:
        return None  # compose files pass a variable that is not set as an empty one
    if bool in kinds:
        return _WORDS.get(text.strip().lower(), text)
    for number in (int, float):
        if number in kinds and text.isascii():
            with contextlib.suppress(ValueError):
                return number(text)
    return text
