"""The agent handler, many at once and when things go wrong: topics 13, 14 and 20 to 26."""

from __future__ import annotations

import ast
import gc
import warnings
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import netra_ws.compat
from netra_ws import AgentError
from netra_ws.compat import agent_turn
from netra_ws.compat.agent_handler import AgentMessageHandler
from netra_ws.compat.agent_message import RequestContext
from netra_ws.testing import check_run, open_test_server

from .handling import Board, Socket, Spans, Witness, failing, five, of_run, said, slow, types_of


async def test_no_deprecated_accessor_is_used(autojump_clock: None) -> None:
    """The handler works without a single warning, and its code names no accessor of a global manager."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with open_test_server({"five": five}) as server:
            assert await AgentMessageHandler(server.server).handle_message("ada", None, said())
            assert not await AgentMessageHandler(server.server).handle_message("ada", None, said(""))
    assert [str(one.message) for one in warned] == []
    folder = Path(next(iter(netra_ws.compat.__path__)))
    for file in folder.glob("agent_*.py"):
        names = {getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(ast.parse(file.read_text()))}
        assert "get_websocket_manager" not in names


async def test_statistics_are_exact(autojump_clock: None) -> None:
    """Whatever ends in whatever order: every message is counted once, as processed or as an error; a copy is given."""
    kinds = [("start_agent", "5"), ("user_message", "1"), ("chat", "3"), ("chat", ""), ("start_agent", "no number")]
    async with open_test_server({"slow": slow}, {"limits.max_runs_per_user": 100}) as server:
        handler = AgentMessageHandler(server.server, manager=Board())
        assert handler.get_stats()["last_processed_time"] is None
        async with trio.open_nursery() as nursery:
            for number in range(40):
                type_name, text = kinds[number % len(kinds)]
                nursery.start_soon(handler.handle_message, f"user-{number % 4}", None, said(text, type_name))
        stats = handler.get_stats()
        stats["errors"] = 1000
        assert handler.get_stats() == {
            "messages_processed": 24,
            "start_agent_requests": 8,
            "user_messages": 8,
            "chat_messages": 8,
            "errors": 16,
            "last_processed_time": server.now(),
        }


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("grouped", [False, True])
async def test_what_is_no_outcome_is_raised_again(autojump_clock: None, error: BaseException, grouped: bool) -> None:
    """The end of memory or of the process, alone or in a group, goes on; the session is closed, nobody is told."""
    board, spans = Board(), Spans()
    raised = BaseExceptionGroup("of the program", [ValueError(), error]) if grouped else error

    @asynccontextmanager
    async def session() -> AsyncIterator[object]:
        async with spans.session() as opened:
            yield opened
            raise raised

    async with open_test_server({"five": five}) as server:
        handler = AgentMessageHandler(server.server, manager=board, sessions=session)
        with pytest.raises(BaseException) as caught:
            await handler.handle_message("ada", None, said())
        assert caught.value is raised
        assert (spans.opened, spans.open, board.notices) == (1, 0, [])
        assert (handler.get_stats()["errors"], handler.get_stats()["messages_processed"]) == (1, 0)


async def test_other_errors_of_a_program_are_outcomes(autojump_clock: None) -> None:
    """A group of errors, an error when a session closes, and one that hides what happened: False, and told."""

    @asynccontextmanager
    async def closing_fails() -> AsyncIterator[object]:
        yield object()
        raise ExceptionGroup("of the program", [ValueError(), ConnectionError()])

    @asynccontextmanager
    async def hiding() -> AsyncIterator[object]:
        with suppress(Exception):
            yield object()

    for sessions, agent in ((closing_fails, "five"), (hiding, "failing")):
        board = Board()
        async with open_test_server({"five": five, "failing": failing}) as server:
            handler = AgentMessageHandler(server.server, manager=board, sessions=sessions, agent=agent)
            assert not await handler.handle_message("ada", None, said())
            assert (len(board.notices), handler.get_stats()["errors"]) == (1, 1)


async def test_twelve_users_at_once(autojump_clock: None) -> None:
    """Twelve users with three messages each: every run is whole, and in its own user's log alone."""
    spans = Spans()
    async with open_test_server({"five": five}) as server:
        handler = AgentMessageHandler(server.server, sessions=spans.session)
        users = [f"user-{number}" for number in range(12)]
        async with trio.open_nursery() as nursery:
            for user in users:
                for number in range(3):
                    nursery.start_soon(handler.handle_message, user, None, said(f"<{user}> {number}"))
        assert handler.get_stats()["messages_processed"] == 36
        assert (spans.opened, spans.open) == (36, 0)
        for user in users:
            heard = await server.recorded(user)
            for run_id in {one.fields["run_id"] for one in heard if one.type == "agent_started"}:
                check_run(of_run(heard, run_id))
            said_of = repr([one.fields for one in heard])
            assert not any(f"<{other}>" in said_of for other in users if other != user)
            assert types_of(heard).count("agent_completed") == 3


