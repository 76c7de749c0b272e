from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from netra_ws.server import Server
from tests.conftest import StartServer
from tests.kit import PONG, connect, exchange, holdings, http, settles, upgrade
from tests.wire.agents import waiter

GAUGES = {"connections", "users", "runs", "runs_stuck", "jobs", "streams", "tasks"}
COUNTERS = {
    "connections_total": {"outcome"},
    "commands_total": {"type", "code"},
    "events_total": {"type"},
    "runs_total": {"agent", "status", "cancelled_by"},
    "closes_total": {"code"},
    "auth_total": {"outcome"},
    "origins_refused_total": {"reason"},
    "rate_limited_total": {"budget"},
    "replays_total": {"outcome"},
    "deltas_merged_total": set(),
    "bytes_total": {"direction"},
    "store_errors_total": set(),
}
HISTOGRAMS = {
    "run_seconds": {"agent"},
    "first_event_seconds": set(),
    "commit_seconds": set(),
    "ping_rtt_seconds": set(),
    "loop_stall_seconds": set(),
    "cancel_seconds": set(),
}

Samples = dict[str, list[tuple[dict[str, str], float]]]


async def metrics_of(server: Server) -> tuple[str, Samples]:
    answer = await http(server, "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = answer.body.decode()
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name.removeprefix("netra_ws_"), []).append((sample.labels, sample.value))
    return text, samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return sum(figure for found, figure in samples.get(name, []) if labels.items() <= found.items())


async def busy(server: Server) -> None:
    """Let every counter count something."""
    before = holdings(server)
    await exchange(server, upgrade(bearer="nonsense"))
    await exchange(server, upgrade(headers=[("origin", "https://evil.example")]))
    async with connect(server, "somebody-special") as client:
        epoch = client.welcome["stream"]["epoch"]
        ack = await client.ask("user_message", content="hello", agent="echo", thread_id="thread-special")
        await client.until("agent_completed", run_id=ack["run_id"])
        await client.ask("strat_agent")
        ack = await client.ask("user_message", content="hello", agent="waiter", thread_id="thread-special")
        await client.ask("stop_agent", run_id=ack["run_id"])
        await client.finish()
    async with connect(server, "somebody-special", path=f"/ws?resume={epoch}:0"):
        pass
    await settles(server, before)


async def test_every_documented_name_is_there_with_its_labels(server: StartServer) -> None:
    """After some traffic Prometheus' own parser finds each name of PROTOCOL §8 with exactly its labels."""
    running = await server(agents={"waiter": waiter})
    await busy(running)
    _, samples = await metrics_of(running)
    assert set(samples) >= GAUGES
    assert all(samples[name][0][0] == {} for name in GAUGES)
    for name, labels in COUNTERS.items():
        assert name in samples, name
        assert all(set(found) == labels for found, _ in samples[name]), name
    for name, labels in HISTOGRAMS.items():
        assert all(set(found) == labels | {"le"} for found, _ in samples[f"{name}_bucket"]), name
        assert {f"{name}_sum", f"{name}_count"} <= set(samples), name


async def test_the_numbers_are_those_of_what_happened(server: StartServer) -> None:
    """Counts by outcome, type, code, agent and status are right."""
    running = await server(agents={"waiter": waiter})
    await busy(running)
    async with connect(running, "somebody-special"):
        _, samples = await metrics_of(running)
    assert value(samples, "connections") == value(samples, "users") == 1
    assert value(samples, "runs") == value(samples, "runs_stuck") == 0
    assert value(samples, "connections_total", outcome="accepted") == 3
    assert value(samples, "connections_total", outcome="TOKEN_INVALID") == 1
    assert value(samples, "commands_total", type="user_message", code="ok") == 2
    assert value(samples, "commands_total", type="?", code="UNKNOWN_TYPE") == 1
    assert value(samples, "events_total", type="agent_completed") == 2
    assert value(samples, "runs_total", agent="echo", status="success", cancelled_by="") == 1
    assert value(samples, "runs_total", agent="waiter", status="cancelled", cancelled_by="user") == 1
    assert value(samples, "closes_total", code="1000") == 1
    assert value(samples, "auth_total", outcome="ok") == 3
    assert value(samples, "auth_total", outcome="invalid") == 1
    assert value(samples, "origins_refused_total", reason="not_allowed") == 1
    assert value(samples, "replays_total", outcome="complete") == 1
    assert value(samples, "bytes_total", direction="out") > value(samples, "bytes_total", direction="in") > 100
    assert value(samples, "run_seconds_count", agent="echo") == 1
    assert value(samples, "first_event_seconds_count") >= 1
    assert value(samples, "cancel_seconds_count") == 1
    assert value(samples, "commit_seconds_count") >= 1
    assert value(samples, "store_errors_total") == 0


async def test_histograms_add_up(server: StartServer) -> None:
    """Buckets grow, and the last one is the count."""
    running = await server(agents={"waiter": waiter})
    await busy(running)
    _, samples = await metrics_of(running)
    buckets = [figure for labels, figure in samples["commit_seconds_bucket"]]
    assert buckets == sorted(buckets)
    assert buckets[-1] == value(samples, "commit_seconds_count")
    assert samples["commit_seconds_bucket"][-1][0]["le"] == "+Inf"


async def test_no_label_names_a_user_a_thread_or_a_run(server: StartServer) -> None:
    """Metrics grow with what the server is, not with who uses it; a client cannot invent labels either."""
    running = await server(agents={"waiter": waiter})
    await busy(running)
    async with connect(running, "somebody-special") as client:
        await client.ask("an_invented_type")
        for code in (3001, 3002, 4500):
            async with connect(running, "somebody-special") as closing:
                await closing.finish(code)
        text, _ = await metrics_of(running)
    for private in ("special", "run_id", "thread-", "conn_", "msg_", "an_invented_type", "evil"):
        assert private not in text


async def test_pings_are_measured(server: StartServer) -> None:
    """The round trip of a ping stands in its histogram."""
    running = await server(timing__heartbeat_interval_s=0.1, timing__pong_timeout_s=0.05)
    async with connect(running) as client:
        for _ in range(3):
            await client.send_frame(PONG, (await client.receive_frame()).payload)
        _, samples = await metrics_of(running)
    assert value(samples, "ping_rtt_seconds_count") >= 1


async def test_refused_by_a_budget(server: StartServer) -> None:
    """Messages, other commands and attempts above their budgets are counted by budget."""
    running = await server(limits__messages_per_minute=1, limits__connects_per_minute_per_address=1)
    async with connect(running) as client:
        await client.ask("user_message", content="x", agent="echo")
        for talk in ("user_message", "chat", "agent_request"):
            assert (await client.ask(talk, content="x", user_request="x"))["code"] == "RATE_LIMITED"
        codes = [(await client.ask("list_threads")).get("code") for _ in range(11)]
        assert codes == [None] * 10 + ["RATE_LIMITED"]
        assert (await exchange(running, upgrade(bearer="x"))).status == 429
        _, samples = await metrics_of(running)
    assert value(samples, "rate_limited_total", budget="messages") == 3
    assert value(samples, "rate_limited_total", budget="other") == 1
    assert value(samples, "rate_limited_total", budget="connects") == 1
