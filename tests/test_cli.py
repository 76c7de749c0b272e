"""The command line, as a shell sees it: processes, their output, their exit status."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import netra_ws.__main__
from netra_ws.access import Verifier
from netra_ws.chat import Screen, plain
from netra_ws.cli import _about_address, main
from netra_ws.client import connect
from netra_ws.protocol.codec import read_server
from netra_ws.settings import LEAVES, Settings

ROOT = Path(__file__).parents[1]
SECRET = "the tests' own secret, 32 bytes or more"
#: Seconds for a process to start, answer or end.
PATIENCE_S = 20.0

AGENTS = """
import time
import trio

async def greeter(run):
    await run.say("hello from here")
    return run.said

async def sleeper(run):
    await run.think("I sleep")
    await trio.sleep_forever()

async def failing(run):
    raise ValueError("inside")

async def blocked(run):
    await run.think("I block")
    await run.thread(time.sleep, 60)

async def parrot(run):
    return run.text

async def silent(run):
    return {"answer": 42}
"""


def environment(folder: Path, more: Mapping[str, str] = {}) -> dict[str, str]:
    """Return what a process is given: nothing of ours, and a state folder of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NETRA_WS_")}
    return {**kept, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state"), "LOGNAME": "ada", **more}


def command(folder: Path, *words: str, stdin: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "netra_ws", *words],
        cwd=folder,
        env=environment(folder, more),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@attrs.define(eq=False)
class Process:
    """A process whose output is read with a deadline."""

    folder: Path
    popen: subprocess.Popen[bytes]
    _rest: bytes = b""

    @classmethod
    def start(cls, folder: Path, *words: str, **more: str) -> Process:
        argv = [sys.executable, "-m", "netra_ws", *words]
        popen = subprocess.Popen(
            argv,
            cwd=folder,
            env=environment(folder, more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return cls(folder, popen)

    def line(self) -> str:
        """Return the next line of its output."""
        assert self.popen.stdout is not None
        deadline = time.monotonic() + PATIENCE_S
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.popen.stdout], [], [], deadline - time.monotonic())
            assert ready, f"no line within {PATIENCE_S} s"
            piece = os.read(self.popen.stdout.fileno(), 65536)
            assert piece, f"the process ended: {self._rest!r}"
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def end(self, number: signal.Signals | None = None) -> int:
        """Send it a signal, wait for its end, return its exit status."""
        if number is not None:
            self.popen.send_signal(number)
        return self.popen.wait(PATIENCE_S)

    def rest(self) -> str:
        """Return what it has printed since the last ``line``; it has ended."""
        assert self.popen.stdout is not None
        return (self._rest + self.popen.stdout.read()).decode()

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait(PATIENCE_S)
        assert self.popen.stdout is not None
        self.popen.stdout.close()


@attrs.define(eq=False)
class Serving(Process):
    """A server; *url* is where it says that it is."""

    url: str = ""
    login: str = ""


@contextlib.contextmanager
def serving(folder: Path, *words: str, **more: str) -> Iterator[Serving]:
    """Run ``serve`` until the block is left."""
    (folder / "own_agents.py").write_text(AGENTS)
    found = Process.start(folder, *words, "--port", "0", "--store", "memory:", **more)
    server = Serving(folder, found.popen)
    try:
        line = server.line()
        match = re.fullmatch(r"Listening on (http://127\.0\.0\.1:\d+)", line)
        assert match, line + server._rest.decode()
        server.url = match[1]
        if "NETRA_WS_AUTH_SECRET" not in more:
            server.login = server.line().removeprefix("Open ")
        yield server
    finally:
        server.close()


def wait_until_draining(server: Serving) -> None:
    """Wait until a server is not ready any more."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(f"{server.url}/ready", timeout=PATIENCE_S):
                assert time.monotonic() < deadline
        except urllib.error.HTTPError as answer:
            answer.close()
            if answer.code == 503:
                return
            raise
        time.sleep(0.02)


OWN = [f"--agent=own_agents:{name}" for name in ("greeter", "sleeper", "failing", "blocked", "parrot", "silent")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A development server with agents of its own, for everybody who only talks to it."""
    with serving(tmp_path_factory.mktemp("serving"), "serve", *OWN) as server:
        yield server


def chat(server: Serving, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return command(server.folder, "chat", "--url", server.url, *words, stdin=stdin)


# serve


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serving(tmp_path: Path, number: signal.Signals) -> None:
    """Without a command the server says in one line where it is, the port accepts, and a signal ends it with 0."""
    with serving(tmp_path) as server:
        with urllib.request.urlopen(f"{server.url}/health", timeout=PATIENCE_S) as answer:
            assert answer.status == 200
        assert server.end(number) == 0


def test_the_login_url_works(server: Serving) -> None:
    """The address that a development start prints shows the console, and its token lets its user in."""
    address, _, fragment = server.login.partition("#token=")
    with urllib.request.urlopen(address, timeout=PATIENCE_S) as page:
        assert b"<html" in page.read()

    async def visit() -> str:
        async with connect(address, fragment) as session:
            return session.welcome.user_id

    assert trio.run(visit) == "ada"


def test_outside_development_there_is_no_login_url(tmp_path: Path) -> None:
    """Only a development start hands out a token, and no log line holds one."""
    with serving(
        tmp_path, "--environment", "testing", NETRA_WS_AUTH_SECRET=SECRET, NETRA_WS_LOG_LEVEL="debug"
    ) as server:
        token = command(tmp_path, "token", "--user", "bob", NETRA_WS_AUTH_SECRET=SECRET).stdout.strip()
        assert command(tmp_path, "chat", "--url", server.url, "--token", token, "hi", "--agent", "echo").returncode == 0
        assert server.end(signal.SIGTERM) == 0
        lines = server.rest().splitlines()
    assert lines
    assert all(json.loads(line).keys() >= {"time", "level", "logger", "message"} for line in lines)
    assert not any("Open " in line or token in line or token.split(".")[1] in line for line in lines)


def test_the_port_is_in_use(tmp_path: Path, server: Serving) -> None:
    """A port in use is one line and status 1."""
    port = server.url.rpartition(":")[2]
    outcome = command(tmp_path, "--port", port, "--store", "memory:")
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr == f"netra-ws: server.port: 127.0.0.1:{port} is already in use\n"


def test_the_host_is_nobodys(tmp_path: Path) -> None:
    """A host without an address is one line and status 1."""
    outcome = command(tmp_path, "--host", "no-such-host.invalid", "--port", "0", "--store", "memory:")
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("netra-ws: server.host: no-such-host.invalid has no address")
    assert outcome.stderr.count("\n") == 1


def test_the_store_is_in_use(tmp_path: Path) -> None:
    """A second server on one store file is one line and status 1."""
    store = f"sqlite:///{tmp_path / 'one.db'}"
    first = Process.start(tmp_path, "--port", "0", "--store", store)
    try:
        assert first.line().startswith("Listening on ")
        outcome = command(tmp_path, "--port", "0", "--store", store)
        assert outcome.returncode == 1
        assert "is in use by another server" in outcome.stderr
        assert outcome.stderr.count("\n") == 1
    finally:
        first.close()


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("nowhere:x", "cannot import nowhere"),
        ("broken:x", "agent 'broken:x': ZeroDivisionError: division by zero"),
        ("broken", "expected module:attribute"),
        ("os:getcwd", "expected an async function"),
    ],
)
def test_an_agent_that_is_none(tmp_path: Path, spec: str, why: str) -> None:
    """An agent that cannot be had is one line and status 1, whatever its module does."""
    (tmp_path / "broken.py").write_text("1 / 0\n")
    outcome = command(tmp_path, "serve", "--port", "0", "--store", "memory:", "--agent", spec)
    assert outcome.returncode == 1
    assert why in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_the_port_is_forbidden() -> None:
    """Any other reason why an address cannot be had is told in its own words."""
    assert _about_address(Settings(), PermissionError(13, "Permission denied")) == (
        "cannot listen on 127.0.0.1:8000: Permission denied"
    )


