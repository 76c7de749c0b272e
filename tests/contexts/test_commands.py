"""Commands over a socket: each answered once, in order, and never more than once in effect."""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio

from netra_ws import Run
from netra_ws.contexts.commands import FUNCTIONS, NEEDS
from netra_ws.protocol.commands import COMMANDS

from ..conftest import StartServer
from ..kit import connect, raw, upgrade


def test_every_command_has_a_function() -> None:
    """A new command cannot be added without saying what it does; permissions name only commands."""
    assert FUNCTIONS.keys() == set(COMMANDS)
    assert NEEDS.keys() <= FUNCTIONS.keys()


async def test_threads_are_made_listed_renamed_and_deleted(server: StartServer) -> None:
    """Who asks gets the reply behind the numbered event; other tabs get the event; a deleted thread is unknown."""
    running = await server()
    async with connect(running) as client, connect(running) as tab:
        await client.send("create_thread", id="1", title="  Plans ", metadata={"tags": ["a"]}, thread_id="plans")
        event, reply = await client.receive(), await client.receive()
        assert (event["type"], event["title"], event["metadata"]) == ("thread_created", "Plans", {"tags": ["a"]})
        assert ("seq" in event, "reply_to" in event) == (True, False)
        assert (reply["type"], reply["reply_to"], "seq" in reply) == ("thread_created", "1", False)
        assert (await tab.receive())["seq"] == event["seq"]
        renamed = await client.ask("rename_thread", thread_id="plans", title="Dreams")
        assert (renamed["type"], renamed["title"]) == ("thread_renamed", "Dreams")
        listed = await client.ask("list_threads")
        assert [(t["thread_id"], t["title"]) for t in listed["threads"]] == [("plans", "Dreams")]
        deleted = await client.ask("delete_thread", thread_id="plans")
        assert deleted["type"] == "thread_deleted"
        assert (await client.ask("get_thread_history", thread_id="plans"))["code"] == "NOT_FOUND"
        assert (await client.ask("list_threads"))["threads"] == []
        assert [(await tab.receive())["type"] for _ in range(2)] == ["thread_renamed", "thread_deleted"]


async def test_creating_a_known_thread_again_is_harmless(server: StartServer) -> None:
    """create_thread with a known id answers with the thread as it is, and says no second event."""
    running = await server()
    async with connect(running) as client:
        await client.ask("create_thread", thread_id="t", title="first")
        again = await client.ask("create_thread", thread_id="t", title="second")
        assert again["title"] == "first"
        assert (await client.ask("resume", epoch=client.welcome["stream"]["epoch"], seq=0))["type"] == "ack"
        replayed = await client.until("replay_completed")
        assert [event["type"] for event in replayed] == ["thread_created", "replay_completed"]


async def test_pages_of_threads_and_messages(server: StartServer) -> None:
    """next of one page is before of the following one; together they hold everything once, newest page first."""
    running = await server()
    async with connect(running) as client:
        for number in range(7):
            await client.ask("create_thread", thread_id=f"t{number}")
        found: list[str] = []
        before = None
        while True:
            page = await client.ask("list_threads", limit=3, before=before)
            found += [thread["thread_id"] for thread in page["threads"]]
            before = page["next"]
            if before is None:
                break
        assert found == [f"t{number}" for number in reversed(range(7))]
        for number in range(3):
            await client.send("chat", content=f"m{number}", agent="echo", thread_id="t0")
            await client.until("agent_completed")
        messages: list[str] = []
        while True:
            page = await client.ask("get_thread_history", thread_id="t0", limit=4, before=before)
            messages = [message["content"] for message in page["messages"]] + messages
            before = page["next"]
            if before is None:
                break
        assert messages == ["m0", "m0", "m1", "m1", "m2", "m2"]
        assert (await client.ask("get_thread_history", thread_id="t0", before="nonsense"))["code"] == "INVALID_MESSAGE"
        assert (await client.ask("list_threads", before="nonsense"))["code"] == "INVALID_MESSAGE"


async def test_deleting_a_thread_cancels_its_runs_first(server: StartServer) -> None:
    """delete_thread is answered behind the end of the runs in it, queued ones included."""

    async def forever(run: Run) -> None:
        await trio.sleep_forever()

    running = await server(agents={"forever": forever})
    async with connect(running) as client:
        for _ in range(2):
            await client.ask("chat", content="x", agent="forever", thread_id="t")
        await client.send("delete_thread", thread_id="t", id="d")
        heard = await client.until("thread_deleted", reply_to="d")
        types = [event["type"] for event in heard]
        assert types.count("agent_completed") == 2
        assert all(event["cancelled_by"] == "user" for event in heard if event["type"] == "agent_completed")
        assert types[-2:] == ["thread_deleted", "thread_deleted"]
        # The id is free again.
        assert (await client.ask("chat", content="y", agent="echo", thread_id="t"))["disposition"] == "started"


