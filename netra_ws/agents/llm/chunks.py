"""One answer of a model, put together from the chunks of a chat completion as many servers send them.

What is tolerated, because some server does it: ``choices`` empty, null or absent (the chunk with the usage); the
reasoning as ``reasoning_content`` or ``reasoning``; content in parts; a whole ``message`` in place of deltas;
arguments as an object in place of its text; tool calls without an index, several at the same index, with an id at
each fragment or with none at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import attrs
import orjson

from netra_ws.errors import ModelError

#: Tool calls in one answer; a run may have 100 open.
MAX_CALLS = 64
#: Characters of text, of reasoning, and of the arguments of all calls of one answer, together.
MAX_CHARS = 4 * 2**20
#: Characters of a tool's name; a longer one is none of ours.
MAX_NAME = 256

_STRUCTURE = re.compile(r'[{}\[\]"\\]')


class Nonsense(ModelError):
    """What came is no part of a chat completion; the text says why, without quoting it."""

    def __init__(self, what: str) -> None:
        super().__init__("LLM_BROKEN", f"the model's server sent {what}", retryable=True)


@attrs.frozen
class Piece:
    """Something that can be told as soon as it comes."""

    kind: Literal["text", "reasoning"]
    text: str


@attrs.frozen
class AskedCall:
    """A tool call that the model asks for; *arguments* is JSON, if the model got it right."""

    call_id: str
    name: str
    arguments: str


@attrs.frozen
class TokenCounts:
    """What the server says that one answer used; None where it does not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


@attrs.define
class Answer:
    """An answer that grows with each chunk.

    Attributes:
        finish_reason: Empty until one came; from then on the answer is complete.
        counts: The last that was said; servers that say it more than once count on.
        model: What the server calls the model; empty while it has not said.
        began: Whether there was any choice.
    """

    finish_reason: str = ""
    counts: TokenCounts = TokenCounts()
    model: str = ""
    began: bool = False
    _text: list[str] = attrs.field(factory=list)
    _slots: list[_Slot] = attrs.field(factory=list)
    _chars: int = 0

    @property
    def text(self) -> str:
        return "".join(self._text)

    def take(self, chunk: Mapping[str, Any]) -> list[Piece]:
        """Add a chunk; return what of it can be told.

        Raises:
            Nonsense: It is none, or the answer grows too large.
        """
        if isinstance(usage := chunk.get("usage"), Mapping):
            self.counts = _counts(usage)
        if isinstance(model := chunk.get("model"), str) and model:
            self.model = model[:MAX_NAME]
        choice = _first_choice(chunk.get("choices"))
        if choice is None:
            return []
        self.began = True
        delta = choice.get("delta") or choice.get("message") or {}
        if not isinstance(delta, Mapping):
            raise Nonsense("a delta that is no object")
        pieces = list(self._pieces(delta))
        self._take_calls(delta.get("tool_calls"))
        if isinstance(reason := choice.get("finish_reason"), str) and reason:
            self.finish_reason = reason
        return pieces

    def calls(self) -> list[AskedCall]:
        """Return the tool calls in the order in which they began; every one has an id of its own."""
        used: set[str] = set()
        calls = []
        for number, slot in enumerate(self._slots):
            call_id = slot.call_id
            if not call_id or call_id in used:
                call_id = next(free for n in range(number, number + MAX_CALLS + 1) if (free := f"call_{n}") not in used)
            used.add(call_id)
            calls.append(AskedCall(call_id, slot.name, slot.arguments.strip() or "{}"))  # "" where there are none
        return calls

    def _pieces(self, delta: Mapping[str, Any]) -> Iterator[Piece]:
        thought = _joined(delta.get("reasoning_content")) or _joined(delta.get("reasoning"))
        if thought:
            self._count(thought)
            yield Piece("reasoning", thought)
        content = delta.get("content")
        for kind, text in _parts(content) if isinstance(content, list) else [("text", content)]:
            if isinstance(text, str) and text:
                yield self._said(text) if kind == "text" else self._thought(text)
        if isinstance(refusal := delta.get("refusal"), str) and refusal:
            # The model's own words in place of an answer: the user reads them like one.
            yield self._said(refusal)

    def _said(self, text: str) -> Piece:
        self._count(text)
        self._text.append(text)
        return Piece("text", text)

    def _thought(self, text: str) -> Piece:
        self._count(text)
        return Piece("reasoning", text)

    def _count(self, text: str) -> None:
        self._chars += len(text)
        if self._chars > MAX_CHARS:
            raise Nonsense(f"an answer of more than {MAX_CHARS} characters")

    def _take_calls(self, deltas: object) -> None:
        if deltas is None:
            return
        if not isinstance(deltas, list):
            raise Nonsense("tool calls that are no list")
        touched: list[_Slot] = []
        for delta in deltas:
            if not isinstance(delta, Mapping):
                raise Nonsense("a tool call that is no object")
            part = _CallPart.of(delta)
            self._count(part.name + part.arguments)
            slot = self._slot_for(part, touched)
            slot.add(part)
            touched.append(slot)

    def _slot_for(self, part: _CallPart, touched: list[_Slot]) -> _Slot:
        """Return the call that *part* goes on with, or a new one; two parts of one delta are two calls."""
        slot = self._candidate(part)
        if slot is None or slot in touched or slot.ended_before(part):
            if len(self._slots) >= MAX_CALLS:
                raise Nonsense(f"more than {MAX_CALLS} tool calls in one answer")
            slot = _Slot(part.index)
            self._slots.append(slot)
        return slot

    def _candidate(self, part: _CallPart) -> _Slot | None:
        if part.index is None:
            same_id = [slot for slot in self._slots if part.call_id and slot.call_id == part.call_id]
            return next(reversed(same_id or self._slots), None)
        # The newest: a server that counts no further than 0 opens several there.
        return next((slot for slot in reversed(self._slots) if slot.index == part.index), None)


