"""What users implement, and how a server comes to know it.

An agent is an async function, or an object with an async ``__call__``, that takes a ``Run`` and
returns the final response: text or any JSON value. It is known by a name: given in code, by
``--agent module:name`` (or ``alias=module:name``), or by an entry point of the group
``netra_ws.agents``.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from collections.abc import Awaitable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from netra_ws.errors import ConfigError

from .tools import Tool

if TYPE_CHECKING:
    from .run import Run

logger = logging.getLogger(__name__)

ENTRY_POINTS = "netra_ws.agents"


class Agent(Protocol):
    """One kind of work, done once per run."""

    def __call__(self, run: Run, /) -> Awaitable[Any]: ...


def check_agent(name: str, agent: object) -> Agent:
    """Return *agent* when it can be one.

    Raises:
        ConfigError: It is not callable as an async function of one argument.
    """
    if isinstance(agent, Tool):
        raise ConfigError(f"agent {name}: this is a tool; an agent calls it, or a model by LlmAgent(tools=[…])")
    inner = agent
    while isinstance(inner, functools.partial):
        inner = inner.func
    call = inner if inspect.isroutine(inner) else getattr(inner, "__call__", None)  # noqa: B004
    if isinstance(inner, type) or not inspect.iscoroutinefunction(call):
        raise ConfigError(f"agent {name}: expected an async function or an object with an async __call__")
    try:
        inspect.signature(agent).bind(None)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(f"agent {name}: expected a function of one argument, the run") from None
    return agent  # type: ignore[return-value]


def load_agent(spec: str) -> tuple[str, Agent]:
    """Import an agent named as ``module:attribute`` or ``alias=module:attribute``.

    Returns:
        The name it is known by, and the agent.

    Raises:
        ConfigError: There is no such module or attribute, or it is no agent.
    """
    alias, _, path = spec.rpartition("=")
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigError(f"agent {spec!r}: expected module:attribute or alias=module:attribute")
    try:
        module = importlib.import_module(module_name)
    except ImportError as exc:
        raise ConfigError(f"agent {spec!r}: cannot import {module_name} ({exc})") from exc
    try:
        found: object = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise ConfigError(f"agent {spec!r}: {module_name} has no attribute {attribute}") from None
    name = alias or attribute.rpartition(".")[2]
    return name, check_agent(name, found)


def collect_agents(
    builtin: Mapping[str, Agent], modules: Sequence[str], given: Mapping[str, Agent]
) -> dict[str, Agent]:
    """Return every agent by name; later sources replace earlier ones: built-in, entry points, modules, code.

    Raises:
        ConfigError: One of *modules* or *given* is no agent, or two of *modules* have the same name.
    """
    agents = dict(builtin)
    for point in entry_points(group=ENTRY_POINTS):
        try:
            agents[point.name] = check_agent(point.name, point.load())
        except Exception:  # somebody else's package: its trouble must not stop the server
            logger.exception("entry point %s of %s cannot be loaded and is left out", point.name, ENTRY_POINTS)
    named: dict[str, str] = {}
    for spec in modules:
        name, agent = load_agent(spec)
        if name in named:
            raise ConfigError(
                f"agent {name}: both {named[name]} and {spec}; give one a name of its own, as alias=module:name"
            )
        agents[name], named[name] = agent, spec
    for name, agent in given.items():
        agents[name] = check_agent(name, agent)
    return agents