async def test_run_ids_are_used_once(server: StartServer) -> None:
    """A run_id that this user has used before answers CONFLICT, while and after it runs; another user may have it."""
    running = await server()
    async with connect(running) as client, connect(running, "bob") as bob:
        first = await client.ask("start_agent", user_request="x", agent="echo", run_id="mine")
        assert first["run_id"] == "mine"
        assert (await client.ask("start_agent", user_request="y", agent="echo", run_id="mine"))["code"] == "CONFLICT"
        assert (await client.ask("stop_agent", run_id="mine"))["status"] == "success"
        assert (await client.ask("start_agent", user_request="z", agent="echo", run_id="mine"))["code"] == "CONFLICT"
        assert (await bob.ask("start_agent", user_request="x", agent="echo", run_id="mine"))["type"] == "ack"


async def test_a_repeated_command_has_one_effect(server: StartServer) -> None:
    """The same id gets the same answer, also on another connection, and a different body is a CONFLICT."""
    running = await server()
    async with connect(running) as client:
        first = await client.ask("chat", content="once", agent="echo", id="same")
        await client.until("agent_completed")
        again = await client.ask("chat", content="once", agent="echo", id="same")
        assert again["run_id"] == first["run_id"]
        assert (await client.ask("chat", content="twice", agent="echo", id="same"))["code"] == "CONFLICT"
    async with connect(running) as client, connect(running, "bob") as bob:
        again = await client.ask("chat", content="once", agent="echo", id="same")
        assert again["run_id"] == first["run_id"]
        history = await client.ask("get_thread_history", thread_id=first["thread_id"])
        assert len(history["messages"]) == 2
        assert (await bob.ask("chat", content="once", agent="echo", id="same"))["run_id"] != first["run_id"]


async def test_a_repeat_joins_the_first_while_it_runs(server: StartServer) -> None:
    """A stop that is asked for twice waits once, and both get the same proof."""
    leaving = trio.Event()
    release = trio.Event()

    async def slow_to_leave(run: Run) -> None:
        try:
            await trio.sleep_forever()
        finally:
            leaving.set()
            with trio.CancelScope(shield=True):
                await release.wait()

    running = await server(agents={"slow": slow_to_leave})
    async with connect(running) as client:
        ack = await client.ask("chat", content="x", agent="slow")
        await client.until("agent_started")
        for _ in range(2):
            await client.send("stop_agent", run_id=ack["run_id"], id="stop")
        with trio.fail_after(5):
            await leaving.wait()
        # Commands behind the stop are served while it waits.
        assert (await client.ask("ping"))["type"] == "pong"
        release.set()
        heard = await client.until("ack")
        assert heard[-2]["type"] == "agent_completed"  # the proof comes behind the last event
        again = await client.receive()
        for answer in (heard[-1], again):
            assert (answer["reply_to"], answer["status"]) == ("stop", "cancelled")


async def test_a_retryable_error_is_not_remembered(server: StartServer) -> None:
    """A command that failed with a retryable error may be sent again under its id, and then works."""
    release = trio.Event()

    async def waits(run: Run) -> None:
        await release.wait()

    running = await server(agents={"waits": waits}, limits__max_runs_per_user=1)
    async with connect(running) as client:
        await client.ask("chat", content="x", agent="waits", thread_id="a")
        refused = await client.ask("chat", content="y", agent="echo", thread_id="b", id="retry")
        assert (refused["code"], refused["retryable"]) == ("QUOTA_EXCEEDED", True)
        release.set()
        await client.until("agent_completed")
        assert (await client.ask("chat", content="y", agent="echo", thread_id="b", id="retry"))["type"] == "ack"


async def test_starts_are_remembered_across_a_restart(server: StartServer, store_url: str) -> None:
    """The id of a command that started a run still names that run after the server was started anew."""
    running = await server(store__url=store_url)
    async with connect(running) as client:
        first = await client.ask("chat", content="once", agent="echo", id="same")
        await client.until("agent_completed")
    await running.drain(0)
    await running.store.close()
    again = await server(store__url=store_url)
    async with connect(again) as client:
        repeat = await client.ask("chat", content="once", agent="echo", id="same")
        assert (repeat["run_id"], repeat["message_id"]) == (first["run_id"], first["message_id"])
        assert (await client.ask("chat", content="other", agent="echo", id="same"))["code"] == "CONFLICT"
        history = await client.ask("get_thread_history", thread_id=first["thread_id"])
        assert len(history["messages"]) == 2


