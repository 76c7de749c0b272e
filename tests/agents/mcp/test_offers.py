"""Names, texts and schemas under which tools are offered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from netra_ws import McpServer, Run, Tool, open_mcp
from netra_ws.agents.toolbox import Toolbox
from netra_ws.protocol.events import ToolCompleted
from netra_ws.testing import check_run, open_session, run_agent

from .kit import heard_of, plain, using


async def names_of(*servers: McpServer, taken: tuple[str, ...] = ()) -> list[str]:
    async def agent(run: Run) -> Any:
        async with open_mcp(run, servers, taken=taken) as tools:
            return [function["function"]["name"] for function in Toolbox(tools).functions()]

    return list(check_run(await run_agent(agent)).final_response)


async def test_odd_tools(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Names become such that models can call, each its own; what cannot be offered is left out and logged."""
    names = await names_of(plain(tmp_path, "odd"))
    assert names[0] == "no_such_sign"
    assert re.fullmatch(r"no_such_sign_[0-9a-f]{8}", names[1])
    assert names[2] == "_tf"
    assert re.fullmatch(r"l{55}_[0-9a-f]{8}", names[3])
    assert names[4:] == ["fine", "wordy"]
    for name in ("***", "not_a_schema", "not_an_object", "elsewhere", "too_large"):
        assert f"the tool {name} is left out" in caplog.text


async def test_a_tool_under_another_name(tmp_path: Path) -> None:
    """A tool whose name was changed is called by its own at the server, and known to the user by the new one."""

    async def work(run: Run, tools: Mapping[str, Tool]) -> None:
        tool = next(tool for name, tool in tools.items() if name.startswith("plain_echo"))
        await tool(run, text="hello")

    events = await heard_of(plain(tmp_path, prefix=True), work=work)
    told = next(one.message for one in events if isinstance(one.message, ToolCompleted))
    assert (told.tool_name, told.status, told.results) == ("plain_echo", "ok", "hello")


async def test_two_servers_with_the_same_tools(tmp_path: Path) -> None:
    """Where two servers offer the same name, each one's tool has its server's name before it."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    some = {"include": ["echo", "big"]}
    names = await names_of(plain(one, name="one", **some), plain(two, name="two", include=["echo"]))
    assert names == ["one_echo", "big", "two_echo"]


async def test_names_that_are_taken(tmp_path: Path) -> None:
    """A tool that has the name of one of the program's own gets its server's name before it."""
    assert await names_of(plain(tmp_path, include=["echo", "big"]), taken=("echo",)) == ["plain_echo", "big"]


async def test_a_choice_of_tools(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only what is included and not excluded is offered; what is not there is logged."""
    server = plain(tmp_path, include=["echo", "big", "gone"], exclude=["big"])
    assert await names_of(server) == ["echo"]
    assert "does not have the tools gone" in caplog.text


async def test_a_list_without_end(tmp_path: Path) -> None:
    """A list that goes on for ever ends at a bound, and what was read of it is offered."""
    names = await names_of(plain(tmp_path, "endless"))
    assert names == [f"tool_{number}" for number in range(50)]


async def test_what_a_model_gets_wrong(tmp_path: Path) -> None:
    """Arguments that do not fit go back to the model by their paths; the server never sees them."""
    seen: dict[str, Any] = {}

    async def work(run: Run, tools: Mapping[str, Tool]) -> None:
        box = Toolbox(tools.values())
        seen["wrong"] = await box.attempt(run, "echo", '{"text": 5}')
        seen["failed"] = await box.attempt(run, "fail_with_text", "{}")
        seen["right"] = await box.attempt(run, "echo", '{"text": "yes"}')

    check_run(await heard_of(plain(tmp_path), work=work))
    assert seen["wrong"].error.code == "INVALID_PARAMETERS"
    assert seen["wrong"].error.message == "$.text: 5 is not of type 'string'"
    assert "the disk is full" in seen["failed"].for_model()
    assert seen["right"].for_model() == "yes"


async def test_a_permission(tmp_path: Path) -> None:
    """A user without the permission that a server's tools need is denied, and the server is not called."""

    async def work(run: Run, tools: Mapping[str, Tool]) -> Any:
        attempt = await Toolbox(tools.values()).attempt(run, "echo", {"text": "x"})
        return [attempt.status, attempt.error and attempt.error.code]

    agent = using(plain(tmp_path, permission="files"), work=work)
    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        assert (await run.result()).final_response == ["denied", "FORBIDDEN"]


async def test_descriptions(tmp_path: Path) -> None:
    """A long description is cut; a tool without one is described by its title, or its name and its server."""
    described: dict[str, str] = {}

    async def work(run: Run, tools: Mapping[str, Tool]) -> None:
        described.update({name: tool.description for name, tool in tools.items()})

    await heard_of(plain(tmp_path, "odd"), work=work)
    assert described["no_such_sign"] == "no.such.sign of plain"
    assert described["fine"] == "A fine tool"
    assert len(described["wordy"]) == 4096
    assert described["wordy"].endswith("…")
