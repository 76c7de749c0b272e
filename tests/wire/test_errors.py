"""Each error code of PROTOCOL §4 that can occur, over a real socket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import trio

from netra_ws.agents.run import Run
from tests.conftest import StartServer
from tests.faulty import SECRET_TEXT, FaultyStore, Health
from tests.kit import BINARY, CLOSE, TEXT, Client, close_payload, connect, frame, holdings, settles

from .agents import waiter

FIELDS = {"type", "reply_to", "code", "error", "message", "retryable", "timestamp"}


def is_error(reply: Mapping[str, Any], code: str, *, reply_to: str | None = None, retryable: bool = False) -> None:
    """Check the shape of an error and that it tells nothing internal."""
    assert (reply["type"], reply["code"]) == ("error", code), reply
    assert reply.get("reply_to") == reply_to
    assert reply["error"] == reply["message"] != ""
    assert reply["retryable"] is retryable
    assert isinstance(reply["timestamp"], float)
    assert set(reply) <= FIELDS | {"details", "retry_after_s", "correlation_id"}
    for internal in ("Traceback", "netra_ws", "Error(", "/", "0x", "hunter2"):
        assert internal not in reply["error"]


async def asked(client: Client, text: str) -> dict[str, Any]:
    """Say *text*, return the error, and check that the connection goes on."""
    await client.say(text)
    reply = await client.receive()
    assert (await client.ask("ping"))["type"] == "pong"
    return reply


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "{",
        '{"type":"ping"',
        "{'type':'ping'}",
        '{"type":"ping"}x',
        "NaN",
        '{"a":"\\ud800"}',
        "[" * 5000,
    ],
)
async def test_invalid_json(text: str, server: StartServer) -> None:
    """What is no JSON is told as such; the connection goes on."""
    async with connect(await server()) as client:
        is_error(await asked(client, text), "INVALID_JSON")


@pytest.mark.parametrize(
    ("message", "path"),
    [
        ([], "$"),
        ("ping", "$"),
        (5, "$"),
        (None, "$"),
        ({"type": 5}, "$.type"),
        ({"type": "ping", "payload": []}, "$.payload"),
        ({"type": "user_message", "content": 5}, "$.content"),
        ({"type": "user_message"}, "$.content"),
        ({"type": "user_message", "content": "x", "on_busy": "wait"}, "$.on_busy"),
        ({"type": "user_message", "content": "x", "timeout_s": 0}, "$.timeout_s"),
        ({"type": "user_message", "content": "x", "timeout_s": "5"}, "$.timeout_s"),
        ({"type": "user_message", "content": "x", "thread_id": "a b"}, "$.thread_id"),
        ({"type": "user_message", "content": "x", "context": []}, "$.context"),
        ({"type": "user_message", "content": "x", "attachments": "x"}, "$.attachments"),
        ({"type": "stop_agent"}, "$.run_id"),
        ({"type": "list_threads", "limit": 101}, "$.limit"),
        ({"type": "list_threads", "payload": {"limit": True}}, "$.payload.limit"),
        ({"type": "rename_thread", "thread_id": "t", "title": None}, "$.title"),
        ({"type": "resume", "epoch": "e", "seq": -1}, "$.seq"),
    ],
)
async def test_invalid_message(message: object, path: str, server: StartServer) -> None:
    """Each bad field is named by its JSON path."""
    async with connect(await server()) as client:
        named = isinstance(message, dict)
        reply = await asked(client, json.dumps({**message, "id": "m"} if isinstance(message, dict) else message))
        is_error(reply, "INVALID_MESSAGE", reply_to="m" if named else None)
        assert path in reply["details"]["fields"], reply


@pytest.mark.parametrize("message", [{}, {"type": None}, {"payload": {"type": "ping"}}])
async def test_missing_type(message: object, server: StartServer) -> None:
    """A message without a type is told so."""
    async with connect(await server()) as client:
        is_error(await asked(client, json.dumps(message)), "MISSING_TYPE")


async def test_unknown_type(server: StartServer) -> None:
    """A type that does not exist is told, with the nearest one that does."""
    async with connect(await server()) as client:
        reply = await client.ask("strat_agent", id="c7")
        is_error(reply, "UNKNOWN_TYPE", reply_to="c7")
        assert reply["details"] == {"did_you_mean": "start_agent"}
        assert reply["error"] == "unknown message type 'strat_agent'"
        is_error(await client.ask("\n" * 10_000, id="long"), "UNKNOWN_TYPE", reply_to="long")


@pytest.mark.parametrize("type_name", ["user_message", "chat", "start_agent"])
async def test_empty_message(type_name: str, server: StartServer) -> None:
    """A text of nothing but space is no message."""
    async with connect(await server()) as client:
        field = "user_request" if type_name == "start_agent" else "content"
        is_error(await client.ask(type_name, **{field: " \n\t"}), "EMPTY_MESSAGE", reply_to="c1")


@pytest.mark.parametrize(
    ("type_name", "fields"),
    [
        ("stop_agent", {"run_id": "theirs"}),
        ("get_thread_history", {"thread_id": "theirs"}),
        ("rename_thread", {"thread_id": "theirs", "title": "x"}),
        ("delete_thread", {"thread_id": "theirs"}),
        ("input_response", {"input_id": "theirs", "status": "resolved"}),
        ("connect_job", {"job_id": "theirs"}),
        ("disconnect_job", {"job_id": "theirs"}),
        ("resume", {"epoch": "e", "seq": 0, "job_id": "theirs"}),
    ],
)
async def test_not_found(type_name: str, fields: dict[str, Any], server: StartServer) -> None:
    """What belongs to another user is as unknown as what does not exist."""
    running = await server(agents={"waiter": waiter})
    async with connect(running, "eve") as eve, connect(running) as client:
        await eve.ask("start_agent", user_request="x", agent="waiter", thread_id="theirs", run_id="theirs")
        for name in ("theirs", "nobodys"):
            changed = {key: name if value == "theirs" else value for key, value in fields.items()}
            is_error(await client.ask(type_name, id=name, **changed), "NOT_FOUND", reply_to=name)


async def test_conflict(server: StartServer) -> None:
    """One id for two commands, and a run id for two runs, are refused; a repeat gets the same answer."""
    async with connect(await server()) as client:
        first = await client.ask("start_agent", id="a", user_request="x", agent="echo", run_id="r")
        again = await client.ask("start_agent", id="a", user_request="x", agent="echo", run_id="r")
        assert {**again, "timestamp": 0} == {**first, "timestamp": 0}
        is_error(await client.ask("start_agent", id="a", user_request="y"), "CONFLICT", reply_to="a")
        is_error(await client.ask("start_agent", id="b", user_request="x", run_id="r"), "CONFLICT", reply_to="b")


@pytest.mark.parametrize(
    ("permissions", "type_name", "fields"),
    [
        (["read"], "user_message", {"content": "x"}),
        (["read"], "stop_agent", {"run_id": "x"}),
        (["read"], "create_thread", {}),
        (["chat"], "list_threads", {}),
        (["chat"], "get_thread_history", {"thread_id": "x"}),
        (["chat"], "resume", {"epoch": "x", "seq": 0}),
        (["chat", "read"], "kick", {"user_id": "eve"}),
        (["chat", "read"], "publish_job", {"job_id": "j", "name": "n", "value": 1}),
        ([], "user_message", {"content": "x"}),
    ],
)
async def test_forbidden(permissions: list[str], type_name: str, fields: dict[str, Any], server: StartServer) -> None:
    """A command that the token does not permit is refused."""
    async with connect(await server(), permissions=permissions) as client:
        is_error(await client.ask(type_name, **fields), "FORBIDDEN", reply_to="c1")
        assert (await client.ask("ping"))["type"] == "pong"


async def test_continue_is_forbidden_where_settings_say_so(server: StartServer) -> None:
    """``on_disconnect`` continue is the operator's to allow."""
    async with connect(await server(agents__allow_continue=False)) as client:
        reply = await client.ask("user_message", content="x", on_disconnect="continue")
        is_error(reply, "FORBIDDEN", reply_to="c1")


