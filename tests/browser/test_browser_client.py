"""The unit tests of the scripts that need no page, run by Node's own test runner."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = sorted(Path(__file__).parent.glob("*.test.mjs"))
TIMEOUT_S = 120


@pytest.mark.node
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name.partition(".")[0])
def test_scripts(script: Path) -> None:
    """The browser client, and what forms are made from, keep every promise that their own tests state."""
    node = shutil.which("node")
    if node is None:
        if os.environ.get("NETRA_WS_TEST_REQUIRE_ALL") == "1":
            pytest.fail("Node.js is required here and was not found")
        pytest.skip("Node.js was not found")
    outcome = subprocess.run(
        [node, "--test", str(script)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert outcome.returncode == 0, outcome.stdout[-8000:] + outcome.stderr[-2000:]
