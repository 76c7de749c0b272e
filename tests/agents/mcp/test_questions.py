"""Questions of MCP servers to the user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from netra_ws import Run, Tool
from netra_ws.protocol.events import InputReceived, InputRequired, ToolCompleted
from netra_ws.testing import DECLINE, check_run, open_session

from .kit import heard_of, plain, until, using

FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


async def ask(run: Run, tools: Mapping[str, Tool]) -> Any:
    """Have the server ask."""
    return await tools["inquire"](run)


@pytest.mark.parametrize(
    ("answer", "said"),
    [({"name": "Ada"}, {"action": "accept", "content": {"name": "Ada"}}), (DECLINE, {"action": "decline"})],
)
async def test_a_question(answer: Any, said: Any, tmp_path: Path) -> None:
    """A server that may ask gets the user's answer in the middle of a call, and the question names the server."""
    events = await heard_of(plain(tmp_path, may_ask=True), work=ask, answers=[answer])
    assert check_run(events).final_response == said
    required = next(one.message for one in events if isinstance(one.message, InputRequired))
    assert (required.prompt, required.schema) == ("plain: What is your name?", FORM)


async def test_a_server_that_may_not_ask(tmp_path: Path) -> None:
    """A server that was not allowed to ask is declined, and the user sees nothing of it."""
    events = await heard_of(plain(tmp_path), work=ask)
    assert check_run(events).final_response == "error"
    assert not [one for one in events if isinstance(one.message, InputRequired)]


@pytest.mark.parametrize("form", ["pattern", "unfit", "large", "link", "twice"])
async def test_questions_that_are_not_asked(form: str, tmp_path: Path) -> None:
    """Forms with regular expressions, no forms at all, too large ones, links, and a second question are declined."""

    async def work(run: Run, tools: Mapping[str, Tool]) -> Any:
        return await tools["inquire"](run, form=form)

    events = await heard_of(plain(tmp_path, may_ask=True), work=work, answers=[{}] if form == "twice" else [])
    assert check_run(events).final_response == {"action": "decline"}
    assert sum(isinstance(one.message, InputRequired) for one in events) == (form == "twice")


async def test_a_call_waits_for_a_person(tmp_path: Path) -> None:
    """The time in which a person thinks does not count as the call's."""
    agent = using(plain(tmp_path, may_ask=True, timeout_s=1.0), work=ask)
    async with open_session({"agent": agent}) as (_, session):
        run = await session.start("x", agent="agent")
        await until(lambda: session.pending_inputs)
        await trio.sleep(1.5)
        await session.answer(session.pending_inputs[0]["input_id"], {"name": "Ada"})
        assert (await run.result()).status == "success"


async def test_a_question_goes_with_its_call(tmp_path: Path) -> None:
    """A question that is open when its call is answered, or its run is stopped, is closed."""

    async def work(run: Run, tools: Mapping[str, Tool]) -> Any:
        said = await tools["inquire"](run, form="forgotten")
        await tools["inquire"](run)
        return said

    async with open_session({"agent": using(plain(tmp_path, may_ask=True), work=work)}) as (_, session):
        run = await session.start("x", agent="agent")
        await until(lambda: session.pending_inputs)
        first = session.pending_inputs[0]["input_id"]
        await until(lambda: [each for each in session.pending_inputs if each["input_id"] != first])
        assert len(session.pending_inputs) == 1
        assert await run.stop() == "cancelled"
        assert not session.pending_inputs
        events = [one async for one in run]
    check_run(events)
    ends = [one.message.status for one in events if isinstance(one.message, InputReceived)]
    assert ends == ["cancelled", "cancelled"]
    assert [one.message.status for one in events if isinstance(one.message, ToolCompleted)] == ["ok", "cancelled"]
