"""The terminal chat: says a text, shows what the agent does as it comes, tells by its exit status how it ended."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from enum import IntEnum

import attrs
import trio

from netra_ws.client import ClientPolicy, Session, Token, connect
from netra_ws.errors import CommandFailed, ConnectionLost, Rejected, SessionError
from netra_ws.protocol.events import InputRequired
from netra_ws.session import Run, SessionState, StateChange

from .interview import Interview
from .keyboard import Keyboard
from .screen import JsonLines, Screen, complain

#: A person waits for a server that is not there less patiently than a program.
_POLICY = ClientPolicy(connect_s=5.0, patience_s=60.0)


class ExitStatus(IntEnum):
    """What the shell is told."""

    SUCCESS = 0
    FAILED = 1
    USAGE = 2
    NO_CONNECTION = 3
    ASKED = 4  # an agent asked something, and there is no terminal to answer it at


@attrs.frozen(kw_only=True)
class Options:
    """What was asked for on the command line.

    Attributes:
        text: What to say; None to read lines from the terminal.
        thread: Where to say it; None for a new thread.
        job: Which job to watch instead of saying something.
        as_json: One event per line instead of text for people.
    """

    url: str
    token: Token = attrs.field(repr=False)
    text: str | None = None
    thread: str | None = None
    agent: str | None = None
    job: str | None = None
    as_json: bool = False


def talk(options: Options) -> int:
    """Talk until the text is answered, or until the end of the input or of the job; return the exit status."""
    terminal = not options.as_json and sys.stdin is not None and sys.stdin.isatty()
    screen = JsonLines() if options.as_json else Screen(sys.stdout, sys.stdout.isatty(), asks=terminal)
    chat = Chat(options, screen)
    if isinstance(screen, Screen) and terminal:
        chat.keyboard = Keyboard(sys.stdin.fileno())
        chat.interview = Interview(chat.keyboard, screen)
    try:
        trio.run(chat.run)
    except* BrokenPipeError:
        # Whoever read our output has gone; the interpreter would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        chat.status = ExitStatus.FAILED
    return chat.status


@attrs.define(eq=False)
class Chat:
    """One visit: connects, asks, prints; the first Ctrl-C stops the run, the second one leaves."""

    options: Options
    screen: Screen | JsonLines
    keyboard: Keyboard | None = None
    interview: Interview | None = None  # where somebody can be asked
    status: ExitStatus = ExitStatus.FAILED
    _run: Run | None = None
    _stopped: Run | None = None
    _prompt: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def run(self) -> None:
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, signals, nursery)
                if self.interview is not None:
                    nursery.start_soon(self.interview.run)
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
                if options.job is not None:
                    await self._watch(session, options.job)
                elif options.text is not None:
                    await self._ask(session, options.text)
                else:
                    await self._ask_lines(session)
        except (Rejected, ConnectionLost) as exc:
            complain(str(exc))
            self.status = ExitStatus.NO_CONNECTION

    async def _watch(self, session: Session, job_id: str) -> None:
        """Show what is said in a job until it ends.

        Raises:
            Rejected, ConnectionLost: The session is over.
        """
        events = session.events(job_id=job_id)
        try:
            await session.connect_job(job_id)
        except CommandFailed as refused:
            complain(str(refused))
            return
        self.status = ExitStatus.SUCCESS
        async for heard in events:
            self.screen.show(heard)
            if "error" in heard.fields:  # it could not be joined again
                complain(f"{heard.fields.get('code')}: {heard.fields['error']}")
                self.status = ExitStatus.FAILED

    async def _ask_lines(self, session: Session) -> None:
        """Ask for lines until there are no more.

        Raises:
            Rejected, ConnectionLost: The session is over; nobody has to type a line to hear of it.
        """
        self.status = ExitStatus.SUCCESS
        with self._prompt:
            keyboard = self.keyboard or Keyboard(sys.stdin.fileno())
            self.screen.ask()
            while (line := await keyboard.line()) is not None:
                self.screen.entered(ended=True)
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
            self.status = await self._follow(session, run)
        except (Rejected, ConnectionLost):
            raise
        except SessionError as exc:
            unknown = isinstance(exc, CommandFailed) and exc.code == "UNKNOWN_AGENT"
            complain(f"{exc} ({', '.join(session.welcome.agents)})" if unknown else str(exc))
            self.status = ExitStatus.FAILED
        finally:
            self._run = None

    async def _follow(self, session: Session, run: Run) -> ExitStatus:
        async for heard in run:
            if self.interview is not None:
                self.interview.note(session, heard)
            self.screen.show(heard)
            if heard.type == InputRequired.type and self.interview is None and not self.options.as_json:
                # Waiting would take as long as the question does, a day perhaps; leaving ends the run.
                complain("the agent asks, and there is no terminal to answer at; the run is given up")
                return ExitStatus.ASKED
        completed = await run.result()
        return ExitStatus.SUCCESS if completed.status == "success" else ExitStatus.FAILED

    def _tell(self, change: StateChange) -> None:
        if change.state is SessionState.WAITING and change.delay_s is not None:
            complain(f"{change.reason}; trying again in {change.delay_s:.1f} s")
        if change.state is SessionState.CLOSED and change.error is not None and self._run is None:
            self._prompt.cancel()
