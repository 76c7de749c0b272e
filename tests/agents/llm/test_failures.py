"""Whatever an endpoint does, a run ends in a defined way, and nobody ever reads the key."""

from __future__ import annotations

import json
import logging
import random
import ssl
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme

from netra_ws import ConfigError, LlmAgent, ModelEndpoint, tool
from netra_ws.agents.llm import agent as agent_module
from netra_ws.agents.llm import endpoint as endpoint_module
from netra_ws.agents.llm import listening
from netra_ws.agents.llm.bounds import ATTEMPTS, BACKOFF_S
from netra_ws.agents.llm.endpoint import open_endpoint
from netra_ws.errors import ModelError
from netra_ws.protocol.events import AgentCompleted, AgentThinking, RunError
from netra_ws.testing import check_run, open_session, run_agent, texts
from tests.effort import EFFORT

from .endpoint import (
    KEY,
    MODEL,
    FakeEndpoint,
    Reply,
    answer,
    call,
    chunk,
    encode,
    fake_endpoint,
    finish,
    refuse,
    say,
    stream,
    think,
    used,
)

PATIENT = {"timing.run_timeout_s": 3000.0, "timing.idle_timeout_s": 1000.0}


@tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def ended(endpoint: FakeEndpoint, **options: Any) -> AgentCompleted:
    """Run an agent on *endpoint* and return how it ended."""
    agent = LlmAgent(tools=[add], endpoint=endpoint.model(), **options)
    return check_run(await run_agent(agent, overrides=PATIENT))


def error_of(last: AgentCompleted) -> RunError:
    assert last.status == "error"
    assert last.error is not None
    return last.error


# Statuses.


@pytest.mark.parametrize(
    ("reply", "code", "retryable", "attempts"),
    [
        (refuse(400, "bad temperature"), "LLM_REFUSED", False, 1),
        (refuse(401), "LLM_REFUSED", False, 1),
        (refuse(403), "LLM_REFUSED", False, 1),
        (refuse(404, code="model_not_found"), "LLM_REFUSED", False, 1),
        (refuse(400, code="context_length_exceeded"), "LLM_CONTEXT_TOO_LONG", False, 1),
        (refuse(400, "This model's maximum context length is 8192 tokens."), "LLM_CONTEXT_TOO_LONG", False, 1),
        (refuse(413), "LLM_CONTEXT_TOO_LONG", False, 1),
        (refuse(408), "LLM_UNAVAILABLE", True, ATTEMPTS),
        (refuse(429), "LLM_UNAVAILABLE", True, ATTEMPTS),
        (refuse(429, code="insufficient_quota"), "LLM_UNAVAILABLE", False, 1),
        (refuse(500), "LLM_UNAVAILABLE", True, ATTEMPTS),
        (refuse(501), "LLM_REFUSED", False, 1),
        (refuse(503), "LLM_UNAVAILABLE", True, ATTEMPTS),
        (refuse(429, headers={"retry-after": "3600"}), "LLM_UNAVAILABLE", True, 1),
        (Reply(body=b"<html>", content_type="text/html"), "LLM_BROKEN", False, 1),
        (Reply(body=b"", headers={"content-encoding": "gzip"}), "LLM_BROKEN", False, 1),
        (Reply(body=b"data: {no json}\n\n"), "LLM_BROKEN", False, 1),
        (Reply(body=b"data: [1]\n\n"), "LLM_BROKEN", False, 1),
        (Reply(body=b"data: " + b"a" * (2**20 + 1)), "LLM_BROKEN", False, 1),
        (Reply(body=b"not json", content_type="application/json"), "LLM_BROKEN", False, 1),
        (Reply(body=b""), "LLM_BROKEN", True, ATTEMPTS),
        (Reply(body=b"data: [DONE]\n\n"), "LLM_BROKEN", True, ATTEMPTS),
        (stream([{"choices": 7}]), "LLM_BROKEN", True, 1),
        (stream(finish("content_filter")), "LLM_REFUSED", False, 1),
        (stream(finish("length")), "LLM_CONTEXT_TOO_LONG", False, 1),
        (Reply(body=b"", status=204), "LLM_REFUSED", False, 1),
    ],
)
async def test_no_answer(
    fast_clock: trio.testing.MockClock, reply: Reply, code: str, retryable: bool, attempts: int
) -> None:
    """Each way not to answer has its code, and is tried again only where that can help."""
    async with fake_endpoint(reply) as endpoint:
        error = error_of(await ended(endpoint))
    assert (error.code, error.retryable, len(endpoint.asked)) == (code, retryable, attempts)


