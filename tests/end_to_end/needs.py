"""What may be missing on a developer's machine, and must not be where everything is tested."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest


def missing(what: str, *, module: bool = False) -> NoReturn:
    """Skip the test (or the whole module, while it is imported); fail where everything has to be there."""
    if os.environ.get("NETRA_WS_TEST_REQUIRE_ALL") == "1":
        pytest.fail(f"{what} is required here and was not found")
    pytest.skip(f"{what} was not found", allow_module_level=module)


def need_package(name: str) -> None:
    """Leave the importing module of tests out when a package is not there."""
    if find_spec(name) is None:
        missing(f"the package {name}", module=True)


def find_chromium() -> Path | None:
    """Return the Chromium of this system; the one that a test tool would download is never used."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("NETRA_WS_TEST_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    return Path(found) if found is not None and Path(found).exists() else None
