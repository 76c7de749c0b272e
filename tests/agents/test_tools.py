"""Declared tools: from a function with annotations to a pair of events, called by code or by a model."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import attrs
import pytest
import trio
import trio.testing

from netra_ws import AgentError, ConfigError, Identity, Run, Tool, ToolCall, ToolDenied, tool
from netra_ws.agents.toolbox import Attempt, Toolbox, read_arguments
from netra_ws.errors import InvalidParameters
from netra_ws.protocol.events import ErrorText, ToolCompleted, ToolExecuting, ToolProgress
from netra_ws.testing import check_run, open_session, run_agent


@attrs.frozen
class Address:
    """Where it goes."""

    street: str
    zip: str = ""


@tool(timeout_s=5)
async def ship(run: Run, order_id: str, to: Address, speed: Literal["slow", "fast"] = "slow") -> dict[str, Any]:
    """Ship an order.

    Args:
        order_id: Which order,
            as the customer knows it.
        to: Where.

    """
    return {"order": order_id, "to": to, "speed": speed, "by": run.user_id}


@tool
def count(first: int, second: Annotated[int, "how much more"] = 1) -> int:
    """Add two numbers, in a thread."""
    assert threading.current_thread() is not threading.main_thread()
    return first + second


def pairs(events: list[Any]) -> list[tuple[Any, ...]]:
    """Return each tool call as its user sees it: name, parameters, status, results, code of the error."""
    began = {e.message.tool_call_id: e.message for e in events if isinstance(e.message, ToolExecuting)}
    ended = [e.message for e in events if isinstance(e.message, ToolCompleted)]
    return [
        (end.tool_name, dict(began[end.tool_call_id].parameters), end.status, end.results, end.error and end.error.code)
        for end in ended
    ]


def test_a_declaration() -> None:
    """Name, description and schema come from the function; the run is no parameter."""
    assert (ship.name, ship.description, ship.timeout_s) == ("ship", "Ship an order.", 5)
    assert ship.schema["required"] == ["order_id", "to"]
    assert list(ship.schema["properties"]) == ["order_id", "to", "speed"]
    assert ship.schema["properties"]["order_id"] == {"type": "string", "description": "Which order,"}
    assert ship.schema["properties"]["speed"] == {"enum": ["slow", "fast"], "type": "string", "default": "slow"}
    assert count.schema["properties"]["second"]["description"] == "how much more"
    assert repr(count) == "Tool(name='count', timeout_s=None, per_user=None, permission=None)"


def test_a_declaration_with_other_words() -> None:
    """Name and description may be given; an object with an async __call__ is a function, too."""

    class Adder:
        async def __call__(self, number: int) -> int:
            """Not this."""
            return number + 1

    declared = tool(name="add-one", description="Adds.", per_user=2, permission="maths")(Adder())
    assert (declared.name, declared.description) == ("add-one", "Adds.")
    assert (declared.per_user, declared.permission) == (2, "maths")


async def one(number: int) -> int:
    """Another one."""
    return number


async def starred(*numbers: int) -> None: ...
async def keywords(**words: int) -> None: ...
async def bare(number) -> None: ...  # type: ignore[no-untyped-def]
async def strange(number: complex) -> None: ...
async def hidden(number: NotHere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (starred, {}, r"\*numbers"),
        (keywords, {}, r"\*\*words"),
        (bare, {}, "number: expected an annotation"),
        (strange, {}, "complex"),
        (hidden, {}, "NotHere"),
        (one, {"name": "with blanks"}, "expected a name"),
        (one, {"name": "x" * 65}, "expected a name"),
        (one, {"timeout_s": 0}, "timeout_s"),
        (one, {"timeout_s": float("inf")}, "timeout_s"),
        (one, {"per_user": 0}, "per_user"),
        (one, {"per_user": True}, "per_user"),
        (Address, {}, "expected a function"),
        (5, {}, "expected a function"),
    ],
)
def test_what_is_no_tool(function: Any, options: dict[str, Any], words: str) -> None:
    """What cannot be a tool is refused where it is declared, with one line that names it."""
    with pytest.raises(ConfigError, match=f"^tool .*{words}") as error:
        tool(**options)(function)
    assert "\n" not in str(error.value)


async def test_called_like_a_function() -> None:
    """An agent calls its tools like functions; the user sees each as a pair, with JSON in it."""
    got: list[Any] = []

    async def agent(run: Run) -> None:
        got.append(await ship(run, "7", to=Address("Main St")))
        got.append(await count(run, 1))

    events = await run_agent(agent)
    assert check_run(events).status == "success"
    place = {"street": "Main St", "zip": ""}
    assert got == [{"order": "7", "to": Address("Main St"), "speed": "slow", "by": "tester"}, 2]
    results = {"order": "7", "to": place, "speed": "slow", "by": "tester"}
    assert pairs(events) == [
        ("ship", {"order_id": "7", "to": place}, "ok", results, None),
        ("count", {"first": 1}, "ok", 2, None),
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"first": "1"}, r"\$\.first: expected integer, got string"),
        ({}, r"\$\.first: required, but missing"),
        ({"first": 1, "more": 2}, r"\$: unknown: more"),
        ({"first": 1, "second": Address("x")}, r"\$\.second: expected integer, got object"),
    ],
)
async def test_wrong_parameters(values: dict[str, Any], words: str) -> None:
    """A call with parameters that do not fit is told as one that failed, and nothing of it is carried out."""
    carried_out: list[int] = []

    @tool
    async def work(first: int, second: int = 0) -> None:
        carried_out.append(first)

    async def agent(run: Run) -> str:
        with pytest.raises(InvalidParameters, match=words) as error:
            await work(run, **values)
        return error.value.code

    events = await run_agent(agent)
    assert check_run(events).final_response == "INVALID_PARAMETERS"
    assert [(name, status, code) for name, _, status, _, code in pairs(events)] == [
        ("work", "error", "INVALID_PARAMETERS")
    ]
    assert not carried_out


async def test_values_in_order() -> None:
    """Too many values in order, or one given twice, are wrong parameters, too."""

    async def agent(run: Run) -> None:
        with pytest.raises(InvalidParameters, match="at most 2"):
            await count(run, 1, 2, 3)
        with pytest.raises(InvalidParameters, match="given twice"):
            await count(run, 1, first=2)

    assert check_run(await run_agent(agent)).status == "success"


async def test_a_permission_is_looked_at_before_the_parameters() -> None:
    """A tool that the user may not use is told as denied, whatever the parameters; with the permission it works."""

    @tool(permission="orders")
    async def cancel_order(order_id: str) -> str:
        return f"cancelled {order_id}"

    async def agent(run: Run) -> Any:
        try:
            return await cancel_order(run, **run.context)
        except ToolDenied as denied:
            return denied.code

    async with open_session({"agent": agent}) as (server, session):
        run = await session.start("x", agent="agent", context={"order_id": 5})
        events = [event async for event in run]
        assert check_run(events).final_response == "FORBIDDEN"
        assert pairs(events) == [("cancel_order", {"order_id": 5}, "denied", None, "FORBIDDEN")]
        async with server.context_for(Identity("boss", frozenset({"chat", "orders"}))) as boss:
            run = await boss.start("x", agent="agent", context={"order_id": "5"})
            assert (await run.result()).final_response == "cancelled 5"


async def test_a_timeout(autojump_clock: trio.testing.MockClock) -> None:
    """A tool that takes too long is cancelled and told as timed out; the agent may go on."""

    @tool(timeout_s=3)
    async def slow() -> None:
        await trio.sleep(10)

    async def agent(run: Run) -> str:
        with pytest.raises(trio.TooSlowError):
            await slow(run)
        return "went on"

    events = await run_agent(agent)
    assert check_run(events).final_response == "went on"
    assert pairs(events) == [("slow", {}, "timeout", None, "TOOL_TIMEOUT")]


async def test_a_timeout_of_code_that_blocks() -> None:
    """Code that cannot be cut off is told as timed out when it comes back behind its time."""

    @tool(timeout_s=0.01)
    def blocks() -> str:
        time.sleep(0.05)
        return "late"

    async def agent(run: Run) -> str:
        return (await Toolbox([blocks]).attempt(run, "blocks", {})).status

    events = await run_agent(agent)
    assert check_run(events).final_response == "timeout"
    assert pairs(events) == [("blocks", {}, "timeout", None, "TOOL_TIMEOUT")]


async def test_places_of_a_user(autojump_clock: trio.testing.MockClock) -> None:
    """Calls of one user, in all runs, share the places of a tool; another user has places of their own."""
    inside: dict[str, int] = {}
    most: dict[str, int] = {}

    @tool(per_user=2)
    async def narrow(run: Run) -> None:
        inside[run.user_id] = inside.get(run.user_id, 0) + 1
        most[run.user_id] = max(most.get(run.user_id, 0), inside[run.user_id])
        await trio.sleep(1)
        inside[run.user_id] -= 1

    async def agent(run: Run) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(narrow, run)

    async with open_session({"agent": agent}) as (server, session), server.context_for(Identity("bob")) as bob:
        runs = [await session.start("x", agent="agent") for _ in range(2)]
        began = trio.current_time()
        other = await bob.start("x", agent="agent")
        assert (await other.result()).status == "success"
        assert trio.current_time() - began == pytest.approx(2, abs=0.2)
        for run in runs:
            assert (await run.result()).status == "success"
        assert trio.current_time() - began == pytest.approx(3, abs=0.2)
    assert most == {"tester": 2, "bob": 2}


async def test_waiting_for_a_place_is_no_silence(autojump_clock: trio.testing.MockClock) -> None:
    """Who waits for their place is seen to wait, is not idle, and has the whole timeout when it is their turn."""

    @tool(per_user=1, timeout_s=40)
    async def narrow(run: Run) -> None:
        await trio.sleep(30)

    async def agent(run: Run) -> None:
        await narrow(run)

    async with open_session({"agent": agent}, {"timing.idle_timeout_s": 35.0}) as (_, session):
        runs = [await session.start("x", agent="agent") for _ in range(3)]
        ended = [check_run([event async for event in run]) for run in runs]
    assert [(last.status, round(last.duration_ms / 1000)) for last in ended] == [("success", n) for n in (30, 60, 90)]


async def test_a_tool_that_uses_itself(autojump_clock: trio.testing.MockClock) -> None:
    """Calls inside of a call share its place, directly and through a sub-run: nothing waits for its own end."""

    @tool(per_user=1)
    async def count_down(run: Run, number: int) -> int:
        return 0 if number == 0 else 1 + await (count_down(run, number - 1) if number % 2 else run.delegate(sub, "x"))

    async def sub(run: Run) -> int:
        return int(await count_down(run, 1))

    async def agent(run: Run) -> Any:
        return await count_down(run, 2)

    with trio.fail_after(60):
        assert check_run(await run_agent(agent)).final_response == 2


async def test_progress_and_parallel_calls(autojump_clock: trio.testing.MockClock) -> None:
    """Calls that go on at once keep their pairs, and each tells its own progress."""

    @tool
    async def work(call: ToolCall, seconds: int) -> int:
        await trio.sleep(seconds)
        await call.progress(0.5, f"half of {seconds}")
        await trio.sleep(seconds)
        return seconds

    async def agent(run: Run) -> None:
        async with trio.open_nursery() as nursery:
            for seconds in (3, 1, 2):
                nursery.start_soon(functools.partial(work, run, seconds=seconds))

    events = await run_agent(agent)
    assert check_run(events).status == "success"
    assert [results for _, _, _, results, _ in pairs(events)] == [1, 2, 3]
    began = {e.message.tool_call_id: e.message.parameters for e in events if isinstance(e.message, ToolExecuting)}
    told = [
        (began[e.message.tool_call_id]["seconds"], e.message) for e in events if isinstance(e.message, ToolProgress)
    ]
    assert [(seconds, message.message) for seconds, message in told] == [(n, f"half of {n}") for n in (1, 2, 3)]


class Odd(Exception):
    def __repr__(self) -> str:
        raise ValueError("no words")


def _raises(exc: BaseException) -> Callable[[], Any]:
    async def fails() -> None:
        raise exc

    return fails


def _returns(value: Any) -> Callable[[], Any]:
    async def gives() -> Any:
        return value

    return gives


TOWER: list[Any] = []
for _ in range(300):
    TOWER = [TOWER]

#: What a tool does → the status that is told, and the code.
FAULTS: dict[str, tuple[Callable[[], Any], str, str | None]] = {
    "exception": (_raises(ValueError("secret words")), "error", "TOOL_FAILED"),
    "exception without words": (_raises(Odd()), "error", "TOOL_FAILED"),
    "group": (_raises(ExceptionGroup("several", [ValueError(), OSError()])), "error", "TOOL_FAILED"),
    "its own error": (_raises(AgentError("no such order", code="NO_ORDER")), "error", "NO_ORDER"),
    "its own error in a group": (
        _raises(ExceptionGroup("several", [ValueError(), AgentError("x", code="NO_ORDER")])),
        "error",
        "NO_ORDER",
    ),
    "exit": (_raises(SystemExit(2)), "error", "TOOL_FAILED"),
    "asyncio's cancel": (_raises(asyncio.CancelledError()), "error", "TOOL_FAILED"),
    "denied": (_raises(ToolDenied("not today")), "denied", "FORBIDDEN"),
    "timeout": (_raises(trio.TooSlowError("5 s")), "timeout", "TOOL_TIMEOUT"),
    "no JSON": (_returns(object()), "error", "NOT_JSON"),
    "no text": (_returns("\ud800"), "error", "NOT_JSON"),
    "too deep": (_returns(TOWER), "error", "NOT_JSON"),
    "too large": (_returns("x" * 300_000), "error", "EVENT_TOO_LARGE"),
    "nothing": (_returns(None), "ok", None),
    "a set": (_returns({1}), "ok", None),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_model_s_call_that_fails(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a tool does, a model's call of it has an answer, its user a pair, and the run goes on."""
    function, status, code = FAULTS[fault]
    attempts: list[Attempt] = []

    async def agent(run: Run) -> str:
        attempts.append(await Toolbox([tool(name="odd")(function)]).attempt(run, "odd", "{}"))
        return "went on"

    events = await run_agent(agent)
    assert check_run(events).final_response == "went on"
    assert [(name, told, told_code) for name, _, told, _, told_code in pairs(events)] == [("odd", status, code)]
    assert (attempts[0].status, attempts[0].error and attempts[0].error.code) == (status, code)
    assert "secret words" not in attempts[0].for_model()
    assert ("odd failed in run" in caplog.text) is (code == "TOOL_FAILED")


