"""What the tests of the store in PostgreSQL share."""

from __future__ import annotations

import traceback

import pytest

from netra_ws.errors import StoreError
from netra_ws.history.stores.contract import Store
from tests.contract.rows import EPOCH, KEY, put_stream
from tests.postgres import PASSWORD


def is_clean(text: str) -> bool:
    """Whether a text has one line and nothing of the password."""
    return "\n" not in text and not any(piece in text for piece in (PASSWORD, "hunter2", "%40"))


async def fails(store: Store) -> str:
    """Return in which one line a write fails."""
    with pytest.raises(StoreError) as caught:
        await store.write([put_stream()])
    told = "".join(traceback.format_exception(caught.value))
    assert is_clean(str(caught.value)), str(caught.value)
    assert "hunter2" not in told
    return str(caught.value)


async def seqs(store: Store) -> list[int]:
    return [event.seq for event in await store.events(KEY, EPOCH, -1, 10**9, 10**9)]
