"""Runs AI agents for many users and streams what they do over WebSockets, on Trio.

A program takes from here what it needs; each name is loaded when it is first used, so that a client
does not pay for the server, nor an agent's module for the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agents.agent import Agent as Agent
    from .agents.bridge import AsyncioRun as AsyncioRun
    from .agents.bridge import bridge as bridge
    from .agents.declaring import tool as tool
    from .agents.llm.agent import LlmAgent as LlmAgent
    from .agents.llm.endpoint import ModelEndpoint as ModelEndpoint
    from .agents.mcp import McpServer as McpServer
    from .agents.mcp import open_mcp as open_mcp
    from .agents.run import Run as Run
    from .agents.tools import Tool as Tool
    from .agents.tools import ToolCall as ToolCall
    from .client import Session as Session
    from .client import connect as connect
    from .contexts.embedding import RunHandle as RunHandle
    from .contexts.embedding import UserSession as UserSession
    from .errors import AgentError as AgentError
    from .errors import ClientError as ClientError
    from .errors import CommandFailed as CommandFailed
    from .errors import ConfigError as ConfigError
    from .errors import ConnectionLost as ConnectionLost
    from .errors import DelegateFailed as DelegateFailed
    from .errors import InputDeclined as InputDeclined
    from .errors import NetraError as NetraError
    from .errors import Refused as Refused
    from .errors import Rejected as Rejected
    from .errors import RunClosed as RunClosed
    from .errors import ServerError as ServerError
    from .errors import SessionError as SessionError
    from .errors import StoreError as StoreError
    from .errors import ToolDenied as ToolDenied
    from .errors import WrongThread as WrongThread
    from .identity import Identity as Identity
    from .protocol.closing import CloseCode as CloseCode
    from .protocol.replies import Position as Position
    from .server import Server as Server
    from .server import Surroundings as Surroundings
    from .server import open_server as open_server
    from .server import serve as serve
    from .settings import Settings as Settings
    from .version import __version__ as __version__

__all__ = [
    "Agent",
    "AgentError",
    "AsyncioRun",
    "ClientError",
    "CloseCode",
    "CommandFailed",
    "ConfigError",
    "ConnectionLost",
    "DelegateFailed",
    "Identity",
    "InputDeclined",
    "LlmAgent",
    "McpServer",
    "ModelEndpoint",
    "NetraError",
    "Position",
    "Refused",
    "Rejected",
    "Run",
    "RunClosed",
    "RunHandle",
    "Server",
    "ServerError",
    "Session",
    "SessionError",
    "Settings",
    "StoreError",
    "Surroundings",
    "Tool",
    "ToolCall",
    "ToolDenied",
    "UserSession",
    "WrongThread",
    "__version__",
    "bridge",
    "connect",
    "open_mcp",
    "open_server",
    "serve",
    "tool",
]

#: Public name → the module that has it; the same as the imports above, for the running program.
_HOMES: Mapping[str, str] = {
    "Agent": "agents.agent",
    "AgentError": "errors",
    "AsyncioRun": "agents.bridge",
    "ClientError": "errors",
    "CloseCode": "protocol.closing",
    "CommandFailed": "errors",
    "ConfigError": "errors",
    "ConnectionLost": "errors",
    "DelegateFailed": "errors",
    "Identity": "identity",
    "InputDeclined": "errors",
    "LlmAgent": "agents.llm.agent",
    "McpServer": "agents.mcp",
    "ModelEndpoint": "agents.llm.endpoint",
    "NetraError": "errors",
    "Position": "protocol.replies",
    "Refused": "errors",
    "Rejected": "errors",
    "Run": "agents.run",
    "RunClosed": "errors",
    "RunHandle": "contexts.embedding",
    "Server": "server",
    "ServerError": "errors",
    "Session": "client",
    "SessionError": "errors",
    "Settings": "settings",
    "StoreError": "errors",
    "Surroundings": "server",
    "Tool": "agents.tools",
    "ToolCall": "agents.tools",
    "ToolDenied": "errors",
    "UserSession": "contexts.embedding",
    "WrongThread": "errors",
    "__version__": "version",
    "bridge": "agents.bridge",
    "connect": "client",
    "open_mcp": "agents.mcp",
    "open_server": "server",
    "serve": "server",
    "tool": "agents.declaring",
}


def __getattr__(name: str) -> Any:
    """Load a public name at its first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
