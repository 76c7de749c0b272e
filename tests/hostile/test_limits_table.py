"""Every limit of the wire and the protocol, from the outside: its documented answer, its metric, and the others' peace.

One row for each limit. A new limit is a new row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import attrs
import pytest
import trio

from netra_ws.access.limits import LEAST_REQUESTS
from netra_ws.agents.calling import MAX_OPEN_CALLS
from netra_ws.agents.run import Run
from netra_ws.protocol.reading import MAX_CONTAINERS, MAX_DEPTH
from netra_ws.protocol.values import MAX_COMMAND_ID, MAX_METADATA_BYTES, MAX_TITLE
from netra_ws.server import Server
from netra_ws.wire.head import MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_HEADERS, MAX_QUERY_FIELDS
from tests.conftest import StartServer
from tests.kit import (
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Client,
    connect,
    frame,
    http,
    raw,
    request,
    token,
    upgrade,
)
from tests.wire.agents import waiter, worker

from .conftest import Unharmed

Over = Callable[[Server], Awaitable[object]]


@attrs.frozen
class Limit:
    """One limit.

    Attributes:
        over: Drives a server over the edge, and back; returns the answer.
        answer: What the contract says.
        metric: Name and labels of what counts it.
        settings: Of the server, so that the edge is near.
    """

    over: Over
    answer: object
    metric: tuple[str, Mapping[str, str]]
    settings: Mapping[str, object] = attrs.field(factory=dict)


# Heads and handshakes.


async def refused(server: Server, data: bytes, *, source: str = "127.0.0.1") -> object:
    """Return status and code of the answer to a request."""
    async with AsyncExitStack() as stack:
        if source == "127.0.0.1":
            client = await stack.enter_async_context(raw(server))
        else:
            sock = trio.socket.socket()
            await sock.bind((source, 0))
            await sock.connect(("127.0.0.1", server.port))
            client = Client(await stack.enter_async_context(trio.SocketStream(sock)))
        await client.send_bytes(data)
        answer = await client.read_answer()
        return answer.status, answer.json().get("code") if answer.status != 101 else ""


async def slowly(server: Server, data: bytes, every_s: float) -> object:
    """Send *data* byte by byte; return what was answered until the server had enough."""
    async with raw(server) as client, trio.open_nursery() as nursery:

        async def trickle() -> None:
            try:
                for byte in data:
                    await client.stream.send_all(bytes([byte]))
                    await trio.sleep(every_s)
            except trio.BrokenResourceError:
                pass

        nursery.start_soon(trickle)
        rest = await client.read_rest()
        nursery.cancel_scope.cancel()
        return rest


async def repeated(server: Server, data: bytes, times: int) -> object:
    """Return the last of so many answers, from an address of its own."""
    for _ in range(times):
        answer = await refused(server, data, source="127.0.0.2")
    return answer


async def until_refused(server: Server, data: bytes) -> object:
    """Return the first answer that is no 200, from an address of its own.

    The budget grows while we ask, so how often it takes depends on the machine.
    """
    for _ in range(5 * LEAST_REQUESTS):
        answer = await refused(server, data, source="127.0.0.2")
        if answer != (200, None):
            return answer
    return answer


async def crowded(server: Server, count: int, *, one_user: bool) -> object:
    """Return the answer to one who comes when *count* are there."""
    async with AsyncExitStack() as stack:
        for number in range(count):
            client = await stack.enter_async_context(connect(server, "ada" if one_user else f"user{number}"))
            stack.push_async_callback(client.finish)
        return await refused(server, upgrade(bearer=token("ada")))


# Frames and messages.


async def closed(server: Server, data: bytes) -> object:
    """Return the code of the Close that answers *data*."""
    async with connect(server) as client:
        await client.send_bytes(data)
        return (await client.receive_close()).code


async def said(server: Server, text: str | bytes) -> object:
    """Return the code of the error that answers one message."""
    async with connect(server) as client:
        await client.send_frame(TEXT, text)
        answer = await client.receive()
        assert (await client.ask("ping"))["type"] == "pong", "the connection survives"
        await client.finish()
        return answer["type"], answer.get("code")


def command(type_name: str, **fields: object) -> str:
    return json.dumps({"type": type_name, **fields})


async def unanswered(server: Server, data: bytes, within_s: float = 0.2) -> object:
    """Return whether a ping behind *data* is still not answered when another connection's long is."""
    async with connect(server, "slow") as client, connect(server, "quick") as other:
        await client.send_bytes(data + frame(TEXT, command("list_threads", id="last")))
        for _ in range(50):
            assert (await other.ask("list_threads"))["type"] == "thread_list"
        heard = []
        with trio.move_on_after(within_s):
            while True:
                heard.append(await client.receive_frame())
        client.reset()
        return any(f.opcode == TEXT and f.json().get("reply_to") == "last" for f in heard)


