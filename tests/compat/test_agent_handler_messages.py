"""The agent handler, what a message says: topics 7 to 12 and 15 to 19."""

from __future__ import annotations

import logging
from enum import Enum
from typing import Any

import attrs
import pytest
import trio

from netra_ws import Identity, Run
from netra_ws.compat.agent_handler import AgentMessageHandler
from netra_ws.compat.agent_message import RequestContext
from netra_ws.errors import InvalidArgument
from netra_ws.testing import MemoryServer, open_test_server

from .handling import Board, Socket, Spans, Witness, said

BLANK: list[Any] = ["", "   ", "\n\t", None]


async def test_each_type_goes_its_own_way(autojump_clock: None) -> None:
    """``start_agent`` takes a run's id, messages for the conversation take attachments; nothing else is taken."""
    heard: list[tuple[str, str, int]] = []

    async def tell(run: Run) -> None:
        heard.append((RequestContext.of(run).metadata["message_type"], run.run_id, len(run.attachments)))

    file = {"name": "a.txt", "media_type": "text/plain", "data": "aGk="}
    async with open_test_server({"tell": tell}) as server:
        handler = AgentMessageHandler(server.server)
        assert handler.supported_types == ("start_agent", "user_message", "chat")
        for number, type_name in enumerate(handler.supported_types):
            assert handler.can_handle(type_name)
            message = said("x", type_name, run_id=f"r{number}", attachments=[file])
            assert await handler.handle_message("ada", None, message)
        assert [(kind, run_id == f"r{n}", files) for n, (kind, run_id, files) in enumerate(heard)] == [
            ("start_agent", True, 0),
            ("user_message", False, 1),
            ("chat", False, 1),
        ]
        assert not any(handler.can_handle(other) for other in ("ping", "", None, 5, ["chat"]))
        for other in ("ping", "execute_agent", 5):
            assert not await handler.handle_message("ada", None, {"type": other, "payload": {"content": "x"}})
        assert not await handler.handle_message("ada", None, {"content": "no type"})
        assert len(heard) == 3


async def test_direct_calls_are_messages_too(autojump_clock: None) -> None:
    """``handle_start_agent`` and ``handle_user_message`` use the session that they are given, and leave it open."""
    witness, spans, board = Witness(), Spans(), Board()
    async with open_test_server({"witness": witness}) as server, spans.session() as mine:
        handler = AgentMessageHandler(server.server, manager=board, sessions=spans.session)
        assert await handler.handle_start_agent("ada", {"user_request": "one"}, mine)
        assert await handler.handle_user_message("ada", {"text": "two"}, mine, Socket())
        assert not await handler.handle_user_message("ada", {"text": " "}, mine)
        assert [request.db_session for request in witness.seen] == [mine, mine]
        assert mine.execute("SELECT 1").fetchone() == (1,)
        assert spans.opened == 1
        stats = handler.get_stats()
        assert (stats["start_agent_requests"], stats["user_messages"], stats["errors"]) == (1, 1, 1)


async def test_the_manager_finds_moves_and_tells(autojump_clock: None) -> None:
    """The manager is asked for the connection, then moved to the thread; on failure it tells the user, once."""
    socket = Socket()
    board = Board(sockets={"c1": socket})
    async with open_test_server({"witness": Witness()}) as server:
        handler = AgentMessageHandler(server.server, manager=board)
        assert await handler.handle_message("ada", socket, said(thread_id="t1"))
        assert board.calls == ["get_connection_id_by_websocket", "update_connection_thread"]
        board.calls.clear()
        assert not await handler.handle_message("ada", socket, said("", thread_id="t2"))
        assert board.calls == ["send_error"]
        assert board.threads == {"c1": "t1"}
        board.ill["update_connection_thread"] = ConnectionResetError()
        assert not await handler.handle_message("ada", socket, said(thread_id="t2"))
        assert len(board.notices) == 2
        heard = [one for one in await server.recorded("ada") if one.type == "user_message"]
        assert [one.fields["thread_id"] for one in heard] == ["t1"]
        assert socket.told == []  # told by the manager, not twice


async def test_a_socket_that_is_not_found(autojump_clock: None, caplog: pytest.LogCaptureFixture) -> None:
    """A socket that the manager does not know belongs to no connection: that is logged, and no other one moves."""
    witness, board = Witness(), Board(sockets={"c1": Socket()})
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server, manager=board)
        with caplog.at_level(logging.WARNING):
            assert await handler.handle_message("ada", Socket(), said(thread_id="t1"))
        assert "not among the connections" in caplog.text
        assert witness.seen[0].websocket_connection_id is None
        assert witness.seen[0].thread_id == "t1"
        assert board.threads == {}
        caplog.clear()
        assert await handler.handle_message("ada", None, said(thread_id="t1"))
        assert caplog.text == ""


