"""The console over TLS, with the headers of production, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..tls import Authority
from .needs import need
from .serving import ServerProcess, running_server

need("playwright.sync_api")

from playwright.sync_api import Browser  # noqa: E402

from .window import open_window  # noqa: E402

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("secure")
    with running_server(folder, **Authority(folder).issue()) as running:
        yield running


def test_the_console_works_over_tls(browser: Browser, secure: ServerProcess) -> None:
    """Signing in, asking and returning work over https and wss, and no policy is violated."""
    with open_window(browser, secure, ignore_https_errors=True) as window:
        window.sign_in("ada")
        assert window.page.url == f"{secure.url}/"
        assert "25" in window.ask("what is 5 * 5?").inner_text()
        window.page.reload()
        window.expect_connected()
        assert (
            window.run("isSecureContext && performance.getEntriesByType('navigation')[0].nextHopProtocol") == "http/1.1"
        )
        headers = window.page.request.get(secure.url).headers
        assert headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("what", ["a frame", "a socket elsewhere", "an inline script"])
def test_what_the_policy_stops(browser: Browser, secure: ServerProcess, what: str) -> None:
    """A page of ours is not framed, opens no socket to another host, and runs no script but its own."""
    with open_window(browser, secure, ignore_https_errors=True) as window:
        window.page.goto(secure.url)
        if what == "a frame":
            window.run("document.body.append(Object.assign(document.createElement('iframe'), {src: '/'}))")
            wanted = "frame"
        elif what == "a socket elsewhere":
            window.run("(() => { try { new WebSocket('wss://127.0.0.2:9/ws') } catch {} })()")
            wanted = "connect-src"
        else:
            window.run(
                "document.body.append(Object.assign(document.createElement('script'), {text: 'window.bad = 1'}))"
            )
            assert window.run("window.bad") is None
            wanted = "script-src"
        window.page.wait_for_timeout(300)
        assert any(wanted in said for said in window.complaints), window.complaints
        window.complaints.clear()
