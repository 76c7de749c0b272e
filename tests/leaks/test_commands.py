"""No secret and no token in what the commands print, however they are called."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from netra_ws.access import mint
from netra_ws.cli import main
from tests.load.process import ROOT

from .marks import Marks

SECRET = "a secret's \"own\" text of the commands' tests, 100 % \\ odd"
PASSWORD = "pass+word/of%20the=database"
MINUTE_S = 60.0
STOP_S = 20.0


@pytest.fixture(params=["plain", "dev mode"])
def dev_mode(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "dev mode")


@pytest.fixture
def marks() -> Marks:
    """The secrets of this file, marked."""
    made = Marks()
    made.secret("auth.secret", SECRET)
    made.secret("password", PASSWORD)
    return made


def environ(folder: Path, settings: Mapping[str, str], *, dev_mode: bool = False) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("NETRA_WS_")}
    given = {f"NETRA_WS_{name}": value for name, value in settings.items()}
    homes = {"HOME": str(folder), "XDG_STATE_HOME": str(folder / "state")}
    return {**own, **homes, **given, "PYTHONPATH": str(ROOT), **({"PYTHONDEVMODE": "1"} if dev_mode else {})}


class Call(Protocol):
    """Runs a command that ends at once, in this process, which is much quicker than one of its own."""

    def __call__(self, words: Sequence[str], settings: Mapping[str, str]) -> tuple[int, str]: ...


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Runs commands in a folder of their own; gives their exit status and all that they printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in os.environ if name.startswith("NETRA_WS_")]:
        monkeypatch.delenv(name)
    root = logging.getLogger()
    before = (root.level, list(root.handlers))

    def run_here(words: Sequence[str], settings: Mapping[str, str]) -> tuple[int, str]:
        for name, value in settings.items():
            monkeypatch.setenv(f"NETRA_WS_{name}", value)
        status = main(words)
        return status, "".join(capfd.readouterr())

    yield run_here
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def run(
    folder: Path, words: Sequence[str], settings: Mapping[str, str], *, dev_mode: bool = False, said: str = ""
) -> tuple[int, str]:
    """Run one command to its end; return its exit status and all that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "netra_ws", *words],
        cwd=folder,
        env=environ(folder, settings, dev_mode=dev_mode),
        input=said,
        capture_output=True,
        text=True,
        timeout=MINUTE_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


ALL_SECRETS = {
    "AUTH_SECRET": SECRET,
    "AUTH_JWKS_URL": f"https://netra:{PASSWORD}@keys.example.org/jwks?token={PASSWORD}",
    "STORE_URL": f"postgresql+psycopg://netra:{PASSWORD}@127.0.0.1:1/netra?sslpassword={PASSWORD}",
    "BACKPLANE_URL": f"redis://:{PASSWORD}@127.0.0.1:1/0",
    "LLM_BASE_URL": f"https://netra:{PASSWORD}@models.example.org/v1?api_key={PASSWORD}",
    "LLM_API_KEY": PASSWORD,
}


