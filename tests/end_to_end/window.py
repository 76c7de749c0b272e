"""One browser window with the console in it, and the words of a person who uses it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from .serving import ServerProcess

#: Milliseconds that anything may take before a person would call it broken.
PATIENCE_MS = 8_000
expect.set_options(timeout=PATIENCE_MS)

FLAGS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)

# Chromium reports what its policy stopped as an error on the console, too; but not in every case.
_TELL_VIOLATIONS = """
  document.addEventListener("securitypolicyviolation", (event) =>
    console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI}`));
"""


@attrs.define(eq=False)
class Window:
    """A window of a browser profile of its own, unless it was opened beside another one.

    Attributes:
        complaints: What the page or the browser found wrong: errors, violations of the policy, dialogs.
    """

    server: ServerProcess
    page: Page
    complaints: list[str] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        page = self.page
        page.set_default_timeout(PATIENCE_MS)
        page.add_init_script(_TELL_VIOLATIONS)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
        page.on("dialog", lambda dialog: (self.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def get(self, test_id: str) -> Locator:
        return self.page.get_by_test_id(test_id)

    def sign_in(self, user: str) -> None:
        """Open the login link of a user and wait for the connection."""
        self.page.goto(self.server.login(user))
        self.expect_connected()

    def beside(self, user: str) -> Window:
        """Open another tab in the same browser profile."""
        tab = Window(self.server, self.page.context.new_page(), self.complaints)
        tab.sign_in(user)
        return tab

    def say(self, text: str, agent: str | None = None) -> None:
        """Type a message and send it with Enter."""
        if agent is not None:
            self.get("agent").select_option(agent)
        self.get("composer").fill(text)
        self.get("composer").press("Enter")

    def ask(self, text: str, agent: str | None = None) -> Locator:
        """Say something, wait until it is answered, and return the newest run."""
        runs = self.page.locator(".run").count()
        self.say(text, agent)
        self.expect_status("success", nth=runs)
        return self.page.locator(".run").nth(runs)

    def expect_connected(self) -> None:
        expect(self.get("state")).to_have_attribute("data-state", "open")

    def expect_status(self, status: str, nth: int = -1) -> None:
        """Wait until the newest run, or number *nth*, has a status."""
        run = self.page.locator(".run").last if nth < 0 else self.page.locator(".run").nth(nth)
        expect(run.get_by_test_id("run-status")).to_have_attribute("data-status", status)

    def expect_text(self, locator: Locator, text: str | re.Pattern[str]) -> None:
        expect(locator).to_have_text(text)

    def texts(self, test_id: str) -> list[str]:
        return self.get(test_id).all_inner_texts()

    def run(self, script: str) -> Any:
        """Return what a piece of JavaScript in the page evaluates to."""
        return self.page.evaluate(script)

    def until(self, script: str) -> None:
        """Wait until a piece of JavaScript is true; playwright's own way evaluates texts, which our CSP forbids."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not self.run(script):
            assert time.monotonic() < deadline, f"never true: {script}"
            self.page.wait_for_timeout(20)

    def forgive(self, pattern: str) -> None:
        """Drop the complaints that a test has provoked."""
        self.complaints[:] = [said for said in self.complaints if not re.search(pattern, said)]


@contextmanager
def launched(chromium: Path) -> Iterator[Browser]:
    """Run a browser without windows on the screen beside the block."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to have one as root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*FLAGS, *sandbox], timeout=30_000)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_window(browser: Browser, server: ServerProcess, **options: Any) -> Iterator[Window]:
    """Open a window; when the block has ended well, nothing may have been complained about.

    Args:
        options: Of the browser context, such as ``viewport`` and ``color_scheme``.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "locale": "en-GB", **options})
    try:
        window = Window(server, context.new_page())
        yield window
        assert not window.complaints, window.complaints
    finally:
        context.close()