async def test_rate_limits_leave_the_stop_alone(server: StartServer) -> None:
    """Too many messages answer RATE_LIMITED with the time to wait; stops, reads and pings still work."""
    running = await server(limits__messages_per_minute=3)
    async with connect(running) as client:
        for _ in range(3):
            assert (await client.ask("chat", content="x", agent="echo"))["type"] == "ack"
        refused = await client.ask("chat", content="x", agent="echo")
        assert (refused["code"], refused["retryable"]) == ("RATE_LIMITED", True)
        assert 0 < refused["retry_after_s"] <= 20
        assert (await client.ask("list_threads"))["type"] == "thread_list"
        assert (await client.ask("stop_agent", run_id="unknown"))["code"] == "NOT_FOUND"
        assert (await client.ask("ping"))["type"] == "pong"
    async with connect(running) as client:  # a reconnect does not fill the budget
        assert (await client.ask("chat", content="x", agent="echo", id="new"))["code"] == "RATE_LIMITED"


@pytest.mark.parametrize(
    ("permissions", "command", "fields"),
    [
        (("read",), "chat", {"content": "x"}),
        (("read",), "stop_agent", {"run_id": "x"}),
        (("chat",), "list_threads", {}),
        (("chat",), "get_thread_history", {"thread_id": "x"}),
        (("chat", "read"), "publish_job", {"job_id": "x", "name": "n", "value": 1}),
        (("chat", "read"), "kick", {"user_id": "x"}),
    ],
)
async def test_permissions(
    server: StartServer, permissions: tuple[str, ...], command: str, fields: dict[str, Any]
) -> None:
    """A command without its permission answers FORBIDDEN."""
    running = await server()
    async with connect(running, permissions=permissions) as client:
        assert (await client.ask(command, **fields))["code"] == "FORBIDDEN"


async def test_without_read_no_events_are_sent(server: StartServer) -> None:
    """A token without read may start runs, and gets answers but no events."""
    running = await server()
    async with connect(running, permissions=("chat",)) as client, connect(running) as reader:
        await client.send("chat", content="x", agent="echo", id="1")
        assert (await client.receive())["type"] == "ack"
        await reader.until("agent_completed")
        await client.send("ping", id="2")
        assert (await client.receive())["type"] == "pong"


async def test_an_expired_token_may_only_stop(server: StartServer) -> None:
    """After exp commands answer AUTH_FAILED, except ping, heartbeat and stop_agent; then comes 4003."""

    async def forever(run: Run) -> None:
        await trio.sleep_forever()

    running = await server(agents={"forever": forever}, auth__leeway_s=0, auth__expiry_grace_s=1)
    async with connect(running, expires_s=1.0) as client:
        warning = await client.receive()
        assert warning["type"] == "auth_expiring"
        ack = await client.ask("chat", content="x", agent="forever")
        await trio.sleep(max(0.0, warning["expires_at"] - time.time()) + 0.05)
        assert (await client.ask("chat", content="y"))["code"] == "AUTH_FAILED"
        assert (await client.ask("ping"))["type"] == "pong"
        assert (await client.ask("stop_agent", run_id=ack["run_id"]))["status"] == "cancelled"
        assert (await client.receive_close()).code == 4003


async def test_typing_is_shown_to_the_others(server: StartServer) -> None:
    """Typing reaches the user's other connections, not itself, not other users, and is not stored."""
    running = await server()
    async with connect(running) as client, connect(running) as tab, connect(running, "bob") as bob:
        assert (await client.ask("typing_started", thread_id="t"))["code"] == "NOT_FOUND"
        await client.ask("create_thread", thread_id="t")
        await tab.until("thread_created")
        assert (await client.ask("typing_started", thread_id="t"))["type"] == "ack"
        assert (await client.ask("typing_stopped", thread_id="t"))["type"] == "ack"
        shown = [await tab.receive(), await tab.receive()]
        assert [(t["type"], t["thread_id"]) for t in shown] == [("typing", "t")] * 2
        assert [t["is_typing"] for t in shown] == [True, False]
        await bob.send("ping")
        assert (await bob.receive())["type"] == "pong"


async def test_ping_and_heartbeat(server: StartServer) -> None:
    """ping answers with the client's timestamp, heartbeat with healthy, connect with an ack."""
    running = await server()
    async with connect(running) as client:
        assert (await client.ask("ping", timestamp=12.5))["original_timestamp"] == 12.5
        beat = await client.ask("heartbeat")
        assert (beat["type"], beat["status"]) == ("heartbeat_ack", "healthy")
        assert (await client.ask("connect"))["type"] == "ack"