async def test_redirects_are_not_followed() -> None:
    """The key does not travel to wherever a redirect points."""
    async with fake_endpoint(answer("caught")) as elsewhere:
        for status in (301, 302, 307, 308):
            redirect = Reply(body=b"", status=status, headers={"location": f"{elsewhere.url}/chat/completions"})
            async with fake_endpoint(redirect) as endpoint:
                assert error_of(await ended(endpoint)).code == "LLM_REFUSED"
    assert elsewhere.asked == []


async def test_nobody_there(fast_clock: trio.testing.MockClock) -> None:
    """Where nobody listens, the run says so after some attempts, and tells its user of each."""
    async with fake_endpoint(answer("gone")) as endpoint:
        gone = endpoint.model()
    events = await run_agent(LlmAgent(endpoint=gone), overrides=PATIENT)
    assert error_of(check_run(events)).code == "LLM_UNAVAILABLE"
    assert error_of(check_run(events)).retryable
    assert sum(isinstance(one.message, AgentThinking) for one in events) == ATTEMPTS - 1
    assert check_run(events).usage is None


async def test_no_such_host() -> None:
    """A name that nobody knows, or that no resolver takes, is an endpoint that is away."""
    for host in ("model.invalid", "a" * 70 + ".invalid"):
        async with open_endpoint(ModelEndpoint(f"http://{host}/v1", "m")) as opened:
            with pytest.raises(ModelError) as caught:
                async with opened.ask({}):
                    pass
        assert caught.value.code == "LLM_UNAVAILABLE"


async def test_recovers(fast_clock: trio.testing.MockClock) -> None:
    """What passes within the attempts is not seen in the answer."""
    script = [refuse(429, headers={"retry-after": "1"}), refuse(503), Reply(body=b"", then="reset"), answer("There")]
    async with fake_endpoint(*script) as endpoint:
        last = await ended(endpoint)
    assert (last.status, last.final_response, len(endpoint.asked)) == ("success", "There", 4)
    assert len(last.usage or ()) == 2, "the one that answered, and the one that had begun to"


@pytest.mark.parametrize("header", [{"retry-after": "20"}, {"retry-after-ms": "20000"}])
async def test_retry_after(fast_clock: trio.testing.MockClock, header: dict[str, str]) -> None:
    """A server that names a time is not asked before it."""
    async with fake_endpoint(refuse(429, headers=header), answer("ok")) as endpoint:
        before = trio.current_time()
        assert (await ended(endpoint)).status == "success"
        assert trio.current_time() - before >= 20


async def test_no_attempt_behind_the_deadline(fast_clock: trio.testing.MockClock) -> None:
    """A wait that would outlast the run is not begun: the user gets the true reason at once."""
    async with fake_endpoint(refuse(429, headers={"retry-after": "25"})) as endpoint:
        agent = LlmAgent(endpoint=endpoint.model())
        last = check_run(await run_agent(agent, overrides={"timing.run_timeout_s": 20.0}))
    assert (error_of(last).code, len(endpoint.asked)) == ("LLM_UNAVAILABLE", 1)


async def test_jitter_spreads_the_attempts() -> None:
    """Waits between attempts are random, grow, and stay below their bound."""
    error = ModelError("LLM_UNAVAILABLE", "busy", again=True)
    waits = [
        [agent_module._wait_s(error, attempt, trio.current_time() + 1000) or 0.0 for _ in range(200)]
        for attempt in range(1, ATTEMPTS)
    ]
    for attempt, values in enumerate(waits):
        bound = BACKOFF_S * 2**attempt
        assert 0 <= min(values) < bound / 4
        assert bound / 2 < max(values) <= bound


# Trouble in the middle.


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"message": "The server had an error", "type": "server_error"}, "LLM_UNAVAILABLE"),
        ({"message": "Overloaded", "code": 529}, "LLM_UNAVAILABLE"),
        ({"message": "no", "code": 400}, "LLM_REFUSED"),
        ({"message": "prompt is too long"}, "LLM_CONTEXT_TOO_LONG"),
        ({"message": "something"}, "LLM_BROKEN"),
        ("something", "LLM_BROKEN"),
    ],
)
async def test_an_error_in_the_middle(error: object, code: str) -> None:
    """An error that is told in the middle of an answer ends the run with its reason; what was said stays said."""
    async with fake_endpoint(stream(say("Half an ans"), [{"error": error}])) as endpoint:
        events = await run_agent(LlmAgent(endpoint=endpoint.model()))
        last = check_run(events)
    assert (error_of(last).code, len(endpoint.asked)) == (code, 1)
    assert last.usage is not None
    assert list(texts(events).values()) == ["Half an ans"]


