"""Questions: asked by a run, answered once by any connection of its user, over at the latest when they expire."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import attrs
import pytest
import trio
import trio.testing

from netra_ws import AgentError, ClientError, Identity, InputDeclined, Position, Run, UserSession
from netra_ws.agents.inputs import MAX_CLOSED, MAX_OPEN
from netra_ws.agents.states import RunState
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import InputReceived, InputRequired
from netra_ws.testing import DECLINE, check_family, check_run, open_session, open_test_server, run_agent

from ..conftest import StartServer
from ..kit import connect

DAY_S = 24 * 3600.0


@attrs.frozen
class Form:
    """What to publish."""

    title: str
    copies: int = 1
    kind: Literal["draft", "final"] = "draft"


def asks(*words: Any, **options: Any) -> Any:
    """Return an agent that asks once and returns the answer."""

    async def agent(run: Run) -> Any:
        answer = await run.ask(*(words or ("Publish this?",)), **options)
        return answer if not attrs.has(type(answer)) else {"read": repr(answer)}

    return agent


@asynccontextmanager
async def asked(agent: Any, **settings: Any) -> AsyncIterator[tuple[UserSession, Any, InputRequired]]:
    """Start *agent* and wait until it asks."""
    async with open_session({"asks": agent}, settings) as (_, session):
        run = await session.start("x", agent="asks")
        async for heard in run:
            if isinstance(heard.message, InputRequired):
                break
        yield session, run, heard.message


async def rest(run: Any) -> list[Heard]:
    return [heard async for heard in run]


@pytest.mark.parametrize(
    ("options", "answer", "response"),
    [
        ({}, "because", "because"),
        ({"choices": ["yes", "no"]}, "no", "no"),
        ({"schema": Form}, {"title": "T", "copies": 2}, {"read": "Form(title='T', copies=2, kind='draft')"}),
        ({"schema": list[int]}, [1, 2], [1, 2]),
        ({"schema": bool}, False, False),
        ({"schema": {"type": "object", "required": ["n"]}}, {"n": None}, {"n": None}),
        ({"schema": {"enum": [1, None]}}, None, None),
    ],
)
async def test_an_answer(options: dict[str, Any], answer: Any, response: Any) -> None:
    """The agent gets what its user answers, read as it was asked for; both are told."""
    events = await run_agent(asks("Publish this?", **options), answers=[answer])
    assert check_run(events).final_response == response
    required = next(e.message for e in events if isinstance(e.message, InputRequired))
    received = next(e.message for e in events if isinstance(e.message, InputReceived))
    assert (required.prompt, required.choices) == ("Publish this?", options.get("choices"))
    assert (required.schema is None) == ("schema" not in options)
    assert (received.input_id, received.status, received.value, received.by) == (
        required.input_id,
        "resolved",
        answer,
        "tester",
    )


@pytest.mark.parametrize(
    ("options", "answer", "field"),
    [
        ({}, 5, "$.value"),
        ({}, None, "$.value"),
        ({"choices": ["yes", "no"]}, "maybe", "$.value"),
        ({"choices": ["yes", "no"]}, ["yes"], "$.value"),
        ({"schema": Form}, {"title": 5}, "$.value.title"),
        ({"schema": Form}, {"title": "T", "kind": "x"}, "$.value.kind"),
        ({"schema": {"type": "object", "properties": {"n": {"minimum": 3}}}}, {"n": 1}, "$.value.n"),
        ({}, "x" * 300_000, "$.value"),
    ],
)
async def test_an_answer_that_does_not_fit(options: dict[str, Any], answer: Any, field: str) -> None:
    """A value that does not fit is refused by the path of what is wrong, and the question stays open."""
    async with asked(asks("?", **options)) as (session, run, required):
        with pytest.raises(ClientError) as error:
            await session.answer(required.input_id, answer)
        assert error.value.code == "INVALID_MESSAGE"
        assert list((error.value.details or {})["fields"]) == [field]
        assert [each["input_id"] for each in session.pending_inputs] == [required.input_id]
        await session.decline(required.input_id)
        assert check_run(await rest(run)).error.code == "INPUT_CANCELLED"


@pytest.mark.parametrize("value", [{1}, object(), b"x", "\ud800"])
async def test_an_answer_that_is_no_json(value: Any) -> None:
    """A program that answers with what JSON cannot say is told so, and the question stays open."""
    async with asked(asks("?")) as (session, run, required):
        with pytest.raises(ClientError) as error:
            await session.answer(required.input_id, value)
        assert error.value.code == "INVALID_MESSAGE"
        await session.answer(required.input_id, "x")
        assert check_run(await rest(run)).final_response == "x"


async def test_it_is_answered_once() -> None:
    """A second answer is told so, whatever it says; one to nothing is told that there is nothing."""
    async with asked(asks("?")) as (session, run, required):
        await session.answer(required.input_id, "first")
        for _ in range(2):
            with pytest.raises(ClientError) as error:
                await session.answer(required.input_id, "second")
            assert error.value.code == "ALREADY_ANSWERED"
        assert check_run(await rest(run)).final_response == "first"
        with pytest.raises(ClientError) as error:
            await session.answer("input_none", "x")
        assert error.value.code == "NOT_FOUND"


async def test_a_stranger_cannot_answer() -> None:
    """Another user's question is answered like one that never was."""
    async with open_session({"asks": asks("?")}) as (server, session):
        run = await session.start("x", agent="asks")
        events = session.events(Position(epoch=session.position.epoch, seq=0))
        required = [heard async for heard in _until(events, InputRequired)][-1].message
        async with server.context_for(Identity("eve")) as eve:
            assert eve.pending_inputs == []
            with pytest.raises(ClientError) as error:
                await eve.answer(required.input_id, "mine")
            assert error.value.code == "NOT_FOUND"
        await session.answer(required.input_id, "yours")
        assert (await run.result()).final_response == "yours"


