"""Tools of an MCP server behind an address."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest
import trio

from netra_ws import AgentError, McpServer, Run, Tool, open_mcp
from netra_ws.agents.mcp.http import Bounded
from netra_ws.protocol.events import AgentCompleted, ToolCompleted, ToolProgress
from netra_ws.testing import check_run, open_session, run_agent

from .kit import descriptors, heard_of, one_call, real_http, until
from .site import CUT, Answer, Asked, error, open_site, result, usual

# The library leaves a stream of events when it has what it wants, and its generators to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning")

SECRET = "Bearer sk-most-secret-of-all"


async def echo(run: Run, tools: Mapping[str, Tool]) -> Any:
    """Call the one tool."""
    return await tools["echo"](run)


async def failure(server: McpServer) -> AgentCompleted:
    """Return the end of a run that cannot have its server."""
    last = check_run(await heard_of(server, work=echo))
    assert last.error is not None
    return last


@pytest.mark.parametrize("options", [(), ("json",)], ids=["streams", "plain answers"])
async def test_a_server_of_the_library(options: tuple[str, ...]) -> None:
    """Tools of a server written with the library are called over HTTP; behind the run no socket is left."""

    async def work(run: Run, tools: Mapping[str, Tool]) -> Any:
        results = [await tools["add"](run, a=1, b=2), await tools["count"](run, to=2)]
        with pytest.raises(AgentError, match="Error executing tool fail"):
            await tools["fail"](run)
        return results

    async with real_http(*options) as url:
        before = descriptors()
        events = await heard_of(McpServer("real", url=url), work=work)
        assert check_run(events).final_response == [{"result": 3}, {"result": "counted"}]
        assert descriptors() == before
    told = [one.message.message for one in events if isinstance(one.message, ToolProgress)]
    assert told == ([] if options else ["at 1", "at 2"])


async def test_a_call_that_takes_too_long() -> None:
    """A call that takes longer than its server's timeout is told as timeout, and other calls go on."""

    async def work(run: Run, tools: Mapping[str, Tool]) -> Any:
        with pytest.raises(trio.TooSlowError):
            await tools["wait"](run)
        return await tools["add"](run, a=1, b=2)

    async with real_http() as url:
        events = await heard_of(McpServer("real", url=url, timeout_s=1.0), work=work)
    assert check_run(events).final_response == {"result": 3}
    ends = [one.message.status for one in events if isinstance(one.message, ToolCompleted)]
    assert ends == ["timeout", "ok"]


async def test_what_is_sent() -> None:
    """Headers and query go with every request, and a session is ended at the server when the block is left."""
    async with open_site() as site:
        server = McpServer("site", url=f"{site.url}?key=of-the-query", headers={"Authorization": SECRET})
        assert check_run(await heard_of(server, work=echo)).final_response == "echoed"
    assert site.whats()[0] == "initialize"
    assert site.whats()[-1] == "DELETE"
    assert {"notifications/initialized", "tools/list", "tools/call", "GET"} <= set(site.whats())
    assert {each.headers["authorization"] for each in site.asked} == {SECRET}
    assert {each.target for each in site.asked} == {"/mcp?key=of-the-query"}
    assert {each.headers.get("mcp-session-id") for each in site.asked[1:]} == {"the-session"}


async def test_secrets_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """No log line of any library, and no error, holds a header's value or the query."""
    caplog.set_level("DEBUG")

    async def answering(asked: Asked) -> Answer:
        if asked.what == "tools/call":
            return error(asked, -32000, f"no access with {asked.headers['authorization']}")
        return usual(asked)

    async with open_site(answering) as site:
        server = McpServer("site", url=f"{site.url}?key=of-the-query", headers={"Authorization": SECRET})
        events = await heard_of(server, work=echo)
        last = check_run(events)
    assert last.error is not None
    assert last.error.message == "no access with ***"
    assert "/mcp" in caplog.text
    assert "of-the-query" not in caplog.text + repr(server)
    assert "sk-most-secret" not in caplog.text + repr(server) + str(events)


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
async def test_the_library_does_not_fill_the_log(level: str, caplog: pytest.LogCaptureFixture) -> None:
    """What the library says of our connections is in the debug log only, and ids of sessions nowhere."""
    caplog.set_level(level)

    async def answering(asked: Asked) -> Answer:
        if asked.what == "tools/call":
            return Answer(200, {"content-type": "application/json"}, b"garbage")
        return usual(asked)

    async with open_site(answering) as site:
        assert (await one_call(site.server(), "echo")).status == "error"
    told = [record for record in caplog.records if not record.name.startswith("netra_ws")]
    assert {record.levelname for record in told} <= {"DEBUG"}
    assert bool(told) == (level == "DEBUG")
    assert not [record for record in told if "the-session" in record.getMessage() and "ID" in record.getMessage()]


