"""The checks find what they are for."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
from trio.testing import MockClock

from netra_ws import Run
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import AgentMessage
from netra_ws.testing import check_no_gap_no_double, check_run, open_test_server, texts


async def speaker(run: Run) -> str:
    await run.think("now", delta=True)
    await run.think(" then", delta=True)
    async with run.tool("look") as call:
        call.results = 1
    for piece in ("one ", "two ", "three"):
        await run.say(piece)
    return run.said


async def conversation() -> tuple[list[Heard], list[Heard]]:
    """Return what a client heard of a run, and what was recorded."""
    async with open_test_server({"speaker": speaker}) as server:
        async with server.connect() as session:
            events = session.events()
            await (await session.start("go")).result()
        return [one async for one in events], await server.recorded()


def of(events: list[Heard], type_name: str, phase: str | None = None) -> int:
    """Return where the second event of a type stands, or the only one."""
    found = [n for n, one in enumerate(events) if one.type == type_name and phase in (None, one.fields.get("phase"))]
    return found[min(1, len(found) - 1)]


def without(type_name: str, phase: str | None = None) -> Callable[[list[Heard]], list[Heard]]:
    def change(events: list[Heard]) -> list[Heard]:
        at = of(events, type_name, phase)
        return events[:at] + events[at + 1 :]

    return change


def twice(type_name: str) -> Callable[[list[Heard]], list[Heard]]:
    def change(events: list[Heard]) -> list[Heard]:
        at = of(events, type_name)
        return events[: at + 1] + events[at:]

    return change


def other_text(events: list[Heard]) -> list[Heard]:
    at = of(events, "agent_message", "delta")
    message = events[at].message
    assert isinstance(message, AgentMessage)
    changed = attrs.evolve(events[at], message=attrs.evolve(message, content=message.content[:-1]))
    return [*events[:at], changed, *events[at + 1 :]]


def other_field(events: list[Heard]) -> list[Heard]:
    at = of(events, "tool_completed")
    changed = attrs.evolve(events[at], fields={**events[at].fields, "results": 2})
    return [*events[:at], changed, *events[at + 1 :]]


async def test_what_is_well_passes(autojump_clock: MockClock) -> None:
    """A client that nothing happened to heard all, and its texts are what was said."""
    heard, recorded = await conversation()
    check_no_gap_no_double(heard, recorded)
    check_no_gap_no_double(heard, heard)
    assert list(texts(heard).values()) == ["one two three"]
    assert check_run(heard).final_response == "one two three"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (without("tool_completed"), "durable events were not heard"),
        (without("agent_completed"), "durable events were not heard"),
        (without("agent_message", "delta"), "they differ at"),
        (without("agent_thinking", "delta"), "they differ at"),
        (twice("tool_executing"), "was heard behind"),
        (other_text, "they differ at 7"),
        (other_field, "was heard otherwise"),
        (lambda events: events[::-1], "was heard behind"),
    ],
)
async def test_what_is_not_well_is_told(
    autojump_clock: MockClock, change: Callable[[list[Heard]], list[Heard]], complaint: str
) -> None:
    """An event or a piece of text that is missing, doubled, changed or out of order fails the check."""
    heard, recorded = await conversation()
    with pytest.raises(AssertionError, match=complaint):
        check_no_gap_no_double(change(heard), recorded)


async def test_what_was_never_said_is_told(autojump_clock: MockClock) -> None:
    """An event that the witness does not know fails the check."""
    heard, recorded = await conversation()
    with pytest.raises(AssertionError, match="the witness does not know"):
        check_no_gap_no_double(heard, recorded[:-1])


async def test_who_skips_may_miss_pieces_but_not_invent_them(autojump_clock: MockClock) -> None:
    """For a reader that fell off the memory ring a hole in a text is none, and a wrong text still is."""
    heard, recorded = await conversation()
    check_no_gap_no_double(without("agent_message", "delta")(heard), recorded, skipping=True)
    at = of(heard, "agent_message", "delta")
    heard[at] = attrs.evolve(heard[at], message=attrs.evolve(heard[at].message, content="TWO"))
    with pytest.raises(AssertionError, match="they differ at"):
        check_no_gap_no_double(heard, recorded, skipping=True)
