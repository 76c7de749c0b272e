"""Tools of MCP servers, for agents and the models that they ask.

What is exported here needs nothing but this package: the library ``mcp`` is loaded when a server is first
talked to.
"""

from .opening import open_mcp as open_mcp
from .servers import McpServer as McpServer
