"""What a program says of an MCP server: how to reach it, and what of it is offered."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import attrs

from netra_ws.errors import ConfigError

#: What a server that is started inherits of our environment; everything else may hold secrets of ours.
INHERITED = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")
#: Shorter values of headers and environment are not looked for in texts: they would be found everywhere.
MIN_SECRET = 6

_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
#: RFC 9110, sections 5.1 and 5.5, without what is not ASCII.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?")
#: Headers that the protocol itself sets.
_OURS = {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding"}


def _copied(value: Any) -> Any:
    """Return a value of our own, so that nothing changes behind a check; what is wrong is found later."""
    if isinstance(value, Mapping):
        return dict(value)
    return tuple(value) if isinstance(value, list | set | frozenset) else value


@attrs.frozen(repr=False)
class McpServer:
    """An MCP server whose tools an agent may use: a program to start (stdio), or an address (streamable HTTP).

    ::

        McpServer("files", command=["uvx", "mcp-server-files", "/srv/docs"])
        McpServer("wiki", url="https://wiki.example/mcp", headers={"Authorization": f"Bearer {token}"})

    Each run has a connection of its own, and of a program a process of its own.

    Attributes:
        name: How it is called in logs, in errors, and before names of tools that clash; letters, digits, ``_``, ``-``.
        command: Program and arguments.
        env: Variables for the program, besides ``INHERITED`` ones of ours; hidden in logs and errors.
        cwd: The folder that it starts in.
        url: ``http`` or ``https``; no request ever goes to another origin. A query is sent, but not shown.
        headers: Sent with every request, such as ``Authorization``; hidden in logs and errors.
        prefix: Whether the name stands before every tool's name, not only before those that clash.
        timeout_s: Longest time of one call; None leaves it to the run's.
        start_timeout_s: Longest time until it has told its tools.
        permission: What a user needs to call its tools.
        include: The server's own names of the tools to offer; None means all.
        exclude: Those to leave out.
        optional: Whether a run goes on without its tools when it cannot be had.
        may_ask: Whether it may ask the user something while it is called (elicitation by forms).

    Raises:
        ConfigError: One of these cannot be, or the library is not there.
    """

    name: str
    command: Sequence[str] | None = attrs.field(default=None, kw_only=True, converter=_copied)
    env: Mapping[str, str] = attrs.field(factory=dict, kw_only=True, converter=_copied)
    cwd: str | os.PathLike[str] | None = attrs.field(default=None, kw_only=True)
    url: str | None = attrs.field(default=None, kw_only=True)
    headers: Mapping[str, str] = attrs.field(factory=dict, kw_only=True, converter=_copied)
    prefix: bool = attrs.field(default=False, kw_only=True)
    timeout_s: float | None = attrs.field(default=60.0, kw_only=True)
    start_timeout_s: float = attrs.field(default=30.0, kw_only=True)
    permission: str | None = attrs.field(default=None, kw_only=True)
    include: Collection[str] | None = attrs.field(default=None, kw_only=True, converter=_copied)
    exclude: Collection[str] = attrs.field(default=(), kw_only=True, converter=_copied)
    optional: bool = attrs.field(default=False, kw_only=True)
    may_ask: bool = attrs.field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        problem = next(_problems(self), None)
        if problem is not None:
            raise ConfigError(f"MCP server {self.name!r}: {problem}")
        if find_spec("mcp") is None or find_spec("mcp_types") is None:
            text = "the package mcp, version 2.3 or later, is needed: pip install 'netra_ws[mcp]'"
            raise ConfigError(f"MCP server {self.name!r}: {text}")

    def __repr__(self) -> str:
        if self.command is not None:
            return f"McpServer({self.name!r}, command=[{self.command[0]!r}, …])"
        return f"McpServer({self.name!r}, url={self.address!r})"

    @property
    def address(self) -> str:
        """The URL without its query, which may hold a secret."""
        return (self.url or "").partition("?")[0]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that its program gets."""
        return {**{name: os.environ[name] for name in INHERITED if name in os.environ}, **self.env}

    def masked(self, text: str) -> str:
        """Return *text* without the values of headers, query and environment."""
        for secret in sorted(self._secrets(), key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def _secrets(self) -> Iterator[str]:
        query = (self.url or "").partition("?")[2]
        for value in (*self.headers.values(), *self.env.values(), query):
            # "Bearer …" is a secret of two words, "key=…" one behind a sign.
            yield from (piece for piece in {value, *re.split(r"[\s=&]", value)} if len(piece) >= MIN_SECRET)

    def offers(self, tool: str) -> bool:
        """Whether the tool that the server itself calls so is to be offered."""
        return (self.include is None or tool in self.include) and tool not in self.exclude


def _problems(server: McpServer) -> Iterator[str]:
    if not isinstance(server.name, str) or not _NAME.fullmatch(server.name):
        yield "its name is to be 1 to 32 letters, digits, _ and -"
    if (server.command is None) == (server.url is None):
        yield "give either a command or a url"
    yield from _program_problems(server) if server.command is not None else _address_problems(server)
    for what, seconds in (("timeout_s", server.timeout_s), ("start_timeout_s", server.start_timeout_s)):
        if not (_is_time(seconds) or (seconds is None and what == "timeout_s")):
            yield f"{what}: expected a number of seconds above 0"
    for what, names in (("include", server.include), ("exclude", server.exclude)):
        if names is not None and not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
            yield f"{what}: expected a list of names of tools"
    if server.permission is not None and not (isinstance(server.permission, str) and server.permission):
        yield "permission: expected the name of one"


def _is_time(seconds: object) -> bool:
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return is_number and math.isfinite(seconds) and seconds > 0  # type: ignore[arg-type, operator]


def _program_problems(server: McpServer) -> Iterator[str]:
    command = server.command
    if not isinstance(command, tuple) or not command or not all(_is_word(word) for word in command) or not command[0]:
        yield "command: expected a list of a program and its arguments"
    if server.headers:
        yield "headers: they go with a url only"
    env = server.env
    if not isinstance(env, dict) or not all(_is_word(name) and _is_word(value) for name, value in env.items()):
        yield "env: expected texts by name"
    elif any(not name or "=" in name for name in env):
        yield "env: a variable's name is empty or has a ="
    cwd: Any = server.cwd
    if cwd is not None and not isinstance(cwd, str | os.PathLike):
        yield "cwd: expected a path"


def _is_word(word: object) -> bool:
    return isinstance(word, str) and "\0" not in word


def _address_problems(server: McpServer) -> Iterator[str]:
    try:
        parts = urlsplit(server.url or "")
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except (ValueError, TypeError, AttributeError):
        yield "url: expected http:// or https:// and a host"
        return
    if not fits or not isinstance(server.url, str) or not server.url.isascii() or not server.url.isprintable():
        yield "url: expected http:// or https:// and a host"
    elif " " in server.url or parts.fragment:
        yield "url: a space or a #fragment has no meaning there"
    elif parts.username is not None or parts.password is not None:
        yield "url: credentials belong into headers"
    if server.env or server.cwd is not None:
        yield "env and cwd go with a command only"
    headers: Any = server.headers
    if not isinstance(headers, dict):
        yield "headers: expected texts by name"
        return
    for name, value in headers.items():
        # The value is never told: it is a secret, also a broken one.
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            yield f"headers: {name!r} is no name of a header"
        elif name.lower() in _OURS or name.lower().startswith("mcp-"):
            yield f"headers: {name} is set by the protocol"
        elif not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            yield f"headers: the value of {name} is no value of a header"
