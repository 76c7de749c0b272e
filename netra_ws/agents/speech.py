"""What a run is saying right now: its current message and its current thought.

A message is told piece by piece (``delta``) and once more as a whole (``full``) when it ends; only the
whole is stored, with its row in the ledger. A streamed thought likewise, without a row. On the way a
long message is told as a whole now and then, so that a crash costs a few seconds of it, not all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import attrs
import trio

from netra_ws.errors import EventTooLarge
from netra_ws.history.stores.contract import MessageRow, PutMessage, Write
from netra_ws.history.stream import Entry
from netra_ws.protocol.events import AgentMessage, AgentThinking, Event

from .request import RunPolicy, new_id

#: A snapshot of a message is due after so many seconds with new text, or when so many bytes, and half
#: as much again as it had, are new: so all snapshots together stay below three times the text.
SNAPSHOT_S = 5.0
SNAPSHOT_BYTES = 16 * 1024


class Voice(Protocol):
    """How a speech reaches its stream: the run."""

    @property
    def user_id(self) -> str: ...

    @property
    def thread_id(self) -> str: ...

    @property
    def run_id(self) -> str: ...

    @property
    def converses(self) -> bool:
        """Whether what is said belongs to the conversation."""
        ...

    def names(self) -> dict[str, Any]:
        """Return the fields that every event of the run has."""
        ...

    def tell(self, event: Event, *, closing: bool = False) -> Entry:
        """Append an event of the run; *closing* ones are past its bound on events."""
        ...

    def commit(self, event: Event, row: RowMaker) -> Entry:
        """Append a closing event together with the row that *row* makes of its entry."""
        ...


class RowMaker(Protocol):
    def __call__(self, entry: Entry, /) -> Write: ...


@attrs.define
class Speech:
    """The texts of one run that are not ended yet.

    Attributes:
        anything: Whether there was any message.
    """

    _voice: Voice
    _policy: RunPolicy
    anything: bool = False
    _message_id: str | None = None
    _pieces: list[str] = attrs.field(factory=list)
    _message_bytes: int = 0
    _snapshot_bytes: int = 0
    _snapshot_at: float = 0.0
    _thought: list[str] = attrs.field(factory=list)
    _thought_bytes: int = 0

    @property
    def said(self) -> str:
        """Text of the current message so far."""
        if len(self._pieces) > 1:
            self._pieces[:] = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def say(self, piece: str) -> Iterator[None]:
        """Append *piece* to the current message; yields behind each event, so that the run can give way.

        A thought that is being streamed ends here.
        """
        if self._thought:
            self.end_thought()
        for part in cut(piece, self._policy.max_event_bytes):
            size = len(part.encode())
            if self._message_bytes + size > self._policy.max_response_bytes:
                self.end_message()
            message_id = self._message_id or new_id("msg")
            self._voice.tell(AgentMessage(**self._voice.names(), message_id=message_id, phase="delta", content=part))
            if self._message_id is None:  # only now: what could not be said began no message
                self._message_id = message_id
                self._snapshot_bytes, self._snapshot_at = 0, trio.current_time()
                self.anything = True
            self._pieces.append(part)
            self._message_bytes += size
            if self._snapshot_due():
                self.keep()
            yield

    def keep(self) -> None:
        """Have what was said of the current message so far stored; it goes on."""
        if self._message_id is not None and self._message_bytes > self._snapshot_bytes:
            self._snapshot_bytes, self._snapshot_at = self._message_bytes, trio.current_time()
            self.write_message(self._message_id, self.said)

    def _snapshot_due(self) -> bool:
        if trio.current_time() - self._snapshot_at >= SNAPSHOT_S:
            return True
        return self._message_bytes - self._snapshot_bytes >= max(SNAPSHOT_BYTES, self._snapshot_bytes // 2)

    def end_message(self) -> None:
        """End the current message, if there is one; what is said next is another one."""
        if self._message_id is None:
            return
        self.write_message(self._message_id, self.said)
        self._message_id = None
        self._pieces.clear()
        self._message_bytes = 0

    def write_message(self, message_id: str, text: str) -> None:
        """Append a message's ``full`` together with its row; what a sub-run says is no message of its thread."""
        voice = self._voice
        self.anything = True
        told = AgentMessage(**voice.names(), message_id=message_id, phase="full", content=text)
        if not voice.converses:
            voice.tell(told, closing=True)
            return

        def row(entry: Entry) -> Write:
            return PutMessage(
                row=MessageRow(
                    user_id=voice.user_id,
                    thread_id=voice.thread_id,
                    message_id=message_id,
                    run_id=voice.run_id,
                    role="assistant",
                    content=text,
                    created_at=entry.timestamp,
                    seq=entry.seq,
                )
            )

        voice.commit(told, row)

    def think(self, reasoning: str, *, delta: bool, step: str | int | None, progress: float | None) -> None:
        """Say a whole thought, or the next piece of the current one.

        Raises:
            EventTooLarge: It is above ``limits.max_event_bytes``.
        """
        size = len(reasoning.encode())
        if size > self._policy.max_event_bytes:
            raise EventTooLarge("the thought", size, self._policy.max_event_bytes)
        if not delta or self._thought_bytes + size > self._policy.max_response_bytes:
            self.end_thought()
        self._voice.tell(
            AgentThinking(
                **self._voice.names(),
                reasoning=reasoning,
                phase="delta" if delta else "full",
                step=step,
                progress=progress,
            )
        )
        if delta:
            self._thought.append(reasoning)
            self._thought_bytes += size

    def end_thought(self) -> None:
        """End a streamed thought, if there is one."""
        if not self._thought:
            return
        reasoning = "".join(self._thought)
        self._voice.tell(AgentThinking(**self._voice.names(), reasoning=reasoning, phase="full"), closing=True)
        self._thought.clear()
        self._thought_bytes = 0

    def end(self) -> None:
        """End everything."""
        self.end_thought()
        self.end_message()


def cut(text: str, limit: int) -> list[str]:
    """Cut *text* so that each part has at most *limit* bytes of UTF-8; *limit* is at least 4."""
    if len(text) * 4 <= limit or len(text.encode()) <= limit:
        return [text] if text else []
    step = max(1, limit // 4)
    return [text[start : start + step] for start in range(0, len(text), step)]
