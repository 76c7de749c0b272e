"""How old events leave the SQL store: found by reading, marked, and when readers know removed; in portions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

import attrs
import sqlalchemy as sa

from .schema import event, stream, unfinished_run_of

#: Events that one portion removes at most: tens of milliseconds in which nothing else can be written.
PORTION = 5_000
# Streams looked at by one statement.
_PAGE = 1_000

_stays = sa.or_(event.c.created_at >= sa.bindparam("before", type_=sa.Double), unfinished_run_of(event))
# Of most streams the first event is enough to know that nothing goes.
_first_stays = (
    sa.select(_stays)
    .where(event.c.stream == stream.c.key, event.c.epoch == stream.c.epoch)
    .order_by(event.c.seq)
    .limit(1)
    .correlate(stream)
    .scalar_subquery()
)
_STREAMS = (
    sa.select(stream.c.key, stream.c.epoch, _first_stays.label("stays"))
    .where(stream.c.key > sa.bindparam("behind"))
    .order_by(stream.c.key)
    .limit(_PAGE)
)
_FRONT = (
    sa.select(event.c.seq, _stays.label("stays"))
    .where(event.c.stream == sa.bindparam("stream"), event.c.epoch == sa.bindparam("epoch"))
    .order_by(event.c.seq)
    .limit(sa.bindparam("most", type_=sa.BigInteger))
)
_MARK = (
    stream.update()
    .where(stream.c.key == sa.bindparam("of"), stream.c.trimmed < sa.bindparam("last"))
    .values(trimmed=sa.bindparam("last"))
)
_MARKS = sa.select(stream.c.key, stream.c.trimmed).where(stream.c.key.in_(sa.bindparam("keys", expanding=True)))
_epoch_of = sa.select(stream.c.epoch).where(stream.c.key == sa.bindparam("of")).scalar_subquery()
_REMOVE = event.delete().where(
    event.c.stream == sa.bindparam("of"), event.c.epoch == _epoch_of, event.c.seq <= sa.bindparam("last")
)


@attrs.frozen
class Cut:
    """Events of a stream that may go: those up to *last*."""

    key: str
    last: int


def find(connection: sa.Connection, before: float, behind: str) -> tuple[list[Cut], str | None]:
    """Return what to cut next, ``PORTION`` events at most, of streams whose key comes behind *behind*.

    Returns:
        The cuts, none when nothing is left there; and the key behind which to go on, None at the end.
    """
    cuts: list[Cut] = []
    room = PORTION
    while page := connection.execute(_STREAMS, {"behind": behind, "before": before}).all():
        for key, epoch in ((row.key, row.epoch) for row in page if row.stays is not None and not row.stays):
            where = {"stream": key, "epoch": epoch, "before": before, "most": room}
            front = connection.execute(_FRONT, where).all()
            going = [row.seq for row in takewhile(lambda row: not row.stays, front)]
            if not going:  # it was shortened since the page was read
                continue
            cuts.append(Cut(key, going[-1]))
            room -= len(going)
            if room <= 0:
                return cuts, behind
            behind = key
        behind = page[-1].key
    return cuts, None


def mark(connection: sa.Connection, cuts: Sequence[Cut]) -> dict[str, int]:
    """Say of the streams up to where they may lose events, in the transaction that *connection* is in.

    Returns:
        Key → ``trimmed`` as it is now: beyond the cut where it was so before.
    """
    connection.execute(_MARK, [{"of": cut.key, "last": cut.last} for cut in cuts])
    marks = connection.execute(_MARKS, {"keys": [cut.key for cut in cuts]})
    return {row.key: row.trimmed for row in marks}


def remove(connection: sa.Connection, ends: Mapping[str, int]) -> None:
    """Remove the events of streams up to *ends*, in the transaction that *connection* is in."""
    if ends:
        connection.execute(_REMOVE, [{"of": key, "last": last} for key, last in ends.items()])
