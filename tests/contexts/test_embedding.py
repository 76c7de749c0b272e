"""What a program may ask of a context, without a socket."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from netra_ws import ClientError, Identity, Run
from netra_ws.errors import InvalidArgument
from netra_ws.protocol.events import Announcement
from netra_ws.testing import open_session

from ..conftest import StartServer
from ..kit import connect


async def tell(run: Run) -> str:
    return f"{run.text} {sorted(run.context)}"


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("EMPTY_MESSAGE", {"text": "  "}),
        ("INVALID_MESSAGE", {"text": None}),
        ("INVALID_MESSAGE", {"text": 5}),
        ("INVALID_MESSAGE", {"text": "caf\udce9"}),
        ("INVALID_MESSAGE", {"thread_id": "no id!"}),
        ("INVALID_MESSAGE", {"run_id": ""}),
        ("INVALID_MESSAGE", {"agent": 5}),
        ("UNKNOWN_AGENT", {"agent": "nobody"}),
        ("INVALID_MESSAGE", {"context": ["a"]}),
        ("INVALID_MESSAGE", {"on_busy": "wait"}),
        ("INVALID_MESSAGE", {"on_disconnect": "stay"}),
        ("INVALID_MESSAGE", {"timeout_s": 0}),
        ("INVALID_MESSAGE", {"timeout_s": "5"}),
        ("INVALID_MESSAGE", {"timeout_s": float("nan")}),
        ("INVALID_MESSAGE", {"timeout_s": float("inf")}),
    ],
)
async def test_what_cannot_be_asked(code: str, fields: dict[str, Any]) -> None:
    """A wrong argument is refused before anything is stored; a NaN once ended the whole server."""
    async with open_session({"agent": tell}) as (_, session):
        before = session.position
        with pytest.raises(ClientError) as caught:
            await session.start(**{"text": "x", "agent": "agent", **fields})
        assert caught.value.code == code
        assert session.position == before
        run = await session.start(" well ", agent="agent", context={"a": object()}, timeout_s=5)
        assert (await run.result()).final_response == "well ['a']"


async def test_a_word_outside_any_run(server: StartServer) -> None:
    """What a program says to a user is a numbered event: live for who is there, by resuming for who was not."""
    running = await server()
    async with running.context_for(Identity("ada")) as session:
        async with connect(running, "ada") as client:
            await session.emit("news", {"text": "hello"})
            heard = (await client.until("agent_event"))[-1]
            assert (heard["name"], heard["value"], heard["user_id"]) == ("news", {"text": "hello"}, "ada")
            assert not {"thread_id", "run_id", "agent_name", "job_id"} & heard.keys()
        await session.emit("news", 2)
        position = session.position
        async with connect(running, "ada", path=f"/ws?resume={position.epoch}:{heard['seq']}") as client:
            assert (await client.until("agent_event"))[-1]["value"] == 2
        events = session.events(after=attrs.evolve(position, seq=heard["seq"] - 1))
        said = [(await anext(events)).message for _ in range(2)]
        assert said == [Announcement(name="news", value=value, user_id="ada") for value in ({"text": "hello"}, 2)]


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("name", "", 1),
        ("name", "x" * 257, 1),
        ("name", None, 1),
        ("value", "news", object()),
        ("value", "news", "x" * 300_000),
        ("value", "news", {1: 2}),
    ],
)
async def test_what_cannot_be_said(argument: str, name: Any, value: Any) -> None:
    """What no event can carry is refused with the argument's name, and nothing is appended."""
    async with open_session({}) as (_, session):
        before = session.context.stream.last
        with pytest.raises(InvalidArgument) as caught:
            await session.emit(name, value)
        assert caught.value.argument == argument
        assert session.context.stream.last == before
