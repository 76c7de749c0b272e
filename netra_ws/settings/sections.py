"""Every setting with its default, its rule and its profile, in sections as SETTINGS.md has them."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from .rules import (
    ENVIRONMENTS,
    FLAG,
    LEEWAY,
    LIST,
    NETWORKS,
    NO_OVERRIDES,
    NOT_NEGATIVE,
    POSITIVE,
    SECRET,
    TEXT,
    Rule,
    mask_address,
    mask_all,
    mask_url,
    one_of,
    url,
    whole,
)


def _setting(
    default: object,
    rule: Rule,
    profile: Mapping[str, object] = NO_OVERRIDES,
    mask: Callable[[object], str] | None = None,
) -> Any:
    metadata = {"profile": profile, "mask": mask}
    return attrs.field(default=default, validator=rule, repr=mask or True, metadata=metadata)


def _algorithms_text(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) and value else "what the keys need"


@attrs.frozen
class Server:
    """Where the server listens; port 0 picks one."""

    host: str = _setting("127.0.0.1", TEXT)
    port: int = _setting(8000, whole(0, 65535))
    tls_cert: str | None = _setting(None, TEXT.or_none())
    tls_key: str | None = _setting(None, TEXT.or_none())
    workers: int = _setting(1, whole(1))
    behind_proxy: bool = _setting(False, FLAG)
    trusted_proxies: tuple[str, ...] = _setting((), NETWORKS)
    console: bool = _setting(False, FLAG, {"development": True})


@attrs.frozen
class Auth:
    """How tokens are checked; without a secret, development uses ``development_secret()``.

    Empty ``algorithms`` are those that the keys need: HS256 with a secret, RS256, ES256 and EdDSA with public keys.
    """

    secret: str | None = _setting(None, SECRET.or_none(), mask=mask_all)
    jwks_url: str | None = _setting(None, TEXT.or_none(), mask=mask_address)
    jwks_file: str | None = _setting(None, TEXT.or_none())
    algorithms: tuple[str, ...] = _setting((), LIST, mask=_algorithms_text)
    issuer: str | None = _setting(None, TEXT.or_none())
    audience: str | None = _setting(None, TEXT.or_none())
    leeway_s: float = _setting(5.0, LEEWAY)
    expiry_grace_s: float = _setting(25.0, NOT_NEGATIVE)
    query_token: bool = _setting(False, FLAG, {"development": True})


@attrs.frozen
class Origins:
    """Which pages may connect; ``required`` None means that nobody has decided (a missing Origin passes)."""

    allowed: tuple[str, ...] = _setting((), LIST)
    required: bool | None = _setting(None, FLAG.or_none())
    max_tracked: int = _setting(1000, whole(1))
    strikes: int = _setting(5, whole(1))
    strike_window_s: float = _setting(600.0, POSITIVE)


_MESSAGES = {"testing": 1000, "development": 300, "staging": 100, "production": 30}


@attrs.frozen
class Limits:
    """What one client, user, run or address may take."""

    max_message_bytes: int = _setting(2**20, whole(1))
    messages_per_minute: int = _setting(30, whole(1), _MESSAGES)
    pings_per_minute_per_connection: int = _setting(600, whole(1))
    max_connections: int = _setting(20_000, whole(1))
    max_connections_per_user: int = _setting(10, whole(1))
    max_runs_per_user: int = _setting(8, whole(1))
    connects_per_minute_per_address: int = _setting(600, whole(1), {"testing": 6000, "development": 6000})
    failed_connects_per_minute_per_address: int = _setting(30, whole(1), {"testing": 3000, "development": 3000})
    max_response_bytes: int = _setting(2**20, whole(1))
    max_event_bytes: int = _setting(256 * 2**10, whole(1))
    max_events_per_run: int = _setting(100_000, whole(1))
    max_stored_bytes_per_user: int = _setting(256 * 2**20, whole(1))
    max_threads_per_user: int = _setting(1000, whole(1))
    max_queued_per_thread: int = _setting(16, whole(1))
    max_jobs_per_connection: int = _setting(100, whole(1))
    max_tracked_addresses: int = _setting(10_000, whole(1))
    memory_high_mb: int | None = _setting(None, whole(1).or_none())


@attrs.frozen
class Timing:
    """Every timeout, in seconds; ``resume_window_s`` 0 ends a left user's runs at once."""

    handshake_s: float = _setting(10.0, POSITIVE)
    heartbeat_interval_s: float = _setting(25.0, POSITIVE, {"development": 45.0, "staging": 30.0})
    pong_timeout_s: float = _setting(8.0, POSITIVE)
    resume_window_s: float = _setting(30.0, NOT_NEGATIVE)
    run_timeout_s: float = _setting(300.0, POSITIVE)
    idle_timeout_s: float = _setting(120.0, POSITIVE)
    drain_s: float = _setting(30.0, NOT_NEGATIVE)
    finalise_s: float = _setting(5.0, POSITIVE)


