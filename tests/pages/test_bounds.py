"""The table of bounds: complete, true, and shown."""

from __future__ import annotations

import functools
import re

import pytest

from netra_ws.pages.containers import CONTAINERS
from netra_ws.pages.waits import WAITS
from tests.conftest import StartServer
from tests.kit import connect, http, operator, token

from .finder import containers, sources, waits

#: What holds things and needs no row, and why.
EXCEPTED = {
    **dict.fromkeys(
        ("agents/bridge/belongings.py Belongings.tasks", "agents/bridge/belongings.py Belongings._awaited"),
        "the agent's own tasks, which asyncio holds",
    ),
    "agents/bridge/orders.py Orders._speakers": "one entry for each task of the agent that waits to speak",
    "agents/bridge/post.py Post._calls": "a few entries for each bridged run: what it orders is bounded, and waits",
    **dict.fromkeys(
        (
            "agents/request.py RunRequest.context",
            "contexts/starting.py Ask.context",
            "protocol/reading.py Incoming.body",
        ),
        "part of one command, which has at most limits.max_message_bytes",
    ),
    **dict.fromkeys(
        (
            "contexts/kicking.py Kick._connections",
            "contexts/kicking.py Kick._contexts",
            "contexts/kicking.py Kick._runs",
        ),
        "for one kick: what it met, which has bounds of its own",
    ),
    "protocol/commands.py UserMessage.attachments": "part of one command",
    "contexts/threads.py ThreadState.metadata": "part of the command that made the thread",
    "history/stores/writes.py _puts cache": "one entry for each of the two engines",
    "agents/execution.py _Worker.left_open": "nurseries that one task was in when it ended",
    "identity.py Identity.claims": "part of a token, which came in a head of at most 16 KiB",
    **dict.fromkeys(
        (
            "agents/builtin/calculate.py Notation.signs",
            "agents/builtin/calculate.py Notation._out",
            "agents/builtin/calculate.py Notation._groups",
            "agents/builtin/calculate.py Notation._functions",
        ),
        "lives for one parsing of a text of bounded length",
    ),
    **dict.fromkeys(
        (
            "agents/shapes/schema.py _SchemaWriter._open",
            "agents/shapes/schema.py _SchemaWriter._recursive",
            "agents/shapes/schema.py _SchemaWriter._names",
            "agents/shapes/schema.py _SchemaWriter._written",
            "agents/shapes/schema.py _SchemaWriter.defs",
            "agents/shapes/reading.py _Planner._records",
        ),
        "lives for one declaration, of types that somebody has written",
    ),
    **dict.fromkeys(
        ("agents/shapes/plans.py Reading.wrong", "agents/shapes/plans.py Reading.tried"),
        "for the reading of one value: cut to MAX_FIELDS, and a part of what the value and the type have",
    ),
    "agents/toolbox.py Toolbox._tools": "what a program has declared",
    "agents/tools.py _place CapacityLimiter": "places that a tool's declaration gives each user; goes with the tool",
    "errors.py InvalidParameters.fields": "cut to MAX_FIELDS where it is made",
    "agents/llm/agent.py LlmAgent.options": "fixed when the agent is made",
    "agents/llm/conversation.py Conversation._steps": "at most LlmAgent.max_steps exchanges of results that are cut",
    "agents/llm/endpoint.py ModelEndpoint.prices": "fixed when the endpoint is made",
    "agents/llm/endpoint.py _trust cache": "one",
    "agents/llm/endpoint.py _no_trust cache": "one",
    **dict.fromkeys(
        ("agents/mcp/servers.py McpServer.env", "agents/mcp/servers.py McpServer.headers"),
        "what a program has written",
    ),
    "agents/shapes/bounded.py _bounded cache": "one entry for each draft of JSON Schema",
    "agents/mcp/http.py trust cache": "one entry",
    "agents/mcp/opening.py _load CapacityLimiter": "one place, for who loads the library",
    "agents/builtin/clock.py _names cache": "the names of the system's time zones",
    "contexts/live_job.py LiveJob.seats": "the connections that read the job, which limits.max_connections bounds",
    **dict.fromkeys(
        ("contexts/jobs.py Jobs._live", "contexts/jobs.py Jobs._finding", "contexts/jobs.py Jobs._ended"),
        "those of connections and calls, which have bounds of their own, beside the idle ones",
    ),
    "contexts/jobs.py Jobs._freed": "closings and sweeps that are not committed: a call, or a row of SWEEP_ROWS, each",
    "contexts/reading.py Events._family": "one run and its sub-runs, of which a family has delegation.MAX_FAMILY",
    "contexts/reading.py Events._ready": "what one read of at most 64 KiB of the log gave",
    "contexts/connection.py __attrs_post_init__ open_memory_channel": "the inbox, by its other name",
    "measures.py Histogram.counts": "one figure per bound, of which there are 17",
    "measures.py Recent._slots": "one minute in slots of five seconds",
    **dict.fromkeys(
        ("history/recovery.py _Remains.tools", "history/recovery.py _Remains.inputs"),
        "of one lost run, during the start",
    ),
    **dict.fromkeys(
        ("history/stores/sql.py open CapacityLimiter", "history/stores/sql.py close CapacityLimiter"),
        "for one call",
    ),
    **dict.fromkeys(
        (
            "history/stores/memory.py MemoryStore._streams",
            "history/stores/memory.py MemoryStore._lost",
            "history/stores/memory.py MemoryStore._logs",
            "history/stores/memory.py MemoryStore._users",
            "history/stores/memory.py MemoryStore._unfinished",
            "history/stores/memory.py MemoryStore._revocations",
            "history/stores/memory.py MemoryStore._jobs",
            "history/stores/memory.py MemoryStore._open_jobs",
            "history/stores/shelves.py Log.seqs",
            "history/stores/shelves.py Log.rows",
        ),
        "the history itself, kept where its user wants it: bounded per stream and user, and by the retention",
    ),
    "history/stores/memory.py MemoryStore._carry_out": "made once, one entry per kind of write",
}

