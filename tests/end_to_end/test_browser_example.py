"""The example of a page of one's own: another origin, the browser client of the server, nothing else."""

from __future__ import annotations

import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from .needs import need
from .serving import ROOT, START_S, STOP_S, ServerProcess, running_server

need("playwright.sync_api")

from playwright.sync_api import Browser, expect  # noqa: E402

from .window import Window, open_window  # noqa: E402

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """Serve the example as its own comment says, and return where it is."""
    folder = str(ROOT / "examples" / "browser")
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], START_S)
            found = re.search(r"port (\d+)", process.stdout.readline() if ready else "")
            assert found is not None, "http.server did not start"
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.kill()
            process.wait(STOP_S)


def visit(window: Window, origin: str, user: str) -> None:
    given = {"server": window.server.url, "token": window.server.token(user)}
    window.page.goto(f"{origin}/#{urlencode(given)}")
    expect(window.page.locator("#state")).to_have_text(f"Connected as {user}")


def test_page_of_another_origin_is_answered(browser: Browser, server: ServerProcess, origin: str) -> None:
    """The example asks over another origin, streams the answer as text, and keeps the token out of the address."""
    with open_window(browser, server) as window:
        page = window.page
        visit(window, origin, "grace")
        assert page.url == f"{origin}/"
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("#answer")).to_have_text("17% of 2,340 = 397.8")
        page.locator("#question").fill("What time is it in <b>Tokyo</b>?")
        page.locator("#question").press("Enter")
        expect(page.locator("#answer")).to_contain_text("Tokyo")
        assert page.locator("#answer *").count() == 0
        expect(page.get_by_role("button", name="Stop")).to_be_disabled()


def test_form_and_stop_button(browser: Browser, tmp_path: Path, origin: str) -> None:
    """Server and token can be typed in; a running answer grows, and Stop ends it."""
    with running_server(tmp_path, **{"agents.default": "slow"}) as server, open_window(browser, server) as window:
        page = window.page
        page.goto(origin)
        page.get_by_label("Server").fill(server.url)
        page.get_by_label("Token").fill(server.token("hopper"))
        page.get_by_role("button", name="Connect").click()
        expect(page.locator("#state")).to_have_text("Connected as hopper")
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("#answer")).to_contain_text("word4")
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#answer")).to_contain_text("[cancelled]")
        expect(page.get_by_role("button", name="Ask")).to_be_enabled()
