"""Signing out: what an operator's ``kick`` does to a user, or to the connections of one token.

At once, without a checkpoint: the revocation counts, the sockets begin to close with 4010, the runs of a user are
cancelled. What is left is waiting for the proof: commands under way are over, the runs have ended, the revocation
is in the store. A client that was let in before the kick and has no seat yet is met when it takes one
(``Registry.attached``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import attrs
import trio

from netra_ws.access import Revocation, issued_at
from netra_ws.agents.run import Run
from netra_ws.agents.states import RunState
from netra_ws.errors import ClientError
from netra_ws.history.stores.contract import PutRevocation, RevocationRow
from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.events import CancelledBy

from .connection import Connection
from .stopping import proof_of_end

#: Bytes that a Close frame has for its reason (RFC 6455 §5.5, less the code).
MAX_REASON = 123
SIGNED_OUT = "signed out by an operator"
#: Seconds that an issuer's clock may be ahead: the largest auth.leeway_s.
LEEWAY_S = 3_600.0


@attrs.frozen
class Whom:
    """Whom a kick is for, and why.

    Attributes:
        user_id: A user, or None.
        token_id: Whoever came with that token, or None.
        reason: What they are told.
        operator: Who kicks.
    """

    user_id: str | None
    token_id: str | None = attrs.field(repr=False)
    reason: str | None = None
    operator: str = ""


@attrs.frozen
class Kicked:
    """How much ended: connections, and runs that were going on or waiting for their turn."""

    connections: int
    runs: int


@attrs.frozen
class Met:
    """What the tokens that a kick met say of themselves, in Unix seconds.

    Attributes:
        last_expiry: When the last of them expires; None when one does not, or there is none.
        last_issue: When the last of them was issued; an issuer's clock may be ahead of ours, by a leeway at most.
    """

    last_expiry: float | None
    last_issue: float


class Kickable(Protocol):
    """What a kick needs of a user's context."""

    @property
    def user_id(self) -> str: ...

    @property
    def connections(self) -> Mapping[str, Connection]: ...

    @property
    def runs(self) -> Mapping[str, Run]: ...

    def stop(self, run: Run, by: CancelledBy) -> None: ...


def sign_out(connection: Connection, reason: str | None) -> None:
    """Begin to close a connection whose client is not meant to come back."""
    connection.explicit = True
    connection.shut(CloseCode.SIGNED_OUT, _bounded(reason))


def _bounded(reason: str | None) -> str:
    return (reason or SIGNED_OUT).encode()[:MAX_REASON].decode(errors="ignore")


@attrs.define(eq=False, repr=False)
class Kick:
    """One kick: ``begin`` acts, ``look_again`` meets what was under way, ``proof`` waits for what came of both.

    Attributes:
        by: The connection that says it; of the operator's own user, it is closed behind its answer.
    """

    whom: Whom
    by: Connection | None
    _contexts: list[Kickable] = attrs.field(factory=list)
    _connections: list[Connection] = attrs.field(factory=list)
    _runs: dict[str, Run] = attrs.field(factory=dict)
    _looked: trio.Event = attrs.field(factory=trio.Event)

    def begin(self, contexts: Iterable[Kickable], now: float) -> Met:
        """Close and cancel, without waiting; return what was met at *now*, in Unix seconds."""
        user_id, token_id = self.whom.user_id, self.whom.token_id
        for context in contexts:
            if user_id is None:
                seated = list(context.connections.values())
                self._connections += [each for each in seated if each.identity.token_id == token_id]
            elif context.user_id == user_id:
                self._contexts.append(context)
                self._connections += context.connections.values()
        met = self._met(now)
        for connection in self._connections:
            if connection is not self.by:
                sign_out(connection, self.whom.reason)
        for context in self._contexts:
            for run in list(context.runs.values()):
                self._stop(context, run)
        return met

    def _met(self, now: float) -> Met:
        identities = [each.identity for each in self._connections]
        expiries = [identity.expires_at for identity in identities]
        known = [at for at in expiries if at is not None]
        issues = [at for identity in identities if (at := issued_at(identity)) is not None]
        return Met(
            last_expiry=max(known) if known and len(known) == len(expiries) else None,
            # A program's own rule may count in milliseconds; revoked until then, nobody would ever come in again.
            last_issue=max((at for at in issues if at <= now + LEEWAY_S), default=0.0),
        )

    def __repr__(self) -> str:
        return f"<Kick of {len(self._connections)} connections, {len(self._runs)} runs>"

    def _stop(self, context: Kickable, run: Run) -> None:
        if run.settled.is_set():
            return
        self._runs[run.run_id] = run
        if run.state is RunState.STOPPING:
            run.steered()  # whoever stopped it before may have left a follow-up to what nobody reads
        else:
            context.stop(run, "admin")

    async def look_again(self, patience_s: float) -> None:
        """Wait for the commands that are being carried out, and cancel what they have started.

        A task of its own: whoever kicks may be gone before that.

        Args:
            patience_s: Seconds for these commands.
        """
        try:
            with trio.move_on_after(patience_s):
                for connection in self._connections:
                    if connection is not self.by:
                        await connection.turn_over()
            # A start that was under way when the kick came has its run by now; only whoever kicks themselves
            # can begin another one, until they are answered.
            identities = {id(connection.identity) for connection in self._connections}
            for context in self._contexts:
                for run in list(context.runs.values()):
                    if id(run.identity) in identities:
                        self._stop(context, run)
        finally:
            self._looked.set()

    async def proof(self) -> Kicked:
        """Wait until nothing goes on in the name of those who were kicked.

        Their sockets may still be closing: a client that says nothing has its seconds for that.

        Raises:
            ClientError: ``CANCEL_TIMEOUT`` when a run could not be stopped, ``UNAVAILABLE`` when the store has not
                taken the end of one. Everything else was ended all the same.
        """
        await self._looked.wait()
        await self._ended()
        return Kicked(len(self._connections), len(self._runs))

    def sign_out_last(self) -> None:
        """Close the connection that kicked its own user; it is answered before the next checkpoint."""
        if self.by in self._connections:
            self.by.explicit = True
            self.by.shut_behind(CloseCode.SIGNED_OUT, _bounded(self.whom.reason))

    async def _ended(self) -> None:
        troubles: list[ClientError] = []

        async def wait(run: Run) -> None:
            try:
                await proof_of_end(run)
            except ClientError as error:
                troubles.append(error)

        async with trio.open_nursery() as nursery:  # together: with the store away each of them takes its time
            for run in self._runs.values():
                nursery.start_soon(wait, run)
        if troubles:
            raise troubles[0]


def row_of(revocation: Revocation) -> PutRevocation:
    """Return how the store keeps a revocation."""
    user_id = revocation.user_id
    return PutRevocation(
        row=RevocationRow(
            kind="token" if user_id is None else "user",
            subject=user_id or revocation.token or "",
            revoked_at=revocation.revoked_at,
            until=revocation.until,
        )
    )


def read_row(row: RevocationRow) -> Revocation:
    """Return the revocation that the store has kept as *row*."""
    user_id, token = (row.subject, None) if row.kind == "user" else (None, row.subject)
    return Revocation(user_id, token, row.revoked_at, row.until)
