"""What the console's files must not contain, so that its content security policy holds and markup stays text."""

import re
from pathlib import Path

import pytest

import netra_ws

CONSOLE = Path(netra_ws.__file__).parent / "pages" / "console"
SCRIPTS = sorted(CONSOLE.glob("*.js"))
SINKS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|setHTML|\beval\(|new Function|\.cssText"
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_no_script_parses_markup(script: Path) -> None:
    """Text from outside reaches the page as text nodes only."""
    assert SINKS.search(script.read_text(encoding="utf-8")) is None


def test_page_needs_no_inline_code() -> None:
    """The page works under a policy without inline scripts, styles and event handlers."""
    page = (CONSOLE / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\ssrc=)[^>]*>", page) == []
    assert re.findall(r"<style|\sstyle\s*=|\son[a-z]+\s*=|javascript:", page) == []


def test_every_asset_exists_and_is_our_own() -> None:
    """The page and its scripts name only files that the server has, and no other host."""
    sources = [(CONSOLE / "index.html"), *SCRIPTS]
    named: set[str] = set()
    for source in sources:
        text = source.read_text(encoding="utf-8")
        named.update(re.findall(r'(?:src|href)="(/[^"]+)"', text))
        named.update(re.findall(r'from "([^"]+)"', text))
        assert re.findall(r'(?:src|href)="(?:https?:)?//', text) == []
    assert {"/netra-ws.js", "/console/console.js", "/console/console.css", "/console/icon.svg"} <= named
    for path in named:
        assert path == "/netra-ws.js" or path.startswith("/console/"), path
        assert (CONSOLE / path.rpartition("/")[2]).is_file(), path
