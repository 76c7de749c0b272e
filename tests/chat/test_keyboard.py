"""Tests of ``netra_ws.chat.keyboard``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio

from netra_ws.chat.keyboard import Keyboard


@pytest.fixture
def pipe() -> Iterator[tuple[Keyboard, int]]:
    reading, writing = os.pipe()
    yield Keyboard(reading), writing
    os.close(reading)


async def test_lines_come_whole(pipe: tuple[Keyboard, int]) -> None:
    """A line is given when it is whole, the last one also without its end; then there is None, again and again."""
    keyboard, writing = pipe
    os.write(writing, b"one\ntw")
    assert await keyboard.line() == "one"
    with trio.move_on_after(0.05) as waiting:
        await keyboard.line()
    assert waiting.cancelled_caught
    os.write(writing, b"o\nlast")
    os.close(writing)
    assert [await keyboard.line() for _ in range(4)] == ["two", "last", None, None]


async def test_what_was_set_aside_comes_back(pipe: tuple[Keyboard, int]) -> None:
    """Lines of before are held back while something else is asked, and come next when they are given back."""
    keyboard, writing = pipe
    os.write(writing, b"a\nb\nc\n")
    assert await keyboard.line() == "a"
    aside = keyboard.set_aside()
    os.write(writing, b"answer\nmore\n")
    assert await keyboard.line() == "answer"
    keyboard.give_back(aside)
    assert [await keyboard.line() for _ in range(3)] == ["b", "c", "more"]
    os.close(writing)
