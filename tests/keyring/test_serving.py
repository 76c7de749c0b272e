"""Real servers whose tokens come from an identity service, by sockets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from netra_ws import ConfigError, open_server
from netra_ws.access import freshness
from netra_ws.keyring import ring, sources
from netra_ws.server import Server
from netra_ws.settings import Settings
from tests.conftest import StartServer
from tests.identity_service import identity_service
from tests.key_pairs import KINDS, jwk, jwks, private_pem, public_pem, signed_by
from tests.kit import connect, exchange, http, token, upgrade
from tests.load.process import ROOT, Process

SET = jwks(*(jwk(kind, f"my-{kind}") for kind in KINDS))


async def refused(server: Server, bearer: str) -> None:
    answer = await exchange(server, upgrade(bearer=bearer))
    assert (answer.status, answer.json()["code"]) == (401, "TOKEN_INVALID")


async def gets_in(server: Server, bearer: str) -> None:
    """Try again as a client does that was refused."""
    with trio.fail_after(10):
        while (await http(server, "/ws/stats", bearer=bearer)).status == 401:
            await trio.sleep(0.02)
        async with connect(server, bearer=bearer):
            pass


@pytest.mark.parametrize("algorithm", KINDS)
async def test_clients_of_an_identity_service(algorithm: str, server: StartServer) -> None:
    """A token of each kind opens a socket, beside tokens of the secret; a foreign one does not."""
    async with identity_service(SET) as service:
        running = await server(auth__jwks_url=service.url)
        async with connect(running, bearer=signed_by(algorithm, f"my-{algorithm}")) as client:
            ack = await client.ask("user_message", content="hello", agent="echo")
            await client.until("agent_completed", run_id=ack["run_id"])
        async with connect(running, bearer=token()):
            pass
        await refused(running, signed_by(algorithm, f"my-{algorithm}", 7))
        assert len(service.heads) == 1


async def test_a_rotation(server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first client of a new key gets in, at the socket and at a page; it counts once, and nobody lacks a key."""
    async with identity_service(jwks(jwk("RS256", "one"))) as service:
        running = await server(auth__jwks_url=service.url, limits__failed_connects_per_minute_per_address=1)
        service.body = jwks(jwk("RS256", "two", 2))
        monkeypatch.setattr(freshness, "EARLY_S", 0.0)
        async with connect(running, bearer=signed_by("RS256", "two", 2)):
            pass
        service.body = jwks(jwk("RS256", "three", 3))
        assert (await http(running, "/ws/ticket", method="POST", bearer=signed_by("RS256", "three", 3))).status == 200
        assert len(service.heads) == 3
        auth = (await http(running, "/ws/stats")).json()["auth"]
        assert (auth["ok"], auth["invalid"]) == (2, 0)
        await refused(running, signed_by("RS256", "one"))
        assert (await http(running, "/ws/stats")).json()["auth"]["invalid"] == 1


