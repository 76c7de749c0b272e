"""Jobs: streams that several users may be granted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table of jobs."""
    text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.create_table(
        "job",
        sa.Column("key", text, nullable=False),
        sa.Column("job_id", text, nullable=False),
        sa.Column("user_id", text, nullable=False),
        sa.Column("opened_at", sa.Double, nullable=False),
        sa.Column("closed", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    is_open = sa.column("closed") == sa.false()
    op.create_index("job_open", "job", ["job_id"], unique=True, sqlite_where=is_open, postgresql_where=is_open)
    op.create_index("job_of_user", "job", ["user_id"])
