"""What a run says piece by piece is stored as a whole, also on the way."""

from __future__ import annotations

from collections.abc import Sequence

import trio
import trio.testing

from netra_ws import Identity, Run
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import AgentMessage, AgentThinking
from netra_ws.testing import check_run, make_settings, open_session, run_agent


def fulls(events: Sequence[Heard]) -> list[str]:
    """Return the whole texts among events, in order."""
    return [e.message.content for e in events if isinstance(e.message, AgentMessage) and e.message.phase == "full"]


async def test_a_long_message_is_stored_on_the_way(autojump_clock: trio.testing.MockClock) -> None:
    """Snapshots of a long message come now and then, each the text so far, and cost less than three times the text."""

    async def agent(run: Run) -> str:
        for number in range(5000):
            await run.say(f"{number:019d} ")
        return run.said

    events = await run_agent(agent)
    last = check_run(events)
    snapshots = fulls(events)
    assert len(snapshots) > 3
    assert all(last.final_response.startswith(text) for text in snapshots)
    assert snapshots[-1] == last.final_response
    assert sum(map(len, snapshots)) < 4 * len(last.final_response)


async def test_a_slow_message_is_stored_every_few_seconds(autojump_clock: trio.testing.MockClock) -> None:
    """A message that takes its time is stored on the way, and history shows it once, with its newest text."""
    half = trio.Event()

    async def agent(run: Run) -> None:
        for number in range(20):
            await run.say(f"{number} ")
            if number == 12:
                half.set()
            await trio.sleep(1)

    async with open_session({"agent": agent}) as (server, session):
        run = await session.start("go", agent="agent", thread_id="t")
        await half.wait()
        history = await server.registry.ledger.thread_history(session.context.stream, "t", 100, None)
        (partial,) = history.partial
        assert partial.content == "0 1 2 3 4 5 6 7 8 9 10 11 12 "
        assert [message.content for message in history.messages] == ["go"]
        events = [event async for event in run]
        assert len(fulls(events)) == 4
        history = await server.registry.ledger.thread_history(session.context.stream, "t", 100, None)
        assert history.partial == []
        assert [message.content for message in history.messages][1] == fulls(events)[-1]


async def test_a_late_reader_has_the_whole_text(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever comes in the middle, with few events in memory, ends with the same text as who was there."""

    async def agent(run: Run) -> None:
        for message in range(3):
            for number in range(200):
                await run.say(f"{message}.{number} ")
                await trio.sleep(0.05)
            run.end_message()

    from netra_ws import Position, open_server

    settings = make_settings({"history.ring_events": 10})
    async with (
        open_server(settings, agents={"agent": agent}) as server,
        server.context_for(Identity("tester")) as session,
    ):
        start = session.position
        run = await session.start("go", agent="agent")
        texts: list[dict[str, str]] = []

        async def read(delay: float) -> None:
            await trio.sleep(delay)
            said: dict[str, str] = {}
            async for event in session.events(after=Position(epoch=start.epoch, seq=start.seq), run_id=run.run_id):
                if isinstance(event.message, AgentMessage):
                    old = said.get(event.message.message_id, "") if event.message.phase == "delta" else ""
                    said[event.message.message_id] = old + event.message.content
            texts.append(said)

        async with trio.open_nursery() as nursery:
            for delay in (0, 0.3, 7, 12.3, 29, 40):
                nursery.start_soon(read, delay)
        assert all(said == texts[0] for said in texts)
        assert sorted(map(len, texts[0].values())) == [len("".join(f"0.{n} " for n in range(200)))] * 3


async def test_a_streamed_thought_ends_with_its_whole(autojump_clock: trio.testing.MockClock) -> None:
    """Deltas of a thought are followed by one full with all of them before anything else begins."""

    async def agent(run: Run) -> None:
        for piece in ("a", "b", "c"):
            await run.think(piece, delta=True)
        await run.think("next")
        await run.think("d", delta=True)
        async with run.tool("t"):
            pass

    events = await run_agent(agent)
    check_run(events)
    thoughts = [(e.message.phase, e.message.reasoning) for e in events if isinstance(e.message, AgentThinking)]
    assert thoughts == [
        ("delta", "a"),
        ("delta", "b"),
        ("delta", "c"),
        ("full", "abc"),
        ("full", "next"),
        ("delta", "d"),
        ("full", "d"),
    ]


async def test_a_streamed_thought_ends_where_text_begins() -> None:
    """What is said ends the thought that is being streamed: it stands before the text, whole."""

    async def agent(run: Run) -> None:
        await run.think("one ", delta=True)
        await run.think("two", delta=True)
        await run.say("text")

    events = await run_agent(agent)
    check_run(events)
    order = [(e.type, e.fields["phase"], e.fields.get("reasoning") or e.fields.get("content")) for e in events[2:-1]]
    assert order[2:4] == [("agent_thinking", "full", "one two"), ("agent_message", "delta", "text")]


async def test_an_agent_that_asks_at_once_knows_its_message() -> None:
    """The history that an agent asks for before anything else has the message that started it."""

    async def look(run: Run) -> list[str]:
        return [row.content for row in await run.thread.history()]

    async with open_session({"look": look}) as (_, session):
        for number in range(10):
            run = await session.start(f"text {number}", agent="look", thread_id="t")
            assert f"text {number}" in (await run.result()).final_response
