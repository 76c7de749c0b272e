from __future__ import annotations

import time
from typing import Any

import pytest

from netra_ws.server import Server
from tests.conftest import StartServer
from tests.kit import connect, http, operator, token
from tests.wire.agents import waiter


async def stats_of(server: Server, bearer: str | None = None) -> dict[str, Any]:
    answer = await http(server, "/ws/stats", bearer=bearer)
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    fields: dict[str, Any] = answer.json()
    return fields


async def test_everybody_sees_counts_and_nobody_sees_names(server: StartServer) -> None:
    """Without a token there are sums only."""
    running = await server()
    async with connect(running, "somebody-special") as client:
        await client.ask("ping")
        await client.ask("strat_agent")
        stats = await stats_of(running)
        assert stats["users"] == stats["connections"] == stats["streams"] == 1
        assert stats["runs"] == 0
        assert stats["messages_in"] == 2
        assert stats["messages_out"] == 3
        assert stats["errors"] == {"UNKNOWN_TYPE": 1}
        assert {outcome: count for outcome, count in stats["auth"].items() if count} == {"ok": 1}
        assert stats["connections_total"] == {"accepted": 1}
        assert "by_user" not in stats
        assert "special" not in str(stats)


async def test_an_operator_sees_users_connections_and_runs(server: StartServer) -> None:
    """With an operator's token each connection is told with its figures."""
    running = await server(agents={"waiter": waiter})
    async with connect(running) as client, connect(running, "bob"):
        ack = await client.ask("user_message", content="x", agent="waiter")
        await client.ask("strat_agent")
        stats = await stats_of(running, operator())
        assert set(stats["by_user"]) == {"ada", "bob"}
        ada = stats["by_user"]["ada"]
        assert ada["state"] == "open"
        assert [run["run_id"] for run in ada["runs"]] == [ack["run_id"]]
        (connection,) = ada["connections"]
        assert connection["connection_id"] == client.welcome["connection_id"]
        assert connection["thread_id"] == ack["thread_id"]
        assert (connection["messages_in"], connection["errors"], connection["cursor_lag"]) == (2, 1, 0)
        assert connection["bytes_in"] > 50
        assert connection["bytes_out"] > 500
        assert abs(connection["last_activity"] - time.time()) < 5
        assert connection["rtt_ms"] is None
        assert ada["stream"]["readers"] == 1


async def test_jobs_are_counted(server: StartServer) -> None:
    """Everybody sees how many jobs are in memory, an operator how many each connection reads, and nobody their ids."""
    running = await server()
    async with connect(running, permissions=("job:*",)) as client:
        for job_id in ("special-1", "special-2"):
            await client.ask("connect_job", job_id=job_id)
        assert (await stats_of(running))["jobs"] == 2
        stats = await stats_of(running, operator())
        assert stats["by_user"]["ada"]["connections"][0]["jobs"] == 2
        assert "special" not in str(stats)
        await client.ask("disconnect_job", job_id="special-1")
        assert (await stats_of(running, operator()))["by_user"]["ada"]["connections"][0]["jobs"] == 1


@pytest.mark.parametrize(
    ("bearer", "status", "code"),
    [
        ("nonsense", 401, "TOKEN_INVALID"),
        (token(permissions=["operator"], expires_s=-60), 401, "TOKEN_EXPIRED"),
    ],
)
async def test_other_tokens_are_refused(bearer: str, status: int, code: str, server: StartServer) -> None:
    """A token that is not good is not passed over in silence."""
    answer = await http(await server(), "/ws/stats", bearer=bearer)
    assert (answer.status, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize("permissions", [("chat", "read"), ("operators",), ()])
async def test_who_is_no_operator_sees_what_everybody_sees(permissions: tuple[str, ...], server: StartServer) -> None:
    """A good token that is no operator's shows the counts, as no token does, and nothing more."""
    running = await server()
    async with connect(running):
        mine = (await http(running, "/ws/stats", bearer=token(permissions=permissions))).json()
        assert mine.keys() == (await http(running, "/ws/stats")).json().keys()
        assert "by_user" not in mine


async def test_guessing_tokens_here_locks_the_address_out(server: StartServer) -> None:
    """Failed tokens count against the address, and this page asks that budget, too."""
    running = await server(limits__failed_connects_per_minute_per_address=2)
    for _ in range(2):
        assert (await http(running, "/ws/stats", bearer="guess")).status == 401
    answer = await http(running, "/ws/stats", bearer=operator())
    assert (answer.status, answer.json()["code"]) == (429, "RATE_LIMITED")
    assert int(answer.headers["retry-after"]) >= 1
    assert (await http(running, "/ws/stats")).status == 200, "without a token nothing is guessed"


async def test_the_config_tells_how_to_connect(server: StartServer) -> None:
    """A client learns endpoint, protocols, carriers, limits, heartbeat and features without a token."""
    running = await server(timing__heartbeat_interval_s=7, limits__max_runs_per_user=3)
    answer = await http(running, "/ws/config")
    config = answer.json()
    assert config["endpoint"] == "/ws"
    assert config["protocols"] == ["netra.v1"]
    assert config["auth"] == {"methods": ["jwt", "ticket"], "carriers": ["header", "subprotocol", "ticket"]}
    assert config["heartbeat"] == {"interval_s": 7, "pong_timeout_s": 8.0}
    assert config["limits"]["max_runs_per_user"] == 3
    assert config["limits"]["max_message_bytes"] == 1_048_576
    assert {"resume", "threads"} <= set(config["features"])
    assert "secret" not in answer.body.decode()
    assert (await http(await server(auth__query_token=True), "/ws/config")).json()["auth"]["carriers"][-1] == "query"