async def test_busy(server: StartServer) -> None:
    """A thread at work refuses where the client asked for that, and when its queue is full."""
    running = await server(agents={"waiter": waiter}, limits__max_queued_per_thread=1)
    async with connect(running) as client:
        say = partial(client.ask, "user_message", content="x", agent="waiter", thread_id="t")
        assert (await say())["disposition"] == "started"
        is_error(await say(id="no", on_busy="reject"), "BUSY", reply_to="no", retryable=True)
        assert (await say())["disposition"] == "queued"
        is_error(await say(id="full"), "BUSY", reply_to="full", retryable=True)


async def test_rate_limited(server: StartServer) -> None:
    """Above the budget a message is refused with the seconds to wait; stops and reads still work."""
    async with connect(await server(limits__messages_per_minute=2)) as client:
        for _ in range(2):
            assert (await client.ask("user_message", content="x", agent="echo"))["type"] == "ack"
        reply = await client.ask("user_message", id="late", content="x")
        is_error(reply, "RATE_LIMITED", reply_to="late", retryable=True)
        assert 0 < reply["retry_after_s"] <= 30
        assert (await client.ask("list_threads"))["type"] == "thread_list"
        assert (await client.ask("ping"))["type"] == "pong"


async def test_quota_exceeded(server: StartServer) -> None:
    """More runs or threads than allowed are refused; what is there goes on."""
    running = await server(agents={"waiter": waiter}, limits__max_runs_per_user=1, limits__max_threads_per_user=2)
    async with connect(running) as client:
        ack = await client.ask("start_agent", user_request="x", agent="waiter", thread_id="a")
        more = await client.ask("start_agent", id="r", user_request="x", agent="waiter", thread_id="b")
        is_error(more, "QUOTA_EXCEEDED", reply_to="r", retryable=True)
        assert (await client.ask("create_thread", thread_id="c"))["type"] == "thread_created"
        is_error(await client.ask("create_thread", id="t", thread_id="d"), "QUOTA_EXCEEDED", reply_to="t")
        assert (await client.ask("stop_agent", run_id=ack["run_id"]))["status"] == "cancelled"