def test_wrong_settings(tmp_path: Path) -> None:
    """Each problem of the settings is a line of its own, and the status is 1."""
    outcome = command(tmp_path, "serve", "--environment", "production")
    assert outcome.returncode == 1
    assert [line.split(":")[1].strip() for line in outcome.stderr.splitlines()] == ["auth.secret", "origins.allowed"]
    outcome = command(tmp_path, NETRA_WS_SERVER_PORT="many", NETRA_WS_SERVER_HOTS="x")
    assert outcome.returncode == 1
    assert len(outcome.stderr.splitlines()) == 2


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """While runs are given time to end, a second signal ends the process without waiting for them."""
    with serving(tmp_path, "serve", *OWN) as server:
        talker = Process.start(tmp_path, "chat", "--url", server.url, "--agent", "sleeper", "hi")
        try:
            assert "I sleep" in talker.line()
            server.popen.send_signal(signal.SIGTERM)
            wait_until_draining(server)
            assert server.popen.poll() is None
            assert server.end(signal.SIGTERM) == 128 + signal.SIGTERM
            assert "ended at once" in server.rest()
        finally:
            talker.close()


def test_a_stuck_run_is_told(tmp_path: Path) -> None:
    """A run that cannot be stopped keeps neither chat nor server: both say so and end with 1."""
    quick = {"NETRA_WS_TIMING_DRAIN_S": "0.1", "NETRA_WS_TIMING_FINALISE_S": "0.3"}
    with serving(tmp_path, "serve", *OWN, **quick) as server:
        talker = Process.start(tmp_path, "chat", "--url", server.url, "--agent", "blocked", "hi")
        try:
            assert "I block" in talker.line()
            assert talker.end(signal.SIGINT) == 1
            assert "netra-ws: CANCEL_TIMEOUT" in talker.rest()
            assert server.end(signal.SIGTERM) == 1
            assert "stuck" in server.rest()
        finally:
            talker.close()


