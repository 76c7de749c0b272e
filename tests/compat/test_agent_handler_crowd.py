"""The agent handler with many users on real sockets: what is one user's stays one user's."""

from __future__ import annotations

import trio

from netra_ws import Identity, Run
from netra_ws.compat.agent_handler import AgentMessageHandler
from tests.conftest import StartServer
from tests.kit import connect

from .handling import Database, end_of, note, said


async def test_one_users_trouble_is_not_anothers(server: StartServer, store_url: str) -> None:
    """A user whose runs fail, are cancelled, and who is signed out at last takes nothing from a user beside."""
    let_go = trio.Event()

    async def work(run: Run) -> str:
        if run.text == "fail":
            raise MemoryError("of the agent")
        await run.think(run.text)
        await let_go.wait()
        return run.text

    running = await server(agents={"work": work}, agents__default="work", store__url=store_url)
    handler = AgentMessageHandler(running)
    done: dict[str, bool] = {}

    async def send(user: str, text: str) -> None:
        done[text] = await handler.handle_message(user, None, said(text))

    async with connect(running, "ada"), connect(running, "bob") as bob, trio.open_nursery() as nursery:
        nursery.start_soon(send, "bob", "bob's own")
        await bob.until("agent_thinking")
        await send("ada", "fail")
        with trio.move_on_after(0.05):
            await send("ada", "cancelled")
        nursery.start_soon(send, "ada", "signed out")
        async with running.context_for(Identity("ada")) as ada:
            async for heard in ada.events():
                if heard.fields.get("reasoning") == "signed out":
                    break
        async with connect(running, "root", permissions=("operator",)) as root:
            assert (await root.ask("kick", user_id="ada"))["runs"] == 1
        let_go.set()
        last = (await end_of(bob))[-1]
        assert (last["status"], last["final_response"]) == ("success", "bob's own")
    assert done == {"fail": False, "signed out": False, "bob's own": True}
    assert len({context.user_id for context in running.registry}) <= 2


async def test_ten_users_with_five_messages_each(server: StartServer, store_url: str, database: Database) -> None:
    """Ten users on sockets of their own say five things each: all fifty are processed, heard and kept."""
    running = await server(agents={"note": note}, agents__default="note", store__url=store_url)
    handler = AgentMessageHandler(running, sessions=database.session)
    answers: dict[str, list[str]] = {}

    async def visit(user: str) -> None:
        async with connect(running, user) as client, trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(handler.handle_message, user, None, said(f"{user} {number}"))
            answers[user] = [(await end_of(client))[-1]["final_response"] for _ in range(5)]

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(visit, f"user-{number}")
    expected = {f"user-{n}": [f"user-{n} {m}" for m in range(5)] for n in range(10)}
    assert {user: sorted(found) for user, found in answers.items()} == expected
    assert database.notes() == sorted((user, text) for user, texts in expected.items() for text in texts)
    assert (database.opened, database.closed, database.open) == (50, 50, [])
    assert handler.get_stats()["messages_processed"] == 50
    assert handler.get_stats()["errors"] == 0