async def test_a_connection_drops_during_processing(autojump_clock: None) -> None:
    """A socket that is gone takes nothing away: the run ends, or ends at once when its message is cancelled."""
    witness, socket = Witness(), Socket()
    board = Board(sockets={"c1": socket})
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server, manager=board)
        done: list[bool] = []

        async def send() -> None:
            done.append(await handler.handle_message("ada", socket, said("wait", thread_id="t1")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await witness.until(1)
            board.sockets.clear()
            witness.let_go.set()
        assert done == [True]
        witness.let_go, board.ill["send_error"] = trio.Event(), trio.BrokenResourceError()
        with trio.move_on_after(1.0) as scope:
            await handler.handle_message("ada", socket, said("wait", thread_id="t1"))
        assert scope.cancelled_caught
        ended = [one.fields for one in await server.recorded("ada") if one.type == "agent_completed"]
        assert [(one["status"], one.get("cancelled_by")) for one in ended] == [
            ("success", None),
            ("cancelled", "disconnect"),
        ]
        await server.settled()


async def test_a_database_does_not_answer(autojump_clock: None) -> None:
    """A session that does not open, or not close, ends its message after a bound; the next one is well again."""
    board, spans = Board(), Spans(opens_in_s=1e6)
    async with open_test_server({"five": five}) as server:
        handler = AgentMessageHandler(server.server, manager=board, sessions=spans.session)
        began = trio.current_time()
        assert not await handler.handle_message("ada", None, said())
        assert trio.current_time() - began == pytest.approx(agent_turn.SESSION_S)
        assert await server.recorded("ada") == []
        spans.opens_in_s, spans.closes_in_s = 0.0, 1e6
        assert not await handler.handle_message("ada", None, said())
        spans.closes_in_s = 1.0
        assert await handler.handle_message("ada", None, said())
        with trio.move_on_after(0) as scope:
            await handler.handle_message("ada", None, said())
        assert scope.cancelled_caught
        assert len(board.notices) == 2
        assert spans.closed_with == [None]


async def test_the_store_does_not_answer(autojump_clock: None) -> None:
    """While the server's own store is away nothing begins and the user is told; afterwards everything works."""
    board = Board()
    async with open_test_server({"five": five}) as server:
        handler = AgentMessageHandler(server.server, manager=board)
        assert await handler.handle_message("ada", None, said("before", thread_id="t1"))
        for trouble in (server.store.hang, server.store.fail):
            trouble()
            assert not await handler.handle_message("ada", None, said("during"))
            assert not await handler.handle_message("bob", None, said("during"))
            server.store.recover()
            await trio.sleep(5.0)
        assert await handler.handle_message("ada", None, said("after", thread_id="t1"))
        assert await handler.handle_message("bob", None, said("after"))
        assert len(board.notices) == 4
        assert all("hunter2" not in text for _, text in board.notices)


async def test_threads_of_one_socket_in_a_race(autojump_clock: None) -> None:
    """Messages of one socket for many threads at once: each run is in its own thread, the socket in one of them."""
    witness, socket = Witness(), Socket()
    board = Board(sockets={"c1": socket})
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server, manager=board)
        threads = [f"t{number}" for number in range(6)]
        async with trio.open_nursery() as nursery:
            for thread_id in threads * 3:
                nursery.start_soon(handler.handle_message, "ada", socket, said(thread_id, thread_id=thread_id))
        started = {
            one.fields["run_id"]: one.fields for one in await server.recorded("ada") if one.type == "user_message"
        }
        assert len(witness.seen) == len(started) == 18
        assert all(started[one.run_id]["content"] == one.thread_id for one in witness.seen)
        assert all(started[one.run_id]["thread_id"] == one.thread_id for one in witness.seen)
        assert board.threads["c1"] in threads
        assert board.calls.count("update_connection_thread") == 18


async def test_nothing_is_left_behind(autojump_clock: None) -> None:
    """After many messages, good and bad and cancelled, no task, context, session or request is left."""
    gone: list[weakref.ref[RequestContext]] = []
    spans = Spans()

    async def tell(run: Any) -> None:
        gone.append(weakref.ref(RequestContext.of(run)))
        if run.text == "fail":
            raise AgentError("no")
        await trio.sleep(1.0)

    async with open_test_server({"tell": tell}, {"limits.messages_per_minute": 10_000}) as server:
        handler = AgentMessageHandler(server.server, sessions=spans.session)
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                for text in ("x", "y", "fail", ""):
                    nursery.start_soon(handler.handle_message, "ada", None, said(text))
                with trio.move_on_after(0.5):
                    await handler.handle_message("bob", None, said("cancelled"))
        await server.settled()
        assert (spans.opened, spans.open, len(handler._sessions)) == (80, 0, 0)
        gc.collect()
        assert len(gone) == 80
        assert [one for one in gone if one() is not None] == []


async def test_hundreds_of_messages_are_processed(autojump_clock: None) -> None:
    """Three hundred messages of ten users at once are all processed; how fast is a benchmark's to say."""
    async with open_test_server({"five": five}, {"limits.max_runs_per_user": 100}) as server:
        handler = AgentMessageHandler(server.server)
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(handler.handle_message, f"user-{number % 10}", None, said(f"{number}"))
        assert handler.get_stats()["messages_processed"] == 300
        for number in range(10):
            assert types_of(await server.recorded(f"user-{number}")).count("agent_completed") == 30
