"""The agent that is a model: its steps, its tools, what its user hears, and how it ends."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from netra_ws import ConfigError, LlmAgent, Run, tool
from netra_ws.contexts.embedding import UserSession
from netra_ws.contexts.starting import Ask, start
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.commands import Attachment
from netra_ws.protocol.events import AgentMessage, AgentThinking, ToolCompleted, Usage
from netra_ws.testing import check_run, open_session, run_agent

from .endpoint import (
    MODEL,
    FakeEndpoint,
    Reply,
    answer,
    call,
    encode,
    fake_endpoint,
    finish,
    say,
    stream,
    think,
    used,
    whole,
)


@tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def messages(events: Sequence[Heard]) -> list[str]:
    """Return the texts of the messages that were ended, in order; long ones are told as a whole on their way, too."""
    told = (one.message for one in events if isinstance(one.message, AgentMessage))
    return list({message.message_id: message.content for message in told if message.phase == "full"}.values())


def thoughts(events: Sequence[Heard]) -> list[str]:
    told = (one.message for one in events if isinstance(one.message, AgentThinking))
    return [thought.reasoning for thought in told if thought.phase == "full"]


def completed_calls(events: Sequence[Heard]) -> list[ToolCompleted]:
    return [one.message for one in events if isinstance(one.message, ToolCompleted)]


def results_told(endpoint: FakeEndpoint, request: int = -1) -> list[str]:
    """Return what the model was told in a request as the results of its calls."""
    return [one["content"] for one in endpoint.asked[request].body["messages"] if one["role"] == "tool"]


async def start_with(session: UserSession, text: str, **more: Any) -> list[Heard]:
    """Start a run with attachments or logs and return its events."""
    since = session.position
    started = await start(session.context, Ask(text=text, trigger="api", **more), session.identity)
    return [one async for one in session.events(since, run_id=started.run_id)]


# One step.


async def test_an_answer() -> None:
    """Text comes as it is said; the request has model, question, key and the wish to stream with usage."""
    async with fake_endpoint(answer("Hel", "lo", prompt=11, completion=2)) as endpoint:
        events = await run_agent(LlmAgent(endpoint=endpoint.model()), "Hi")
        last = check_run(events)
        await endpoint.until("open", 0)
    assert (last.status, last.final_response, messages(events)) == ("success", "Hello", ["Hello"])
    deltas = [one.message for one in events if isinstance(one.message, AgentMessage) and one.message.phase == "delta"]
    assert [delta.content for delta in deltas] == ["Hel", "lo"]
    assert last.usage == [Usage(provider="127.0.0.1", model=MODEL, input_tokens=11, output_tokens=2)]
    (asked,) = endpoint.asked
    assert (asked.method, asked.target) == ("POST", "/v1/chat/completions")
    assert asked.headers["authorization"] == "Bearer sk-test-0123456789abcdefghijklmnop"
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["accept-encoding"] == "identity"
    assert asked.body == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_is_thinking(field: str) -> None:
    """Reasoning is told as one thought that has ended before the text begins."""
    async with fake_endpoint(stream(think("I ", "see", field=field), say("Well"), finish())) as endpoint:
        events = await run_agent(LlmAgent(endpoint=endpoint.model()))
    check_run(events)
    assert (thoughts(events), messages(events)) == (["I see"], ["Well"])
    kinds = [(one.type, one.fields.get("phase")) for one in events]
    assert kinds[-4:-1] == [("agent_thinking", "full"), ("agent_message", "delta"), ("agent_message", "full")]


async def test_instructions_model_and_options() -> None:
    """Instructions come first; another model and more options reach the server, and None takes out a field."""
    options = {"temperature": 0.1, "stream_options": None}
    async with fake_endpoint(answer("ok")) as endpoint:
        agent = LlmAgent(endpoint=endpoint.model(), instructions="Be brief.", model="other", options=options)
        check_run(await run_agent(agent, "Hi"))
    body = endpoint.asked[0].body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["model"], body["temperature"], "stream_options" in body) == ("other", 0.1, False)


@pytest.mark.parametrize("name", ["messages", "model", "tools", "stream", "n"])
def test_options_that_are_not(name: str) -> None:
    """What the agent writes itself is no option."""
    with pytest.raises(ConfigError, match=name):
        LlmAgent(options={name: 1})


def test_wrong_tools() -> None:
    """What is no tool, and two tools of one name, are refused when the agent is made."""
    with pytest.raises(ConfigError):
        LlmAgent(tools=[add, add])
    with pytest.raises(ConfigError):
        LlmAgent(tools=[print])  # type: ignore[list-item]


async def test_without_a_model() -> None:
    """Without an endpoint of its own, on a server that has none, the agent says what is missing."""
    last = check_run(await run_agent(LlmAgent()))
    assert last.error is not None
    assert last.error.code == "LLM_UNAVAILABLE"
    assert "llm.base_url" in last.error.message


async def test_not_streamed() -> None:
    """A server that does not stream is understood."""
    message = {"content": None, "tool_calls": [{"id": "i", "function": {"name": "add", "arguments": '{"a":1,"b":2}'}}]}
    async with fake_endpoint(whole(message), whole({"content": "Three"})) as endpoint:
        events = await run_agent(LlmAgent(tools=[add], endpoint=endpoint.model()))
    assert check_run(events).final_response == "Three"
    assert [one.results for one in completed_calls(events)] == [3]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("piece_bytes", [1, 7, None])
async def test_bytes_as_they_come(line_end: str, piece_bytes: int | None) -> None:
    """Line ends of any kind, and pieces that cut characters and lines apart, change nothing."""
    text = ["Grüße", " \u2028 ", "漢字", "🎉"]
    reply = answer(*text, line_end=line_end, piece_bytes=piece_bytes)
    async with fake_endpoint(reply) as endpoint:
        last = check_run(await run_agent(LlmAgent(endpoint=endpoint.model())))
    assert last.final_response == "".join(text)


async def test_comments_and_other_events() -> None:
    """Comments that keep a connection open and events without data are no answer, and no trouble."""
    body = encode(say("Hel")).replace(b"data: [DONE]", b": PROCESSING\n\nevent: ping\n\nid: 7\n")
    body += encode([*say("lo"), *finish()])
    async with fake_endpoint(Reply(body=body)) as endpoint:
        assert check_run(await run_agent(LlmAgent(endpoint=endpoint.model()))).final_response == "Hello"


async def test_without_done() -> None:
    """A stream without its last line is complete when a reason for its end was told."""
    async with fake_endpoint(stream(say("Hello"), finish(), done=False)) as endpoint:
        last = check_run(await run_agent(LlmAgent(endpoint=endpoint.model())))
    assert (last.status, last.final_response) == ("success", "Hello")


async def test_a_server_that_does_not_let_go(fast_clock: trio.testing.MockClock) -> None:
    """Behind the last word nobody waits long for a server that neither tells the usage nor ends."""
    async with fake_endpoint(stream(say("Hello"), finish(), done=False, then="hang")) as endpoint:
        before = trio.current_time()
        last = check_run(await run_agent(LlmAgent(endpoint=endpoint.model())))
        assert trio.current_time() - before < 60
        await endpoint.until("left", 1)
    assert (last.status, last.final_response) == ("success", "Hello")


async def test_a_server_that_is_done_and_stays(fast_clock: trio.testing.MockClock) -> None:
    """Nobody waits for a server that has said that it is done and leaves the connection open."""
    async with fake_endpoint(stream(say("Hello"), then="hang")) as endpoint:
        before = trio.current_time()
        last = check_run(await run_agent(LlmAgent(endpoint=endpoint.model())))
        assert trio.current_time() - before < 60
    assert (last.status, last.final_response) == ("success", "Hello")


async def test_empty_lines_are_no_message() -> None:
    """Line feeds in front of a text, or of nothing but tool calls, make no message of their own."""
    calls = stream(say("\n", "\n"), call("add", '{"a":1,"b":1}'), finish("tool_calls"))
    async with fake_endpoint(calls, answer("\n\n", "Two")) as endpoint:
        events = await run_agent(LlmAgent(tools=[add], endpoint=endpoint.model()))
    assert check_run(events).final_response == "Two"
    assert messages(events) == ["Two"]


async def test_a_long_answer() -> None:
    """An answer that no single event can carry is said in pieces; the final response is its beginning."""
    text = "0123456789" * 2_000
    overrides = {"limits.max_event_bytes": 4096}
    async with fake_endpoint(answer(text)) as endpoint:
        events = await run_agent(LlmAgent(endpoint=endpoint.model()), overrides=overrides)
    last = check_run(events)
    assert last.status == "success"
    assert "".join(messages(events)) == text
    assert last.final_response.startswith("0123456789")
    assert "left out" in last.final_response


async def test_a_long_thought() -> None:
    """Reasoning in pieces that no event can carry is cut."""
    overrides = {"limits.max_event_bytes": 4096}
    async with fake_endpoint(stream(think("a" * 10_000), say("b"), finish())) as endpoint:
        events = await run_agent(LlmAgent(endpoint=endpoint.model()), overrides=overrides)
    assert check_run(events).status == "success"


# Tools.


async def test_the_tool_loop() -> None:
    """Calls are carried out and answered until the model asks for none; text before them is a message of its own."""
    first = stream(think("Hm"), say("Let me see."), call("add", '{"a":', '1,"b":2}'), finish("tool_calls"), used(5, 6))
    async with fake_endpoint(first, answer("Three.")) as endpoint:
        events = await run_agent(LlmAgent(tools=[add], endpoint=endpoint.model()), "1+2?")
    last = check_run(events)
    assert (messages(events), last.final_response) == (["Let me see.", "Three."], "Three.")
    assert [one.results for one in completed_calls(events)] == [3]
    assert last.usage is not None
    assert [one.input_tokens for one in last.usage] == [5, 10]
    assert [one["function"]["name"] for one in endpoint.asked[0].body["tools"]] == ["add"]
    asked, told = endpoint.asked[1].body["messages"][1:]
    assert asked["content"] == "Let me see."
    assert asked["tool_calls"][0] == {
        "id": "call_a",
        "type": "function",
        "function": {"name": "add", "arguments": '{"a":1,"b":2}'},
    }
    assert told == {"role": "tool", "tool_call_id": "call_a", "content": "3"}
    assert endpoint.connections == 1, "the steps of a run share a connection"


async def test_parallel_calls() -> None:
    """The calls of one step are carried out at the same time; their results are told in the order of the calls."""
    met = {"a": trio.Event(), "b": trio.Event()}

    @tool
    async def meet(me: str, other: str) -> str:
        """Wait for another one."""
        met[me].set()
        with trio.fail_after(5.0):
            await met[other].wait()
        if me == "a":
            await trio.sleep(0.05)
        return me

    calls = [
        call("meet", json.dumps({"me": me, "other": other}), index=n, call_id=f"c{n}")
        for n, (me, other) in enumerate([("a", "b"), ("b", "a")])
    ]
    async with fake_endpoint(stream(*calls, finish("tool_calls")), answer("ok")) as endpoint:
        events = await run_agent(LlmAgent(tools=[meet], endpoint=endpoint.model()))
    check_run(events)
    assert results_told(endpoint) == ["a", "b"]
    assert [one.results for one in completed_calls(events)] == ["b", "a"]


@tool(timeout_s=0.05)
async def slow() -> None:
    """Take too long."""
    await trio.sleep_forever()


@tool(permission="nobody")
async def forbidden() -> None:
    """Do what nobody may."""


@tool
async def failing() -> None:
    """Fail."""
    raise ValueError("secret of the house")


@pytest.mark.parametrize(
    ("name", "arguments", "status", "code"),
    [
        ("nothing", "{}", "error", "UNKNOWN_TOOL"),
        ("", "{}", "error", "UNKNOWN_TOOL"),
        ("x" * 300, "{}", "error", "UNKNOWN_TOOL"),
        ("add", '{"a": ', "error", "INVALID_PARAMETERS"),
        ("add", "[1, 2]", "error", "INVALID_PARAMETERS"),
        ("add", '{"a": 1}', "error", "INVALID_PARAMETERS"),
        ("add", '{"a": "1", "b": 2}', "error", "INVALID_PARAMETERS"),
        ("slow", "", "timeout", "TOOL_TIMEOUT"),
        ("forbidden", "{}", "denied", "FORBIDDEN"),
        ("failing", "{}", "error", "TOOL_FAILED"),
    ],
)
async def test_calls_that_fail(name: str, arguments: str, status: str, code: str) -> None:
    """What is wrong with a call is told to the user as a pair and to the model as its result, and the run goes on."""
    first = stream(call(name, arguments), finish("tool_calls"))
    async with fake_endpoint(first, answer("Sorry")) as endpoint:
        agent = LlmAgent(tools=[add, slow, forbidden, failing], endpoint=endpoint.model())
        events = await run_agent(agent)
    assert check_run(events).final_response == "Sorry"
    assert [one.status for one in completed_calls(events)] == [status]
    (told,) = results_told(endpoint)
    assert json.loads(told)["error"]["code"] == code
    assert "secret of the house" not in told
    (again,) = endpoint.asked[1].body["messages"][1]["tool_calls"]
    assert isinstance(json.loads(again["function"]["arguments"]), dict), (
        "servers parse what their own model has written"
    )


async def test_a_large_result_is_cut_for_the_model() -> None:
    """A result that would fill the budget is told to the user whole, to the model cut, with a word about the rest."""

    @tool
    async def read() -> str:
        """Read a lot."""
        return "word " * 10_000

    async with fake_endpoint(stream(call("read"), finish("tool_calls")), answer("ok")) as endpoint:
        events = await run_agent(LlmAgent(tools=[read], endpoint=endpoint.model(), context_tokens=4000))
    check_run(events)
    assert len(completed_calls(events)[0].results) == 50_000
    (told,) = results_told(endpoint)
    assert len(told) < 5_000
    assert "more characters are left out" in told


async def test_too_many_steps() -> None:
    """A model that never stops asking for tools ends in an error that says so."""
    async with fake_endpoint(stream(call("add", '{"a":1,"b":1}'), finish("tool_calls"), used(1, 1))) as endpoint:
        last = check_run(await run_agent(LlmAgent(tools=[add], endpoint=endpoint.model(), max_steps=3)))
    assert last.error is not None
    assert (last.status, last.error.code, len(endpoint.asked)) == ("error", "LLM_STEPS", 3)
    assert len(last.usage or ()) == 3


async def test_the_last_words_count() -> None:
    """A model that says its answer before the last call, and nothing behind it, has answered."""
    first = stream(say("It is two."), call("add", '{"a":1,"b":1}'), finish("tool_calls"))
    async with fake_endpoint(first, stream(finish())) as endpoint:
        assert (
            check_run(await run_agent(LlmAgent(tools=[add], endpoint=endpoint.model()))).final_response == "It is two."
        )


# Steering.


async def test_steered_between_steps() -> None:
    """What the user says while tools are at work is told to the model behind their results."""
    ready, go = trio.Event(), trio.Event()

    @tool
    async def wait() -> str:
        """Wait."""
        ready.set()
        await go.wait()
        return "done"

    async with fake_endpoint(stream(call("wait"), finish("tool_calls")), answer("ok")) as endpoint:
        agent = LlmAgent(tools=[wait], endpoint=endpoint.model())
        async with open_session({"mine": agent}) as (_, session):
            run = await session.start("Go", agent="mine", thread_id="t")
            await ready.wait()
            steered = await session.start("And quickly!", agent="mine", thread_id="t", on_busy="steer")
            go.set()
            assert (await run.result()).final_response == "ok"
    assert steered.disposition == "steered"
    told = endpoint.asked[1].body["messages"]
    assert [one["role"] for one in told] == ["user", "assistant", "tool", "user"]
    assert told[-1]["content"] == "And quickly!"


async def test_steered_at_the_end() -> None:
    """What the user says while the model speaks its last word makes one more step, and a message of its own."""
    async with fake_endpoint(answer("Paris", pause_s=0.2, piece_bytes=200), answer("Rome")) as endpoint:
        agent = LlmAgent(endpoint=endpoint.model())
        async with open_session({"mine": agent}) as (_, session):
            run = await session.start("France?", agent="mine", thread_id="t")
            await endpoint.until("asked", 1)
            await session.start("And Italy?", agent="mine", thread_id="t", on_busy="steer")
            events = [one async for one in run]
    own = [one for one in events if one.type != "user_message"]
    assert check_run(own).final_response == "Rome"
    assert messages(events) == ["Paris", "Rome"]
    told = [(one["role"], one["content"]) for one in endpoint.asked[1].body["messages"]]
    assert told == [("user", "France?"), ("assistant", "Paris"), ("user", "And Italy?")]


# History.


async def test_the_thread_is_remembered() -> None:
    """A second question is asked together with the first and its answer; another thread knows nothing of them."""
    async with (
        fake_endpoint(answer("Paris"), answer("Two million"), answer("What?")) as endpoint,
        open_session({"mine": LlmAgent(endpoint=endpoint.model())}) as (_, session),
    ):
        for text, thread in (("Capital of France?", "a"), ("How many people?", "a"), ("And?", "b")):
            await (await session.start(text, agent="mine", thread_id=thread)).result()
    told = [[(one["role"], one["content"]) for one in asked.body["messages"]] for asked in endpoint.asked]
    assert told[1] == [("user", "Capital of France?"), ("assistant", "Paris"), ("user", "How many people?")]
    assert told[2] == [("user", "And?")]


async def test_queued_questions_come_in_turn() -> None:
    """A question that waited in the queue is asked behind the answers before it, and before what waits behind it."""
    async with (
        fake_endpoint(answer("1", first_after_s=0.2), answer("2"), answer("3")) as endpoint,
        open_session({"mine": LlmAgent(endpoint=endpoint.model())}) as (_, session),
    ):
        runs = [await session.start(text, agent="mine", thread_id="t") for text in "abc"]
        for run in runs:
            await run.result()
    told = ["".join(one["content"] for one in asked.body["messages"]) for asked in endpoint.asked]
    assert told == ["a", "a1b", "a1b2c"]


async def test_a_cancelled_run_leaves_no_open_call() -> None:
    """After a run was stopped in the middle of a tool, the next one's conversation has no call without its result."""
    ready = trio.Event()

    @tool
    async def wait() -> None:
        """Wait."""
        ready.set()
        await trio.sleep_forever()

    first = stream(say("Let me see."), call("wait"), finish("tool_calls"))
    async with fake_endpoint(first, answer("ok")) as endpoint:
        agent = LlmAgent(tools=[wait], endpoint=endpoint.model())
        async with open_session({"mine": agent}) as (_, session):
            run = await session.start("Go", agent="mine", thread_id="t")
            await ready.wait()
            assert await session.stop(run.run_id) == "cancelled"
            await (await session.start("Again", agent="mine", thread_id="t")).result()
    told = endpoint.asked[1].body["messages"]
    assert [(one["role"], one["content"]) for one in told] == [
        ("user", "Go"),
        ("assistant", "Let me see."),
        ("user", "Again"),
    ]
    assert not any("tool_calls" in one for one in told)


