"""The agent handler, topics 1 to 6: what belongs to one message alone."""

from __future__ import annotations

from contextlib import nullcontext

import trio

from netra_ws import Identity
from netra_ws.compat.agent_handler import AgentMessageHandler
from netra_ws.testing import open_test_server
from tests.conftest import StartServer

from .handling import Board, Database, Socket, Spans, Witness, failing, five, note, of_run, said, types_of


async def test_two_users_at_once_share_nothing(autojump_clock: None) -> None:
    """Two users at once have contexts, threads, runs and sessions of their own, and hear nothing of each other."""
    witness, spans = Witness(), Spans()
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server, sessions=spans.session)
        async with trio.open_nursery() as nursery:
            for user in ("alice", "bob"):
                nursery.start_soon(handler.handle_message, user, None, said("wait", thread_id=f"{user}-thread"))
            await witness.until(2)
            witness.let_go.set()
        alice, bob = sorted(witness.seen, key=lambda request: request.user_id)
        assert (alice.user_id, alice.thread_id, bob.user_id, bob.thread_id) == (
            "alice",
            "alice-thread",
            "bob",
            "bob-thread",
        )
        assert len({alice.run_id, bob.run_id, alice.request_id, bob.request_id}) == 4
        assert alice.db_session is not bob.db_session
        for user in ("alice", "bob"):
            heard = await server.recorded(user)
            assert types_of(heard) == ["agent_started", "agent_completed"]
            assert {one.fields["user_id"] for one in heard} == {user}
            other = "bob" if user == "alice" else "alice"
            assert other not in repr([one.fields for one in heard])


async def test_a_message_belongs_to_the_thread_it_names(autojump_clock: None) -> None:
    """The connection is found by its socket, goes to the message's thread before the run begins, and is named."""
    witness, socket = Witness(), Socket()
    board = Board(sockets={"c1": socket, "c2": Socket()})
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server, manager=board)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler.handle_message, "ada", socket, said("wait", thread_id="t-inner"))
            await witness.until(1)
            assert board.threads == {"c1": "t-inner"}
            witness.let_go.set()
        assert await handler.handle_message("ada", socket, {**said(), "thread_id": "t-outer"})
        assert await handler.handle_message("ada", socket, {**said(thread_id="t-both"), "thread_id": "t-outer"})
        assert [(one.thread_id, one.websocket_connection_id) for one in witness.seen] == [
            ("t-inner", "c1"),
            ("t-outer", "c1"),
            ("t-both", "c1"),
        ]
        assert board.threads == {"c1": "t-both"}
        assert board.notices == []


async def test_the_context_of_a_run_is_complete(autojump_clock: None) -> None:
    """User, thread, run, request, connection and session are there; what a message does not name is made."""
    witness, socket, spans = Witness(), Socket(), Spans()
    board = Board(sockets={"c1": socket})
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server, manager=board, sessions=spans.session)
        named = said("named", "start_agent", thread_id="t1", run_id="r1", settings={"depth": 2})
        assert await handler.handle_message("ada", socket, named)
        assert await handler.handle_message("ada", socket, said("unnamed", "start_agent"))
        first, second = witness.seen
        assert (first.user_id, first.thread_id, first.run_id) == ("ada", "t1", "r1")
        assert first.websocket_connection_id == "c1"
        assert first.created_at.utcoffset() is not None
        assert dict(first.metadata) == {"message_type": "start_agent", "settings": {"depth": 2}}
        assert first.to_dict()["has_db_session"] is True
        assert "db_session" not in repr(first)
        assert second.thread_id.startswith("thread_")
        assert second.run_id.startswith("run_")
        started = [one.fields["run_id"] for one in await server.recorded("ada") if one.type == "agent_started"]
        assert started == ["r1", second.run_id]


async def test_each_message_has_a_run_of_its_own(autojump_clock: None) -> None:
    """Three messages have three contexts and runs; stopping one leaves the others alone."""
    witness = Witness()
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server)
        done: dict[str, bool] = {}

        async def send(name: str) -> None:
            done[name] = await handler.handle_message("ada", None, said(f"wait {name}", thread_id=name))

        async with server.server.context_for(Identity("ada")) as ada, trio.open_nursery() as nursery:
            for name in ("one", "two", "three"):
                nursery.start_soon(send, name)
            await witness.until(3)
            runs = {request.thread_id: request.run_id for request in witness.seen}
            assert len(set(runs.values())) == 3
            assert len({request.request_id for request in witness.seen}) == 3
            assert await ada.stop(runs["two"]) == "cancelled"
            assert witness.ended == ["wait two"]
            witness.let_go.set()
        assert done == {"one": True, "two": True, "three": True}  # its user wanted it so
        assert handler.get_stats()["errors"] == 0
        completed = [one.fields for one in await server.recorded("ada") if one.type == "agent_completed"]
        assert {each["run_id"]: each["status"] for each in completed} == {
            runs["one"]: "success",
            runs["two"]: "cancelled",
            runs["three"]: "success",
        }


