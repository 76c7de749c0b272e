"""What Alembic runs around the steps: on the connection that ``migrating.py`` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from netra_ws.history.stores.migrating import REVISIONS
from netra_ws.history.stores.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=REVISIONS,
    # Also SQLite: a step that fails, or is killed, leaves what was there.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
