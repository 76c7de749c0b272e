"""What a token does not permit is refused before anything else: no effect, no answer to any question."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from netra_ws import Run
from netra_ws.protocol import commands as said
from netra_ws.testing import open_test_server

from ..conftest import StartServer
from ..kit import Client, connect, http, token

#: Every command with fields that are good, and the permission that it needs by SETTINGS and PROTOCOL §2. What is
#: None needs only a valid token; jobs that are not granted are unknown instead of forbidden.
TABLE: Sequence[tuple[type[said.Command], dict[str, Any], str | None]] = (
    (said.StartAgent, {"user_request": "x", "agent": "echo"}, "chat"),
    (said.UserMessage, {"content": "x", "agent": "echo"}, "chat"),
    (said.StopAgent, {"run_id": "none"}, "chat"),
    (said.InputResponse, {"input_id": "none", "status": "resolved"}, "chat"),
    (said.CreateThread, {"thread_id": "made"}, "chat"),
    (said.SwitchThread, {"thread_id": "switched"}, "chat"),
    (said.RenameThread, {"thread_id": "made", "title": "other"}, "chat"),
    (said.DeleteThread, {"thread_id": "made"}, "chat"),
    (said.UserTyping, {"thread_id": "made"}, "chat"),
    (said.ListThreads, {}, "read"),
    (said.GetThreadHistory, {"thread_id": "made"}, "read"),
    (said.Resume, {"epoch": "0", "seq": 0}, "read"),
    (said.PublishJob, {"job_id": "build", "name": "n", "value": 1}, "job:publish"),
    (said.Kick, {"user_id": "nobody-at-all"}, "operator"),
    (said.ConnectJob, {"job_id": "build"}, None),
    (said.DisconnectJob, {"job_id": "build"}, None),
    (said.Ping, {}, None),
    (said.Heartbeat, {}, None),
    (said.Connect, {}, None),
    (said.HandshakeAcknowledged, {}, None),
    (said.RefreshAuth, {"token": "none.such.token"}, None),
    (said.Disconnect, {}, None),
)
SETS: Mapping[str, Sequence[str]] = {
    "nothing": (),
    "chat": ("chat",),
    "read": ("read",),
    "chat and read": ("chat", "read"),
    "operator": ("operator",),
    "operator and read": ("operator", "read"),
    "one job": ("job:build",),
    "publish": ("job:publish",),
    "one job and publish": ("job:build", "job:publish"),
    "everything": ("chat", "read", "operator", "job:*", "job:publish"),
    "unknown words": ("admin", "root", "write", "chats", "chat.read"),
    "what looks like wildcards": ("*", "**", "chat:*", "chat*", "*:*", "job:*", ".*", "?", "operator:*"),
    "other spellings": ("Chat", "READ", " chat", "read ", "chat,read", "operator\t"),
}
FORMS = ("plain", "payload", "json-rpc")


def test_the_table_names_every_command() -> None:
    """A new command cannot be added without saying who may say it."""
    assert {command for command, _, _ in TABLE} == set(said.COMMANDS)


async def ask(client: Client, form: str, type_name: str, fields: Mapping[str, Any], id_: str) -> dict[str, Any]:
    """Say a command in one of the three forms; return its answer as it would be in the plain one."""
    message: dict[str, Any] = {"type": type_name, "id": id_, **fields}
    if form == "payload":
        message = {"type": type_name, "id": id_, "payload": dict(fields)}
    elif form == "json-rpc":
        message = {"jsonrpc": "2.0", "id": id_, "method": type_name, "params": dict(fields)}
    await client.say(json.dumps(message))
    while True:
        heard = await client.receive()
        if heard.get("id") == id_ and "jsonrpc" in heard:
            answer: dict[str, Any] = heard["result"] if "result" in heard else heard["error"]["data"]
            return answer
        if heard.get("reply_to") == id_:
            return heard


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("granted", SETS.values(), ids=list(SETS))
async def test_every_command_with_every_permission(server: StartServer, granted: Sequence[str], form: str) -> None:
    """A command is FORBIDDEN exactly where its permission is missing; where chat is, nothing has happened."""
    running = await server()
    async with connect(running, permissions=granted) as client:
        for number, (command, fields, needed) in enumerate(TABLE):
            answer = await ask(client, form, command.type, fields, f"c{number}")
            if needed is None or needed in granted:
                assert answer.get("code") != "FORBIDDEN", (command, answer)
            else:
                assert (answer["type"], answer["code"]) == ("error", "FORBIDDEN"), (command, answer)
                assert answer["error"] == f"this needs the permission {needed}"
                assert answer["retryable"] is False
        await client.receive_close()
    async with connect(running) as witness:
        if "chat" not in granted:
            assert witness.welcome["stream"]["seq"] == 0
            assert (await witness.ask("list_threads"))["threads"] == []
            assert witness.welcome["active_runs"] == []
        else:
            assert witness.welcome["stream"]["seq"] > 0


async def forever(run: Run) -> None:
    await trio.sleep_forever()


async def test_who_may_not_learns_nothing_of_what_exists(server: StartServer) -> None:
    """A refusal is the same whether the thread or run exists, is active, is another's, or never was."""
    running = await server(agents={"forever": forever})
    async with connect(running) as ada, connect(running, permissions=()) as nobody:
        ack = await ada.ask("start_agent", user_request="x", agent="forever", run_id="mine", thread_id="t")
        assert ack["type"] == "ack"
        for command, fields, needed in TABLE:
            named = [name for name in ("thread_id", "run_id") if name in fields]
            if needed is None or not named:
                continue
            answers = []
            for value in ("t", "mine", "never"):
                answer = await ask(nobody, "plain", command.type, {**fields, named[0]: value}, "same")
                answers.append({name: answer[name] for name in answer if name != "timestamp"})
            assert answers[0] == answers[1] == answers[2], command
            assert answers[0]["code"] == "FORBIDDEN"


