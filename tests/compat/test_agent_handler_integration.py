"""The agent handler on a real server with real sockets, its store in SQLite and in PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from netra_ws import Run, open_server
from netra_ws.compat.agent_handler import AgentMessageHandler
from netra_ws.contexts.connection import Connection
from netra_ws.server import Server
from netra_ws.settings import Settings
from tests.conftest import StartServer
from tests.kit import SECRET, connect, http
from tests.kit import settings as make_settings

from .handling import FIVE, Board, Database, end_of, failing, five, note, said

#: Seconds that the older system's tests give to a whole flow.
PATIENCE_S = 30.0


def native(server: Server, user: str) -> Connection:
    """Return the server's end of a user's only connection."""
    (found,) = [one for context in server.registry if context.user_id == user for one in context.connections.values()]
    return found


async def test_the_whole_flow(server: StartServer, store_url: str, database: Database) -> None:
    """From a message to its end within seconds: five events in order, in the message's thread, and a kept session."""
    running = await server(agents={"five": five, "note": note}, agents__default="five", store__url=store_url)
    handler = AgentMessageHandler(running, sessions=database.session)
    async with connect(running) as client:
        with trio.fail_after(PATIENCE_S):
            message = said("find it", "start_agent", thread_id="t1", run_id="r1")
            assert await handler.handle_message("ada", native(running, "ada"), message)
            events = await end_of(client)
        assert [event["type"] for event in events] == FIVE
        assert {(event["thread_id"], event["run_id"], event["user_id"]) for event in events} == {("t1", "r1", "ada")}
        assert events[-1]["final_response"] == "FIND IT"
        ack = await client.ask("chat", content="and more")  # the connection is in the message's thread now
        assert ack["thread_id"] == "t1"
        assert await handler.handle_message("ada", None, said("kept", agent="note"))
        assert database.notes() == [("ada", "kept")]
        assert (database.opened, database.open) == (2, [])


async def test_five_users_at_the_same_time(server: StartServer, store_url: str) -> None:
    """Five users at once: everybody hears the five events of their own thread, and no id of another's."""
    running = await server(agents={"five": five}, agents__default="five", store__url=store_url)
    handler = AgentMessageHandler(running)
    users = [f"user-{number}" for number in range(5)]
    heard: dict[str, list[dict[str, Any]]] = {}

    async def visit(user: str, everybody: trio.Event) -> None:
        async with connect(running, user) as client:
            await everybody.wait()
            assert await handler.handle_message(user, native(running, user), said("x", thread_id=f"thread-of-{user}"))
            heard[user] = await client.until("agent_completed")
            assert (await client.ask("ping"))["type"] == "pong"

    everybody = trio.Event()
    async with trio.open_nursery() as nursery:
        for user in users:
            nursery.start_soon(visit, user, everybody)
        everybody.set()
    for user in users:
        assert [event["type"] for event in heard[user] if event["type"] in FIVE] == FIVE
        others = [other for other in users if other != user]
        assert not any(other in repr(heard[user]) for other in others)
    runs = {event["run_id"] for events in heard.values() for event in events if event["type"] == "agent_started"}
    assert len(runs) == 5


async def test_what_was_said_survives_a_restart(store_url: str) -> None:
    """A second server on the same store has threads and messages, and goes on in the same conversation."""
    asked: list[list[str]] = []

    async def remember(run: Run) -> str:
        asked.append([row.content for row in await run.thread.history() if row.run_id != run.run_id])
        return f"answer to {run.text}"

    mine = make_settings(store__url=store_url, agents__default="remember")
    for number in range(2):
        async with open_server(mine, agents={"remember": remember}) as running:
            handler = AgentMessageHandler(running)
            assert await handler.handle_message("ada", None, said(f"message {number}", thread_id="t1"))
            async with connect(running) as client:
                history = await client.ask("get_thread_history", thread_id="t1")
                threads = (await client.ask("list_threads"))["threads"]
            async with connect(running, "bob") as client:
                assert (await client.ask("get_thread_history", thread_id="t1"))["code"] == "NOT_FOUND"
    assert [(one["role"], one["content"]) for one in history["messages"]] == [
        ("user", "message 0"),
        ("assistant", "answer to message 0"),
        ("user", "message 1"),
        ("assistant", "answer to message 1"),
    ]
    assert [(one["thread_id"], one["title"]) for one in threads] == [("t1", "message 0")]
    assert asked == [[], ["message 0", "answer to message 0"]]