async def _until(events: Any, kind: type) -> AsyncIterator[Heard]:
    async for heard in events:
        yield heard
        if isinstance(heard.message, kind):
            return


async def test_clocks_stand_still(autojump_clock: trio.testing.MockClock) -> None:
    """While a run waits for a person, its timeouts and those of the tool around the question do not count."""

    async def agent(run: Run) -> list[float]:
        before = run.deadline
        async with run.tool("careful", timeout_s=10) as call:
            await trio.sleep(4)
            await run.ask("Sure?", choices=["yes"])
            await trio.sleep(4)
            call.results = "done"
        moved = run.deadline - before
        await trio.sleep(30)
        return [round(moved), round(run.deadline - trio.current_time())]

    async with asked(agent, **{"timing.run_timeout_s": 60.0, "timing.idle_timeout_s": 40.0}) as (
        session,
        run,
        question,
    ):
        state = session.context.runs[run.run_id].state
        await trio.sleep(1800)
        assert (state, session.context.active[0].state) == (RunState.ASKING, "asking")
        await session.answer(question.input_id, "yes")
        last = check_run(await rest(run))
    assert (last.status, last.final_response) == ("success", [1800, 22])


async def test_clocks_go_on_behind_it(autojump_clock: trio.testing.MockClock) -> None:
    """Behind the answer the clocks go on from where they stood."""

    async def agent(run: Run) -> None:
        await trio.sleep(5)
        await run.ask("?")
        await trio.sleep(1000)

    async with asked(agent, **{"timing.run_timeout_s": 60.0, "timing.idle_timeout_s": 100.0}) as (
        session,
        run,
        question,
    ):
        await trio.sleep(1000)
        answered = trio.current_time()
        await session.answer(question.input_id, "x")
        assert check_run(await rest(run)).status == "timeout"
        assert trio.current_time() - answered == pytest.approx(55, abs=0.5)


async def test_a_tool_s_clock_goes_on_behind_it(autojump_clock: trio.testing.MockClock) -> None:
    """A tool that asks gets the rest of its time behind the answer, and no more."""

    async def agent(run: Run) -> float:
        with pytest.raises(trio.TooSlowError):
            async with run.tool("slow", timeout_s=10):
                await trio.sleep(4)
                await run.ask("?")
                answered = trio.current_time()
                await trio.sleep_forever()
        return round(trio.current_time() - answered, 3)

    async with asked(agent) as (session, run, question):
        await trio.sleep(1000)
        await session.answer(question.input_id, "x")
        assert check_run(await rest(run)).final_response == 6


async def test_it_expires(autojump_clock: trio.testing.MockClock) -> None:
    """A question that nobody answers is over when its time is, by itself, and the agent may go on."""

    async def agent(run: Run) -> list[Any]:
        began = trio.current_time()
        with pytest.raises(InputDeclined) as declined:
            await run.ask("?", expires_in=900)
        return [declined.value.status, declined.value.code, round(trio.current_time() - began)]

    async with asked(agent) as (session, run, question):
        assert question.expires_at is not None
        events = await rest(run)
        assert check_run(events).final_response == ["expired", "INPUT_EXPIRED", 900]
        received = next(e.message for e in events if isinstance(e.message, InputReceived))
        assert (received.status, received.value, received.by) == ("expired", None, "server")
        with pytest.raises(ClientError) as error:
            await session.answer(question.input_id, "late")
        assert error.value.code == "ALREADY_ANSWERED"