async def test_refusals_are_not_remembered_and_remembered_answers_are_not_given(server: StartServer) -> None:
    """Under one command id, who may not is refused before and after, and who may is answered: by permission alone."""
    running = await server()
    body = {"content": "x", "agent": "echo", "id": "once"}
    async with connect(running) as ada, connect(running, permissions=("read",)) as reader:
        assert (await reader.ask("chat", **body))["code"] == "FORBIDDEN"
        ack = await ada.ask("chat", **body)
        assert ack["type"] == "ack"
        refusals = [await reader.ask("chat", **body), await reader.ask("chat", **body | {"content": "another"})]
        assert [each["code"] for each in refusals] == ["FORBIDDEN", "FORBIDDEN"]
        assert (await ada.ask("chat", **body))["run_id"] == ack["run_id"]
        assert (await ada.ask("chat", **body | {"content": "another"}))["code"] == "CONFLICT"


async def test_an_expired_token_spoils_no_command(autojump_clock: MockClock) -> None:
    """What was refused because the token had expired works under the same id with the next token."""
    async with open_test_server() as server:
        old = server.token("ada", expires_s=20)
        async with server.connect_raw("ada", link="1", token=old) as tab, server.connect_raw("ada", link="2") as other:
            await trio.sleep(21)
            body = {"content": "x", "agent": "echo", "id": "once"}
            assert (await tab.ask("chat", **body))["code"] == "AUTH_FAILED"
            assert (await other.ask("chat", **body))["type"] == "ack"
            assert (await tab.ask("chat", **body))["code"] == "AUTH_FAILED"


async def test_refusals_cost_the_larger_budget(server: StartServer) -> None:
    """A flood of forbidden commands is limited, and does not use up what the user's other clients may say."""
    running = await server(limits__messages_per_minute=1)
    async with connect(running) as ada, connect(running, permissions=("read",)) as reader:
        codes = [(await reader.ask("chat", content="x", agent="echo"))["code"] for _ in range(11)]
        assert codes == ["FORBIDDEN"] * 10 + ["RATE_LIMITED"]
        assert (await ada.ask("chat", content="x", agent="echo"))["type"] == "ack"


