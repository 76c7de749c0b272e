"""kill -9 at random moments: while runs go on, while the next start closes what was open, while a drain ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from netra_ws.protocol.codec import read_server
from netra_ws.testing import check_family

from ..kit import SECRET, Client, Ended, connect

#: Kills of one test run, and how many servers they are spread over.
KILLS = int(os.environ.get("NETRA_WS_TEST_KILLS", "20"))
CAMPAIGNS = 4 if KILLS > 100 else 2
#: How often as many there may be, until every kind of moment was met.
MOST = 20
START_S = 20.0
MOMENTS = {"work", "recovery", "drain"}
#: The job that all runs speak into, and the user too, who needs no grant for it.
JOB = "log"
MAY = ("chat", "read", "job:publish")


@attrs.define(eq=False)
class Killable:
    """A server on one store, to be killed and started again; see ``zygote.py``."""

    zygote: trio.Process
    port: int = 0
    pid: int = 0
    _buffer: bytes = b""

    async def _say(self, text: str) -> None:
        assert self.zygote.stdin is not None
        await self.zygote.stdin.send_all(f"{text}\n".encode())

    async def _hear(self, word: str) -> int:
        """Return the number behind *word*; what a killed server may have said before is passed over."""
        assert self.zygote.stdout is not None
        with trio.fail_after(START_S):
            while True:
                while b"\n" not in self._buffer:
                    more = await self.zygote.stdout.receive_some()
                    assert more, "the zygote has died"
                    self._buffer += more
                line, _, self._buffer = self._buffer.partition(b"\n")
                said, _, number = line.decode().partition(" ")
                if said == word:
                    return int(number)

    async def fork(self) -> None:
        """Begin to start; it may be killed from now on."""
        await self._say("start")
        self.pid = await self._hear("pid")

    async def listening(self) -> None:
        """Wait until it can be connected to."""
        self.port = await self._hear("port")

    async def drain(self) -> None:
        await self._say(f"end {self.pid}")

    async def kill(self) -> int:
        """Kill it, wait until it is gone, and return how it ended: perhaps by itself, before that."""
        await self._say(f"kill {self.pid}")
        return await self.gone()

    async def gone(self) -> int:
        await self._say(f"wait {self.pid}")
        return await self._hear("gone")


@asynccontextmanager
async def killable(url: str, log_file: Path) -> AsyncIterator[Killable]:
    with log_file.open("ab") as log:
        zygote = await trio.lowlevel.open_process(
            [sys.executable, "-m", f"{__package__}.zygote", url, SECRET],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield Killable(zygote)
    finally:
        with trio.CancelScope(shield=True):
            os.killpg(zygote.pid, signal.SIGKILL)
            await zygote.wait()


@attrs.define
class JobLog:
    """A job whose server dies all the time.

    Attributes:
        log: Every event so far, as the store has it.
        heard: What was heard since the last start.
        sent: What was published and has no answer yet, by command id.
        answered: Command id → the seq that the answer told.
    """

    epoch: str = ""
    log: list[dict[str, Any]] = attrs.field(factory=list)
    heard: list[dict[str, Any]] = attrs.field(factory=list)
    sent: dict[str, str] = attrs.field(factory=dict)
    answered: dict[str, int] = attrs.field(factory=dict)

    @property
    def position(self) -> str:
        """Behind what was seen to be kept."""
        return f"{self.epoch}:{self.log[-1]['seq'] if self.log else 0}"

    def publish(self, command_id: str) -> dict[str, Any]:
        self.sent[command_id] = command_id
        return {"type": "publish_job", "id": command_id, "job_id": JOB, "name": "note", "value": command_id}

    def hear(self, message: dict[str, Any]) -> bool:
        """Keep a message that is about the job."""
        if message.get("reply_to") in self.sent:
            if message["type"] == "ack":
                self.answered[message["reply_to"]] = message["seq"]
            return True
        if "event_id" in message and message.get("job_id") == JOB:
            self.heard.append(message)
        return message.get("job_id") == JOB

    def check(self, answer: dict[str, Any], replayed: list[dict[str, Any]]) -> None:
        """Compare what a reader who resumes gets with what was heard and answered before the kill."""
        assert (answer["type"], answer["stream"]["epoch"]) == ("job_connected", self.epoch)
        assert replayed[-1]["complete"] is True
        kept = [each for each in replayed if "event_id" in each and each.get("job_id") == JOB]
        seqs, behind = [each["seq"] for each in kept], self.log[-1]["seq"] if self.log else 0
        assert seqs == sorted({seq for seq in seqs if seq > behind}), "numbers are used twice or out of order"
        upto = self.heard[-1]["seq"] if self.heard else behind
        heard = [each for each in self.heard if each["seq"] > behind]
        assert [each for each in kept if each["seq"] <= upto] == heard, "what was heard is not what was kept"
        self.log += kept
        told = {each["value"]: each["seq"] for each in self.log if each["name"] == "note"}
        assert self.answered.items() <= told.items(), "what was published and answered is not there"
        assert len(told) == sum(each["name"] == "note" for each in self.log), "a publication happened twice"
        self.heard, self.sent = [], {}


@attrs.define
class Campaign:
    """One user's life with a server that dies all the time.

    Attributes:
        log: Every durable event so far, as the store has it.
        sent: Commands that would start a run, by id.
        acks: Their answers, as far as they were heard.
        heard: What was heard since the last start.
        moments: How often it was killed in the middle of what.
        families: How many sub-runs there were.
        answered: How many questions were answered.
        given_up: How many questions were closed by a cancel or the next start.
        job: What became of the job.
    """

    server: Killable
    dice: random.Random
    epoch: str = ""
    log: list[dict[str, Any]] = attrs.field(factory=list)
    sent: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    acks: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    heard: list[dict[str, Any]] = attrs.field(factory=list)
    moments: dict[str, int] = attrs.field(factory=dict)
    count: int = 0
    families: int = 0
    answered: int = 0
    given_up: int = 0
    job: JobLog = attrs.field(factory=lambda: JobLog())

    async def go(self, kills: int, enough: Callable[[], bool]) -> None:
        """Be killed so many times, or more often until it was *enough*; check everything after each."""
        await self._begin()
        while (count := sum(self.moments.values())) < kills or (count < MOST * kills and not enough()):
            moment = self.dice.choice(("work", "work", "work", "recovery", "drain"))
            await self.server.fork()
            if moment == "recovery":
                await trio.sleep(self.dice.random() * 0.06)
            else:
                await self.server.listening()
                await self._check()
                await self._live(moment)
            status = await self.server.kill()
            assert status in (-signal.SIGKILL, 0), status
            if status:
                self.moments[moment] = self.moments.get(moment, 0) + 1
        await self.server.fork()
        await self.server.listening()
        await self._check()
        await self.server.drain()
        assert await self.server.gone() == 0

    async def _begin(self) -> None:
        """Have a first event: a stream without any has nothing that could be resumed."""
        await self.server.fork()
        await self.server.listening()
        async with connect(self.server) as client:  # type: ignore[arg-type]
            self.epoch = client.welcome["stream"]["epoch"]
            await client.ask("create_thread", id="first")
            self.job.epoch = (await client.ask("connect_job", job_id=JOB))["stream"]["epoch"]
        await self.server.kill()

    async def _live(self, moment: str) -> None:
        """Let runs go on, and return in the middle of it."""
        path = f"/ws?resume={self.epoch}:{self.log[-1]['seq']}"
        async with (
            connect(self.server, path=path, permissions=MAY) as client,  # type: ignore[arg-type]
            trio.open_nursery() as nursery,
        ):
            await client.send("connect_job", job_id=JOB, resume=self.job.position)
            nursery.start_soon(self._listen, client)
            nursery.start_soon(self._talk, client)
            await trio.sleep(self.dice.random() * 0.12)
            if moment == "drain":
                await self.server.drain()
                await trio.sleep(self.dice.random() * 0.2)
            nursery.cancel_scope.cancel()

    async def _listen(self, client: Client) -> None:
        try:
            while True:
                message = await client.receive()
                if self.job.hear(message):
                    continue
                if "seq" in message:
                    self.heard.append(message)
                elif message["type"] == "ack" and message.get("reply_to") in self.sent:
                    self.acks[message["reply_to"]] = message
        except (Ended, AssertionError, trio.BrokenResourceError):
            pass  # it was killed, or it said goodbye

    async def _talk(self, client: Client) -> None:
        try:
            for _ in range(12):
                command = self._command()
                if command["type"] == "chat":
                    self.sent[command["id"]] = command
                await client.say(json.dumps(command))
                await trio.sleep(self.dice.random() * 0.02)
        except trio.BrokenResourceError:
            pass

    def _command(self) -> dict[str, Any]:
        self.count += 1
        command = {"id": f"c{self.count}", "thread_id": self.dice.choice("abc")}
        kind = self.dice.choice(("chat", "chat", "chat", "stop", "delete", "publish", "publish"))
        runs = [event["run_id"] for event in self.heard if event["type"] == "agent_started"]
        asked = [event["input_id"] for event in self.heard if event["type"] == "input_required"]
        if asked and self.dice.random() < 0.6:
            value = self.dice.choice(("yes", "no", "maybe"))
            answer = {"input_id": asked[-1], "status": "resolved", "value": value}
            return {"type": "input_response", "id": command["id"], **answer}
        if kind == "stop" and runs:
            return {"type": "stop_agent", "id": command["id"], "run_id": self.dice.choice(runs)}
        if kind == "delete" and not self.count % 4:
            return {"type": "delete_thread", **command}
        if kind == "publish":
            return self.job.publish(command["id"])
        on_busy = self.dice.choice(("enqueue", "interrupt", "rollback"))
        return {"type": "chat", **command, "content": "go on", "agent": "worker", "on_busy": on_busy}

    async def _check(self) -> None:
        """Read what was kept, and compare it with what was heard and answered."""
        position = self.log[-1]["seq"] if self.log else 0
        heard, self.heard = self.heard, []
        async with connect(self.server, path=f"/ws?resume={self.epoch}:{position}") as client:  # type: ignore[arg-type]
            assert client.welcome["resumed"] is True
            assert client.welcome["active_runs"] == []
            kept = [each for each in await client.until("replay_completed") if "seq" in each]
            self._compare(position, heard, kept)
        # The client itself goes on behind what it heard last: it misses nothing, and gets nothing twice.
        last = heard[-1]["seq"] if heard else position
        async with connect(self.server, path=f"/ws?resume={self.epoch}:{last}") as client:  # type: ignore[arg-type]
            assert client.welcome["resumed"] is True
            rest = [each for each in await client.until("replay_completed") if "seq" in each]
            assert rest == [each for each in self.log if each["seq"] > last]
            for command_id in self.dice.sample(sorted(self.sent), min(5, len(self.sent))):
                await self._repeat(client, command_id)
            answer = await client.ask("connect_job", job_id=JOB, resume=self.job.position)
            self.job.check(answer, await client.until("replay_completed", job_id=JOB))
        async with connect(self.server, "eve", permissions=MAY) as other:  # type: ignore[arg-type]
            assert (await other.ask("connect_job", job_id=JOB))["code"] == "NOT_FOUND", "its owner was forgotten"

    def _compare(self, position: int, heard: list[dict[str, Any]], kept: list[dict[str, Any]]) -> None:
        seqs = [each["seq"] for each in kept]
        assert seqs == sorted({seq for seq in seqs if seq > position}), "numbers are used twice or out of order"
        durable = [each for each in heard if each.get("phase") != "delta"]
        upto = heard[-1]["seq"] if heard else 0
        assert [each for each in kept if each["seq"] <= upto] == durable, "what was heard is not what was kept"
        assert not heard or all(seq > upto for seq in seqs[len(durable) :])
        self.log += kept
        ended = check_family([read_server(json.dumps(event)) for event in kept])
        asked = {event["run_id"] for event in kept if event["type"] == "user_message"}
        begun = {run_id for run_id, last in ended.items() if last.parent_run_id is None}
        assert asked == begun, "a run was asked for and has no end"
        self.families += len(ended) - len(begun)
        self.answered += sum(event["type"] == "input_received" and event["by"] != "server" for event in kept)
        self.given_up += sum(event["type"] == "input_received" and event["status"] == "cancelled" for event in kept)
        ids = [event["command_id"] for event in self.log if event["type"] == "user_message"]
        assert len(ids) == len(set(ids)), "a command happened twice"
        told = {command_id: ack["run_id"] for command_id, ack in self.acks.items()}
        known = {event["command_id"]: event["run_id"] for event in self.log if event["type"] == "user_message"}
        assert told.items() <= known.items(), "an answered start is not there"
        self.acks.clear()

    async def _repeat(self, client: Client, command_id: str) -> None:
        """Send a command of before the kill again: what has started a run is known, and starts no other."""
        known = [event for event in self.log if event.get("command_id") == command_id]
        if known:
            again = await client.ask("chat", **{k: v for k, v in self.sent[command_id].items() if k != "type"})
            assert (again["type"], again.get("run_id")) == ("ack", known[0]["run_id"])
            assert again["message_id"] == known[0]["message_id"]
        else:
            del self.sent[command_id]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store_urls(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Stores, one for each campaign."""
    if request.param == "postgres":
        return [request.getfixturevalue("postgres_url")]
    return [f"sqlite:///{tmp_path / str(number)}.db" for number in range(CAMPAIGNS)]