def wrong_settings() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield settings with a mistake, and a secret in what is wrong."""
    good = {"AUTH_SECRET": SECRET, "ENVIRONMENT": "testing", "SERVER_PORT": "0"}
    yield "misspelt name", {**good, "AUTH_SECRT": SECRET}
    yield "public key", {**good, "AUTH_SECRET": f"-----BEGIN PUBLIC KEY-----\n{SECRET}\n-----END PUBLIC KEY-----"}
    yield "too short", {**good, "AUTH_SECRET": PASSWORD}
    yield "other store", {**good, "STORE_URL": f"mysql://netra:{PASSWORD}@127.0.0.1/netra"}
    yield "no store there", {**good, "STORE_URL": ALL_SECRETS["STORE_URL"].partition("?")[0]}
    yield "port is text", {**good, "STORE_URL": f"postgresql://netra:{PASSWORD}@127.0.0.1:port/netra"}
    yield "password with a slash", {**good, "STORE_URL": f"postgresql://netra:a/{PASSWORD}@127.0.0.1:1/netra"}
    yield "password with an at", {**good, "STORE_URL": f"postgresql://netra:a@{PASSWORD}@127.0.0.1:1/netra"}
    yield "unknown option", {**good, "STORE_URL": f"postgresql://netra@127.0.0.1:1/netra?passwd={PASSWORD}"}
    yield "bad option", {**good, "STORE_URL": f"postgresql://netra:{PASSWORD}@127.0.0.1:1/netra?sslmode=x"}
    yield "a file with a password", {**good, "STORE_URL": f"sqlite:///store.db?password={PASSWORD}"}
    yield "backplane", {**good, "BACKPLANE_URL": f"amqp://netra:{PASSWORD}@127.0.0.1"}
    yield "not available", {**good, "BACKPLANE_URL": ALL_SECRETS["BACKPLANE_URL"]}
    yield "models", {**good, "LLM_BASE_URL": ALL_SECRETS["LLM_BASE_URL"], "LLM_API_KEY": PASSWORD}
    yield "keys", {**good, "AUTH_JWKS_URL": ALL_SECRETS["AUTH_JWKS_URL"], "AUTH_SECRET": SECRET}
    yield "keys in a file", {**good, "AUTH_JWKS_FILE": "/nowhere/" + "keys.json"}


FILES = {
    "open string": f'[netra_ws.auth]\nsecret = "{PASSWORD}\n',
    "number": f'[netra_ws]\nauth = "{PASSWORD}"\n',
    "list": f'[netra_ws.auth]\nsecret = ["{PASSWORD}"]\n',
    "misspelt": f'[netra_ws.auth]\nsecrets = "{PASSWORD}"\n',
    "twice": f'[netra_ws.auth]\nsecret = "{PASSWORD}"\nsecret = "{PASSWORD}"\n',
    "other section": f'[auth]\nsecret = "{PASSWORD}"\n',
    "table": f'[netra_ws.store.url]\npassword = "{PASSWORD}"\n',
    "bare": f"[netra_ws.auth]\nsecret = {PASSWORD}\n",
}


def test_check_config_masks_every_secret(tmp_path: Path, marks: Marks, dev_mode: bool) -> None:
    """All settings are printed with their source, and none of the secrets in them."""
    _, printed = run(tmp_path, ["check-config"], ALL_SECRETS, dev_mode=dev_mode)
    for name in ("auth.secret", "store.url", "llm.api_key", "backplane.url"):
        assert name in printed
    assert printed.count("***") >= 5
    assert not (found := marks.found(printed)), found


@pytest.mark.parametrize("command", ["serve", "check-config"])
@pytest.mark.parametrize("what", [what for what, _ in wrong_settings()])
def test_wrong_settings_are_told_without_their_secrets(call: Call, marks: Marks, what: str, command: str) -> None:
    """A start that fails says which setting is wrong, and repeats no secret of it."""
    status, printed = call([command], dict(wrong_settings())[what])
    assert status == 1, printed
    assert "Traceback" not in printed
    assert not (found := marks.found(printed)), found


@pytest.mark.parametrize("what", FILES)
def test_a_wrong_file_is_told_without_its_secrets(tmp_path: Path, call: Call, marks: Marks, what: str) -> None:
    """A configuration file that cannot be read is named, with the place, but not quoted."""
    (tmp_path / "netra_ws.toml").write_text(FILES[what])
    status, printed = call(["check-config"], {})
    assert status == 1, printed
    assert "netra_ws.toml" in printed
    assert not (found := marks.found(printed)), found


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "--stoer", ALL_SECRETS["STORE_URL"]],
        ["serve", f"--stoer={ALL_SECRETS['STORE_URL']}"],
        ["serve", "--port", PASSWORD],
        ["serve", PASSWORD],
        [PASSWORD],
        ["--secret", PASSWORD],
        ["chat", "hello", "--tokn", PASSWORD],
        ["chat", "hello", PASSWORD],
        ["chat", "--url", f"ftp://netra:{PASSWORD}@example.org/#token={PASSWORD}", "hello"],
        ["chat", "--url", f"http://netra:{PASSWORD}@127.0.0.1:1/?token={PASSWORD}", "--token", PASSWORD, "hello"],
        ["chat", "--url", "http://127.0.0.1:1/", "--token", f"{PASSWORD} {PASSWORD}", "hello"],
        ["chat", "--url", f"http://127.0.0.1:{PASSWORD}/", "hello"],
        ["token", "--user", "ada", "--secret", PASSWORD],
        ["token", "--user", "ada", "--expires", PASSWORD],
        ["check-config", "--environment", PASSWORD],
    ],
    ids=range(15),
)
def test_a_wrong_command_line_is_not_repeated(call: Call, marks: Marks, words: list[str]) -> None:
    """What is wrong with a command line is told without the words that may be a secret."""
    settings = {"AUTH_SECRET": SECRET, "ENVIRONMENT": "testing", "SERVER_PORT": "8000"}
    status, printed = call(words, settings)
    assert status in (1, 2, 3), printed
    assert "Traceback" not in printed
    assert not (found := marks.found(printed)), found


def _started(folder: Path, settings: Mapping[str, str], *, dev_mode: bool) -> tuple[subprocess.Popen[str], str]:
    log = (folder / "server.log").open("w")
    with log:
        process = subprocess.Popen(
            [sys.executable, "-m", "netra_ws", "--port", "0", "--store", "memory:"],
            cwd=folder,
            env=environ(folder, {"LOG_LEVEL": "debug", **settings}, dev_mode=dev_mode),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    give_up_at = time.monotonic() + MINUTE_S
    while "Listening on " not in (text := (folder / "server.log").read_text()):
        assert process.poll() is None, text
        assert time.monotonic() < give_up_at, text
        time.sleep(0.05)
    return process, text.partition("Listening on ")[2].split()[0]


def test_chat_shows_no_token(tmp_path: Path, marks: Marks, dev_mode: bool) -> None:
    """A talk, and one that is refused, show no token: neither to people, nor as JSON, nor in the server's log."""
    settings = {"AUTH_SECRET": SECRET, "ENVIRONMENT": "testing"}
    process, url = _started(tmp_path, settings, dev_mode=dev_mode)
    printed = ""
    try:
        for number, (good, secret, expires_s, more) in enumerate(
            [
                (True, SECRET, 60.0, []),
                (True, SECRET, 60.0, ["--json"]),
                (False, SECRET[::-1], 60.0, []),
                (False, SECRET, -60.0, ["--json"]),
            ]
        ):
            token = marks.token(f"chat {number}", mint(secret, "ada", None, expires_s, time.time(), jti=f"no {number}"))
            who = ["--url", f"{url}/#token={token}"] if number % 3 else ["--url", url, "--token", token]
            words = ["chat", "--agent", "echo", *who, *more, "hello"]
            status, said = run(tmp_path, words, settings, dev_mode=dev_mode)
            assert status == (0 if good else 3), said
            printed += said
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_S)
    log = (tmp_path / "server.log").read_text()
    assert not (found := marks.leaks({"chat": printed, "the log": log})), found


