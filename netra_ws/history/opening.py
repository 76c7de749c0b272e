"""From a URL in the settings to the driver behind it. A driver is imported only when it is asked for."""

from __future__ import annotations

from pathlib import Path

from netra_ws.errors import ConfigError

from .stores.contract import Durability, Store


def make_store(url: str, *, durability: Durability = "process") -> Store:
    """Make the store of *url*, still to be opened.

    ``memory:`` keeps nothing beyond this process. ``sqlite:///file.db`` is a file in the folder that is
    current now, ``sqlite:////folder/file.db`` one by its full path. *durability* says what a committed
    write survives: ``process`` the death of this process, ``power`` also that of the machine.

    Raises:
        ConfigError: There is no such driver, or the URL names no file.
    """
    scheme, _, rest = url.partition(":")
    if url == "memory:":
        from .stores.memory import MemoryStore

        return MemoryStore()
    if scheme == "sqlite":
        from .stores.sql import SqlStore
        from .stores.sqlite import SqliteFile

        return SqlStore(SqliteFile(_file_of(rest), durability))
    # Only the scheme is repeated: what follows may hold a password.
    if scheme in ("postgresql", "postgresql+psycopg"):
        raise ConfigError(f"store.url: {scheme} is not available yet; use sqlite:///file.db or memory:")
    raise ConfigError(
        f"store.url: must be memory:, sqlite:///file.db or sqlite:////folder/file.db, not {scheme[:40]!r}"
    )


def _file_of(rest: str) -> Path:
    name = rest.removeprefix("///")
    if name == rest or name in ("", ":memory:") or name.endswith("/"):
        raise ConfigError("store.url: sqlite needs a file, as in sqlite:///file.db or sqlite:////folder/file.db")
    if any(character in name for character in "?#\0"):
        raise ConfigError("store.url: sqlite takes a file and no options; its name cannot have a ?, # or NUL")
    return Path(name).absolute()