async def test_a_notice_that_fails_is_logged(autojump_clock: None, caplog: pytest.LogCaptureFixture) -> None:
    """A manager that cannot tell the user makes no second failure: False is returned, the log has it."""
    board = Board(ill={"send_error": BrokenPipeError("gone")})
    async with open_test_server({"witness": Witness()}) as server:
        handler = AgentMessageHandler(server.server, manager=board)
        assert not await handler.handle_message("ada", None, said(""))
        assert board.calls == ["send_error"]
        assert "could not be told" in caplog.text
        assert handler.get_stats()["errors"] == 1


async def test_without_a_manager_the_socket_or_the_connections_are_told(autojump_clock: None) -> None:
    """The socket of the message gets one ``error`` frame; without one all connections of this user do."""
    socket = Socket()
    async with open_test_server({"witness": Witness()}) as server:
        handler = AgentMessageHandler(server.server)
        assert not await handler.handle_message("ada", socket, said(" "))
        (told,) = socket.told
        assert (told["type"], told["code"], told["error"]) == ("error", "EMPTY_MESSAGE", told["message"])
        assert "Failed to process chat" in told["error"]
        assert "try again" in told["error"]
        async with server.connect_raw("ada") as ada, server.connect_raw("bob") as bob:
            assert not await handler.handle_message("ada", None, said("x", agent="nobody"))
            assert (await ada.receive())["code"] == "UNKNOWN_AGENT"
            await bob.send("ping")
            assert (await bob.receive())["type"] == "pong"  # and nothing before it
            (native,) = next(iter(server.server.registry)).connections.values()
            assert native.identity.user_id == "ada"
            assert await handler.handle_message("ada", native, said("x", thread_id="t1"))
            assert native.thread_id == "t1"
            async with server.connect_raw("ada", link="ada-2") as second:
                assert not await handler.handle_message("ada", native, said(""))
                assert (await ada.until("error"))[-1]["code"] == "EMPTY_MESSAGE"
                await second.send("ping")
                assert (await second.receive())["type"] == "pong"  # the message was another connection's


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({"user_request": " analyse "}, "analyse"),
        ({"content": "analyse"}, "analyse"),
        ({"text": "analyse"}, "analyse"),
        ({"query": "analyse", "user_id": "someone"}, "analyse"),
        ({"user_request": "", "content": "analyse"}, "analyse"),
        ({"request": {"query": "analyse"}}, "analyse"),
        ({"user_request": "  ", "request": {"query": "", "user_request": "analyse"}}, "analyse"),
        ({"request": "analyse"}, "analyse"),
        ({"user_request": "this", "request": "that"}, "this"),
        *[({"user_request": blank}, None) for blank in BLANK],
        ({}, None),
        ({"message": "not a field of it"}, None),
        ({"request": {"query": 5}}, None),
        ({"user_request": 5}, None),
        ({"user_request": {"query": "x"}}, None),
    ],
)
async def test_texts_of_start_agent(autojump_clock: None, payload: dict[str, Any], text: str | None) -> None:
    """The text is found wherever older clients put it; without one nothing is stored, and the user is told."""
    await check_text("start_agent", payload, text)


@pytest.mark.parametrize("type_name", ["user_message", "chat"])
@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({"content": " hi "}, "hi"),
        ({"text": "hi"}, "hi"),
        ({"message": "hi"}, "hi"),
        ({"user_request": "hi"}, "hi"),
        ({"message": "", "text": None, "content": "hi"}, "hi"),
        *[({name: blank}, None) for name in ("content", "text", "message") for blank in BLANK],
        ({"message": "  ", "content": "", "text": None}, None),
        ({}, None),
        ({"content": ["hi"]}, None),
    ],
)
async def test_texts_of_messages(
    autojump_clock: None, type_name: str, payload: dict[str, Any], text: str | None
) -> None:
    """Any of the three fields will do, for the check and for the run alike; blanks are no text."""
    await check_text(type_name, payload, text)


async def check_text(type_name: str, payload: dict[str, Any], text: str | None) -> None:
    """Send a payload in both forms of the envelope; check what the run was asked, or that there was none."""
    board, spans = Board(), Spans()
    witness = Witness()
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server, manager=board, sessions=spans.session)
        for message in ({"type": type_name, "payload": payload}, {"type": type_name, **payload}):
            assert await handler.handle_message("ada", None, message) == (text is not None)
        heard = await server.recorded("ada")
        assert [one.fields["content"] for one in heard if one.type == "user_message"] == [text] * 2 * (text is not None)
        if text is None:
            assert heard == []
            assert spans.opened == 0
            assert len(board.notices) == 2
            assert all(f"Failed to process {type_name}" in notice for _, notice in board.notices)


class Kind(Enum):
    CHAT = "chat"


@attrs.define
class Envelope:
    """A message as an object, as the older system's own class of messages is one."""

    type: object
    payload: dict[str, Any]
    user_id: str | None = None
    thread_id: str | None = None
    timestamp: object = None


