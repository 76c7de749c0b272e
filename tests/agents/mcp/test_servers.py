"""What a program says of an MCP server: checked at once, and without secrets in what is shown."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from netra_ws import ConfigError, McpServer


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "give either a command or a url"),
        ({"command": ["x"], "url": "http://host/"}, "give either a command or a url"),
        ({"command": "x y"}, "command: expected a list of a program and its arguments"),
        ({"command": []}, "command: expected"),
        ({"command": ["x", 5]}, "command: expected"),
        ({"command": ["x\0"]}, "command: expected"),
        ({"command": [""]}, "command: expected"),
        ({"command": ["x"], "headers": {"A": "b"}}, "headers: they go with a url only"),
        ({"command": ["x"], "env": {"A": 5}}, "env: expected texts by name"),
        ({"command": ["x"], "env": ["A=5"]}, "env: expected texts by name"),
        ({"command": ["x"], "env": {"A=B": "5"}}, "env: a variable's name is empty or has a ="),
        ({"command": ["x"], "cwd": 5}, "cwd: expected a path"),
        ({"url": "ftp://host/"}, "url: expected http:// or https:// and a host"),
        ({"url": "https://"}, "url: expected"),
        ({"url": "https://host:0/"}, "url: expected"),
        ({"url": "https://host:99999/"}, "url: expected"),
        ({"url": "https://[::1/"}, "url: expected"),
        ({"url": "https://höst/"}, "url: expected"),
        ({"url": 5}, "url: expected"),
        ({"url": "https://ada:pass@host/"}, "url: credentials belong into headers"),
        ({"url": "https://host/#part"}, "url: a space or a #fragment"),
        ({"url": "https://host/", "env": {"A": "b"}}, "env and cwd go with a command only"),
        ({"url": "https://host/", "headers": ["a"]}, "headers: expected texts by name"),
        ({"url": "https://host/", "headers": {"A b": "c"}}, "headers: 'A b' is no name of a header"),
        ({"url": "https://host/", "headers": {"A": "secret\r\nB: c"}}, "headers: the value of A is no value"),
        ({"url": "https://host/", "headers": {"A": ""}}, "headers: the value of A is no value"),
        ({"url": "https://host/", "headers": {"Host": "b"}}, "headers: Host is set by the protocol"),
        ({"url": "https://host/", "headers": {"Mcp-Session-Id": "b"}}, "headers: Mcp-Session-Id is set by"),
        ({"command": ["x"], "timeout_s": 0}, "timeout_s: expected a number of seconds above 0"),
        ({"command": ["x"], "timeout_s": True}, "timeout_s: expected"),
        ({"command": ["x"], "timeout_s": float("nan")}, "timeout_s: expected"),
        ({"command": ["x"], "start_timeout_s": None}, "start_timeout_s: expected"),
        ({"command": ["x"], "include": "echo"}, "include: expected a list of names of tools"),
        ({"command": ["x"], "exclude": [5]}, "exclude: expected a list of names of tools"),
        ({"command": ["x"], "permission": ""}, "permission: expected the name of one"),
    ],
)
def test_what_cannot_be(given: dict[str, Any], problem: str) -> None:
    """Each setting that cannot be is refused when the value is made, in one line that names server and setting."""
    with pytest.raises(ConfigError) as caught:
        McpServer("files", **given)
    assert str(caught.value).startswith(f"MCP server 'files': {problem}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 33, 5])
def test_names_that_cannot_be(name: Any) -> None:
    """A name is one that can stand before a tool's name."""
    with pytest.raises(ConfigError, match="its name is to be 1 to 32"):
        McpServer(name, command=["x"])


def test_nothing_secret_is_shown() -> None:
    """The repr has neither arguments nor environment, neither headers nor query."""
    assert repr(McpServer("a", command=["tool", "--key=abc"], env={"KEY": "abc"})) == (
        "McpServer('a', command=['tool', …])"
    )
    server = McpServer("b", url="https://host/mcp?key=abc", headers={"Authorization": "Bearer abc"})
    assert repr(server) == "McpServer('b', url='https://host/mcp')"


def test_secrets_are_masked_in_texts() -> None:
    """Values of headers, environment and query are taken out of what others say, also parts of them."""
    server = McpServer("b", url="https://host/mcp?key=in-the-query", headers={"Authorization": "Bearer abc-def-ghi"})
    assert server.masked("no: abc-def-ghi, in-the-query; yes") == "no: ***, ***; yes"
    assert McpServer("c", command=["x"], env={"KEY": "the-key", "N": "1"}).masked("1 the-key 1") == "1 *** 1"


def test_nothing_changes_behind_a_check() -> None:
    """What a program changes in its own lists and mappings later changes nothing here."""
    command, env = ["x"], {"A": "b"}
    server = McpServer("a", command=command, env=env)
    command.append("y")
    env["A"] = "c"
    assert (server.command, server.env) == (("x",), {"A": "b"})


def test_without_the_library() -> None:
    """Where the library is not installed, making the value says what to install."""
    program = """
import sys, importlib.util as util
find = util.find_spec
import netra_ws.agents.mcp.servers as servers
servers.find_spec = lambda name: None if name == "mcp_types" else find(name)
from netra_ws import McpServer, ConfigError
try:
    McpServer("files", command=["x"])
except ConfigError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    needed = "the package mcp, version 2.3 or later, is needed: pip install 'netra_ws[mcp]'"
    assert done.stdout.strip() == f"MCP server 'files': {needed}"
