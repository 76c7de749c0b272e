"""What every store promises of revocations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from netra_ws.history.stores.contract import PutRevocation, RevocationRow, Store


def put(
    subject: str, revoked_at: float, until: float, kind: Literal["user", "token"] = "user"
) -> tuple[PutRevocation, RevocationRow]:
    row = RevocationRow(kind=kind, subject=subject, revoked_at=revoked_at, until=until)
    return PutRevocation(row=row), row


async def test_what_counts_is_found(store: Store) -> None:
    """Revocations are found while they count, the last one to end first, up to a limit."""
    rows = []
    for subject, until in (("alice", 20.0), ("bob", 30.0), ("carol", 10.0)):
        write, row = put(subject, 5.0, until)
        await store.write([write])
        rows.append(row)
    alice, bob, carol = rows
    assert list(await store.revocations(5.0, 9)) == [bob, alice, carol]
    assert list(await store.revocations(10.0, 9)) == [bob, alice]
    assert list(await store.revocations(5.0, 1)) == [bob]
    assert list(await store.revocations(30.0, 9)) == []
    assert list(await store.revocations(5.0, 0)) == []


async def test_a_user_is_no_token(store: Store) -> None:
    """A user and a token of the same name are two things, and names are compared exactly."""
    writes, rows = zip(
        put("x", 1.0, 9.0), put("x", 1.0, 8.0, "token"), put("X", 1.0, 7.0), put("x\0", 1.0, 6.0), strict=True
    )
    await store.write(writes)
    assert list(await store.revocations(1.0, 9)) == list(rows)


async def test_a_second_one_only_raises(store: Store) -> None:
    """Revoking again raises the times and never lowers them; a repeated batch changes nothing."""
    for revoked_at, until in ((5.0, 20.0), (4.0, 30.0), (6.0, 10.0), (6.0, 10.0)):
        await store.write([put("alice", revoked_at, until)[0]])
    assert list(await store.revocations(0.0, 9)) == [put("alice", 6.0, 30.0)[1]]


async def test_the_past_goes(store: Store) -> None:
    """A new revocation takes those away whose time is over, so that they do not pile up."""
    await store.write([put("old", 1.0, 5.0)[0], put("young", 1.0, 6.0)[0]])
    new = put("new", 5.0, 9.0)
    await store.write([new[0]])
    assert [row.subject for row in await store.revocations(0.0, 9)] == ["new", "young"]


async def test_they_outlive_a_close(new_store: Callable[[], Store]) -> None:
    """A restart forgets no revocation."""
    write, row = put("alice", 1.0, 9.0)
    store = new_store()
    await store.open()
    await store.write([write])
    await store.close()
    store = new_store()
    await store.open()
    assert list(await store.revocations(1.0, 9)) == [row]
    await store.close()