@pytest.mark.parametrize(
    "message",
    [
        said("hi", thread_id="t1"),
        {"type": "chat", "content": "hi", "thread_id": "t1", "user_id": "bob", "timestamp": "2025-09-05T12:00:00Z"},
        {"type": "chat", "payload": {"content": "hi"}, "thread_id": "t1", "timestamp": 1757000000.5},
        {"type": Kind.CHAT, "payload": {"content": "hi", "thread_id": "t1"}, "message_id": 17},
        {"type": "chat", "payload": None, "content": "hi", "thread_id": "t1"},
        Envelope("chat", {"content": "hi"}, "bob", "t1", object()),
        Envelope(Kind.CHAT, {"content": "hi", "thread_id": "t1"}, thread_id="t2"),
    ],
)
async def test_forms_of_messages(autojump_clock: None, message: object) -> None:
    """Flat, with a payload, or an object: the same text in the same thread, and always of the caller's user."""
    witness = Witness()
    async with open_test_server({"witness": witness}) as server:
        assert await AgentMessageHandler(server.server).handle_message("ada", None, message)
        (request,) = witness.seen
        assert (request.user_id, request.thread_id, witness.ended) == ("ada", "t1", ["hi"])
        assert await server.recorded("bob") == []


async def test_a_request_context_is_made_from_the_callers(autojump_clock: None) -> None:
    """A caller's context gives user and thread, and is named as the parent; request and run are the message's own."""
    witness = Witness()
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server)
        caller = RequestContext(user_id="ada", thread_id="t1", run_id="r1", request_id="q1")
        assert await handler.handle_message(caller, None, said("one"))
        assert await handler.handle_message(caller, None, said("two", thread_id="t2"))
        first, second = witness.seen
        assert (first.user_id, first.thread_id, second.thread_id) == ("ada", "t1", "t2")
        assert first.parent_request_id == "q1"
        assert len({caller.run_id, first.run_id, second.run_id}) == 3
        assert len({caller.request_id, first.request_id, second.request_id}) == 3
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            first.user_id = "bob"  # type: ignore[misc]
        with pytest.raises(TypeError):
            first.metadata["user_id"] = "bob"  # type: ignore[index]
        with pytest.raises(InvalidArgument, match="thread_id"):
            await handler.handle_message(attrs.evolve(caller, thread_id="no id!"), None, said())


async def test_what_a_message_says_reaches_the_run(autojump_clock: None) -> None:
    """Agent, context, timeout, logs and attachments are those of the native run; another default may be set."""
    seen: dict[str, Run] = {}

    async def first(run: Run) -> None:
        seen["first"] = run

    async def second(run: Run) -> None:
        seen["second"] = run

    async with open_test_server({"first": first, "second": second}) as server:
        handler = AgentMessageHandler(server.server, agent="second")
        logs = [{"event": "x"}]
        assert await handler.handle_message("ada", None, said("x", context={"a": 1}, timeout_s=3, jsonl_logs=logs))
        assert await handler.handle_message("ada", None, said("x", "start_agent", agent="first", idle_timeout_s=2))
        run = seen["second"]
        assert (dict(run.context), run.request.timeout_s, run.jsonl_logs) == ({"a": 1}, 3, logs)
        assert (run.request.trigger, run.request.on_disconnect) == ("api", "continue")
        assert seen["first"].request.idle_timeout_s == 2
        async with server.server.context_for(Identity("ada")) as ada:
            native = await ada.start("x", agent="first")
            await native.result()
        with pytest.raises(LookupError):
            RequestContext.of(seen["first"])


async def test_threads_are_their_users(autojump_clock: None) -> None:
    """A thread that nobody knows is made, with its title; under another user's id there is another thread."""
    witness = Witness()
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server)
        assert await handler.handle_message("ada", None, said("the plan", thread_id="t1"))
        assert await handler.handle_message("bob", None, said("my plan", thread_id="t1"))
        assert await handler.handle_message("ada", None, said("more", thread_id="t1"))
        assert await threads_of(server, "ada") == {"t1": ("the plan", ["the plan", "the plan", "more", "more"])}
        assert await threads_of(server, "bob") == {"t1": ("my plan", ["my plan", "my plan"])}
        busy = said("wait", thread_id="t2")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler.handle_message, "ada", None, busy)
            await witness.until(1)
            assert not await handler.handle_message("ada", None, said("x", thread_id="t2", on_busy="reject"))
            witness.let_go.set()
        assert len((await threads_of(server, "ada"))["t2"][1]) == 2


async def threads_of(server: MemoryServer, user: str) -> dict[str, tuple[str, list[str]]]:
    """Return thread id → its title and the texts of its messages, as the user's client sees them."""
    async with server.connect_raw(user) as client:
        threads = (await client.ask("list_threads"))["threads"]
        found = {}
        for thread in threads:
            history = await client.ask("get_thread_history", thread_id=thread["thread_id"])
            texts = [message["content"] for message in history["messages"]]
            found[thread["thread_id"]] = (thread["title"], texts)
        return found
