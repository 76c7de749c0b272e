"""The endpoint for tests speaks the protocol as the ``openai`` package understands it: an independent witness."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from .endpoint import (
    KEY,
    MODEL,
    FakeEndpoint,
    Reply,
    answer,
    call,
    fake_endpoint,
    finish,
    refuse,
    say,
    stream,
    used,
    whole,
)

#: The package leaves its generators to the garbage collector when it has read ``[DONE]``; Trio says so.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator:ResourceWarning", "ignore:Exception ignored in. <async_generator"
)

QUESTION: list[Any] = [{"role": "user", "content": "Hi"}]


@asynccontextmanager
async def client_of(endpoint: FakeEndpoint) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        httpx.AsyncClient(trust_env=False) as http,
        openai.AsyncOpenAI(base_url=endpoint.url, api_key=KEY, http_client=http, max_retries=0) as client,
    ):
        yield client


async def ask(endpoint: FakeEndpoint, **more: Any) -> list[Any]:
    async with client_of(endpoint) as client:
        chunks = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True, **more)
        return [chunk async for chunk in chunks]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("piece_bytes", [1, 17, None])
async def test_a_stream(line_end: str, piece_bytes: int | None) -> None:
    """Text, end and usage arrive there as they were written, and the request as it was made."""
    text = ["Grüße", ", \u2028", "漢字"]
    reply = answer(*text, prompt=7, completion=3, line_end=line_end, piece_bytes=piece_bytes)
    async with fake_endpoint(reply) as endpoint:
        chunks = await ask(endpoint, stream_options={"include_usage": True})
    assert [chunk.choices[0].delta.content for chunk in chunks[:3]] == text
    assert chunks[3].choices[0].finish_reason == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == ([], 7, 3)
    (asked,) = endpoint.asked
    assert (asked.method, asked.target) == ("POST", "/v1/chat/completions")
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body["messages"] == QUESTION


async def test_tool_calls() -> None:
    """The package's own accumulation finds the calls that were scripted."""
    script = stream(call("add", '{"a":', "1}"), call("sub", "{}", index=1, call_id="call_b"), finish("tool_calls"))
    async with (
        fake_endpoint(script) as endpoint,
        client_of(endpoint) as client,
        client.chat.completions.stream(model=MODEL, messages=QUESTION) as events,
    ):
        completion = await events.get_final_completion()
    found = completion.choices[0].message.tool_calls or []
    assert [(one.id, one.function.name, one.function.arguments) for one in found] == [
        ("call_a", "add", '{"a":1}'),
        ("call_b", "sub", "{}"),
    ]


async def test_not_streamed() -> None:
    """An answer that is not streamed is read, too."""
    async with fake_endpoint(whole({"content": "Hello"})) as endpoint, client_of(endpoint) as client:
        completion = await client.chat.completions.create(model=MODEL, messages=QUESTION)
    assert completion.choices[0].message.content == "Hello"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
async def test_refusals(status: int, error: type[openai.APIStatusError]) -> None:
    """Each refusal is the error that it stands for, with its message and code."""
    async with fake_endpoint(refuse(status, "no such thing", code="odd")) as endpoint:
        with pytest.raises(error) as caught:
            await ask(endpoint)
    assert (caught.value.status_code, caught.value.code) == (status, "odd")
    assert "no such thing" in caught.value.message


async def test_an_error_in_the_middle() -> None:
    """An error in the middle of a stream is one there, too."""
    async with fake_endpoint(stream(say("Half"), [{"error": {"message": "broken"}}])) as endpoint:
        with pytest.raises(openai.APIError, match="broken"):
            await ask(endpoint)


@pytest.mark.parametrize("then", ["closed", "reset"])
async def test_broken_off(then: Any) -> None:
    """A connection that breaks in the middle is seen to break."""
    reply = Reply(body=stream(say("Half"), used(1, 1)).body, stop_at=100, then=then)
    async with fake_endpoint(reply) as endpoint:
        # The reset may come before the head: then the package has a word of its own for it.
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError, openai.APIConnectionError)):
            await ask(endpoint)


async def test_the_other_side_goes() -> None:
    """Whoever leaves in the middle of an answer is counted, and nothing stays open."""
    async with fake_endpoint(stream(say("Half"), done=False, then="hang")) as endpoint:
        async with client_of(endpoint) as client:
            chunks = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
            await chunks.close()
        await endpoint.until("left", 1)
        await endpoint.until("open", 0)