async def test_a_sub_run_works_on_its_own_text() -> None:
    """An agent that was delegated to is told its task, and nothing of its parent's conversation."""

    async def parent(run: Run) -> Any:
        return await run.delegate("model", f"Shout: {run.text}")

    async with fake_endpoint(answer("HI")) as endpoint:
        agents = {"parent": parent, "model": LlmAgent(endpoint=endpoint.model())}
        async with open_session(agents) as (_, session):
            for _ in range(2):
                run = await session.start("hi", agent="parent", thread_id="t")
                assert (await run.result()).final_response == "HI"
    assert [asked.body["messages"] for asked in endpoint.asked] == [[{"role": "user", "content": "Shout: hi"}]] * 2


async def test_attachments() -> None:
    """Texts stand in the prompt, images as images, other files by name; and later only by name."""
    files = [
        Attachment(name="a.txt", media_type="text/plain", data=base64.b64encode("Grüße".encode()).decode()),
        Attachment(name="b.png", media_type="image/png", data="aGk="),
        Attachment(name="c.pdf", media_type="application/pdf", data="aGk="),
        Attachment(name="d.jpg", media_type="image/jpeg", url="https://example.org/d.jpg"),
    ]
    async with (
        fake_endpoint(answer("ok")) as endpoint,
        open_session({"mine": LlmAgent(endpoint=endpoint.model())}) as (_, session),
    ):
        check_run(await start_with(session, "Look", agent="mine", thread_id="t", attachments=files))
        await (await session.start("And?", agent="mine", thread_id="t")).result()
    text, *images = endpoint.asked[0].body["messages"][0]["content"]
    assert text["text"] == ("Look\n\n[Attachment a.txt (text/plain)]\nGrüße\n\n[Attachment c.pdf (application/pdf)]")
    assert [image["image_url"]["url"] for image in images] == [
        "data:image/png;base64,aGk=",
        "https://example.org/d.jpg",
    ]
    later = endpoint.asked[1].body["messages"][0]["content"]
    assert "a.txt" in later
    assert "Grüße" not in later