async def test_the_library_in_other_hands(caplog: pytest.LogCaptureFixture) -> None:
    """What the library logs of a program's own connections is left alone."""
    caplog.set_level("INFO")
    async with open_site() as site:
        check_run(await heard_of(site.server(), work=echo))
        async with httpx2.AsyncClient() as client:
            await client.get(site.url)
    assert [record.levelname for record in caplog.records if record.name == "httpx2"] == ["INFO"]


async def test_no_redirect_to_elsewhere() -> None:
    """A redirect to another origin is not followed, so that nobody else gets the headers."""
    async with open_site() as other:

        async def answering(asked: Asked) -> Answer:
            return Answer(307, {"location": other.url})

        async with open_site(answering) as site:
            last = await failure(site.server(headers={"Authorization": SECRET}))
    assert last.error is not None
    assert last.error.code == "MCP_UNAVAILABLE"
    assert other.asked == []


async def test_no_request_to_elsewhere() -> None:
    """The transport itself sends nothing to another origin, whatever its client makes of an answer."""
    async with open_site() as site, open_site() as other:
        inner = httpx2.AsyncHTTPTransport()
        async with Bounded(inner, httpx2.URL(site.url), {"Authorization": SECRET}) as transport:
            for url in (other.url, site.url.replace("127.0.0.1", "localhost"), site.url.replace("http:", "https:")):
                answer = await transport.handle_async_request(httpx2.Request("GET", url))
                assert (answer.status_code, transport.trouble) == (503, "sends its clients elsewhere")
            assert (await transport.handle_async_request(httpx2.Request("GET", site.url))).status_code == 405
    assert (other.asked, len(site.asked)) == ([], 1)


async def test_a_redirect_at_home() -> None:
    """A redirect to another path of the same origin is followed."""

    async def answering(asked: Asked) -> Answer:
        return Answer(307, {"location": "/mcp/"}) if asked.target == "/mcp" else usual(asked)

    async with open_site(answering) as site:
        assert check_run(await heard_of(site.server(), work=echo)).final_response == "echoed"


async def test_nobody_there() -> None:
    """An address where nobody listens is an error of a code of its own."""
    async with open_site() as site:
        pass
    error_ = (await failure(site.server())).error
    assert error_ is not None
    assert (error_.code, error_.message) == ("MCP_UNAVAILABLE", "the MCP server site cannot be reached")


async def test_no_access() -> None:
    """A status that is an error is named."""

    async def answering(asked: Asked) -> Answer:
        return Answer(401)

    async with open_site(answering) as site:
        error_ = (await failure(site.server())).error
    assert error_ is not None
    assert (error_.code, error_.message) == ("MCP_UNAVAILABLE", "the MCP server site answered with HTTP status 401")


async def test_no_answer() -> None:
    """A server that never answers is given up after its time, and its sockets are closed."""

    async def answering(asked: Asked) -> Answer | None:
        await trio.sleep_forever()
        return None

    async with open_site(answering) as site:
        before = descriptors()
        error_ = (await failure(site.server(start_timeout_s=0.5))).error
        assert error_ is not None
        assert error_.message == "the MCP server site did not tell its tools within 0.5 s"
        assert descriptors() <= before + 1  # the site's own end


def endless(piece: bytes) -> Any:
    return itertools.repeat(piece)


@pytest.mark.parametrize(
    ("headers", "pieces", "message"),
    [
        ({"content-type": "application/json"}, endless(b" " * 65536), "gave no complete answer"),
        ({"content-type": "text/event-stream"}, endless(b"data: xxxxxxxx" * 4096), "gave no complete answer"),
        ({"content-type": "text/event-stream"}, [b"data: {", CUT], "gave no complete answer"),
        ({"content-type": "text/event-stream"}, [b": nothing\n\n"], "gave no complete answer"),
        ({"content-type": "application/json"}, [b'{"jsonrpc"', CUT], "gave no complete answer"),
        ({"content-type": "application/json"}, [b"{}"], "gave no complete answer"),
        (
            {"content-type": "application/json", "content-encoding": "gzip"},
            [b"\x1f\x8b"],
            "answered in an encoding that was not asked for",
        ),
    ],
)
async def test_answers_that_are_none(headers: dict[str, str], pieces: Any, message: str) -> None:
    """A call that gets no answer fails by itself: the next one of the same connection succeeds."""
    calls = itertools.count()

    async def answering(asked: Asked) -> Answer:
        if asked.what == "tools/call" and next(calls) == 0:
            return Answer(200, headers, pieces)
        return usual(asked)

    async def work(run: Run, tools: Mapping[str, Tool]) -> Any:
        with pytest.raises(AgentError) as caught:
            await tools["echo"](run)
        return [caught.value.code, caught.value.text, await tools["echo"](run)]

    async with open_site(answering) as site:
        last = check_run(await heard_of(site.server(), work=work))
    assert last.final_response == ["MCP_BROKEN", f"the MCP server site {message}", "echoed"]