# Usage


@pytest.mark.parametrize("words", [["--frob"], ["frob"], ["serve", "--port", "x"], ["token"], ["--hos", "x"]])
def test_bad_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What is no usage is status 2 and a usage line; options cannot be shortened."""
    assert main(words) == 2
    assert "usage: netra-ws" in capsys.readouterr().err


def test_help_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """The help names exactly the commands and options that work."""
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^    ([a-z-]+)", text, re.MULTILINE) == ["serve", "token", "chat", "check-config"]
    assert main(["serve", "--help"]) == 0
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert options == {"--help", "--config", "--host", "--port", "--agent", "--store", "--environment"}
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("netra-ws 0.")


def test_an_early_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before anything has begun ends without a traceback, as a shell expects it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("netra_ws.cli.load", interrupt)
    assert main(["token", "--user", "ada"]) == 130


def test_running_the_package_is_the_command_line() -> None:
    """``python -m netra_ws`` and the installed script are the same function."""
    assert vars(netra_ws.__main__)["main"] is main


# token


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, a state folder of its own, and no settings from outside."""
    for name in [name for name in os.environ if name.startswith("NETRA_WS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_token(alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A token is signed with the secret and names its user, permissions, end, issuer and audience."""
    monkeypatch.setenv("NETRA_WS_AUTH_SECRET", SECRET)
    monkeypatch.setenv("NETRA_WS_AUTH_ISSUER", "us")
    monkeypatch.setenv("NETRA_WS_AUTH_AUDIENCE", "them")
    assert main(["token", "--user", "bob", "--permission", "read", "--permission", "operator", "--expires", "60"]) == 0
    identity = Verifier(SECRET, "us", "them").verify(capsys.readouterr().out.strip(), time.time())
    assert (identity.user_id, sorted(identity.permissions)) == ("bob", ["operator", "read"])
    assert identity.expires_at == pytest.approx(time.time() + 60, abs=5)


def test_a_login_url(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --url the token is in the fragment of the address where the server would be."""
    assert main(["token", "--user", "bob", "--url"]) == 0
    assert re.fullmatch(r"http://127\.0\.0\.1:8000/#token=[\w.-]+\n", capsys.readouterr().out)
    (alone / "netra_ws.toml").write_text('[netra_ws.server]\nhost = "::"\nport = 1\n')
    assert main(["token", "--user", "bob", "--url"]) == 0
    assert capsys.readouterr().out.startswith("http://[::1]:1/#token=")
    (alone / "netra_ws.toml").write_text("[netra_ws.server]\nport = 0\n")
    assert main(["token", "--user", "bob", "--url"]) == 1


def test_a_token_that_cannot_be(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name or lifetime that is none is bad usage; without a secret there is nothing to sign with."""
    assert main(["token", "--user", ""]) == 2
    assert main(["token", "--user", "bob", "--expires", "-1"]) == 2
    assert main(["token", "--user", "bob", "--environment", "production"]) == 1
    assert "auth.secret: not set" in capsys.readouterr().err


# check-config


def test_check_config(alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every setting is shown with its source, no secret is, and what stops production is the status."""
    monkeypatch.setenv("NETRA_WS_AUTH_SECRET", SECRET)
    (alone / "other.toml").write_text('[netra_ws.log]\nlevel = "error"\n')
    assert main(["check-config", "--config", "other.toml"]) == 1
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.split("\n\n")[0].splitlines()}
    assert rows.keys() == LEAVES.keys()
    assert rows["auth.secret"].split() == ["auth.secret", "***", "NETRA_WS_AUTH_SECRET"]
    assert rows["log.level"].split() == ["log.level", "error", "other.toml"]
    assert rows["auth.query_token"].endswith("profile development")
    assert "A production start would be stopped by:\n  origins.allowed" in out
    assert "auth.query_token" not in out.split("\n\n")[1]


def test_check_config_of_nothing(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Development defaults say what is still missing for production."""
    assert main(["check-config"]) == 1
    assert "stopped by:\n  auth.secret: required in production" in capsys.readouterr().out


def test_check_config_of_a_good_one(
    alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings that can be served in production are status 0; doubts are told."""
    monkeypatch.setenv("NETRA_WS_AUTH_SECRET", SECRET)
    monkeypatch.setenv("NETRA_WS_ORIGINS_ALLOWED", "https://example.org")
    assert main(["check-config", "--environment", "production"]) == 0
    out = capsys.readouterr().out
    assert "Nothing stops a production start." in out
    assert "Worth a second look in production:\n  auth.issuer" in out
    monkeypatch.setenv("NETRA_WS_AUTH_ISSUER", "us")
    monkeypatch.setenv("NETRA_WS_AUTH_AUDIENCE", "them")
    assert main(["check-config"]) == 0
    assert "second look" not in capsys.readouterr().out


def test_check_config_tries_the_values(
    alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Origins that cannot be read, a public key as secret and a missing agent are found, too."""
    monkeypatch.setenv("NETRA_WS_AUTH_SECRET", "-----BEGIN PUBLIC KEY-----\nabcdefgh\n-----END PUBLIC KEY-----")
    monkeypatch.setenv("NETRA_WS_ORIGINS_ALLOWED", "example.org")
    monkeypatch.setenv("NETRA_WS_AGENTS_MODULES", "nowhere:x")
    assert main(["check-config"]) == 1
    stoppers = capsys.readouterr().out.split("stopped by:\n")[1]
    for name in ("origins.allowed", "auth.secret", "nowhere:x"):
        assert name in stoppers
    monkeypatch.delenv("NETRA_WS_AGENTS_MODULES")
    monkeypatch.setenv("NETRA_WS_AGENTS_DEFAULT", "nobody")
    assert main(["check-config"]) == 1
    assert "agents.default: there is no agent 'nobody'" in capsys.readouterr().out


# chat


def test_chat_says_a_text(server: Serving) -> None:
    """A text is answered with what the agent does and says, without colours in a file, and status 0."""
    outcome = chat(server, "What is 17% of 2,340?")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert "→ calculate" in outcome.stdout
    assert outcome.stdout.endswith("17% of 2,340 = 397.8\n")
    assert "\x1b" not in outcome.stdout


def test_chat_reads_a_pipe(server: Serving) -> None:
    """Text from a pipe is one message, also over several lines."""
    outcome = chat(server, "--agent", "parrot", stdin="one\ntwo\n")
    assert (outcome.returncode, outcome.stdout) == (0, "one\ntwo\n")


def test_chat_with_text_that_is_not_utf8(tmp_path: Path) -> None:
    """Another encoding, on the command line or in a pipe, is one clear line and no traceback."""
    words = [sys.executable, "-m", "netra_ws", "chat", "--url", "http://127.0.0.1:1"]
    for text, said in (["caf\udce9"], b""), ([], b"caf\xe9"):
        for locale in ("C", "C.UTF-8"):
            outcome = subprocess.run(
                [*words, *text],
                input=said,
                cwd=tmp_path,
                env=environment(tmp_path, {"LC_ALL": locale}),
                capture_output=True,
                timeout=PATIENCE_S,
                check=False,
            )
            assert (outcome.returncode, outcome.stderr) == (2, b"netra-ws: the text is not UTF-8\n")


def test_chat_prints_json(server: Serving) -> None:
    """With --json each event of the run is one line, from the user's message to the end."""
    outcome = chat(server, "--json", "--agent", "greeter", "hi")
    events = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert outcome.returncode == 0
    assert [event["type"] for event in events][0::4] == ["user_message", "agent_completed"]
    assert all("seq" in event for event in events)


def test_chat_goes_on_in_a_thread(server: Serving) -> None:
    """Two texts with one --thread are one conversation."""
    for text in ("first", "second"):
        outcome = chat(server, "--json", "--agent", "echo", "--thread", "talk", text)
        assert {event["thread_id"] for event in map(json.loads, outcome.stdout.splitlines())} == {"talk"}


def test_chat_prints_what_was_not_said(server: Serving) -> None:
    """A final response that is no text is printed as JSON."""
    assert chat(server, "--agent", "silent", "hi").stdout == '{"answer": 42}\n'


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--agent", "failing", "hi"], 1, "✗ error"),
        (["--agent", "nobody", "hi"], 1, "UNKNOWN_AGENT"),
        (["--token", "a.b.c", "hi"], 3, "TOKEN_INVALID"),
        (["--url", "http://127.0.0.1:9", "hi"], 3, "no connection for 5 s"),
        (["--url", "nonsense", "hi"], 2, "--url"),
        ([" "], 2, "nothing to say"),
        ([], 2, "nothing to say"),
    ],
)
def test_chat_tells_by_its_status(server: Serving, words: list[str], status: int, told: str) -> None:
    """A failed run is 1, bad usage 2, no connection 3, each with a word about it."""
    outcome = chat(server, *words)
    assert outcome.returncode == status
    assert told in outcome.stdout + outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_chat_takes_a_login_url(server: Serving) -> None:
    """The address that a start prints is all that chat needs."""
    outcome = command(
        server.folder, "chat", "--url", server.login, "--agent", "parrot", "hi", XDG_STATE_HOME="/nowhere"
    )
    assert (outcome.returncode, outcome.stdout) == (0, "hi\n")


def test_chat_of_a_nameless_user(
    server: Serving, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the system knows no name of its user, development calls them alice."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    monkeypatch.setenv("XDG_STATE_HOME", str(server.folder / "state"))
    monkeypatch.chdir(server.folder)
    assert main(["chat", "--url", server.url, "--agent", "parrot", "--json", "hi"]) == 0
    assert {json.loads(line)["user_id"] for line in capsys.readouterr().out.splitlines()} == {"alice"}


def test_chat_outlives_no_token(tmp_path: Path) -> None:
    """When a given token expires in the middle of a run, the chat ends as without a connection."""
    with serving(tmp_path, "serve", *OWN, NETRA_WS_AUTH_EXPIRY_GRACE_S="0.1") as server:
        token = command(tmp_path, "token", "--user", "ada", "--expires", "2").stdout.strip()
        outcome = chat(server, "--token", token, "--agent", "sleeper", "hi")
        assert outcome.returncode == 3
        assert "TOKEN_EXPIRED" in outcome.stderr


def test_chat_needs_a_token_outside_development(tmp_path: Path) -> None:
    """Without a secret to sign with, chat says that it needs a token."""
    outcome = command(tmp_path, "chat", "hi", NETRA_WS_ENVIRONMENT="production")
    assert outcome.returncode == 2
    assert "--token: needed in production" in outcome.stderr


def test_chat_stops_the_run(server: Serving) -> None:
    """Ctrl-C stops the run, and the chat ends with it as failed."""
    talker = Process.start(server.folder, "chat", "--url", server.url, "--agent", "sleeper", "hi")
    try:
        assert "I sleep" in talker.line()
        assert talker.end(signal.SIGINT) == 1
        assert "✗ cancelled" in talker.rest()
    finally:
        talker.close()


def test_chat_leaves(server: Serving) -> None:
    """A second Ctrl-C leaves while the run has not stopped yet."""
    talker = Process.start(server.folder, "chat", "--url", server.url, "--agent", "blocked", "hi")
    try:
        assert "I block" in talker.line()
        talker.popen.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert talker.popen.poll() is None
        assert talker.end(signal.SIGINT) == 1
        assert "Traceback" not in talker.rest()
    finally:
        talker.close()


def test_chat_loses_its_reader(server: Serving) -> None:
    """When nobody reads the output any more, the chat ends without a complaint."""
    talker = Process.start(server.folder, "chat", "--url", server.url, "--agent", "greeter", "hi")
    assert talker.popen.stdout is not None
    talker.popen.stdout.close()
    assert talker.end() == 1


def test_chat_in_a_terminal(server: Serving) -> None:
    """In a terminal, lines are asked for one after another and answered in colours until the end of input."""
    with in_terminal(server.folder, "chat", "--url", server.url) as (talker, mine):
        seen = read_until(mine, "> ")
        os.write(mine, b"What is 2*21?\n")
        seen = read_until(mine, "42", "> ")
        assert "\x1b[36m→ calculate" in seen
        os.write(mine, b"\nWhat is 2*22?\n")
        read_until(mine, "44", "> ")
        os.write(mine, b"\x04")
        assert talker.wait(PATIENCE_S) == 0


def test_chat_at_its_prompt_hears_of_a_kick(server: Serving) -> None:
    """Who is signed out while nothing is typed is told at once, with the reason, and the chat ends with 3."""
    operator = command(server.folder, "token", "--user", "boss", "--permission", "operator").stdout.strip()
    bearer = command(server.folder, "token", "--user", "signed-out").stdout.strip()
    with in_terminal(server.folder, "chat", "--url", server.url, "--token", bearer) as (talker, mine):
        read_until(mine, "> ")
        body = json.dumps({"user_id": "signed-out", "reason": "Policy 7"}).encode()
        request = urllib.request.Request(
            f"{server.url}/ws/kick", body, {"Authorization": f"Bearer {operator}"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            assert json.load(answer)["connections"] == 1
        read_until(mine, "Policy 7")
        assert talker.wait(PATIENCE_S) == 3


def test_a_hangup_ends_no_service(tmp_path: Path) -> None:
    """A server without a terminal that is told to read its files again goes on: a proxied one has none."""
    with serving(tmp_path) as server:
        server.popen.send_signal(signal.SIGHUP)
        with urllib.request.urlopen(f"{server.url}/health", timeout=PATIENCE_S) as answer:
            assert answer.status == 200
        assert server.end(signal.SIGTERM) == 0
        assert "no certificates to read again" in server.rest()


def test_a_terminal_that_is_closed_takes_its_server_along(tmp_path: Path) -> None:
    """A server that was started by hand does not outlive its terminal."""
    with in_terminal(tmp_path, "--port", "0", "--store", "memory:") as (serving, mine):
        read_until(mine, "Listening on")
        serving.send_signal(signal.SIGHUP)
        assert serving.wait(PATIENCE_S) == -signal.SIGHUP


@contextlib.contextmanager
def in_terminal(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a command in a terminal of its own; yield it and our end of the terminal."""
    mine, theirs = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "netra_ws", *words],
        cwd=folder,
        env=environment(folder),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        # As a terminal does: the suite itself may be one of those that outlive theirs.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    os.close(theirs)
    try:
        yield running, mine
    finally:
        running.kill()
        running.wait(PATIENCE_S)
        os.close(mine)


def read_until(descriptor: int, *texts: str) -> str:
    """Read from a terminal until each text came behind the one before it."""
    seen, place, deadline = "", 0, time.monotonic() + PATIENCE_S
    for text in texts:
        while (found := seen.find(text, place)) < 0:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {seen!r}"
            seen += os.read(descriptor, 65536).decode()
        place = found + len(text)
    return seen


# The screen


def _shown(*events: dict[str, Any]) -> str:
    out = io.StringIO()
    screen = Screen(out, colours=False)
    names = {"thread_id": "t", "run_id": "r", "agent_name": "a", "event_id": "i", "seq": 1, "timestamp": 1.0}
    for event in events:
        screen.show(read_server(json.dumps(names | event)))
    return out.getvalue()


def _message(phase: str, content: str, message_id: str = "m") -> dict[str, Any]:
    return {"type": "agent_message", "message_id": message_id, "phase": phase, "content": content, "role": "assistant"}


def _end(**fields: Any) -> dict[str, Any]:
    end = {"type": "agent_completed", "status": "success", "success": True, "final_response": None}
    return {**end, "duration_ms": 1, "events": 2, **fields}


def test_screen_shows_texts_once() -> None:
    """Pieces are printed as they come, and of a full text only what was missing, also when it goes on behind it."""
    assert _shown(_message("delta", "a"), _message("delta", "b"), _message("full", "abc"), _end()) == "abc\n"
    assert _shown(_message("delta", "a"), _message("full", "xyz"), _end()) == "a\nxyz\n"
    two = _message("delta", "a"), _message("delta", "b", "n"), _message("full", "ac")
    assert _shown(*two, _end()) == "a\nb\nc\n"
    on_the_way = _message("delta", "a"), _message("full", "ab"), _message("delta", "c"), _message("full", "abcd")
    assert _shown(*on_the_way, _end()) == "abcd\n"


def test_screen_shows_every_kind() -> None:
    """Thoughts, tools, progress, questions, queues and what an agent says by a name have a line each."""
    tool = {"tool_call_id": "c", "tool_name": "look"}
    shown = _shown(
        {"type": "agent_thinking", "reasoning": "hm", "phase": "full"},
        {"type": "agent_started", "message_id": "m", "trigger": "message"},
        {"type": "tool_executing", **tool, "parameters": {"a": "x" * 300}, "status": "executing"},
        {"type": "tool_progress", **tool, "progress": 0.5, "message": "half"},
        {"type": "tool_progress", **tool, "progress": None},
        {"type": "tool_completed", **tool, "status": "ok", "success": True, "results": [1], "duration_ms": 3},
        {
            "type": "tool_completed",
            **tool,
            "status": "error",
            "success": False,
            "results": None,
            "duration_ms": 3,
            "error": {"code": "C", "message": "broken"},
        },
        {"type": "tool_completed", **tool, "status": "denied", "success": False, "results": None, "duration_ms": 3},
        {"type": "run_queued", "position": 2},
        {"type": "input_required", "input_id": "i", "prompt": "Sure?", "choices": ["yes", "no"]},
        {"type": "input_required", "input_id": "i", "prompt": "Why?"},
        {"type": "agent_event", "name": "step", "value": 1},
        {"type": "unheard_of"},
        _end(status="error", success=False, error={"code": "E", "message": "why"}),
    )
    lines = shown.splitlines()
    assert lines[0] == "· hm"
    assert lines[1].startswith('→ look {"a": "xxx')
    assert len(lines[1]) < 220
    assert lines[2:] == [
        "  … 50% half",
        "  …",
        "← look [1] (3 ms)",
        "← look error: broken",
        "← look denied: denied",
        "· waits, number 2 in line",
        "? Sure? [yes / no]",
        "? Why?",
        "* step 1",
        "✗ error: E: why",
    ]


def _part(type_: str, run_id: str = "s", parent: str = "r", **fields: Any) -> dict[str, Any]:
    return {"type": type_, "run_id": run_id, "parent_run_id": parent, "agent_name": run_id, **fields}


def test_screen_indents_sub_runs() -> None:
    """Sub-runs stand indented below what started them, several at once, each line; their ends are told."""
    begun = {"message_id": "m", "trigger": "delegate"}
    ended = {"final_response": "x", "duration_ms": 5, "events": 2}
    say = {"phase": "full", "role": "assistant"}
    shown = _shown(
        _message("delta", "so"),
        _part("agent_started", **begun),
        _part("agent_started", "deep", "s", **begun),
        _part("agent_message", "deep", "s", message_id="d", content="one\ntwo", **say),
        _part("agent_thinking", reasoning="hm", phase="delta"),
        _part("agent_message", "deep", "s", message_id="d", content="one\ntwo!", **say),
        _part("agent_completed", "deep", "s", status="success", success=True, **ended),
        _part("agent_completed", status="error", success=False, error={"code": "C", "message": "why"}, **ended),
        _message("full", "so"),
        _end(final_response="not again"),
    )
    assert shown.splitlines() == [
        "so",
        "  ▸ s",
        "    ▸ deep",
        "    one",
        "    two",
        "  · hm",
        "    !",
        "    ◂ deep (5 ms)",
        "  ◂ s error: why",
    ]


def test_screen_holds_back_what_would_run_into_a_question() -> None:
    """While a question is asked, events wait for its end; when too many wait, all are shown, in their order."""
    out = io.StringIO()
    screen = Screen(out, colours=False, asks=True)
    names = {"thread_id": "t", "run_id": "r", "agent_name": "a", "event_id": "i", "seq": 1, "timestamp": 1.0}
    event = read_server(json.dumps(names | {"type": "agent_event", "name": "step", "value": 1}))
    with screen.held():
        screen.prompt("answer: ")
        screen.show(event)
        assert out.getvalue() == "answer: "
    assert out.getvalue() == "answer: \n* step 1\n"
    with screen.held():
        for _ in range(3000):
            screen.show(event)
    assert out.getvalue().count("* step 1") == 3001


def test_screen_shows_gaps_and_silent_answers() -> None:
    """A reset is told, and an answer that was never said is printed at the end."""
    reset = {"type": "stream_reset", "epoch": "e", "seq": 1, "reason": "trimmed"}
    assert _shown(reset, _end(final_response="so")) == "· some events could not be read again\nso\n"
    assert _shown(_end(status="cancelled", success=False)) == "✗ cancelled\n"
    assert _shown(_message("delta", "open"), _end()) == "open\n"


def test_the_terminal_is_not_steered() -> None:
    """Control characters in an agent's words reach no terminal."""
    assert plain("a\x1b[2Jb\r\x07\x9b\tc\nd") == "a�[2Jb���\tc\nd"
