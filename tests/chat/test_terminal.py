"""Questions of agents in the terminal chat, as a person at a real terminal meets them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from netra_ws.client import connect
from tests.test_cli import Process, Serving, command, in_terminal, read_until, serving

PATIENCE_S = 20.0

AGENTS = """
from typing import Literal
from uuid import UUID

import attrs
import trio

from netra_ws.errors import InputDeclined


@attrs.frozen
class Address:
    street: str


@attrs.frozen
class Order:
    name: str
    boxes: int
    speed: Literal["slow", "fast"]
    key: UUID
    address: Address | None = None
    express: bool = False


async def asks(run):
    kind, _, seconds = run.text.partition(" ")
    more = {"choice": {"choices": ["yes", "no"]}, "form": {"schema": Order}}.get(kind, {})
    try:
        answer = await run.ask("Well?", expires_in=float(seconds or 60), **more)
    except InputDeclined as declined:
        return f"no answer: {declined.status}"
    return f"answer: {answer}"


async def dawdles(run):
    await run.say("working ")
    await trio.sleep(1.5)
    await run.say(f"answer: {await run.ask('Well?')}")
    return run.said


async def delegates(run):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.delegate, asks, "choice")
        async with run.tool("look") as call:
            await call.progress(0.5, "half")
    return "delegated"


async def ticks(run):
    for number in range(2000):
        await run.job(run.text).emit("tick", number)
        if not number:
            await run.say("it ticks\\n")
        await trio.sleep(0.05)


async def closes(run):
    await run.job(run.text).close()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("serving")
    (folder / "agents_that_ask.py").write_text(AGENTS)
    names = [f"--agent=agents_that_ask:{name}" for name in ("asks", "dawdles", "delegates", "ticks", "closes")]
    with serving(folder, "serve", *names) as server:
        yield server


def _words(server: Serving, *words: str) -> list[str]:
    return ["chat", "--url", server.url, *words]


def test_choice(server: Serving) -> None:
    """Choices are numbered; what names none is asked for again, and the run goes on with the answer."""
    with in_terminal(server.folder, *_words(server, "--agent", "asks", "choice")) as (talker, mine):
        read_until(mine, "? Well?", "1. yes", "2. no", "Ctrl-D declines", "number: ")
        os.write(mine, b"3\n")
        read_until(mine, "expected a number from 1 to 2", "number: ")
        os.write(mine, b"2\n")
        read_until(mine, "answer: no")
        assert talker.wait(PATIENCE_S) == 0


def test_text(server: Serving) -> None:
    """Without choices and schema the answer is a line, and an empty one is none."""
    with in_terminal(server.folder, *_words(server, "--agent", "asks", "text")) as (talker, mine):
        read_until(mine, "answer: ")
        os.write(mine, b"\n")
        read_until(mine, "an empty line is no answer", "answer: ")
        os.write(mine, "Zoë\n".encode())
        read_until(mine, "answer: Zoë")
        assert talker.wait(PATIENCE_S) == 0


def test_form(server: Serving) -> None:
    """A schema is asked field by field; what the server does not take is told, and the fields are asked again."""
    with in_terminal(server.folder, *_words(server, "--agent", "asks", "form")) as (talker, mine):
        for key in ("A-17", "6f1c9a4e-6d1b-4e1c-9a55-0d3a3b1f7c11"):
            for prompt, line in (
                ("Name: ", "Ada"),
                ("Boxes (whole number): ", "2"),
                ("Speed (number): ", "2"),
                ("Key (uuid): ", key),
                ("Fill in Address? (y/n) [false]: ", "y"),
                ("Address / Street: ", "Main Street 1"),
                ("Express (y/n) [false]: ", ""),
            ):
                read_until(mine, prompt)
                os.write(mine, f"{line}\n".encode())
            if key == "A-17":
                read_until(mine, "✗ key: ")
        read_until(mine, "answer: Order(name='Ada', boxes=2, speed='fast'", "street='Main Street 1'", "express=False")
        assert talker.wait(PATIENCE_S) == 0


def test_ctrl_d_declines(server: Serving) -> None:
    """Ctrl-D leaves a question unanswered, and the agent goes on."""
    with in_terminal(server.folder, *_words(server, "--agent", "asks", "choice")) as (talker, mine):
        read_until(mine, "number: ")
        os.write(mine, b"\x04")
        read_until(mine, "no answer: cancelled")
        assert talker.wait(PATIENCE_S) == 0


def test_ctrl_c_stops_the_run(server: Serving) -> None:
    """Ctrl-C at a question stops the run, as everywhere else."""
    with in_terminal(server.folder, *_words(server, "--agent", "asks", "choice")) as (talker, mine):
        read_until(mine, "number: ")
        talker.send_signal(signal.SIGINT)
        read_until(mine, "cancelled")
        assert talker.wait(PATIENCE_S) == 1


def test_expiry(server: Serving) -> None:
    """A question that expires is withdrawn from the terminal, and the run goes on."""
    with in_terminal(server.folder, *_words(server, "--agent", "asks", "choice 1")) as (talker, mine):
        read_until(mine, "1 s left", "number: ", "! expired", "no answer: expired")
        assert talker.wait(PATIENCE_S) == 0