#: Waits that need no row, and why.
EXCEPTED_WAITS = {
    "server.py _rooms": "the start of each room, which its own rows are about",
    "server.py _listen": "binding an address",
    "agents/llm/endpoint.py _trust_for": "reading the certificates of the system, once",
    "agents/llm/listening.py Source.leave": "read under a cancel, so it waits for nobody",
    "wire/tls.py TlsStream.aclose": "closing a socket waits for nobody",
    "keyring/ring.py Keyring.load": "the start; bounded by START_S",
}

ROWS = {where for row in CONTAINERS for where in row.where}
WAIT_ROWS = {where for row in WAITS for where in row.where}


@functools.cache
def _found() -> frozenset[str]:
    return frozenset(f"{file} {name}" for file, source in sources().items() for name in containers(source))


@functools.cache
def _found_waits() -> frozenset[str]:
    return frozenset(f"{file} {name}" for file, source in sources().items() for name in waits(source))


def test_nothing_holds_things_without_a_bound() -> None:
    """A new queue, map, cache or limiter cannot be added without a row in the table, or a reason."""
    assert _found() - ROWS - EXCEPTED.keys() == set()


def test_nothing_waits_without_an_end() -> None:
    """A new wait cannot be added without a row in the table, or a reason."""
    assert _found_waits() - WAIT_ROWS - EXCEPTED_WAITS.keys() == set()


