"""Runs AI agents for many users and streams what they do over WebSockets, on Trio."""

from __future__ import annotations

from .agents.agent import Agent as Agent
from .agents.run import Run as Run
from .agents.tools import ToolCall as ToolCall
from .contexts.embedding import RunHandle as RunHandle
from .contexts.embedding import UserSession as UserSession
from .errors import AgentError as AgentError
from .errors import ClientError as ClientError
from .errors import ConfigError as ConfigError
from .errors import NetraError as NetraError
from .errors import Refused as Refused
from .errors import RunClosed as RunClosed
from .errors import ServerError as ServerError
from .errors import SessionError as SessionError
from .errors import StoreError as StoreError
from .errors import WrongThread as WrongThread
from .identity import Identity as Identity
from .protocol.closing import CloseCode as CloseCode
from .protocol.replies import Position as Position
from .server import Server as Server
from .server import open_server as open_server
from .server import serve as serve
from .settings import Settings as Settings
from .version import __version__ as __version__

__all__ = [
    "Agent",
    "AgentError",
    "ClientError",
    "CloseCode",
    "ConfigError",
    "Identity",
    "NetraError",
    "Position",
    "Refused",
    "Run",
    "RunClosed",
    "RunHandle",
    "Server",
    "ServerError",
    "SessionError",
    "Settings",
    "StoreError",
    "ToolCall",
    "UserSession",
    "WrongThread",
    "__version__",
    "open_server",
    "serve",
]
