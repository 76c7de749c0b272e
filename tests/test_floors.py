"""The floors of the house: an import points to a lower floor or stays in its room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import netra_ws

HOUSE = Path(netra_ws.__file__).parent

#: Bottom up. Rooms of one floor do not know each other.
FLOORS = [
    "errors identity measures signals version",
    "settings protocol access",
    "history",
    "agents",
    "contexts",
    "wire",
    "pages",
    "policies asking keyring logs",
    "server",
    "cli chat bench compat testing __main__ __init__",
]
#: Rooms that stand beside the house, and all that they may know of it; the top floor may use them.
BESIDE = {
    "pending": {"protocol"},
    "joined": {"errors", "protocol"},
    "session": {"errors", "protocol", "pending", "joined"},
    "client": {"errors", "protocol", "pending", "joined", "session"},
}
#: Doors within the top floor.
DOORS = {("cli", "chat"), ("cli", "bench"), ("__main__", "cli")}

#: Library → the only rooms (or files) that import it.
ONLY = {
    "h11": {"wire", "client"},
    "trio_websocket": {"wire", "client"},
    "wsproto": {"wire", "client"},
    "prometheus_client": {"pages"},
    "sqlalchemy": {"history"},
    "alembic": {"history"},
    "psycopg": {"history"},
    "jwt": {"access"},
    "cryptography": {"access", "wire"},
    "httpx": {"agents", "keyring"},
    "httpx2": {"agents"},
    "mcp": {"agents"},
    "structlog": {"agents", "logs"},
    "opentelemetry": {"agents"},
    "jsonschema": {"agents"},
}
WITHOUT_TRIO = {"errors", "identity", "signals", "protocol", "access", "settings"}

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}


def imported(source: str, package: str) -> Iterator[str]:
    """Yield the full name of everything that *source*, a module in *package*, imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def problems(source: str, path: str) -> list[str]:
    """Return what is wrong with the imports of a file; *path* is relative to the house."""
    parts = Path(path).with_suffix("").parts
    room = parts[0]
    found = []
    for name in imported(source, ".".join(["netra_ws", *parts[:-1]])):
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if top == "netra_ws":
            # A name that is no room, such as __version__, is the package's own: its top floor.
            other = other if other in FLOOR or other in BESIDE else "__init__"
            wrong = other != room and not may_know(room, other)
        else:
            wrong = (top in ONLY and room not in ONLY[top]) or (top == "trio" and room in WITHOUT_TRIO)
        if wrong:
            found.append(f"{path}: {room} must not import {name}")
    return found


def may_know(room: str, other: str) -> bool:
    """Whether files of *room* may import from the room *other*."""
    if room in BESIDE:
        return other in BESIDE[room]
    if other in BESIDE:
        return FLOOR[room] == len(FLOORS) - 1
    return FLOOR[other] < FLOOR[room] or (room, other) in DOORS


FILES = sorted(path.relative_to(HOUSE).as_posix() for path in HOUSE.rglob("*.py"))


def test_every_room_has_a_floor() -> None:
    """A new room or module at top level cannot be added without a place in the house."""
    assert {Path(file).with_suffix("").parts[0] for file in FILES} <= FLOOR.keys() | BESIDE.keys()


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file: str) -> None:
    """Every import of every file points to a lower floor, and libraries stay in the rooms they belong to."""
    assert problems((HOUSE / file).read_text(), file) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("agents/run.py", "from netra_ws.wire.door import Door"),
        ("agents/run.py", "import netra_ws.wire"),
        ("agents/builtin/echo.py", "from ...contexts import registry"),
        ("agents/run.py", "from .. import server"),
        ("agents/run.py", "from netra_ws import Identity"),
        ("agents/run.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from netra_ws.wire import door"),
        ("history/stream.py", "def late():\n    from netra_ws.agents.run import Run"),
        ("protocol/codec.py", "from netra_ws.access import tokens"),
        ("protocol/codec.py", "import trio.lowlevel"),
        ("access/tokens.py", "from trio import current_time"),
        ("errors.py", "from .identity import Identity"),
        ("contexts/context.py", "import h11"),
        ("history/stream.py", "from prometheus_client import Counter"),
        ("session.py", "from netra_ws.history.stream import Stream"),
        ("wire/pump.py", "from netra_ws.session import Session"),
        ("bench.py", "from netra_ws.cli import main"),
    ],
)
def test_a_wrong_import_is_caught(path: str, source: str) -> None:
    """An import that goes up, sideways or to a library of another room is found, in whatever form."""
    assert len(problems(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("agents/run.py", "from netra_ws.history.stream import Stream\nfrom .tools import ToolCall\nimport trio"),
        ("agents/builtin/echo.py", "from ..run import Run\nfrom ...errors import NetraError"),
        ("wire/door.py", "import h11, trio_websocket\nfrom wsproto.utilities import LocalProtocolError"),
        ("cli.py", "from netra_ws import chat, server"),
        ("__init__.py", "from .agents.run import Run as Run\nfrom .server import serve as serve"),
    ],
)
def test_a_right_import_is_left_alone(path: str, source: str) -> None:
    """An import that goes down or stays in its room is not complained about."""
    assert problems(source, path) == []