async def test_a_blip_loses_nothing(server: StartServer, store_url: str) -> None:
    """A client that is cut off in the middle and resumes has every event, once: not four of five, but five."""
    in_the_middle, go_on = trio.Event(), trio.Event()

    async def halting(run: Run) -> str:
        await run.think("first")
        in_the_middle.set()
        await go_on.wait()
        async with run.tool("look_up") as call:
            call.results = 1
        return "done"

    running = await server(agents={"halting": halting}, agents__default="halting", store__url=store_url)
    handler = AgentMessageHandler(running)
    done: list[bool] = []

    async def send() -> None:
        done.append(await handler.handle_message("ada", None, said(thread_id="t1")))

    async with trio.open_nursery() as nursery:
        async with connect(running) as client:
            epoch = client.welcome["stream"]["epoch"]
            nursery.start_soon(send)
            first = await client.until("agent_thinking")
            await in_the_middle.wait()
            client.reset()
        go_on.set()
        async with connect(running, path=f"/ws?resume={epoch}:{first[-1]['seq']}") as client:
            rest = await client.until("agent_completed")
    assert done == [True]
    events = [one for one in [*first, *rest] if one["type"] in FIVE]
    assert [event["type"] for event in events] == FIVE
    assert len({event["seq"] for event in events}) == 5


async def test_errors_reach_the_user(server: StartServer, store_url: str, database: Database) -> None:
    """An agent, a database, a manager that fails: the user hears of it, nothing internal, and the next one works."""
    agents = {"five": five, "failing": failing, "note": note}
    running = await server(agents=agents, agents__default="five", store__url=store_url)
    board = Board()
    plain = AgentMessageHandler(running, sessions=database.session)
    managed = AgentMessageHandler(running, manager=board, sessions=database.session)
    async with connect(running) as client:
        assert not await plain.handle_message("ada", None, said(agent="failing"))
        (*_, last) = await end_of(client)
        assert (last["status"], last["success"]) == ("error", False)
        assert "secret" not in repr(last)
        database.ill = ConnectionError("postgresql://admin:hunter2@db is away")
        assert not await plain.handle_message("ada", None, said())
        told = await client.receive()
        assert (told["type"], told["code"], told["retryable"]) == ("error", "INTERNAL", True)
        assert "try again" in told["error"]
        assert "hunter2" not in repr(told)
        database.ill = None
        board.ill["get_connection_id_by_websocket"] = RuntimeError("the manager is broken")
        assert not await managed.handle_message("ada", object(), said())
        assert [user for user, _ in board.notices] == ["ada"]
        assert not await managed.handle_message("ada", None, said("fail", agent="note"))
        assert len(board.notices) == 2
        await end_of(client)
        assert await managed.handle_message("ada", None, said())
        assert [event["type"] for event in await end_of(client)] == FIVE
        assert database.notes() == []
        assert managed.get_stats()["errors"] == 2