async def test_a_day_by_default() -> None:
    """Unless it says otherwise a question waits for a day."""
    events = await run_agent(asks("?"), answers=["x"])
    required = next(e for e in events if isinstance(e.message, InputRequired))
    assert required.message.expires_at - required.stamp.timestamp == pytest.approx(DAY_S, abs=1)


async def test_declined() -> None:
    """A person may decline; unless the agent handles that, it is the run's outcome."""
    events = await run_agent(asks("?"), answers=[DECLINE])
    last = check_run(events)
    assert (last.status, last.error.code, last.error.message) == (
        "error",
        "INPUT_CANCELLED",
        "the question was declined",
    )


@pytest.mark.parametrize("mode", ["now", "after_step"])
async def test_a_stop_closes_the_question(mode: str, server: StartServer) -> None:
    """A run that is stopped while it asks ends at once, also when it should end behind its step, and so does that."""
    running = await server(agents={"asks": asks("?")})
    async with connect(running) as client:
        ack = await client.ask("chat", content="x", agent="asks")
        required = (await client.until("input_required"))[-1]
        stopped = await client.ask("stop_agent", run_id=ack["run_id"], mode=mode)
        assert stopped["status"] == "cancelled"
        answer = await client.ask("input_response", input_id=required["input_id"], status="resolved", value="x")
        assert answer["code"] == "ALREADY_ANSWERED"


async def test_a_cancelled_wait_closes_the_question(autojump_clock: trio.testing.MockClock) -> None:
    """An agent that gives up waiting, in a scope of its own, closes its question and goes on."""

    async def agent(run: Run) -> str:
        with trio.move_on_after(5):
            await run.ask("?")
        return "went on"

    events = await run_agent(agent)
    assert check_run(events).final_response == "went on"
    received = next(e.message for e in events if isinstance(e.message, InputReceived))
    assert (received.status, received.by) == ("cancelled", "server")


async def test_several_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """Questions that are open together are answered in any order; clocks go on when the last one is answered."""

    async def agent(run: Run) -> dict[str, Any]:
        got: dict[str, Any] = {}

        async def one(name: str) -> None:
            async with run.tool(name, timeout_s=5) as call:
                call.results = got[name] = await run.ask(name)

        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c"):
                nursery.start_soon(one, name)
        return got

    async with open_session({"asks": agent}, {"timing.run_timeout_s": 20.0}) as (_, session):
        run = await session.start("x", agent="asks")
        while len(session.pending_inputs) < 3:
            await trio.sleep(0.1)
        for question in reversed(session.pending_inputs):
            await trio.sleep(100)
            await session.answer(question["input_id"], f"answer to {question['prompt']}")
        last = check_run(await rest(run))
    assert last.final_response == {name: f"answer to {name}" for name in "abc"}


async def test_too_many() -> None:
    """A user has at most so many open questions; one more is an error in the agent that asks it."""

    async def agent(run: Run) -> Any:
        async with trio.open_nursery() as nursery:
            for _ in range(MAX_OPEN):
                nursery.start_soon(run.ask, "?")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(AgentError) as error:
                await run.ask("one more")
            nursery.cancel_scope.cancel()
        return error.value.code

    events = await run_agent(agent)
    assert check_run(events).final_response == "QUOTA_EXCEEDED"
    assert sum(isinstance(e.message, InputRequired) for e in events) == MAX_OPEN


