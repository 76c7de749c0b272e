"""asyncio functions as agents: what they can do, how they are ended, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio

import netra_ws
from netra_ws import AgentError, AsyncioRun, ConfigError
from netra_ws.agents.agent import check_agent
from netra_ws.protocol.events import ToolCompleted
from netra_ws.server import Server
from netra_ws.testing import check_run, open_session, open_test_server, run_agent, texts

SHORT = {"timing.finalise_s": 0.3}
PATIENCE_S = 20.0
MANY = {"limits.max_runs_per_user": 200, "limits.max_threads_per_user": 200}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """When a server has ended, so have the threads that it started; Trio's own pool aside."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in set(threading.enumerate()) - before if not thread.name.startswith("Trio thread")]
    left = [thread for thread in left if "netra_ws" not in thread.name]
    assert left == []


async def until(condition: Any, within_s: float = PATIENCE_S) -> None:
    """Wait for something that no event tells."""
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.005)


def tasks_of(server: Server) -> int:
    """Return how many asyncio tasks there are in the server's loop besides the loop's own."""
    loop = server.registry.policy.run.asyncio.open().events
    return len(asyncio.all_tasks(loop)) - 1


# What it is.


@netra_ws.bridge
async def decorated(run: AsyncioRun) -> str:
    """Answers in capitals."""
    return run.text.upper()


class Callable:
    async def __call__(self, run: AsyncioRun) -> str:
        return "object"


async def configured(option: str, run: AsyncioRun) -> str:
    return option


@pytest.mark.parametrize(
    ("agent", "answer"),
    [
        (decorated, "HELLO"),
        (netra_ws.bridge(Callable()), "object"),
        (netra_ws.bridge(functools.partial(configured, "partial")), "partial"),
    ],
)
async def test_what_can_be_bridged(agent: Any, answer: str) -> None:
    """An asyncio function, an object with an async __call__, and a partial become agents like any other."""
    assert check_agent("a", agent) is agent
    assert check_run(await run_agent(agent)).final_response == answer


def test_it_keeps_name_and_text() -> None:
    """A bridged function is still known by its name and docstring."""
    assert decorated.__name__ == "decorated"  # type: ignore[attr-defined]
    assert decorated.__doc__ == "Answers in capitals."
    assert "decorated" in repr(decorated)


async def no_argument() -> None: ...


async def generator(run: AsyncioRun) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("function", [no_argument, generator, Callable, lambda run: None, 5])
def test_what_cannot_be_bridged(function: Any) -> None:
    """Anything else is refused where it is bridged."""
    with pytest.raises(ConfigError, match="expected"):
        netra_ws.bridge(function)


# What it can do.


async def test_everything_crosses_in_order() -> None:
    """Whatever an asyncio agent tells arrives, in the order in which it was told, in the grammar of runs."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> str:
        await run.think("first", step=1)
        await run.say("a")
        await run.say("b")
        async with run.tool("look", {"q": 1}, limit=2) as call:
            await run.say("c")
            await call.progress(0.5, "half")
            call.results = [1, 2]
        await run.emit("mood", {"good": True})
        await run.say("d")
        await run.think("thi", delta=True)
        await run.think("nk", delta=True)
        assert run.said == "abcd"
        await run.end_message()
        assert run.said == ""
        await run.say("e")
        await run.usage("acme", "m1", input_tokens=3)
        return run.said

    events = await run_agent(agent)
    last = check_run(events)
    assert (last.status, last.final_response) == ("success", "e")
    assert last.usage is not None
    assert last.usage[0].input_tokens == 3
    told = [(e.type, e.fields.get("content") or e.fields.get("reasoning") or e.fields.get("results")) for e in events]
    assert told[2:-1] == [
        ("agent_thinking", "first"),
        ("agent_message", "a"),
        ("agent_message", "b"),
        ("tool_executing", None),
        ("agent_message", "c"),
        ("tool_progress", None),
        ("tool_completed", [1, 2]),
        ("agent_event", None),
        ("agent_message", "d"),
        ("agent_thinking", "thi"),
        ("agent_thinking", "nk"),
        ("agent_message", "abcd"),
        ("agent_thinking", "think"),
        ("agent_message", "e"),
        ("agent_message", "e"),
    ]
    assert next(e for e in events if e.type == "tool_executing").fields["parameters"] == {"q": 1, "limit": 2}


async def test_it_knows_what_was_asked() -> None:
    """The asyncio side sees who asked what, the conversation so far, and how long it has."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> dict[str, Any]:
        left_s = run.deadline - asyncio.get_running_loop().time()
        history = await run.thread.history()
        found = await run.search_history("hello")
        assert run.thread.id == run.thread_id
        return {
            "asked": [run.text, run.user_id, run.identity.user_id, run.agent_name, dict(run.context)],
            "more": [list(run.attachments), run.jsonl_logs, run.run_id in repr(run)],
            "history": [row.content for row in history],
            "found": [row.content for row in found],
            "left": round(left_s),
            "steered": await run.steered(),
        }

    events = await run_agent(agent, "hello you", context={"k": 1}, overrides={"timing.run_timeout_s": 50.0})
    assert check_run(events).final_response == {
        "asked": ["hello you", "tester", "tester", "agent_under_test", {"k": 1}],
        "more": [[], None, True],
        "history": ["hello you"],
        "found": ["hello you"],
        "left": 50,
        "steered": [],
    }


