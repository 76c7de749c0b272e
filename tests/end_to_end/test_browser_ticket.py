"""A page of another origin asks for a ticket and comes with it, in a real browser with its rules of CORS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .needs import need
from .serving import ServerProcess, running_server
from .test_browser_example import origin as origin

need("playwright.sync_api")

from playwright.sync_api import Browser  # noqa: E402

from .window import open_window  # noqa: E402

pytestmark = pytest.mark.browser

ASK = """async ([url, token]) => {
  const headers = { Authorization: `Bearer ${token}` };
  try {
    const answer = await fetch(`${url}/ws/ticket`, { method: "POST", headers });
    return { status: answer.status, ...(await answer.json()) };
  } catch (error) {
    return { failed: String(error) };
  }
}"""

COME = """([url, ticket]) => new Promise((resolve) => {
  const socket = new WebSocket(`${url}?ticket=${ticket}`, ["netra.v1"]);
  socket.onmessage = (message) => { resolve(JSON.parse(message.data).user_id); socket.close(); };
  socket.onerror = () => resolve(null);
})"""


@pytest.fixture
def strict(tmp_path: Path, origin: str) -> Iterator[ServerProcess]:
    """A server that names its origins: the one of the example."""
    with running_server(tmp_path, **{"origins.allowed": [origin]}) as running:
        yield running


def test_an_allowed_page(browser: Browser, strict: ServerProcess, origin: str) -> None:
    """The preflight passes, the page reads its ticket or why there is none, and the ticket opens one socket."""
    with open_window(browser, strict) as window:
        window.page.goto(origin)
        given = window.page.evaluate(ASK, [strict.url, strict.token("grace")])
        assert (given["status"], given["single_use"]) == (200, True)
        assert window.page.evaluate(COME, [strict.socket_url, given["ticket"]]) == "grace"
        assert window.page.evaluate(COME, [strict.socket_url, given["ticket"]]) is None
        bad = window.page.evaluate(ASK, [strict.url, "nonsense"])
        assert (bad["status"], bad["code"]) == (401, "TOKEN_INVALID")
        window.forgive("401|HTTP Authentication failed")


def test_a_foreign_page(browser: Browser, strict: ServerProcess, origin: str) -> None:
    """A page that is not in the list learns nothing, whatever token it has."""
    with open_window(browser, strict) as window:
        window.page.goto(origin.replace("127.0.0.1", "localhost"))
        given = window.page.evaluate(ASK, [strict.url, strict.token("grace")])
        assert "failed" in given
        window.forgive("CORS|Failed to load|ERR_FAILED")
