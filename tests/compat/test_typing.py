"""Typing notices: from one connection of a user to the user's others, and to nobody and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import StartServer
from tests.kit import Client, connect, raw, token, upgrade

SAYINGS: list[tuple[dict[str, Any], bool]] = [
    ({"type": "user_typing", "thread_id": "t"}, True),
    ({"type": "typing_started", "thread_id": "t", "user_id": "mallory", "timestamp": "2025-09-05T10:00:00Z"}, True),
    ({"type": "typing_stopped", "thread_id": "t"}, False),
    ({"type": "user_typing", "payload": {"thread_id": "t", "user_id": "mallory", "is_typing": False}}, False),
    ({"type": "user_typing", "thread_id": "t", "is_typing": True}, True),
]


async def nothing_more(client: Client) -> None:
    """Check that the server has said nothing to a client that was not read."""
    await client.send("ping")
    assert (await client.receive())["type"] == "pong"


@pytest.mark.parametrize(("saying", "typing"), SAYINGS, ids=lambda value: str(value)[:60])
async def test_the_users_other_connections_see_it(saying: dict[str, Any], typing: bool, server: StartServer) -> None:
    """Under each name and in both shapes: an ack for who types, one notice for each other connection of the user."""
    running = await server()
    async with connect(running) as client, connect(running) as tab, connect(running, "mallory") as mallory:
        await client.ask("create_thread", thread_id="t")
        await tab.until("thread_created")
        fields = dict(saying)
        await client.send(fields.pop("type"), id="c1", **fields)
        answer = await client.receive()
        assert (answer["type"], answer["reply_to"], answer["thread_id"]) == ("ack", "c1", "t"), "no notice of one's own"
        notice = await tab.receive()
        assert set(notice) == {"type", "user_id", "thread_id", "is_typing", "timestamp"}
        assert (notice["type"], notice["user_id"], notice["thread_id"]) == ("typing", "ada", "t")
        assert notice["is_typing"] is typing
        for other in (client, tab, mallory):
            await nothing_more(other)


async def test_it_is_not_kept(server: StartServer) -> None:
    """A notice has no number, moves no position, and comes in no replay and no history."""
    running = await server()
    async with connect(running) as client, connect(running) as tab:
        await client.ask("create_thread", thread_id="t")
        position = (await tab.until("thread_created"))[-1]["seq"]
        for _ in range(3):
            await client.ask("typing_started", thread_id="t")
            assert "seq" not in await tab.receive()
        history = await client.ask("get_thread_history", thread_id="t")
        assert (history["messages"], history["stream"]["seq"]) == ([], position)
        epoch = history["stream"]["epoch"]
    async with connect(running, path=f"/ws?resume={epoch}:0") as again:
        assert [message["type"] for message in await again.until("replay_completed")] == [
            "thread_created",
            "replay_completed",
        ]


async def test_an_older_client_types_and_sees_typing(server: StartServer) -> None:
    """Clients of the older handshake take part when they have been led in, and are not interrupted before."""
    running = await server()
    async with connect(running) as tab, raw(running) as client:
        await client.open(upgrade(protocols=("jwt-auth", f"jwt.{token()}")))
        offer = await client.receive()
        thread_id = offer["thread_id"]
        await tab.until("thread_created")
        await tab.ask("user_typing", thread_id=thread_id)
        await client.send("handshake_acknowledged", thread_id=thread_id)
        assert (await client.receive())["type"] == "handshake_complete"
        await nothing_more(client)
        await tab.ask("user_typing", thread_id=thread_id)
        assert (await client.receive())["type"] == "typing"
        await client.ask("typing_started", thread_id=thread_id)
        assert (await tab.receive())["is_typing"] is True


@pytest.mark.parametrize(
    ("saying", "code"),
    [
        ({"type": "typing_started", "thread_id": "foreign"}, "NOT_FOUND"),
        ({"type": "typing_started"}, "INVALID_MESSAGE"),
        ({"type": "user_typing", "thread_id": "t", "is_typing": 1}, "INVALID_MESSAGE"),
        ({"type": "agent_typing", "thread_id": "t"}, "UNKNOWN_TYPE"),
    ],
)
async def test_what_is_no_typing(saying: dict[str, Any], code: str, server: StartServer) -> None:
    """Another user's thread, no thread, no truth value; and that an agent types is for the agent's events to say."""
    running = await server()
    async with connect(running) as client, connect(running) as tab, connect(running, "bob") as bob:
        await bob.ask("create_thread", thread_id="foreign")
        await client.ask("create_thread", thread_id="t")
        await tab.until("thread_created")
        fields = dict(saying)
        assert (await client.ask(fields.pop("type"), **fields))["code"] == code
        await nothing_more(tab)


async def test_who_may_not_read_sees_no_typing(server: StartServer) -> None:
    """A connection without the permission to read is told nothing of what the others do; without chat nobody types."""
    running = await server()
    async with (
        connect(running) as client,
        connect(running, permissions=["chat"]) as writer,
        connect(running, permissions=["read"]) as reader,
    ):
        await client.ask("create_thread", thread_id="t")
        await reader.until("thread_created")
        await client.ask("typing_started", thread_id="t")
        await nothing_more(writer)
        assert (await reader.receive())["type"] == "typing"
        assert (await reader.ask("typing_started", thread_id="t"))["code"] == "FORBIDDEN"
