"""Clients that we did not write: the same conversation over each of them."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio_websocket

from .conversation import DEADLINE_S, QUESTION, READ_BEFORE_CUT, Line, Transcript, check, converse
from .needs import missing, need
from .serving import ServerProcess, running_server

HERE = Path(__file__).parent
INSTALL_S = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that pings often enough for clients to have to answer in the middle of a run."""
    quick = {"timing.heartbeat_interval_s": 0.5, "timing.pong_timeout_s": 0.4}
    with running_server(tmp_path_factory.mktemp("server"), **quick) as running:
        yield running


def bearer(server: ServerProcess, user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.token(user)}"}


def test_websockets(server: ServerProcess) -> None:
    """The package websockets has the whole conversation, with the token in a header."""
    client = need("websockets.asyncio.client")
    exceptions = need("websockets.exceptions")

    class OverWebsockets:
        def __init__(self, socket: client.ClientConnection) -> None:
            self.socket = socket
            self.send = socket.send
            self.close = socket.close

        @property
        def subprotocol(self) -> str | None:
            return self.socket.subprotocol

        @property
        def close_code(self) -> int | None:
            return self.socket.close_code

        async def receive(self) -> str | None:
            try:
                return await self.socket.recv()
            except exceptions.ConnectionClosed:
                return None

        async def ping(self) -> None:
            await (await self.socket.ping())

    @asynccontextmanager
    async def dial(query: str) -> AsyncIterator[Line]:
        url, headers = server.socket_url + query, bearer(server, "websockets")
        async with client.connect(url, subprotocols=["netra.v1"], additional_headers=headers) as socket:
            yield OverWebsockets(socket)

    check(asyncio.run(asyncio.wait_for(converse(dial, json.loads, json.dumps), DEADLINE_S)))


def test_aiohttp(server: ServerProcess) -> None:
    """The package aiohttp has the whole conversation, with the token among the subprotocols."""
    aiohttp = need("aiohttp")

    class OverAiohttp:
        def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
            self.socket = socket
            self.send = socket.send_str
            self.close = socket.close

        @property
        def subprotocol(self) -> str | None:
            return self.socket.protocol

        @property
        def close_code(self) -> int | None:
            return self.socket.close_code

        async def receive(self) -> str | None:
            while True:
                message = await self.socket.receive()
                if message.type is aiohttp.WSMsgType.PING:
                    await self.socket.pong(message.data)
                elif message.type is aiohttp.WSMsgType.CLOSE:  # left to us together with the pings
                    await self.socket.close()
                    return None
                else:
                    return message.data if message.type is aiohttp.WSMsgType.TEXT else None

        async def ping(self) -> None:
            await self.socket.ping(b"are you there?")
            while (message := await self.socket.receive()).type is aiohttp.WSMsgType.PING:
                await self.socket.pong(message.data)
            assert (message.type, message.data) == (aiohttp.WSMsgType.PONG, b"are you there?")

    @asynccontextmanager
    async def dial(query: str) -> AsyncIterator[Line]:
        offers = ["netra.v1", f"jwt.{server.token('aiohttp')}"]
        async with aiohttp.ClientSession() as session:
            url = server.socket_url + query
            async with session.ws_connect(url, protocols=offers, autoping=False, autoclose=False) as socket:
                yield OverAiohttp(socket)

    check(asyncio.run(asyncio.wait_for(converse(dial, json.loads, json.dumps), DEADLINE_S)))


async def test_trio_websocket(server: ServerProcess) -> None:
    """The package trio-websocket has the whole conversation, with the token in a header."""

    class OverTrio:
        def __init__(self, socket: trio_websocket.WebSocketConnection) -> None:
            self.socket = socket
            self.send = socket.send_message
            self.ping = socket.ping
            self.close = socket.aclose
            self.subprotocol = socket.subprotocol

        @property
        def close_code(self) -> int | None:
            return None if self.socket.closed is None else self.socket.closed.code

        async def receive(self) -> str | None:
            try:
                return await self.socket.get_message()
            except trio_websocket.ConnectionClosed:
                return None

    @asynccontextmanager
    async def dial(query: str) -> AsyncIterator[Line]:
        headers = [(name, value.encode()) for name, value in bearer(server, "trio-websocket").items()]
        # open_websocket_url() leaves the TCP socket open when the server closes first, so it is ours here.
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream, trio.open_nursery() as nursery:
            socket = await trio_websocket.wrap_client_stream(
                nursery,
                stream,
                f"127.0.0.1:{server.port}",
                f"/ws{query}",
                subprotocols=["netra.v1"],
                extra_headers=headers,
            )
            yield OverTrio(socket)
            await socket.aclose()
            nursery.cancel_scope.cancel()

    with trio.fail_after(DEADLINE_S):
        check(await converse(dial, json.loads, json.dumps))


@pytest.fixture(scope="module")
def modules(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which Node.js finds the package ws; it is fetched once and kept in pytest's cache."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        missing("Node.js with npm")
    cache = getattr(pytestconfig, "cache", None)  # may be switched off
    folder = tmp_path_factory.mktemp("node") if cache is None else cache.mkdir("node")
    shutil.copy(HERE / "package.json", folder)
    if not (folder / "node_modules" / "ws").is_dir():
        install = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
        try:
            outcome = subprocess.run(
                install, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S, check=False
            )
        except subprocess.TimeoutExpired:
            missing("the npm package ws (its registry does not answer)")
        if outcome.returncode != 0:
            missing(f"the npm package ws ({outcome.stderr.strip()[-500:]})")
    return folder


@pytest.mark.node
def test_ws_of_node(server: ServerProcess, modules: Path) -> None:
    """The npm package ws has the whole conversation, with the token among the subprotocols."""
    task = {
        "modules": str(modules),
        "url": server.socket_url,
        "token": server.token("node"),
        "question": QUESTION,
        "readBeforeCut": READ_BEFORE_CUT,
    }
    outcome = subprocess.run(
        ["node", str(HERE / "ws_conversation.mjs")],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr[-4000:]
    check(Transcript(**json.loads(outcome.stdout)))
