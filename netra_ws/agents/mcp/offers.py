"""Makes tools of what MCP servers offer: names that models can call, texts and schemas within bounds."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import trio
from mcp_types import Tool as Offer

from netra_ws.errors import InvalidParameters

from ..tools import Tool, ToolCall
from .link import Link
from .schemas import Parameters, UnfitSchema
from .servers import McpServer

logger = logging.getLogger(__name__)

#: Characters of a function's name, of which ``[a-zA-Z0-9_-]`` are allowed, in the OpenAI API and those like it.
MAX_NAME = 64
#: Characters of a description; it goes to the model with every request.
MAX_DESCRIPTION = 4096


@attrs.frozen
class _Fit:
    """An offer that can be made a tool of, with a name that models can call."""

    link: Link
    offer: Offer
    parameters: Parameters
    name: str


async def make_tools(links: Sequence[Link], taken: Collection[str]) -> list[Tool]:
    """Return the tools of all *links*, each with a name of its own; what cannot be offered is logged and left out."""
    fits = []
    for link in links:
        for fit in _fits(link):
            fits.append(fit)
            await trio.lowlevel.checkpoint()  # a schema takes a millisecond or two
    offered_by = Counter(name for link in links for name in {fit.name for fit in fits if fit.link is link})
    used, tools = set(taken), []
    for fit in fits:
        name = fit.name
        if name in taken or offered_by[name] > 1:
            name = _sized(f"{fit.link.server.name}_{name}")
        name = _unused(name, fit, used)
        used.add(name)
        tools.append(_make_tool(fit, name))
    return tools


def _fits(link: Link) -> Iterator[_Fit]:
    server = link.server
    missing = sorted(set(server.include or ()) - {offer.name for offer in link.offers})
    if missing:
        logger.warning("MCP server %s does not have the tools %s", server.name, ", ".join(missing)[:500])
    for offer in link.offers:
        if not server.offers(offer.name):
            continue
        name = re.sub(r"[^a-zA-Z0-9_-]+", "_", offer.name)
        try:
            if not name.strip("_"):
                raise UnfitSchema("its name has no letter")
            parameters = Parameters.read(offer.input_schema)
        except UnfitSchema as exc:
            text = "run %s: MCP server %s: the tool %.100s is left out: %s"
            logger.warning(text, link.run.run_id, server.name, offer.name, exc)
            continue
        yield _Fit(link, offer, parameters, _sized(f"{server.name}_{name}" if server.prefix else name))


def _sized(name: str) -> str:
    return name if len(name) <= MAX_NAME else _marked(name, name)


def _unused(name: str, fit: _Fit, used: Collection[str]) -> str:
    # Two names of one server may be one to a model: "a.b" and "a_b".
    count = 0
    while name in used:
        name = _marked(name, f"{fit.link.server.name} {fit.offer.name} {count}")
        count += 1
    return name


def _marked(name: str, of: str) -> str:
    mark = hashlib.sha256(of.encode(errors="replace")).hexdigest()[:8]
    return f"{name[: MAX_NAME - 9]}_{mark}"


def _make_tool(fit: _Fit, name: str) -> Tool:
    server, offer = fit.link.server, fit.offer
    return Tool(
        name=name,
        description=_description(offer, server),
        schema=fit.parameters.schema,
        read=partial(_read, fit.parameters),
        invoke=partial(_invoke, fit.link, offer.name),
        timeout_s=server.timeout_s,
        permission=server.permission,
    )


def _description(offer: Offer, server: McpServer) -> str:
    text = offer.description or offer.title or f"{offer.name} of {server.name}"
    return text if len(text) <= MAX_DESCRIPTION else f"{text[: MAX_DESCRIPTION - 1]}…"


def _read(parameters: Parameters, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    violations = parameters.violations(arguments)
    if violations:
        raise InvalidParameters(violations)
    return arguments


async def _invoke(link: Link, tool: str, call: ToolCall, arguments: Mapping[str, Any]) -> Any:
    return await link.call(tool, call, arguments)
