"""Tests of ``netra_ws.history.ledger``: threads and messages in pages, always as of a named position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from netra_ws.errors import ClientError
from netra_ws.history.cursor import Cursor
from netra_ws.history.ledger import PAGE_CHARACTERS, TITLE_LENGTH, Ledger, title_from
from netra_ws.history.stores.contract import MessageRow, PutMessage, PutRun, PutThread, RunRow
from netra_ws.history.stream import Stream
from netra_ws.protocol.codec import encode_reply
from netra_ws.protocol.replies import ThreadHistory
from tests.effort import share

from .kit import ALICE, NOW, Client, HandSink, TroubledStore, delta, drain, full, open_by_hand, said

BAD_MARKS = ["", "x", "-1", "+1", "1.5", " 1", "1_0", "٣", "9" * 19, "1e3", "0x1"]


def thread(thread_id: str = "t", user_id: str = ALICE, at: float = NOW) -> PutThread:
    return PutThread(user_id=user_id, thread_id=thread_id, title=f"about {thread_id}", metadata={"n": 1}, created_at=at)


def message(seq: int, content: str = "hello", **fields: Any) -> PutMessage:
    values: dict[str, Any] = {"user_id": ALICE, "thread_id": "t", "run_id": "r", "role": "user", "created_at": NOW}
    values["message_id"] = f"m{seq}"
    return PutMessage(row=MessageRow(content=content, seq=seq, **values | fields))


async def opened() -> tuple[Ledger, Stream, HandSink, TroubledStore]:
    stream, sink, store = await open_by_hand()
    return Ledger(store), stream, sink, store


async def talk(stream: Stream, sink: HandSink, count: int, content: str = "hello") -> None:
    """Have *count* messages said, each with the event that made it final."""
    with stream.step() as step:
        step.write(thread())
    for _ in range(count):
        with stream.step() as step:
            entry = step.append(full(content, f"m{stream.last + 1}"))
            step.write(message(entry.seq, content))
    await sink.commit()


def bad(error: pytest.ExceptionInfo[ClientError]) -> None:
    text = "expected a value that an earlier answer gave as next"
    assert (error.value.code, error.value.details) == ("INVALID_MESSAGE", {"fields": {"$.before": text}})


# Titles.


@given(st.text())
def test_a_title_is_one_short_line(text: str) -> None:
    """A thread's title is one line of at most 80 characters, without blanks around it."""
    title = title_from(text)
    assert len(title) <= TITLE_LENGTH == 80
    assert title == " ".join(title.split())


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("hello", "hello"),
        ("  two\n\n lines\t", "two lines"),
        ("", ""),
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 79 + "…"),
        ("x" * 78 + " yz", "x" * 78 + "…"),
    ],
)
def test_titles(text: str, title: str) -> None:
    """A long first message is cut with an ellipsis; everything else is kept."""
    assert title_from(text) == title


# Threads.


async def test_threads_are_listed_the_last_used_first() -> None:
    """A list names each thread with its title, metadata and times, and of the user's own only."""
    ledger, _, _, store = await opened()
    await store.write([thread("a", at=1.0), thread("b", at=3.0), thread("c", at=2.0), thread("x", "bob", at=9.0)])
    listed = await ledger.thread_list(ALICE, 10, None)
    assert [summary.thread_id for summary in listed.threads] == ["b", "c", "a"]
    assert listed.next is None
    first = listed.threads[0]
    assert (first.title, first.metadata, first.created_at, first.updated_at) == ("about b", {"n": 1}, 3.0, 3.0)
    assert await ledger.count_threads(ALICE) == 3
    assert await ledger.thread("bob", "a") is None
    found = await ledger.thread(ALICE, "a")
    assert found is not None
    assert found.title == "about a"


async def _page_threads(times: Sequence[float], limit: int) -> None:
    ledger, _, _, store = await opened()
    await store.write([thread(f"t{number}", at=at) for number, at in enumerate(times)])
    seen: list[tuple[float, str]] = []
    before = None
    while True:
        page = await ledger.thread_list(ALICE, limit, before)
        assert len(page.threads) <= limit
        seen += [(summary.updated_at, summary.thread_id) for summary in page.threads]
        before = page.next
        if before is None:
            break
        assert len(page.threads) == limit
    assert seen == sorted(((at, f"t{number}") for number, at in enumerate(times)), reverse=True)


@settings(deadline=None)
@given(st.lists(st.sampled_from([1.0, 1.5, 0.1 + 0.2, 1e9 / 3, NOW]), max_size=12), st.integers(1, 5))
def test_pages_of_threads_have_each_once(times: Sequence[float], limit: int) -> None:
    """Whatever the page size and however equal the times, pages together are the whole list, each thread once."""
    trio.run(_page_threads, times, limit)