async def test_a_rotation_under_a_connection(server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """``refresh_auth`` with the first token of a new key is answered when the key has come."""
    async with identity_service(jwks(jwk("ES256", "one"))) as service:
        running = await server(auth__jwks_url=service.url)
        async with connect(running, bearer=signed_by("ES256", "one")) as client:
            service.body = jwks(jwk("ES256", "two", 2))
            monkeypatch.setattr(freshness, "EARLY_S", 0.0)
            answer = await client.ask("refresh_auth", token=signed_by("ES256", "two", 2))
            assert answer["type"] == "auth_refreshed"
        assert len(service.heads) == 2


async def test_nobody_waits_when_keys_were_just_read(server: StartServer) -> None:
    """When no fetch may begin, a token of an unknown key is refused without a wait, and nothing is fetched."""
    async with identity_service(jwks(jwk("ES256", "one"))) as service:
        running = await server(auth__jwks_url=service.url)
        service.body = jwks(jwk("ES256", "two", 2))
        began = trio.current_time()
        await refused(running, signed_by("ES256", "two", 2))
        assert trio.current_time() - began < ring.NEWS_S
        assert len(service.heads) == 1


async def test_a_flood_of_unknown_keys(server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the service hangs, made-up names cost one fetch; few of their senders wait, and others notice nothing."""
    monkeypatch.setattr(ring, "NEWS_S", 2.0)
    monkeypatch.setattr(ring, "MAX_AWAITING", 10)
    async with identity_service(jwks(jwk("EdDSA", "one"))) as service, trio.open_nursery() as nursery:
        running = await server(auth__jwks_url=service.url)
        service.behaviour = "hang"
        monkeypatch.setattr(freshness, "EARLY_S", 0.0)
        answers: list[int] = []

        async def guess(number: int) -> None:
            await refused(running, signed_by("EdDSA", f"made up {number}", 7))
            answers.append(number)

        for number in range(50):
            nursery.start_soon(guess, number)
        with trio.fail_after(5):
            while len(answers) < 40:
                await trio.sleep(0.01)
            for _ in range(5):
                async with connect(running, bearer=signed_by("EdDSA", "one")):
                    pass
            async with connect(running, bearer=token()):
                pass
        assert len(answers) == 40
        assert running.door.crowd.under_way == 10
        with trio.fail_after(5):
            while len(answers) < 50:
                await trio.sleep(0.01)
        assert len(service.heads) == 2


async def test_the_wait_ends_before_the_handshake(server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However short ``timing.handshake_s`` is, who waited for a key in vain is answered."""
    async with identity_service(SET) as service:
        running = await server(auth__jwks_url=service.url, timing__handshake_s=1.0)
        service.behaviour = "hang"
        monkeypatch.setattr(freshness, "EARLY_S", 0.0)
        await refused(running, signed_by("ES256", "new", 2))


@pytest.mark.parametrize("trouble", ["500 No", "302 Found", "garbage", "hang", "too large", "no keys", "gone"])
async def test_trouble_changes_nothing(trouble: str, server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the service does when it is asked again, clients of known keys get in, and none of them waits for it."""
    monkeypatch.setattr(freshness, "EARLY_S", 0.0)
    monkeypatch.setattr(ring, "NEWS_S", 0.2)
    async with identity_service(SET) as service:
        running = await server(auth__jwks_url=service.url)
        if trouble == "too large":
            service.body = SET + b" " * 300_000
        elif trouble == "no keys":
            service.body = b'{"keys":[]}'
        elif trouble in ("garbage", "hang"):
            service.behaviour = trouble  # type: ignore[assignment]
        elif trouble == "gone":
            service.behaviour = "silent close"
        else:
            service.status = trouble
        await refused(running, signed_by("ES256", "new", 2))
        with trio.fail_after(5):
            while len(service.heads) < 2:
                await trio.sleep(0.01)
            for _ in range(20):
                await gets_in(running, signed_by("ES256", "my-ES256"))
            while trouble != "hang" and (await stats(running))["failures"] == 0:
                await trio.sleep(0.01)
        assert (await stats(running))["count"] == 3


async def stats(server: Server) -> dict[str, float]:
    found: dict[str, float] = (await http(server, "/ws/stats")).json()["keys"]
    return found


async def test_what_is_seen_of_keys(server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stats and metrics tell how many keys there are and how old, and no name of one."""
    monkeypatch.setattr(freshness, "EARLY_S", 0.0)
    async with identity_service(SET) as service:
        running = await server(auth__jwks_url=service.url)
        numbers = await stats(running)
        assert 0 <= numbers.pop("last_refresh_age_s") < 10
        assert numbers == {"count": 3, "failures": 0}
        service.status = "500 No"
        await refused(running, signed_by("ES256", "new", 2))
        with trio.fail_after(5):
            while (await stats(running))["failures"] < 1:
                await trio.sleep(0.01)
        text = (await http(running, "/metrics")).body.decode()
        samples = {
            tuple(sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "netra_ws_jwks_refreshes_total"
        }
        assert samples.keys() == {("ok",), ("failed",)}
        assert samples["ok",] == 1
        assert samples["failed",] >= 1
        assert "my-ES256" not in text
        assert "hidden" not in text + (await http(running, "/ws/stats")).body.decode()
    assert (await http(await server(), "/ws/stats")).json()["keys"] is None


async def test_a_file_that_changes(server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New keys in the file open soon; a broken file leaves the keys as they are."""
    monkeypatch.setattr(sources, "LOOK_S", 0.02)
    path = tmp_path / "keys.pem"
    path.write_bytes(public_pem("ES256"))
    running = await server(auth__jwks_file=str(path))
    await gets_in(running, signed_by("ES256"))
    path.write_bytes(public_pem("EdDSA", 2))
    await gets_in(running, signed_by("EdDSA", "whatever", 2))
    await refused(running, signed_by("ES256"))
    path.write_bytes(b"broken")
    with trio.fail_after(5):
        while (await stats(running))["failures"] == 0:
            await trio.sleep(0.01)
    await trio.sleep(0.1)
    assert (await stats(running))["failures"] == 1
    await gets_in(running, signed_by("EdDSA", None, 2))


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        ("404 Not Found", b"", "answered 404"),
        ("302 Found", b"", "answered 302; redirects are not followed"),
        ("200 OK", b"<html>", "not JSON"),
        ("200 OK", b'{"keys":[]}', "no usable key"),
        ("200 OK", jwks(jwk("ES384", "a")), "no usable key (key 1, kid 'a': of another curve than P-256)"),
    ],
    ids=["404", "302", "page", "empty", "other curve"],
)
async def test_a_start_without_keys(status: str, body: bytes, why: str) -> None:
    """A server that could let nobody in does not start, and says why in one line without the query."""
    async with identity_service(body) as service:
        service.status = status
        settings = Settings.make(
            {"server.port": 0, "store.url": "memory:", "auth.jwks_url": service.url}, environment="testing"
        )
        with trio.fail_after(5), pytest.raises(ConfigError) as caught:
            async with open_server(settings):
                pass
        assert str(caught.value) == f"auth.jwks_url: http://localhost:{service.port}/jwks: {why}"


async def test_the_product_without_a_secret(tmp_path: Path) -> None:
    """``python -m netra_ws`` serves clients of an identity service alone, and logs nothing of tokens or the query."""
    async with identity_service(SET) as service:
        process = Process(tmp_path, {"AUTH_JWKS_URL": service.url, "AUTH_SECRET": "", "LOG_LEVEL": "debug"})
        await process.start()
        try:
            bearers = [signed_by(kind, f"my-{kind}") for kind in KINDS]
            for bearer in bearers:
                await gets_in(process, bearer)  # type: ignore[arg-type]
            await refused(process, token())  # type: ignore[arg-type]
        finally:
            assert process.popen is not None
            process.popen.terminate()
            with trio.fail_after(20):
                await trio.to_thread.run_sync(process.popen.wait)
        assert process.popen.returncode == 0
        log = process.log()
        assert "hidden" not in log
        assert not any(bearer[-20:] in log for bearer in bearers)


def command(folder: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("NETRA_WS_")}
    given = {f"NETRA_WS_{name}": value for name, value in environ.items()}
    return subprocess.run(
        [sys.executable, "-m", "netra_ws", *words],
        cwd=folder,
        env={**own, "PYTHONPATH": str(ROOT), **given},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_check_config_judges_without_the_network(tmp_path: Path) -> None:
    """An address that nobody answers is good enough; a file is read; what is shown has no query."""
    path = tmp_path / "keys.pem"
    path.write_bytes(public_pem("ES256"))
    good = {
        "AUTH_JWKS_URL": "https://nobody.invalid/jwks?key=hidden",
        "AUTH_JWKS_FILE": str(path),
        "ORIGINS_REQUIRED": "false",
    }
    outcome = command(tmp_path, "check-config", "--environment", "production", **good)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "https://nobody.invalid/jwks " in outcome.stdout
    assert "what the keys need" in outcome.stdout
    assert "hidden" not in outcome.stdout
    path.write_bytes(private_pem("ES256"))
    bad = {**good, "AUTH_JWKS_URL": "http://ann:hidden@id.example/", "AUTH_ALGORITHMS": "none,RS256"}
    outcome = command(tmp_path, "check-config", "--environment", "production", **bad)
    assert outcome.returncode == 1
    for told in ("auth.jwks_url: http://id.example/: expected https", "'none' is none of", "auth.jwks_file: no usable"):
        assert told in outcome.stdout
    assert "hidden" not in outcome.stdout


def test_tokens_are_signed_with_the_secret_only(tmp_path: Path) -> None:
    """The command that makes tokens says so when there is no secret, whatever public keys there are."""
    environ = {"AUTH_JWKS_URL": "https://nobody.invalid/jwks", "ENVIRONMENT": "production"}
    outcome = command(tmp_path, "token", "--user", "ada", **environ)
    assert outcome.returncode == 1
    assert "auth.secret: not set, so there is nothing to sign with" in outcome.stderr


def test_tokens_that_would_be_refused(tmp_path: Path) -> None:
    """Where HS256 is not accepted, no token is made that nobody could use."""
    environ = {"AUTH_JWKS_FILE": "keys.pem", "AUTH_ALGORITHMS": "ES256", "AUTH_SECRET": "s" * 32}
    outcome = command(tmp_path, "token", "--user", "ada", **environ)
    assert outcome.returncode == 1
    assert "auth.algorithms: HS256 is not among them" in outcome.stderr


@pytest.mark.parametrize("module", ["cryptography", "jwt", "httpx"])
def test_a_server_with_a_secret_loads_no_more_than_before(module: str, tmp_path: Path) -> None:
    """What only public keys need is imported where there are some."""
    code = (
        "import sys, trio, netra_ws\n"
        "async def main():\n"
        "    async with netra_ws.open_server(netra_ws.Settings.make({'server.port': 0, 'store.url': 'memory:',"
        " 'auth.secret': 's' * 32}, environment='testing')):\n"
        "        pass\n"
        "trio.run(main)\n"
        f"assert {module!r} not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
