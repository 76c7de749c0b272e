"""What tools answered, as results of events."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from mcp_types import CallToolResult, TextContent

from netra_ws.agents.mcp.results import read_results

from .kit import one_call, plain


async def test_kinds_of_content(tmp_path: Path) -> None:
    """Images and files are named with their sizes, and texts between them stay in order."""
    assert (await one_call(plain(tmp_path), "image")).results == [
        {"type": "image", "mime_type": "image/png", "bytes": 4}
    ]
    assert (await one_call(plain(tmp_path), "mixed")).results == [
        {"type": "text", "text": "a text"},
        {"type": "file", "uri": "file:///a.txt", "mime_type": "text/plain", "text": "of a file"},
        {"type": "file", "uri": "file:///a.bin", "mime_type": None, "bytes": 6},
        {"type": "link", "uri": "file:///b", "name": "b", "mime_type": None},
    ]


async def test_results_that_are_too_large(tmp_path: Path) -> None:
    """A result above the bound of an event is cut, says so, and is no error."""
    told = await one_call(plain(tmp_path), "big")
    assert told.status == "ok"
    assert isinstance(told.results, str)
    assert told.results.startswith("éééé")
    assert told.results.endswith("… [cut: 300000 characters in all, more than fit into a result]")
    told = await one_call(plain(tmp_path), "big_object")
    assert isinstance(told.results, str)
    assert told.results.startswith('{"rows":["xxx')
    assert "[cut: " in told.results


async def test_numbers_that_are_too_large(tmp_path: Path) -> None:
    """A number that an event cannot carry comes as text."""
    assert (await one_call(plain(tmp_path), "big_number")).results == '{"number": 1000000000000000000000000000000}'


@pytest.mark.parametrize("text", ["x" * 5000, "é" * 5000, '"\x00' * 5000, "😀" * 5000])
@pytest.mark.parametrize("limit", [200, 1000, 4999])
def test_a_cut_fits(text: str, limit: int) -> None:
    """However its characters are written in JSON, a cut text fits the bound, and uses it."""
    answer = CallToolResult(content=[TextContent(type="text", text=text)])
    results = read_results(answer, limit)
    size = len(orjson.dumps(results))
    assert limit - 30 <= size <= limit
    assert results.endswith(f"{len(text)} characters in all, more than fit into a result]")


def test_nothing_is_cut_that_fits() -> None:
    """A text of exactly the bound stays whole."""
    answer = CallToolResult(content=[TextContent(type="text", text="x" * 98)])
    assert read_results(answer, 100) == "x" * 98
    assert read_results(answer, 99) != "x" * 98
