"""``@tool``: from a function with annotations to a ``Tool``."""

from __future__ import annotations

import inspect
import math
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, overload

import attrs

from netra_ws.errors import ConfigError

from .run import Run
from .shapes import Field, fields_reader, object_schema
from .tools import Tool, ToolCall

#: What model servers take as the name of a function.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ARGS = re.compile(r"\n\s*(?:Args|Arguments|Parameters):\s*\n(.*?)(?=\n\s*\n|\Z)", re.DOTALL)
_ARG = re.compile(r"(?m)^\s*(\w+)\s*(?:\([^)]*\))?:\s*(.+)$")

Function = Callable[..., Any]


@overload
def tool(function: Function, /) -> Tool: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout_s: float | None = None,
    per_user: int | None = None,
    permission: str | None = None,
) -> Callable[[Function], Tool]: ...


def tool(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout_s: float | None = None,
    per_user: int | None = None,
    permission: str | None = None,
) -> Tool | Callable[[Function], Tool]:
    """Declare a function as a tool: ``@tool``, or ``@tool(timeout_s=10, per_user=2, permission="orders")``.

    Each parameter needs an annotation that JSON has a word for (``agents/shapes``): plain types, attrs
    classes, dataclasses, ``Literal``, unions, lists … Its description is a text in ``Annotated``, or its
    line under ``Args:`` in the docstring. A parameter annotated ``Run`` or ``ToolCall`` gets the run or
    the call itself. A plain function (``def``) runs in a worker thread, as by ``run.thread``.

    Args:
        name: The function's name by default; letters, digits, ``_`` and ``-``, at most 64.
        description: For a model; by default the docstring up to its ``Args:``.
        timeout_s: Seconds that one call may take. Code that blocks, in a plain function or not, is not cut off:
            its call is told as timed out when it comes back.
        per_user: Calls of one user at the same time; others wait for their turn.
        permission: What the user needs among the permissions of their token.

    Raises:
        ConfigError: The function cannot be a tool; the text says which parameter and why.
    """

    def declare(function: Function) -> Tool:
        return _declare(function, name, description, timeout_s, per_user, permission)

    return declare if function is None else declare(function)


def _declare(
    function: Function,
    name: str | None,
    description: str | None,
    timeout_s: float | None,
    per_user: int | None,
    permission: str | None,
) -> Tool:
    name = name or str(getattr(function, "__name__", type(function).__name__))
    if not callable(function) or isinstance(function, type):
        raise ConfigError(f"tool {name}: expected a function")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"tool {name}: expected a name of 1 to 64 letters, digits, _ and -")
    if timeout_s is not None and not (isinstance(timeout_s, int | float) and 0 < timeout_s < math.inf):
        raise ConfigError(f"tool {name}: timeout_s: expected seconds above 0")
    if per_user is not None and not (type(per_user) is int and per_user >= 1):
        raise ConfigError(f"tool {name}: per_user: expected a whole number of at least 1")
    text = inspect.getdoc(function) or ""
    try:
        fields, given = _parameters(function, text)
        schema = object_schema(fields)
        read = fields_reader(fields)
    except ConfigError as exc:
        raise ConfigError(f"tool {name}: {exc}") from None
    return Tool(
        name=name,
        description=description or _ARGS.sub("", f"{text}\n").strip(),
        schema=schema,
        read=read,
        invoke=_invoker(function, given),
        timeout_s=timeout_s,
        per_user=per_user,
        permission=permission,
    )


def _parameters(function: Function, text: str) -> tuple[list[Field], dict[str, Any]]:
    """Return what a model gives, and which parameters get the run or the call instead."""
    said = dict(_ARG.findall(found[1])) if (found := _ARGS.search(f"\n{text}\n")) else {}
    called = function if inspect.isroutine(function) else type(function).__call__
    try:
        hints = typing.get_type_hints(called, include_extras=True)
    except NameError as exc:
        hint = "; annotate it Run, as imported from netra_ws" if exc.name in ("Run", "AsyncioRun") else ""
        raise ConfigError(f"{exc}; types have to be found in the module{hint}") from None
    fields: list[Field] = []
    given: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        type_ = hints.get(parameter.name, inspect.Parameter.empty)
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(f"{parameter}: expected parameters that have a name of their own")
        if type_ in (Run, ToolCall):
            given[parameter.name] = type_
        elif (meant := _runs_in(type_)) is not None:
            raise ConfigError(f"{parameter.name}: annotate it {meant}, and nothing else: a tool gets exactly that")
        elif type_ is inspect.Parameter.empty:
            raise ConfigError(f"{parameter.name}: expected an annotation")
        else:
            default = attrs.NOTHING if parameter.default is parameter.empty else parameter.default
            fields.append(Field(parameter.name, type_, default, said.get(parameter.name, "")))
    return fields, given


def _runs_in(type_: Any) -> str | None:
    """Return what an annotation means that is about a run or a call, but is not the plain class."""
    for each in (type_, *typing.get_args(type_)):
        if isinstance(each, type) and (issubclass(each, Run | ToolCall) or each.__name__ in ("Run", "AsyncioRun")):
            return "ToolCall" if issubclass(each, ToolCall) else "Run"
    return None


def _invoker(function: Function, given: Mapping[str, Any]) -> Callable[[ToolCall, Mapping[str, Any]], Any]:
    called = function if inspect.isroutine(function) else type(function).__call__

    async def invoke(call: ToolCall, keywords: Mapping[str, Any]) -> Any:
        own = {name: call if type_ is ToolCall else call.run for name, type_ in given.items()}
        if inspect.iscoroutinefunction(called):
            return await function(**keywords, **own)
        value = await call.run.thread(lambda: function(**keywords, **own))
        return await value if inspect.isawaitable(value) else value  # a function around an async one

    return invoke