async def test_json_rpc(server: StartServer) -> None:
    """A JSON-RPC request gets a result or an error under its id; a notification is carried out and not answered."""
    running = await server()
    async with connect(running) as client:
        await client.say('{"jsonrpc":"2.0","method":"create_thread","params":{"thread_id":"t"},"id":7}')
        heard = [await client.receive(), await client.receive()]
        answer = next(message for message in heard if "jsonrpc" in message)
        assert (answer["id"], answer["result"]["thread_id"]) == (7, "t")
        await client.say('{"jsonrpc":"2.0","method":"get_thread_history","params":{"thread_id":"none"},"id":"x"}')
        answer = await client.receive()
        assert (answer["id"], answer["error"]["data"]["code"]) == ("x", "NOT_FOUND")
        await client.say('{"jsonrpc":"2.0","method":"ping"}')
        await client.send("ping", id="behind")
        assert (await client.receive())["reply_to"] == "behind"


async def test_json_rpc_ids_count_per_connection(server: StartServer) -> None:
    """A repeated JSON-RPC id gets the first answer on its own connection; on another one it is a new command."""
    running = await server()
    call = '{"jsonrpc":"2.0","method":"chat","params":{"content":"x","agent":"echo","thread_id":"t"},"id":1}'
    answers = []
    async with connect(running) as client, connect(running) as other:
        for someone in (client, client, other):
            await someone.say(call)
            while "jsonrpc" not in (message := await someone.receive()):
                pass
            answers.append(message["result"]["run_id"])
    assert answers[0] == answers[1] != answers[2]


async def test_the_older_handshake(server: StartServer) -> None:
    """A client that offers its token as a subprotocol, and not netra.v1, gets a thread and acknowledges it."""
    from ..kit import token

    running = await server()
    async with raw(running) as client:
        await client.open(upgrade(protocols=("jwt-auth", f"jwt.{token()}")))
        assert client.answer is not None
        assert client.answer.headers["sec-websocket-protocol"] == "jwt-auth"
        offered = await client.receive()
        assert offered["type"] == "handshake_response"
        assert offered["run_id"] is None
        await client.send("handshake_acknowledged", thread_id=offered["thread_id"], timestamp=time.time())
        complete = await client.receive()
        assert (complete["type"], complete["thread_id"]) == ("handshake_complete", offered["thread_id"])
        ack = await client.ask("chat", content="x", agent="echo")
        assert ack["thread_id"] == offered["thread_id"]


async def test_the_current_thread_survives_in_the_url(server: StartServer) -> None:
    """thread_id in the URL is where messages without one go."""
    running = await server()
    async with connect(running, path="/ws?thread_id=mine") as client:
        assert (await client.ask("chat", content="x", agent="echo"))["thread_id"] == "mine"


async def test_an_unknown_agent(server: StartServer) -> None:
    """A message for an agent that is not there answers UNKNOWN_AGENT and stores nothing."""
    running = await server()
    async with connect(running) as client:
        refused = await client.ask("chat", content="x", agent="nobody", thread_id="t")
        assert (refused["code"], refused["details"]["agents"]) == ("UNKNOWN_AGENT", ["assistant", "echo"])
        assert (await client.ask("get_thread_history", thread_id="t"))["code"] == "NOT_FOUND"


async def test_threads_have_a_bound(server: StartServer) -> None:
    """More threads than limits.max_threads_per_user answer QUOTA_EXCEEDED; deleting one makes room."""
    running = await server(limits__max_threads_per_user=2)
    async with connect(running) as client:
        for name in ("a", "b"):
            assert (await client.ask("create_thread", thread_id=name))["type"] == "thread_created"
        assert (await client.ask("create_thread", thread_id="c"))["code"] == "QUOTA_EXCEEDED"
        assert (await client.ask("chat", content="x", thread_id="c"))["code"] == "QUOTA_EXCEEDED"
        await client.ask("delete_thread", thread_id="a")
        assert (await client.ask("create_thread", thread_id="c"))["type"] == "thread_created"


async def test_the_default_agent_comes_first(server: StartServer) -> None:
    """A welcome names the agents, the default one first: a client that asks nobody in particular shows that one."""

    async def zebra(run: Run) -> None: ...

    running = await server(agents={"zebra": zebra, "ant": zebra}, agents__default="zebra")
    async with connect(running) as client:
        assert client.welcome["agents"] == ["zebra", "ant", "assistant", "echo"]