async def asked(server: Server, *commands: Mapping[str, Any]) -> object:
    """Say commands on one connection; return the last answer's type and code, and stop what was started."""
    async with connect(server) as client:
        started = []
        for fields in commands:
            rest = {name: value for name, value in fields.items() if name != "type"}
            answer = await client.ask(fields["type"], **rest)
            if answer.get("run_id"):
                started.append(answer["run_id"])
        for run_id in started:
            await client.ask("stop_agent", run_id=run_id)
        await client.finish()
        return answer["type"], answer.get("code")


async def ran(server: Server, agent: str) -> object:
    """Return the code of the error, or who cancelled, of a run."""
    async with connect(server) as client:
        await client.ask("user_message", content="go", agent=agent)
        (*_, completed) = await client.until("agent_completed")
        await client.finish()
        return completed.get("cancelled_by") or completed["error"]["code"]


# Agents.


async def spread(run: Run) -> None:
    """Open one tool call too many at the same time."""

    async def call() -> None:
        async with run.tool("search"):
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(MAX_OPEN_CALLS + 1):
            nursery.start_soon(call)


async def shout(run: Run) -> None:
    """Say one event that is too large."""
    await run.emit("large", "x" * 5000)


AGENTS = {"waiter": waiter, "spread": spread, "shout": shout, "worker": worker(50, 10)}


def closes(code: int) -> tuple[str, Mapping[str, str]]:
    return "closes_total", {"code": str(code)}


def outcome(word: str) -> tuple[str, Mapping[str, str]]:
    return "connections_total", {"outcome": word}


def answered(code: str, type_name: str = "?") -> tuple[str, Mapping[str, str]]:
    return "commands_total", {"type": type_name, "code": code}


def budget(name: str) -> tuple[str, Mapping[str, str]]:
    return "rate_limited_total", {"budget": name}


GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
HASTE = {"timing__handshake_s": 0.3}
#: A client that was slowed down and is gone is noticed by the next ping to it.
SLOW = {"limits__pings_per_minute_per_connection": 300, "timing__heartbeat_interval_s": 1}
POST = b"POST /ws/beacon HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
START = {"type": "user_message", "content": "x", "agent": "waiter"}
INVALID = ("error", "INVALID_MESSAGE")

