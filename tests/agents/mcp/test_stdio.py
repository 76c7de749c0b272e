"""Tools of an MCP server that is a process of the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from netra_ws import AgentError, ConfigError, Run, Tool, open_mcp
from netra_ws.protocol.events import ToolCompleted, ToolExecuting, ToolProgress
from netra_ws.testing import check_run, run_agent

from .kit import alive, heard, heard_of, one_call, plain, real, signed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


async def test_a_server_of_the_library() -> None:
    """Tools of a server written with the library are called with checked parameters, and tell progress and results."""
    seen: dict[str, Any] = {}

    async def work(run: Run, tools: Mapping[str, Tool]) -> None:
        seen.update(tools)
        assert await tools["add"](run, a=1, b=2) == {"result": 3}
        assert await tools["locate"](run, name="Berlin") == {"name": "Berlin", "latitude": 52.5}
        await tools["count"](run, to=3)
        with pytest.raises(AgentError, match=r"\$\.a: 'x' is not of type 'integer'; \$: 'b' is a required property"):
            await tools["add"](run, a="x")
        with pytest.raises(AgentError, match="Error executing tool fail"):
            await tools["fail"](run)

    events = await heard_of(real(), work=work)
    assert check_run(events).status == "success", events[-1].fields
    assert seen["add"].description == "Add two numbers."
    assert seen["add"].schema["required"] == ["a", "b"]
    assert seen["locate"].schema["properties"]["tags"]["default"] is None
    told = [one.message for one in events]
    names = [one.tool_name for one in told if isinstance(one, ToolExecuting)]
    assert names == ["add", "locate", "count", "add", "fail"]
    assert [(one.progress, one.message) for one in told if isinstance(one, ToolProgress)] == [
        (pytest.approx(1 / 3), "at 1"),
        (pytest.approx(2 / 3), "at 2"),
        (1.0, "at 3"),
    ]
    ends = [(one.status, one.error and one.error.code) for one in told if isinstance(one, ToolCompleted)]
    assert ends[:3] == [("ok", None)] * 3
    assert ends[4] == ("error", "MCP_TOOL_ERROR")


async def test_its_process_is_gone_behind_the_block(tmp_path: Path) -> None:
    """When the block is left, the server was asked to go and is gone, while the run goes on."""

    async def agent(run: Run) -> Any:
        async with open_mcp(run, [plain(tmp_path)]) as tools:
            during = len(alive(tmp_path)), len(tools) > 10
        return [*during, alive(tmp_path), heard(tmp_path)]

    assert check_run(await run_agent(agent)).final_response == [1, True, [], ["asked to go"]]


async def test_a_server_that_does_not_go(tmp_path: Path) -> None:
    """A server that ignores that its input is closed, and what it has started in another session, are killed."""

    async def agent(run: Run) -> Any:
        async with open_mcp(run, [plain(tmp_path, "stays")]):
            with trio.fail_after(20):
                while signed(tmp_path) < 2:
                    await trio.sleep(0.01)
        return alive(tmp_path)

    assert check_run(await run_agent(agent, overrides={"timing.finalise_s": 1.0})).final_response == []


@pytest.mark.parametrize(
    ("tool", "status", "code", "message"),
    [
        ("fail_with_text", "error", "MCP_TOOL_ERROR", "the disk is full"),
        ("fail_silently", "error", "MCP_TOOL_ERROR", "the tool failed and did not say why"),
        ("refuse", "error", "MCP_TOOL_ERROR", "no such thing"),
        ("misanswer", "error", "MCP_BROKEN", "the MCP server plain gave an answer that is none of MCP"),
        ("die", "error", "MCP_BROKEN", "the MCP server plain has ended with status 3"),
        ("huge_line", "error", "MCP_BROKEN", "the MCP server plain sent a message of more than 4194304 bytes"),
        ("fill", "error", "MCP_BROKEN", "the MCP server plain asks and does not read the answers"),
        ("secret", "error", "MCP_TOOL_ERROR", "cannot log in with ***"),
    ],
)
async def test_calls_that_fail(tool: str, status: str, code: str, message: str, tmp_path: Path) -> None:
    """However a call fails, its user is told by a code of its own, and the server's process is gone."""
    told = await one_call(plain(tmp_path, env={"TOKEN": "sk-very-secret"}), tool)
    assert told.error is not None
    assert (told.status, told.error.code, told.error.message) == (status, code, message)
    assert not alive(tmp_path)


