"""What every store promises of threads, messages, search and runs."""

from __future__ import annotations

from random import Random

import pytest

from netra_ws.history.stores.contract import (
    DeleteThread,
    DropMessages,
    PutMessage,
    PutRun,
    RenameThread,
    RunState,
    SetRunState,
    Store,
    ThreadRow,
)

from .rows import ALICE, BOB, EPOCH, message, put_event, put_message, put_run, put_stream, put_thread, run

#: User ids and texts that an engine or a query could take for something else.
AWKWARD = [
    "x" * 256,
    "o'brien",
    'say "hi"',
    "100%_[a-z]*",
    "nul\0nul",
    "\ud800 half a pair \udfff",
    "Ærøskøbing ☃ 𝔘",
    "",
    " ",
    "'; DROP TABLE message; --",
    "\N{RIGHT-TO-LEFT OVERRIDE}abc\r\n\t",
]


async def found(store: Store, query: str, user_id: str = ALICE, limit: int = 100) -> list[str]:
    return [row.message_id for row in await store.search(user_id, query, limit)]


async def contents(store: Store, user_id: str = ALICE, thread_id: str = "t") -> list[str]:
    return [row.content for row in await store.messages(user_id, thread_id, 100, None, 10**9)]


# Threads.


async def test_a_thread_is_made_once(store: Store) -> None:
    """A thread is read as it was made; making it again changes nothing."""
    metadata = {"tags": ["a", {"b": None}], "n": 1.5, "text": "nul\0 ü \ud800"}
    await store.write([put_thread(title="First", metadata=metadata, at=2.0)])
    await store.write([put_thread(title="Second", at=9.0)])
    expected = ThreadRow(user_id=ALICE, thread_id="t", title="First", metadata=metadata, created_at=2.0, updated_at=2.0)
    assert await store.thread(ALICE, "t") == expected
    assert await store.thread(ALICE, "T") is None


async def test_metadata_is_kept_by_value(store: Store) -> None:
    """What the caller does later to the metadata it gave does not reach the store."""
    metadata = {"list": [1]}
    await store.write([put_thread(metadata=metadata)])
    metadata["list"].append(2)
    thread = await store.thread(ALICE, "t")
    assert thread is not None
    assert thread.metadata == {"list": [1]}


