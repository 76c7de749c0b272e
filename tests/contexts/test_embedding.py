"""What a program may ask of a context, without a socket."""

from __future__ import annotations

from typing import Any

import pytest

from netra_ws import ClientError, Run
from netra_ws.testing import open_session


async def tell(run: Run) -> str:
    return f"{run.text} {sorted(run.context)}"


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("EMPTY_MESSAGE", {"text": "  "}),
        ("INVALID_MESSAGE", {"text": None}),
        ("INVALID_MESSAGE", {"text": 5}),
        ("INVALID_MESSAGE", {"text": "caf\udce9"}),
        ("INVALID_MESSAGE", {"thread_id": "no id!"}),
        ("INVALID_MESSAGE", {"run_id": ""}),
        ("INVALID_MESSAGE", {"agent": 5}),
        ("UNKNOWN_AGENT", {"agent": "nobody"}),
        ("INVALID_MESSAGE", {"context": ["a"]}),
        ("INVALID_MESSAGE", {"on_busy": "wait"}),
        ("INVALID_MESSAGE", {"on_disconnect": "stay"}),
        ("INVALID_MESSAGE", {"timeout_s": 0}),
        ("INVALID_MESSAGE", {"timeout_s": "5"}),
        ("INVALID_MESSAGE", {"timeout_s": float("nan")}),
        ("INVALID_MESSAGE", {"timeout_s": float("inf")}),
    ],
)
async def test_what_cannot_be_asked(code: str, fields: dict[str, Any]) -> None:
    """A wrong argument is refused before anything is stored; a NaN once ended the whole server."""
    async with open_session({"agent": tell}) as (_, session):
        before = session.position
        with pytest.raises(ClientError) as caught:
            await session.start(**{"text": "x", "agent": "agent", **fields})
        assert caught.value.code == code
        assert session.position == before
        run = await session.start(" well ", agent="agent", context={"a": object()}, timeout_s=5)
        assert (await run.result()).final_response == "well ['a']"