@attrs.frozen
class _CallPart:
    """A fragment of a tool call, tidied up."""

    index: int | None
    call_id: str
    name: str
    arguments: str
    whole: bool

    @classmethod
    def of(cls, delta: Mapping[str, Any]) -> _CallPart:
        function = delta.get("function")
        function = function if isinstance(function, Mapping) else {}
        index, call_id, name = delta.get("index"), delta.get("id"), function.get("name")
        arguments = function.get("arguments")
        whole = isinstance(arguments, dict | list)
        if whole:
            arguments = orjson.dumps(arguments).decode()
        return cls(
            index=index if type(index) is int else None,
            call_id=call_id[:MAX_NAME] if isinstance(call_id, str) else "",
            name=name[:MAX_NAME] if isinstance(name, str) else "",
            arguments=arguments if isinstance(arguments, str) else "",
            whole=whole,
        )


@attrs.define(eq=False)
class _Slot:
    """One tool call while its fragments come."""

    index: int | None
    call_id: str = ""
    name: str = ""
    _arguments: list[str] = attrs.field(factory=list)
    _depth: int = 0
    _in_text: bool = False
    _escaped: bool = False
    _closed: bool = False

    @property
    def arguments(self) -> str:
        return "".join(self._arguments)

    def add(self, part: _CallPart) -> None:
        self.call_id = self.call_id or part.call_id
        if part.name != self.name:  # repeated at each fragment by some, never cut by anybody we know
            self.name = (self.name + part.name)[:MAX_NAME]
        if part.arguments:
            self._arguments.append(part.arguments)
            self._follow(part.arguments)

    def ended_before(self, part: _CallPart) -> bool:
        """Whether *part* cannot belong here, but begins another call.

        A fresh id alone proves nothing: some servers send one with each fragment. So the arguments so far have to be
        complete, or it has another tool's name.
        """
        another_id = bool(part.call_id and self.call_id and part.call_id != self.call_id)
        if part.whole and self._arguments:
            return True
        if self._closed:
            return another_id or bool(part.name and not (part.call_id and part.call_id == self.call_id))
        return another_id and bool(part.name and self.name and part.name != self.name)

    def _follow(self, piece: str) -> None:
        """Watch for the end of the object; never parses it again for each fragment, which would be quadratic."""
        start = 0
        if self._escaped and piece:
            self._escaped, start = False, 1
        for match in _STRUCTURE.finditer(piece, start):
            sign, at = match.group(), match.start()
            if at < start:
                continue  # behind a backslash
            if sign == "\\":
                start, self._escaped = at + 2, self._in_text and at + 1 == len(piece)
            elif sign == '"':
                self._in_text = not self._in_text
            elif not self._in_text:
                self._depth += 1 if sign in "{[" else -1
                self._closed = self._depth == 0


def _counts(usage: Mapping[str, Any]) -> TokenCounts:
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return TokenCounts(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), _count(cached))


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None


def _first_choice(choices: object) -> Mapping[str, Any] | None:
    if choices is None or choices == []:
        return None
    if not isinstance(choices, list) or not all(isinstance(choice, Mapping) for choice in choices):
        raise Nonsense("choices that are no list of objects")
    return next((choice for choice in choices if choice.get("index") in (0, None)), None)


def _parts(content: list[Any]) -> Iterator[tuple[str, str]]:
    for part in content:
        if isinstance(part, Mapping):
            kind = "reasoning" if part.get("type") == "thinking" else "text"
            yield kind, _joined(part.get("thinking" if kind == "reasoning" else "text"))


def _joined(value: object) -> str:
    """Return a text, or the texts of a list of parts; no deeper, for nobody nests them and hostile ones would."""
    if isinstance(value, list):
        texts = [part.get("text") for part in value if isinstance(part, Mapping)]
        return "".join(text for text in texts if isinstance(text, str))
    return value if isinstance(value, str) else ""
