import os
import threading
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netra_ws.errors import ConfigError
from netra_ws.settings import (
    ENVIRONMENTS,
    LEAVES,
    Auth,
    Limits,
    Loaded,
    Price,
    Settings,
    Store,
    describe,
    development_secret,
    load,
    mask_url,
    problems,
    warnings,
)

SECRET = "s" * 32
NOTHING: Mapping[str, str] = {}


def load_text(folder: Path, toml: str = "", environ: Mapping[str, str] = NOTHING, **argv: object) -> Loaded:
    (folder / "netra_ws.toml").write_text(toml)
    return load({name.replace("__", "."): value for name, value in argv.items()}, None, environ, folder)


def complaint(folder: Path, toml: str = "", environ: Mapping[str, str] = NOTHING, **argv: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_text(folder, toml, environ, **argv)
    return str(caught.value)


class TestDefaults:
    def test_plain_settings_are_those_of_development(self) -> None:
        """Settings() is what development uses."""
        settings = Settings()
        assert settings == Settings.make()
        assert settings.environment == "development"
        assert (settings.server.host, settings.server.port, settings.server.console) == ("127.0.0.1", 8000, True)
        assert settings.store.url == "sqlite:///netra_ws.db"
        assert problems(settings) == []

    @pytest.mark.parametrize(
        ("environment", "messages", "connects", "failed", "heartbeat", "console", "query_token"),
        [
            ("development", 300, 6000, 3000, 45, True, True),
            ("testing", 1000, 6000, 3000, 25, False, False),
            ("staging", 100, 600, 30, 30, False, False),
            ("production", 30, 600, 30, 25, False, False),
        ],
    )
    def test_profiles(
        self,
        environment: str,
        messages: int,
        connects: int,
        failed: int,
        heartbeat: float,
        console: bool,
        query_token: bool,
    ) -> None:
        """Each environment has the values of its profile, however the settings are made."""
        for settings in (Settings(environment=environment), Settings.make(environment=environment)):
            assert settings.limits.messages_per_minute == messages
            assert settings.limits.connects_per_minute_per_address == connects
            assert settings.limits.failed_connects_per_minute_per_address == failed
            assert settings.timing.heartbeat_interval_s == heartbeat
            assert settings.server.console is console
            assert settings.auth.query_token is query_token

    def test_a_section_alone_is_careful(self) -> None:
        """A section built by hand has the values of production, the strictest profile."""
        assert Limits().messages_per_minute == 30
        assert Auth().query_token is False

    def test_every_setting_has_a_rule_that_its_default_keeps(self) -> None:
        """No setting is without a rule, and every profile keeps the rules."""
        assert all(field.validator is not None for field in LEAVES.values())
        for environment in ENVIRONMENTS:
            assert Settings(environment=environment).environment == environment

    def test_settings_are_frozen(self) -> None:
        """Settings are read once and never change."""
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            Settings().limits.max_connections = 5  # type: ignore[misc]
        with pytest.raises(TypeError):
            Settings().prices["x"] = Price(1, 2)  # type: ignore[index]


class TestMake:
    def test_overrides(self) -> None:
        """Single values change, everything else follows the profile."""
        settings = Settings.make({"limits.max_runs_per_user": 3, "auth.secret": SECRET}, environment="testing")
        assert settings.limits == attrs.evolve(Settings(environment="testing").limits, max_runs_per_user=3)
        assert settings.auth.secret == SECRET

    def test_environment_as_an_override(self) -> None:
        """The environment may stand among the overrides, and its profile applies."""
        assert Settings.make({"environment": "staging"}).limits.messages_per_minute == 100

    def test_all_mistakes_at_once(self) -> None:
        """Every unknown name and every wrong value has its own line."""
        with pytest.raises(ConfigError) as caught:
            Settings.make({"limits.max_run_per_user": 3, "server.port": "8000", "timing.drain_s": -1})
        assert str(caught.value).splitlines() == [
            "limits.max_run_per_user (code): there is no such setting; did you mean limits.max_runs_per_user?",
            "server.port (code): expected a whole number from 0 to 65535, got '8000'",
            "timing.drain_s (code): expected a number of at least 0, got -1",
        ]

    def test_constructors_check_as_well(self) -> None:
        """A wrong value in a plain constructor names its setting, too."""
        with pytest.raises(ConfigError, match=r"limits\.max_connections: expected a whole number of at least 1"):
            Limits(max_connections=0)
        with pytest.raises(ConfigError, match=r"^environment: expected one of development"):
            Settings(environment="prod")


class TestRules:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("server.port", 0),
            ("server.port", 65535),
            ("timing.resume_window_s", 0),
            ("timing.drain_s", 0.5),
            ("limits.memory_high_mb", None),
            ("limits.memory_high_mb", 512),
            ("origins.required", False),
            ("origins.allowed", ["https://a.example"]),
            ("agents.modules", ()),
            ("agents.on_disconnect", "cancel"),
            ("store.url", "memory:"),
            ("store.url", "postgresql+psycopg://h/db"),
            ("backplane.url", "rediss://h"),
            ("log.format", "json"),
            ("server.trusted_proxies", ["10.0.0.1", "10.1.0.0/16", "fd00::/8", "::1"]),
            ("prices", {"m": {"input": 1, "output": 2.5}}),
            ("prices", {"m": Price(1, 2, 0)}),
        ],
    )
    def test_accepted(self, name: str, value: object) -> None:
        """The whole range of a setting is accepted."""
        Settings.make({name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("environment", "prod"),
            ("environment", 5),
            ("server.port", 65536),
            ("server.port", -1),
            ("server.port", True),
            ("server.port", 80.0),
            ("server.host", ""),
            ("server.host", "\udcff"),
            ("server.console", 1),
            ("server.trusted_proxies", ["proxy.example"]),
            ("server.trusted_proxies", ["10.0.0.0/33"]),
            ("server.trusted_proxies", [""]),
            ("limits.max_connections", 0),
            ("limits.max_connections", 2**53 + 1),
            pytest.param("limits.max_connections", 16**9999, id="more digits than Python prints"),
            ("limits.memory_high_mb", 0),
            ("history.ring_events", 0),
            ("history.retention_days", 0),
            ("timing.pong_timeout_s", 0),
            ("timing.pong_timeout_s", float("nan")),
            ("timing.pong_timeout_s", float("inf")),
            ("timing.pong_timeout_s", 10**400),
            ("timing.pong_timeout_s", True),
            ("timing.pong_timeout_s", "8"),
            ("origins.allowed", "https://a.example"),
            ("origins.allowed", [5]),
            ("origins.allowed", [""]),
            ("origins.required", "no"),
            ("auth.secret", "s" * 31),
            ("auth.secret", 5),
            ("agents.on_disconnect", "stop"),
            ("store.url", "mysql://h"),
            ("store.durability", "disk"),
            ("backplane.url", "local"),
            ("log.level", "INFO"),
            ("prices", 5),
            ("prices", {"m": 5}),
            ("prices", {"m": {"input": 1}}),
            ("prices", {"m": {"input": 1, "output": 2, "other": 3}}),
            ("prices", {"m": {"input": "1", "output": 2}}),
            ("prices", {"m": {"input": -1, "output": 2}}),
            ("prices", {5: {"input": 1, "output": 2}}),
        ],
    )
    def test_refused(self, name: str, value: object) -> None:
        """A value of another type or outside the range is refused in one line that names the setting."""
        with pytest.raises(ConfigError) as caught:
            Settings.make({name: value})
        assert str(caught.value).startswith(f"{name} (code): expected ")
        assert "\n" not in str(caught.value)

    def test_long_values_are_shortened(self) -> None:
        """A wrong value is shown, but not a whole page of it."""
        with pytest.raises(ConfigError) as caught:
            Settings.make({"server.port": "x" * 10_000})
        assert len(str(caught.value)) < 200

    @given(
        st.sampled_from(sorted(LEAVES)),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=2),
    )
    def test_any_value(self, name: str, value: object) -> None:
        """Any value of any type is taken or refused, never an error of ours."""
        try:
            settings = Settings.make({name: value})
        except ConfigError as error:
            assert name in str(error)  # noqa: PT017
        else:
            assert isinstance(settings, Settings)


