"""Every setting, its rule, and where its value came from.

Sources, weakest first: defaults < profile of the environment < TOML table ``[netra_ws]`` <
``NETRA_WS_<SECTION>_<NAME>`` < command line. Only ``server`` and ``cli`` know this module;
every other room is handed values. Times are seconds and sizes bytes where a name says so.
"""

import contextlib
import difflib
import os
import re
import secrets
import stat
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import cattrs

from netra_ws.errors import ConfigError

ENVIRONMENTS = ("development", "testing", "staging", "production")
#: HMAC-SHA256 keys below its output size are guessable (RFC 7518 §3.2); PyJWT would take one byte.
MIN_SECRET_BYTES = 32
_PREFIX = "NETRA_WS_"
_NO_OVERRIDES: Mapping[str, object] = MappingProxyType({})
_WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@attrs.frozen
class _Rule:
    """What a value must be; the same rule serves files, the environment and plain constructors."""

    expects: str
    holds: Callable[[Any], bool]

    def __call__(self, instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not self.holds(value):
            section = "" if isinstance(instance, Settings) else f"{type(instance).__name__.lower()}."
            raise ConfigError(f"{section}{attribute.name}: expected {self.expects}")

    def or_none(self) -> "_Rule":
        return _Rule(self.expects, lambda value: value is None or self.holds(value))


def _whole(least: int, most: int = 2**53) -> _Rule:
    limit = f"of at least {least}" if most == 2**53 else f"from {least} to {most}"
    return _Rule(f"a whole number {limit}", lambda value: type(value) is int and least <= value <= most)


def _finite(value: object) -> bool:
    # Not math.isfinite: it overflows on a huge int. NaN and infinity fail the comparison.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 2**53


def _encodes(value: object) -> bool:
    # A byte of the environment that is not UTF-8 arrives as a lone surrogate and fails much later.
    return type(value) is str and not any("\ud800" <= character <= "\udfff" for character in value)


def _one_of(*words: str) -> _Rule:
    return _Rule("one of " + ", ".join(words), lambda value: value in words)


def _url(*beginnings: str) -> _Rule:
    return _Rule(
        "a URL that starts with " + " or ".join(beginnings),
        lambda value: _encodes(value) and value.startswith(beginnings),
    )


def _is_price_table(value: object) -> bool:
    return isinstance(value, Mapping) and all(type(k) is str and isinstance(v, Price) for k, v in value.items())


_FLAG = _Rule("true or false", lambda value: type(value) is bool)
_TEXT = _Rule("text that is not empty", lambda value: _encodes(value) and value != "")
_LIST = _Rule(
    "a list of text", lambda value: isinstance(value, tuple) and all(_encodes(item) and item for item in value)
)
_SECRET = _Rule(
    f"at least {MIN_SECRET_BYTES} bytes of text",
    lambda value: _encodes(value) and len(value.encode()) >= MIN_SECRET_BYTES,
)
_POSITIVE = _Rule("a number above 0", lambda value: _finite(value) and value > 0)
_NOT_NEGATIVE = _Rule("a number of at least 0", lambda value: _finite(value) and value >= 0)
_PRICES = _Rule(
    "a table model = { input, output, cached } of prices per million tokens, in the TOML file", _is_price_table
)


def _mask_all(value: object) -> str:
    return "not set" if value is None else "***"


def mask_url(url: object) -> str:
    """Return the URL without its password, for logs and for ``check-config``."""
    # Greedy up to the last "@": a password that was not quoted may hold one itself.
    text = re.sub(r"^([^:]*://[^:@/?#]*):.*@", r"\1:***@", str(url), flags=re.DOTALL)
    return re.sub(r"(?i)([?&][a-z_]*(?:pass|pwd|secret|token)[a-z_]*=)[^&#]*", r"\1***", text)


def _setting(
    default: object,
    rule: _Rule,
    profile: Mapping[str, object] = _NO_OVERRIDES,
    mask: Callable[[object], str] | None = None,
) -> Any:
    metadata = {"profile": profile, "mask": mask}
    return attrs.field(default=default, validator=rule, repr=mask or True, metadata=metadata)


@attrs.frozen
class Server:
    """Where the server listens; port 0 picks one."""

    host: str = _setting("127.0.0.1", _TEXT)
    port: int = _setting(8000, _whole(0, 65535))
    tls_cert: str | None = _setting(None, _TEXT.or_none())
    tls_key: str | None = _setting(None, _TEXT.or_none())
    workers: int = _setting(1, _whole(1))
    behind_proxy: bool = _setting(False, _FLAG)
    trusted_proxies: tuple[str, ...] = _setting((), _LIST)
    console: bool = _setting(False, _FLAG, {"development": True})


@attrs.frozen
class Auth:
    """How tokens are checked; without a secret, development uses ``development_secret()``."""

    secret: str | None = _setting(None, _SECRET.or_none(), mask=_mask_all)
    jwks_url: str | None = _setting(None, _TEXT.or_none())
    jwks_file: str | None = _setting(None, _TEXT.or_none())
    algorithms: tuple[str, ...] = _setting(("HS256",), _LIST)
    issuer: str | None = _setting(None, _TEXT.or_none())
    audience: str | None = _setting(None, _TEXT.or_none())
    leeway_s: float = _setting(5.0, _NOT_NEGATIVE)
    expiry_grace_s: float = _setting(25.0, _NOT_NEGATIVE)
    query_token: bool = _setting(False, _FLAG, {"development": True})


@attrs.frozen
class Origins:
    """Which pages may connect; ``required`` None means that nobody has decided (a missing Origin passes)."""

    allowed: tuple[str, ...] = _setting((), _LIST)
    required: bool | None = _setting(None, _FLAG.or_none())
    max_tracked: int = _setting(1000, _whole(1))
    strikes: int = _setting(5, _whole(1))
    strike_window_s: float = _setting(600.0, _POSITIVE)


_MESSAGES = {"testing": 1000, "development": 300, "staging": 100, "production": 30}


@attrs.frozen
class Limits:
    """What one client, user, run or address may take."""

    max_message_bytes: int = _setting(2**20, _whole(1))
    messages_per_minute: int = _setting(30, _whole(1), _MESSAGES)
    pings_per_minute_per_connection: int = _setting(600, _whole(1))
    max_connections: int = _setting(20_000, _whole(1))
    max_connections_per_user: int = _setting(10, _whole(1))
    max_runs_per_user: int = _setting(8, _whole(1))
    connects_per_minute_per_address: int = _setting(600, _whole(1), {"testing": 6000, "development": 6000})
    failed_connects_per_minute_per_address: int = _setting(30, _whole(1), {"testing": 3000, "development": 3000})
    max_response_bytes: int = _setting(2**20, _whole(1))
    max_event_bytes: int = _setting(256 * 2**10, _whole(1))
    max_events_per_run: int = _setting(100_000, _whole(1))
    max_stored_bytes_per_user: int = _setting(256 * 2**20, _whole(1))
    max_threads_per_user: int = _setting(1000, _whole(1))
    max_queued_per_thread: int = _setting(16, _whole(1))
    max_jobs_per_connection: int = _setting(100, _whole(1))
    max_tracked_addresses: int = _setting(10_000, _whole(1))
    memory_high_mb: int | None = _setting(None, _whole(1).or_none())


@attrs.frozen
class Timing:
    """Every timeout, in seconds; ``resume_window_s`` 0 ends a left user's runs at once."""

    handshake_s: float = _setting(10.0, _POSITIVE)
    heartbeat_interval_s: float = _setting(25.0, _POSITIVE, {"development": 45.0, "staging": 30.0})
    pong_timeout_s: float = _setting(8.0, _POSITIVE)
    resume_window_s: float = _setting(30.0, _NOT_NEGATIVE)
    run_timeout_s: float = _setting(300.0, _POSITIVE)
    idle_timeout_s: float = _setting(120.0, _POSITIVE)
    drain_s: float = _setting(30.0, _NOT_NEGATIVE)
    finalise_s: float = _setting(5.0, _POSITIVE)


@attrs.frozen
class Agents:
    """Which agents there are besides the built-in ones, and how their runs end."""

    modules: tuple[str, ...] = _setting((), _LIST)
    default: str = _setting("assistant", _TEXT)
    on_disconnect: str = _setting("grace", _one_of("grace", "cancel", "continue"))
    allow_continue: bool = _setting(True, _FLAG)


@attrs.frozen
class History:
    """What replays from memory, per stream, and how long stored events live."""

    ring_events: int = _setting(2000, _whole(1))
    ring_bytes: int = _setting(4 * 2**20, _whole(1))
    retention_days: float = _setting(30.0, _POSITIVE)


@attrs.frozen
class Store:
    """Where the ledger is kept; ``power`` waits for the disk."""

    url: str = _setting("sqlite:///netra_ws.db", _url("sqlite:///", "memory:", "postgresql"), mask=mask_url)
    durability: str = _setting("process", _one_of("process", "power"))


@attrs.frozen
class Backplane:
    """What joins several processes."""

    url: str = _setting("local:", _url("local:", "redis://", "rediss://"), mask=mask_url)


@attrs.frozen
class Llm:
    """An OpenAI-compatible model server."""

    base_url: str | None = _setting(None, _TEXT.or_none(), mask=lambda url: mask_url(url) if url else "not set")
    model: str | None = _setting(None, _TEXT.or_none())
    api_key: str | None = _setting(None, _TEXT.or_none(), mask=_mask_all)


@attrs.frozen
class Price:
    """Cost of one model per million tokens."""

    input: float = attrs.field(validator=_NOT_NEGATIVE)
    output: float = attrs.field(validator=_NOT_NEGATIVE)
    cached: float | None = attrs.field(default=None, validator=_NOT_NEGATIVE.or_none())


@attrs.frozen
class Log:
    """How the log looks; ``format`` None means ``console`` on a terminal, else ``json``."""

    format: str | None = _setting(None, _one_of("console", "json").or_none())
    level: str = _setting("info", _one_of("debug", "info", "warning", "error", "critical"))


def _profiled(type_: type) -> Any:
    def with_profile(settings: "Settings") -> object:
        profiles = {field.name: field.metadata["profile"] for field in attrs.fields(type_)}
        environment = settings.environment
        return type_(**{name: values[environment] for name, values in profiles.items() if environment in values})

    return attrs.Factory(with_profile, takes_self=True)


def _read_only(table: Mapping[str, Price]) -> Mapping[str, Price]:
    return MappingProxyType(dict(table))


@attrs.frozen
class Settings:
    """All settings of one server; ``Settings()`` is what development uses.

    A section that is left out follows the profile of ``environment``. A section that is written
    by hand does not: use ``make`` to change single values of a profile.
    """

    environment: str = _setting("development", _one_of(*ENVIRONMENTS))
    server: Server = attrs.field(default=_profiled(Server))
    auth: Auth = attrs.field(default=_profiled(Auth))
    origins: Origins = attrs.field(default=_profiled(Origins))
    limits: Limits = attrs.field(default=_profiled(Limits))
    timing: Timing = attrs.field(default=_profiled(Timing))
    agents: Agents = attrs.field(default=_profiled(Agents))
    history: History = attrs.field(default=_profiled(History))
    store: Store = attrs.field(default=_profiled(Store))
    backplane: Backplane = attrs.field(default=_profiled(Backplane))
    llm: Llm = attrs.field(default=_profiled(Llm))
    prices: Mapping[str, Price] = attrs.field(
        factory=dict,
        converter=_read_only,
        validator=_PRICES,
        metadata={"profile": {}, "mask": None},
    )
    log: Log = attrs.field(default=_profiled(Log))

    @classmethod
    def make(cls, overrides: Mapping[str, object] = _NO_OVERRIDES, *, environment: str = "development") -> "Settings":
        """Build settings from the profile of an environment and dotted names such as ``limits.max_runs_per_user``.

        Raises:
            ConfigError: one line for each unknown name and each wrong value.
        """
        draft = _Draft()
        for name, value in {"environment": environment, **overrides}.items():
            draft.put(name, value, "code")
        return draft.finish().settings


@attrs.frozen
class Loaded:
    """Settings with the source of each value by dotted name."""

    settings: Settings
    sources: Mapping[str, str]


@attrs.frozen
class Line:
    """One row of ``check-config``; secrets are already masked."""

    name: str
    value_text: str
    source: str


def _leaves() -> "Iterator[tuple[str, attrs.Attribute[Any]]]":
    for top in attrs.fields(Settings):
        if isinstance(top.type, type) and attrs.has(top.type):
            yield from ((f"{top.name}.{field.name}", field) for field in attrs.fields(top.type))
        else:
            yield top.name, top


LEAVES: "Mapping[str, attrs.Attribute[Any]]" = MappingProxyType(dict(_leaves()))
_SECTIONS = tuple(dict.fromkeys(name.partition(".")[0] for name in LEAVES if "." in name))


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
        if not _finite(value):
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


class _Draft:
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
    draft = _Draft()
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


def _put_table(draft: _Draft, document: Mapping[str, Any], source: str) -> None:
    # The file is ours alone: a forgotten "netra_ws." before a section must not pass in silence.
    for name in document:
        if name != "netra_ws":
            draft.refuse_unknown(f"[{name}]", source, f"[netra_ws.{name}]" if name in _SECTIONS else "[netra_ws]")
    table = document.get("netra_ws", {})
    if not isinstance(table, dict):
        draft.refuse("netra_ws", source, "expected a table")
        return
    for name, value in table.items():
        if name in LEAVES:
            draft.put(name, value, source)
        elif name not in _SECTIONS:
            draft.refuse_unknown(
                name, source, next(iter(difflib.get_close_matches(name, _SECTIONS, n=1)), _suggest(name))
            )
        elif isinstance(value, dict):
            for key, inner in value.items():
                draft.put(f"{name}.{key}", inner, source)
        else:
            draft.refuse(name, source, "expected a table")


def _put_environ(draft: _Draft, environ: Mapping[str, str]) -> None:
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


def describe(loaded: Loaded) -> list[Line]:
    """Return every setting in order, as ``check-config`` prints it."""
    lines = []
    for name, field in LEAVES.items():
        section, _, key = name.rpartition(".")
        value = getattr(getattr(loaded.settings, section) if section else loaded.settings, key)
        mask = field.metadata["mask"]
        lines.append(Line(name, mask(value) if mask else _value_text(value), loaded.sources[name]))
    return lines


def _value_text(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(value) or "none"
    return str(value)


def problems(settings: Settings) -> list[str]:
    """Return what stops a start with these settings, one line each; none means that it can start."""
    return [*_not_available(settings), *_unsafe(settings)]


def _not_available(settings: Settings) -> Iterator[str]:
    server, auth, llm = settings.server, settings.auth, settings.llm
    later = {
        "server.tls_cert": server.tls_cert is not None,
        "server.tls_key": server.tls_key is not None,
        "server.workers above 1": server.workers > 1,
        "server.behind_proxy": server.behind_proxy,
        "server.trusted_proxies": bool(server.trusted_proxies),
        "auth.jwks_url": auth.jwks_url is not None,
        "auth.jwks_file": auth.jwks_file is not None,
        "auth.algorithms other than HS256": auth.algorithms != ("HS256",),
        "store.url for PostgreSQL": settings.store.url.startswith("postgresql"),
        "backplane.url other than local:": settings.backplane.url != "local:",
        "llm.base_url": llm.base_url is not None,
        "llm.model": llm.model is not None,
        "llm.api_key": llm.api_key is not None,
    }
    for what, wanted in later.items():
        if wanted:
            yield f"{what}: not available yet"


def _unsafe(settings: Settings) -> Iterator[str]:
    environment, auth, origins = settings.environment, settings.auth, settings.origins
    if environment != "development" and auth.secret is None:
        yield f"auth.secret: required in {environment}, at least {MIN_SECRET_BYTES} bytes"
    if environment in ("staging", "production") and not origins.allowed and origins.required is not False:
        yield (
            f"origins.allowed: no page may connect in {environment}; list the origins, "
            "or set origins.required to false to serve only clients that send no Origin"
        )
    if environment == "production" and auth.query_token:
        yield "auth.query_token: not in production, tokens would end up in access logs"


def warnings(settings: Settings) -> list[str]:
    """Return what deserves a second look before these settings meet the world, one line each."""
    if settings.environment not in ("staging", "production"):
        return []
    doubtful = {
        "auth.issuer: not set, tokens of any issuer that knows the secret are accepted": settings.auth.issuer is None,
        "auth.audience: not set, tokens made for other services are accepted": settings.auth.audience is None,
        "auth.query_token: tokens in URLs end up in access logs": settings.auth.query_token,
        "store.url: memory: forgets everything when the process ends": settings.store.url.startswith("memory:"),
        "server.console: the console page is public": settings.server.console,
    }
    return [line for line, doubt in doubtful.items() if doubt]


def development_secret(folder: Path | None = None) -> str:
    """Return the secret that all commands of this user share in development, made on first use.

    It is kept in *folder*, by default the user's state folder, in a file that only the user can read.

    Raises:
        ConfigError: the file is open to others, too short, or cannot be made.
    """
    if folder is None:
        from platformdirs import user_state_path  # only development pays for this import

        folder = user_state_path("netra_ws")
    path = folder / "development_secret"
    try:
        if not path.exists():
            _make_secret(path)
        return _read_secret(path)
    except OSError as exc:
        raise ConfigError(f"auth.secret: {path} cannot be used: {exc.strerror}; set auth.secret instead") from exc


def _make_secret(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
        # A link appears complete or not at all and never replaces: of two first starts, one wins for both.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def _read_secret(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise ConfigError(f"auth.secret: {path} must be a file that only you can read (chmod 600), or be removed")
        content = file.read(4096)
    secret = content.decode("utf-8", "replace").strip()
    if not _SECRET.holds(secret):
        raise ConfigError(f"auth.secret: {path} holds less than {MIN_SECRET_BYTES} bytes; remove it to get a new one")
    return secret
