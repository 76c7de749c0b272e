"""Certificates for the tests, and clients over TLS: our raw one, which is strict about the end of a connection."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import trio
import trustme

from netra_ws.server import Server

from .kit import Client, dial, token, upgrade


@attrs.define
class Authority:
    """An authority of one test, and the files that it has issued."""

    folder: Path
    ca: trustme.CA = attrs.field(factory=trustme.CA)

    def issue(self, *, ends_in: timedelta = timedelta(days=90), name: str = "server") -> dict[str, Any]:
        """Write a chain and a key for this machine, over those of that name; return the settings that use them."""
        ends = datetime.now(UTC) + ends_in
        leaf = self.ca.issue_cert("localhost", "127.0.0.1", not_before=ends - timedelta(days=365), not_after=ends)
        chain, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        key.write_bytes(leaf.private_key_pem.bytes())
        key.chmod(0o600)
        return {"server.tls_cert": str(chain), "server.tls_key": str(key)}

    def trusting(self, *, change: Callable[[ssl.SSLContext], object] = lambda context: None) -> ssl.SSLContext:
        """Return the context of a client that believes this authority and nobody else."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        change(context)
        return context


@asynccontextmanager
async def over_tls(
    server: Server, context: ssl.SSLContext, *, name: str = "localhost", receive_buffer: int | None = None
) -> AsyncIterator[Client]:
    """Open a TLS connection on which nothing was said yet; an end without close_notify counts as a reset."""
    plain = await dial(server, receive_buffer=receive_buffer)
    stream = trio.SSLStream(plain, context, server_hostname=name)
    try:
        with trio.fail_after(8):
            await stream.do_handshake()
        yield Client(stream)
    finally:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def socket_over_tls(
    server: Server, context: ssl.SSLContext, user: str = "ada", *, path: str = "/ws", **how: Any
) -> AsyncIterator[Client]:
    """Open a WebSocket over TLS and read the welcome."""
    async with over_tls(server, context, **how) as client:
        await client.open(upgrade(path, bearer=token(user), protocols=("netra.v1",)), welcome=path != "/ws/echo")
        yield client