@pytest.mark.parametrize("mark", ["", "x/t", "/t", "1,5/t", "one"])
async def test_a_mark_of_threads_that_was_made_up(mark: str) -> None:
    """A ``before`` that no answer gave is the client's mistake, named by its path."""
    ledger, _, _, _ = await opened()
    with pytest.raises(ClientError) as error:
        await ledger.thread_list(ALICE, 10, mark)
    bad(error)


@pytest.mark.parametrize("mark", ["nan/t", "inf/t", "-inf/t", "1e400/t", "5", "5/", "1/" + "x" * 10_000])
async def test_a_strange_mark_is_harmless(mark: str) -> None:
    """A made-up mark that looks like one lists something or nothing, but breaks nothing."""
    ledger, _, _, store = await opened()
    await store.write([thread()])
    assert len((await ledger.thread_list(ALICE, 10, mark)).threads) <= 1


# Messages.


async def test_a_history_is_the_thread_at_a_position() -> None:
    """A history has the messages of the thread, oldest first, and the position up to which it is true."""
    ledger, stream, sink, store = await opened()
    await talk(stream, sink, 3)
    await store.write([thread("u"), message(900, thread_id="u"), message(2, user_id="bob", content="not yours")])
    attached = message(3, "look", role="assistant", run_id=None, attachments=[{"name": "n", "url": "u"}])
    await store.write([attached])
    history = await ledger.thread_history(stream, "t", 10, None)
    assert [(m.id, m.role, m.content, m.run_id) for m in history.messages] == [
        ("m1", "user", "hello", "r"),
        ("m2", "user", "hello", "r"),
        ("m3", "assistant", "look", None),
    ]
    assert history.messages[0].attachments is None
    assert history.messages[2].attachments == [{"name": "n", "url": "u"}]
    assert (history.thread_id, history.next, history.partial) == ("t", None, [])
    assert (history.stream.epoch, history.stream.seq) == (stream.epoch, stream.visible)
    assert (await ledger.thread_history(stream, "unknown", 10, None)).messages == []


@pytest.mark.parametrize("limit", [1, 2, 3, 10, 11])
async def test_pages_of_messages_have_each_once(limit: int) -> None:
    """Going back page by page gives every message once, each page oldest first; ``next`` is null on the last."""
    ledger, stream, sink, _ = await opened()
    await talk(stream, sink, 10)
    seen: list[str] = []
    before = None
    while True:
        history = await ledger.thread_history(stream, "t", limit, before)
        seen = [m.id for m in history.messages] + seen
        before = history.next
        if before is None:
            break
        assert len(history.messages) == limit
    assert seen == [f"m{seq}" for seq in range(1, 11)]


