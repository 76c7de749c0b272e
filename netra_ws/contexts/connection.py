"""One client's seat: what it has been told, what it has still to be told, and what it said.

The seat knows no socket. The wire asks it for bytes (``take``) and is woken when there are some.
Events come from streams, the user's own and those of jobs, each through a lane (``lane.py``). Answers
and notices stand in the control lane, which goes first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import attrs
import trio

from netra_ws.errors import ClientError, Trimmed
from netra_ws.history.cursor import Cursor
from netra_ws.identity import Identity
from netra_ws.protocol.closing import CloseCode
from netra_ws.protocol.codec import Incoming, encode_reply, error_reply
from netra_ws.protocol.replies import Reply

from .lane import Lane

#: Commands that were received and wait for the dispatcher, and their bytes; a full inbox stops the reading.
INBOX = 64
INBOX_BYTES = 256 * 1024
#: Bytes of answers that wait for the socket: above the first figure nothing more is read from the
#: client, above the second it is closed with 4000.
CONTROL_HIGH = 256 * 1024
CONTROL_MAX = 16 * 1024 * 1024
#: Answers that wait for their event; above it nothing more is read from the client.
HELD_HIGH = 256

#: What is said instead of an answer that has waited for the store too long.
NOT_KEPT = error_reply(
    ClientError("UNAVAILABLE", "the store does not answer; this may still take effect", retryable=True)
)


class Wire(Protocol):
    """What a seat needs of its socket."""

    @property
    def bytes_in(self) -> int:
        """Bytes read since the upgrade."""
        ...

    @property
    def bytes_out(self) -> int:
        """Bytes written since the upgrade."""
        ...

    def wake(self) -> None:
        """Note that there is something to write."""
        ...

    def close(self, code: CloseCode, reason: str) -> None:
        """Begin the closing handshake; returns at once."""
        ...

    async def identify(self, token: str) -> Identity:
        """Return who a new token of this client stands for.

        Raises:
            Refused: It is not good.
        """
        ...

    def renewed(self) -> None:
        """Look at the end of the identity anew: it may come earlier than that of the last one."""
        ...


@attrs.define
class Traffic:
    """Counts of one connection."""

    messages_in: int = 0
    messages_out: int = 0
    errors: int = 0
    last_activity: float = 0.0
    rtt_s: float | None = None


@attrs.define(eq=False, repr=False)
class Connection:
    """One client of one user.

    Attributes:
        admitted_at: When it was let in (Unix seconds).
        thread_id: The current thread: where messages without ``thread_id`` go.
        older: Whether the client gets the older handshake (PROTOCOL §1).
        offered: The thread of that handshake.
        explicit: Whether it said ``disconnect`` or was signed out, so that no grace is wanted.
        quiet: Whether nothing but answers is said to it: an older client reads its handshake word by word.
        malformed: Malformed messages in a row.
        busy: Whether a command of it is being carried out right now.
        lane: How it reads the user's own stream.
        job_lanes: How it reads the streams of jobs, by job id.
    """

    connection_id: str
    identity: Identity
    protocol: str
    cursor: Cursor
    wire: Wire
    clock: Callable[[], float]
    admitted_at: float = 0.0
    older: bool = False
    offered: str | None = None
    _may_read: bool = attrs.field(default=True, alias="reads")
    thread_id: str | None = None
    explicit: bool = False
    quiet: bool = False
    malformed: int = 0
    closing: bool = False
    busy: bool = False
    traffic: Traffic = attrs.field(factory=Traffic)
    lane: Lane = attrs.field(init=False)
    job_lanes: dict[str, Lane] = attrs.field(factory=dict)
    inbox_in: trio.MemorySendChannel[tuple[Incoming, int]] = attrs.field(init=False)
    inbox: trio.MemoryReceiveChannel[tuple[Incoming, int]] = attrs.field(init=False)
    _inbox_bytes: int = 0
    _control: deque[bytes] = attrs.field(factory=deque)
    _control_bytes: int = 0
    _room: trio.Event = attrs.field(factory=trio.Event)
    _unheard: bool = False
    _rung: dict[Lane, None] = attrs.field(factory=dict)  # lanes of jobs that may have something, the next one first
    _own_last: bool = False
    _starved: Lane | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.connection_id} of {self.identity.user_id!r}>"

    def __attrs_post_init__(self) -> None:
        self.lane = Lane(self.cursor, self, reads=self._may_read)
        self.inbox_in, self.inbox = trio.open_memory_channel[tuple[Incoming, int]](INBOX)

    def renew(self, identity: Identity) -> None:
        """Go on under a new identity of the same user; what it may do counts from now on."""
        self.identity = identity
        self.lane.allow(identity.may("read"))
        self.wire.renewed()

    @property
    def reads(self) -> bool:
        """Whether it may read the user's stream; if not, positions pass without frames."""
        return self.lane.reads

    # Filling.

    def ring(self, lane: Lane) -> None:
        """Note that a lane may have something to hand out (``lane.Desk``)."""
        if lane is not self.lane:
            self._rung[lane] = None
        self.wire.wake()

    def too_slow(self) -> None:
        """Close a client that does not keep pace (``wire.stream.Source``); it goes on from its position."""
        self.shut(CloseCode.SLOW_CONSUMER, "too slow: more is said than is read")

    def tell(
        self,
        reply: Reply,
        incoming: Incoming | None = None,
        barrier: int = 0,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        """Queue a control frame; with *barrier* it follows the event of that seq. *told* is called when it goes."""
        if self.closing:
            return

        def make() -> bytes | None:
            told()
            return encode_reply(reply, self.clock(), incoming)

        if barrier > self.cursor.seq or (self.quiet and incoming is None):
            self.lane.hold(barrier, make, incoming)
            return
        frame = make()
        if frame is not None:
            self._push(frame)
        self.wire.wake()

    def end_quiet(self) -> None:
        """Say from now on what there is, beginning with what was kept back."""
        if self.quiet:
            self.quiet = False
            self.wire.wake()

    def give_up_waiting(self) -> list[Incoming]:
        """Answer ``UNAVAILABLE`` to each command whose event is not committed, and return these commands.

        They may still take effect; a repeat under the same id gets the true answer, when there is one.
        """
        visible = self.cursor.stream.visible
        waiting, self.lane.held = sorted(self.lane.held), []  # a sorted list is a heap
        given_up = []
        for held in waiting:
            if held.answers is not None and held.barrier > visible:
                given_up.append(held.answers)
                self.tell(NOT_KEPT, held.answers)
            else:
                self.lane.held.append(held)
        self.make_room()
        return given_up

    def _push(self, frame: bytes) -> None:
        if self._unheard:
            return
        self._control.append(frame)
        self._control_bytes += len(frame)
        if self._control_bytes > CONTROL_MAX:
            self.shut(CloseCode.SLOW_CONSUMER, "too many answers were not read")

    @property
    def _crowded(self) -> bool:
        return self._control_bytes > CONTROL_HIGH or len(self.lane.held) > HELD_HIGH

    async def wait_for_room(self) -> None:
        """Wait until both lanes are below their bounds: what a client does not read, it need not ask."""
        while self._crowded and not self.closing and not self._unheard:
            await self._room.wait()

    async def put(self, incoming: Incoming, size: int) -> None:
        """Put a command of *size* bytes into the inbox, and wait until more may be read from the client.

        Raises:
            trio.BrokenResourceError: The dispatcher has gone: the connection is closing.
        """
        self._inbox_bytes += size
        await self.inbox_in.send((incoming, size))
        while self._inbox_bytes > INBOX_BYTES and not self.closing:
            await self._room.wait()
        if self._crowded:
            await self.wait_for_room()

    async def next_command(self) -> Incoming | None:
        """Take the next command out of the inbox; None when the client will say no more, or is not heard any more."""
        try:
            incoming, size = await self.inbox.receive()
        except trio.EndOfChannel:
            return None
        full = self._inbox_bytes > INBOX_BYTES
        self._inbox_bytes -= size
        if full:
            self.make_room()
        if self._crowded:
            # What is not read need not be made: an answer may be a page of megabytes.
            await self.wait_for_room()
        if self.closing:  # while it was handed over; who closes us must know what is still carried out
            return None
        self.busy = True
        return incoming

    def end_turn(self) -> None:
        """Note that what ``next_command`` returned was carried out."""
        self.busy = False
        if self.closing:
            self.make_room()

    async def turn_over(self) -> None:
        """Wait until the command that is being carried out is; of one that is closing there is no other."""
        while self.busy:
            await self._room.wait()

    def hang_up(self) -> None:
        """The client reads no more; what it said before is still carried out, and nobody waits for it."""
        self._unheard = True
        self._control.clear()
        self._control_bytes = 0
        self.make_room()

    def shut(self, code: CloseCode, reason: str) -> None:
        """Say nothing more and begin to close; answers that wait for no event are still sent."""
        if self.closing:
            return
        self.closing = True
        for lane in self._lanes:
            lane.held.clear()
        self.make_room()
        self.wire.close(code, reason)

    def shut_behind(self, code: CloseCode, reason: str) -> None:
        """Close when everything that is visible now, on all streams that it reads, was handed out."""
        behind = set(self._lanes)

        def passed(lane: Lane) -> None:
            behind.discard(lane)
            if not behind:
                self.shut(code, reason)

        self.end_quiet()
        for lane in self._lanes:
            lane.hold(lane.cursor.stream.visible, partial(passed, lane))

    # Streams of jobs.

    def add_job(self, job_id: str, cursor: Cursor) -> Lane:
        """Read one more stream, from where *cursor* stands."""
        lane = self.job_lanes[job_id] = Lane(cursor, self, job_id)
        return lane

    def drop_job(self, job_id: str) -> None:
        """Read a job's stream no more; unknown ones are no error."""
        lane = self.job_lanes.pop(job_id, None)
        if lane is not None:
            self._rung.pop(lane, None)

    @property
    def _lanes(self) -> list[Lane]:
        return [self.lane, *self.job_lanes.values()]

    # Draining, by the wire.

    @property
    def pending(self) -> bool:
        """Whether ``take`` has something, or would with a refill."""
        if self._control:
            return True
        return not (self.closing or self.quiet) and (self.lane.pending or any(lane.pending for lane in self._rung))

    def take(self, room: int) -> list[bytes]:
        """Return the next frames, together about *room* bytes.

        Raises:
            Trimmed: ``await refill()`` first.
        """
        frames = self._take_control()
        room -= sum(map(len, frames))
        for lane in self._in_turn():
            if room <= 0 or self.closing or self.quiet:
                break
            try:
                taken = lane.take(room, first=not frames)
            except Trimmed:
                self._starved = lane
                raise
            frames += taken
            room -= sum(map(len, taken))
            if lane in self._rung:
                del self._rung[lane]
                if lane.pending:
                    self._rung[lane] = None
        self.traffic.messages_out += len(frames)
        return frames

    def _in_turn(self) -> Iterator[Lane]:
        """Return the lanes that may have something, so that none has to wait for another one to run dry."""
        if not self._rung:
            return iter((self.lane,))
        self._own_last = not self._own_last
        return iter((*self._rung, self.lane) if self._own_last else (self.lane, *self._rung))

    def _take_control(self) -> list[bytes]:
        if not self._control:
            return []
        frames = list(self._control)
        self._control.clear()
        self._control_bytes = 0
        self.make_room()
        return frames

    def make_room(self) -> None:
        """Let go on who waits for answers to be taken (``lane.Desk``)."""
        self._room.set()
        self._room = trio.Event()

    async def refill(self) -> None:
        """Read on from the store after ``Trimmed``."""
        lane, self._starved = self._starved or self.lane, None
        await lane.refill()