async def test_a_server_that_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that a server does not read fails after a bounded time, also where calls have no timeout."""
    monkeypatch.setattr("netra_ws.agents.mcp.link.STALL_S", 0.3)
    told = await one_call(plain(tmp_path, "deaf", timeout_s=None), "echo", text="x" * 200_000)
    assert told.error is not None
    assert (told.error.code, told.error.message) == ("MCP_BROKEN", "the MCP server plain has not read for 0.3 s")


async def test_lines_that_are_no_messages(tmp_path: Path) -> None:
    """A few lines of garbage between messages do no harm; a server that writes nothing else is broken."""
    assert (await one_call(plain(tmp_path), "garbage")).results == "said between garbage"
    told = await one_call(plain(tmp_path), "garbage", lines=1000)
    assert told.error is not None
    assert told.error.message == "the MCP server plain writes to its standard output what is no message"


async def test_a_call_after_the_end(tmp_path: Path) -> None:
    """A server that has ended fails every further call at once; tools of another server go on."""
    other = tmp_path / "other"
    other.mkdir()

    async def work(run: Run, tools: Mapping[str, Tool]) -> Any:
        for _ in range(2):
            with pytest.raises(AgentError, match="has ended with status 3") as caught:
                await tools["first_die"](run)
            assert (caught.value.code, caught.value.retryable) == ("MCP_BROKEN", True)
        return await tools["second_echo"](run, text="still here")

    events = await heard_of(plain(tmp_path, name="first"), plain(other, name="second"), work=work)
    assert check_run(events).final_response == "still here"


async def test_a_tool_behind_its_block(tmp_path: Path) -> None:
    """A tool that is called when its block was left says that its server is closed."""

    async def agent(run: Run) -> None:
        async with open_mcp(run, [plain(tmp_path)]) as tools:
            pass
        await tools[0](run, text="too late")

    error = check_run(await run_agent(agent)).error
    assert error is not None
    assert (error.code, error.message) == ("MCP_BROKEN", "the MCP server plain is closed")


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("mute", "did not tell its tools within 1.5 s"),
        ("dies", "has ended with status 4"),
        ("old", "cannot be talked to (RuntimeError)"),
        ("chatters", "writes to its standard output what is no message"),
        ("unlisted", "gave an answer that is none of MCP"),
    ],
)
async def test_servers_that_cannot_be_had(mode: str, message: str, tmp_path: Path) -> None:
    """A server that does not get as far as its tools ends the run with a code of its own, and its process is gone."""

    async def work(run: Run, tools: Mapping[str, Tool]) -> None:
        raise AssertionError("not reached")

    last = check_run(await heard_of(plain(tmp_path, mode, start_timeout_s=1.5), work=work))
    assert last.error is not None
    assert (last.error.code, last.error.message) == ("MCP_UNAVAILABLE", f"the MCP server plain {message}")
    assert last.error.retryable
    assert not alive(tmp_path)


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    """A program that cannot be started, or not in that folder, is an error of a code of its own."""
    for server in (
        plain(tmp_path, cwd=tmp_path / "nowhere"),
        attrs.evolve(plain(tmp_path), command=["/no/such/program", "--token=secret"]),
    ):
        last = check_run(await heard_of(server, work=nothing))
        assert last.error is not None
        assert last.error.code == "MCP_UNAVAILABLE"
        assert last.error.message == "the MCP server plain cannot be started (No such file or directory)"


async def test_an_optional_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run goes on without the tools of an optional server that cannot be had, and the log says why."""
    other = tmp_path / "other"
    other.mkdir()

    async def work(run: Run, tools: Mapping[str, Tool]) -> Any:
        return await tools["echo"](run, text="without it")

    missing = plain(other, "dies", name="missing", optional=True)
    assert check_run(await heard_of(missing, plain(tmp_path), work=work)).final_response == "without it"
    assert "the MCP server missing has ended with status 4; it said: cannot find the settings" in caplog.text


