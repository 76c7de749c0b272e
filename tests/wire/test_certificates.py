"""Certificates: what cannot be used is told before the port opens, and never replaces what can."""

from __future__ import annotations

import logging
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives import serialization

import netra_ws
from netra_ws.errors import ConfigError
from netra_ws.server import Server
from netra_ws.wire.certificates import Certificates
from tests.conftest import StartServer
from tests.kit import SECRET, http, settings
from tests.load.process import ROOT, eventually, serving
from tests.tls import Authority, over_tls, socket_over_tls


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def load(names: dict[str, Any]) -> Certificates:
    return Certificates(names["server.tls_cert"], names["server.tls_key"])


async def serial(server: Any, authority: Authority) -> str:
    """Return the number of the certificate that a new handshake shows."""
    async with over_tls(server, authority.trusting()) as client:
        stream: Any = client.stream
        return str(stream.getpeercert()["serialNumber"])


def encrypt(names: dict[str, Any]) -> None:
    path = Path(names["server.tls_key"])
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


def swap(names: dict[str, Any]) -> None:
    names["server.tls_cert"], names["server.tls_key"] = names["server.tls_key"], names["server.tls_cert"]


def pipe(name: str) -> Callable[[dict[str, Any]], object]:
    def put(names: dict[str, Any]) -> None:
        Path(names[name]).unlink()
        os.mkfifo(names[name])

    return put


def chain_in_part(names: dict[str, Any]) -> None:
    path = Path(names["server.tls_cert"])
    path.write_bytes(path.read_bytes()[:300])


def key_in_part(names: dict[str, Any]) -> None:
    path = Path(names["server.tls_key"])
    path.write_bytes(path.read_bytes()[:100])


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no chain": (lambda names: Path(names["server.tls_cert"]).unlink(), r"server.tls_cert: \S+ does not exist"),
    "no key": (lambda names: Path(names["server.tls_key"]).unlink(), r"server.tls_key: \S+ does not exist"),
    "a folder": (lambda names: names.update({"server.tls_key": "/tmp"}), "server.tls_key: /tmp cannot be read: Is a"),
    "a pipe for a chain": (pipe("server.tls_cert"), r"server.tls_cert: \S+ is not a file"),
    "a pipe for a key": (pipe("server.tls_key"), r"server.tls_key: \S+ is not a file"),
    "swapped": (swap, r"server.tls_cert: \S+ is not a PEM file of certificates"),
    "half a chain": (chain_in_part, r"server.tls_cert: \S+ is not a PEM file of certificates"),
    "half a key": (key_in_part, r"server.tls_cert, tls_key: \S+ and \S+ cannot be used"),
    "an empty key": (
        lambda names: Path(names["server.tls_key"]).write_text(""),
        r"tls_key: \S+ is not a PEM file",
    ),
    "an encrypted key": (encrypt, r"server.tls_key: \S+ is encrypted; keep it in a file without a password"),
}


@pytest.mark.parametrize(("damage", "line"), BROKEN.values(), ids=BROKEN)
async def test_what_cannot_be_used_is_told_in_one_line(
    authority: Authority, damage: Callable[[dict[str, Any]], object], line: str
) -> None:
    """A start with such files fails before anything is opened, with one line that names the setting."""
    names = authority.issue()
    damage(names)
    with pytest.raises(ConfigError, match=line) as caught:
        async with netra_ws.open_server(settings(names)):
            pass
    assert "\n" not in str(caught.value)


def test_a_key_of_another_certificate(authority: Authority) -> None:
    """A key that does not fit is named, with what it should fit."""
    names = authority.issue() | {"server.tls_key": authority.issue(name="other")["server.tls_key"]}
    with pytest.raises(ConfigError, match=r"server.tls_key: \S+other.key is not the key of \S+server.pem"):
        load(names)


