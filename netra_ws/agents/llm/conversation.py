"""What a model is told: the instructions, what was said in the thread, the question, and what tools have found.

It is made of *blocks* that stay or go as a whole: a question of an earlier run with its answers; a step of this run
with its tool calls and every result. So no call is ever without its result, whatever the budget cuts away: a tool's
end is one of ``ok``, ``error``, ``denied``, ``timeout`` and ``cancelled``, and each of them is told to the model.
Calls of earlier runs are not told again; what came of them is in the answers.

Tokens are estimated, since each model counts in its own way: four ASCII characters or one other character are a
token, an image is ``IMAGE_TOKENS``, a message ``MESSAGE_TOKENS`` more. For English and for code that is a little
more than models count, for Chinese about as much, for Greek or Russian up to twice as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import orjson

from netra_ws.history.stores.contract import MessageRow
from netra_ws.protocol.commands import Attachment

from ..run import Run
from .attachments import IMAGE_TOKENS, content_of, named
from .chunks import AskedCall

Message = Mapping[str, Any]

MESSAGE_TOKENS = 4
#: Messages of the thread that are read at first, and at most; most budgets are full before.
FIRST_MESSAGES, HISTORY_MESSAGES = 16, 256
#: A single text of a tool or an attachment gets at most this part of the budget.
PART = 4


def tokens_in(text: str) -> int:
    """Estimate the tokens of a text."""
    ascii_chars = len(text.encode("ascii", "ignore"))
    return -(-ascii_chars // 4) + len(text) - ascii_chars


def clip(text: str, tokens: int) -> str:
    """Return *text*, or its beginning that has about so many *tokens*, and a word about the rest."""
    if tokens_in(text) <= tokens:
        return text
    # The beginning alone tells which characters it is made of; one pass more corrects what the rest is like.
    kept = text[: 4 * tokens]
    while (found := tokens_in(kept)) > tokens:
        kept = kept[: min(len(kept) - 1, len(kept) * tokens // found)]
    return f"{kept}\n[… {len(text) - len(kept)} more characters are left out]"


@attrs.frozen
class Block:
    """Messages that stay or go together."""

    messages: Sequence[Message]
    tokens: int

    @classmethod
    def of(cls, *messages: Message) -> Block:
        return cls(messages, sum(_tokens_of(message) for message in messages))


def _tokens_of(message: Message) -> int:
    content = message.get("content") or ""
    parts = content if isinstance(content, list) else [{"text": content}]
    tokens = sum(tokens_in(part["text"]) if "text" in part else IMAGE_TOKENS for part in parts)
    if calls := message.get("tool_calls"):
        tokens += tokens_in(orjson.dumps(calls).decode())
    return tokens + MESSAGE_TOKENS


@attrs.define
class Conversation:
    """What one run tells the model, step by step.

    Attributes:
        budget: Tokens of everything that is told at once.
    """

    budget: int
    _instructions: str
    _question: Block
    _history: Sequence[Block] = ()
    _steps: list[Block] = attrs.field(factory=list)

    def add_exchange(self, text: str, calls: Sequence[AskedCall], results: Sequence[str]) -> None:
        """Add a step in which the model has asked for tools, with what each of them answered, in the same order."""
        asked = {
            "role": "assistant",
            "content": _clean(text) or None,
            "tool_calls": [
                {
                    "id": _clean(call.call_id),
                    "type": "function",
                    "function": {"name": _clean(call.name), "arguments": _arguments(call)},
                }
                for call in calls
            ],
        }
        answers = (
            {"role": "tool", "tool_call_id": _clean(call.call_id), "content": clip(_clean(result), self.budget // PART)}
            for call, result in zip(calls, results, strict=True)
        )
        self._steps.append(Block.of(asked, *answers))

    def add_answer(self, text: str) -> None:
        """Add what the model has said, where the conversation goes on behind it."""
        if text:
            self._steps.append(Block.of({"role": "assistant", "content": _clean(text)}))

    def add_user(self, texts: Iterable[str]) -> None:
        """Add what the user has said meanwhile."""
        for text in texts:
            self._steps.append(Block.of({"role": "user", "content": _clean(text)}))

    def messages(self, reserved: int = 0) -> list[Message]:
        """Return what fits into the budget: instructions, question and the last step always, of the rest the newest.

        Args:
            reserved: Tokens of what is sent besides, such as the descriptions of tools.
        """
        fixed = Block.of({"role": "system", "content": self._instructions}).tokens if self._instructions else 0
        room = self.budget - reserved - fixed - self._question.tokens
        steps: list[Block] = []
        for block in reversed(self._steps):
            if steps and block.tokens > room:
                break
            steps.insert(0, block)
            room -= block.tokens
        history: list[Block] = []
        if len(steps) == len(self._steps):  # what is newer went first
            for block in reversed(self._history):
                if block.tokens > room:
                    break
                history.insert(0, block)
                room -= block.tokens
        told: list[Message] = [{"role": "system", "content": self._instructions}] if self._instructions else []
        for block in (*history, self._question, *steps):
            told.extend(block.messages)
        return _joined(told)


async def open_conversation(run: Run, instructions: str, budget: int) -> Conversation:
    """Return the conversation with the question of *run* and what was said before it in its thread.

    A sub-run has no history: it works on what its parent has told it.
    """
    history = [] if run.request.parent_run_id is not None else await _history(run, budget)
    text = _clean(run.text) if run.jsonl_logs is None else f"{_clean(run.text)}\n\n[Usage logs came along.]"
    content = content_of(text, run.attachments, lambda inside: clip(_clean(inside), budget // PART))
    return Conversation(
        budget=budget,
        instructions=_clean(instructions),
        question=Block.of({"role": "user", "content": content}),
        history=history,
    )


async def _history(run: Run, budget: int) -> list[Block]:
    # Messages may be large, and budgets small: only a thread of short ones is read far back.
    limit = FIRST_MESSAGES
    while True:
        rows = await run.thread.history(limit)
        blocks = blocks_of(rows, run.run_id, budget)
        full = sum(block.tokens for block in blocks) > budget and any(row.run_id == run.run_id for row in rows)
        if full or len(rows) < limit or limit >= HISTORY_MESSAGES:
            return blocks
        limit *= 4


def blocks_of(rows: Sequence[MessageRow], run_id: str, budget: int) -> list[Block]:
    """Return what was said before the run *run_id* began, oldest first, one block for each earlier run.

    The first one returned may be above the budget; those before it are not looked at.

    Messages that wait in the queue behind it stand in the thread already, and the answers of those before it stand
    behind its own question: so they are put together by their runs, and what was asked later is left out.
    """
    mine = min((row.seq for row in rows if row.run_id == run_id), default=None)
    runs: dict[str, list[MessageRow]] = {}
    for row in rows:
        if row.run_id != run_id and row.content.strip():
            runs.setdefault(row.run_id or row.message_id, []).append(row)
    blocks: list[Block] = []
    for said in reversed(runs.values()):
        if budget < 0:
            break
        if mine is not None and said[0].seq > mine and said[0].role == "user":
            continue
        if said[0].role == "assistant":
            # Its question is out of sight, and models expect a user's word first.
            continue
        blocks.insert(0, Block.of(*({"role": row.role, "content": _clean(_content(row))} for row in said)))
        budget -= blocks[0].tokens
    return blocks


def _content(row: MessageRow) -> str:
    return "\n".join([row.content, *(named(Attachment(**dict(one))) for one in row.attachments)])


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Join texts of one speaker that stand side by side: some servers insist on question and answer in turns."""
    told: list[Message] = []
    for message in messages:
        before = told[-1] if told else {}
        both = (before.get("content"), message.get("content"))
        plain = not before.get("tool_calls") and not message.get("tool_calls")
        if (
            before.get("role") == message["role"]
            and plain
            and message["role"] in ("user", "assistant")
            and all(isinstance(content, str) for content in both)
        ):
            told[-1] = {"role": message["role"], "content": "\n\n".join(map(str, both))}
        else:
            told.append(message)
    return told


def _arguments(call: AskedCall) -> str:
    """Return arguments that a server can read: some parse them again, and fail on what their own model has written."""
    try:
        if isinstance(orjson.loads(call.arguments), dict):
            return _clean(call.arguments)
    except orjson.JSONDecodeError:
        pass
    return orjson.dumps({"arguments": _clean(call.arguments)}).decode() if call.arguments.strip() else "{}"


def _clean(text: str) -> str:
    """Return *text* without lone surrogates, which a store keeps and JSON does not carry."""
    return text.encode(errors="replace").decode()
