"""Agents' questions at the terminal: asked one after another, answered, or withdrawn when somebody else was first."""

from __future__ import annotations

from collections import deque
from typing import Any

import attrs
import trio

from netra_ws.client import Session
from netra_ws.errors import AlreadyAnswered, SessionError, UnfitAnswer, UnknownInput
from netra_ws.pending import PendingInput
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import AgentCompleted, InputReceived, InputRequired

from .fields import Field, assemble, choose, fields_of
from .keyboard import Keyboard
from .screen import Screen

_HINT = "Ctrl-D declines, Ctrl-C stops the run"


class Declined(Exception):
    """The person at the terminal does not want to answer."""


@attrs.define(eq=False)
class Interview:
    """Asks what agents want to know; a task of its own, since the agents go on meanwhile.

    While a question is asked, what else is heard is held back by the screen.
    """

    keyboard: Keyboard
    screen: Screen
    _open: deque[tuple[Session, PendingInput]] = attrs.field(factory=deque)
    _more: trio.Event = attrs.field(factory=trio.Event)
    _asking: PendingInput | None = None
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def note(self, session: Session, heard: Heard) -> None:
        """Take an event of a run: what asks, and what ends a question."""
        if heard.type == InputRequired.type:
            pending = PendingInput.read(heard.fields)
            if pending is not None:
                self._open.append((session, pending))
                self._more.set()
        elif heard.type == InputReceived.type:
            self._withdraw("input_id", heard)
        elif heard.type == AgentCompleted.type:
            self._withdraw("run_id", heard)

    def _withdraw(self, name: str, heard: Heard) -> None:
        over = heard.fields.get(name)
        self._open = deque(each for each in self._open if getattr(each[1], name) != over)
        if self._asking is not None and getattr(self._asking, name) == over:
            self._scope.cancel()

    async def run(self) -> None:
        """Ask, until cancelled."""
        while True:
            while not self._open:
                self._more = trio.Event()
                await self._more.wait()
            session, self._asking = self._open.popleft()
            aside = self.keyboard.set_aside()
            with self.screen.held(), trio.CancelScope() as self._scope:
                await self._ask(session, self._asking)
            self.keyboard.give_back(aside)
            self._asking = None

    async def _ask(self, session: Session, pending: PendingInput) -> None:
        self.screen.question(pending, _HINT)
        while True:
            try:
                try:
                    value = await self._value(pending)
                except Declined:
                    await session.decline(pending.input_id)
                else:
                    await session.answer(pending.input_id, value)
                return
            except UnfitAnswer as exc:
                for path, text in exc.fields.items():
                    self.screen.fault(f"{path.removeprefix('$.value').lstrip('.') or 'the answer'}: {text}")
            except (AlreadyAnswered, UnknownInput):
                self.screen.fault("this question is not open any more")
                return
            except SessionError as exc:
                self.screen.fault(str(exc))
                return

    async def _value(self, pending: PendingInput) -> Any:
        if pending.choices is not None:
            choices = pending.choices
            return await self._line("number: ", lambda line: choose(choices, line.strip()))
        if pending.schema is None:
            return await self._line("answer: ", _text)
        answers: list[tuple[Field, Any]] = []
        for field in fields_of(pending.schema):
            if any(gate.shuts(field) for gate, wanted in answers if wanted is False):
                continue
            self.screen.field(field)
            answers.append((field, await self._line(field.prompt(), field.read)))
        return assemble(answers)

    async def _line(self, prompt: str, read: Any) -> Any:
        """Ask for one line until it can be read.

        Raises:
            Declined: The input has ended.
        """
        while True:
            self.screen.prompt(prompt)
            line = await self.keyboard.line()
            self.screen.entered(line is not None)
            if line is None:
                raise Declined
            try:
                return read(line)
            except ValueError as exc:
                self.screen.fault(str(exc))


def _text(line: str) -> str:
    if not line.strip():
        raise ValueError("an empty line is no answer")
    return line
