"""Tools as a model is offered them: by name, with their schemas, and with answers to whatever it asks for.

A model may ask for a tool that there is not, with arguments that are no JSON; a tool may fail in any
way. None of that ends the run: it is told to the user as a pair of events like any other call, and
goes back to the model as the result, so that no call in its conversation is left without an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import orjson
import trio

from netra_ws.errors import AgentError, ConfigError, InvalidParameters, QuotaExceeded, RunClosed
from netra_ws.protocol.events import ErrorText, ToolStatus
from netra_ws.protocol.reading import MAX_DEPTH, deeper_than

from .failures import leaves, split
from .request import MAX_NAME
from .run import Run
from .tools import Tool, judge


@attrs.frozen
class Attempt:
    """How a call that a model has asked for went.

    Attributes:
        results: A JSON value; None when it failed.
        error: Why it failed; None when it did not.
    """

    status: ToolStatus
    results: Any = None
    error: ErrorText | None = None

    def for_model(self) -> str:
        """Return the text that a model gets as the tool's result."""
        if self.status == "ok":
            return self.results if isinstance(self.results, str) else orjson.dumps(self.results).decode()
        error = self.error or ErrorText(code=self.status.upper(), message="the call was not carried out")
        return orjson.dumps({"error": {"code": error.code, "message": error.message}}).decode()


class Toolbox:
    """Tools by name.

    Raises:
        ConfigError: Two have the same name, or one is no tool.
    """

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if not isinstance(tool, Tool):
                raise ConfigError(f"{tool!r}: expected a tool, as @tool makes one")
            if tool.name in self._tools:
                raise ConfigError(f"two tools are called {tool.name}")
            self._tools[tool.name] = tool

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    def functions(self) -> list[dict[str, Any]]:
        """Return the tools as OpenAI-compatible servers want them: ``{"type": "function", "function": {…}}``."""
        return [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.schema)},
            }
            for tool in self._tools.values()
        ]

    async def attempt(self, run: Run, name: str, arguments: str | Mapping[str, Any]) -> Attempt:
        """Carry out what a model asks for, whatever it is.

        Args:
            arguments: A JSON object, as text or read already.

        Returns:
            How it went. What the model, the tool or its user got wrong is never raised.

        Raises:
            RunClosed, QuotaExceeded: The run is over.
        """
        try:
            parameters = read_arguments(arguments)
            tool = self._tools.get(name)
            if tool is None:
                known = ", ".join(self._tools) or "none"
                raise AgentError(f"there is no tool {name[:MAX_NAME]!r}; there are: {known}", code="UNKNOWN_TOOL")
        except AgentError as error:
            return await _refuse(run, name, error)
        try:
            _, results = await tool.carry_out(run, parameters)
        except BaseException as exc:  # a crash wall: whatever a tool raises is the answer to this call alone
            # But a cancel goes on, and so does Ctrl-C, and a run that is over answers no model.
            ctrl_c, own = split(exc, cancelled=True)
            ends = any(isinstance(each, RunClosed | QuotaExceeded | trio.Cancelled) for each in leaves(exc))
            if ctrl_c is not None or own is None or ends:
                raise
            status, error_text = judge(exc, stopping=False)
            return Attempt(status, None, error_text)
        return Attempt("ok", results)


def read_arguments(arguments: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a model's arguments as an object; an empty text is one without any.

    Raises:
        InvalidParameters: They are no JSON object.
    """
    read: Any = arguments
    if isinstance(arguments, str):
        try:
            read = orjson.loads(arguments) if arguments.strip() else {}
        except orjson.JSONDecodeError as exc:
            raise InvalidParameters({"$": f"not valid JSON: line {exc.lineno} column {exc.colno}"}) from None
    if not isinstance(read, Mapping):
        raise InvalidParameters({"$": "expected an object"})
    if deeper_than(read, MAX_DEPTH):
        raise InvalidParameters({"$": f"nested more than {MAX_DEPTH} levels deep"})
    return read


async def _refuse(run: Run, name: str, error: AgentError) -> Attempt:
    """Tell a call that nothing was carried out of."""
    try:
        async with run.tool(name[:MAX_NAME] or "?"):
            raise error
    except AgentError as told:
        if told is not error:  # there was no room for the pair
            error = told
    return Attempt("error", None, ErrorText(code=error.code, message=error.text))
