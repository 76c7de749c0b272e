"""One user with several clients: what they know, what they say, and every frame that they hear."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from typing import Any

import attrs
import trio

from netra_ws.testing import RawClient
from netra_ws.testing.frames import CLOSE, PING, PONG, TEXT, Ended

from .marks import Reader, Said, Watch, mark_of

#: Commands that make what they name, or would.
MAKING = frozenset({"chat", "user_message", "start_agent", "create_thread", "switch_thread"})
GONE = (Ended, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError)
#: Seconds that a command may take to leave.
SEND_S = 1.0


@attrs.define(eq=False)
class User:
    """A user as the test knows them: also what others may try to guess.

    Attributes:
        epoch: Of the user's stream, and *seq* the last event heard.
        threads: Ids that there were lately, *runs* and *inputs* likewise; *active* are those that have not ended.
        cursors: What pages gave as ``next``.
        places: Job → the position that was told last.
        bearer: The last token that they came with; others try it, too.
    """

    number: int
    reader: Reader
    tabs: dict[int, Tab] = attrs.field(factory=dict)
    epoch: str = "0" * 12
    seq: int = 0
    threads: deque[str] = attrs.field(factory=lambda: deque(maxlen=12))
    runs: deque[str] = attrs.field(factory=lambda: deque(maxlen=12))
    active: deque[str] = attrs.field(factory=lambda: deque(maxlen=12))
    inputs: deque[str] = attrs.field(factory=lambda: deque(maxlen=12))
    cursors: deque[str] = attrs.field(factory=lambda: deque(maxlen=4))
    places: dict[str, str] = attrs.field(factory=dict)
    bearer: str = "none.at.all"

    @classmethod
    def make(cls, number: int) -> User:
        """Return user *number*; every third one may read one job, and publish there."""
        mark = mark_of(number)
        return cls(number, Reader(f"user-{mark}", mark, frozenset({f"job-{number % 3}"})))

    @property
    def id(self) -> str:
        return self.reader.user

    @property
    def mark(self) -> str:
        return self.reader.mark

    def learn(self, fields: dict[str, Any]) -> None:
        """Keep what a frame tells of ids and positions."""
        if "job_id" in fields:  # its positions are those of another stream
            if fields.get("type") == "job_connected":
                stream = fields["stream"]
                self.places[fields["job_id"]] = f"{stream['epoch']}:{stream['seq']}"
            return
        stream = fields.get("stream")
        if isinstance(stream, dict):
            self.epoch, self.seq = stream["epoch"], stream["seq"]
        self.seq = fields.get("seq", self.seq) if fields.get("type") not in ("ack",) else self.seq
        for name, known in (("thread_id", self.threads), ("run_id", self.runs), ("input_id", self.inputs)):
            value = fields.get(name)
            if isinstance(value, str) and value not in known:
                known.append(value)
        if fields.get("type") == "agent_started" and fields["run_id"] not in self.active:
            self.active.append(fields["run_id"])
        elif fields.get("type") == "agent_completed" and fields["run_id"] in self.active:
            self.active.remove(fields["run_id"])
        if fields.get("type") == "thread_list" and fields.get("next"):
            self.cursors.append(fields["next"])


@attrs.define(eq=False, kw_only=True)
class Seat:
    """One connection of a user, whatever carries it: what was said there, and a look at what is heard."""

    user: User
    watch: Watch
    asked: dict[Any, Said] = attrs.field(factory=dict)
    jobs: set[str] = attrs.field(factory=set)
    _numbers: int = 0

    def hear(self, payload: bytes) -> None:
        """Look at one message of the server, and learn from it."""
        self.watch.look(self.user.reader, payload, self.asked)
        fields = json.loads(payload)
        told = fields.get("result", fields) if "jsonrpc" in fields else fields
        self.user.learn(told)
        self._look_at_job(told, payload)

    def _look_at_job(self, told: dict[str, Any], payload: bytes) -> None:
        """Check that a job is heard only between the answers that say so."""
        job_id = told.get("job_id")
        if told.get("type") == "job_connected":
            self.jobs.add(told["job_id"])
        elif told.get("type") == "job_disconnected":
            self.jobs.discard(told["job_id"])
        elif job_id is not None and job_id not in self.jobs:
            self.watch.note(self.user.reader, "something of a job that this connection does not read", payload)

    def worded(self, type_name: str, form: str, fields: dict[str, Any]) -> bytes:
        """Return a command in one of the three forms; ids in it count as said from now on."""
        self._note(type_name, form, fields)
        message: dict[str, Any] = {"type": type_name, **fields}
        if form == "rpc":
            self._numbers += 1
            rest = {name: value for name, value in fields.items() if name != "id"}
            message = {"jsonrpc": "2.0", "id": self._numbers, "method": type_name, "params": rest}
        elif form == "payload":
            message = {"type": type_name, "payload": fields}
        return json.dumps(message).encode()

    def _note(self, type_name: str, form: str, fields: dict[str, Any]) -> None:
        reader = self.user.reader
        named = tuple(fields[name] for name in ("thread_id", "run_id") if fields.get(name) is not None)
        command_id = None if form == "rpc" else fields.get("id")
        chosen = fields.get("run_id") if type_name == "start_agent" else None
        used = tuple(f"{kind} {id_}" for kind, id_ in (("command", command_id), ("run", chosen)) if id_ is not None)
        said = Said(type_name, named, used, chosen not in reader.knows)
        reader.used.update(used)
        if type_name in MAKING:
            reader.knows.update(named)
        if form == "rpc":
            self.asked[self._numbers + 1] = said
        elif command_id is not None:
            self.asked[command_id] = said
        ids = [value for name, value in fields.items() if isinstance(value, str) and name.endswith("_id")]
        reader.said.update(each.encode() for each in (*ids, fields.get("epoch", "")) if each != fields.get("user_id"))
        reader.said.discard(b"")


@attrs.define(eq=False, kw_only=True)
class Tab(Seat):
    """A connection over memory, and the task that reads it."""

    client: RawClient
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    broken: bool = False
    _sending: trio.Lock = attrs.field(factory=trio.Lock)

    async def read(self) -> None:
        """Look at every frame until the connection ends, and at the piece behind the last whole one."""
        reader = self.user.reader
        try:
            while True:
                frame = await self.client.receive_frame()
                if frame.opcode == TEXT:
                    self.hear(frame.payload)
                elif frame.opcode == PING:
                    await self._send(PONG, frame.payload)
                else:
                    self.watch.look_at_rest(reader, frame.payload)
                    if frame.opcode == CLOSE:
                        return
        except GONE:
            self.watch.look_at_rest(reader, bytes(self.client._buffer))
        finally:
            self.broken = True

    async def say(self, type_name: str, form: str, fields: dict[str, Any]) -> None:
        """Send a command."""
        await self._send(TEXT, self.worded(type_name, form, fields))

    async def _send(self, opcode: int, payload: bytes) -> None:
        with trio.move_on_after(SEND_S) as scope, contextlib.suppress(*GONE):
            async with self._sending:
                if not self.broken:
                    await self.client.send_frame(opcode, payload)
        if scope.cancelled_caught:  # half a frame may have left
            self.broken = True
            self.scope.cancel()