def test_a_token_is_printed_by_its_own_command_alone(tmp_path: Path, marks: Marks) -> None:
    """``token`` prints the token once, on standard output, and nothing else that is secret."""
    settings = {"AUTH_SECRET": SECRET, "ENVIRONMENT": "testing"}
    for more in ([], ["--url"]):
        status, printed = run(tmp_path, ["token", "--user", "ada", *more], settings)
        assert status == 0
        assert printed.count("eyJ") == 2  # header and claims of one token
        assert not (found := marks.found(printed)), found


def test_development_shows_its_login_line_and_nothing_else(tmp_path: Path, dev_mode: bool) -> None:
    """The start in development prints one login URL; its token and the secret stand nowhere else."""
    process, url = _started(tmp_path, {}, dev_mode=dev_mode)
    give_up_at = time.monotonic() + MINUTE_S
    while "#token=" not in (log := (tmp_path / "server.log").read_text()) or not log.endswith("\n"):
        assert time.monotonic() < give_up_at, log
        time.sleep(0.05)
    marks = Marks()
    secret = next((tmp_path / "state").rglob("development_secret"))
    marks.secret("development secret", secret.read_text())
    line = next(line for line in log.splitlines() if "#token=" in line)
    assert line.startswith(f"Open {url}/#token=")
    token = marks.token("login", line.partition("#token=")[2])
    status, printed = run(tmp_path, ["chat", "--url", f"{url}/#token={token}", "--agent", "echo", "hello"], {})
    assert status == 0, printed
    process.send_signal(signal.SIGTERM)
    process.wait(STOP_S)
    log = (tmp_path / "server.log").read_text()
    others = [other for other in log.splitlines() if other != line]
    assert len(others) == log.count("\n") - 1
    assert not (found := marks.leaks({"chat": printed, "the log": "\n".join(others)})), found