async def test_without_read_nothing_of_the_stream_is_told(server: StartServer) -> None:
    """Who may only chat is answered, and hears no event, no replay, no typing and no active run."""
    running = await server(agents={"forever": forever})
    async with connect(running) as full, connect(running, permissions=("chat",)) as client:
        epoch = full.welcome["stream"]["epoch"]
        ack = await client.ask("chat", content="x", agent="forever", thread_id="t")
        assert ack["disposition"] == "started"
        await full.until("agent_started", run_id=ack["run_id"])
        assert (await full.ask("user_typing", thread_id="t"))["type"] == "ack"
        await client.send("resume", epoch=epoch, seq=0, id="resume")
        refused = await client.receive()
        assert (refused["reply_to"], refused["code"]) == ("resume", "FORBIDDEN"), "the first that is heard"
        async with connect(running, permissions=("chat",), path=f"/ws?resume={epoch}:0") as again:
            assert again.welcome["resumed"] is False
            assert again.welcome["active_runs"] == []
            assert (await again.receive())["code"] == "FORBIDDEN"
            await again.send("ping")
            assert (await again.receive())["type"] == "pong"
        await client.send("stop_agent", run_id=ack["run_id"], id="stop")
        heard = await client.until("ack", reply_to="stop")
        assert heard[-1]["status"] == "cancelled"
        await full.until("agent_completed")
        await client.send("ping")
        heard += await client.until("pong")
        assert [each["type"] for each in heard] == ["ack", "pong"]


async def test_without_chat_nothing_starts_by_any_way(server: StartServer) -> None:
    """Neither a queue, nor steering, nor an attachment, nor an older handshake starts or makes anything."""
    running = await server(agents={"forever": forever})
    async with connect(running) as full, connect(running, permissions=("read",)) as reader:
        await full.ask("chat", content="x", agent="forever", thread_id="t")
        await reader.until("agent_started")
        for on_busy in ("enqueue", "interrupt", "rollback", "steer", "reject"):
            attachment = {"name": "a", "media_type": "text/plain", "data": "eA=="}
            more = {"attachments": [attachment], "thread_id": "t", "on_busy": on_busy}
            assert (await reader.ask("chat", content="y", **more))["code"] == "FORBIDDEN"
        seq = (await reader.ask("get_thread_history", thread_id="t"))["stream"]["seq"]
        async with connect(running, permissions=("read",), protocols=(f"jwt.{token()}",)) as older:
            offered = await older.receive()
            assert offered["type"] == "handshake_response"
            await older.send("handshake_acknowledged", thread_id=offered["thread_id"])
            assert (await older.receive())["type"] == "handshake_complete"
            assert (await older.ask("chat", content="y"))["code"] == "FORBIDDEN"
            assert older.welcome["stream"]["seq"] == seq
        assert [each["thread_id"] for each in (await full.ask("list_threads"))["threads"]] == ["t"]
        assert (await full.ask("get_thread_history", thread_id="t"))["stream"]["seq"] == seq


async def test_an_agent_knows_what_its_user_may(server: StartServer) -> None:
    """``run.identity`` has the permissions of the connection that started the run, whatever other tabs have."""

    async def tells(run: Run) -> list[str]:
        return sorted(run.identity.permissions)

    running = await server(agents={"tells": tells})
    async with connect(running) as full, connect(running, permissions=("chat", "x:y")) as some:
        for client, may in ((full, ["chat", "read"]), (some, ["chat", "x:y"])):
            await client.send("chat", content="x", agent="tells")
            assert (await full.until("agent_completed"))[-1]["final_response"] == may


@pytest.mark.parametrize("granted", SETS.values(), ids=list(SETS))
async def test_pages_of_operators(server: StartServer, granted: Sequence[str]) -> None:
    """Names of users and their runs are for who has the word operator; another token shows what none shows."""
    running = await server()
    async with connect(running, "somebody-special"):
        answer = await http(running, "/ws/stats", bearer=token(permissions=granted))
        if "operator" in granted:
            assert "somebody-special" in answer.json()["by_user"]
        else:
            assert answer.status == 200
            assert b"special" not in answer.body