async def test_a_failure_that_the_agent_handles_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """What a user is told only that it failed stands in the log with its traceback, also when the agent goes on."""

    async def agent(run: Run) -> str:
        with contextlib.suppress(ValueError):
            async with run.tool("odd"):
                raise ValueError("why")
        with contextlib.suppress(AgentError):
            async with run.tool("told"):
                raise AgentError("the user knows")
        return "went on"

    assert check_run(await run_agent(agent)).final_response == "went on"
    assert "ValueError: why" in caplog.text
    assert "the user knows" not in caplog.text


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("nope", "{}", "UNKNOWN_TOOL"),
        ("x" * 1000, "{}", "UNKNOWN_TOOL"),
        ("", "{}", "UNKNOWN_TOOL"),
        ("count", '{"first": ', "INVALID_PARAMETERS"),
        ("count", "[1]", "INVALID_PARAMETERS"),
        ("count", "null", "INVALID_PARAMETERS"),
        ("count", "", "INVALID_PARAMETERS"),
        ("count", '{"first": 1.5}', "INVALID_PARAMETERS"),
        ("count", '{"first": ' + "[" * 100 + "]" * 100 + "}", "INVALID_PARAMETERS"),
        ("count", '{"first": "' + "x" * 300_000 + '"}', "EVENT_TOO_LARGE"),
    ],
)
async def test_a_model_s_call_that_is_wrong(name: str, arguments: str, code: str) -> None:
    """What a model gets wrong is an answer to it that says so; nothing is carried out, and the run goes on."""

    async def agent(run: Run) -> Any:
        attempt = await Toolbox([count]).attempt(run, name, arguments)
        return [attempt.status, attempt.error and attempt.error.code]

    events = await run_agent(agent)
    assert check_run(events).final_response == ["error", code]
    assert [told for _, _, told, _, _ in pairs(events)] == ([] if code == "EVENT_TOO_LARGE" else ["error"])


