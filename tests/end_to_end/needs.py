"""What may be missing on a developer's machine, and must not be where everything is tested."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest


def missing(what: str, *, module: bool = False) -> NoReturn:
    """Skip the test (with *module* the file, when it is being imported); fail where everything has to be there."""
    if os.environ.get("NETRA_WS_TEST_REQUIRE_ALL") == "1":
        pytest.fail(f"{what} is required here and was not found")
    pytest.skip(f"{what} was not found", allow_module_level=module)


def need(name: str) -> ModuleType:
    """Return a module of a package that may be missing."""
    try:
        return import_module(name)
    except ImportError:
        missing(f"the package {name.partition('.')[0]}", module=True)


def find_chromium() -> Path | None:
    """Return the Chromium of this system; the one that a test tool would download is never used."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("NETRA_WS_TEST_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    return Path(found) if found is not None and Path(found).exists() else None
