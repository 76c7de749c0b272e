"""The jobs that a client's session reads, and where it stands in each, over as many connections as it takes.

A job is *joined* from the answer to ``connect_job`` until it is left or ends. It is *seated* while the present
connection reads it from its position on: a new connection has to be seated anew, behind that position, and what
comes before is of no account, since it comes again. So nothing is missing and nothing comes twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from netra_ws.errors import CommandFailed, InvalidArgument
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.commands import ConnectJob
from netra_ws.protocol.replies import JobDisconnected, Position, ReplayCompleted, StreamReset
from netra_ws.protocol.values import JobId, PositionText, read_id, read_position, split_position


def read_job_id(job_id: object, argument: str = "job_id") -> JobId:
    """Return a job's id.

    Raises:
        InvalidArgument: It is none: 1 to 128 of the characters ``A-Za-z0-9_.:-``.
    """
    try:
        return JobId(read_id(job_id))
    except (TypeError, ValueError) as exc:
        raise InvalidArgument(argument, str(exc)) from None


def write_position(position: object, argument: str) -> PositionText:
    """Return a program's position as a command carries it.

    Raises:
        InvalidArgument: It is no position.
    """
    if not isinstance(position, Position) or type(position.seq) is not int:
        raise InvalidArgument(argument, "expected a Position")
    try:
        return read_position(f"{position.epoch}:{position.seq}")
    except ValueError as exc:
        raise InvalidArgument(argument, str(exc)) from None


@attrs.define(eq=False)
class JoinedJob:
    """One job of a session.

    Attributes:
        position: Of the last event heard.
        seated: Whether the present connection reads it from there on.
        refusals: How often in a row the server had no time to seat us.
    """

    position: Position
    seated: bool = False
    refusals: int = 0

    def advance(self, seq: int) -> bool:
        """Go on to *seq*; return whether that is news."""
        if seq <= self.position.seq:
            return False
        self.position = attrs.evolve(self.position, seq=seq)
        return True


@attrs.define(eq=False)
class JoinedJobs:
    """All jobs of a session; their number is bounded by the server, which seats at most a hundred."""

    _jobs: dict[str, JoinedJob] = attrs.field(factory=dict)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._jobs

    @property
    def positions(self) -> dict[str, Position]:
        """Where the session stands in each, by job id."""
        return {job_id: job.position for job_id, job in self._jobs.items()}

    def restore(self, positions: Mapping[str, Position]) -> None:
        """Go on from what an earlier session knew.

        Raises:
            InvalidArgument: An id or a position is none.
        """
        for job_id, position in positions.items():
            write_position(position, "job_positions")
            self._jobs[read_job_id(job_id, "job_positions")] = JoinedJob(position)

    # Coming back.

    def stand_up(self) -> list[ConnectJob]:
        """Note that there is a new connection; return what it has to be told to read all jobs again."""
        for job in self._jobs.values():
            job.seated = False
            job.refusals = 0
        return [command for job_id in self._jobs if (command := self.come_back(job_id)) is not None]

    def come_back(self, job_id: str) -> ConnectJob | None:
        """Return the command that seats this connection behind our position; None where that is not wanted."""
        job = self.unseated(job_id)
        if job is None:
            return None
        place = PositionText(f"{job.position.epoch}:{job.position.seq}")
        return ConnectJob(job_id=JobId(job_id), resume=place)

    def unseated(self, job_id: str) -> JoinedJob | None:
        """Return a job that is joined and that the present connection does not read yet."""
        job = self._jobs.get(job_id)
        return None if job is None or job.seated else job

    # What the server says.

    def connected(self, command: ConnectJob, stream: Position, *, own: bool) -> None:
        """Take the answer to a ``connect_job``; *own* is one that ``come_back`` returned."""
        job = self._jobs.get(command.job_id)
        if command.resume is not None:
            if job is not None or not own:  # else it was left meanwhile
                epoch, seq = split_position(command.resume)
                self._jobs[command.job_id] = JoinedJob(Position(epoch=epoch, seq=seq), seated=True)
        elif job is None or (job.seated and job.position.epoch != stream.epoch):
            self._jobs[command.job_id] = JoinedJob(stream, seated=True)
        # Else it is read already, from our position on, or will be when ``come_back`` has its answer.

    def rewound(self, job_id: str, position: Position) -> None:
        """Note that what follows comes from *position* on."""
        if (job := self._jobs.get(job_id)) is not None:
            job.position = position

    def drop(self, job_id: str) -> bool:
        """Forget a job; return whether it was joined."""
        return self._jobs.pop(job_id, None) is not None

    def hear(self, job_id: str, heard: Heard) -> bool:
        """Take a frame of a job's stream; return whether it is news to readers."""
        job = self._jobs.get(job_id)
        if job is None or not job.seated:
            return False
        message = heard.message
        if isinstance(message, StreamReset):
            job.position = Position(epoch=message.epoch, seq=message.seq)
            return True
        if isinstance(message, ReplayCompleted):
            if message.epoch == job.position.epoch:
                job.advance(message.to_seq)
            return False
        seq = heard.fields.get("seq")
        return type(seq) is int and heard.type != StreamReset.type and job.advance(seq)


def farewell(job_id: str, failure: CommandFailed | None = None) -> Heard:
    """Return the ``job_disconnected`` that readers get when a job is read no more.

    After a refusal it has two fields more, ``code`` and ``error``; the server itself sends neither.
    """
    why = {} if failure is None else {"code": failure.code, "error": failure.text}
    fields = {"type": JobDisconnected.type, "job_id": job_id, **why}
    message = JobDisconnected(job_id=job_id)
    return Heard(type=message.type, fields=fields, message=message, stamp=None, reply_to=None)