async def test_threads_are_paged_newest_first(store: Store) -> None:
    """Page by page all threads come once, by (updated_at, id) descending, also where times are equal."""
    await store.write([put_thread(thread_id=f"t{n}", at=float(n // 3)) for n in range(10)])
    pages: list[list[str]] = []
    before = None
    while page := await store.threads(ALICE, 4, before):
        pages.append([thread.thread_id for thread in page])
        before = page[-1].updated_at, page[-1].thread_id
    assert pages == [["t9", "t8", "t7", "t6"], ["t5", "t4", "t3", "t2"], ["t1", "t0"]]
    assert await store.count_threads(ALICE) == 10
    assert await store.threads(ALICE, 0, None) == []
    assert await store.threads(ALICE, -1, None) == []


async def test_messages_and_renames_bring_a_thread_forward(store: Store) -> None:
    """A message or a new title raises updated_at to its time, and an older one never lowers it."""
    await store.write([put_thread(at=1.0), put_message("m", created_at=7.0), put_message("n", created_at=3.0)])
    await store.write([RenameThread(user_id=ALICE, thread_id="t", title="Second", at=5.0)])
    thread = await store.thread(ALICE, "t")
    assert thread is not None
    assert (thread.title, thread.created_at, thread.updated_at) == ("Second", 1.0, 7.0)
    await store.write([RenameThread(user_id=ALICE, thread_id="t", title="Third", at=9.0)])
    thread = await store.thread(ALICE, "t")
    assert thread is not None
    assert (thread.title, thread.updated_at) == ("Third", 9.0)


async def test_an_unknown_thread_stays_unknown(store: Store) -> None:
    """Renaming, deleting or speaking in a thread that is not there makes nothing."""
    await store.write(
        [
            RenameThread(user_id=ALICE, thread_id="t", title="x", at=1.0),
            DeleteThread(user_id=ALICE, thread_id="t"),
            put_message(),
        ]
    )
    assert await store.count_threads(ALICE) == 0
    assert await contents(store) == []
    assert await found(store, "hello") == []


async def test_a_deleted_thread_is_gone(store: Store) -> None:
    """With a thread go its messages and their words; its runs stay, and so do other threads."""
    await store.write([put_thread(), put_thread(thread_id="other"), put_run(command_id="c")])
    await store.write([put_message("m"), put_message("n", thread_id="other")])
    await store.write([DeleteThread(user_id=ALICE, thread_id="t"), put_message("late")])
    assert await store.thread(ALICE, "t") is None
    assert await contents(store) == []
    assert await found(store, "hello") == ["n"]
    assert await store.run(ALICE, "r") is not None
    assert await store.run_of_command(ALICE, "c") is not None
    await store.write([put_thread(title="Again")])
    assert await contents(store) == []


# Messages.


async def test_a_message_comes_back_as_it_was(store: Store) -> None:
    """Every field of a message is kept, attachments in their order."""
    row = message(
        "m",
        "x",
        run_id=None,
        role="assistant",
        created_at=1763.25,
        seq=2**53 - 1,
        attachments=({"name": "a.txt", "data": "eA=="}, {"name": "b", "url": "https://example.org/"}),
    )
    await store.write([put_thread(), PutMessage(row=row)])
    assert await store.messages(ALICE, "t", 10, None, 2**53) == [row]


async def test_messages_are_paged_backwards(store: Store) -> None:
    """The last ones come first as a page, each page ascending, none twice, none above *upto*."""
    await store.write([put_thread(), *(put_message(f"m{n}", str(n), seq=n * 10) for n in range(1, 8))])
    last = await store.messages(ALICE, "t", 3, None, 60)
    assert [row.seq for row in last] == [40, 50, 60]
    earlier = await store.messages(ALICE, "t", 3, 40, 60)
    assert [row.seq for row in earlier] == [10, 20, 30]
    assert await store.messages(ALICE, "t", 3, 10, 60) == []
    assert await store.messages(ALICE, "t", 0, None, 60) == []
    assert await store.messages(ALICE, "t", -1, None, 60) == []


async def test_a_message_can_be_replaced(store: Store) -> None:
    """A message of a known id takes the place of the former one, also in search and in its thread."""
    await store.write([put_thread(), put_message("m", "one", seq=1), put_message("n", "two", seq=2)])
    await store.write([put_message("m", "three", seq=3, role="assistant")])
    assert await contents(store) == ["two", "three"]
    assert await found(store, "one") == []
    assert await found(store, "three") == ["m"]


async def test_messages_of_a_run_are_dropped(store: Store) -> None:
    """A rollback removes the run's messages from thread and search, and nobody else's."""
    await store.write([put_thread(), put_thread(BOB), put_message("m", seq=1), put_message("n", run_id="s", seq=2)])
    await store.write([put_message("o", user_id=BOB), put_message("p", run_id=None, seq=3)])
    await store.write([DropMessages(user_id=ALICE, run_id="r")])
    assert [row.message_id for row in await store.messages(ALICE, "t", 9, None, 9)] == ["n", "p"]
    assert sorted(await found(store, "hello")) == ["n", "p"]
    assert await found(store, "hello", BOB) == ["o"]


@pytest.mark.parametrize("text", AWKWARD, ids=ascii)
async def test_awkward_text_is_only_text(store: Store, text: str) -> None:
    """Quotes, wildcards, NUL and lone surrogates are kept as they are, in ids, titles and contents."""
    thread = put_thread(text, text, title=text, metadata={text: text})
    row = message(text, f"needle {text}", user_id=text, thread_id=text, run_id=text, attachments=({text: text},))
    await store.write([thread, put_thread("neighbour", text), PutMessage(row=row)])
    started = run(text, user_id=text, thread_id=text, command_id=text, agent_name=text)
    await store.write([PutRun(row=started)])
    assert await store.messages(text, text, 9, None, 9) == [row]
    assert await store.search(text, "NEEDLE", 9) == [row]
    assert await store.search("neighbour", "needle", 9) == []
    assert await store.run_of_command(text, text) == started
    found_thread = await store.thread(text, text)
    assert found_thread is not None
    assert (found_thread.title, found_thread.metadata) == (text, {text: text})


async def test_a_megabyte_is_only_text(store: Store) -> None:
    """A message of 1 MiB comes back whole and is found by its last word."""
    content = "word" * 262_000 + " needle"
    await store.write([put_thread(), put_message("m", content)])
    assert await contents(store) == [content]
    assert await found(store, "needle") == ["m"]


# Runs.


async def test_a_run_comes_back_as_it_was(store: Store) -> None:
    """Every field of a run is kept; making it again changes nothing."""
    row = run(state="queued", command_id="c", command_digest="d", parent_run_id="p", created_at=2.5)
    await store.write([PutRun(row=row)])
    await store.write([put_run(agent_name="other")])
    assert await store.run(ALICE, "r") == row
    assert await store.run_of_command(ALICE, "c") == row
    assert await store.run(ALICE, "R") is None
    assert await store.run_of_command(ALICE, "C") is None


async def test_a_command_starts_one_run(store: Store) -> None:
    """The first run of a user's command id stays, a second one is not made; runs without one do not collide."""
    await store.write([put_run("r", command_id="c"), put_run("s", command_id="c"), put_run("x"), put_run("y")])
    assert await store.run_of_command(ALICE, "c") == run("r", command_id="c")
    assert await store.run(ALICE, "s") is None
    assert [row.run_id for row in await store.unfinished_runs(9)] == ["r", "x", "y"]


@pytest.mark.parametrize("state", ["success", "cancelled", "error", "timeout", "lost"])
async def test_an_ended_run_stays_ended(store: Store, state: RunState) -> None:
    """A run moves from queued to running to its end, and from there nowhere."""
    await store.write([put_run(state="queued"), SetRunState(user_id=ALICE, run_id="r", state="running", at=2.0)])
    assert await store.run(ALICE, "r") == run(state="running")
    await store.write([SetRunState(user_id=ALICE, run_id="r", state=state, at=3.0)])
    await store.write([SetRunState(user_id=ALICE, run_id="r", state="running", at=4.0)])
    await store.write([SetRunState(user_id=ALICE, run_id="r", state="lost", at=5.0)])
    assert await store.run(ALICE, "r") == run(state=state)
    assert await store.unfinished_runs(9) == []


async def test_unfinished_runs_of_all_users(store: Store) -> None:
    """Queued and running runs are found, oldest first, at most *limit*; ended ones are not."""
    await store.write([put_run("late", created_at=9.0), put_run("early", user_id=BOB, state="queued", created_at=2.0)])
    await store.write([put_run("done", state="success", created_at=1.0)])
    assert [row.run_id for row in await store.unfinished_runs(9)] == ["early", "late"]
    assert [row.run_id for row in await store.unfinished_runs(1)] == ["early"]
    assert await store.unfinished_runs(0) == []


# Users.


async def test_users_share_nothing(store: Store) -> None:
    """The same ids used by two users are different rows, and no read or write of one meets the other's."""
    for user_id in (ALICE, BOB):
        await store.write([put_thread(user_id, title=user_id), put_run("r", user_id=user_id, command_id="c")])
        await store.write([put_message("m", f"hello from {user_id}", user_id=user_id)])
    await store.write(
        [
            DeleteThread(user_id=BOB, thread_id="t"),
            SetRunState(user_id=BOB, run_id="r", state="error", at=2.0),
            DropMessages(user_id=BOB, run_id="r"),
        ]
    )
    assert await contents(store) == ["hello from alice"]
    assert await found(store, "hello") == ["m"]
    assert await found(store, "hello", BOB) == []
    assert await store.run(ALICE, "r") == run(command_id="c")
    assert await store.count_threads(BOB) == 0
    assert await store.count_threads("nobody") == 0
    assert await store.threads("Alice", 9, None) == []
    assert await store.search("alice%", "hello", 9) == []


async def test_the_longest_names_are_kept(store: Store) -> None:
    """Users, commands and ids of the greatest length that anybody may give them are kept and found."""
    draw = Random(1)
    user_id, command_id = ("".join(chr(draw.randrange(0x10000, 0x110000)) for _ in range(256)) for _ in range(2))
    key, ids = f"user:{user_id}", "".join(draw.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=128))
    names = {"user_id": user_id, "thread_id": ids, "run_id": ids}
    await store.write(
        [
            put_stream(key),
            put_event(1, key=key, run_id=ids),
            put_thread(user_id, ids),
            put_run(**names, command_id=command_id),
            put_message(ids, "hello", **names),
        ]
    )
    assert [event.seq for event in await store.run_events(key, EPOCH, ids)] == [1]
    assert await store.run_of_command(user_id, command_id) is not None
    assert [row.message_id for row in await store.messages(user_id, ids, 9, None, 9)] == [ids]
    assert [row.message_id for row in await store.search(user_id, "hello", 9)] == [ids]