def test_somebody_else_answers(server: Serving) -> None:
    """What is answered in another place is withdrawn here, and told."""
    bearer = command(server.folder, "token", "--user", "elsewhere").stdout.strip()

    async def answer() -> None:
        async with connect(server.url, bearer) as session:
            await session.answer(session.pending_inputs[0].input_id, "yes")

    with in_terminal(server.folder, *_words(server, "--token", bearer, "--agent", "asks", "choice")) as (talker, mine):
        read_until(mine, "number: ")
        trio.run(answer)
        read_until(mine, '! "yes"', "answer: yes")
        assert talker.wait(PATIENCE_S) == 0


def test_what_was_typed_before_is_no_answer(server: Serving) -> None:
    """Lines that were typed before a question was there do not answer it; they are said when the run is over."""
    with in_terminal(server.folder, *_words(server, "--agent", "dawdles")) as (talker, mine):
        read_until(mine, "> ")
        os.write(mine, b"go\n")
        read_until(mine, "working")
        os.write(mine, b"typed ahead\n")
        read_until(mine, "answer: ")
        os.write(mine, b"meant\n")
        read_until(mine, '! "meant"', "answer: meant", "working", "answer: ")
        os.write(mine, b"again\n")
        read_until(mine, "answer: again", "> ")
        os.write(mine, b"\x04")
        assert talker.wait(PATIENCE_S) == 0


def test_sub_runs_are_indented(server: Serving) -> None:
    """A sub-run has its lines below its parent's, indented; its question is asked; its end is told and ends nothing."""
    with in_terminal(server.folder, *_words(server, "--agent", "delegates", "go")) as (talker, mine):
        read_until(mine, "number: ")
        os.write(mine, b"1\n")
        seen = read_until(mine, "delegated")
        assert '  ! "yes"' in seen
        assert "◂ asks (" in seen
        assert talker.wait(PATIENCE_S) == 0


def test_a_pipe_cannot_answer(server: Serving) -> None:
    """Without a terminal an agent's question ends the chat with 4, said on standard error."""
    outcome = command(server.folder, *_words(server, "--agent", "asks"), stdin="choice")
    assert outcome.returncode == 4, outcome.stderr
    assert "? Well? [yes / no]" in outcome.stdout
    assert "no terminal to answer at" in outcome.stderr


def test_json_prints_the_question_and_waits(server: Serving) -> None:
    """With --json a question is an event among others: a program may answer it over another connection."""
    outcome = command(server.folder, *_words(server, "--json", "--agent", "asks", "choice 1"))
    assert outcome.returncode == 0, outcome.stderr
    events = [json.loads(line) for line in outcome.stdout.splitlines()]
    asked = next(event for event in events if event["type"] == "input_required")
    assert (asked["prompt"], asked["choices"]) == ("Well?", ["yes", "no"])
    assert events[-1]["final_response"] == "no answer: expired"


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_a_job(server: Serving, as_json: bool) -> None:
    """With --job each event of a job is shown, in order, until the job is over; nothing is said and nothing asked."""
    job_id = f"clock-{as_json}"
    ticker = Process.start(server.folder, *_words(server, "--agent", "ticks", job_id))
    watch = _words(server, "--job", job_id, *(["--json"] if as_json else []))
    try:
        while "it ticks" not in ticker.line():
            pass
        watcher = Process.start(server.folder, *watch)
        try:
            lines = [watcher.line(), watcher.line()]
            assert command(server.folder, *_words(server, "--agent", "closes", job_id)).returncode == 0
            assert watcher.end() == 0
            lines += watcher.rest().splitlines()
        finally:
            watcher.close()
    finally:
        ticker.close()
    *seen, last = lines
    if as_json:
        numbers = [json.loads(line)["value"] for line in seen]
        assert json.loads(last)["type"] == "job_disconnected"
    else:
        numbers = [int(line.strip().removeprefix("* tick ")) for line in seen]
        assert last == "· the job is over"
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["--job", "another"], 1, "NOT_FOUND"),
        (["--job", "a b"], 2, "--job: expected 1 to 128"),
        (["--job", "clock", "hi"], 2, "--job only watches"),
        (["--job", "clock", "--agent", "asks"], 2, "--job only watches"),
    ],
)
def test_what_cannot_be_watched(server: Serving, words: list[str], status: int, complaint: str) -> None:
    """A job that is not there or not granted, and what goes with none, is one line and a status."""
    outcome = command(server.folder, *_words(server, *words))
    assert (outcome.returncode, outcome.stdout) == (status, "")
    assert complaint in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_help_tells_what_happens_at_a_question(tmp_path: Path) -> None:
    """The help says what Ctrl-C and Ctrl-D do, and with which status a question ends a chat without a terminal."""
    text = " ".join(command(tmp_path, "chat", "--help").stdout.split())
    assert "Ctrl-D declines" in text
    assert "Ctrl-C stops the run" in text
    assert "status 4" in text