LIMITS: dict[str, Limit] = {
    # Heads and handshakes.
    "head bytes": Limit(
        partial(refused, data=GET + b"X: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n"),
        (413, "HEAD_TOO_LARGE"),
        outcome("HEAD_TOO_LARGE"),
    ),
    "head fields": Limit(
        partial(refused, data=GET + b"a:b\r\n" * MAX_HEADERS + b"\r\n"),
        (413, "HEAD_TOO_LARGE"),
        outcome("HEAD_TOO_LARGE"),
    ),
    "target bytes": Limit(
        partial(refused, data=request("/" + "a" * MAX_HEAD_BYTES)), (413, "HEAD_TOO_LARGE"), outcome("HEAD_TOO_LARGE")
    ),
    "query fields": Limit(
        partial(refused, data=request("/ws?" + "a&" * (MAX_QUERY_FIELDS + 1))),
        (400, "BAD_REQUEST"),
        outcome("BAD_REQUEST"),
    ),
    "body bytes": Limit(
        partial(refused, data=POST % (MAX_BODY_BYTES + 1) + bytes(MAX_BODY_BYTES + 1)),
        (413, "BODY_TOO_LARGE"),
        outcome("BODY_TOO_LARGE"),
    ),
    "a silent socket": Limit(partial(slowly, data=b"", every_s=0), b"", outcome("handshake_timeout"), HASTE),
    "a slow head": Limit(partial(slowly, data=GET * 100, every_s=0.01), b"", outcome("handshake_timeout"), HASTE),
    "a slow body": Limit(
        partial(slowly, data=POST % 1000 + bytes(1000), every_s=0.01), b"", outcome("handshake_timeout"), HASTE
    ),
    "a token's bytes": Limit(
        partial(refused, data=upgrade(bearer="a" * 9000)),
        (401, "TOKEN_INVALID"),
        ("auth_total", {"outcome": "invalid"}),
    ),
    "connections of an address": Limit(
        partial(until_refused, data=request("/health")),
        (429, "RATE_LIMITED"),
        budget("requests"),
        {"limits__connects_per_minute_per_address": 2},
    ),
    "attempts of an address": Limit(
        partial(repeated, data=upgrade(bearer="guess"), times=6),
        (429, "RATE_LIMITED"),
        budget("connects"),
        {"limits__connects_per_minute_per_address": 5},
    ),
    "failed attempts of an address": Limit(
        partial(repeated, data=upgrade(bearer="guess"), times=4),
        (429, "RATE_LIMITED"),
        outcome("RATE_LIMITED"),
        {"limits__failed_connects_per_minute_per_address": 3},
    ),
    "connections of a user": Limit(
        partial(crowded, count=2, one_user=True),
        (429, "TOO_MANY_CONNECTIONS"),
        outcome("TOO_MANY_CONNECTIONS"),
        {"limits__max_connections_per_user": 2},
    ),
    "connections of all": Limit(
        partial(crowded, count=2, one_user=False),
        (503, "OVERLOADED"),
        outcome("OVERLOADED"),
        {"limits__max_connections": 3},  # the bystander has one
    ),
    # Frames.
    "message bytes": Limit(partial(closed, data=frame(TEXT, "x" * (2**20 + 1))), 1009, closes(1009)),
    "message bytes, announced": Limit(partial(closed, data=frame(TEXT, "", size=2**20 + 1)), 1009, closes(1009)),
    "message bytes, announced in fragments": Limit(
        partial(closed, data=frame(TEXT, "x", fin=False) + frame(CONTINUATION, "", size=2**20)), 1009, closes(1009)
    ),
    "sixteen exbibytes, all but one": Limit(partial(closed, data=frame(TEXT, "", size=2**64 - 1)), 1002, closes(1002)),
    "fragments of a message": Limit(
        partial(closed, data=frame(TEXT, "", fin=False) + frame(CONTINUATION, "", fin=False) * 2000),
        1008,
        closes(1008),
        {"limits__max_message_bytes": 4096},
    ),
    "control frame bytes": Limit(partial(closed, data=frame(PING, "x" * 126)), 1002, closes(1002)),
    "malformed messages in a row": Limit(partial(closed, data=frame(TEXT, "") * 20), 1008, closes(1008)),
    "ping frames": Limit(
        partial(unanswered, data=frame(PING, "x") * 400),
        False,
        budget("control"),
        SLOW,
    ),
    "pong frames": Limit(
        partial(unanswered, data=frame(PONG, "x") * 400),
        False,
        budget("control"),
        SLOW,
    ),
    "ping commands": Limit(
        # Commands take time: on a busy machine, too, it is to be the budget that holds them up.
        partial(unanswered, data=frame(TEXT, command("ping")) * 400, within_s=1),
        False,
        budget("pings"),
        SLOW,
    ),
    # Messages.
    "JSON levels": Limit(
        partial(said, text='{"type":"ping","x":' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}"),
        INVALID,
        answered("INVALID_MESSAGE"),
    ),
    "JSON levels, all of them": Limit(
        partial(said, text="[" * 60_000), ("error", "INVALID_JSON"), answered("INVALID_JSON")
    ),
    "JSON lists and objects": Limit(
        partial(said, text='{"type":"ping","x":[' + "{}," * MAX_CONTAINERS + "1]}"),
        INVALID,
        answered("INVALID_MESSAGE"),
    ),
    "digits of a number": Limit(
        partial(said, text='{"type":"ping","timestamp":' + "9" * 5000 + "}"),
        ("error", "INVALID_JSON"),
        answered("INVALID_JSON"),
    ),
    "size of a number": Limit(
        partial(said, text='{"type":"ping","timestamp":1e999999}'), ("error", "INVALID_JSON"), answered("INVALID_JSON")
    ),
    "what a number may be": Limit(
        partial(said, text='{"type":"ping","timestamp":NaN}'), ("error", "INVALID_JSON"), answered("INVALID_JSON")
    ),
    "a number in a string": Limit(
        partial(said, text=command("ping", timestamp="9" * 100_000)), INVALID, answered("INVALID_MESSAGE", "ping")
    ),
    "characters of a title": Limit(
        partial(said, text=command("create_thread", title="x" * (MAX_TITLE + 1))),
        INVALID,
        answered("INVALID_MESSAGE", "create_thread"),
    ),
    "bytes of metadata": Limit(
        partial(said, text=command("create_thread", metadata={"x": "y" * MAX_METADATA_BYTES})),
        INVALID,
        answered("INVALID_MESSAGE", "create_thread"),
    ),
    "characters of an id": Limit(
        partial(said, text=command("create_thread", thread_id="x" * 129)),
        INVALID,
        answered("INVALID_MESSAGE", "create_thread"),
    ),
    "characters of a command's id": Limit(
        partial(said, text=command("ping", id="x" * (MAX_COMMAND_ID + 1))), INVALID, answered("INVALID_MESSAGE", "ping")
    ),
    "threads of a page": Limit(
        partial(said, text=command("list_threads", limit=101)), INVALID, answered("INVALID_MESSAGE", "list_threads")
    ),
    "bad attachments that are named": Limit(
        partial(said, text=command("chat", content="x", attachments=[1] * 100_000)),
        INVALID,
        answered("INVALID_MESSAGE", "user_message"),
    ),
    # Users.
    "messages per minute": Limit(
        lambda s: asked(s, START, START, START),
        ("error", "RATE_LIMITED"),
        budget("messages"),
        {"limits__messages_per_minute": 2},
    ),
    "runs of a user": Limit(
        lambda s: asked(s, *({**START, "thread_id": f"t{number}"} for number in range(3))),
        ("error", "QUOTA_EXCEEDED"),
        answered("QUOTA_EXCEEDED", "user_message"),
        {"limits__max_runs_per_user": 2},
    ),
    "threads of a user": Limit(
        lambda s: asked(s, *({"type": "create_thread"} for _ in range(3))),
        ("error", "QUOTA_EXCEEDED"),
        answered("QUOTA_EXCEEDED", "create_thread"),
        {"limits__max_threads_per_user": 2},
    ),
    "messages that wait in a thread": Limit(
        lambda s: asked(s, *({**START, "thread_id": "t"} for _ in range(4))),
        ("error", "BUSY"),
        answered("BUSY", "user_message"),
        {"limits__max_queued_per_thread": 2},
    ),
    # Runs.
    "open tool calls of a run": Limit(
        partial(ran, agent="spread"), "QUOTA_EXCEEDED", ("runs_total", {"agent": "spread", "status": "error"})
    ),
    "events of a run": Limit(
        partial(ran, agent="worker"),
        "quota",
        ("runs_total", {"cancelled_by": "quota"}),
        {"limits__max_events_per_run": 50},
    ),
    "bytes of an event": Limit(
        partial(ran, agent="shout"),
        "EVENT_TOO_LARGE",
        ("runs_total", {"agent": "shout", "status": "error"}),
        {"limits__max_event_bytes": 4096},
    ),
}


async def counted(server: Server, metric: tuple[str, Mapping[str, str]]) -> float:
    """Return the sum of all rows of a metric that have these labels."""
    name, labels = metric
    text = (await http(server, "/metrics")).body.decode()
    total = 0.0
    for found, value in re.findall(rf"^netra_ws_{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE):
        if labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found)).items():
            total += float(value)
    return total


@pytest.mark.parametrize("name", LIMITS)
async def test_a_limit_answers_counts_and_spares_others(name: str, server: StartServer, unharmed: Unharmed) -> None:
    """Who goes over the edge hears what the contract says, a metric tells of it, and nobody else notices."""
    limit = LIMITS[name]
    running = await server(agents=AGENTS, timing__resume_window_s=0, agents__default="waiter", **limit.settings)
    async with unharmed(running):
        before = await counted(running, limit.metric)
        assert await limit.over(running) == limit.answer
        with trio.fail_after(5):
            while await counted(running, limit.metric) <= before:  # a Close is counted when its socket is gone
                await trio.sleep(0.01)
