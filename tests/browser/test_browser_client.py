"""The unit tests of netra-ws.js, run by Node's own test runner."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CLIENT_TESTS = Path(__file__).with_name("netra_ws_client.test.mjs")
TIMEOUT_S = 120


@pytest.mark.node
def test_browser_client() -> None:
    """The browser client keeps every promise that its own tests state."""
    node = shutil.which("node")
    if node is None:
        if os.environ.get("NETRA_WS_TEST_REQUIRE_ALL") == "1":
            pytest.fail("Node.js is required here and was not found")
        pytest.skip("Node.js was not found")
    outcome = subprocess.run(
        [node, "--test", str(CLIENT_TESTS)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert outcome.returncode == 0, outcome.stdout[-8000:] + outcome.stderr[-2000:]