async def test_complaints_without_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A server that floods its standard error is heard within bounds, in the debug log, and can be used."""
    caplog.set_level("DEBUG", logger="netra_ws.agents.mcp.pipe")

    async def work(run: Run, tools: Mapping[str, Tool]) -> Any:
        await trio.sleep(0.2)
        return await tools["echo"](run, text="heard")

    events = await heard_of(plain(tmp_path, "complains"), work=work)
    last = check_run(events)
    assert last.final_response == "heard"
    lines = [record.getMessage() for record in caplog.records if "a complaint" in record.getMessage()]
    assert 0 < len(lines) <= 200
    assert all(last.run_id in line for line in lines)


async def test_what_a_server_asks_for(tmp_path: Path) -> None:
    """Sampling, elicitation and roots, which were not offered, are declined, and the call goes on."""
    told = await one_call(plain(tmp_path), "ask")
    assert told.results == "sampling/createMessage error, elicitation/create error, roots/list error"


async def test_progress_in_a_flood(tmp_path: Path) -> None:
    """Progress told twenty thousand times is few events, in their order, and none behind the end of the call."""

    async def work(run: Run, tools: Mapping[str, Tool]) -> Any:
        first = await tools["progress"](run)
        second = await tools["flood"](run)
        await trio.sleep(0.3)
        return [first, second]

    events = await heard_of(plain(tmp_path), work=work, overrides={"limits.max_events_per_run": 500})
    assert check_run(events).final_response == ["done", "done"]
    told = [one.message for one in events if isinstance(one.message, ToolProgress)]
    steps = [one.message for one in told]
    assert steps[:4] == ["step 0", "step 1", "step 2", "step 3"]
    assert len(steps) < 200


async def test_a_call_that_takes_too_long(tmp_path: Path) -> None:
    """A call that takes longer than its server's timeout is told as timeout, and its server is told, too."""

    async def work(run: Run, tools: Mapping[str, Tool]) -> Any:
        with pytest.raises(trio.TooSlowError):
            await tools["never"](run)
        with trio.fail_after(10):
            while "cancelled" not in heard(tmp_path):
                await trio.sleep(0.01)
        return await tools["echo"](run, text="next")

    events = await heard_of(plain(tmp_path, timeout_s=0.3), work=work)
    assert check_run(events).final_response == "next"
    ends = [one.message for one in events if isinstance(one.message, ToolCompleted)]
    assert [one.status for one in ends] == ["timeout", "ok"]


async def test_calls_at_the_same_time(tmp_path: Path) -> None:
    """Many calls of one server at the same time each get their own answer."""

    async def work(run: Run, tools: Mapping[str, Tool]) -> Any:
        said = {}

        async def say(number: int) -> None:
            said[number] = await tools["echo"](run, text=str(number))

        async with trio.open_nursery() as nursery:
            for number in range(90):
                nursery.start_soon(say, number)
        return all(said[number] == str(number) for number in range(90))

    assert check_run(await heard_of(plain(tmp_path), work=work)).final_response is True


async def test_the_environment_of_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server gets what it was given and a few harmless variables of ours, and no secret of this server."""
    monkeypatch.setenv("NETRA_WS_AUTH__SECRET", "ours")
    told = await one_call(plain(tmp_path, env={"TOKEN": "its own"}), "environment")
    assert isinstance(told.results, dict)
    names = set(told.results["names"])
    assert {"TOKEN", "NETRA_WS_RUN"} <= names
    assert names <= {"TOKEN", "NETRA_WS_RUN", "LC_CTYPE", "HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL",
                     "TERM", "TMPDIR", "TZ", "USER"}  # fmt: skip
    assert "PATH" in os.environ


async def test_two_of_one_name(tmp_path: Path) -> None:
    """Two servers of the same name are refused before any is started."""

    async def agent(run: Run) -> Any:
        with pytest.raises(ConfigError, match="the name plain is there twice"):
            async with open_mcp(run, [plain(tmp_path), plain(tmp_path)]):
                pass
        return signed(tmp_path)

    assert check_run(await run_agent(agent)).final_response == 0


async def test_what_leaves_the_block_is_what_was_raised(tmp_path: Path) -> None:
    """An exception of the agent leaves the block as it is, not in a group."""

    async def agent(run: Run) -> Any:
        with pytest.raises(KeyError, match="mine"):
            async with open_mcp(run, [plain(tmp_path)]):
                raise KeyError("mine")
        return alive(tmp_path)

    assert check_run(await run_agent(agent)).final_response == []


async def test_no_servers() -> None:
    """Without servers there are no tools, and the library is not loaded."""
    program = (
        "import sys\n"
        "from netra_ws import open_mcp\n"
        "from netra_ws.testing import run_agent\n"
        "import trio\n"
        "async def agent(run):\n"
        "    async with open_mcp(run, ()) as tools:\n"
        "        return [tools, 'mcp' in sys.modules, 'jsonschema' in sys.modules]\n"
        "print(trio.run(run_agent, agent)[-1].message.final_response)\n"
    )
    done = await trio.run_process([sys.executable, "-c", program], capture_stdout=True)
    assert done.stdout.decode().strip() == "[[], False, False]"


async def nothing(run: Run, tools: Mapping[str, Tool]) -> None:
    """Do nothing."""
