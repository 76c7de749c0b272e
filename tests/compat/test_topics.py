"""The table of topics is complete, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent

#: Group → how many topics the older inventory has of it.
GROUPS = {
    "manager": 78,
    "handler": 30,
    "handler-integration": 10,
    "origins": 30,
    "routes": 26,
    "factory": 18,
    "layer": 17,
    "end-to-end": 27,
}


def rows() -> Iterator[tuple[str, int, list[str], str]]:
    """Yield the group, the number, the cells and the line of every topic."""
    for line in (HERE / "README.md").read_text().splitlines():
        match = re.match(r"\| ([a-z-]+) (\d+) \|(.*)\|$", line)
        if match:
            yield match[1], int(match[2]), [cell.strip() for cell in match[3].split("|")], line


@cache
def names_in(path: Path) -> frozenset[str]:
    """Return the names of the test functions of a file."""
    tree = ast.parse(path.read_text())
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


@pytest.mark.parametrize("group", GROUPS)
def test_every_topic_has_a_row(group: str) -> None:
    """The topics of a group are numbered from one on, without a gap and without a double."""
    assert [number for found, number, _, _ in rows() if found == group] == list(range(1, GROUPS[group] + 1))


def test_every_row_names_tests_that_exist() -> None:
    """Every row says what it asks for, and names tests by ``file.py::test_name``, here or under ``tests``."""
    wrong = []
    for group, _, cells, line in rows():
        named = re.findall(r"`([\w/.]+\.py)::(test_\w+)`", cells[1]) if len(cells) == 3 else []
        there = [
            name in names_in(path)
            for file, name in named
            if (path := HERE / file if (HERE / file).exists() else HERE.parent / file).exists()
        ]
        if group not in GROUPS or not cells[0] or not named or len(there) != len(named) or not all(there):
            wrong.append(line)
    assert wrong == []
