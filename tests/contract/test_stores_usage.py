"""How much is kept of a user, and how the oldest of it goes: the same in every store."""

from __future__ import annotations

from netra_ws.history.stores.contract import Store

from .rows import ALICE, BOB, EPOCH, KEY, put_event, put_message, put_run, put_stream, put_thread, shorten
from .test_stores import seqs


async def test_usage_counts_events_and_messages_of_one_user(store: Store) -> None:
    """Usage is the bytes of a user's payloads, texts and attachments, and of nobody else's."""
    assert (await store.usage(ALICE, KEY)).total == 0
    await store.write(
        [
            put_stream(),
            put_stream("user:bob"),
            put_event(1, payload=b"x" * 100),
            put_event(2, payload=b"x" * 50),
            put_event(1, key="user:bob", payload=b"x" * 1000),
            put_thread(),
            put_thread(BOB),
            put_message("a", "y" * 30),
            put_message("b", "y" * 5, attachments=[{"name": "z" * 200}]),
            put_message("c", "y" * 5000, user_id=BOB),
        ]
    )
    usage = await store.usage(ALICE, KEY)
    assert usage.events == 150
    assert 35 + 200 <= usage.messages <= 35 + 200 + 50
    assert usage.total == usage.events + usage.messages
    assert (await store.usage("nobody", "user:nobody")).total == 0


async def test_the_oldest_threads_come_first_with_their_size(store: Store) -> None:
    """Threads are listed by their last use, ascending, each with the bytes of its own messages."""
    await store.write(
        [
            put_thread(thread_id="new", at=3.0),
            put_thread(thread_id="old", at=1.0),
            put_thread(thread_id="empty", at=2.0),
            put_thread(BOB, "bob's", at=0.5),
            put_message("a", "y" * 40, thread_id="old", created_at=1.5),
            put_message("b", "y" * 400, thread_id="new", created_at=4.0),
        ]
    )
    found = await store.oldest_threads(ALICE, 10)
    assert [row.thread_id for row, _ in found] == ["old", "empty", "new"]
    assert [size // 40 for _, size in found] == [1, 0, 10]
    assert found[0][0] == await store.thread(ALICE, "old")
    assert [row.thread_id for row, _ in await store.oldest_threads(ALICE, 1)] == ["old"]
    assert list(await store.oldest_threads(ALICE, 0)) == []
    assert list(await store.oldest_threads("nobody", 9)) == []


async def _shorten(store: Store, keep: int) -> int:
    end = 0
    while ends := await shorten(store, keep):
        end = ends[KEY]
    return end


async def test_a_stream_is_shortened_from_its_beginning(store: Store) -> None:
    """The oldest events go until no more than the bytes that may stay are left, and the stream says up to where."""
    await store.write(
        [put_stream(), put_stream("user:bob"), *(put_event(seq, payload=b"x" * 10) for seq in range(1, 11))]
    )
    await store.write([put_event(1, key="user:bob")])
    assert await store.shorten(KEY, 100) == {}
    assert await _shorten(store, 35) == 7
    assert seqs(await store.events(KEY, EPOCH, 0, 99, 99)) == [8, 9, 10]
    row = await store.stream(KEY)
    assert row is not None
    assert row.trimmed == 7
    assert seqs(await store.events("user:bob", EPOCH, 0, 99, 99)) == [1]
    assert await _shorten(store, 0) == 10
    assert await store.shorten(KEY, 0) == {}
    assert await store.shorten("user:nobody", 0) == {}


async def test_a_run_that_goes_on_keeps_its_events(store: Store) -> None:
    """Shortening stops before the first event of an unfinished run, however much stands behind it."""
    await store.write([put_stream(), put_run("going", state="running")])
    await store.write([put_event(1), put_event(2), put_event(3, run_id="going"), put_event(4)])
    assert await _shorten(store, 0) == 2
    assert seqs(await store.events(KEY, EPOCH, 0, 99, 99)) == [3, 4]
