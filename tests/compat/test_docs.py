"""The page for those who come from the older API: its examples run, and its tables are true."""

from __future__ import annotations

import ast
import re
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest

import netra_ws
import netra_ws.compat
from netra_ws.settings import ENVIRONMENTS, LEAVES, Settings
from netra_ws.wire.paths import OLDER_PATHS, SOCKET_PATHS
from tests.conftest import StartServer
from tests.kit import settings, token

PAGE = netra_ws.compat.__doc__ or ""
#: The table of names of ``netra_ws.compat``: the examples with these names run from when it is there.
HAS_NAMES = hasattr(netra_ws.compat, "__all__")


def sections() -> Iterator[tuple[str, str]]:
    """Yield title and text of each section."""
    parts = re.split(r"^(.+)\n[.-]{4,}$", PAGE, flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def blocks(mark: str) -> list[Any]:
    """Return the indented blocks behind ``mark::``, each under the title of its section."""
    found = []
    for title, text in sections():
        for match in re.finditer(rf"^{mark}::\n\n((?:(?: {{4}}.*)?\n)+)", text, flags=re.MULTILINE):
            code = "\n".join(line[4:] for line in match[1].splitlines())
            found.append(pytest.param(code, id=title.split(" become")[0]))
    return found


async def run(code: str, server: StartServer) -> None:
    """Run a block as the body of an asynchronous function of a program that has a server, settings and a token."""
    given = {"netra_ws": netra_ws, "server": await server(), "settings": settings(), "token": token()}
    compiled = compile(code, "<the page>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    awaited = eval(compiled, given)
    if isinstance(awaited, Awaitable):
        await awaited


@pytest.mark.parametrize("code", blocks("Natively"))
async def test_native_examples_run(code: str, server: StartServer) -> None:
    """What the page says how to do it natively does it."""
    await run(code, server)


@pytest.mark.skipif(not HAS_NAMES, reason="netra_ws.compat has no names yet")
@pytest.mark.parametrize("code", blocks("With these names"))
async def test_examples_with_the_older_names_run(code: str, server: StartServer) -> None:
    """What the page says how to do it with the older names does it."""
    await run(code, server)


@pytest.mark.parametrize("code", blocks("Before"))
def test_examples_of_before_are_not_forgotten_names(code: str) -> None:
    """The blocks of before are there to be compared with; each that is a program is one that Python can read."""
    if not code.lstrip().startswith("{"):
        compile(code, "<before>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_every_topic_has_its_place() -> None:
    """Managers, the accessor, events, jobs, handlers, envelopes, tokens, close codes, origins, pages and numbers."""
    titles = dict(sections())
    for word in (
        "Managers", "One instance", "Critical events", "Agent handlers", "Jobs and rooms", "Three envelopes",
        "What carries a token", "How connections end", "Origins", "Where things are asked for", "Numbers",
    ):  # fmt: skip
        assert any(title.startswith(word) for title in titles), word
    assert len(blocks("Natively")) >= 6
    assert len(blocks("With these names")) >= 5
    assert len(blocks("Before")) >= 7


def test_every_older_address_is_in_the_page() -> None:
    """Each alias and each socket is named, with where it leads."""
    text = dict(sections())["Where things are asked for"]
    for path in SOCKET_PATHS | OLDER_PATHS.keys():
        assert path in text, path
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("    /ws/")}
    for path, ours in OLDER_PATHS.items():
        assert ours in SOCKET_PATHS or path in rows[ours]


def test_numbers_of_the_page_are_those_of_the_settings() -> None:
    """Each number is what the settings of that environment have."""
    text = dict(sections())["Numbers"]
    told = 0
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if name not in LEAVES:
            continue
        section, _, key = name.partition(".")
        by_environment = {word: number for number, word in re.findall(r"(\d+) (\w+)", value)}
        for environment in ENVIRONMENTS:
            expected = float(by_environment.get(environment, value.strip()))
            assert getattr(getattr(Settings(environment=environment), section), key) == expected, (name, environment)
            told += 1
    assert told >= 40
