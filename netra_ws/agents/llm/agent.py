"""The agent ``llm``: asks a model, does what it asks for with declared tools, and says what it says as it comes."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs
import trio

from netra_ws.errors import ConfigError, EventTooLarge, ModelError

from ..mcp import McpServer, open_mcp
from ..run import Run
from ..speech import cut
from ..tools import Tool
from .bounds import ATTEMPTS, BACKOFF_S, LAST_WORDS_S, MAX_BACKOFF_S, MAX_RETRY_AFTER_S
from .chunks import Answer, AskedCall, Piece
from .conversation import Conversation, Message, clip, open_conversation
from .endpoint import ModelEndpoint, OpenEndpoint, open_endpoint
from .listening import ChunkStream
from .offer import Offer
from .secrecy import Veil

logger = logging.getLogger(__name__)

#: What the agent itself writes into a request.
_OURS = frozenset({"messages", "model", "tools", "stream", "n"})


def _once(items: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(items)


def _options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    if taken := sorted(_OURS & options.keys()):
        raise ConfigError(f"LlmAgent: {taken[0]} is no option, the agent writes it itself")
    return MappingProxyType(dict(options))


@attrs.frozen(kw_only=True, eq=False)
class LlmAgent:
    """An agent that is a model behind an OpenAI-compatible chat-completions endpoint, with tools of yours.

    ::

        agent = LlmAgent(tools=[find_order, refund], instructions="You work for a shop …")

    Each step asks the model; its text is said and its reasoning told while they come. The tools that it asks for
    are used, several at once where it asks for several, and the next step tells it what they found. It is done when
    it asks for none. What the user says meanwhile is told to it before the next step, or makes one more.

    A step that failed is tried again within bounds, unless something of it was told already. Each step's usage is
    noted, however it ended.

    Attributes:
        tools: What the model may ask for; one that needs a permission is offered to users who have it.
        instructions: The system message; without one there is none.
        endpoint: Where the model is; by default that of the settings (``llm.base_url``).
        model: Another one than the endpoint's.
        max_steps: Most requests of one run; a model that still asks for tools then fails it with ``LLM_STEPS``.
        context_tokens: Budget of what the model is told at once, as estimated by ``conversation``: old messages
            are left out first. Leave room for the answer.
        options: More fields of the request, such as ``temperature``; None takes out one that is sent by default
            (``{"stream_options": None}`` for servers that do not know it).
        mcp: Servers whose tools the model is offered, too; each run has connections of its own to them.

    Raises:
        ConfigError: Two tools have the same name, or an option is one that the agent writes itself.
    """

    tools: Iterable[Tool] = attrs.field(default=(), converter=_once)
    instructions: str | None = None
    endpoint: ModelEndpoint | None = None
    model: str | None = None
    max_steps: int = attrs.field(default=16, validator=attrs.validators.ge(1))
    context_tokens: int = attrs.field(default=16_000, validator=attrs.validators.ge(1))
    options: Mapping[str, Any] = attrs.field(factory=dict, converter=_options)
    mcp: Iterable[McpServer] = attrs.field(default=(), converter=_once)
    _offer: Offer = attrs.field(init=False, repr=False)

    @_offer.default
    def _make_offer(self) -> Offer:
        return Offer.of(self.tools)

    async def __call__(self, run: Run) -> str:
        """Answer ``run.text`` and return the last message.

        Raises:
            ModelError: The model cannot be asked, or does not come to an end.
            AgentError: ``MCP_UNAVAILABLE``: an MCP server that is not optional cannot be had.
        """
        endpoint = self.endpoint or run.policy.model
        if endpoint is None:
            raise ModelError("LLM_UNAVAILABLE", "this server has no model: llm.base_url and llm.model are not set")
        names = [tool.name for tool in self._offer.toolbox]
        async with open_mcp(run, self.mcp, taken=names) as more, open_endpoint(endpoint) as opened:
            offer = Offer.of([*self.tools, *more]) if more else self._offer
            offer = offer.to(run.identity)
            return await self._converse(run, opened, offer)

    async def _converse(self, run: Run, opened: OpenEndpoint, offer: Offer) -> str:
        conversation = await open_conversation(run, self.instructions or "", self.context_tokens)
        said = ""
        for _ in range(self.max_steps):
            answer = await self._step(run, opened, offer, conversation)
            said = run.said or said
            calls = answer.calls()
            if calls:
                run.end_message()
                conversation.add_exchange(answer.text, calls, await _use(run, opened, offer, calls))
            steered = run.steered()
            if not calls and not steered:
                return _fitting(run, said)
            if not calls:
                run.end_message()
                conversation.add_answer(answer.text)
            conversation.add_user(steered)
        raise ModelError("LLM_STEPS", f"the model was not done after {self.max_steps} steps")

    async def _step(self, run: Run, opened: OpenEndpoint, offer: Offer, conversation: Conversation) -> Answer:
        """Ask once for the next step, or a few times while nothing of it was told."""
        body = self._body(opened.endpoint, offer, conversation.messages(offer.tokens))
        for attempt in itertools.count(1):
            step = _Step(run, opened, str(body["model"]))
            try:
                await step.listen(body)
            except ModelError as exc:
                logger.warning(
                    "run %s: model %s of %s: %s: %s",
                    run.run_id,
                    body["model"],
                    opened.endpoint.provider,
                    exc.code,
                    exc.text,
                )
                wait_s = _wait_s(exc, attempt, run.deadline)
                if step.told or wait_s is None:
                    raise
                reason = exc.text
            else:
                break
            await run.think(f"{reason[:1].upper()}{reason[1:]}. Asking again in {wait_s:.1f} s.")
            await trio.sleep(wait_s)
        return step.answer

    def _body(self, endpoint: ModelEndpoint, offer: Offer, messages: Sequence[Message]) -> dict[str, Any]:
        body = {
            "model": self.model or endpoint.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "tools": offer.functions or None,
            **self.options,
        }
        return {name: value for name, value in body.items() if value is not None}


async def _use(run: Run, opened: OpenEndpoint, offer: Offer, calls: Sequence[AskedCall]) -> list[str]:
    """Use the tools that one step asks for, all at once; return what each of them answers, in the same order."""
    results = [""] * len(calls)
    secrecy = opened.endpoint.secrecy

    async def use(place: int, call: AskedCall) -> None:
        name, arguments = secrecy.cover(call.name), secrecy.cover(call.arguments)
        results[place] = (await offer.toolbox.attempt(run, name, arguments)).for_model()

    async with trio.open_nursery() as nursery:
        for place, call in enumerate(calls):
            nursery.start_soon(use, place, call)
    return results


@attrs.define(eq=False)
class _Step:
    """One request, and what is told of its answer while it comes.

    Attributes:
        told: Whether the user has read anything of it.
    """

    run: Run
    opened: OpenEndpoint
    model: str
    answer: Answer = attrs.field(factory=Answer)
    told: bool = False
    _answering: bool = False
    _text: Veil = attrs.field(init=False)
    _thought: Veil = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        secrecy = self.opened.endpoint.secrecy
        self._text, self._thought = secrecy.veil(), secrecy.veil()

    async def listen(self, body: Mapping[str, Any]) -> None:
        """Ask, and tell the answer while it comes.

        Raises:
            ModelError: There is none, or it broke off.
        """
        used = True  # whoever is cancelled while the model works does not know what it has used
        try:
            async with self.opened.ask(body) as chunks:
                self._answering = True
                await self._follow(chunks)
        except ModelError:
            used = self._answering
            if self.told:
                await self._show_rest()
            raise
        finally:
            if used:
                self._note_usage()
        await self._check()

    async def _follow(self, chunks: ChunkStream) -> None:
        answer = self.answer
        with trio.CancelScope() as patience:
            while True:
                try:
                    chunk = await chunks.next()
                    pieces = [] if chunk is None else answer.take(chunk)
                except ModelError:
                    if answer.finish_reason:
                        break  # all of it was there
                    raise
                if chunk is None:
                    break
                for piece in pieces:
                    await self._tell(piece)
                if answer.finish_reason:
                    patience.deadline = min(patience.deadline, trio.current_time() + LAST_WORDS_S)
        if not answer.finish_reason and not (chunks.done and answer.began):
            text = "the model's server broke off before its answer was complete"
            raise ModelError("LLM_BROKEN", text, again=True)
        await self._show_rest()

    async def _show_rest(self) -> None:
        await self._think(self._thought.rest())
        await self._say(self._text.rest())
        self.run.speech.end_thought()

    async def _tell(self, piece: Piece) -> None:
        if piece.kind == "reasoning":
            await self._think(self._thought.show(piece.text))
        else:
            await self._say(self._text.show(piece.text))

    async def _think(self, text: str) -> None:
        for part in cut(text, self.run.policy.max_event_bytes):
            self.told = True
            await self.run.think(part, delta=True)

    async def _say(self, text: str) -> None:
        if not self.run.said:
            text = text.lstrip()  # models put line feeds in front, also where only a tool call follows
        if text:
            self.told = True
            await self.run.say(text)

    async def _check(self) -> None:
        answer = self.answer
        if answer.text.strip() or answer.calls():
            if answer.finish_reason == "length":
                # Behind the text, which looks complete otherwise.
                await self.run.think("The model stopped at its limit: this answer is cut off.")
            return
        if answer.finish_reason == "content_filter":
            raise ModelError("LLM_REFUSED", "the content filter of the model's server held the answer back")
        if answer.finish_reason == "length":
            text = "the model had no room left for an answer"
            raise ModelError("LLM_CONTEXT_TOO_LONG", text)

    def _note_usage(self) -> None:
        endpoint, counts = self.opened.endpoint, self.answer.counts
        model = endpoint.secrecy.cover(self.answer.model) or self.model
        named = model if model in endpoint.prices else self.model
        self.run.usage(
            endpoint.provider,
            model,
            input_tokens=counts.input_tokens,
            output_tokens=counts.output_tokens,
            cost_usd=endpoint.cost_usd(named, counts.input_tokens, counts.output_tokens, counts.cached_tokens or 0),
        )


def _wait_s(exc: ModelError, attempt: int, deadline: float) -> float | None:
    """Return the seconds before another attempt, or None where there is to be none."""
    if not exc.again or attempt >= ATTEMPTS:
        return None
    # Full jitter: those who were refused together do not come back together.
    jitter_s = random.uniform(0.0, min(BACKOFF_S * 2 ** (attempt - 1), MAX_BACKOFF_S))  # noqa: S311  (no secret)
    asked_s = exc.retry_after_s or 0.0
    wait_s = asked_s + jitter_s
    if asked_s > MAX_RETRY_AFTER_S or trio.current_time() + wait_s >= deadline:
        return None
    return wait_s


def _fitting(run: Run, said: str) -> str:
    """Return what was said, or its beginning where one event cannot carry all of it: it was told in pieces already."""
    try:
        run.check_size("the final response", said)
    except EventTooLarge:
        return clip(said, run.policy.max_event_bytes // 32)  # a character takes six bytes of JSON at most
    return said
