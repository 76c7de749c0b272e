"""Jobs: who has opened an id, and what is kept of it: the same in every store."""

from __future__ import annotations

from collections.abc import Callable

from netra_ws.history.stores.contract import CloseJob, ForgetJob, Store

from .rows import ALICE, BOB, EPOCH, KEY, job, put_event, put_job, put_stream

BUILD = "job:build/1"


async def test_who_opens_an_id_first_has_it(store: Store) -> None:
    """An id belongs to who has opened it until it is closed; a second opening changes nothing."""
    assert await store.job("build") is None
    await store.write([put_job()])
    await store.write([put_job("job:build/2", user_id=BOB), put_job()])
    assert await store.job("build") == job()
    await store.write([CloseJob(key="job:build/2")])
    assert await store.job("build") == job()


async def test_a_closed_id_is_free(store: Store) -> None:
    """After it was closed an id can be opened by another user, as another job; repeats change nothing."""
    await store.write([put_job()])
    await store.write([CloseJob(key=BUILD), put_job("job:build/2", user_id=BOB)])
    await store.write([put_job(), CloseJob(key=BUILD)])
    assert await store.job("build") == job("job:build/2", user_id=BOB)
    assert await store.job("Build") is None


async def test_jobs_outlive_the_process(new_store: Callable[[], Store]) -> None:
    """What was opened and what was closed is known after a restart."""
    first = new_store()
    await first.open()
    await first.write([put_job(), put_job("job:done/1", "done"), CloseJob(key="job:done/1")])
    await first.close()
    second = new_store()
    await second.open()
    try:
        assert await second.job("build") == job()
        assert await second.job("done") is None
    finally:
        await second.close()


async def test_open_jobs_are_counted_by_user(store: Store) -> None:
    """The count is of a user's open jobs only."""
    await store.write([put_job(f"job:{n}/1", f"j{n}") for n in range(3)])
    await store.write([put_job("job:b/1", "b", BOB), CloseJob(key="job:1/1")])
    assert await store.count_jobs(ALICE) == 2
    assert await store.count_jobs(BOB) == 1
    assert await store.count_jobs("nobody") == 0


async def test_usage_counts_jobs_of_their_owner(store: Store) -> None:
    """The payloads of a user's jobs count for the user, also after the job was closed; the largest job is known."""
    await store.write([put_stream(), put_event(1, payload=b"x" * 7)])
    for name, size in (("small", 10), ("large", 1_000), ("none", 0)):
        await store.write([put_job(f"job:{name}/1", name), put_stream(f"job:{name}/1")])
        if size:
            await store.write([put_event(seq, key=f"job:{name}/1", payload=b"x" * (size // 2)) for seq in (1, 2)])
    await store.write([put_job("job:bob/1", "bob", BOB), put_event(1, key="job:bob/1", payload=b"x" * 5000)])
    await store.write([CloseJob(key="job:large/1")])
    usage = await store.usage(ALICE, KEY)
    assert (usage.events, usage.jobs, usage.total) == (7, 1010, 1017)
    assert list(await store.largest_jobs(ALICE, 10)) == [("job:large/1", 1000), ("job:small/1", 10)]
    assert list(await store.largest_jobs(ALICE, 1)) == [("job:large/1", 1000)]
    assert list(await store.largest_jobs(ALICE, 0)) == []
    assert list(await store.largest_jobs("nobody", 9)) == []


async def test_jobs_that_are_over_are_found_and_forgotten(store: Store) -> None:
    """A job without events that is closed or old is found; forgotten, nothing of it is left, and its id is free."""
    await store.write(
        [
            put_job("job:old/1", "old", at=1.0),
            put_job("job:young/1", "young", at=9.0),
            put_job("job:closed/1", "closed", at=8.0),
            put_job("job:full/1", "full", at=1.0),
            put_stream("job:old/1"),
            put_stream("job:full/1"),
            put_event(1, key="job:full/1"),
            CloseJob(key="job:closed/1"),
        ]
    )
    found = await store.empty_jobs(5.0, 10)
    assert [row.key for row in found] == ["job:old/1", "job:closed/1"]
    assert [row.key for row in await store.empty_jobs(5.0, 1)] == ["job:old/1"]
    assert list(await store.empty_jobs(5.0, 0)) == []
    for _ in range(2):
        await store.write([ForgetJob(key=row.key) for row in found])
    assert list(await store.empty_jobs(5.0, 10)) == []
    assert await store.job("old") is None
    assert await store.stream("job:old/1") is None
    assert (await store.stream("job:full/1")) is not None
    assert [row.seq for row in await store.events("job:full/1", EPOCH, 0, 9, 9)] == [1]
    await store.write([put_job("job:old/2", "old", BOB)])
    assert await store.job("old") == job("job:old/2", "old", BOB)