async def test_cancelling_a_message_cancels_its_run_alone(autojump_clock: None) -> None:
    """Whoever cancels the handling of a message has its run ended and its session closed before going on."""
    witness, spans = Witness(), Spans()
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server, sessions=spans.session)
        done: list[bool] = []

        async def stay() -> None:
            done.append(await handler.handle_message("ada", None, said("wait stay")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay)
            await witness.until(1)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(handler.handle_message, "ada", None, said("wait go"))
                    await witness.until(2)
                    scope.cancel()
            assert witness.ended == ["wait go"]
            assert (spans.opened, spans.open, spans.closed_with) == (2, 1, [trio.Cancelled])
            witness.let_go.set()
        assert done == [True]
        assert handler.get_stats()["errors"] == 1
        gone = next(request for request in witness.seen if request.run_id != witness.seen[0].run_id)
        last = of_run(await server.recorded("ada"), gone.run_id)[-1].fields
        assert (last["type"], last["status"], last["cancelled_by"]) == ("agent_completed", "cancelled", "disconnect")


async def test_one_session_for_each_message_closed_on_success_and_on_error(
    server: StartServer, store_url: str, database: Database
) -> None:
    """Each message has one session of the program's database: kept on success, undone on errors, closed always."""
    running = await server(agents={"note": note}, agents__default="note", store__url=store_url)
    handler = AgentMessageHandler(running, sessions=database.session)
    assert await handler.handle_message("ada", None, said("first"))
    assert not await handler.handle_message("ada", None, said("fail here"))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler.handle_message, "ada", None, said("wait here"))
            async with running.context_for(Identity("ada")) as ada:
                async for heard in ada.events():
                    if heard.type == "agent_thinking":
                        break
            scope.cancel()
    assert await handler.handle_message("ada", None, said("second"))
    assert not await handler.handle_message("ada", None, said("   "))
    assert (database.opened, database.closed, database.open) == (4, 4, [])
    assert database.notes() == [("ada", "first"), ("ada", "second")]
    database.ill = ConnectionError("no connection to the database")
    assert not await handler.handle_message("ada", None, said("third"))
    database.ill = None
    assert await handler.handle_message("ada", None, said("fourth"))
    assert handler.get_stats() | {"last_processed_time": 0} == {
        "messages_processed": 3,
        "start_agent_requests": 0,
        "user_messages": 0,
        "chat_messages": 3,
        "errors": 4,
        "last_processed_time": 0,
    }


async def test_a_session_is_never_given_to_two_messages(autojump_clock: None) -> None:
    """A program that gives two messages one session at the same time has the second one refused, not mixed."""
    witness, spans, board = Witness(), Spans(), Board()
    async with open_test_server({"witness": witness}) as server, spans.session() as shared:
        handler = AgentMessageHandler(server.server, manager=board, sessions=lambda: nullcontext(shared))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler.handle_message, "ada", None, said("wait"))
            await witness.until(1)
            assert not await handler.handle_message("bob", None, said("mine?"))
            witness.let_go.set()
        assert [request.user_id for request in witness.seen] == ["ada"]
        assert [user for user, _ in board.notices] == ["bob"]
        assert await handler.handle_message("bob", None, said("now"))


async def test_errors_are_counted_and_told(autojump_clock: None) -> None:
    """A message that fails counts as an error and nothing else, and its user is told to try again."""
    board = Board()
    async with open_test_server({"five": five, "failing": failing}) as server:
        handler = AgentMessageHandler(server.server, manager=board)
        for type_name in ("start_agent", "user_message", "chat", "chat"):
            assert await handler.handle_message("ada", None, said("hello", type_name))
        before = handler.get_stats()
        assert before["messages_processed"] == 4
        assert (before["start_agent_requests"], before["user_messages"], before["chat_messages"]) == (1, 1, 2)
        assert before["last_processed_time"] == server.now()
        assert not await handler.handle_message("ada", None, said("hello", agent="failing"))
        assert handler.get_stats() == before | {"errors": 1}
        ((user, text),) = board.notices
        assert user == "ada"
        assert "Failed to process chat" in text
        assert "try again" in text
        assert "secret" not in text


async def test_an_import_error_is_the_outcome_of_its_message(autojump_clock: None) -> None:
    """A program's session that cannot even be imported fails its message, and not whoever handles it."""
    for error in (ImportError("no driver"), ModuleNotFoundError("no module"), AttributeError("drift"), ValueError()):
        spans, board = Spans(), Board()

        def broken(error: Exception = error) -> object:
            raise error

        async with open_test_server({"five": five}) as server:
            handler = AgentMessageHandler(server.server, manager=board, sessions=broken)
            assert not await handler.handle_message("ada", None, said())
            assert (handler.get_stats()["errors"], handler.get_stats()["messages_processed"]) == (1, 0)
            assert [user for user, _ in board.notices] == ["ada"]
            assert await server.recorded("ada") == []
        assert spans.opened == 0
