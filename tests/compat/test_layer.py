"""The compatibility layer as a whole: its names, where they come from, and what importing them costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import trio

import netra_ws
from netra_ws import compat
from netra_ws.compat.connection import WebSocketConnection
from netra_ws.compat.factory import get_websocket_manager
from netra_ws.compat.manager import UnifiedWebSocketManager, WebSocketManagerProtocol
from netra_ws.compat.serialising import _serialize_message_safely, serialize_message_safely

from .sockets import JsonSocket

ROOM = Path(compat.__file__).parent
FILES = sorted(path.stem for path in ROOM.glob("*.py") if path.stem != "__init__")


def run(code: str) -> str:
    """Run *code* in a new process and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


@pytest.mark.parametrize(("name", "module"), compat._HOMES.items())
def test_a_name_is_what_its_module_has(name: str, module: str) -> None:
    """Each name of the layer is the very object of its module, and documented; the face gives no other one."""
    thing: Any = getattr(importlib.import_module(module), name)
    assert getattr(compat, name) is thing
    if callable(thing):
        assert inspect.getdoc(thing)
        assert thing.__module__.startswith(("netra_ws.compat.", "netra_ws.errors"))


def test_the_face_is_told_to_type_checkers() -> None:
    """Every name of ``__all__`` has a home and is imported as ``X as X``; nothing else is."""
    taken = [
        alias
        for node in ast.walk(ast.parse(Path(compat.__file__).read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    ]
    assert all(alias.asname == alias.name for alias in taken)
    assert {alias.name for alias in taken} == set(compat.__all__) == set(compat._HOMES)
    assert len(compat.__all__) == len(set(compat.__all__))
    with pytest.raises(AttributeError, match="WebsocketManager"):
        _ = compat.WebsocketManager


def test_older_names_are_the_same_things() -> None:
    """Names that older programs import beside the usual ones are the same objects."""
    assert importlib.import_module("netra_ws.compat.manager").WebSocketManager is UnifiedWebSocketManager
    assert _serialize_message_safely is serialize_message_safely


def test_a_module_stands_alone() -> None:
    """Every module can be imported first, in a process of its own: there is no circle."""
    code = f"""
import importlib, os, netra_ws
for name in {FILES}:
    child = os.fork()
    if not child:
        importlib.import_module("netra_ws.compat." + name)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""
    assert run(code) == ""


def test_nobody_pays_who_does_not_use_it() -> None:
    """Importing the package, or the face of the layer, imports none of the layer's modules."""
    code = "import sys, netra_ws, netra_ws.compat; print(*[n for n in sys.modules if n.startswith('netra_ws.compat.')])"
    assert run(code) == ""


def test_importing_it_again_makes_nothing_new() -> None:
    """A second import of the layer imports no module, and gives the same objects."""
    importlib.import_module("netra_ws.compat.factory")
    before = set(sys.modules)
    assert importlib.import_module("netra_ws.compat.factory").get_websocket_manager is get_websocket_manager
    assert set(sys.modules) == before


@pytest.mark.parametrize("file", FILES)
def test_what_a_module_defines_is_documented(file: str) -> None:
    """Every module says in its first line what it is for, and stays a size that can be read at once."""
    module = importlib.import_module(f"netra_ws.compat.{file}")
    assert inspect.getdoc(module)
    assert len((ROOM / f"{file}.py").read_text().splitlines()) <= 320


def test_the_face_defines_nothing_itself() -> None:
    """The face of the layer is short, and defines no class: it is a table of names."""
    source = Path(compat.__file__).read_text().removeprefix(f'"""{compat.__doc__}"""')
    assert "\nclass " not in source
    assert len(source) < 10_000
    assert len(str(compat.__all__)) < 2_000


def test_the_accessor_can_be_called() -> None:
    """The accessor works when it is called, with its warning."""
    with pytest.warns(UserWarning, match="SECURITY WARNING"):
        assert isinstance(get_websocket_manager(), WebSocketManagerProtocol)


def test_connections_are_made_through_the_layer() -> None:
    """A connection with ids of UUIDs and a thread is made through the layer and keeps them."""
    ids = [str(uuid.uuid4()) for _ in range(3)]
    made = WebSocketConnection(ids[0], ids[1], None, thread_id=ids[2])
    assert (made.connection_id, made.user_id, made.thread_id) == tuple(ids)


def test_complex_data_keeps_its_structure() -> None:
    """What is serialised through the layer keeps its structure."""
    message = {"type": "m", "data": {"list": [1, {"a": None}], "text": "λ", "deep": {"x": {"y": [True, 1.5]}}}}
    assert _serialize_message_safely(message) == message


async def test_parts_can_be_replaced_in_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program's test may put its own function in the place of a method, and gets its own back afterwards."""

    async def send(_self: UnifiedWebSocketManager, _user: str, _message: object) -> bool:
        return True

    manager = UnifiedWebSocketManager()
    with monkeypatch.context() as patch:
        patch.setattr(UnifiedWebSocketManager, "send_to_user", send)
        assert await manager.send_to_user("ada", {"type": "m"})
    assert not await manager.send_to_user("ada", {"type": "m"})
    socket = JsonSocket()
    with trio.fail_after(5):
        await manager.connect_user("ada", socket)
    assert socket.types == ["m"]


def test_the_package_does_not_export_the_layer() -> None:
    """The older names stay in the layer: the package's own face has none of them."""
    assert not set(compat.__all__) & set(netra_ws.__all__)
