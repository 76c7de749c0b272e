"""Fixtures of the tests of the older system's surface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .handling import Database


@pytest.fixture
def database(store_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database of the program's own, on the engine of ``store_url`` but apart from the store."""
    if store_url.startswith("sqlite"):
        made = Database.at(f"sqlite:///{tmp_path / 'program.db'}")
        yield made
        made.dispose()
        return
    with request.getfixturevalue("postgres").schema(f"program_{tmp_path.name[-40:]}".lower()) as url:
        made = Database.at(url)
        yield made
        made.dispose()
