"""The URL in the settings decides the driver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from netra_ws.errors import ConfigError
from netra_ws.history.opening import make_store


def test_memory_needs_no_sql() -> None:
    """Neither importing this module nor ``memory:`` imports SQLAlchemy, whose import takes long."""
    program = (
        "import sys; from netra_ws.history.opening import make_store; "
        "print(make_store('memory:').name, 'sqlalchemy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["memory", "False"]


async def test_a_relative_file_is_in_the_folder_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes name a file in the current folder, also when the program moves on before it opens."""
    monkeypatch.chdir(tmp_path)
    store = make_store("sqlite:///relative.db")
    monkeypatch.chdir("/")
    await store.open()
    await store.close()
    assert store.name == "sqlite"
    assert (tmp_path / "relative.db").exists()


async def test_an_absolute_file_is_taken_as_it_is(tmp_path: Path) -> None:
    """Four slashes name a file by its full path; no sign in it is decoded."""
    path = tmp_path / "a b%20ü.db"
    store = make_store(f"sqlite:///{path}", durability="power")
    await store.open()
    await store.close()
    assert path.exists()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory",
        "memory://",
        "memory:x",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:relative.db",
        "sqlite://host/file.db",
        "sqlite:////folder/",
        "sqlite:///file.db?mode=ro",
        "sqlite:///nul\0.db",
        "sqlite+aiosqlite:///file.db",
        "mysql://user:secret@host/db",
        "file.db",
        "/tmp/file.db",
    ],
)
def test_anything_else_is_refused_in_one_line(url: str) -> None:
    """A URL that cannot be served is refused with the setting's name and the forms that can."""
    with pytest.raises(ConfigError, match=r"^store\.url: .*sqlite[^\n]*$") as caught:
        make_store(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_postgresql_has_two_names(scheme: str) -> None:
    """PostgreSQL is found by its own name and by that of its driver, and shows where it is without the password."""
    pytest.importorskip("psycopg")
    store = make_store(f"{scheme}://user:secret@host:5/db", durability="power")
    assert store.name == "postgres"
    assert "postgresql://user@host:5/db" in repr(store)
    assert "secret" not in repr(store)


def test_postgresql_without_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where psycopg is not installed, one line says how to get it, and nothing of the URL."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"^store\.url: [^\n]*pip install 'netra_ws\[postgres\]'$") as caught:
        make_store("postgresql://user:secret@host/db")
    assert "secret" not in str(caught.value)