class TestSources:
    def test_each_source_is_stronger_than_the_one_before(self, tmp_path: Path) -> None:
        """Defaults yield to the profile, then to the file, the environment and the command line."""
        name = "limits.messages_per_minute"
        variable = "NETRA_WS_LIMITS_MESSAGES_PER_MINUTE"
        toml = "[netra_ws]\nenvironment = 'staging'\n[netra_ws.limits]\nmessages_per_minute = 7"

        def outcome(loaded: Loaded) -> tuple[int, str]:
            return loaded.settings.limits.messages_per_minute, loaded.sources[name]

        assert outcome(load({}, None, {}, tmp_path)) == (300, "profile development")
        assert outcome(load_text(tmp_path, "[netra_ws]\nenvironment = 'staging'")) == (100, "profile staging")
        assert outcome(load_text(tmp_path, toml)) == (7, "netra_ws.toml")
        assert outcome(load_text(tmp_path, toml, {variable: "8"})) == (8, variable)
        assert outcome(load_text(tmp_path, toml, {variable: "8"}, limits__messages_per_minute=9)) == (9, "command line")

    def test_sources_of_the_rest(self, tmp_path: Path) -> None:
        """Every setting has a source, also where nobody has set anything."""
        loaded = load({}, None, {}, tmp_path)
        assert loaded.sources.keys() == LEAVES.keys()
        assert loaded.sources["store.url"] == "default"
        assert loaded.sources["environment"] == "default"

    def test_environment_from_each_source(self, tmp_path: Path) -> None:
        """The strongest source of the environment chooses the profile."""
        environ = {"NETRA_WS_ENVIRONMENT": "testing"}
        assert load_text(tmp_path, "", environ).settings.limits.messages_per_minute == 1000
        assert load_text(tmp_path, "", environ, environment="production").settings.limits.messages_per_minute == 30

    def test_options_that_were_not_given(self, tmp_path: Path) -> None:
        """None from the command line means that the option was not given."""
        assert load({"server.port": None}, None, {}, tmp_path).settings.server.port == 8000