async def test_unknown_agent(server: StartServer) -> None:
    """An agent that does not exist is told, with those that do."""
    async with connect(await server()) as client:
        reply = await client.ask("start_agent", user_request="x", agent="nobody")
        is_error(reply, "UNKNOWN_AGENT", reply_to="c1")
        assert reply["details"] == {"agents": ["assistant", "echo"]}


async def test_draining(server: StartServer) -> None:
    """While the server drains, running work goes on and new work is refused."""
    running = await server(agents={"waiter": waiter})
    async with connect(running) as client, trio.open_nursery() as nursery:
        ack = await client.ask("start_agent", user_request="x", agent="waiter")
        nursery.start_soon(running.drain, 30.0)
        notice = (await client.until("draining"))[-1]
        assert notice["deadline_s"] == 30.0
        reply = await client.ask("user_message", id="new", content="x", thread_id="other")
        is_error(reply, "DRAINING", reply_to="new", retryable=True)
        assert (await client.ask("stop_agent", run_id=ack["run_id"]))["status"] == "cancelled"
        closed = await client.receive_close()
        assert closed.code == 1012
        await client.send_frame(CLOSE, closed.payload)
        await client.stream.aclose()


async def test_unavailable(server: StartServer) -> None:
    """While the store is away commands say so, and work again when it is back."""
    store = FaultyStore()
    async with connect(await server(store=store)) as client:
        await client.ask("create_thread", thread_id="t")
        store.turn(Health.AWAY)
        for type_name, fields in (
            ("list_threads", {}),
            ("user_message", {"content": "x", "thread_id": "new"}),
            ("stop_agent", {"run_id": "x"}),
        ):
            reply = await client.ask(type_name, id=type_name, **fields)
            is_error(reply, "UNAVAILABLE", reply_to=type_name, retryable=True)
            assert SECRET_TEXT not in json.dumps(reply)
        store.turn(Health.WELL)
        assert (await client.ask("list_threads"))["type"] == "thread_list"
        again = await client.ask("user_message", id="user_message", content="x", thread_id="new", agent="echo")
        assert again["type"] == "ack", "a retryable error is not remembered"


async def test_cancel_timeout(server: StartServer) -> None:
    """An agent that does not stop is told so within ``finalise_s``; the connection and new runs go on."""
    release = trio.Event()

    async def stubborn(run: Run) -> str:
        with trio.CancelScope(shield=True):
            await release.wait()
        return "at last"

    running = await server(agents={"stubborn": stubborn}, timing__finalise_s=0.2)
    async with connect(running) as client:
        ack = await client.ask("start_agent", user_request="x", agent="stubborn")
        reply = await client.ask("stop_agent", id="stop", run_id=ack["run_id"])
        is_error(reply, "CANCEL_TIMEOUT", reply_to="stop")
        assert (await client.ask("start_agent", user_request="x", agent="echo"))["type"] == "ack"
        release.set()