async def test_what_is_remembered_is_bounded() -> None:
    """Questions that are over are forgotten in the end, the oldest first."""

    async def agent(run: Run) -> None:
        for _ in range(MAX_CLOSED + 1):
            with trio.CancelScope() as scope:
                scope.cancel()
                await run.ask("?")

    async with open_session({"asks": agent}) as (_, session):
        run = await session.start("x", agent="asks")
        ids = [e.message.input_id for e in await rest(run) if isinstance(e.message, InputRequired)]
        assert len(ids) in (0, MAX_CLOSED + 1)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("",), {}),
        (("  ",), {}),
        ((5,), {}),
        (("?",), {"choices": []}),
        (("?",), {"choices": "yes"}),
        (("?",), {"choices": ["a", "a"]}),
        (("?",), {"choices": ["a", 5]}),
        (("?",), {"choices": [str(n) for n in range(101)]}),
        (("?",), {"choices": ["a"], "schema": str}),
        (("?",), {"schema": complex}),
        (("?",), {"schema": {"type": "nothing"}}),
        (("?",), {"expires_in": 0}),
        (("?",), {"expires_in": float("nan")}),
        (("?",), {"expires_in": float("inf")}),
        (("?",), {"expires_in": "1"}),
    ],
)
async def test_what_cannot_be_asked(words: tuple[Any, ...], options: dict[str, Any]) -> None:
    """A question that makes no sense is the agent's mistake; nobody is asked."""

    async def agent(run: Run) -> str:
        with pytest.raises(ValueError, match=r"expected|schema"):
            await run.ask(*words, **options)
        return "told"

    events = await run_agent(agent)
    assert check_run(events).final_response == "told"
    assert not any(isinstance(e.message, InputRequired) for e in events)


async def test_a_question_that_is_too_large() -> None:
    """A question above the size of an event is an error in the agent; nobody is asked."""
    events = await run_agent(asks("x" * 300_000))
    assert check_run(events).error.code == "EVENT_TOO_LARGE"


async def test_what_was_said_is_kept_while_it_waits() -> None:
    """Text that stands before a question is stored before it; the same message goes on behind the answer."""

    async def agent(run: Run) -> str:
        await run.say("Here it is. ")
        await run.ask("Good?")
        await run.say("Thank you.")
        return run.said

    events = await run_agent(agent, answers=["yes"])
    assert check_run(events).final_response == "Here it is. Thank you."
    fulls = [e.fields for e in events if e.type == "agent_message" and e.fields["phase"] == "full"]
    assert [each["content"] for each in fulls] == ["Here it is. ", "Here it is. Thank you."]
    assert len({each["message_id"] for each in fulls}) == 1
    assert events.index(next(e for e in events if e.type == "input_required")) > [e.fields for e in events].index(
        fulls[0]
    )


# Who is there, and who comes back.


@pytest.mark.parametrize("on_disconnect", ["grace", "cancel", "continue"])
async def test_a_lost_connection(on_disconnect: str, autojump_clock: trio.testing.MockClock) -> None:
    """Grace waits for a question until it expires; cancel does not; the person finds it in the welcome."""
    async with open_test_server({"asks": asks("?", expires_in=900)}) as server:
        async with server.connect("alice") as alice:
            await alice.start("x", agent="asks", on_disconnect=on_disconnect)
            while not server.server.registry.memories.of("alice").inputs:
                await trio.sleep(0.01)
            server.link("alice").drop()
            await trio.sleep(0)
        await trio.sleep(600)
        async with server.connect("alice") as alice:
            pending = alice.welcome.pending_inputs
            assert len(pending) == (0 if on_disconnect == "cancel" else 1)
            if pending:
                assert pending[0]["prompt"] == "?"
                events = alice.events()
                await alice.answer(pending[0]["input_id"], "still here")
                async for heard in events:
                    if heard.type == "agent_completed":
                        break
                assert heard.fields["final_response"] == "still here"
        await server.settled()


async def test_nobody_comes_back(autojump_clock: trio.testing.MockClock) -> None:
    """When the question of a run that waits for its user expires, the grace is over, and so is the run."""

    async def agent(run: Run) -> None:
        try:
            await run.ask("?", expires_in=900)
        except InputDeclined:
            await trio.sleep_forever()

    async with open_test_server({"asks": agent}) as server:
        async with server.connect("alice") as alice:
            await alice.start("x", agent="asks")
            while not server.server.registry.memories.of("alice").inputs:
                await trio.sleep(0.01)
            server.link("alice").drop()  # leaving would say goodbye
            await trio.sleep(0)
        began = trio.current_time()
        while (
            server.server.statistics_users()
            if hasattr(server.server, "statistics_users")
            else list(server.server.registry)
        ):
            await trio.sleep(1)
        assert trio.current_time() - began == pytest.approx(900, abs=5)
        recorded = await server.recorded("alice")
        last = next(iter(check_family(recorded).values()))
        assert (last.status, last.cancelled_by) == ("cancelled", "disconnect")


