"""One incarnation of a job in memory: whose it is, who reads it, and who may."""

from __future__ import annotations

import attrs
import trio

from netra_ws.errors import ClientError
from netra_ws.history.stores.contract import JobRow
from netra_ws.history.stream import Stream
from netra_ws.identity import PUBLISH, Identity

from .connection import Connection
from .lane import Lane


@attrs.define(eq=False, repr=False)
class LiveJob:
    """One incarnation of a job that is in memory.

    Attributes:
        row: Who has opened it; None while nobody has.
        closed: Whether its id has become free; who reads it still gets everything that was said.
        kept: Set when the store knows that it was opened; None for one that it knew before.
        pins: How many connections and calls use it.
        idle_bytes: What it held of events when its last pin was given back.
        seats: The connections that read it.
    """

    job_id: str
    stream: Stream
    row: JobRow | None
    closed: bool = False
    kept: trio.Event | None = None
    pins: int = 0
    idle_bytes: int = 0
    seats: dict[Connection, Lane] = attrs.field(factory=dict)
    opening: trio.Lock = attrs.field(factory=trio.Lock)

    def __repr__(self) -> str:
        return f"<LiveJob {self.job_id!r} of {self.owner!r}, {len(self.seats)} read>"

    @property
    def owner(self) -> str | None:
        """The user whose it is."""
        return None if self.row is None else self.row.user_id

    @property
    def settled(self) -> bool:
        """Whether all that was said is committed, the opening included."""
        return not self.is_being_opened and self.stream.visible == self.stream.last

    @property
    def is_being_opened(self) -> bool:
        """Whether it was opened, and the store does not know it yet."""
        return self.kept is not None and not self.kept.is_set()

    @property
    def over(self) -> bool:
        """Whether nothing more will be said in it, and all that was can be read."""
        return self.closed and self.stream.visible == self.stream.last

    def may_read(self, identity: Identity) -> bool:
        """Whether a user may read it: the owner who may read at all, or who was granted it."""
        return (self.owner == identity.user_id and identity.may("read")) or identity.may_read_job(self.job_id)

    def may_speak(self, identity: Identity) -> bool:
        """Whether a program may speak into it in a user's name: the owner, or who was granted it and publishing."""
        granted = identity.may_read_job(self.job_id) and identity.may(PUBLISH)
        return self.owner in (None, identity.user_id) or granted


def missing_job() -> ClientError:
    """Return what is said of a job that is not there, or that was not granted: the same."""
    return ClientError("NOT_FOUND", "there is no such job")