async def test_internal(server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    """A bug of ours is told by a number that the log knows, and by nothing else."""
    store = FaultyStore()
    async with connect(await server(store=store)) as client:
        store.turn(Health.BROKEN)
        reply = await client.ask("list_threads")
        store.turn(Health.WELL)
        is_error(reply, "INTERNAL", reply_to="c1")
        assert reply["correlation_id"] in reply["error"]
        assert reply["correlation_id"] in caplog.text
        assert SECRET_TEXT in caplog.text
        assert (await client.ask("list_threads"))["type"] == "thread_list"


async def test_json_rpc_errors_keep_the_shape_of_json_rpc(server: StartServer) -> None:
    """An error of a JSON-RPC command is a JSON-RPC error with our code inside."""
    async with connect(await server()) as client:
        await client.say(json.dumps({"jsonrpc": "2.0", "id": 7, "method": "strat_agent"}))
        reply = await client.receive()
        assert (reply["jsonrpc"], reply["id"], reply["error"]["code"]) == ("2.0", 7, -32601)
        assert reply["error"]["data"]["code"] == "UNKNOWN_TYPE"


# What ends a connection.


async def test_twenty_malformed_messages_in_a_row_close_with_1008(server: StartServer) -> None:
    """Each of them is answered; the twentieth ends the connection."""
    running = await server()
    before = holdings(running)
    async with connect(running) as client:
        bad = ["nonsense", "[]", "{}", '{"type":"strat_agent"}'] * 5
        for text in bad:
            await client.say(text)
        codes = [(await client.receive())["code"] for _ in bad]
        assert codes == ["INVALID_JSON", "INVALID_MESSAGE", "MISSING_TYPE", "UNKNOWN_TYPE"] * 5
        closed = await client.receive_close()
        assert closed.code == 1008
        await client.send_frame(CLOSE, closed.payload)
        assert await client.receive_end() == b""
    await settles(running, before)


async def test_a_good_message_in_between_forgives(server: StartServer) -> None:
    """Only malformed messages in a row count."""
    async with connect(await server()) as client:
        for _ in range(3):
            for _ in range(19):
                await client.say("nonsense")
                assert (await client.receive())["code"] == "INVALID_JSON"
            assert (await client.ask("ping"))["type"] == "pong"
            for _ in range(19):
                await client.say("nonsense")
                assert (await client.receive())["code"] == "INVALID_JSON"
            assert (await client.ask("chat", content=" "))["code"] == "EMPTY_MESSAGE"


async def test_errors_of_good_messages_do_not_close(server: StartServer) -> None:
    """What is well-formed and cannot be done is no reason to close."""
    async with connect(await server()) as client:
        for number in range(25):
            assert (await client.ask("get_thread_history", id=f"n{number}", thread_id="x"))["code"] == "NOT_FOUND"
            assert (await client.ask("user_message", id=f"e{number}", content=" "))["code"] == "EMPTY_MESSAGE"


async def test_a_flood_of_malformed_messages_leaves_nothing(server: StartServer) -> None:
    """Far more than twenty at once close with 1008, and the connection's task ends."""
    running = await server()
    before = holdings(running)
    async with connect(running) as client:
        await client.send_bytes(frame(TEXT, "nonsense") * 1000)
        closed = await client.receive_close()
        assert closed.code == 1008
        await client.send_frame(CLOSE, closed.payload)
        await client.receive_end()
    await settles(running, before)


@pytest.mark.parametrize("how", ["one frame", "fragments", "several at once", "then a ping", "only claimed"])
async def test_oversize_messages_close_with_1009(how: str, server: StartServer) -> None:
    """A frame or message above the limit ends with a Close frame with 1009, however it comes."""
    running = await server(limits__max_message_bytes=1000)
    before = holdings(running)
    async with connect(running) as client:
        large = frame(TEXT, "x" * 1001)
        data = {
            "one frame": large,
            "fragments": frame(TEXT, "x" * 600, fin=False) + frame(0, "x" * 600, fin=False),
            "several at once": large * 3,
            "then a ping": large + frame(0x9, "late") + frame(TEXT, '{"type":"ping"}'),
            "only claimed": frame(TEXT, "x" * 5000, size=2**40),
        }[how]
        await client.send_bytes(data)
        assert (await client.receive_close()).code == 1009
        await client.send_frame(CLOSE, close_payload(1009))
        assert await client.receive_end() == b""
    await settles(running, before)
    async with connect(running) as client:
        await client.ask("ping")


@pytest.mark.parametrize("payload", [b"", b"\x00\x01", b'{"type":"ping"}'])
async def test_binary_messages_close_with_1003(payload: bytes, server: StartServer) -> None:
    """The protocol is text."""
    running = await server()
    before = holdings(running)
    async with connect(running) as client:
        await client.send_frame(BINARY, payload)
        closed = await client.receive_close()
        assert closed.code == 1003
        await client.send_frame(CLOSE, closed.payload)
        assert await client.receive_end() == b""
    await settles(running, before)
