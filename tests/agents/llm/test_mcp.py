"""A model that is offered the tools of MCP servers beside declared ones."""

from __future__ import annotations

from pathlib import Path

import trio

from netra_ws import LlmAgent, McpServer, tool
from netra_ws.protocol.events import ToolCompleted
from netra_ws.testing import check_run, open_session, run_agent

from ..mcp.kit import alive, plain, real, signed
from .endpoint import answer, call, fake_endpoint, finish, stream


@tool
async def add(a: int, b: int) -> str:
    """Add two numbers, our way."""
    return f"ours: {a + b}"


async def test_tools_of_both_kinds(tmp_path: Path) -> None:
    """The model is offered both, under names that do not clash; each call reaches the right one; then all is gone."""
    script = (
        stream(call("add", '{"a": 1, "b": 2}', index=0, call_id="c1"),
               call("real_add", '{"a": 3, "b": 4}', index=1, call_id="c2"),
               call("echo", '{"text": "so"}', index=2, call_id="c3"),
               call("echo", '{"text": 5}', index=3, call_id="c4"), finish("tool_calls")),
        answer("done"),
    )  # fmt: skip
    async with fake_endpoint(*script) as endpoint:
        agent = LlmAgent(endpoint=endpoint.model(), tools=[add], mcp=[real(), plain(tmp_path)])
        with trio.fail_after(60):
            events = await run_agent(agent, "add")
        offered = {each["function"]["name"] for each in endpoint.asked[0].body["tools"]}
        told = [each["content"] for each in endpoint.asked[1].body["messages"] if each["role"] == "tool"]
    assert check_run(events).final_response == "done"
    assert {"add", "real_add", "locate", "echo"} <= offered
    assert (told[0], "7" in told[1], "so" in told[2], "INVALID_PARAMETERS" in told[3]) == ("ours: 3", True, True, True)
    ended = [each.message for each in events if isinstance(each.message, ToolCompleted)]
    assert sorted(each.status for each in ended) == ["error", "ok", "ok", "ok"]
    assert (signed(tmp_path), alive(tmp_path)) == (1, [])


async def test_a_stop_ends_the_server_of_a_call(tmp_path: Path) -> None:
    """A run that is stopped while a server works leaves neither its process nor the model's connection."""
    async with fake_endpoint(stream(call("never", "{}"), finish("tool_calls"))) as endpoint:
        agent = LlmAgent(endpoint=endpoint.model(), mcp=[plain(tmp_path)])
        async with open_session({"agent": agent}) as (_, session):
            run = await session.start("x", agent="agent")
            with trio.fail_after(60):
                async for heard in run:
                    if heard.type == "tool_executing":
                        break
                assert alive(tmp_path)
                assert await session.stop(run.run_id) == "cancelled"
            assert alive(tmp_path) == []
            await endpoint.until("open", 0)


async def test_a_server_that_cannot_be_had(tmp_path: Path) -> None:
    """Without a server that is needed the model is not asked; without an optional one it is, without its tools."""
    async with fake_endpoint(answer("done")) as endpoint:
        missing = McpServer("missing", command=[str(tmp_path / "nothing here")])
        last = check_run(await run_agent(LlmAgent(endpoint=endpoint.model(), mcp=[missing]), "x"))
        assert (last.error and last.error.code, len(endpoint.asked)) == ("MCP_UNAVAILABLE", 0)
        optional = McpServer("missing", command=[str(tmp_path / "nothing here")], optional=True)
        last = check_run(await run_agent(LlmAgent(endpoint=endpoint.model(), mcp=[optional]), "x"))
        assert (last.final_response, "tools" in endpoint.asked[0].body) == ("done", False)
