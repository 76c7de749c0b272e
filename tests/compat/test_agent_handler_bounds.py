"""The agent handler, bounds and recovery: topics 28 to 30."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from netra_ws.compat import agent_turn
from netra_ws.compat.agent_handler import AgentMessageHandler
from netra_ws.testing import open_test_server

from .handling import Board, Socket, Spans, Witness, failing, five, refusing, said, slow


async def test_timeouts(autojump_clock: None) -> None:
    """A run that takes too long ends with its session; so does what a manager takes too long for."""
    spans, board, mute = Spans(), Board(), MuteBoard()
    async with open_test_server({"slow": slow}, {"timing.run_timeout_s": 60.0}) as server:
        handler = AgentMessageHandler(server.server, manager=board, sessions=spans.session)
        began = trio.current_time()
        assert not await handler.handle_message("ada", None, said("1000"))
        assert trio.current_time() - began == pytest.approx(60.0, abs=1.0)
        assert not await handler.handle_message("ada", None, said("50", timeout_s=5))
        assert await handler.handle_message("ada", None, said("50"))
        assert (spans.open, len(board.notices)) == (0, 2)
        ended = [one.fields["status"] for one in await server.recorded("ada") if one.type == "agent_completed"]
        assert ended == ["timeout", "timeout", "success"]
        handler = AgentMessageHandler(server.server, manager=mute)
        began = trio.current_time()
        assert not await handler.handle_message("ada", Socket(), said("1"))
        assert trio.current_time() - began == pytest.approx(2 * agent_turn.MANAGER_S)
        assert await handler.handle_message("ada", None, said("1"))


class MuteBoard(Board):
    """A manager that never answers."""

    async def get_connection_id_by_websocket(self, websocket: object) -> None:  # type: ignore[override]
        await trio.sleep_forever()

    async def send_error(self, user_id: str, text: str) -> None:
        await trio.sleep_forever()


async def test_failures_stay_with_their_messages(autojump_clock: None) -> None:
    """Among messages that fail in every way, the good ones are processed; after each failure the next one works."""
    board = Board()
    agents = {"five": five, "failing": failing, "refusing": refusing}
    async with open_test_server(agents, {"limits.max_runs_per_user": 100}) as server:
        handler = AgentMessageHandler(server.server, manager=board)
        bad = [said("x", agent="failing"), said("x", agent="refusing"), said("x", agent="nobody"), said(""), said(7)]
        done: list[bool] = []

        async def send(message: dict[str, Any]) -> None:
            done.append(await handler.handle_message("ada", None, message))

        async with trio.open_nursery() as nursery:
            for message in bad:
                nursery.start_soon(send, message)
                nursery.start_soon(send, said())
        assert (done.count(True), done.count(False)) == (5, 5)
        for message in bad:
            assert not await handler.handle_message("ada", None, message)
            assert await handler.handle_message("ada", None, said())
        assert len(board.notices) == 10


async def test_resources_run_out_and_come_back(autojump_clock: None) -> None:
    """Runs, queues, threads and rates have bounds: beyond them there is a clear error, below them all is well again."""
    witness, board = Witness(), Board()
    limits = {
        "limits.max_runs_per_user": 2,
        "limits.max_queued_per_thread": 1,
        "limits.max_threads_per_user": 3,
        "limits.messages_per_minute": 20,
    }
    async with open_test_server({"witness": witness}, limits) as server:
        handler = AgentMessageHandler(server.server, manager=board)

        async def refused(why: str, message: dict[str, Any]) -> None:
            assert not await handler.handle_message("ada", None, message)
            assert why in board.notices[-1][1]

        async with trio.open_nursery() as nursery:
            for thread_id in ("t1", "t2", "t1"):
                nursery.start_soon(handler.handle_message, "ada", None, said("wait", thread_id=thread_id))
                await trio.testing.wait_all_tasks_blocked()
            await witness.until(2)
            await refused("runs at once", said(thread_id="t3"))
            await refused("too many messages wait", said(thread_id="t1"))
            assert await handler.handle_message("bob", None, said())
            witness.let_go.set()
        assert await handler.handle_message("ada", None, said(thread_id="t3"))
        await refused("more than 3 threads", said(thread_id="t4"))
        for _ in range(13):
            await handler.handle_message("ada", None, said(thread_id="t1"))
        await refused("too many messages", said(thread_id="t1"))
        assert await handler.handle_message("bob", None, said())
        await trio.sleep(60)
        assert await handler.handle_message("ada", None, said(thread_id="t1"))
