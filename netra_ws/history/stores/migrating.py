"""How a database gets the tables of this version: from nothing, or from what an older version made."""

from __future__ import annotations

import logging
from pathlib import Path

import sqlalchemy as sa

from netra_ws.errors import StoreError

#: The revision that ``schema.py`` describes: the newest one in ``migrations``.
HEAD = "0003"
#: Where Alembic keeps the revision of a database.
REVISIONS = "netra_revision"
# In its place, files that were made before Alembic came have a number.
_FORMER = "netra_schema"

_MIGRATIONS = Path(__file__).with_name("migrations")


def prepare(connection: sa.Connection) -> None:
    """Bring the database to ``HEAD`` in the transaction that *connection* is in; do nothing when it is there.

    Raises:
        StoreError: A newer version of this package, or another program, made what is there.
    """
    tables = sa.inspect(connection).get_table_names()
    if REVISIONS in tables:
        found = connection.scalar(sa.select(sa.column("version_num")).select_from(sa.table(REVISIONS)))
        if found == HEAD:
            return
        if found is None or found > HEAD:
            raise _newer(found)
    elif _FORMER in tables:
        number = connection.scalar(sa.select(sa.column("version")).select_from(sa.table(_FORMER)))
        found = None if number is None else f"{number:04}"
        if found != "0001":
            raise _newer(found)
    elif tables:
        raise StoreError(f"it holds tables of another program, such as {tables[0]!r}")
    _upgrade(connection, adopt=_FORMER in tables)


def _newer(found: object) -> StoreError:
    return StoreError(f"it has schema {found}, this version of netra_ws knows {HEAD}; use a newer netra_ws")


def _upgrade(connection: sa.Connection, *, adopt: bool) -> None:
    # Imported here: it takes longer than all the rest of a start, and is needed once in the life of a version.
    logging.getLogger("alembic").setLevel(logging.WARNING)  # the import is some lines of INFO, each step another
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    if adopt:
        command.stamp(config, "0001")
        connection.execute(sa.text(f"DROP TABLE {_FORMER}"))
    command.upgrade(config, HEAD)