async def test_tools_are_told_in_pairs(server: StartServer, store_url: str) -> None:
    """Every tool of a workflow is told at its beginning and its end, also those that run at once, or fail."""

    async def workflow(run: Run) -> str:
        async def use(name: str) -> None:
            async with run.tool(name, {"of": run.text}) as call:
                await trio.sleep(0.01)
                call.results = {name: run.text}

        async with trio.open_nursery() as nursery:
            for name in ("search", "compare"):
                nursery.start_soon(use, name)
        try:
            async with run.tool("send"):
                raise ConnectionError("no way out")
        except ConnectionError:
            await run.think("then without it")
        return "done"

    running = await server(agents={"workflow": workflow}, agents__default="workflow", store__url=store_url)
    async with connect(running) as client:
        assert await AgentMessageHandler(running).handle_message("ada", None, said("x", "start_agent"))
        events = await end_of(client)
    began = {event["tool_call_id"]: event for event in events if event["type"] == "tool_executing"}
    ended = {event["tool_call_id"]: event for event in events if event["type"] == "tool_completed"}
    assert began.keys() == ended.keys()
    assert {event["tool_name"]: event["parameters"] for event in began.values()} == {
        "search": {"of": "x"},
        "compare": {"of": "x"},
        "send": {},
    }
    assert {event["tool_name"]: (event["status"], event["results"]) for event in ended.values()} == {
        "search": ("ok", {"search": "x"}),
        "compare": ("ok", {"compare": "x"}),
        "send": ("error", None),
    }
    assert all(began[call]["seq"] < ended[call]["seq"] for call in began)


async def test_a_conversation_goes_on_in_another_session(server: StartServer, store_url: str) -> None:
    """A user who comes back on another connection goes on in the thread, by its id or by the connection's own."""

    async def recall(run: Run) -> str:
        before = [row for row in await run.thread.history() if row.role == "user" and row.run_id != run.run_id]
        return " | ".join([*(row.content for row in before), run.text])

    running = await server(agents={"recall": recall}, agents__default="recall", store__url=store_url)
    handler = AgentMessageHandler(running)
    async with connect(running) as client:
        assert await handler.handle_message("ada", native(running, "ada"), said("one"))
        thread_id = (await end_of(client))[-1]["thread_id"]
        assert await handler.handle_message("ada", native(running, "ada"), said("two"))
        assert (await end_of(client))[-1]["thread_id"] == thread_id
    async with connect(running, path=f"/ws?thread_id={thread_id}") as client:
        assert await handler.handle_message("ada", native(running, "ada"), said("three"))
        last = (await end_of(client))[-1]
        assert (last["thread_id"], last["final_response"]) == (thread_id, "one | two | three")
        assert await handler.handle_message("ada", None, {**said("four"), "thread_id": thread_id})
        assert (await end_of(client))[-1]["final_response"] == "one | two | three | four"
        assert await handler.handle_message("ada", None, said("elsewhere"))
        assert (await end_of(client))[-1]["final_response"] == "elsewhere"


@pytest.mark.parametrize(
    ("environment", "overrides", "rate"),
    [
        ("development", {}, 300),
        ("testing", {}, 1000),
        ("staging", {}, 100),
        ("production", {}, 30),
        ("production", {"limits.messages_per_minute": 7}, 7),
    ],
)
async def test_settings_per_environment(environment: str, overrides: dict[str, Any], rate: int) -> None:
    """The handler keeps the numbers of its environment, or what was set in their place; ``/ws/config`` says them."""
    bare = {"server.port": 0, "store.url": "memory:", "auth.secret": SECRET, "origins.required": False}
    mine = Settings.make({**bare, "agents.default": "five", **overrides}, environment=environment)
    async with open_server(mine, agents={"five": five}) as running:
        board = Board()
        handler = AgentMessageHandler(running, manager=board)
        assert (await http(running, "/ws/config")).json()["limits"]["messages_per_minute"] == rate
        assert await handler.handle_message("ada", None, said("the first"))
        began = trio.current_time()
        while not (board.notices and "too many messages" in board.notices[-1][1]):
            assert not await handler.handle_message("ada", None, said(" "))
        refilled = (trio.current_time() - began) * rate / 60
        assert rate <= len(board.notices) <= rate + refilled + 1
        assert await handler.handle_message("bob", None, said("mine"))
