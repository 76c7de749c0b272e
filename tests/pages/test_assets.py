from __future__ import annotations

import re

import pytest

from tests.conftest import StartServer
from tests.kit import Answer, http

DIRECTIVES = {
    "default-src 'none'",
    "script-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
}


def strict(answer: Answer) -> None:
    """Check the headers that keep a page harmless."""
    assert set(answer.headers["content-security-policy"].split("; ")) >= DIRECTIVES
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


async def test_the_console_comes_with_everything_it_needs(server: StartServer) -> None:
    """The page and each file it names are there, with their types, under a strict policy."""
    running = await server(server__console=True)
    page = await http(running, "/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    strict(page)
    text = page.body.decode()
    named = set(re.findall(r'(?:src|href)="(/[^"]+)"', text))
    assert named
    types = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
    for path in named:
        answer = await http(running, path)
        assert (answer.status, answer.headers["content-type"]) == (200, types[path.rpartition(".")[2]])
        strict(answer)
    assert "style=" not in text
    assert not re.search(r"<script(?![^>]*src=)", text), "no inline script, the policy would stop it"


@pytest.mark.parametrize("console", [True, False])
async def test_the_browser_client_is_always_there_for_any_page(console: bool, server: StartServer) -> None:
    """Pages of other origins may load the client, whether there is a console or not."""
    answer = await http(await server(server__console=console), "/netra-ws.js")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert answer.headers["access-control-allow-origin"] == "*"
    strict(answer)


async def test_the_console_can_be_turned_off(server: StartServer) -> None:
    """Without it neither the page nor its files exist."""
    running = await server(server__console=False)
    for path in ("/", "/console/console.js", "/console/console.css", "/index.html"):
        answer = await http(running, path)
        assert (answer.status, answer.json()["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    "path",
    ["/console/../server.py", "/console/%2e%2e/x", "/console/", "/console/__init__.py", "/../etc/passwd", "/console"],
)
async def test_only_files_of_the_console_are_served(path: str, server: StartServer) -> None:
    """There is no way to any other file."""
    assert (await http(await server(server__console=True), path)).status == 404


async def test_the_head_of_a_page_says_its_length(server: StartServer) -> None:
    """HEAD is GET without the body."""
    running = await server(server__console=True)
    got, head = await http(running, "/"), await http(running, "/", method="HEAD")
    assert head.body == b""
    assert head.headers["content-length"] == str(len(got.body))
