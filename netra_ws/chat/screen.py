"""What a person at a terminal, or a program behind a pipe, sees of events."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import attrs

from netra_ws.pending import PendingInput
from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import (
    AgentCompleted,
    AgentEvent,
    AgentMessage,
    AgentStarted,
    AgentThinking,
    Announcement,
    InputReceived,
    InputRequired,
    RunEvent,
    RunQueued,
    ToolCompleted,
    ToolExecuting,
    ToolProgress,
)
from netra_ws.protocol.replies import JobDisconnected, StreamReset

from .fields import Field

#: Under what the open thought is kept; ids of messages look different.
THOUGHT = "thought"
#: Characters of a tool's parameters and results that are shown.
_SHOWN = 200
#: Events held back while a question is asked; beyond that they are printed in between.
_MAX_HELD = 2000
_INDENT = "  "
_PLAIN = {number: "�" for number in (*range(0x20), *range(0x7F, 0xA0)) if chr(number) not in "\n\t"}


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

    def entered(self, ended: bool) -> None:
        """Take note of nothing: no prompt was printed."""


@attrs.define
class Screen:
    """Prints events for people; colours on a terminal only."""

    out: TextIO
    colours: bool
    asks: bool = False  # whether questions are asked here, by ``Interview``
    _said: dict[str, str] = attrs.field(factory=dict)
    _current: str = ""
    _answered: bool = False
    _pad: str = ""
    _depths: dict[str, int] = attrs.field(factory=dict)  # of running sub-runs
    _at_prompt: bool = False
    _held: deque[Heard] | None = None

    def ask(self) -> None:
        """Print the prompt for the next text."""
        self.prompt("> ")

    def prompt(self, text: str) -> None:
        """Print what a line is asked for with."""
        self._pad = ""
        self._fresh_line()
        self._write(text, "1")
        self._at_prompt = True

    def entered(self, ended: bool) -> None:
        """Take note that a line was entered; the terminal has shown its *ended* itself."""
        self._at_prompt = not ended

    def question(self, pending: PendingInput, hint: str) -> None:
        """Print a question with its choices."""
        self._pad = ""
        left_s = None if pending.expires_at is None else max(0.0, pending.expires_at - time.time())
        notes = hint if left_s is None else f"{hint}; {_span(left_s)} left"
        self._line(f"? {pending.prompt}", "33")
        for number, choice in enumerate(pending.choices or (), 1):
            self._line(f"  {number}. {choice}", "33")
        self._line(f"  ({notes})", "2")

    def field(self, field: Field) -> None:
        """Print what helps to fill in a field: its words and options."""
        if field.help and field.path:
            self._line(f"  {field.help}", "2")
        for number, option in enumerate(field.options, 1):
            self._line(f"  {number}. {option if isinstance(option, str) else _short(option)}", "33")

    def fault(self, text: str) -> None:
        """Print why an answer was not taken."""
        self._pad = ""
        self._line(f"✗ {text}", "31")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold back what is shown in the block until it is over, so that it does not run into a question."""
        self._held = deque()
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        held, self._held = self._held or (), None
        for heard in held:
            self.show(heard)

    def show(self, heard: Heard) -> None:
        """Print one event of a run or of its sub-runs; those are indented."""
        if self._held is not None:
            self._held.append(heard)
            if len(self._held) > _MAX_HELD:
                self._release()
            return
        message = heard.message
        self._pad = _INDENT * self._depth_of(message) if isinstance(message, RunEvent) else ""
        match message:
            case AgentMessage() as event:
                self._answered = self._answered or not self._pad
                self._stream(event.message_id, event.phase, event.content)
            case AgentThinking() as event:
                self._stream(f"{THOUGHT} {event.run_id}", event.phase, event.reasoning, "2", "· ")
            case AgentCompleted(parent_run_id=None) as event:
                self._end(event)
            case AgentCompleted() as event:
                self._end_part(event)
            case InputRequired() if self.asks:
                pass
            case event if event is not None:
                self._line(*_line_of(event))

    def _depth_of(self, event: RunEvent) -> int:
        if event.parent_run_id is None:
            return 0
        return self._depths.setdefault(event.run_id, self._depths.get(event.parent_run_id, 0) + 1)

    def _end_part(self, event: AgentCompleted) -> None:
        self._depths.pop(event.run_id, None)
        if event.status == "success":
            self._line(f"◂ {event.agent_name} ({event.duration_ms} ms)", "32")
        else:
            why = f": {event.error.message}" if event.error is not None else ""
            self._line(f"◂ {event.agent_name} {event.status}{why}", "31")

    def _end(self, event: AgentCompleted) -> None:
        self._fresh_line()
        if not self._answered and event.final_response is not None:
            response = event.final_response
            self._line(response if isinstance(response, str) else _short(response), "")
        if event.status != "success":
            why = f": {event.error.code}: {event.error.message}" if event.error is not None else ""
            self._line(f"✗ {event.status}{why}", "31")
        self._said.clear()
        self._depths.clear()
        self._answered = False

    def _stream(self, key: str, phase: str, text: str, style: str = "", mark: str = "") -> None:
        """Print a piece, or of a full text what was not printed yet."""
        said = self._said.get(key, "")
        if phase == "full" and not text.startswith(said):
            said = ""  # pieces were missed: the whole text once more
            self._fresh_line()
        piece = text if phase == "delta" else text[len(said) :]
        if piece and key != self._current:
            self._fresh_line()
            self._current = key
            self._write(self._pad + mark, style)
        self._write(piece.replace("\n", f"\n{self._pad}"), style)
        self._said[key] = said + piece
        if phase == "full" and key.startswith(THOUGHT):
            # A message goes on behind a full that came on its way; a thought has no name, so it ends there.
            self._said.pop(key)
            if key == self._current:
                self._fresh_line(force=True)

    def _line(self, text: str, style: str) -> None:
        if text:
            self._fresh_line()
            self._write(self._pad + text.replace("\n", f"\n{self._pad}") + "\n", style)

    def _fresh_line(self, *, force: bool = False) -> None:
        if self._said.get(self._current) or force or self._at_prompt:
            self._write("\n", "")
        self._current = ""
        self._at_prompt = False

    def _write(self, text: str, style: str) -> None:
        shown = plain(text)
        print(f"\x1b[{style}m{shown}\x1b[0m" if self.colours and style else shown, end="", file=self.out, flush=True)


def _line_of(event: object) -> tuple[str, str]:
    """Return what is printed about an event, and its colour; nothing for what goes without saying."""
    match event:
        case AgentStarted() if event.parent_run_id is not None:
            return f"▸ {event.agent_name}", "36"
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
        case InputReceived(status="resolved"):
            return f"! {_short(event.value)}", "33"
        case InputReceived():
            return "! declined" if event.by != "server" else f"! {event.status}", "33"
        case AgentEvent() | Announcement():
            return f"* {event.name} {_short(event.value)}", "2"
        case StreamReset():
            return "· some events could not be read again", "33"
        case JobDisconnected():
            return "· the job is over", "33"
    return "", ""


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def complain(text: str) -> None:
    """Print one line for people on standard error."""
    with contextlib.suppress(BrokenPipeError):
        print(f"netra-ws: {plain(' '.join(text.split()))}", file=sys.stderr, flush=True)
