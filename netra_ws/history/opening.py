"""From a URL in the settings to the driver behind it. A driver is imported only when it is asked for."""

from __future__ import annotations

from pathlib import Path

from netra_ws.errors import ConfigError

from .stores.contract import Durability, Store


def make_store(url: str, *, durability: Durability = "process") -> Store:
    """Make the store of *url*, still to be opened.

    ``memory:`` keeps nothing beyond this process. ``sqlite:///file.db`` is a file in the folder that is
    current now, ``sqlite:////folder/file.db`` one by its full path. ``postgresql+psycopg://`` (or
    ``postgresql://``) goes to libpq with all its parameters; the tables are in the first schema of the
    search path, so ``?options=-csearch_path%3Dnetra`` puts them into a schema of their own.

    *durability* says what a committed write survives: ``process`` the death of this process, ``power``
    also that of the machine. PostgreSQL waits for its disk either way, unless it is told not to
    (``synchronous_commit = off``); that ``power`` overrules.

    Raises:
        ConfigError: There is no such driver, it is not installed, or the URL cannot be read.
    """
    scheme, _, rest = url.partition(":")
    if url == "memory:":
        from .stores.memory import MemoryStore

        return MemoryStore()
    if scheme == "sqlite":
        from .stores.sql import SqlStore
        from .stores.sqlite import SqliteFile

        return SqlStore(SqliteFile(_file_of(rest), durability))
    if scheme in ("postgresql", "postgresql+psycopg"):
        return _postgres(url, durability)
    # Only the scheme is repeated: what follows may hold a password.
    raise ConfigError(
        "store.url: must be memory:, sqlite:///file.db, sqlite:////folder/file.db or "
        f"postgresql+psycopg://user:password@host/database, not {scheme[:40]!r}"
    )


def _postgres(url: str, durability: Durability) -> Store:
    from .stores.sql import SqlStore

    try:
        import psycopg  # noqa: F401  # also raises where libpq is missing
    except ImportError:
        raise ConfigError("store.url: PostgreSQL needs psycopg: pip install 'netra_ws[postgres]'") from None
    from .stores.postgres import PostgresSchema

    return SqlStore(PostgresSchema(url, durability))


def _file_of(rest: str) -> Path:
    name = rest.removeprefix("///")
    if name == rest or name in ("", ":memory:") or name.endswith("/"):
        raise ConfigError("store.url: sqlite needs a file, as in sqlite:///file.db or sqlite:////folder/file.db")
    if any(character in name for character in "?#\0"):
        raise ConfigError("store.url: sqlite takes a file and no options; its name cannot have a ?, # or NUL")
    return Path(name).absolute()