async def test_nobody_comes_back_to_one_that_asks_again(autojump_clock: trio.testing.MockClock) -> None:
    """Grace waits for the question that was open, not for those that come behind it."""

    async def agent(run: Run) -> None:
        while True:
            with contextlib.suppress(InputDeclined):
                await run.ask("still there?", expires_in=100)

    async with open_test_server({"asks": agent}) as server:
        async with server.connect("alice") as alice:
            await alice.start("x", agent="asks")
            while not server.server.registry.memories.of("alice").inputs:
                await trio.sleep(0.01)
            server.link("alice").drop()
            await trio.sleep(0)
        began = trio.current_time()
        while list(server.server.registry):
            await trio.sleep(1)
            assert trio.current_time() - began < 200
        last = next(iter(check_family(await server.recorded("alice")).values()))
        assert (last.status, last.cancelled_by) == ("cancelled", "disconnect")


async def test_a_stop_behind_the_step_is_not_put_off_by_a_question(
    autojump_clock: trio.testing.MockClock, server: StartServer
) -> None:
    """A run that should end behind its step asks nobody any more: it ends where it would have asked."""

    async def agent(run: Run) -> None:
        async with run.tool("careful"):
            await trio.sleep(5)
            await run.ask("Sure?")

    running = await server(agents={"asks": agent})
    async with connect(running) as client:
        ack = await client.ask("chat", content="x", agent="asks")
        await client.until("tool_executing")
        await client.send("stop_agent", run_id=ack["run_id"], mode="after_step", id="stop")
        heard = await client.until("ack", reply_to="stop")
        assert heard[-1]["status"] == "cancelled"
        assert "input_required" not in [frame["type"] for frame in heard]


async def test_questions_wait_for_the_store(autojump_clock: trio.testing.MockClock) -> None:
    """Questions in a loop are held up while the store takes nothing, as everything that is told is."""

    async def agent(run: Run) -> None:
        for _ in range(60):
            with contextlib.suppress(InputDeclined):
                await run.ask("x" * 200_000, expires_in=1e-6)

    async with open_test_server({"asks": agent}) as server, server.connect("alice") as alice:
        server.store.hang()
        with trio.move_on_after(3):
            await alice.start("x", agent="asks")
        asked = server.server.registry.memories.of("alice").inputs
        before = len(asked._closed)
        await trio.sleep(1)
        assert before == len(asked._closed) < 40
        server.store.recover()
        await trio.sleep(30)
        assert len(asked._closed) == 60


async def test_goodbye_ends_a_run_that_asks(server: StartServer) -> None:
    """The command disconnect ends a run at once, also one that waits for its user."""
    running = await server(agents={"asks": asks("?")}, timing__resume_window_s=60)
    async with connect(running) as client:
        await client.ask("chat", content="x", agent="asks")
        await client.until("input_required")
        await client.ask("disconnect")
    with trio.fail_after(5):
        while list(running.registry):
            await trio.sleep(0.01)
    async with connect(running) as client:
        assert client.welcome["pending_inputs"] == []


async def test_over_sockets(server: StartServer) -> None:
    """Any connection of the user may answer; both hear it, the other one's answer comes too late."""
    running = await server(agents={"asks": asks("Which?", choices=["a", "b"])})
    async with connect(running) as one:
        ack = await one.ask("chat", content="x", agent="asks")
        required = (await one.until("input_required"))[-1]
        async with connect(running) as two:
            (pending,) = two.welcome["pending_inputs"]
            assert {name: pending[name] for name in ("input_id", "run_id", "thread_id", "agent_name", "prompt")} == {
                **{name: required[name] for name in ("input_id", "run_id", "thread_id", "agent_name")},
                "prompt": "Which?",
            }
            assert (pending["choices"], "schema" in pending) == (["a", "b"], False)
            assert two.welcome["active_runs"][0]["state"] == "asking"
            given = {"input_id": required["input_id"], "status": "resolved"}
            wrong = await two.ask("input_response", **given, value="c", id="w0")
            assert (wrong["code"], wrong["details"]["fields"]) == (
                "INVALID_MESSAGE",
                {"$.value": "expected one of 'a', 'b'"},
            )
            await two.send("input_response", **given, value="b", id="w1")
            heard = await two.until("ack", reply_to="w1")
            assert "input_received" in [frame["type"] for frame in heard]  # committed before it is answered
            again = await two.ask(
                "input_response", input_id=required["input_id"], status="resolved", value="b", id="w1"
            )
            assert again["type"] == "ack"
        ended = (await one.until("agent_completed", run_id=ack["run_id"]))[-1]
        assert ended["final_response"] == "b"
        assert (await one.ask("input_response", **given, value="a", id="w2"))["code"] == "ALREADY_ANSWERED"
