"""What carries messages to an MCP server and back, whatever it is made of."""

from __future__ import annotations

from typing import Final, Protocol

from mcp.shared.message import SessionMessage

from netra_ws.errors import AgentError

from .servers import McpServer

#: What a server's text is cut to before it is logged or told.
MAX_WORDS: Final = 500


class Gone(Exception):
    """A server cannot be talked to any more; the text goes on behind its name ("has ended")."""


class Wire(Protocol):
    """A way to one server and back."""

    @property
    def trouble(self) -> str:
        """Why the last request was not answered, behind the server's name; empty when it was."""

    @property
    def last_words(self) -> str:
        """What the server has complained of last, for the log; empty when it has not."""

    async def receive(self) -> SessionMessage:
        """Return the next message.

        Raises:
            Gone: There will be none.
        """

    async def send(self, message: SessionMessage) -> None:
        """Send a message; the caller bounds the wait.

        Raises:
            Gone: It cannot be sent.
        """


def unavailable(server: McpServer, why: str) -> AgentError:
    """Return the error of a run that cannot have *server*."""
    return AgentError(f"the MCP server {server.name} {server.masked(why)}", code="MCP_UNAVAILABLE", retryable=True)


def broken(server: McpServer, why: str) -> AgentError:
    """Return the error of a call that *server* does not answer."""
    return AgentError(f"the MCP server {server.name} {server.masked(why)}", code="MCP_BROKEN", retryable=True)


def tool_error(server: McpServer, text: str) -> AgentError:
    """Return the error of a call that *server* answered with one."""
    return AgentError(server.masked(text), code="MCP_TOOL_ERROR")
