"""The terminal chat: says a text, shows what the agent does as it comes, tells by its exit status how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from enum import IntEnum
from typing import TextIO

import attrs
import trio

from netra_ws.client import ClientPolicy, Session, Token, connect
from netra_ws.errors import CommandFailed, ConnectionLost, Rejected, SessionError
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import (
    AgentCompleted,
    AgentEvent,
    AgentMessage,
    AgentThinking,
    InputRequired,
    RunQueued,
    ToolCompleted,
    ToolExecuting,
    ToolProgress,
)
from netra_ws.protocol.replies import StreamReset
from netra_ws.session import Run, SessionState, StateChange

#: A person waits for a server that is not there less patiently than a program.
_POLICY = ClientPolicy(connect_s=5.0, patience_s=60.0)
#: Under what the open thought is kept; ids of messages look different.
THOUGHT = "thought"
#: Characters of a tool's parameters and results that are shown.
_SHOWN = 200
_PLAIN = {number: "�" for number in (*range(0x20), *range(0x7F, 0xA0)) if chr(number) not in "\n\t"}


class ExitStatus(IntEnum):
    """What the shell is told."""

    SUCCESS = 0
    FAILED = 1
    USAGE = 2
    NO_CONNECTION = 3


@attrs.frozen(kw_only=True)
class Options:
    """What was asked for on the command line.

    Attributes:
        text: What to say; None to read lines from the terminal.
        thread: Where to say it; None for a new thread.
        as_json: One event per line instead of text for people.
    """

    url: str
    token: Token = attrs.field(repr=False)
    text: str | None = None
    thread: str | None = None
    agent: str | None = None
    as_json: bool = False


def talk(options: Options) -> int:
    """Talk until the text is answered, or until the end of the input; return the exit status."""
    chat = Chat(options, JsonLines() if options.as_json else Screen(sys.stdout, sys.stdout.isatty()))
    try:
        trio.run(chat.run)
    except* BrokenPipeError:
        # Whoever read our output has gone; the interpreter would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        chat.status = ExitStatus.FAILED
    return chat.status


def plain(text: str) -> str:
    """Return *text* without control characters: an agent's words must not steer the terminal."""
    return text.translate(_PLAIN)


@attrs.define
class JsonLines:
    """Prints each event as one line of JSON."""

    def show(self, heard: Heard) -> None:
        print(json.dumps(heard.fields, ensure_ascii=False), flush=True)

    def ask(self) -> None:
        """Print no prompt: only events belong into this output."""


@attrs.define
class Screen:
    """Prints events for people; colours on a terminal only."""

    out: TextIO
    colours: bool
    _said: dict[str, str] = attrs.field(factory=dict)
    _current: str = ""
    _answered: bool = False

    def ask(self) -> None:
        """Print the prompt."""
        self._write("> ", "1")

    def show(self, heard: Heard) -> None:
        """Print one event of a run."""
        match heard.message:
            case AgentMessage() as event:
                self._answered = True
                self._stream(event.message_id, event.phase, event.content)
            case AgentThinking() as event:
                self._stream(THOUGHT, event.phase, event.reasoning, "2", "· ")
            case AgentCompleted() as event:
                self._end(event)
            case event if event is not None:
                self._line(*_line_of(event))

    def _end(self, event: AgentCompleted) -> None:
        self._fresh_line()
        if not self._answered and event.final_response is not None:
            response = event.final_response
            self._line(response if isinstance(response, str) else _short(response), "")
        if event.status != "success":
            why = f": {event.error.code}: {event.error.message}" if event.error is not None else ""
            self._line(f"✗ {event.status}{why}", "31")
        self._said.clear()
        self._answered = False

    def _stream(self, key: str, phase: str, text: str, style: str = "", mark: str = "") -> None:
        """Print a piece, or of a full text what was not printed yet."""
        said = self._said.get(key, "")
        if phase == "full" and not text.startswith(said):
            said = ""  # pieces were missed: the whole text once more
            self._fresh_line()
        if key != self._current:
            self._fresh_line()
            self._current = key
            self._write(mark, style)
        piece = text if phase == "delta" else text[len(said) :]
        self._write(piece, style)
        self._said[key] = said + piece
        if phase == "full" and key == THOUGHT:
            # A message goes on behind a full that came on its way; a thought has no name, so it ends there.
            self._said.pop(key)
            self._fresh_line(force=bool(text))

    def _line(self, text: str, style: str) -> None:
        if text:
            self._fresh_line()
            self._write(text + "\n", style)

    def _fresh_line(self, *, force: bool = False) -> None:
        if self._said.get(self._current) or force:
            self._write("\n", "")
        self._current = ""

    def _write(self, text: str, style: str) -> None:
        shown = plain(text)
        print(f"\x1b[{style}m{shown}\x1b[0m" if self.colours and style else shown, end="", file=self.out, flush=True)