def test_the_table_has_no_ghosts() -> None:
    """Every row and every reason stands for something that is in the source."""
    found, found_waits = _found(), _found_waits()
    known = found | {"wire/head.py Request.body"}
    assert ROWS - known == set()
    assert EXCEPTED.keys() - found == set()
    assert set() == WAIT_ROWS - found_waits
    assert EXCEPTED_WAITS.keys() - found_waits == set()
    assert len({row.what for row in CONTAINERS}) == len(CONTAINERS)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("@attrs.define\nclass A:\n    b: dict[str, int] = attrs.field(factory=dict)", ["A.b"]),
        ("@attrs.define\nclass A:\n    b: deque[int] = attrs.field(factory=lambda: deque(maxlen=3))", ["A.b"]),
        ("@attrs.define\nclass A:\n    b: list[int] = attrs.field(init=False)", ["A.b"]),
        ("class A:\n    def __init__(self):\n        self.b = {}", ["A.b"]),
        ("class A:\n    def f(self):\n        self.b: set[int] = set()", ["A.b"]),
        ("SEEN = {}\ndef f(x):\n    SEEN[x] = 1", ["SEEN"]),
        ("SEEN = set()\ndef f(x):\n    SEEN.add(x)", ["SEEN"]),
        ("def f():\n    trio.open_memory_channel(9)", ["f open_memory_channel"]),
        ("def f():\n    x = trio.CapacityLimiter(9)", ["f CapacityLimiter"]),
        ("@functools.cache\ndef f(x): ...", ["f cache"]),
        ("WORDS = {'a': 1}\ndef f(x):\n    return WORDS[x]", []),
        ("class A:\n    b: int = 3", []),
    ],
)
def test_containers_are_found(source: str, found: list[str]) -> None:
    """Whatever can hold a growing number of things is found, in whatever form; what cannot is not."""
    assert list(containers(source)) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("async def f():\n    await event.wait()", ["f"]),
        ("class A:\n    async def f(self):\n        async def g():\n            await trio.sleep(1)", ["A.f.g"]),
        ("async def f():\n    async for x in channel: ...", ["f"]),
        ("async def f():\n    async with self.lock: ...", ["f"]),
        ("async def f():\n    return await trio.to_thread.run_sync(g)", ["f"]),
        ("async def f():\n    await nursery.start(g)", ["f"]),
        ("def f():\n    thread.join()", ["f"]),
        ("async def f():\n    await start(x)\n    return ', '.join(y)", []),
    ],
)
def test_waits_are_found(source: str, found: list[str]) -> None:
    """Whatever waits for somebody is found under the name of its function."""
    assert list(waits(source)) == found


async def test_everybody_sees_the_table_and_operators_how_full_it_is(server: StartServer) -> None:
    """The page shows bounds as they are set, and to an operator what is in everything now."""
    running = await server(limits__max_connections=77, timing__handshake_s=7.0)
    async with connect(running):
        table = (await http(running, "/ws/bounds")).json()
        rows = {row["what"]: row for row in table["containers"]}
        assert rows["seats"]["bound"] == 77
        assert not any("size" in row for row in rows.values())
        assert 7.0 in [row["within_s"] for row in table["waits"]]
        full = (await http(running, "/ws/bounds", bearer=operator())).json()
        sizes = {row["what"]: row["size"] for row in full["containers"] if "size" in row}
        assert (sizes["seats"], sizes["users"], sizes["heartbeats"]) == (1, 1, 1)
        assert all(size <= rows[what]["bound"] for what, size in sizes.items())
        assert (await http(running, "/ws/bounds", bearer=token())).json().keys() == table.keys()
        assert b'"size"' not in (await http(running, "/ws/bounds", bearer=token())).body
        text = await http(running, "/ws/bounds?format=text", bearer=operator())
        assert "seats (per process): now 1, at most 77" in text.body.decode()


async def test_the_metrics_that_the_table_names_are_there(server: StartServer) -> None:
    """Every metric that a row names is on the page of metrics."""
    running = await server()
    page = (await http(running, "/metrics")).body.decode()
    families = set(re.findall(r"^# TYPE netra_ws_(\S+) ", page, re.MULTILINE))
    for row in (*CONTAINERS, *WAITS):
        for name in re.findall(r"(\w+)(?:\{[^}]*\})?(?:, |$)", row.shown):
            assert name in families, f"{row.what}: {name}"
    assert 'bounded_limit{what="seats"}' in page