class TestFile:
    def test_a_file_of_all_kinds(self, tmp_path: Path) -> None:
        """Every kind of value can be written in TOML."""
        toml = """
            [netra_ws]
            environment = "production"
            [netra_ws.origins]
            allowed = ["https://a.example", "https://*.b.example"]
            required = true
            [netra_ws.timing]
            drain_s = 5
            [netra_ws.prices."gpt-4o"]
            input = 2.5
            output = 10
        """
        settings = load_text(tmp_path, toml).settings
        assert settings.origins.allowed == ("https://a.example", "https://*.b.example")
        assert settings.origins.required is True
        assert (settings.timing.drain_s, type(settings.timing.drain_s)) == (5.0, float)
        assert settings.prices == {"gpt-4o": Price(2.5, 10.0, None)}

    def test_named_file(self, tmp_path: Path) -> None:
        """A file named on the command line is read instead, from the current folder if its path is relative."""
        (tmp_path / "netra_ws.toml").write_text("broken")
        (tmp_path / "other.toml").write_text("[netra_ws.server]\nport = 1")
        for path in (Path("other.toml"), tmp_path / "other.toml"):
            loaded = load({}, path, {}, tmp_path)
            assert (loaded.settings.server.port, loaded.sources["server.port"]) == (1, str(path))

    @pytest.mark.parametrize("content", [b"server = ", b"\xff", b"a = 1" + b"0" * 5000])
    def test_not_toml(self, tmp_path: Path, content: bytes) -> None:
        """A file that is not TOML is one line with its name."""
        (tmp_path / "netra_ws.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"netra_ws\.toml: is not TOML"):
            load({}, None, {}, tmp_path)

    def test_no_such_file(self, tmp_path: Path) -> None:
        """A named file that cannot be read is one line with its name."""
        for path in (tmp_path / "missing.toml", tmp_path):
            with pytest.raises(ConfigError, match="cannot be read"):
                load({}, path, {}, tmp_path)

    @pytest.mark.parametrize(
        ("toml", "line"),
        [
            (
                "[server]\nport = 1",
                "[server] (netra_ws.toml): there is no such setting; did you mean [netra_ws.server]?",
            ),
            ("[other]", "[other] (netra_ws.toml): there is no such setting; did you mean [netra_ws]?"),
            ("netra_ws = 5", "netra_ws (netra_ws.toml): expected a table"),
            ("[netra_ws]\nserver = 5", "server (netra_ws.toml): expected a table"),
            ("[netra_ws.limit]", "limit (netra_ws.toml): there is no such setting; did you mean limits?"),
            ("[netra_ws]\nport = 1", "port (netra_ws.toml): there is no such setting; did you mean server.port?"),
            (
                "[netra_ws.server]\nring_bytes = 1",
                "server.ring_bytes (netra_ws.toml): there is no such setting; did you mean history.ring_bytes?",
            ),
            (
                "[netra_ws.history]\nring_event = 1",
                "history.ring_event (netra_ws.toml): there is no such setting; did you mean history.ring_events?",
            ),
            ("[netra_ws.log]\nqqqqqq = 1", "log.qqqqqq (netra_ws.toml): there is no such setting"),
            (
                "[netra_ws.server]\nport = '5'",
                "server.port (netra_ws.toml): expected a whole number from 0 to 65535, got '5'",
            ),
        ],
    )
    def test_mistakes(self, tmp_path: Path, toml: str, line: str) -> None:
        """Each mistake in a file is one line with what was probably meant."""
        assert complaint(tmp_path, toml) == line

    def test_a_mistake_counts_where_a_stronger_source_wins(self, tmp_path: Path) -> None:
        """A wrong value is told even if another source hides it today."""
        assert "netra_ws.toml" in complaint(tmp_path, "[netra_ws.server]\nport = -1", {}, server__port=1)


class TestEnviron:
    @pytest.mark.parametrize(
        ("variable", "text", "value"),
        [
            ("SERVER_PORT", "9", 9),
            ("SERVER_PORT", " 9 ", 9),
            ("SERVER_CONSOLE", "off", False),
            ("SERVER_CONSOLE", "YES", True),
            ("ORIGINS_REQUIRED", "0", False),
            ("ORIGINS_REQUIRED", "", None),
            ("ORIGINS_ALLOWED", "https://a.example, https://b.example,", ("https://a.example", "https://b.example")),
            ("ORIGINS_ALLOWED", "", ()),
            ("TIMING_DRAIN_S", "1.5", 1.5),
            ("TIMING_DRAIN_S", "2", 2.0),
            ("LIMITS_MEMORY_HIGH_MB", "512", 512),
            ("LIMITS_MEMORY_HIGH_MB", "", None),
            ("LLM_MODEL", "5", "5"),
            ("LLM_API_KEY", "", None),
        ],
    )
    def test_values(self, tmp_path: Path, variable: str, text: str, value: object) -> None:
        """Text is read by the type of its setting, and an empty text unsets what may be unset."""
        settings = load({}, None, {f"NETRA_WS_{variable}": text}, tmp_path).settings
        section, _, name = variable.lower().partition("_")
        assert getattr(getattr(settings, section), name) == value

    @pytest.mark.parametrize(
        ("variable", "text"),
        [
            ("SERVER_PORT", ""),
            ("SERVER_PORT", "nine"),
            ("SERVER_PORT", "９"),
            ("SERVER_PORT", "9.0"),
            ("SERVER_PORT", "9" * 5000),
            ("SERVER_CONSOLE", "maybe"),
            ("TIMING_DRAIN_S", "nan"),
            ("TIMING_DRAIN_S", "1e999"),
            ("SERVER_HOST", ""),
            ("SERVER_HOST", "\udcff"),
            ("ENVIRONMENT", "prod"),
            ("PRICES", "{}"),
        ],
    )
    def test_wrong_values(self, tmp_path: Path, variable: str, text: str) -> None:
        """A text that its setting does not allow is refused in one line that names the variable."""
        with pytest.raises(ConfigError, match=rf"^[a-z._]+ \(NETRA_WS_{variable}\): expected [^\n]+$"):
            load({}, None, {f"NETRA_WS_{variable}": text}, tmp_path)

    def test_unknown_variables(self, tmp_path: Path) -> None:
        """An unknown variable of ours is an error with a suggestion; those of the tests and of others are not."""
        load({}, None, {"NETRA_WS_TEST_REDIS": "x", "NETRA_OTHER": "x", "PATH": "x"}, tmp_path)
        with pytest.raises(ConfigError) as caught:
            load({}, None, {"NETRA_WS_SERVER_PROT": "1"}, tmp_path)
        assert str(caught.value) == (
            "NETRA_WS_SERVER_PROT (environment variable): there is no such setting; did you mean NETRA_WS_SERVER_PORT?"
        )


class TestSecretsAreMasked:
    def test_repr_and_check(self, tmp_path: Path) -> None:
        """No secret appears in a repr or in the lines of check-config."""
        environ = {
            "NETRA_WS_AUTH_SECRET": "hunter2" * 5,
            "NETRA_WS_LLM_API_KEY": "hunter2",
            "NETRA_WS_LLM_BASE_URL": "https://u:hunter2@h/v1",
            "NETRA_WS_LLM_PROXY": "http://u:hunter2@h",
            "NETRA_WS_STORE_URL": "postgresql+psycopg://u:hunter2@h/db",
            "NETRA_WS_BACKPLANE_URL": "redis://:hunter2@h",
        }
        loaded = load({}, None, environ, tmp_path)
        text = repr(loaded) + "\n".join(line.value_text for line in describe(loaded))
        assert "hunter2" not in text
        assert "postgresql+psycopg://u:***@h/db" in text

    @pytest.mark.parametrize(
        "name",
        ["auth.secret", "auth.jwks_url", "store.url", "backplane.url", "llm.base_url", "llm.api_key", "llm.proxy"],
    )
    def test_complaints(self, name: str) -> None:
        """A wrong value of a secret setting is not shown."""
        with pytest.raises(ConfigError) as caught:
            Settings.make({name: ["hunter2"]})
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "masked"),
        [
            ("sqlite:///netra_ws.db", "sqlite:///netra_ws.db"),
            ("sqlite:///C:/a@b.db", "sqlite:///C:/a@b.db"),
            ("memory:", "memory:"),
            ("redis://h:6379/0", "redis://h:6379/0"),
            ("redis://u:p@ss:/w@h:1/0", "redis://u:***@h:1/0"),
            ("postgresql://h/db?user=u&password=p&x=1", "postgresql://h/db?user=u&password=***&x=1"),
            ("https://h/v1?x-api-key=k&Api_Key2=k#f", "https://h/v1?x-api-key=***&Api_Key2=***#f"),
            ("postgresql+psycopg://u:p%40@h:1,i:2/db?options=-c", "postgresql+psycopg://u:***@h:1,i:2/db?options=-c"),
        ],
    )
    def test_urls(self, url: str, masked: str) -> None:
        """A URL keeps everything but its password, however that was written."""
        assert mask_url(url) == masked