@attrs.frozen
class Agents:
    """Which agents there are besides the built-in ones, and how their runs end."""

    modules: tuple[str, ...] = _setting((), LIST)
    default: str = _setting("assistant", TEXT)
    on_disconnect: str = _setting("grace", one_of("grace", "cancel", "continue"))
    allow_continue: bool = _setting(True, FLAG)


@attrs.frozen
class History:
    """What replays from memory, per stream, and how long stored events live."""

    ring_events: int = _setting(2000, whole(1))
    ring_bytes: int = _setting(4 * 2**20, whole(1))
    retention_days: float = _setting(30.0, POSITIVE)


@attrs.frozen
class Store:
    """Where the ledger is kept; ``power`` waits for the disk."""

    url: str = _setting("sqlite:///netra_ws.db", url("sqlite:///", "memory:", "postgresql"), mask=mask_url)
    durability: str = _setting("process", one_of("process", "power"))


@attrs.frozen
class Backplane:
    """What joins several processes."""

    url: str = _setting("local:", url("local:", "redis://", "rediss://"), mask=mask_url)


@attrs.frozen
class Llm:
    """An OpenAI-compatible model server; the environment's own proxies are not used for it, only ``proxy``."""

    base_url: str | None = _setting(None, TEXT.or_none(), mask=mask_url)
    model: str | None = _setting(None, TEXT.or_none())
    api_key: str | None = _setting(None, TEXT.or_none(), mask=mask_all)
    proxy: str | None = _setting(None, TEXT.or_none(), mask=mask_url)


@attrs.frozen
class Price:
    """Cost of one model per million tokens."""

    input: float = attrs.field(validator=NOT_NEGATIVE)
    output: float = attrs.field(validator=NOT_NEGATIVE)
    cached: float | None = attrs.field(default=None, validator=NOT_NEGATIVE.or_none())


@attrs.frozen
class Log:
    """How the log looks; ``format`` None means ``console`` on a terminal, else ``json``."""

    format: str | None = _setting(None, one_of("console", "json").or_none())
    level: str = _setting("info", one_of("debug", "info", "warning", "error", "critical"))


def _is_price_table(value: object) -> bool:
    return isinstance(value, Mapping) and all(type(k) is str and isinstance(v, Price) for k, v in value.items())


_PRICES = Rule(
    "a table model = { input, output, cached } of prices per million tokens, in the TOML file", _is_price_table
)


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

    environment: str = _setting("development", one_of(*ENVIRONMENTS))
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
    def make(cls, overrides: Mapping[str, object] = NO_OVERRIDES, *, environment: str = "development") -> "Settings":
        """Build settings from the profile of an environment and dotted names such as ``limits.max_runs_per_user``.

        Raises:
            ConfigError: one line for each unknown name and each wrong value.
        """
        from .loading import Draft  # builds these classes, so it stands above them

        draft = Draft()
        for name, value in {"environment": environment, **overrides}.items():
            draft.put(name, value, "code")
        return draft.finish().settings


def _leaves() -> "Iterator[tuple[str, attrs.Attribute[Any]]]":
    for top in attrs.fields(Settings):
        if isinstance(top.type, type) and attrs.has(top.type):
            yield from ((f"{top.name}.{field.name}", field) for field in attrs.fields(top.type))
        else:
            yield top.name, top


LEAVES: "Mapping[str, attrs.Attribute[Any]]" = MappingProxyType(dict(_leaves()))
SECTIONS = tuple(dict.fromkeys(name.partition(".")[0] for name in LEAVES if "." in name))