async def test_an_error_before_the_first_word(fast_clock: trio.testing.MockClock) -> None:
    """An overload that is told in place of the first word is tried again, for nobody has read anything yet."""
    overloaded = stream([chunk({"role": "assistant"})], [{"error": {"message": "overloaded_error"}}])
    async with fake_endpoint(overloaded, answer("ok")) as endpoint:
        assert (await ended(endpoint)).final_response == "ok"


@pytest.mark.parametrize("reply", [stream(say("Half"), done=False), stream(think("Hm"), done=False)])
async def test_never_again_when_something_was_told(reply: Reply) -> None:
    """A step of which the user has read or seen anything is never asked for a second time."""
    async with fake_endpoint(reply) as endpoint:
        assert error_of(await ended(endpoint)).code == "LLM_BROKEN"
    assert len(endpoint.asked) == 1


def bare(*parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return chunks with nothing in them that need not be there: fewer bytes at which to break off."""
    return [{"choices": [{k: v for k, v in one["choices"][0].items() if v}]} for part in parts for one in part]


def every(step: int) -> int:
    """Return how many bytes lie between two breaks: as few as *step* in a full campaign."""
    return round(step / EFFORT)


BROKEN = encode(bare(think("Hm"), say("Grüße"), call("add", '{"a":1,', '"b":2}'), finish("tool_calls")))
DONE = b"data: [DONE]\n\n"


@pytest.mark.heavy
@pytest.mark.parametrize(("then", "step"), [("closed", every(1)), ("end", every(2)), ("reset", every(2))])
async def test_broken_off_at_any_byte(fast_clock: trio.testing.MockClock, then: Any, step: int) -> None:
    """At whichever byte a stream breaks off: it is an answer when its end was there, else an error, and never more."""
    async with fake_endpoint(answer("ok")) as endpoint:
        agent = LlmAgent(tools=[add], endpoint=endpoint.model())
        async with open_session({"mine": agent}, PATIENT) as (_, session):
            sizes = range(random.randrange(step), len(BROKEN) + 1, step)
            for size in sorted({*sizes, *range(len(BROKEN) - len(DONE) - 4, len(BROKEN) + 1)}):
                broken = Reply(body=BROKEN, stop_at=size, then=then)
                # An end that is proper ends an event, too, though no blank line does.
                complete = size >= len(BROKEN) - len(DONE) - (2 if then == "end" else 0)
                endpoint.script.clear()
                endpoint.script.extend([broken] * (1 if complete else ATTEMPTS) + [answer("ok")])
                run = await session.start("?", agent="mine")
                last = check_run([one async for one in run if one.type != "thread_created"])
                if last.status == "error":
                    assert error_of(last).code == "LLM_BROKEN", size
                if then != "reset":  # which may overtake bytes that were sent before it
                    assert (last.status, last.final_response) == (("success", "ok") if complete else ("error", None))
        await endpoint.until("open", 0)


async def test_silence(fast_clock: trio.testing.MockClock) -> None:
    """A server that goes silent is left after 90 seconds, before its answer as in the middle of it."""
    for reply in (answer("never", first_after_s=10_000), stream(say("Half"), done=False, then="hang")):
        async with fake_endpoint(reply) as endpoint:
            before = trio.current_time()
            error = error_of(await ended(endpoint))
            assert 90 <= trio.current_time() - before < 200
            assert (error.code, error.retryable, len(endpoint.asked)) == ("LLM_UNAVAILABLE", True, 1)
            await endpoint.until("open", 0)


async def test_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer without an end, and a conversation that no server takes, are stopped by their bytes."""
    async with fake_endpoint(stream(say(*["x" * 100] * 200), finish())) as endpoint:
        monkeypatch.setattr(listening, "MAX_ANSWER_BYTES", 10_000)
        assert error_of(await ended(endpoint)).code == "LLM_BROKEN"
        await endpoint.until("open", 0)
        monkeypatch.setattr(endpoint_module, "MAX_REQUEST_BYTES", 10)
        assert error_of(await ended(endpoint)).code == "LLM_CONTEXT_TOO_LONG"
    assert len(endpoint.asked) == 1


# Cancelling.


@pytest.mark.parametrize(
    "reply",
    [
        answer("never", first_after_s=600),
        stream(say("Half"), done=False, then="hang"),
        stream(think("Hm"), used(5, 1), done=False, then="hang"),
        answer(*["word "] * 200, piece_bytes=50, pause_s=0.05),
    ],
)
async def test_cancel_closes_the_socket(reply: Reply) -> None:
    """A stop closes the connection at once, wherever the answer is; the usage is told, known or not."""
    async with fake_endpoint(reply) as endpoint:
        agent = LlmAgent(endpoint=endpoint.model())
        async with open_session({"mine": agent}) as (_, session):
            run = await session.start("Go", agent="mine")
            await endpoint.until("asked", 1)
            await trio.sleep(0.05)
            assert await session.stop(run.run_id) == "cancelled"
            await endpoint.until("left", 1)
            await endpoint.until("open", 0)
            last = check_run([one async for one in run if one.type != "thread_created"])
    assert last.usage is not None
    (usage,) = last.usage
    assert (usage.provider, usage.model) == ("127.0.0.1", MODEL)
    assert usage.input_tokens in (None, 5)


async def test_many_cancels_leave_nothing() -> None:
    """A hundred runs that are stopped at random moments leave no socket, and the next one is answered."""
    dice = random.Random(7)
    slowly = answer(*["word "] * 20, piece_bytes=100, pause_s=0.01)
    async with fake_endpoint(slowly) as endpoint:
        agent = LlmAgent(endpoint=endpoint.model())
        async with open_session({"mine": agent}, {"limits.max_runs_per_user": 100}) as (_, session):
            before = open_files()

            async def run_and_stop() -> None:
                run = await session.start("Go", agent="mine")
                await trio.sleep(dice.uniform(0, 0.3))
                await session.stop(run.run_id)

            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(run_and_stop)
            await endpoint.until("open", 0)
            assert open_files() == before
            endpoint.script[0] = answer("still here")
            last = await (await session.start("Go", agent="mine")).result()
    assert last.final_response == "still here"


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# The key.


def everything(*things: object) -> str:
    """Return all that can be seen of things: texts, reprs and, of exceptions, the locals of every frame but ours."""
    shown = []
    for thing in things:
        shown += [str(thing), repr(thing)]
        if isinstance(thing, BaseException):
            frames = [frame for frame, _ in traceback.walk_tb(thing.__traceback__)]
            shown += [repr(frame.f_locals) for frame in frames if frame.f_code.co_filename != __file__]
            shown += [repr(thing.__dict__)]
            shown += [everything(inner) for inner in (thing.__cause__, thing.__context__) if inner is not None]
    return "\n".join(shown)


ECHOES = {
    "refusal": refuse(401, f"Incorrect API key provided: {KEY}."),
    "masked": refuse(401, f"Incorrect API key provided: {KEY[:8]}****{KEY[-4:]}."),
    "page": Reply(body=f"<p>{KEY}</p>".encode(), status=500, content_type="text/html"),
    "plain": Reply(body=f"unknown key {KEY}".encode(), status=403, content_type="text/plain"),
    "detail": Reply(body=json.dumps({"detail": KEY}).encode(), status=422, content_type="application/json"),
    "inside": stream(say("a"), [{"error": {"message": KEY, "code": KEY}}]),
    "text": answer("Your key is ", KEY[:10], KEY[10:], "."),
    "one by one": answer(*f"<{KEY}>"),
    "thought": stream(think("It is ", KEY[:3], KEY[3:]), say("ok"), finish()),
    "model": stream([chunk({"content": "ok"}, "stop", model=KEY)]),
    "tool": stream(call(KEY, json.dumps({"a": KEY})), finish("tool_calls")),
    "arguments": stream(call("add", json.dumps({"a": KEY})), finish("tool_calls")),
    "no json": Reply(body=f"data: {KEY}\n\n".encode()),
    "type": Reply(body=b"", content_type=f"text/html{KEY}"),
    "location": Reply(body=b"", status=302, headers={"location": f"http://h/?{KEY}"}),
}


@pytest.mark.parametrize("name", ECHOES)
async def test_an_echo_of_the_key(
    name: str, fast_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An endpoint that says the key back, anywhere at all, does not bring it into events, log lines or errors."""
    caplog.set_level(logging.DEBUG, "netra_ws")  # the library below logs headers that come, though none that go
    caplog.set_level(logging.INFO)
    async with fake_endpoint(ECHOES[name]) as endpoint:
        agent = LlmAgent(tools=[add], endpoint=endpoint.model(), max_steps=2)
        events = await run_agent(agent, overrides=PATIENT)
        check_run(events)
    assert endpoint.asked[0].headers["authorization"] == f"Bearer {KEY}"
    said = "".join(str(one.fields.get("content") or one.fields.get("reasoning") or "") for one in events)
    assert_hidden(caplog.records, *(dict(one.fields) for one in events), said)


def assert_hidden(records: Sequence[logging.LogRecord], *things: object) -> None:
    seen = everything(*things)
    for record in records:
        seen += f"\n{record.getMessage()}\n{record.__dict__}"
        if record.exc_info and record.exc_info[1] is not None:
            seen += everything(record.exc_info[1])
    for piece in (KEY, KEY[:8], KEY[-8:]):
        assert piece not in seen, seen[max(0, seen.index(piece) - 200) :][:400]


@pytest.mark.parametrize(
    "reply",
    [refuse(401, KEY), refuse(500), Reply(body=b"", then="reset"), stream(say("a"), done=False, then="reset")],
)
async def test_errors_hold_no_key(reply: Reply) -> None:
    """Not even a traceback with all local variables, nor what an error was raised from, shows the key."""
    async with fake_endpoint(reply) as endpoint, open_endpoint(endpoint.model()) as opened:
        with pytest.raises(ModelError) as caught:
            async with opened.ask({"model": "m"}) as chunks:
                while await chunks.next() is not None:
                    pass
                raise ModelError("LLM_BROKEN", "it ended")
    assert KEY not in everything(caught.value, opened, endpoint.model())
    assert caught.value.__context__ is None


async def test_nobody_there_holds_no_key() -> None:
    """Nor does the error of a connection that could not be made."""
    async with fake_endpoint(answer("gone")) as endpoint:
        gone = endpoint.model()
    async with open_endpoint(gone) as opened:
        with pytest.raises(ModelError) as caught:
            async with opened.ask({}):
                pass
    assert KEY not in everything(caught.value)


def test_the_endpoint_shows_no_key() -> None:
    """The repr of an endpoint has the host and the model alone; a wrong one is refused without being quoted."""
    shown = repr(ModelEndpoint(f"https://h/v1?key={KEY}", "m", KEY, proxy=f"http://u:{KEY}@p"))
    assert shown == "ModelEndpoint(base_url='h', model='m', proxy='p')"
    for wrong in (
        {"base_url": f"ftp://{KEY}"},
        {"base_url": f"http://u:{KEY}@h"},
        {"base_url": f"http://[{KEY}"},
        {"base_url": KEY},
        {"api_key": f"{KEY}\n"},
        {"api_key": f"{KEY} "},
        {"api_key": f"{KEY}ü"},
        {"proxy": KEY},
    ):
        with pytest.raises(ConfigError) as caught:
            ModelEndpoint(**{"base_url": "http://h", "model": "m", **wrong})  # type: ignore[arg-type]
            pytest.fail(f"{wrong} was taken")
        assert KEY not in str(caught.value)


# The way there.


async def test_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies are not taken from the environment, where nobody has meant them for the key."""
    async with fake_endpoint(answer("caught")) as proxy, fake_endpoint(answer("ok")) as endpoint:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert (await ended(endpoint)).final_response == "ok"
    assert proxy.asked == []


async def test_a_proxy_that_was_named() -> None:
    """A proxy that was named is gone through."""
    async with fake_endpoint(answer("ok")) as proxy:
        endpoint = ModelEndpoint("http://model.invalid/v1", "m", KEY, proxy=proxy.url.removesuffix("/v1"))
        last = check_run(await run_agent(LlmAgent(endpoint=endpoint)))
    assert last.final_response == "ok"
    assert proxy.asked[0].target == "http://model.invalid/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("", "/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1?api-version=7", "/v1/chat/completions?api-version=7"),
        ("/v1#x", "/v1/chat/completions"),
    ],
)
async def test_base_urls(path: str, target: str) -> None:
    """The path of the request stands behind that of the base URL, whose query stays."""
    async with fake_endpoint(answer("ok")) as endpoint:
        model = endpoint.model(base_url=endpoint.url.removesuffix("/v1") + path, api_key=None)
        check_run(await run_agent(LlmAgent(endpoint=model)))
    assert endpoint.asked[0].target == target
    assert "authorization" not in endpoint.asked[0].headers


async def test_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, fast_clock: trio.testing.MockClock) -> None:
    """A certificate of an unknown authority is refused before the key is sent; one that is named is trusted."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    try:
        async with fake_endpoint(answer("ok"), tls=context) as endpoint:
            error = error_of(await ended(endpoint))
            assert (error.code, error.retryable, endpoint.asked) == ("LLM_UNAVAILABLE", False, [])
            assert "certificate" in error.message
            endpoint_module._trust.cache_clear()
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
            assert (await ended(endpoint)).final_response == "ok"
    finally:
        endpoint_module._trust.cache_clear()