# Usage.


async def test_cost() -> None:
    """Where the model has a price, the cost is told, cached tokens at theirs; another model's stays unknown."""
    prices: Mapping[str, Mapping[str, float]] = {MODEL: {"input": 10.0, "output": 100.0, "cached": 1.0}}
    reply = stream(say("ok"), finish(), used(1000, 10, cached=400))
    async with fake_endpoint(reply) as endpoint:
        for name, cost in (("other", None), (MODEL, (600 * 10 + 400 * 1 + 10 * 100) / 1_000_000)):
            known = {name: prices[MODEL]}
            last = check_run(await run_agent(LlmAgent(endpoint=endpoint.model(prices=known))))
            assert last.usage is not None
            assert last.usage[0].cost_usd == (None if cost is None else pytest.approx(cost))


async def test_usage_that_was_not_told() -> None:
    """Where a server tells no usage, the counts are not known, which is not zero."""
    async with fake_endpoint(stream(say("ok"), finish())) as endpoint:
        last = check_run(await run_agent(LlmAgent(endpoint=endpoint.model())))
    assert last.usage == [Usage(provider="127.0.0.1", model=MODEL)]


async def test_an_answer_that_was_cut_off() -> None:
    """A text that ends where the model's limit was is marked: it looks complete otherwise."""
    async with fake_endpoint(stream(say("half an"), finish("length"))) as endpoint:
        events = await run_agent(LlmAgent(endpoint=endpoint.model()), "Hi")
    assert check_run(events).final_response == "half an"
    assert thoughts(events) == ["The model stopped at its limit: this answer is cut off."]