async def test_long_text_goes_on_in_new_messages() -> None:
    """What ``said`` tells before Trio's side has said it is what the current message will be."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> list[Any]:
        for _ in range(25):
            await run.say("ä" * 1000)
        await run.say("x" * 9000)
        return [len(run.said), run.said[-1]]

    limits = {"limits.max_response_bytes": 10_000, "limits.max_event_bytes": 4096}
    events = await run_agent(agent, overrides=limits)
    fulls = list(texts(events).values())
    assert [len(full.encode()) for full in fulls] == [10_000] * 5 + [9000]
    assert check_run(events).final_response == [len(fulls[-1]), "x"]


async def test_tools_end_as_they_should() -> None:
    """Each way to leave a tool is told as it is for other agents, and comes out of the block as what it was."""
    seen: list[str] = []

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> None:
        async def attempt(name: str, error: BaseException | None, **options: Any) -> None:
            try:
                async with run.tool(name, **options) as call:
                    if error is not None:
                        raise error
                    call.results = "x" * (5000 if name == "large" else 1)
                    if name == "slow":
                        await asyncio.sleep(60)
            except Exception as exc:
                seen.append(f"{name} {type(exc).__name__}")

        await attempt("good", None)
        await attempt("told", AgentError("no such city", code="NO_CITY"))
        await attempt("failed", ValueError("a secret"))
        await attempt("grouped", ExceptionGroup("g", [AgentError("in a group", code="GROUPED")]))
        await attempt("slow", None, timeout_s=0.01)
        await attempt("own", TimeoutError(), timeout_s=60)
        await attempt("large", None)
        await attempt("n" * 300, None)
        async with asyncio.timeout(0.01) as clock:
            try:
                await attempt("dropped", asyncio.CancelledError())
            except asyncio.CancelledError:
                seen.append("dropped")
        assert not clock.expired()

    events = await run_agent(agent, overrides={"limits.max_event_bytes": 4096})
    assert check_run(events).status == "success"
    ends = [e.message for e in events if isinstance(e.message, ToolCompleted)]
    assert [(end.tool_name, end.status, end.error.code if end.error else None) for end in ends] == [
        ("good", "ok", None),
        ("told", "error", "NO_CITY"),
        ("failed", "error", "TOOL_FAILED"),
        ("grouped", "error", "GROUPED"),
        ("slow", "timeout", "TOOL_TIMEOUT"),
        ("own", "error", "TOOL_FAILED"),
        ("large", "error", "EVENT_TOO_LARGE"),
        ("dropped", "cancelled", None),
    ]
    assert "secret" not in str([e.fields for e in events])
    assert seen == [
        "told AgentError",
        "failed ValueError",
        "grouped ExceptionGroup",
        "slow TimeoutError",
        "own TimeoutError",
        "large EventTooLarge",
        f"{'n' * 300} EventTooLarge",
        "dropped",
    ]


async def test_parallel_tools_keep_their_pairs() -> None:
    """Tools of a task group run at the same time, each with its own results."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> list[int]:
        done: list[int] = []

        async def one(number: int) -> None:
            async with run.tool("t", number=number) as call:
                await asyncio.sleep(0.001 * (10 - number))
                call.results = number
                done.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(one(number))
        return done

    events = await run_agent(agent)
    assert sorted(check_run(events).final_response) == list(range(10))
    started = {e.fields["tool_call_id"]: e.fields["parameters"]["number"] for e in events if e.type == "tool_executing"}
    ended = {e.fields["tool_call_id"]: e.fields["results"] for e in events if e.type == "tool_completed"}
    assert started == ended


