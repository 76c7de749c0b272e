"""A server and a browser for each file of tests; tests that share them come as different users."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from .needs import find_chromium, missing
from .serving import ServerProcess, running_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from .window import launched  # needs a package that is not always there

    chromium = find_chromium()
    if chromium is None:
        missing("Chromium")
    # It runs an event loop in this thread, so it has to be gone before the next file of tests.
    with launched(chromium) as running:
        yield running
