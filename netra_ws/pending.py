"""Inputs that wait for their user's answer, as a session knows them: from the welcome, kept up to date by events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import attrs

from netra_ws.protocol.codec import Heard
from netra_ws.protocol.events import AgentCompleted, InputReceived, InputRequired

#: Inputs that one session remembers, above the 20 that a server keeps open for a user; the oldest goes first.
MAX_INPUTS = 64


@attrs.frozen(kw_only=True)
class PendingInput:
    """A question of an agent that nobody has answered yet.

    Attributes:
        run_id: The run that asks; of a sub-run where ``parent_run_id`` is there.
        choices: Texts, one of which is the answer, or None.
        schema: JSON Schema of the answer, or None: then it is a text.
        expires_at: Unix seconds after which nobody can answer any more, or None.
    """

    input_id: str
    run_id: str
    thread_id: str
    agent_name: str
    prompt: str
    choices: Sequence[str] | None = None
    schema: Mapping[str, Any] | None = attrs.field(default=None, eq=False)
    expires_at: float | None = None
    parent_run_id: str | None = None

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self | None:
        """Read an ``input_required``, or one of a welcome's ``pending_inputs``; None where it names no input."""
        input_id, run_id = fields.get("input_id"), fields.get("run_id")
        if not isinstance(input_id, str) or not isinstance(run_id, str):
            return None
        choices, schema, expires_at = fields.get("choices"), fields.get("schema"), fields.get("expires_at")
        parent_run_id = fields.get("parent_run_id")
        return cls(
            input_id=input_id,
            run_id=run_id,
            thread_id=str(fields.get("thread_id", "")),
            agent_name=str(fields.get("agent_name", "")),
            prompt=str(fields.get("prompt", "")),
            choices=tuple(map(str, choices)) if isinstance(choices, list) and choices else None,
            schema=schema if isinstance(schema, Mapping) else None,
            expires_at=float(expires_at) if isinstance(expires_at, int | float) else None,
            parent_run_id=parent_run_id if isinstance(parent_run_id, str) else None,
        )


@attrs.define(eq=False)
class PendingInputs:
    """The inputs of one user that wait, oldest first."""

    limit: int = MAX_INPUTS
    _inputs: dict[str, PendingInput] = attrs.field(factory=dict)

    def __iter__(self) -> Iterator[PendingInput]:
        return iter(self._inputs.values())

    def welcomed(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        """Start anew with what a welcome names; events behind it bring the rest."""
        self._inputs.clear()
        for fields in inputs:
            self._add(fields)

    def hear(self, heard: Heard) -> None:
        """Take a numbered event."""
        if heard.type == InputRequired.type:
            self._add(heard.fields)
        elif heard.type == InputReceived.type:
            self.close(heard.fields.get("input_id"))
        elif heard.type == AgentCompleted.type:
            run_id = heard.fields.get("run_id")
            for pending in [each for each in self if each.run_id == run_id]:
                self.close(pending.input_id)

    def close(self, input_id: object) -> None:
        """Forget an input that can be answered no more."""
        if isinstance(input_id, str):
            self._inputs.pop(input_id, None)

    def _add(self, fields: Mapping[str, Any]) -> None:
        pending = PendingInput.read(fields)
        if pending is None:
            return
        if pending.input_id not in self._inputs and len(self._inputs) >= self.limit:
            del self._inputs[next(iter(self._inputs))]
        self._inputs[pending.input_id] = pending