@pytest.mark.heavy
async def test_kill_9_at_any_moment(store_urls: list[str], tmp_path: Path) -> None:
    """However often a server is killed, in whatever it does: runs end, events are kept and commands happen once."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments: Counter[str] = Counter()
    kills = -(-KILLS // CAMPAIGNS)
    lives: list[Campaign] = []

    def enough() -> bool:
        """Whether all of them together have seen what a campaign has to see."""
        met = {moment for life in lives for moment in life.moments}
        return len(store_urls) < CAMPAIGNS or (met == MOMENTS and any(life.given_up for life in lives))

    async def campaign(number: int, url: str) -> None:
        log = tmp_path / f"{number}.log"
        async with killable(url, log) as server:
            life = Campaign(server, random.Random(seed + number))
            lives.append(life)
            await life.go(kills, enough)
        moments.update(life.moments)
        assert "Traceback" not in log.read_text()

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number, url in enumerate(store_urls):
            nursery.start_soon(campaign, number, url)
    events = sum(len(life.log) for life in lives)
    families, answered, given_up = (
        sum(getattr(life, name) for life in lives) for name in ("families", "answered", "given_up")
    )
    spoken = sum(len(life.job.log) for life in lives)
    published = sum(len(life.job.answered) for life in lives)
    print(f"{moments.total()} kills {dict(moments)}, {events} events, {trio.current_time() - began:.1f} s")
    print(f"{spoken} events of jobs, {published} publications answered")
    print(f"{families} sub-runs, {answered} questions answered, {given_up} given up")
    assert moments.total() >= kills * len(store_urls)
    if len(store_urls) == CAMPAIGNS:
        assert moments.keys() == MOMENTS
        assert min(given_up, spoken) > 0
        assert KILLS < 200 or min(families, answered) > 0
