"""The numbers of each environment, from ``check-config`` over ``/ws/config`` and the welcome to what they do."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from netra_ws.cli import main
from netra_ws.settings import ENVIRONMENTS, LEAVES
from netra_ws.testing import MemoryServer, RawClient, open_test_server
from netra_ws.testing.frames import CLOSE, PING, TEXT, frame, request, upgrade

#: Of every environment: what the older system had as one number for all, or advertised and did not keep.
EVERYWHERE = {
    "limits.max_message_bytes": "1048576",
    "limits.max_connections_per_user": "10",
    "limits.max_runs_per_user": "8",
    "limits.pings_per_minute_per_connection": "600",
    "limits.max_queued_per_thread": "16",
    "timing.handshake_s": "10",
    "timing.pong_timeout_s": "8",
    "timing.resume_window_s": "30",
    "timing.run_timeout_s": "300",
    "timing.idle_timeout_s": "120",
    "timing.drain_s": "30",
    "timing.finalise_s": "5",
    "origins.strikes": "5",
    "origins.strike_window_s": "600",
}


@attrs.frozen
class Numbers:
    """What one environment says and does."""

    messages: int
    heartbeat_s: float
    failed_connects: int
    connects: int
    console: bool
    query_token: bool

    def lines(self) -> dict[str, str]:
        """Return setting → value as ``check-config`` prints it."""
        return {
            "limits.messages_per_minute": str(self.messages),
            "limits.connects_per_minute_per_address": str(self.connects),
            "limits.failed_connects_per_minute_per_address": str(self.failed_connects),
            "timing.heartbeat_interval_s": f"{self.heartbeat_s:g}",
            "server.console": str(self.console).lower(),
            "auth.query_token": str(self.query_token).lower(),
            **EVERYWHERE,
        }


PROFILES = {
    "testing": Numbers(1000, 25, 3000, 6000, console=False, query_token=False),
    "development": Numbers(300, 45, 3000, 6000, console=True, query_token=True),
    "staging": Numbers(100, 30, 30, 600, console=False, query_token=False),
    "production": Numbers(30, 25, 30, 600, console=False, query_token=False),
}
SECRET = "the tests' own secret, 32 bytes or more"


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, and no settings from outside but what a start outside development needs."""
    for name in [name for name in os.environ if name.startswith("NETRA_WS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRA_WS_AUTH_SECRET", SECRET)
    monkeypatch.setenv("NETRA_WS_ORIGINS_ALLOWED", "https://app.example.org")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, tuple[str, str]]:
    """Return setting → value and source, as ``check-config`` prints them."""
    main(["check-config", *words])
    table, _, _ = capsys.readouterr().out.partition("\n\n")
    rows = [line.split(maxsplit=1) for line in table.splitlines()]
    # The value ends where two spaces follow: a list has single ones in it.
    return {name: tuple(part.strip() for part in rest.rsplit("  ", 1)) for name, rest in rows}  # type: ignore[misc]


