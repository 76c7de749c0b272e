"""The agent handler beyond the older inventory: not waiting, busy threads, who may speak, and a server that stops."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import trio

from netra_ws import Identity, Run
from netra_ws.compat.agent_handler import AgentMessageHandler
from netra_ws.compat.agent_message import RequestContext
from netra_ws.testing import open_test_server

from .handling import Board, Socket, Spans, Witness, said


async def test_without_waiting_a_message_is_handled_when_it_is_kept(autojump_clock: None) -> None:
    """The text is committed and the session closed when the call returns; the run goes on without one."""
    witness, spans = Witness(), Spans()
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server, sessions=spans.session, wait=False)
        assert await handler.handle_message("ada", None, said("wait", thread_id="t1"))
        heard = await server.recorded("ada")
        assert [one.type for one in heard][:2] == ["thread_created", "user_message"]
        assert (spans.opened, spans.open) == (1, 0)
        await witness.until(1)
        assert witness.seen[0].db_session is None
        await trio.sleep(100.0)  # nobody is connected, and it goes on
        assert witness.ended == []
        witness.let_go.set()
        await server.settled()
        assert [one.fields["status"] for one in await server.recorded("ada") if one.type == "agent_completed"] == [
            "success"
        ]


async def test_without_waiting_a_store_that_is_slow_is_told(autojump_clock: None) -> None:
    """A text that is not committed within the bound is no success: its user is told to try again."""
    board = Board()
    async with open_test_server({"witness": Witness()}) as server:
        handler = AgentMessageHandler(server.server, manager=board, wait=False)
        assert await handler.handle_message("ada", None, said(thread_id="t1"))
        await server.settled()
        async with server.server.context_for(Identity("ada")) as ada:
            await ada.emit("note", 1)
            server.store.full()
            assert not await handler.handle_message("ada", None, said(thread_id="t1"))
        assert "the store does not answer" in board.notices[0][1]


async def test_a_busy_thread(autojump_clock: None) -> None:
    """Queued, steered, put in another's place: each message is answered for itself, and each run ends once."""
    witness = Witness()
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server)
        done: dict[str, bool] = {}

        async def send(text: str, on_busy: str) -> None:
            done[text] = await handler.handle_message("ada", None, said(text, thread_id="t1", on_busy=on_busy))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, "wait first", "enqueue")
            await witness.until(1)
            nursery.start_soon(send, "queued", "enqueue")
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(1.0):
                await send("steered", "steer")  # done when it is kept: the run is another message's
            assert done == {"steered": True}
            assert witness.ended == []
            with trio.move_on_after(1.0):
                await send("never", "enqueue")
            await send("instead", "interrupt")
            assert witness.ended[:3] == ["wait first", "steered", "instead"]
        assert done == {"steered": True, "wait first": True, "instead": True, "queued": True}
        assert witness.ended == ["wait first", "steered", "instead", "queued"]
        assert handler.get_stats()["errors"] == 1  # the one that was cancelled in the queue
        types = [one.type for one in await server.recorded("ada")]
        assert types.count("agent_started") == types.count("agent_completed") == 4


async def test_who_may_not_speak(autojump_clock: None) -> None:
    """An identity that has expired, or may only read, starts nothing; the caller's own identity reaches the run."""
    seen: list[Identity] = []

    async def tell(run: Run) -> None:
        seen.append(run.identity)

    board, spans = Board(), Spans()
    async with open_test_server({"tell": tell}) as server:
        handler = AgentMessageHandler(server.server, manager=board, sessions=spans.session)
        reader = Identity("ada", permissions=("read",))
        expired = Identity("ada", expires_at=server.now() - 1)
        may = Identity("ada", permissions=("chat", "special"), expires_at=server.now() + 100)
        assert not await handler.handle_message(reader, None, said())
        assert not await handler.handle_message(expired, None, said())
        assert ["permission" in board.notices[0][1], "expired" in board.notices[1][1]] == [True, True]
        assert (seen, spans.opened) == ([], 0)
        assert await handler.handle_message(may, None, said())
        async with server.server.context_for(may) as session:
            assert await handler.handle_message(session, None, said())
        assert seen == [may, may]


async def test_a_connection_keeps_its_thread(autojump_clock: None) -> None:
    """With a manager that knows its connections, a message without a thread goes on in its connection's thread."""

    class Knowing(Board):
        def get_connection(self, connection_id: str) -> object:
            class Connection:
                thread_id = self.threads.get(connection_id)

            return Connection

    witness, socket = Witness(), Socket()
    board = Knowing(sockets={"c1": socket})
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server, manager=board)
        caller = RequestContext(user_id="ada", thread_id="of-the-caller", run_id="r", request_id="q")
        for message in (said(), said(thread_id="t2"), said()):
            assert await handler.handle_message(caller, socket, message)
        assert [request.thread_id for request in witness.seen] == ["of-the-caller", "t2", "t2"]
        board.threads["c1"] = "no id!"
        assert await handler.handle_message("ada", socket, said())
        assert witness.seen[-1].thread_id.startswith("thread_")


async def test_a_server_that_stops(autojump_clock: None) -> None:
    """A drain ends the runs of messages with it; what comes afterwards is refused, and told."""
    witness, spans, board = Witness(), Spans(), Board()
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server, manager=board, sessions=spans.session)
        done: list[bool] = []

        async def send() -> None:
            done.append(await handler.handle_message("ada", None, said("wait")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await witness.until(1)
            await server.server.drain(1.0)
        assert done == [False]
        assert not await handler.handle_message("ada", None, said())
        assert "about to stop" in board.notices[-1][1]
        assert (len(board.notices), spans.open) == (2, 0)
    assert not await handler.handle_message("ada", None, said())
    assert not await AgentMessageHandler(server.server).handle_message("ada", None, said())


async def test_a_run_that_cannot_be_stopped(autojump_clock: None) -> None:
    """Cancelling a message whose agent does not stop takes no longer than the bounds of a stop; the session closes."""
    spans = Spans()

    async def deaf(run: Run) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(1000.0)

    async with open_test_server({"deaf": deaf}, {"timing.finalise_s": 2.0}) as server:
        handler = AgentMessageHandler(server.server, sessions=spans.session)
        with trio.move_on_after(1.0) as scope:
            await handler.handle_message("ada", None, said())
        assert scope.cancelled_caught
        assert 3.0 <= trio.current_time() <= 6.0
        assert (spans.opened, spans.open) == (1, 0)
        last = (await server.recorded("ada"))[-1].fields
        assert (last["type"], last["error"]["code"]) == ("agent_completed", "CANCEL_TIMEOUT")


async def test_a_notice_may_not_swallow_what_goes_on(autojump_clock: None) -> None:
    """The end of memory goes on from a notice, too; a program without sessions of its own may say so by None."""
    board = Board(ill={"send_error": MemoryError()})
    witness = Witness()
    async with open_test_server({"witness": witness}) as server:
        handler = AgentMessageHandler(server.server, manager=board, sessions=nullcontext)
        with pytest.raises(MemoryError):
            await handler.handle_message("ada", None, said(""))
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(handler.handle_message, "ada", None, said("wait"))
            await witness.until(2)
            witness.let_go.set()
        assert [request.db_session for request in witness.seen] == [None, None]