def test_describe(tmp_path: Path) -> None:
    """check-config has one line for every setting, readable and with its source."""
    toml = "[netra_ws.origins]\nallowed = ['https://a.example', 'https://b.example']\n[netra_ws.prices.m]\ninput=1\noutput=2"
    lines = {line.name: line for line in describe(load_text(tmp_path, toml))}
    assert list(lines) == list(LEAVES)
    texts = {name: line.value_text for name, line in lines.items()}
    assert texts["origins.allowed"] == "https://a.example, https://b.example"
    assert texts["prices"] == "m"
    assert texts["agents.modules"] == "none"
    assert texts["auth.secret"] == "not set"
    assert texts["llm.base_url"] == "not set"
    assert texts["limits.memory_high_mb"] == "not set"
    assert texts["server.console"] == "true"
    assert texts["timing.drain_s"] == "30"
    assert lines["origins.allowed"].source == "netra_ws.toml"


class TestProblems:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("server.workers", 2),
            ("backplane.url", "redis://h"),
        ],
    )
    def test_not_available_yet(self, name: str, value: object) -> None:
        """A setting whose feature has not landed stops the start with one line that names it."""
        (line,) = problems(Settings.make({name: value}))
        assert line.startswith(name)
        assert line.endswith("not available yet")

    @pytest.mark.parametrize("name", ["origins.strikes", "origins.strike_window_s", "origins.max_tracked"])
    def test_strikes_are_available(self, name: str) -> None:
        """How origins are blocked can be set."""
        assert problems(Settings.make({name: 7})) == []

    def test_a_rule_of_ones_own_needs_no_secret(self) -> None:
        """A program that says itself who somebody is has no secret to set; all else still stops the start."""
        bare = Settings.make(environment="production")
        names = [line.partition(":")[0] for line in problems(bare)]
        assert names == ["auth.secret", "origins.allowed"]
        assert [line.partition(":")[0] for line in problems(bare, tokens=False)] == ["origins.allowed"]

    @pytest.mark.parametrize("environment", ["testing", "staging", "production"])
    def test_secret(self, environment: str) -> None:
        """Outside development a secret is required."""
        settings = Settings.make({"origins.required": False}, environment=environment)
        assert [line.partition(":")[0] for line in problems(settings)] == ["auth.secret"]

    @pytest.mark.parametrize("environment", ["testing", "staging", "production"])
    @pytest.mark.parametrize("name", ["auth.jwks_url", "auth.jwks_file"])
    def test_public_keys_in_place_of_a_secret(self, name: str, environment: str) -> None:
        """Public keys are as good as a secret; without a secret, nothing can be said about HS256."""
        good = {"origins.required": False, name: "https://id.example/jwks"}
        assert problems(Settings.make(good, environment=environment)) == []
        (line,) = problems(Settings.make({**good, "auth.algorithms": ["ES256", "HS256"]}, environment=environment))
        assert line == "auth.algorithms: HS256 needs auth.secret"

    @pytest.mark.parametrize(
        ("algorithms", "told"),
        [
            (["none"], "'none' is none of HS256, RS256, ES256, EdDSA"),
            (["HS384"], "'HS384' is none of"),
            (["hs256"], "'hs256' is none of"),
            (["a\nb"], r"'a\nb' is none of"),
            (["RS256"], "RS256 needs auth.jwks_url or auth.jwks_file"),
        ],
        ids=["none", "HS384", "case", "line", "no key"],
    )
    def test_algorithms_that_nothing_serves(self, algorithms: list[str], told: str) -> None:
        """An algorithm that is unknown, or that no key can serve, is one line each."""
        (line,) = problems(Settings.make({"auth.algorithms": algorithms}))
        assert line.startswith("auth.algorithms: ")
        assert told in line
        assert len(problems(Settings.make({"auth.algorithms": [*algorithms, "PS256"]}))) == 2

    def test_algorithms_that_the_keys_need(self) -> None:
        """HS256 with a secret and no list at all can start; a list that leaves the public keys out cannot."""
        for algorithms in ([], ["HS256"]):
            assert problems(Settings.make({"auth.algorithms": algorithms})) == []
        (line,) = problems(Settings.make({"auth.jwks_file": "k", "auth.algorithms": ["HS256"]}))
        assert "one of RS256, ES256, EdDSA is needed" in line

    @pytest.mark.parametrize(
        "url",
        [
            "https://id.example/.well-known/jwks.json?tenant=7",
            "https://[2001:db8::1]:8443/",
            "http://127.0.0.1:80/jwks",
            "http://[::1]/jwks",
            "http://localhost:1/",
        ],
    )
    def test_addresses_of_keys(self, url: str) -> None:
        """https goes everywhere, http to this machine only."""
        assert problems(Settings.make({"auth.jwks_url": url})) == []

    @pytest.mark.parametrize(
        ("url", "told"),
        [
            ("http://id.example/jwks", "http://id.example/jwks: expected https"),
            ("http://127.0.0.1.example/", "expected https"),
            ("http://10.0.0.1/", "expected https"),
            ("ftp://id.example/", "expected https"),
            ("file:///etc/passwd", "not a URL"),
            ("jwks.json", "not a URL"),
            ("https://", "not a URL"),
            ("https://id.example:many/", "not a URL"),
            ("https://[::1/", "not a URL"),
            ("https://id.example/a b", "not a URL"),
            ("https://id.example/\r\nX-Evil: 1", "not a URL"),
            ("https://ann:hidden@id.example/jwks", "https://id.example/jwks: a user or password"),
            ("https://id.example/jwks#hidden", "https://id.example/jwks: a fragment"),
            ("http://id.example/jwks?key=hidden", "http://id.example/jwks: expected https"),
            ("https://ann:hid/den@id.example/", ""),
            ("https://ann:hid#den@id.example/", ""),
            ("hidden:x@y", "not a URL"),
        ],
    )
    def test_addresses_that_are_none(self, url: str, told: str) -> None:
        """An address that cannot be had safely is one line, which shows neither password nor query."""
        (line,) = problems(Settings.make({"auth.jwks_url": url}))
        assert line.startswith("auth.jwks_url: ")
        assert told in line
        assert not any(piece in line for piece in ("hidden", "hid", "den@", "ann"))
        shown = {row.name: row.value_text for row in describe(load({"auth.jwks_url": url}, None, {}, Path("/")))}
        assert not any(piece in shown["auth.jwks_url"] for piece in ("hidden", "hid", "den@", "ann"))
        assert "hid" not in repr(Settings.make({"auth.jwks_url": url}))

    @pytest.mark.parametrize("environment", ["staging", "production"])
    def test_origins(self, environment: str) -> None:
        """Where nobody has decided about origins, staging and production do not start."""
        settings = Settings.make({"auth.secret": SECRET}, environment=environment)
        assert [line.partition(":")[0] for line in problems(settings)] == ["origins.allowed"]
        for decision in ({"origins.required": False}, {"origins.allowed": ["https://a.example"]}):
            assert problems(Settings.make({"auth.secret": SECRET, **decision}, environment=environment)) == []

    @pytest.mark.parametrize("environment", ["staging", "production"])
    def test_query_token(self, environment: str) -> None:
        """Tokens in URLs stop a start in staging and production."""
        overrides = {"auth.secret": SECRET, "origins.required": False, "auth.query_token": True}
        found = problems(Settings.make(overrides, environment=environment))
        assert [line.partition(":")[0] for line in found] == ["auth.query_token"]
        assert problems(Settings.make(overrides, environment="testing")) == []

    @pytest.mark.parametrize("environment", ["testing", "staging", "production"])
    @pytest.mark.parametrize(
        ("host", "public"),
        [
            ("127.0.0.1", False),
            ("127.8.8.8", False),
            ("::1", False),
            ("::ffff:127.0.0.1", False),
            ("localhost", False),
            ("LOCALHOST.", False),
            ("0.0.0.0", True),
            ("::", True),
            ("192.168.1.4", True),
            ("10.0.0.1", True),
            ("::ffff:10.0.0.1", True),
            ("example.org", True),
            ("localhost.example.org", True),
            ("127.1", True),
        ],
    )
    def test_public_address(self, host: str, public: bool, environment: str) -> None:
        """Outside development only programs of this machine may come without TLS, unless a proxy is named."""
        safe = {"auth.secret": SECRET, "origins.required": False, "server.host": host}
        found = problems(Settings.make(safe, environment=environment))
        assert [line.partition(":")[0] for line in found] == (["server.host"] if public else [])
        for decision in (
            {"server.tls_cert": "c.pem", "server.tls_key": "k.pem"},
            {"server.behind_proxy": True},
        ):
            assert problems(Settings.make(safe | decision, environment=environment)) == []

    def test_public_address_in_development(self) -> None:
        """Development starts on a public address, with a warning."""
        settings = Settings.make({"server.host": "0.0.0.0"})
        assert problems(settings) == []
        assert [line.partition(":")[0] for line in warnings(settings)] == ["server.host"]

    @pytest.mark.parametrize("environment", ["development", "testing", "staging", "production"])
    @pytest.mark.parametrize(("given", "missing"), [("tls_cert", "tls_key"), ("tls_key", "tls_cert")])
    def test_half_of_tls(self, given: str, missing: str, environment: str) -> None:
        """A certificate without a key, and a key without a certificate, stop every start."""
        safe = {"auth.secret": SECRET, "origins.required": False, f"server.{given}": "x.pem"}
        (line,) = problems(Settings.make(safe, environment=environment))
        assert line == f"server.{missing}: needed where server.{given} is set"

    def test_proxies_without_a_decision(self) -> None:
        """Proxies that would not be believed stop a start."""
        (line,) = problems(Settings.make({"server.trusted_proxies": ["10.0.0.1"]}))
        assert line.startswith("server.trusted_proxies: nobody is believed")

    @pytest.mark.parametrize(("proxies", "doubtful"), [([], True), (["10.0.0.1"], False), (["0.0.0.0/0"], True)])
    def test_doubtful_proxies(self, proxies: list[str], doubtful: bool) -> None:
        """A proxy that is not named, and one that everybody is, deserve a warning in every environment."""
        settings = Settings.make({"server.behind_proxy": True, "server.trusted_proxies": proxies})
        assert problems(settings) == []
        assert [line.partition(":")[0] for line in warnings(settings)] == ["server.trusted_proxies"] * doubtful

    def test_everything_at_once(self) -> None:
        """All that stops a start is told at once."""
        bad = {"server.host": "::", "server.trusted_proxies": ["::1"], "auth.query_token": True}
        found = problems(Settings.make(bad, environment="production"))
        names = ["server.trusted_proxies", "server.host", "auth.secret", "origins.allowed", "auth.query_token"]
        assert [line.partition(":")[0] for line in found] == names

    def test_warnings(self) -> None:
        """Tokens of any issuer and for anybody deserve a warning in production, not in development."""
        names = [line.partition(":")[0] for line in warnings(Settings(environment="production"))]
        assert names == ["auth.issuer", "auth.audience"]
        assert warnings(Settings()) == []
        memory = Settings(environment="production", store=Store(url="memory:"))
        assert any(line.startswith("store.url") for line in warnings(memory))