async def test_a_server_that_comes_back() -> None:
    """A call while nobody listens fails; when the server is back, the next one succeeds."""

    async def answering(asked: Asked) -> Answer | None:
        return None if asked.what == "tools/call" and site.whats().count("tools/call") < 3 else usual(asked)

    async def work(run: Run, tools: Mapping[str, Tool]) -> Any:
        for _ in range(2):
            with pytest.raises(AgentError, match="gave no complete answer") as caught:
                await tools["echo"](run)
        return [caught.value.code, await tools["echo"](run)]

    async with open_site(answering) as site:
        last = check_run(await heard_of(site.server(), work=work))
    assert last.final_response == ["MCP_BROKEN", "echoed"]


async def test_a_server_without_a_handshake() -> None:
    """A server of the versions from 2026 on, which knows no handshake, is asked as it wants to be."""
    asks = {"input_requests": {}, "resultType": "input_required", "requestState": "s"}

    async def answering(asked: Asked) -> Answer:
        more = {"resultType": "complete", "ttlMs": 0, "cacheScope": "public"}
        match asked.what:
            case "initialize":
                return error(asked, -32022, "not here", {"supported": ["2026-07-28"], "requested": "2025-11-25"})
            case "server/discover":
                capabilities = {"capabilities": {"tools": {}}, "supportedVersions": ["2026-07-28"]}
                return result(asked, {**capabilities, **more})
            case "tools/list":
                return result(asked, {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}], **more})
            case "tools/call":
                wants_more = asked.body["params"]["arguments"].get("more")
                return result(asked, asks if wants_more else {"content": [], "structuredContent": [1], **more})
        return usual(asked)

    async def work(run: Run, tools: Mapping[str, Tool]) -> Any:
        with pytest.raises(AgentError, match="asks for more input"):
            await tools["echo"](run, more=True)
        return await tools["echo"](run)

    async with open_site(answering) as site:
        assert check_run(await heard_of(site.server(), work=work)).final_response == [1]
    assert site.asked[-1].headers["mcp-protocol-version"] == "2026-07-28"


async def test_a_cancelled_run_tells_the_server() -> None:
    """When a run is stopped in the middle of a call, the server is told, its session is ended, no socket is left."""

    async def answering(asked: Asked) -> Answer:
        if asked.what == "tools/call":
            await asked.stream.receive_some()  # until it is closed
            return None
        return usual(asked)

    async def agent(run: Run) -> None:
        async with open_mcp(run, [site.server()]) as tools:
            await tools[0](run)

    async with open_site(answering) as site, open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        await until(lambda: "tools/call" in site.whats())
        assert await run.stop() == "cancelled"
        assert site.whats()[-2:] == ["notifications/cancelled", "DELETE"]
        await until(lambda: not site.open)
        last = check_run([one async for one in run])
        assert last.status == "cancelled"


async def test_a_server_that_does_not_let_go() -> None:
    """A stop is not held up by a server that answers neither the cancelled call nor the end of its session."""

    async def answering(asked: Asked) -> Answer:
        if asked.what in ("tools/call", "notifications/cancelled", "DELETE"):
            await trio.sleep_forever()
        return usual(asked)

    async def agent(run: Run) -> None:
        async with open_mcp(run, [site.server()]) as tools:
            await tools[0](run)

    async with open_site(answering) as site, open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        await until(lambda: "tools/call" in site.whats())
        with trio.fail_after(4):
            assert await run.stop() == "cancelled"
        assert "notifications/cancelled" in site.whats()


async def test_one_call_that_is_told() -> None:
    """A call over HTTP is one pair of events."""
    async with open_site() as site:
        told = await one_call(site.server(), "echo")
    assert (told.status, told.results) == ("ok", "echoed")


async def test_calls_of_many_runs_are_their_own() -> None:
    """Every run has a session of its own."""
    sessions = itertools.count()

    async def answering(asked: Asked) -> Answer:
        answer = usual(asked)
        if asked.what == "initialize":
            answer.headers["mcp-session-id"] = f"session-{next(sessions)}"
        return answer

    async with open_site(answering) as site:
        for _ in range(3):
            await run_agent(using_echo(site.server()))
    assert {each.headers["mcp-session-id"] for each in site.asked if each.what == "tools/call"} == {
        "session-0",
        "session-1",
        "session-2",
    }


def using_echo(server: McpServer) -> Any:
    async def agent(run: Run) -> Any:
        async with open_mcp(run, [server]) as tools:
            return await tools[0](run)

    return agent