@pytest.mark.parametrize("arguments", [{"a": TOWER}, '{"a": ' + "[" * 100 + "]" * 100 + "}"])
def test_a_tower_of_arguments(arguments: Any) -> None:
    """Arguments that are nested too deep are refused before anybody looks into them."""
    with pytest.raises(InvalidParameters, match="levels deep"):
        read_arguments(arguments)


def test_answers_for_a_model() -> None:
    """A model gets results as they are, JSON otherwise, and errors as JSON with code and message."""
    assert Attempt("ok", "as it is").for_model() == "as it is"
    assert Attempt("ok", {"n": 1}).for_model() == '{"n":1}'
    assert Attempt("ok").for_model() == "null"
    error = Attempt("denied", None, ErrorText(code="FORBIDDEN", message="no"))
    assert error.for_model() == '{"error":{"code":"FORBIDDEN","message":"no"}}'
    assert "CANCELLED" in Attempt("cancelled").for_model()


def test_a_toolbox() -> None:
    """A toolbox says its tools as servers want them, and takes no two of one name and nothing else."""
    assert Toolbox([count]).functions() == [
        {
            "type": "function",
            "function": {"name": "count", "description": count.description, "parameters": count.schema},
        }
    ]
    assert [each.name for each in Toolbox([count, ship])] == ["count", "ship"]
    with pytest.raises(ConfigError, match="two tools are called count"):
        Toolbox([count, count])
    with pytest.raises(ConfigError, match="expected a tool"):
        Toolbox([one])  # type: ignore[list-item]