class TestDevelopmentSecret:
    def test_made_once(self, tmp_path: Path) -> None:
        """The secret is made once, is long enough, and only its owner can read it."""
        folder = tmp_path / "a" / "state"
        secret = development_secret(folder)
        assert development_secret(folder) == secret
        assert Auth(secret=secret).secret == secret
        (file,) = folder.iterdir()
        assert file.stat().st_mode & 0o777 == 0o600

    def test_users_state_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By default it lies in the user's state folder."""
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        assert development_secret() == development_secret(tmp_path / "netra_ws")

    def test_first_starts_at_the_same_time(self, tmp_path: Path) -> None:
        """Commands that start for the first time together share one secret, and leave nothing else behind."""
        found: list[str] = []
        barrier = threading.Barrier(8)

        def start() -> None:
            barrier.wait()
            found.append(development_secret(tmp_path))

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert len(set(found)) == 1
        assert len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
    def test_open_to_others(self, tmp_path: Path, mode: int) -> None:
        """A secret that others can read or write is refused."""
        development_secret(tmp_path)
        (tmp_path / "development_secret").chmod(mode)
        with pytest.raises(ConfigError, match=r"auth\.secret: .*only you can read"):
            development_secret(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"short", b" " * 100])
    def test_too_short(self, tmp_path: Path, content: bytes) -> None:
        """A file with too little in it is refused, not used and not replaced."""
        file = tmp_path / "development_secret"
        file.write_bytes(content)
        file.chmod(0o600)
        with pytest.raises(ConfigError, match=r"auth\.secret: .*less than 32 bytes"):
            development_secret(tmp_path)
        assert file.read_bytes() == content

    def test_not_a_file(self, tmp_path: Path) -> None:
        """A link, a folder, a pipe or a file in the way is refused without waiting."""
        elsewhere = tmp_path / "elsewhere"
        development_secret(elsewhere)
        for name, make in {
            "link": lambda path: path.symlink_to(elsewhere / "development_secret"),
            "dangling": lambda path: path.symlink_to(tmp_path / "nowhere"),
            "folder": lambda path: path.mkdir(),
            "pipe": os.mkfifo,
        }.items():
            folder = tmp_path / name
            folder.mkdir()
            make(folder / "development_secret")
            with pytest.raises(ConfigError, match=r"auth\.secret"):
                development_secret(folder)
        with pytest.raises(ConfigError, match=r"set auth\.secret instead"):
            development_secret(elsewhere / "development_secret")