async def test_a_page_is_bounded_by_its_size() -> None:
    """Long messages make shorter pages, never an empty one; nothing is left out on the way back."""
    ledger, stream, sink, store = await opened()
    await talk(stream, sink, 6, "x" * (PAGE_CHARACTERS // 2 - 10))
    await store.write([message(6, "y" * (PAGE_CHARACTERS + 1))])
    pages = []
    before = None
    for _ in range(4):
        history = await ledger.thread_history(stream, "t", 100, before)
        pages.append([m.id for m in history.messages])
        before = history.next
    assert pages == [["m6"], ["m4", "m5"], ["m2", "m3"], ["m1"]]
    assert before is None
    await store.write([message(5, "z", attachments=[{"name": "n", "data": "x" * PAGE_CHARACTERS}])])
    assert [m.id for m in (await ledger.thread_history(stream, "t", 100, "6")).messages] == ["m5"]


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_a_snapshot_is_no_message(limit: int) -> None:
    """A message that is still being said is partial text only, on no page a message, and hides no page behind it."""
    ledger, stream, sink, _ = await opened()
    await talk(stream, sink, 2)
    stream.append(delta("Once", "new"))
    with stream.step() as step:
        step.write(message(step.append(full("Once", "new")).seq, "Once", message_id="new"))
    stream.append(delta(" upon", "new"))
    await sink.commit()
    await talk(stream, sink, 2)
    pages = []
    before = None
    while True:
        history = await ledger.thread_history(stream, "t", limit, before)
        assert [p.content for p in history.partial] == (["Once upon"] if before is None else [])
        pages = [m.id for m in history.messages] + pages
        assert history.messages
        before = history.next
        if before is None:
            break
    assert pages == ["m1", "m2", "m6", "m7"]


@pytest.mark.parametrize("mark", BAD_MARKS)
async def test_a_mark_of_messages_that_was_made_up(mark: str) -> None:
    """A ``before`` that no answer gave is the client's mistake, named by its path."""
    ledger, stream, _, _ = await opened()
    with pytest.raises(ClientError) as error:
        await ledger.thread_history(stream, "t", 10, mark)
    bad(error)


async def test_what_is_being_said_stands_beside_the_messages() -> None:
    """An open message is told as partial text up to the named position, on the first page only."""
    ledger, stream, sink, _ = await opened()
    await talk(stream, sink, 2)
    stream.append(delta("Once ", "new"))
    stream.append(delta("upon", "new"))
    stream.append(said())
    stream.append(delta(" a time", "new"))
    history = await ledger.thread_history(stream, "t", 1, None)
    assert [(p.message_id, p.run_id, p.content) for p in history.partial] == [("new", "r", "Once upon")]
    assert history.stream.seq == stream.visible == 4
    assert (await ledger.thread_history(stream, "t", 1, history.next)).partial == []
    assert encode_reply(history, 1.0) is not None


class SlowStore(TroubledStore):
    """Lets something happen in the middle of a read of messages."""

    async def messages(self, *args: Any) -> Sequence[MessageRow]:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        rows: Sequence[MessageRow] = await self.kept.messages(*args)
        return rows


async def test_a_history_has_nothing_from_behind_its_position() -> None:
    """A message that becomes final while the history is read belongs to the events behind its position."""
    stream, sink, _ = await open_by_hand(store=(store := SlowStore()))
    await talk(stream, sink, 1)

    async def meanwhile() -> None:
        await talk(stream, sink, 2)

    store.meanwhile = meanwhile
    history = await Ledger(store).thread_history(stream, "t", 10, None)
    assert ([m.id for m in history.messages], history.stream.seq, stream.visible) == (["m1"], 1, 3)


WORK = st.lists(st.sampled_from(["delta", "delta", "snapshot", "final", "other", "commit", "look"]), max_size=40)


async def _look_and_follow(work: Sequence[str], meanwhile: Sequence[str]) -> None:
    stream, sink, _ = await open_by_hand(store=(store := SlowStore()))
    ledger = Ledger(store)
    with stream.step() as step:
        step.write(thread())
    text = ""
    finals: dict[str, str] = {}
    looks: list[tuple[ThreadHistory, int]] = []

    async def do(what: str) -> None:
        nonlocal text
        message_id = f"m{len(finals)}"
        if what == "delta":
            text += f"{stream.last} "
            stream.append(delta(f"{stream.last} ", message_id))
        elif what == "final" and text:
            with stream.step() as step:
                entry = step.append(full(text, message_id))
                step.write(message(entry.seq, text, message_id=message_id, role="assistant"))
            finals[message_id], text = text, ""
        elif what == "snapshot" and text:
            with stream.step() as step:
                entry = step.append(full(text, message_id))
                step.write(message(entry.seq, text, message_id=message_id, role="assistant"))
        elif what == "commit":
            await sink.commit(2)
        elif what == "other":
            stream.append(said())
        elif what == "look":
            store.meanwhile = _nothing
            looks.append((await ledger.thread_history(stream, "t", 100, None), stream.visible))

    async def race() -> None:
        for what in meanwhile:
            if what != "look":
                await do(what)

    for what in work:
        await do(what)
    at = stream.visible
    store.meanwhile = race
    looks.append((await ledger.thread_history(stream, "t", 100, None), at))
    await sink.commit()
    for history, seen in looks:
        assert history.stream.seq == seen
        client = Client(seen)
        client.texts = {m.id: m.content for m in history.messages} | {p.message_id: p.content for p in history.partial}
        assert len(client.texts) == len(history.messages) + len(history.partial)
        await drain(Cursor(stream, store, seen), client)
        assert client.texts == finals | ({f"m{len(finals)}": text} if text else {})


async def _nothing() -> None:
    pass


@settings(max_examples=share(200), deadline=None)
@given(WORK, WORK)
def test_a_history_and_the_events_behind_it_are_the_thread(work: Sequence[str], meanwhile: Sequence[str]) -> None:
    """Whenever a history is taken, it and the events after its position make every text, none missing, none twice."""
    trio.run(_look_and_follow, work, meanwhile)


# What an agent and a repeated command need.


async def test_context_for_an_agent() -> None:
    """An agent gets the last messages up to a position, oldest first."""
    ledger, stream, sink, _ = await opened()
    await talk(stream, sink, 5)
    assert [row.seq for row in await ledger.messages(ALICE, "t", 2, 4)] == [3, 4]
    assert await ledger.messages("bob", "t", 2, 4) == []


async def test_search_and_runs() -> None:
    """Search and runs are those of the named user; a run is found by its id and by its command."""
    ledger, _, _, store = await opened()
    row = RunRow(
        user_id=ALICE,
        run_id="r",
        thread_id="t",
        agent_name="echo",
        message_id="m1",
        state="running",
        created_at=NOW,
        started_seq=1,
        trigger="message",
        command_id="c1",
    )
    await store.write([thread(), message(1, "a green apple"), PutRun(row=row)])
    assert [found.message_id for found in await ledger.search(ALICE, "apple GREEN", 5)] == ["m1"]
    assert await ledger.search("bob", "apple", 5) == []
    assert await ledger.run(ALICE, "r") == await ledger.run_of_command(ALICE, "c1") == row
    assert await ledger.run("bob", "r") is None
    assert await ledger.run_of_command("bob", "c1") is None