async def test_threads_are_those_of_runs() -> None:
    """asyncio.to_thread and run.thread work in the server's bounded pool and give what the function gives."""
    tracks = contextvars.ContextVar[str]("tracks")

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> list[Any]:
        tracks.set("here")
        with pytest.raises(ValueError, match="from a thread"):
            await asyncio.to_thread(_raise, ValueError("from a thread"))
        pool = await run.thread(lambda: run._run.policy.threads.borrowed_tokens)
        return [await asyncio.to_thread(tracks.get), await run.thread(pow, 2, 5), pool]

    assert check_run(await run_agent(agent)).final_response == ["here", 32, 1]


def _raise(exc: BaseException) -> None:
    raise exc


# Back-pressure and errors.


async def test_nothing_is_lost_or_swapped_in_a_flood() -> None:
    """Ten thousand pieces from several tasks arrive all, each task's in its order, and the queue stays bounded."""
    deepest = 0

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> None:
        nonlocal deepest

        async def talk(name: str) -> None:
            nonlocal deepest
            for number in range(2000):
                await run.say(f"{name}{number} ")
                deepest = max(deepest, len(run._crossing._orders._waiting))

        async with asyncio.TaskGroup() as group:
            for name in "abcde":
                group.create_task(talk(name))

    events = await run_agent(agent, overrides={"limits.max_events_per_run": 100_000})
    assert check_run(events).status == "success"
    words = "".join(texts(events).values()).split()
    for name in "abcde":
        assert [word for word in words if word[0] == name] == [f"{name}{number}" for number in range(2000)]
    assert 32 < deepest <= 64


async def test_whoever_speaks_waits_while_the_store_is_behind() -> None:
    """An agent that says more than the store takes is held up where it speaks, and goes on when the store does."""
    said, go = 0, threading.Event()

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> None:
        nonlocal said
        while not go.is_set():
            await asyncio.sleep(0.001)
        for said in range(20_000):  # noqa: B007
            await run.say("y" * 1000)

    async with open_test_server({"agent": agent}, {"limits.max_events_per_run": 100_000}) as server:
        async with server.server.context_for(netra_ws.Identity("ada")) as session:
            run = await session.start("x")
            server.store.hang()
            go.set()
            try:
                await until(lambda: said > 64)
                before = 0
                while before != said:
                    before = said
                    await trio.sleep(0.5)
                assert said < 19_999
            finally:
                server.store.recover()
            with trio.fail_after(PATIENCE_S):
                await run.result()
        assert said == 19_999


async def test_it_speaks_into_jobs() -> None:
    """A bridged agent says words into a job, in order, closes it, and gets what is wrong at its own call."""

    @netra_ws.bridge
    async def agent(run: AsyncioRun) -> list[str]:
        wrong = []
        job = run.job("build-7")
        for step in (1, 2):
            await job.emit("step", step)
        for work in (run.job("no id").emit("step", 1), job.emit("step", object()), run.job("bobs").close()):
            try:
                await work
            except (ValueError, TypeError, netra_ws.AgentError) as exc:
                wrong.append(type(exc).__name__)
        return wrong

    async with open_session({"agent": agent}) as (server, session):
        await server.job("bob", "bobs").open()
        job = server.job(session.identity, "build-7")
        await job.open()
        async with job.events() as events:
            run = await session.start("x", agent="agent")
            assert (await run.result()).final_response == ["InvalidArgument", "TypeError", "AgentError"]
            await job.close()
            said = [event.fields async for event in events]
        assert [(fields["value"], fields["agent_name"]) for fields in said] == [(1, "agent"), (2, "agent")]