async def test_a_cancel_goes_through(autojump_clock: trio.testing.MockClock) -> None:
    """A run that is stopped inside of a model's call ends at once; its call is told as cancelled."""

    @tool
    async def endless() -> None:
        await trio.sleep_forever()

    async def agent(run: Run) -> None:
        await Toolbox([endless]).attempt(run, "endless", "{}")
        pytest.fail("went on")

    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        await trio.sleep(1)
        assert await session.stop(run.run_id) == "cancelled"
        events = [event async for event in run]
    assert check_run(events).cancelled_by == "user"
    assert pairs(events) == [("endless", {}, "cancelled", None, None)]


async def test_a_run_that_is_over_answers_no_model(caplog: pytest.LogCaptureFixture) -> None:
    """A quota that is used up in a tool ends the run; that is no answer for a model to go on with."""
    caplog.set_level(logging.CRITICAL)

    @tool
    async def talks(run: Run) -> None:
        for _ in range(50):
            await run.emit("x", 1)

    async def agent(run: Run) -> None:
        while True:
            await Toolbox([talks]).attempt(run, "talks", "{}")

    events = await run_agent(agent, overrides={"limits.max_events_per_run": 20})
    assert check_run(events).cancelled_by == "quota"


def test_tools_are_values() -> None:
    """Tools are compared by identity, so two of one name may live beside each other in different boxes."""
    again: Tool = tool(one)
    assert again != tool(one)
    assert len({again, again}) == 1