def _line_of(event: object) -> tuple[str, str]:
    """Return what is printed about an event, and its colour; nothing for what goes without saying."""
    match event:
        case ToolExecuting():
            return f"→ {event.tool_name} {_short(event.parameters)}", "36"
        case ToolProgress():
            share = "" if event.progress is None else f" {event.progress:.0%}"
            return f"  …{share} {event.message or ''}".rstrip(), "2"
        case ToolCompleted(success=True):
            return f"← {event.tool_name} {_short(event.results)} ({event.duration_ms} ms)", "32"
        case ToolCompleted():
            why = event.error.message if event.error is not None else event.status
            return f"← {event.tool_name} {event.status}: {why}", "31"
        case RunQueued():
            return f"· waits, number {event.position} in line", "2"
        case InputRequired():
            choices = f" [{' / '.join(event.choices)}]" if event.choices else ""
            return f"? {event.prompt}{choices}", "33"
        case AgentEvent():
            return f"* {event.name} {_short(event.value)}", "2"
        case StreamReset():
            return "· some events could not be read again", "33"
    return "", ""


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


@attrs.define(eq=False)
class Chat:
    """One visit: connects, asks, prints; the first Ctrl-C stops the run, the second one leaves."""

    options: Options
    screen: Screen | JsonLines
    status: ExitStatus = ExitStatus.FAILED
    _run: Run | None = None
    _stopped: Run | None = None
    _prompt: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def run(self) -> None:
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, signals, nursery)
                await self._visit()
                nursery.cancel_scope.cancel()

    async def _obey(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        async for _ in signals:
            if self._run is None or self._run is self._stopped:
                nursery.cancel_scope.cancel()
            else:
                self._stopped = self._run
                nursery.start_soon(self._stop, self._run)

    async def _stop(self, run: Run) -> None:
        try:
            await run.stop()
        except SessionError as exc:
            complain(str(exc))

    async def _visit(self) -> None:
        options = self.options
        try:
            async with connect(
                options.url, options.token, thread_id=options.thread, on_state=self._tell, policy=_POLICY
            ) as session:
                if options.text is not None:
                    await self._ask(session, options.text)
                else:
                    await self._ask_lines(session)
        except (Rejected, ConnectionLost) as exc:
            complain(str(exc))
            self.status = ExitStatus.NO_CONNECTION

    async def _ask_lines(self, session: Session) -> None:
        """Ask for lines until there are no more.

        Raises:
            Rejected, ConnectionLost: The session is over; nobody has to type a line to hear of it.
        """
        self.status = ExitStatus.SUCCESS
        with self._prompt:
            self.screen.ask()
            async for line in _lines(sys.stdin.fileno()):
                if line.strip():
                    await self._ask(session, line)
                self.screen.ask()
        if self._prompt.cancelled_caught and session.error is not None:
            raise session.error

    async def _ask(self, session: Session, text: str) -> None:
        """Say one text and show its run to the end.

        Raises:
            Rejected, ConnectionLost: The session is over.
        """
        try:
            run = self._run = await session.start(text, agent=self.options.agent)
            async for heard in run:
                self.screen.show(heard)
            completed = await run.result()
            self.status = ExitStatus.SUCCESS if completed.status == "success" else ExitStatus.FAILED
        except (Rejected, ConnectionLost):
            raise
        except SessionError as exc:
            unknown = isinstance(exc, CommandFailed) and exc.code == "UNKNOWN_AGENT"
            complain(f"{exc} ({', '.join(session.welcome.agents)})" if unknown else str(exc))
            self.status = ExitStatus.FAILED
        finally:
            self._run = None

    def _tell(self, change: StateChange) -> None:
        if change.state is SessionState.WAITING and change.delay_s is not None:
            complain(f"{change.reason}; trying again in {change.delay_s:.1f} s")
        if change.state is SessionState.CLOSED and change.error is not None and self._run is None:
            self._prompt.cancel()


async def _lines(descriptor: int) -> AsyncIterator[str]:
    """Read lines from a terminal, without a thread: one that waits for input could not be left behind."""
    rest = b""
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        piece = os.read(descriptor, 65536)
        *lines, rest = (rest + piece).split(b"\n")
        for line in [*lines, *([rest] if rest and not piece else [])]:
            yield line.decode(errors="replace")
        if not piece:
            return


def complain(text: str) -> None:
    """Print one line for people on standard error."""
    with contextlib.suppress(BrokenPipeError):
        print(f"netra-ws: {plain(' '.join(text.split()))}", file=sys.stderr, flush=True)