def test_every_environment_is_walked() -> None:
    """A new environment cannot be added without saying its numbers here."""
    assert PROFILES.keys() == set(ENVIRONMENTS)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_check_config_shows_the_numbers_and_their_source(
    environment: str, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each number stands there with where it comes from: the profile where it differs, else the default."""
    rows = checked(capsys, "--environment", environment)
    for name, value in PROFILES[environment].lines().items():
        profiled = environment in LEAVES[name].metadata["profile"]
        assert rows[name] == (value, f"profile {environment}" if profiled else "default"), name


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_stronger_source_wins_over_the_profile(
    environment: str, alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Profile, then file, then environment variable; everything else keeps its number."""
    text = "[netra_ws.timing]\nheartbeat_interval_s = 11\n[netra_ws.limits]\nmessages_per_minute = 12\n"
    (alone / "netra_ws.toml").write_text(text)
    monkeypatch.setenv("NETRA_WS_LIMITS_MESSAGES_PER_MINUTE", "13")
    rows = checked(capsys, "--environment", environment)
    assert rows["timing.heartbeat_interval_s"] == ("11", "netra_ws.toml")
    assert rows["limits.messages_per_minute"] == ("13", "NETRA_WS_LIMITS_MESSAGES_PER_MINUTE")
    changed = {"timing.heartbeat_interval_s", "limits.messages_per_minute"}
    expected = {name: value for name, value in PROFILES[environment].lines().items() if name not in changed}
    assert {name: rows[name][0] for name in expected} == expected


def serving(environment: str, **more: object) -> Any:
    overrides = {"environment": environment, "origins.allowed": ["https://app.example.org"], **more}
    return open_test_server(overrides=overrides)


async def status_of(server: MemoryServer, head: bytes) -> int:
    async with server.raw("probe") as client:
        await client.send_bytes(head)
        return (await client.read_head()).status


async def count_until_limited(client: RawClient, most: int) -> int:
    """Say so many messages at once, and return how many of them were looked at."""
    said = b'{"type":"chat","content":"x","agent":"nobody"}'
    await client.send_bytes(b"".join(frame(TEXT, said) for _ in range(most)))
    codes = [(await client.receive())["code"] for _ in range(most)]
    assert set(codes) == {"UNKNOWN_AGENT", "RATE_LIMITED"}
    looked_at = codes.index("RATE_LIMITED")
    assert set(codes[looked_at:]) == {"RATE_LIMITED"}
    return looked_at


@pytest.mark.parametrize("environment", ENVIRONMENTS)
async def test_the_numbers_are_told_and_kept(environment: str, autojump_clock: MockClock) -> None:
    """``/ws/config`` and the welcome tell the profile's numbers, and the server keeps to them."""
    numbers = PROFILES[environment]
    async with serving(environment) as server:
        config = (await server.get("/ws/config")).json()
        assert config["environment"] == environment
        assert config["heartbeat"] == {"interval_s": numbers.heartbeat_s, "pong_timeout_s": 8}
        assert config["limits"]["messages_per_minute"] == numbers.messages
        assert config["websocket"]["limits"]["max_message_rate_per_minute"] == numbers.messages
        assert config["websocket"]["limits"]["heartbeat_interval_seconds"] == numbers.heartbeat_s
        assert ("query" in config["auth"]["carriers"]) is numbers.query_token
        assert config["features"]["console"] is numbers.console
        async with server.connect_raw("ada") as client:
            welcome = client.welcome
            assert (welcome["heartbeat_interval_s"], welcome["pong_timeout_s"]) == (numbers.heartbeat_s, 8)
            assert welcome["limits"]["messages_per_minute"] == numbers.messages
            assert welcome["resume_window_s"] == 30
            assert {name: str(value) for name, value in welcome["limits"].items() if name != "messages_per_minute"} == {
                name: EVERYWHERE[f"limits.{name}"] for name in welcome["limits"] if name != "messages_per_minute"
            }
            assert await count_until_limited(client, numbers.messages + 50) == numbers.messages
            await the_heartbeat_beats(client, numbers.heartbeat_s)
        query = status_of(server, upgrade(f"/ws?token={server.token('eve')}"))
        assert await query == (101 if numbers.query_token else 401)
        assert await status_of(server, request("/")) == (200 if numbers.console else 404)
        echo = await status_of(server, upgrade("/ws/echo", bearer=server.token("eve")))
        assert echo == (101 if environment == "testing" else 404)


async def the_heartbeat_beats(client: RawClient, interval_s: float) -> None:
    """Check that a silent client is asked once an interval whether it is there, and closed when it does not answer."""
    assert trio.current_time() < 1, "all of that took no time"
    client.answers_pings = False
    assert (await client.receive_frame()).opcode == PING
    asked_at = trio.current_time()
    assert asked_at == pytest.approx(interval_s, abs=1.0)
    received = await client.receive_frame()
    assert (received.opcode, received.code) == (CLOSE, 4001)
    assert trio.current_time() - asked_at == pytest.approx(8.0, abs=0.1)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
async def test_guessing_is_limited_where_it_is_meant(environment: str, autojump_clock: MockClock) -> None:
    """Thirty bad tokens of one address lock it out in staging and production, and nobody else."""
    few = PROFILES[environment].failed_connects < 100
    async with serving(environment) as server:
        statuses = [await status_of(server, upgrade(bearer="guess")) for _ in range(31)]
        assert statuses == [401] * 30 + [429 if few else 401]
        async with server.connect_raw("ada", link="elsewhere") as client:
            assert client.welcome["user_id"] == "ada"
