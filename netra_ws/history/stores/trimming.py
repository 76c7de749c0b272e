"""How old events leave the SQL store: found by reading, then told, then removed, a portion at a time."""

from __future__ import annotations

from collections.abc import Sequence
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
_CUT = event.delete().where(
    event.c.stream == sa.bindparam("of"), event.c.epoch == sa.bindparam("in_epoch"), event.c.seq <= sa.bindparam("last")
)


@attrs.frozen
class Cut:
    """Events of a stream that go: those up to *last*."""

    key: str
    epoch: str
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
            cuts.append(Cut(key, epoch, going[-1]))
            room -= len(going)
            if room <= 0:
                return cuts, behind
            behind = key
        behind = page[-1].key
    return cuts, None


def mark(connection: sa.Connection, cuts: Sequence[Cut]) -> None:
    """Keep up to where the streams may have lost events, in the transaction that *connection* is in."""
    connection.execute(_MARK, [{"of": cut.key, "last": cut.last} for cut in cuts])


def remove(connection: sa.Connection, cuts: Sequence[Cut]) -> None:
    """Remove the events, in the transaction that *connection* is in."""
    connection.execute(_CUT, [{"of": cut.key, "in_epoch": cut.epoch, "last": cut.last} for cut in cuts])