@pytest.mark.parametrize(
    ("ends_in", "doubt"),
    [
        (timedelta(days=15), None),
        (timedelta(days=13, hours=1), "ends in 13 days"),
        (timedelta(days=-2), "has ended 2 days ago"),
    ],
    ids=["in time", "soon", "late"],
)
async def test_the_end_is_told_in_time(
    server: StartServer,
    authority: Authority,
    ends_in: timedelta,
    doubt: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A certificate that ends within two weeks, or has ended, is a warning at the start, and no reason to refuse it."""
    await server(None, **authority.issue(ends_in=ends_in))
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == (doubt is not None)
    assert doubt is None or doubt in lines[0]


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_key_that_everybody_reads(authority: Authority, mode: int, warned: bool) -> None:
    """It is worth a warning; a group of its own is not."""
    names = authority.issue()
    Path(names["server.tls_key"]).chmod(mode)
    assert [line.partition(":")[0] for line in load(names).doubts()] == ["server.tls_key"] * warned


async def test_the_end_is_a_metric(server: StartServer, authority: Authority) -> None:
    """The page of metrics has the end as Unix time, where there is TLS."""
    running = await server(None, **authority.issue())
    assert running.door.certificates is not None
    async with over_tls(running, authority.trusting()) as client:
        await client.send_bytes(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        text = (await client.read_answer()).body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith("netra_ws_certificate_expiry_seconds ")]
    assert float(line.split()[1]) == running.door.certificates.expires_at
    plain = await server()
    assert "certificate_expiry" not in (await http(plain, "/metrics")).body.decode()
    assert not plain.reload_certificates()


async def test_a_new_certificate_is_for_new_handshakes(server: StartServer, authority: Authority) -> None:
    """What is connected stays connected; who comes later sees the new certificate."""
    running = await server(None, **authority.issue())
    async with socket_over_tls(running, authority.trusting()) as client:
        old = await serial(running, authority)
        authority.issue(ends_in=timedelta(days=200))
        assert await serial(running, authority) == old
        assert running.reload_certificates()
        assert await serial(running, authority) != old
        assert (await client.ask("ping"))["type"] == "pong"
        await client.send("chat", content="still here", agent="echo")
        await client.until("agent_completed", final_response="still here")


async def test_a_session_of_the_old_certificate_is_not_resumed(server: StartServer, authority: Authority) -> None:
    """A client that returns with a ticket of before gets a whole handshake, not an error."""
    running = await server(None, **authority.issue())
    context = authority.trusting(change=lambda context: setattr(context, "maximum_version", ssl.TLSVersion.TLSv1_2))
    async with over_tls(running, context) as client:
        stream: Any = client.stream
        session = stream.session
    authority.issue()
    assert running.reload_certificates()
    async with over_tls(running, context) as client:
        stream = client.stream
        assert session.has_ticket
        assert not stream.session_reused


def test_a_certificate_without_an_end(authority: Authority) -> None:
    """The last moment that a certificate can name is a time like others."""
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - datetime.now(UTC)
    certificates = load(authority.issue(ends_in=last))
    assert certificates.reload()
    assert list(certificates.doubts()) == []


def test_a_key_that_goes_after_it_was_read(authority: Authority) -> None:
    """Asking for doubts later reads no file again."""
    names = authority.issue()
    certificates = load(names)
    Path(names["server.tls_key"]).unlink()
    assert list(certificates.doubts()) == []


def test_check_config_tells_all_of_it(authority: Authority, tmp_path: Path) -> None:
    """What a production start would fail on with these files is told with all the rest, and what is doubtful, too."""
    names = authority.issue(ends_in=timedelta(days=3, hours=1))
    lines = check_config(tmp_path, **names)
    assert any(re.search(r"server.tls_cert: \S+ ends in 3 days", line) for line in lines)
    encrypt(names)
    lines = check_config(tmp_path, **names, **{"server.host": "::", "auth.query_token": "true"})
    stoppers = [line.strip().partition(":")[0] for line in lines[lines.index(STOPPED) + 1 :]]
    wanted = {"auth.secret", "origins.allowed", "auth.query_token", "server.tls_key"}
    assert wanted <= set(stoppers)
    lines = check_config(tmp_path, **{"server.host": "::"})
    assert any(line.strip().startswith("server.host: :: can be reached") for line in lines[lines.index(STOPPED) :])


STOPPED = "A production start would be stopped by:"


def check_config(folder: Path, **given: str) -> list[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("NETRA_WS_")}
    more = {f"NETRA_WS_{name.upper().replace('.', '_')}": value for name, value in given.items()}
    done = subprocess.run(
        [sys.executable, "-m", "netra_ws", "check-config"],
        cwd=folder,
        env={**own, **more, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("damage", [chain_in_part, key_in_part, encrypt], ids=["chain", "key", "encrypted"])
async def test_a_broken_file_replaces_nothing(
    server: StartServer,
    authority: Authority,
    damage: Callable[[dict[str, Any]], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was in use stays in use, and one line says why."""
    running: Server = await server(None, **authority.issue())
    old = await serial(running, authority)
    damage(authority.issue())
    assert not running.reload_certificates()
    assert await serial(running, authority) == old
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith("the certificate was not replaced: server.tls_")
    assert "secret" not in line


async def test_a_hangup_reads_them_again(authority: Authority, tmp_path: Path) -> None:
    """SIGHUP of a real process: the next handshake shows the new certificate, a broken one changes nothing."""
    names = {name.upper().replace(".", "_"): value for name, value in authority.issue().items()}
    async with serving(tmp_path, names) as process:
        assert f"Listening on https://127.0.0.1:{process.port}" in process.log()
        async with socket_over_tls(process, authority.trusting()) as client:
            old = await serial(process, authority)
            authority.issue()
            process.signal(signal.SIGHUP)
            await eventually(lambda: process.log().count("certificate read again") == 1)
            new = await serial(process, authority)
            assert new != old
            chain_in_part(authority.issue())
            process.signal(signal.SIGHUP)
            await eventually(lambda: "the certificate was not replaced" in process.log())
            assert await serial(process, authority) == new
            assert (await client.ask("ping"))["type"] == "pong"
            process.signal(signal.SIGTERM)
            assert (await client.receive_close()).code == 1012
        assert await process.ended() == 0
        assert "Traceback" not in process.log()


async def test_the_chat_talks_to_it(authority: Authority, tmp_path: Path) -> None:
    """The terminal chat goes to https where serve does, and believes SSL_CERT_FILE."""
    names = {name.upper().replace(".", "_"): value for name, value in authority.issue().items()}
    authority.ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with serving(tmp_path, names) as process:
        assert process.popen is not None
        given = {f"NETRA_WS_{name}": value for name, value in names.items()}
        for authorities, status in ((str(tmp_path / "ca.pem"), 0), ("/dev/null", 3)):
            environment = {
                **os.environ,
                **given,
                "PYTHONPATH": str(ROOT),
                "NETRA_WS_SERVER_PORT": str(process.port),
                "NETRA_WS_AUTH_SECRET": SECRET,
                "SSL_CERT_FILE": authorities,
            }
            words = [sys.executable, "-m", "netra_ws", "chat", "--agent", "echo", "over TLS"]
            with trio.fail_after(30):
                done = await trio.run_process(
                    words, cwd=tmp_path, env=environment, capture_stdout=True, capture_stderr=True, check=False,
                    stdin=subprocess.DEVNULL,
                )  # fmt: skip
            assert done.returncode == status, done.stderr
            assert (b"over TLS" in done.stdout) is (status == 0)
            assert (b"certificate was refused" in done.stderr) is (status == 3)
