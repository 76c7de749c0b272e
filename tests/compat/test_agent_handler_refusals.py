"""The agent handler, what is refused or means nothing: bad calls, and topic 27, hostile payloads."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from netra_ws import Identity, Run
from netra_ws.compat.agent_handler import AgentMessageHandler
from netra_ws.errors import InvalidArgument
from netra_ws.testing import open_test_server

from .handling import Board, Spans, Witness, said


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("user", lambda handler: handler.handle_message(None, None, said())),
        ("user", lambda handler: handler.handle_message("", None, said())),
        ("user", lambda handler: handler.handle_message("a\0b", None, said())),
        ("user", lambda handler: handler.handle_message(object(), None, said())),
        ("user", lambda handler: handler.handle_start_agent(7, {"user_request": "x"})),
        ("message", lambda handler: handler.handle_message("ada", None, None)),
        ("message", lambda handler: handler.handle_message("ada", None, "chat")),
        ("message", lambda handler: handler.handle_message("ada", None, [said()])),
        ("payload", lambda handler: handler.handle_start_agent("ada", None)),
        ("payload", lambda handler: handler.handle_user_message("ada", "hello")),
    ],
)
async def test_calls_that_are_no_messages(autojump_clock: None, argument: str, call: Any) -> None:
    """A program's slip is told by name; nothing is stored, told or counted."""
    board = Board()
    async with open_test_server({"witness": Witness()}) as server:
        handler = AgentMessageHandler(server.server, manager=board)
        with pytest.raises(InvalidArgument) as caught:
            await call(handler)
        assert caught.value.argument == argument
        assert (board.calls, handler.get_stats()["errors"]) == ([], 0)
        assert await server.recorded("ada") == []


async def test_handlers_that_cannot_be_made(autojump_clock: None) -> None:
    """What a handler is made of is checked at once; a manager that lacks a method is named with what it lacks."""
    async with open_test_server({"witness": Witness()}) as server:
        wrong: list[tuple[str, dict[str, Any]]] = [
            ("manager", {"manager": object()}),
            ("manager", {"manager": attrs.evolve(Board(), sockets={}).notices}),
            ("sessions", {"sessions": 5}),
            ("agent", {"agent": "nobody"}),
            ("agent", {"agent": ["witness"]}),
            ("wait", {"wait": None}),
        ]
        for argument, how in wrong:
            with pytest.raises(InvalidArgument) as caught:
                AgentMessageHandler(server.server, **how)
            assert caught.value.argument == argument
        with pytest.raises(InvalidArgument, match="send_error"):
            AgentMessageHandler(server.server, manager=object())  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="server"):
            AgentMessageHandler(server)  # type: ignore[arg-type]


HOSTILE: list[Any] = [
    {"content": "hi", "thread_id": "'; DROP TABLE threads; --"},
    {"content": "hi", "thread_id": "../../etc/passwd"},
    {"content": "hi", "thread_id": "t" * 129},
    {"content": "hi", "thread_id": {"$ne": None}},
    {"content": "hi", "agent": "__class__"},
    {"content": "hi", "on_busy": "delete"},
    {"content": "hi", "timeout_s": -1},
    {"content": "hi", "context": ["no object"]},
    {"content": "hi\ud800"},
    {"content": "hi", "context": {"n": 2**80}},
    {"content": "x" * 2_000_000},
    {"content": "hi", "context": json.loads("[" * 900 + "]" * 900)},
    {"content": "hi", "context": {"deep": json.loads('{"a":' * 80 + "1" + "}" * 80)}},
    ["content"],
    "content",
]


@pytest.mark.parametrize("payload", HOSTILE, ids=range(len(HOSTILE)))
async def test_hostile_payloads_are_refused(autojump_clock: None, payload: Any) -> None:
    """Ids that are none, huge, deep and unspeakable values: refused, told in a few words, and nothing is stored."""
    board, spans = Board(), Spans()
    async with open_test_server({"witness": Witness()}) as server:
        handler = AgentMessageHandler(server.server, manager=board, sessions=spans.session)
        assert not await handler.handle_message("ada", None, {"type": "chat", "payload": payload})
        assert await server.recorded("ada") == []
        ((_, text),) = board.notices
        assert len(text) < 1200
        assert spans.opened == 0
        assert await handler.handle_message("ada", None, said())


async def test_hostile_texts_are_texts(autojump_clock: None) -> None:
    """Text of any signs goes through as it is; names of Python's and JavaScript's own machinery mean nothing."""
    seen: list[tuple[str, dict[str, Any], Identity]] = []

    async def tell(run: Run) -> None:
        seen.append((run.text, dict(run.context), run.identity))

    texts = ["'; DROP TABLE messages; --", "<script>alert(1)</script>", "a\x07b\x1b[31m", "{{7*7}} ${7*7} %s %n", "é🙂"]
    context = {"__proto__": {"operator": True}, "constructor": 1, "__class__": "x", "request": "mine", "user_id": "bob"}
    async with open_test_server({"tell": tell}) as server:
        handler = AgentMessageHandler(server.server)
        for text in texts:
            payload = {"content": text, "context": context, "user_id": "bob", "__proto__": {"user_id": "bob"}}
            assert await handler.handle_message("ada", None, {"type": "chat", "payload": payload, "user_id": "bob"})
        assert [text for text, _, _ in seen] == texts
        assert all(got == context for _, got, _ in seen)
        assert {identity for _, _, identity in seen} == {Identity("ada")}
        assert await server.recorded("bob") == []
