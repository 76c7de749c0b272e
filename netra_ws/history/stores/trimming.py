"""How old events leave the SQL store."""

from __future__ import annotations

import sqlalchemy as sa

from .schema import event, run, stream, unfinished

_of_stream = sa.and_(event.c.stream == stream.c.key, event.c.epoch == stream.c.epoch)

# The first event that has to stay. Ordered and limited, not min(): the walk along the tree ends there.
_first_kept = (
    sa.select(event.c.seq)
    .where(_of_stream)
    .where(
        sa.or_(
            event.c.created_at >= sa.bindparam("before"), event.c.run_id.in_(sa.select(run.c.run_id).where(unfinished))
        )
    )
    .order_by(event.c.seq)
    .limit(1)
    .correlate(stream)
    .scalar_subquery()
)
_last_trimmed = (
    sa.select(event.c.seq)
    .where(_of_stream, event.c.seq < sa.func.coalesce(_first_kept, 2**62))
    .order_by(event.c.seq.desc())
    .limit(1)
    .correlate(stream)
    .scalar_subquery()
)
_CUTS = sa.select(stream.c.key, stream.c.epoch, stream.c.trimmed, _last_trimmed.label("last"))
_CUT = event.delete().where(
    event.c.stream == sa.bindparam("of"), event.c.epoch == sa.bindparam("in_epoch"), event.c.seq <= sa.bindparam("last")
)
_MARK = stream.update().where(stream.c.key == sa.bindparam("of")).values(trimmed=sa.bindparam("trimmed_to"))


def trim(connection: sa.Connection, before: float) -> dict[str, int]:
    """Do what ``Store.trim`` promises in the transaction that *connection* is in."""
    cuts = [row for row in connection.execute(_CUTS, {"before": before}) if row.last is not None]
    if not cuts:
        return {}
    trimmed = {row.key: max(row.trimmed, row.last) for row in cuts}
    connection.execute(_CUT, [{"of": row.key, "in_epoch": row.epoch, "last": row.last} for row in cuts])
    connection.execute(_MARK, [{"of": key, "trimmed_to": upto} for key, upto in trimmed.items()])
    return trimmed