MODEL = {"llm.base_url": "https://h/v1", "llm.model": "m", "llm.api_key": "k"}


class TestModel:
    @pytest.mark.parametrize(
        "more",
        [
            {},
            {"llm.base_url": "http://127.0.0.1:11434/v1"},
            {"llm.base_url": "HTTPS://h"},
            {"llm.proxy": "http://u:p@h"},
        ],
    )
    def test_right(self, more: dict[str, str]) -> None:
        """An endpoint with a model can be served, with or without a key, TLS and a proxy."""
        assert problems(Settings.make({**MODEL, **more})) == []
        assert problems(Settings.make({**MODEL, **more, "llm.api_key": None})) == []

    @pytest.mark.parametrize(
        ("overrides", "line"),
        [
            ({"llm.model": "m"}, "llm.model: of no use without llm.base_url"),
            ({"llm.api_key": "k"}, "llm.api_key: of no use without llm.base_url"),
            ({"llm.proxy": "http://p"}, "llm.proxy: of no use without llm.base_url"),
            ({"llm.base_url": "http://h"}, "llm.model: needed where llm.base_url is set"),
            ({**MODEL, "llm.base_url": "ftp://h"}, "llm.base_url: ftp://h: expected a URL"),
            ({**MODEL, "llm.base_url": "h:80/v1"}, "llm.base_url: ***: expected a URL"),
            ({**MODEL, "llm.base_url": "http:///v1"}, "llm.base_url: http:///v1: not a URL"),
            ({**MODEL, "llm.base_url": "http://h:port"}, "llm.base_url: http://h:port: not a URL"),
            ({**MODEL, "llm.base_url": "http://h /v1"}, "llm.base_url: http://h /v1: not a URL"),
            ({**MODEL, "llm.base_url": "https://u:hunter2@h"}, "llm.base_url: a user or password in it is not sent"),
            ({**MODEL, "llm.api_key": "hunter2 "}, "llm.api_key: it has spaces"),
            ({**MODEL, "llm.api_key": "hunter2\n"}, "llm.api_key: it has spaces"),
            ({**MODEL, "llm.proxy": "socks5://u:hunter2@h"}, "llm.proxy: socks5://h: expected a URL"),
        ],
    )
    def test_wrong(self, overrides: dict[str, object], line: str) -> None:
        """What cannot work stops the start with one line that names the setting and shows no secret."""
        (found,) = problems(Settings.make(overrides))
        assert found.startswith(line)
        assert "hunter2" not in found

    @pytest.mark.parametrize("environment", ["development", "testing", "staging", "production"])
    @pytest.mark.parametrize(
        ("url", "clear"),
        [
            ("http://models.internal/v1", True),
            ("http://localhost/v1", False),
            ("http://[::1]/v1", False),
            ("https://h", False),
        ],
    )
    def test_in_the_clear(self, environment: str, url: str, clear: bool) -> None:
        """Outside development, a model that is asked over the network without TLS deserves a second look."""
        found = warnings(Settings.make({**MODEL, "llm.base_url": url}, environment=environment))
        assert any(line.startswith("llm.base_url: ") for line in found) == (clear and environment != "development")

    def test_it_becomes_the_default_agent(self, tmp_path: Path) -> None:
        """Who names a model talks to it, unless a source says otherwise; check-config tells it, and why."""
        plain = load({}, None, {}, tmp_path)
        assert plain.settings.agents.default == "assistant"
        environ = {"NETRA_WS_LLM_BASE_URL": "http://h", "NETRA_WS_LLM_MODEL": "m"}
        line = next(line for line in describe(load({}, None, environ, tmp_path)) if line.name == "agents.default")
        assert (line.value_text, line.source) == ("llm", "because of llm.base_url")
        for name in ("assistant", "echo"):
            given = load({}, None, {**environ, "NETRA_WS_AGENTS_DEFAULT": name}, tmp_path)
            assert given.settings.agents.default == name
        assert Settings.make(MODEL).agents.default == "llm"
